"""Extraction: every file once, in units that stay when the rest is killed, and every bad file named."""

import time
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saysee.errors import AudioError, SayseeError
from saysee.features import extract as extraction
from saysee.features.extract import (
    FileEncoder,
    StoredFeatures,
    UnitResult,
    extract,
    in_process,
)
from saysee.features.hashes import FileHashes
from saysee.features.store import FeatureStore

BACKBONE = "ab" * 32


class Machine:
    """Decodes a file as text and encodes it as its characters' numbers; remembers what it was asked for."""

    def __init__(self) -> None:
        self.read: list[str] = []
        self.decoded: list[str] = []
        self.groups: list[list[str]] = []

    def read_file(self, path: Path) -> bytes:
        self.read.append(path.name)
        return path.read_bytes()

    def decode(self, content: bytes, path: Path) -> str:
        text = content.decode()
        self.decoded.append(path.name)
        if text.startswith("bad"):
            raise AudioError(f"{path.name}: is {text}")
        return text

    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        self.groups.append(list(texts))
        return [torch.tensor([[ord(letter)] for letter in text], dtype=torch.float16) for text in texts]

    def encoder(
        self,
        batch_size: int = 1,
        read: Callable[[Path], bytes] | None = None,
        encode: Callable[[Sequence[str]], Sequence[Tensor]] | None = None,
    ) -> FileEncoder:
        return FileEncoder(BACKBONE, read or self.read_file, self.decode, encode or self.encode, batch_size)

    @property
    def encoded(self) -> list[str]:
        return [text for group in self.groups for text in group]


def write(folder: Path, *texts: str) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number}.txt" for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    return paths


def run(paths: Sequence[Path], cache: Path, encoder: FileEncoder) -> tuple[StoredFeatures, dict[Path, str]]:
    return extract(paths, BACKBONE, cache, in_process(encoder, cache))


def text_of(features: StoredFeatures, path: Path) -> str:
    return "".join(chr(int(number)) for number in features[path].flatten().tolist())


def shards(cache: Path) -> list[Path]:
    return sorted(FeatureStore(cache, BACKBONE).folder.glob("*"))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that a test has just written count as old."""
    monkeypatch.setattr("saysee.features.hashes._RACY_NANOSECONDS", -1)


# ---- extract


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 8))
def test_units_groups_and_threads_change_nothing(
    tmp_path_factory: pytest.TempPathFactory, batch_size: int, threads: int, unit: int
) -> None:
    """And the faults of all units are listed."""
    folder, machine = tmp_path_factory.mktemp("files"), Machine()
    paths = write(folder / "texts", "one", "bad two", "three", "four", "bad five", "six", "seven")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extraction, "UNIT", unit)
        encode_all = in_process(machine.encoder(batch_size), folder / "cache", threads=threads)
        features, faults = extract(paths, BACKBONE, folder / "cache", encode_all)
    good = [path for path in paths if "bad" not in path.read_text()]
    assert [text_of(features, path) for path in good] == ["one", "three", "four", "six", "seven"]
    assert features.read(good[:2])[1].shape == (5, 1)
    assert [features.frames(path) for path in good] == [3, 5, 4, 3, 5]
    assert [features.content(path) for path in good] == [sha256(path.read_bytes()).digest()[:16] for path in good]
    assert faults == {paths[1]: "1.txt: is bad two", paths[4]: "4.txt: is bad five"}
    assert machine.encoded == ["one", "three", "four", "six", "seven"]
    units = [[path.read_text() for path in paths[at : at + unit] if path in good] for at in range(0, 7, unit)]
    assert machine.groups == [
        part[at : at + batch_size] for part in units for at in range(0, len(part), batch_size) if part
    ]
    assert len(shards(folder / "cache")) == sum(bool(part) for part in units)


def test_nothing_is_decoded_or_encoded_twice(tmp_path: Path, cache: Path) -> None:
    machine, paths = Machine(), write(tmp_path / "texts", "one", "two", "three")
    copy = tmp_path / "copy.txt"
    copy.write_text("one")
    for turn in range(2):
        features, faults = run([*paths, copy, *paths], cache, machine.encoder(2))
        assert len(machine.read) == 4 * (turn + 1), "files so young are read in every run, but once"
        assert faults == {}
        assert [text_of(features, path) for path in [*paths, copy]] == ["one", "two", "three", "one"]
    assert machine.groups == [["one", "two"], ["three"]]
    assert sorted(set(machine.decoded)) in (["0.txt", "1.txt", "2.txt"], ["0.txt", "1.txt", "2.txt", "copy.txt"])


@pytest.mark.usefixtures("settled")
def test_a_file_that_has_not_changed_is_not_even_read_again(tmp_path: Path, cache: Path) -> None:
    machine, paths = Machine(), write(tmp_path / "texts", "one", "bad two", "three")
    first, _ = run(paths, cache, machine.encoder())
    machine.read.clear()
    second, faults = run(paths, cache, machine.encoder())
    assert machine.read == ["1.txt"]
    assert list(faults) == [paths[1]]
    for path in (paths[0], paths[2]):
        assert torch.equal(first[path], second[path])
        assert first.content(path) == second.content(path)


def test_a_file_that_changed_just_before_it_was_read_is_not_remembered(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may change once more in the same tick of the clock, however long encoding takes then."""
    machine, (path,) = Machine(), write(tmp_path / "texts", "one")
    later = 0
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + later)

    def encode_slowly(texts: Sequence[str]) -> list[Tensor]:
        return machine.encode(texts)

    def read(path: Path) -> bytes:
        nonlocal later
        later = 60 * 10**9
        return path.read_bytes()

    run([path], cache, machine.encoder(read=read, encode=encode_slowly))
    assert FileHashes(cache).get(path) is None
    run([path], cache, machine.encoder())
    assert FileHashes(cache).get(path) == sha256(b"one").digest()
    assert machine.encoded == ["one"]


