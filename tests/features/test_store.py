"""The store of features: what is found is what was written, whoever wrote it, and never half of it."""

import hashlib
import json
import multiprocessing
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from saysee.features.store import FORMAT_VERSION, FeatureStore, default_cache_folder

BACKBONE = "1a" * 32
# digests that numpy's byte strings have trouble with: those that end in zeros, and those that start alike
digests = st.one_of(
    st.binary(min_size=32, max_size=32),
    st.builds(lambda head: head.ljust(32, b"\0"), st.binary(max_size=32)),
    st.builds(lambda head, tail: (b"\1\2\0"[:head]).ljust(16, b"\0") + tail, st.integers(0, 3), st.just(b"t" * 16)),
)


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def clip(frames: int, value: float = 0.5, dtype: torch.dtype = torch.float16) -> Tensor:
    """(L, T, D) of which no two numbers are equal."""
    return (torch.arange(3 * frames * 5).view(3, frames, 5) / 8 + value).to(dtype)


def store_with(folder: Path, **entries: Tensor) -> FeatureStore:
    """A store with one shard."""
    store = FeatureStore(folder, BACKBONE)
    store.write([digest(name) for name in entries], list(entries.values()))
    store.refresh()
    return store


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layers", [0, 1, 4], ids=["pictures", "one layer", "four layers"])
def test_entries_come_back_as_they_were(tmp_path: Path, dtype: torch.dtype, layers: int) -> None:
    """Of two shards, of different lengths, from tensors that are not contiguous."""
    torch.manual_seed(0)
    shape = (layers, 6) if layers else (6,)
    kept = {f"f{n}": torch.randn(*shape, n + 1).to(dtype).transpose(-1, -2) for n in range(5)}
    store = FeatureStore(tmp_path, BACKBONE)
    for names in (["f3", "f0", "f1"], ["f4", "f2"]):
        store.write([digest(name) for name in names], [kept[name] for name in names])
    assert store.find(digest("f0")) == -1, "numbers of entries change with `refresh` alone"
    store.refresh()
    for read in (store, FeatureStore(tmp_path, BACKBONE)):
        assert len(read) == 5
        for name, features in kept.items():
            entry = read.find(digest(name))
            assert read.read(entry).dtype == dtype
            assert torch.equal(read.read(entry), features)
            assert read.frames(entry) == features.shape[-2]
            assert read.key(entry) == digest(name)[:16]
        assert read.find(digest("another")) == -1
    assert store.nbytes == sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(digests, min_size=1, max_size=12, unique_by=lambda d: d[:16]),
    st.lists(digests, max_size=6),
    st.integers(1, 12),
)
def test_any_digest_is_found_and_no_other(
    tmp_path_factory: pytest.TempPathFactory, written: list[bytes], others: list[bytes], cut: int
) -> None:
    store = FeatureStore(tmp_path_factory.mktemp("cache"), BACKBONE)
    for part in (range(len(written))[:cut], range(len(written))[cut:]):
        if part:
            store.write([written[n] for n in part], [torch.full((1, 2), n, dtype=torch.float16) for n in part])
    store.refresh()
    for number, content in enumerate(written):
        assert store.read(store.find(content))[0, 0].item() == number
        assert store.key(store.find(content)) == content[:16]
    for content in others:
        assert (store.find(content) >= 0) == (content[:16] in {one[:16] for one in written})


def test_what_two_processes_made_both_counts_once(tmp_path: Path) -> None:
    store_with(tmp_path, a=clip(2), b=clip(3))
    store = store_with(tmp_path, b=clip(3), c=clip(4))
    assert len(store) == 3
    for name, frames in (("a", 2), ("b", 3), ("c", 4)):
        assert torch.equal(store.read(store.find(digest(name))), clip(frames))


def test_another_backbone_has_its_own(tmp_path: Path) -> None:
    store_with(tmp_path, a=clip(2))
    other = FeatureStore(tmp_path, "2b" * 32)
    assert (len(other), other.find(digest("a")), other.nbytes) == (0, -1, 0)


def test_nothing_is_made_before_the_first_shard(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "cache", BACKBONE)
    assert store.find(digest("a")) == -1
    assert not (tmp_path / "cache").exists()


def test_names_follow_from_the_contents_and_not_from_when_they_were_written(tmp_path: Path) -> None:
    shards = {"one": {"a": clip(2), "b": clip(3)}, "two": {"c": clip(1)}}
    for order in (["one", "two"], ["two", "one"]):
        for name in order:
            store_with(tmp_path / order[0], **shards[name])
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*.safetensors")} for name in ("one", "two")
    )
    assert first == second
    assert len(first) == 2


