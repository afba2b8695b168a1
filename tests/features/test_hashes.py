"""Remembered hashes: of a file that has not changed, and of no other."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saysee.features.hashes import FileHashes, file_key, is_settled, sha256


def remember(hashes: FileHashes, path: Path) -> bytes:
    digest = sha256(path.read_bytes())
    hashes.put(file_key(path, path.stat()), digest)
    return digest


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "clip.wav"
    path.write_bytes(b"one")
    return path


def test_a_hash_is_remembered_also_by_a_new_object(tmp_path: Path, path: Path) -> None:
    hashes = FileHashes(tmp_path / "cache")
    assert hashes.get(path) is None
    hashes.save()
    assert not (tmp_path / "cache").exists(), "nothing to write"
    digest = remember(hashes, path)
    assert hashes.get(path) == digest
    assert FileHashes(tmp_path / "cache").get(path) is None
    hashes.save()
    assert hashes.get(path) == FileHashes(tmp_path / "cache").get(path) == digest


def test_a_file_that_was_rewritten_with_its_old_size_and_date_is_hashed_again(tmp_path: Path, path: Path) -> None:
    hashes = FileHashes(tmp_path / "cache")
    remember(hashes, path)
    hashes.save()
    before = path.stat()
    time.sleep(0.02)  # the clock that stamps files goes in steps of a few milliseconds
    path.write_bytes(b"two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)
    assert hashes.get(path) is None
    assert FileHashes(tmp_path / "cache").get(path) is None


def test_a_file_is_known_by_its_path_size_inode_and_times(tmp_path: Path, path: Path) -> None:
    status = list(path.stat())
    key = file_key(path, path.stat())
    assert file_key(tmp_path / "other.wav", path.stat()) != key
    replaced = tmp_path / "new.wav"
    replaced.write_bytes(b"one")
    os.utime(replaced, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    replaced.replace(path)
    assert list(path.stat())[1] != status[1]
    assert file_key(path, path.stat()) != key


def test_a_missing_file_is_not_known(tmp_path: Path, path: Path) -> None:
    hashes = FileHashes(tmp_path / "cache")
    remember(hashes, path)
    path.unlink()
    assert hashes.get(path) is None
    assert hashes.get(tmp_path) is None
    assert hashes.get(Path("/lone surrogate \ud800.wav")) is None


def test_what_changed_within_two_seconds_is_not_settled(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = path.stat().st_ctime_ns
    for later, settled in ((0, False), (1_999_999_999, False), (2_000_000_001, True)):
        monkeypatch.setattr(time, "time_ns", lambda later=later: changed + later)
        assert is_settled(path.stat()) == settled


keys = st.one_of(
    st.binary(min_size=16, max_size=16), st.builds(lambda head: head.ljust(16, b"\0"), st.binary(max_size=16))
)


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(keys, st.binary(min_size=32, max_size=32), min_size=1, max_size=8), st.lists(keys), st.integers(0)
)
def test_any_key_is_found_and_no_other(
    tmp_path_factory: pytest.TempPathFactory, known: dict[bytes, bytes], others: list[bytes], cut: int
) -> None:
    """Also keys that end in zeros, which numpy's byte strings drop; whether they were saved together or not."""
    folder = tmp_path_factory.mktemp("cache")
    items = list(known.items())
    for part in (items[: cut % len(items)], items[cut % len(items) :]):
        hashes = FileHashes(folder)
        for key, digest in part:
            hashes.put(key, digest)
        hashes.save()
    for remembering in (hashes, FileHashes(folder)):
        for key in {*known, *others}:
            assert _find(remembering, key) == known.get(key)


def _find(hashes: FileHashes, key: bytes) -> bytes | None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("saysee.features.hashes.file_key", lambda *_: key)
        return hashes.get(Path("/"))


def test_a_damaged_file_costs_nothing_but_time(tmp_path: Path, path: Path) -> None:
    hashes = FileHashes(tmp_path)
    digest = remember(hashes, path)
    hashes.save()
    file = tmp_path / "files.safetensors"
    whole = file.read_bytes()
    damages = [whole[:at] for at in range(0, len(whole), 7)]
    damages += [whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :] for at in range(len(whole) - 48)]
    for damage in damages:
        file.write_bytes(damage)
        hashes = FileHashes(tmp_path)
        assert hashes.get(path) in {None, digest}
        remember(hashes, path)
        hashes.save()
        assert FileHashes(tmp_path).get(path) == digest


def test_a_hash_that_was_spoilt_on_disk_is_replaced(tmp_path: Path, path: Path) -> None:
    """The store has nothing for it, so the file is read again, and what it then is counts from there on."""
    hashes = FileHashes(tmp_path)
    hashes.put(file_key(path, path.stat()), b"x" * 32)
    hashes.save()
    hashes = FileHashes(tmp_path)
    digest = remember(hashes, path)
    hashes.save()
    assert FileHashes(tmp_path).get(path) == digest


def test_two_objects_that_save_one_after_the_other_keep_both(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.wav" for number in range(4)]
    first, second = FileHashes(tmp_path / "cache"), FileHashes(tmp_path / "cache")
    for number, path in enumerate(paths):
        path.write_text(f"{number}")
        remember((first, second)[number % 2], path)
    first.save()
    second.save()
    assert [FileHashes(tmp_path / "cache").get(path) for path in paths] == [sha256(p.read_bytes()) for p in paths]


def test_objects_that_save_at_once_leave_a_whole_file(tmp_path: Path) -> None:
    """One may forget what the other has learnt, as said; what is there is right."""

    def learn(number: int) -> None:
        hashes = FileHashes(tmp_path)
        for turn in range(15):
            hashes.put(sha256(f"{number} {turn}".encode())[:16], sha256(f"{number} {turn} content".encode()))
            hashes.save()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(learn, range(4)))
    hashes = FileHashes(tmp_path)
    known = {
        (number, turn): _find(hashes, sha256(f"{number} {turn}".encode())[:16])
        for number in range(4)
        for turn in range(15)
    }
    kept = {place: digest for place, digest in known.items() if digest is not None}
    assert len(kept) >= 15, "the last to save knows at least its own"
    assert all(digest == sha256(f"{number} {turn} content".encode()) for (number, turn), digest in kept.items())
    assert [entry.name for entry in tmp_path.iterdir()] == ["files.safetensors"]
