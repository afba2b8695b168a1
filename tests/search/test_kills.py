"""`kill -9` while an index is built and while it is updated beside a search: nothing is lost, nothing is there twice.

`benchmarks/kill_index.py` does it a hundred times with the real encoders.
"""

import json
import os
import signal
import sqlite3
import time
from pathlib import Path

import numpy as np
import pytest

from command_line import SPOKEN, World, finish, finished_world, saysee, start, stub_encoders
from media import write_image
from saysee.search.building import check_index
from saysee.search.index import open_index, writing_to

STUBBED = (Path(__file__).parents[1] / "command_line.py",)
PICTURES = 400


def write_pictures(folder: Path, numbers: range) -> None:
    folder.mkdir(exist_ok=True)
    for number in numbers:
        write_image(
            folder / f"{number}.png", size=(32 + number % 50, 32 + number // 50), colour=f"hsl({number}, 90%, 50%)"
        )


def there(index: Path) -> list[str]:
    """The paths of an index as another process sees them, each as it was written."""
    opened = open_index(index)
    paths = [item.path for item in opened.store.items()]
    assert check_index(opened).damaged == ()
    opened.close()
    return paths


def rows(index: Path) -> int:
    """How many items are there, without touching what the killed process left."""
    try:
        with sqlite3.connect(f"file:{index / 'records.sqlite'}?mode=ro", uri=True) as records:
            return int(records.execute("SELECT count(*) FROM items").fetchone()[0])
    except sqlite3.Error:
        return 0


def kill_when(command: list[object], index: Path, least: int) -> None:
    """Start a command, and kill it as soon as the index has so many items."""
    process = start(STUBBED, *command)
    deadline = time.monotonic() + 120
    while rows(index) < least and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    assert process.poll() is None, finish(process)
    process.kill()
    assert finish(process).status == -signal.SIGKILL


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return finished_world(tmp_path_factory.mktemp("killed"))


def test_an_index_that_is_killed_while_it_is_built_and_updated(world: World, tmp_path: Path) -> None:
    pictures, index, whole = tmp_path / "pictures", tmp_path / "index", tmp_path / "whole"
    write_pictures(pictures, range(PICTURES))
    build = ["index", "build", pictures, "--model", world.folder / "model", "--into"]
    for least in (1, 150):
        kill_when([*build, index], index, least)
        found = there(index)
        assert len(found) == len(set(found)) >= least
        assert set(found) < {path.name for path in pictures.iterdir()}

    write_pictures(pictures, range(PICTURES, 2 * PICTURES))
    (pictures / "0.png").rename(pictures / "moved.png")
    (pictures / "1.png").unlink()
    os.utime(write_image(pictures / "2.png", colour="black"), ns=(1, 1))
    search = start(STUBBED, "search", index, SPOKEN, "--json", "--top", "5")
    kill_when(["index", "update", index], index, 300)
    answered = finish(search)
    assert answered.status == 0, answered.err
    assert len(json.loads(answered.out)["answers"]) == 5
    found = there(index)
    assert len(found) == len(set(found)) >= 300

    with stub_encoders():
        assert saysee("index", "update", index).status == 0
        assert saysee(*build, whole).status == 0
    one, other = open_index(whole), open_index(index)
    items = {item.path: item for item in one.store.items()}
    assert items == {item.path: item for item in other.store.items()}
    assert set(items) == {path.name for path in pictures.iterdir()}
    ids = [item.id for item in items.values()]
    np.testing.assert_allclose(one.store.embeddings(ids), other.store.embeddings(ids), atol=1e-5)


def test_a_second_writer_waits_for_the_first_and_says_so(world: World) -> None:
    index = world.folder / "index"
    with writing_to(index, print):
        second = start(STUBBED, "index", "update", index)
        assert second.stderr is not None
        assert second.stderr.readline() == (f"saysee: another process is writing to {index}; waiting for it to end\n")
        assert second.poll() is None
    ended = finish(second)
    assert (ended.status, ended.out) == (0, f"{index}: 12 pictures (12 unchanged, 13 of other kinds)\n")
