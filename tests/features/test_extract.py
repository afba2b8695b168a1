"""Extraction: every file once, in order, a bounded number ahead, and every bad one named."""

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saysee.errors import AudioError, SayseeError
from saysee.features.cache import FeatureCache
from saysee.features.extract import CachedFeatures, extract, read_ahead

BACKBONE = "ab" * 32


class Machine:
    """Decodes a file as text and encodes it as its characters' numbers; remembers what it was asked for."""

    def __init__(self) -> None:
        self.decoded: list[str] = []
        self.groups: list[list[str]] = []

    def decode(self, content: bytes, path: Path) -> str:
        text = content.decode()
        self.decoded.append(path.name)
        if text.startswith("bad"):
            raise AudioError(f"{path.name}: is {text}")
        return text

    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        self.groups.append(list(texts))
        return [torch.tensor([ord(letter) for letter in text]) for text in texts]


def write(folder: Path, *texts: str) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number}.txt" for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    return paths


def text_of(features: CachedFeatures, path: Path) -> str:
    return "".join(map(chr, features[path].tolist()))


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    return FeatureCache(tmp_path / "cache", BACKBONE)


# ---- extract


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 9), st.integers(1, 4))
def test_grouping_and_threads_change_nothing(
    tmp_path_factory: pytest.TempPathFactory, batch_size: int, workers: int
) -> None:
    folder, machine = tmp_path_factory.mktemp("files"), Machine()
    paths = write(folder / "texts", "one", "bad two", "three", "four", "bad five", "six", "seven")
    cache = FeatureCache(folder / "cache", BACKBONE)
    features, faults = extract(
        paths, Path.read_bytes, machine.decode, machine.encode, cache, batch_size=batch_size, workers=workers
    )
    good = [path for path in paths if "bad" not in path.read_text()]
    assert list(features.content) == good
    assert [text_of(features, path) for path in good] == ["one", "three", "four", "six", "seven"]
    assert faults == {paths[1]: "1.txt: is bad two", paths[4]: "4.txt: is bad five"}
    assert [text for group in machine.groups for text in group] == ["one", "three", "four", "six", "seven"]
    assert [len(group) for group in machine.groups[:-1]] == [batch_size] * (len(machine.groups) - 1)
    assert 1 <= len(machine.groups[-1]) <= batch_size


def test_nothing_is_decoded_or_encoded_twice(tmp_path: Path, cache: FeatureCache) -> None:
    machine, paths = Machine(), write(tmp_path / "texts", "one", "two", "three")
    for _ in range(2):
        features, faults = extract(
            [*paths, *paths], Path.read_bytes, machine.decode, machine.encode, cache, batch_size=2
        )
        assert faults == {}
        assert [text_of(features, path) for path in paths] == ["one", "two", "three"]
    assert sorted(machine.decoded) == ["0.txt", "1.txt", "2.txt"]
    assert machine.groups == [["one", "two"], ["three"]]


def test_a_changed_file_is_encoded_again_and_a_moved_one_is_not(tmp_path: Path, cache: FeatureCache) -> None:
    machine, (path, other) = Machine(), write(tmp_path / "texts", "one", "two")
    before, _ = extract([path, other], Path.read_bytes, machine.decode, machine.encode, cache, batch_size=4)
    path.write_text("eno")
    moved = other.rename(tmp_path / "moved.txt")
    after, _ = extract([path, moved], Path.read_bytes, machine.decode, machine.encode, cache, batch_size=4)
    assert machine.groups == [["one", "two"], ["eno"]]
    assert text_of(after, path) == "eno"
    assert text_of(after, moved) == "two"
    # what was extracted for a run stays what the run was given
    assert text_of(before, path) == "one"
    assert after.content[path] == sha256(b"eno").hexdigest()


def test_a_file_that_changes_while_it_is_read_does_not_spoil_the_cache(tmp_path: Path, cache: FeatureCache) -> None:
    """What is decoded is what was hashed: the entry of the old content never holds features of the new one."""
    machine, (path,) = Machine(), write(tmp_path / "texts", "one")

    def read(path: Path) -> bytes:
        content = path.read_bytes()
        path.write_text("two")
        return content

    extract([path], read, machine.decode, machine.encode, cache, batch_size=4)
    assert cache.get(sha256(b"one").hexdigest()).tolist() == [ord(letter) for letter in "one"]
    assert sha256(b"two").hexdigest() not in cache


def test_features_that_are_not_finite_are_a_fault_and_are_not_kept(tmp_path: Path, cache: FeatureCache) -> None:
    paths = write(tmp_path / "texts", "one", "two", "three")

    def encode(texts: Sequence[str]) -> list[Tensor]:
        return [torch.tensor([1e5 if text == "two" else 1.0]).half() for text in texts]

    features, faults = extract(paths, Path.read_bytes, Machine().decode, encode, cache, batch_size=2)
    assert list(faults) == [paths[1]]
    assert faults[paths[1]].startswith(f"{paths[1]}: its features are not finite")
    assert [path for path in paths if sha256(path.read_bytes()).hexdigest() in cache] == [paths[0], paths[2]]
    assert features[paths[2]].tolist() == [1.0]


def test_a_file_that_is_missing_or_a_folder_is_a_fault_and_not_the_end(tmp_path: Path, cache: FeatureCache) -> None:
    machine, (path,) = Machine(), write(tmp_path / "texts", "one")
    missing, folder = tmp_path / "missing.txt", tmp_path / "texts"
    features, faults = extract(
        [missing, path, folder], Path.read_bytes, machine.decode, machine.encode, cache, batch_size=4
    )
    assert faults == {missing: f"{missing}: No such file or directory", folder: f"{folder}: Is a directory"}
    assert text_of(features, path) == "one"
    assert missing not in features.content