@pytest.mark.usefixtures("settled")
def test_a_changed_file_is_encoded_again_and_a_moved_one_is_not(tmp_path: Path, cache: Path) -> None:
    machine, (path, other) = Machine(), write(tmp_path / "texts", "one", "two")
    before, _ = run([path, other], cache, machine.encoder(4))
    path.write_text("eno!")
    moved = other.rename(tmp_path / "moved.txt")
    after, _ = run([path, moved], cache, machine.encoder(4))
    assert machine.groups == [["one", "two"], ["eno!"]]
    assert text_of(after, path) == "eno!"
    assert text_of(after, moved) == "two"
    # what was extracted for a run stays what the run was given
    assert text_of(before, path) == "one"
    assert after.content(path) == sha256(b"eno!").digest()[:16]


def test_a_file_that_changes_while_it_is_read_does_not_spoil_the_store(tmp_path: Path, cache: Path) -> None:
    """What is decoded is what was hashed: the entry of the old content never holds features of the new one."""
    machine, (path,) = Machine(), write(tmp_path / "texts", "one")

    def read(path: Path) -> bytes:
        content = path.read_bytes()
        path.write_text("two")
        return content

    run([path], cache, machine.encoder(read=read))
    store = FeatureStore(cache, BACKBONE)
    entry = store.find(sha256(b"one").digest())
    assert store.read(entry).flatten().tolist() == [ord(letter) for letter in "one"]
    assert store.find(sha256(b"two").digest()) == -1
    features, _ = run([path], cache, machine.encoder())
    assert text_of(features, path) == "two"


@pytest.mark.parametrize("batch_size", [1, 2])
def test_features_that_are_not_finite_are_a_fault_and_are_not_kept(
    tmp_path: Path, cache: Path, batch_size: int
) -> None:
    paths = write(tmp_path / "texts", "one", "two", "three", "two")

    def encode(texts: Sequence[str]) -> list[Tensor]:
        return [torch.tensor([[1e5 if text == "two" else 1.0]]).half() for text in texts]

    features, faults = run(paths, cache, Machine().encoder(batch_size, encode=encode))
    assert list(faults) == [paths[1], paths[3]], "also its copy"
    assert faults[paths[1]].startswith(f"{paths[1]}: its features are not finite")
    store = FeatureStore(cache, BACKBONE)
    assert [path for path in paths if store.find(sha256(path.read_bytes()).digest()) >= 0] == [paths[0], paths[2]]
    assert features[paths[2]].tolist() == [[1.0]]
    with pytest.raises(KeyError):
        features[paths[1]]


def test_a_file_that_is_missing_or_a_folder_is_a_fault_and_not_the_end(tmp_path: Path, cache: Path) -> None:
    machine, (path,) = Machine(), write(tmp_path / "texts", "one")
    missing, folder, never = tmp_path / "missing.txt", tmp_path / "texts", tmp_path / "\ud800.txt"
    features, faults = run([missing, path, never, folder], cache, machine.encoder())
    assert faults == {
        missing: f"{missing}: No such file or directory",
        never: f"{str(never)!a}: there is no such file",
        folder: f"{folder}: Is a directory",
    }
    assert text_of(features, path) == "one"


