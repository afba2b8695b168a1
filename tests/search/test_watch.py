"""`saysee index watch` as a real process: what is done to the folder is in the index soon after."""

import signal
import time
from pathlib import Path

from command_line import finish, finished_world, start
from media import write_image
from saysee.search.index import open_index

STUBBED = (Path(__file__).parents[1] / "command_line.py",)


def test_the_index_follows_the_folder_until_ctrl_c(tmp_path: Path) -> None:
    world = finished_world(tmp_path / "world")
    index, corpus = world.folder / "index", world.folder / "corpus"
    watching = start(STUBBED, "index", "watch", index)
    assert watching.stdout is not None
    assert watching.stdout.readline() == f"{index}: 12 pictures (12 unchanged, 13 of other kinds)\n"
    time.sleep(1)  # the first updating has ended, the watching begins
    write_image(corpus / "new.png", colour="navy")
    (corpus / "0.png").rename(corpus / "moved.png")
    assert watching.stdout.readline() == (
        f"{index}: 13 pictures (1 new or changed, 11 unchanged, 1 moved, 13 of other kinds)\n"
    )
    opened = open_index(index)
    assert {"new.png", "moved.png"} < {item.path for item in opened.store.items()}
    opened.close()
    watching.send_signal(signal.SIGINT)
    ended = finish(watching)
    assert ended.status == 130
    assert "Traceback" not in ended.err