def test_what_was_encoded_before_an_interruption_is_kept(tmp_path: Path, cache: FeatureCache) -> None:
    machine, paths = Machine(), write(tmp_path / "texts", "one", "two", "three", "four")

    def interrupted(texts: Sequence[str]) -> list[Tensor]:
        if "three" in texts:
            raise KeyboardInterrupt
        return machine.encode(texts)

    with pytest.raises(KeyboardInterrupt):
        extract(paths, Path.read_bytes, machine.decode, interrupted, cache, batch_size=2)
    extract(paths, Path.read_bytes, machine.decode, machine.encode, cache, batch_size=2)
    assert machine.groups == [["one", "two"], ["three", "four"]]


def test_a_damaged_entry_is_made_again_by_the_next_extraction(tmp_path: Path, cache: FeatureCache) -> None:
    machine, (path,) = Machine(), write(tmp_path / "texts", "one")
    extract([path], Path.read_bytes, machine.decode, machine.encode, cache, batch_size=4)
    entry = cache.path(sha256(path.read_bytes()).hexdigest())
    entry.write_bytes(entry.read_bytes()[:-1])
    features, _ = extract([path], Path.read_bytes, machine.decode, machine.encode, cache, batch_size=4)
    assert text_of(features, path) == "one"
    assert machine.groups == [["one"], ["one"]]


@pytest.mark.parametrize("damage", [Path.unlink, lambda entry: entry.write_bytes(b"cut")], ids=["gone", "damaged"])
def test_features_that_are_lost_during_a_run_are_named(tmp_path: Path, cache: FeatureCache, damage: object) -> None:
    """Somebody empties the cache while a model trains: what to do is clear, and it is no fault of ours."""
    machine, (path,) = Machine(), write(tmp_path / "texts", "one")
    features, _ = extract([path], Path.read_bytes, machine.decode, machine.encode, cache, batch_size=4)
    damage(cache.path(sha256(path.read_bytes()).hexdigest()))  # type: ignore[operator]
    with pytest.raises(SayseeError, match=r"0\.txt") as caught:
        features[path]
    assert "\n" not in str(caught.value)


def test_no_file_is_no_work(cache: FeatureCache) -> None:
    machine = Machine()
    features, faults = extract([], Path.read_bytes, machine.decode, machine.encode, cache, batch_size=4)
    assert (features.content, faults, machine.groups) == ({}, {}, [])


# ---- read_ahead


def test_files_come_in_their_order_whichever_is_ready_first() -> None:
    """The first file is read only when the last of those ahead has been."""
    paths = [Path(f"{number}") for number in range(4)]
    last_is_read = threading.Event()

    def read(path: Path) -> str:
        if path == paths[0]:
            assert last_is_read.wait(60)
        elif path == paths[3]:
            last_is_read.set()
        return path.name

    assert list(read_ahead(paths, read, workers=2, ahead=4)) == [(path, path.name) for path in paths]


@pytest.mark.parametrize(("workers", "ahead"), [(1, 1), (2, 3), (4, 16)])
def test_no_more_than_a_bounded_number_is_read_ahead(workers: int, ahead: int) -> None:
    paths = [Path(f"{number}") for number in range(40)]
    begun: list[Path] = []

    def read(path: Path) -> int:
        begun.append(path)
        return 0

    taken = 0
    for _ in read_ahead(paths, read, workers=workers, ahead=ahead):
        taken += 1
        assert taken <= len(begun) <= taken - 1 + ahead
    assert taken == len(paths)


def test_a_fault_of_a_file_is_one_line_in_its_place() -> None:
    def read(path: Path) -> str:
        if path.name == "1":
            raise AudioError("1: is silent")
        if path.name == "2":
            raise PermissionError(13, "Permission denied")
        if path.name == "3":
            raise OSError("no number")
        return "read"

    results = list(read_ahead([Path(f"{number}") for number in range(5)], read, workers=2, ahead=2))
    assert [result for _, result in results] == ["read", "1: is silent", "2: Permission denied", "3: no number", "read"]


def test_what_is_no_fault_of_a_file_comes_through() -> None:
    def read(path: Path) -> str:
        if path.name == "2":
            raise ZeroDivisionError
        return path.name

    files = read_ahead([Path(f"{number}") for number in range(5)], read, workers=2, ahead=3)
    assert [next(files)[1], next(files)[1]] == ["0", "1"]
    with pytest.raises(ZeroDivisionError):
        next(files)


def test_leaving_early_does_not_read_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C: what has not begun is not begun, also of the files that were asked for already."""
    begun: list[str] = []
    cancelled: list[bool] = []
    all_cancelled = threading.Event()
    cancel = Future.cancel

    def counted(future: Future[object]) -> bool:
        cancelled.append(cancel(future))
        if len(cancelled) == 49:
            all_cancelled.set()
        return cancelled[-1]

    def read(path: Path) -> str:
        begun.append(path.name)
        if path.name == "1":
            assert all_cancelled.wait(5)
        return path.name

    monkeypatch.setattr(Future, "cancel", counted)
    files = read_ahead([Path(f"{number}") for number in range(100)], read, workers=1, ahead=50)
    assert next(files)[1] == "0"
    files.close()  # type: ignore[attr-defined]
    assert begun in (["0"], ["0", "1"])
