"""Files are whole or not there."""

import errno
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saysee.errors import SayseeError
from saysee.files import atomic_path, free_bytes, hash64, sha256_of, sole_process, write_text


def test_an_error_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_text(path, "old")
    with pytest.raises(OSError, match="No space"), atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


def test_a_reader_meanwhile_sees_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    write_text(path, "old")
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_it_is_as_readable_as_any_file(tmp_path: Path) -> None:
    write_text(tmp_path / "ours", "")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_hash_is_of_all_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000
    (tmp_path / "big").write_bytes(content)
    assert sha256_of(tmp_path / "big") == hashlib.sha256(content).hexdigest()


def test_a_lock_is_held_by_one_process_and_goes_with_it(tmp_path: Path) -> None:
    lock = tmp_path / "run" / "lock"
    holder = "from pathlib import Path; from saysee.files import sole_process; import sys, time\n"
    holder += "with sole_process(Path(sys.argv[1]), 'training'): print('held', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", holder, str(lock)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(SayseeError, match="another process is training"), sole_process(lock, "training"):
            pass
        process.kill()
    with sole_process(lock, "training"):
        pass


def test_room_is_that_of_the_disk_where_a_folder_would_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    usage = shutil.disk_usage(tmp_path)

    def disk_usage(folder: Path) -> object:
        asked.append(folder)
        return usage

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, tmp_path / "not" / "there", Path("nor/this")):
        assert free_bytes(folder) == usage.free
    assert asked == [tmp_path] * 3


def test_a_hash_of_64_bits_is_the_same_on_every_machine() -> None:
    assert hash64("") == 0xE4A6A0577479B2B4  # BLAKE2b with 8 bytes of nothing
    assert hash64("/corpus/ñ.wav") == int.from_bytes(
        hashlib.blake2b("/corpus/ñ.wav".encode(), digest_size=8).digest(), "big"
    )


@given(st.lists(st.text(st.characters(), max_size=4), max_size=50, unique=True))
def test_different_texts_have_different_hashes(texts: list[str]) -> None:
    """Also those that UTF-8 cannot hold, such as the name of a file that is not text."""
    hashes = {hash64(text) for text in texts}
    assert len(hashes) == len(texts)
    assert all(0 <= value < 2**64 for value in hashes)