def _write_many(folder: Path, start: int) -> None:
    store = FeatureStore(folder, BACKBONE)
    for number in range(start, start + 16):
        store.write([digest(f"{number}")], [clip(1 + number % 5, number)])
        store.refresh()


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    """Half of the shards are made by both: nothing is lost, nothing half, and no litter is left."""
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_write_many, args=(tmp_path, start)) for start in (0, 8)]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        store = FeatureStore(tmp_path, BACKBONE)  # reading meanwhile removes nothing
        for entry in range(len(store)):
            assert store.read(entry).isfinite().all()
        time.sleep(0.01)
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    store = FeatureStore(tmp_path, BACKBONE)
    assert len(store) == 24
    for number in range(24):
        assert torch.equal(store.read(store.find(digest(f"{number}"))), clip(1 + number % 5, number))
    assert len(list(store.folder.iterdir())) == 24
    assert list(store.damaged()) == []


@pytest.mark.parametrize("kept", [0.0, 0.02, 0.2, 0.6, 0.999])
def test_a_shard_that_was_cut_short_is_removed_and_can_be_made_again(tmp_path: Path, kept: float) -> None:
    store_with(tmp_path, a=clip(20))
    store = store_with(tmp_path, b=clip(30), c=clip(40))
    (path,) = [path for path in store.folder.iterdir() if path.stat().st_size > 1_500]
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    store.refresh()
    assert not path.exists()
    assert [store.find(digest(name)) >= 0 for name in "abc"] == [True, False, False]
    store.write([digest("b"), digest("c")], [clip(30), clip(40)])
    assert path.read_bytes() == whole


def test_a_file_of_another_kind_is_no_shard(tmp_path: Path) -> None:
    store = store_with(tmp_path, a=clip(2))
    tensors = {"features": clip(2), "ends": torch.tensor([2]), "content": torch.zeros(1, 32, dtype=torch.uint8)}
    newer = {"saysee_features": json.dumps({"format_version": FORMAT_VERSION + 1, "layers": 0, "sha256": ""})}
    for name, header in (
        ("bare", None),
        ("strange", {"saysee_features": "1"}),
        ("short", {"saysee_features": "{}"}),
        ("newer", newer),
    ):
        save_file(tensors, store.folder / f"{name}.safetensors", header)
    store.refresh()
    assert len(store) == 1
    assert len(list(store.folder.iterdir())) == 5  # what this program did not write it does not remove


@pytest.mark.parametrize("part", ["features", "content", "ends"])
def test_one_flipped_bit_is_found(tmp_path: Path, part: str) -> None:
    store = store_with(tmp_path, a=clip(2), b=clip(3))
    (bad,) = store.folder.iterdir()
    store_with(tmp_path, c=clip(4))
    assert list(FeatureStore(tmp_path, BACKBONE).damaged()) == []
    content = bytearray(bad.read_bytes())
    wanted = {
        "features": clip(3).numpy().tobytes(),
        "content": digest("b"),
        "ends": np.array([6, 15]).tobytes(),
    }[part]
    content[content.index(wanted)] ^= 16
    bad.write_bytes(content)
    assert list(FeatureStore(tmp_path, BACKBONE).damaged()) == [bad]


def test_a_shard_that_is_lost_after_the_index_was_read(tmp_path: Path) -> None:
    store = store_with(tmp_path, a=clip(2))
    (path,) = store.folder.iterdir()
    path.unlink()
    with pytest.raises(FileNotFoundError):
        store.read(store.find(digest("a")))
    assert list(store.damaged()) == [path]
    store.refresh()
    assert len(store) == 0


def test_many_threads_read_the_same(tmp_path: Path) -> None:
    for shard in range(6):
        store_with(tmp_path, **{f"{shard}-{n}": clip(1 + n, 10 * shard) for n in range(8)})
    store = FeatureStore(tmp_path, BACKBONE)
    entries = torch.randint(len(store), (2_000,), generator=torch.Generator().manual_seed(0)).tolist()
    alone = [FeatureStore(tmp_path, BACKBONE).read(entry).clone() for entry in entries[:50]]
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(store.read, entries))
    assert all(torch.equal(one, other) for one, other in zip(alone, read[:50], strict=True))
    again = FeatureStore(tmp_path, BACKBONE)
    assert all(torch.equal(again.read(entry), features) for entry, features in zip(entries, read, strict=True))


def test_an_entry_takes_less_than_40_bytes_of_memory(tmp_path: Path) -> None:
    """The index of 100,000 entries in 20 shards; features stay on disk."""
    generator, store = np.random.default_rng(0), FeatureStore(tmp_path, BACKBONE)
    rows = torch.zeros(5_000, 1, dtype=torch.float16)
    for _ in range(20):
        names = generator.bytes(32 * 5_000)
        store.write([names[at : at + 32] for at in range(0, len(names), 32)], list(torch.split(rows, 1)))
    tracemalloc.start()
    try:
        index = FeatureStore(tmp_path, BACKBONE)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(index) == 100_000
    assert held / len(index) < 40


def test_the_default_folder_is_the_first_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/anna")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("SAYSEE_CACHE", "/given")
    assert default_cache_folder() == Path("/given")
    monkeypatch.delenv("SAYSEE_CACHE")
    assert default_cache_folder() == Path("/xdg/saysee")
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # the same as none, says its specification
    assert default_cache_folder() == Path("/home/anna/.cache/saysee")