def test_no_other_file_has_features(tmp_path: Path, cache: Path) -> None:
    """Neither a bad one nor one that was not asked for gets those of a neighbour."""
    paths = write(tmp_path / "texts", "one", "bad two", "three")
    features, _ = run(paths, cache, Machine().encoder())
    for path in (paths[1], *(Path(f"/{number}") for number in range(20))):
        for ask in (features.__getitem__, features.frames, features.content):
            with pytest.raises(KeyError):
                ask(path)


def test_no_file_is_no_work(cache: Path) -> None:
    machine = Machine()
    _, faults = run([], cache, machine.encoder())
    assert (faults, machine.groups) == ({}, [])
    assert not cache.exists()


def test_shards_are_cut_where_features_are_large(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "_SHARD_BYTES", 100)
    machine, paths = Machine(), write(tmp_path / "texts", *("x" * size for size in (10, 45, 2, 3, 200, 1, 1)))
    features, _ = run(paths, cache, machine.encoder())
    assert [text_of(features, path) for path in paths] == [path.read_text() for path in paths]
    # two bytes a letter: 20 + 90, 4 + 6 + 400, 2 (the seventh file is a copy of the sixth)
    assert len(shards(cache)) == 3
    counts = sorted(torch.bincount(torch.from_numpy(FeatureStore(cache, BACKBONE)._index.shard)).tolist())
    assert counts == [1, 2, 3]


# ---- interrupted, killed, damaged


def test_what_was_encoded_before_an_interruption_inside_a_unit_is_kept(tmp_path: Path, cache: Path) -> None:
    machine, paths = Machine(), write(tmp_path / "texts", "one", "two", "three", "four")

    def interrupted(texts: Sequence[str]) -> list[Tensor]:
        if "three" in texts:
            raise KeyboardInterrupt
        return machine.encode(texts)

    with pytest.raises(KeyboardInterrupt):
        run(paths, cache, machine.encoder(2, encode=interrupted))
    run(paths, cache, machine.encoder(2))
    assert machine.groups == [["one", "two"], ["three", "four"]]


@pytest.mark.usefixtures("settled")
def test_a_damaged_shard_is_made_again_by_the_next_extraction(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That shard alone."""
    monkeypatch.setattr(extraction, "UNIT", 2)
    machine, paths = Machine(), write(tmp_path / "texts", "one", "two", "three", "four", "five")
    run(paths, cache, machine.encoder())
    store = FeatureStore(cache, BACKBONE)
    shard = store._index.shards[int(store._index.shard[store.find(sha256(b"four").digest())])]
    shard.write_bytes(shard.read_bytes()[:-1])
    features, _ = run(paths, cache, machine.encoder())
    assert [text_of(features, path) for path in paths] == ["one", "two", "three", "four", "five"]
    assert machine.encoded == ["one", "two", "three", "four", "five", "three", "four"]


@pytest.mark.parametrize("damage", [Path.unlink, lambda shard: shard.write_bytes(b"cut")], ids=["gone", "damaged"])
def test_features_that_are_lost_after_extraction_are_named(
    tmp_path: Path, cache: Path, damage: Callable[[Path], object]
) -> None:
    """Somebody empties the cache while a model trains: what to do is clear, and it is no fault of ours."""
    machine, (path,) = Machine(), write(tmp_path / "texts", "one")
    features, _ = run([path], cache, machine.encoder())
    damage(shards(cache)[0])
    with pytest.raises(SayseeError, match=r"0\.txt") as caught:
        features[path]
    assert "\n" not in str(caught.value)


def test_features_that_are_lost_during_extraction_are_named(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never those of another file in their place."""
    monkeypatch.setattr(extraction, "UNIT", 1)
    paths = write(tmp_path / "texts", "one", "two", "three")

    def losing(units: Iterator[Sequence[Path]]) -> Iterator[UnitResult]:
        for result in in_process(Machine().encoder(), cache)(units):
            if paths[1] in result.paths:
                (lost,) = set(shards(cache)) - kept
                lost.unlink()
            kept.update(shards(cache))
            yield result

    kept: set[Path] = set()
    features, faults = extract(paths, BACKBONE, cache, losing)
    assert faults == {}
    assert [text_of(features, path) for path in (paths[0], paths[2])] == ["one", "three"]
    for ask in (features.__getitem__, features.frames, features.content):
        with pytest.raises(SayseeError, match=r"1\.txt have been deleted"):
            ask(paths[1])
