"""Kill -9 at random moments of indexing, and of searching while the index is updated: nothing is lost, nothing twice.

    python benchmarks/kill_index.py

Copies of the sample corpus's drawings, made different by a comment, are indexed with an untrained model whose encoders
are the bundled ones. `saysee index build` is killed a hundred times: by turns before it has written its first batch of
pictures, and during the two batches behind that. After every kill the index is opened, and what it has must be a part
of the folder, each picture once, each row as it was written. Then `saysee index update` is killed twenty times while
pictures come, go, change and move and a search runs beside it; every answer must be of the index. In the end one update
that is not disturbed must give the same items and the same embeddings as an index that was never disturbed.

The rival is the undisturbed build: the ratio is what the kills cost in time.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from record import keep
from saysee.config import load_config
from saysee.data.sample import sample_manifest_path
from saysee.models.retrieval_model import SpeechImageModel
from saysee.search.building import check_index
from saysee.search.index import open_index

SAMPLE = sample_manifest_path().parent
BATCH = 16  # pictures that are written together
QUESTION = SAMPLE / "audio" / "en-art4apps" / "back.ogg"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="of indexing (default: 100)")
    parser.add_argument("--update-kills", type=int, default=20, help="of updating beside a search (default: 20)")
    parser.add_argument("--pictures", type=int, default=1500, help="(default: 1,500)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(options.seed)
        SpeechImageModel.from_config(load_config("tiny")).save_pretrained(folder / "model")
        pictures = folder / "pictures"
        pictures.mkdir()
        for number in range(options.pictures):
            add(pictures, number)
        process, begun = start(build(folder, "whole")), time.perf_counter()
        wait_for_writing(process, folder / "whole")
        first = time.perf_counter() - begun
        process.wait()
        undisturbed = time.perf_counter() - begun
        batch = (undisturbed - first) / (options.pictures / BATCH)

        faults: list[str] = []
        begun = time.perf_counter()
        progress = []
        for turn in range(options.kills):
            process = start(build(folder, "killed"))
            if turn % 2:
                wait_for_writing(process, folder / "killed")
                time.sleep(moments.uniform(0, 2 * batch))
            else:
                time.sleep(moments.uniform(0, first))
            kill_now(process)
            if (folder / "killed" / "index.json").exists():
                progress.append(inspect(folder / "killed", pictures, faults))
        timed(build(folder, "killed"))
        built = time.perf_counter() - begun
        faults += differences(folder / "whole", folder / "killed")

        answered = 0
        for number in range(options.update_kills):
            disturb(pictures, moments, options.pictures + 10 * number)
            update = start(["index", "update", str(folder / "killed")])
            search = start(["search", str(folder / "killed"), str(QUESTION), "--json"])
            time.sleep(moments.uniform(2, 8))
            kill_now(update)
            answered += search.wait() == 0
            inspect(folder / "killed", pictures, faults, stale=True)
        timed(["index", "update", str(folder / "killed")])
        shutil.rmtree(folder / "whole")
        timed(build(folder, "whole"))
        faults += differences(folder / "whole", folder / "killed")
        figures: dict[str, Any] = {
            "pictures": options.pictures,
            "kills_of_indexing": options.kills,
            "kills_that_left_an_index": len(progress),
            "pictures_there_after_each": progress,
            "kills_of_updating": options.update_kills,
            "searches_answered_beside": answered,
            "faults": faults,
            "undisturbed_seconds": round(undisturbed, 1),
            "first_batch_after_seconds": round(first, 1),
            "disturbed_over_undisturbed": round(built / undisturbed, 2),
        }
    keep("kill_index", data="drawings of the sample corpus (Art4Apps), copied", seed=options.seed, figures=figures)
    sys.exit(1 if faults or answered < options.update_kills else 0)


def add(pictures: Path, number: int) -> None:
    """Copy a drawing under a new name, with a JPEG comment that makes it another file."""
    drawings = sorted((SAMPLE / "images").glob("*.jpg"))
    content = drawings[number % len(drawings)].read_bytes()
    comment = f"{number}".encode()
    marked = content[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + content[2:]
    (pictures / f"{number}.jpg").write_bytes(marked)


def disturb(pictures: Path, moments: random.Random, number: int) -> None:
    """Let pictures come, go, change and move."""
    for new in range(5):
        add(pictures, number + new)
    there = sorted(pictures.glob("*.jpg"))
    gone, changed, moved = moments.sample(there, 3)
    gone.unlink()
    add(pictures, number + 7)
    (pictures / f"{number + 7}.jpg").replace(changed)
    moved.replace(pictures / f"moved-{number}.jpg")


def inspect(index: Path, pictures: Path, faults: list[str], *, stale: bool = False) -> int:
    """Open an index as a search would, and return how many pictures it has."""
    opened = open_index(index)
    paths = [item.path for item in opened.store.items()]
    if len(set(paths)) != len(paths):
        faults.append("a picture is there twice")
    if not stale and not set(paths) <= {path.name for path in pictures.glob("*.jpg")}:
        faults.append("there is a picture that the folder has not")
    if damaged := check_index(opened).damaged:
        faults.append(f"{len(damaged)} are damaged")
    opened.close()
    return len(paths)


def differences(whole: Path, killed: Path) -> list[str]:
    """Say where two indexes of one folder differ; embeddings to what the neighbours in a batch change."""
    one, other = open_index(whole), open_index(killed)
    items, found = ({item.path: item for item in index.store.items()} for index in (one, other))
    faults = [] if items == found else [f"{len(items.items() ^ found.items())} items differ"]
    ids = [item.id for item in items.values() if item.path in found]
    if not np.allclose(one.store.embeddings(ids), other.store.embeddings(ids), atol=1e-4):
        faults.append("embeddings differ")
    one.close()
    other.close()
    return faults


def build(folder: Path, into: str) -> list[str]:
    return ["index", "build", str(folder / "pictures"), "--model", str(folder / "model"), "--into", str(folder / into)]


def start(command: list[str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "saysee", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def timed(command: list[str]) -> float:
    begun = time.perf_counter()
    status = start(command).wait()
    assert status == 0, (command, status)
    return time.perf_counter() - begun


def wait_for_writing(process: "subprocess.Popen[bytes]", index: Path) -> None:
    """Wait until a process has written to an index, or has ended."""

    def written() -> int:
        return sum(path.stat().st_size for path in index.glob("embeddings-*.f32"))

    before = written()
    while process.poll() is None and written() == before:
        time.sleep(0.005)


def kill_now(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


if __name__ == "__main__":
    main()
