"""Captions with their features, as batches; and what that takes of memory for half a million of them."""

import ctypes
import math
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from saysee.data.dataset import PairDataset
from saysee.data.manifest import CaptionFile, Manifest, SpokenCaption, read_manifest
from saysee.data.sampler import BatchOrder
from saysee.data.validate import structural_faults
from saysee.features.extract import UnitResult, extract
from saysee.features.hashes import FileHashes, file_key
from saysee.features.store import FeatureStore
from stubs import MemoryFeatures


def caption(row: int, image: str) -> SpokenCaption:
    return SpokenCaption(f"c{row}", Path(f"/{row}.wav"), image, Path(f"/{image}.png"), None, None, None, "train")


def dataset_of(
    captions: list[SpokenCaption], dtype: torch.dtype = torch.float16, crop_frames: int | None = None
) -> PairDataset:
    """Features that tell file and frame: row + frame / 8 of recording `row`, the letter's number of a picture."""
    speech = {
        c.audio: (int(c.id[1:]) + torch.arange(4 + int(c.id[1:])) / 8).expand(2, -1).to(dtype)[:, :, None]
        for c in captions
    }
    images = {c.image: torch.full((2, 3), ord(c.image_id[0]), dtype=dtype) for c in captions}
    return PairDataset(captions, MemoryFeatures(speech), MemoryFeatures(images), crop_frames)


CAPTIONS = [caption(row, image) for row, image in enumerate("bacab")]
NO_DRAWS = torch.zeros(5, dtype=torch.float64)


def test_pictures_of_one_concept_have_one_number() -> None:
    alike = [replace(c, concept="dog") if c.image_id in "ac" else c for c in CAPTIONS]
    first, second, third, fourth, fifth = dataset_of(alike).image_numbers.tolist()
    assert second == third == fourth
    assert first == fifth != second


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_batch_is_captions_with_the_features_of_both_their_files(dtype: torch.dtype) -> None:
    dataset = dataset_of(CAPTIONS, dtype)
    assert len(dataset) == 5
    batch = dataset.batch([3, 0, 2], NO_DRAWS[:3])
    assert batch.caption_ids == ("c3", "c0", "c2")
    assert batch.speech.shape == (3, 2, 7, 1)
    assert (batch.speech.dtype, batch.image_tokens.dtype, batch.image_id.dtype) == (dtype, dtype, torch.int64)
    assert batch.speech[:, 1, 0, 0].tolist() == [3, 0, 2]
    assert batch.speech[0, 0, :, 0].tolist() == [3 + frame / 8 for frame in range(7)]
    assert batch.speech_mask.sum(1).tolist() == [7, 4, 6]
    assert batch.image_tokens[:, 0, 0].tolist() == [ord(letter) for letter in "abc"]
    assert batch.image_id.tolist() == dataset.image_numbers[[3, 0, 2]].tolist()


def test_altered_recordings_are_read_in_the_place_of_their_own_and_cropped() -> None:
    class Altered:
        """Features that tell file and draw."""

        def read(self, paths: Sequence[Path], draws: Sequence[float]) -> list[torch.Tensor]:
            return [torch.full((2, 9, 1), int(path.stem) + draw) for path, draw in zip(paths, draws, strict=True)]

    plain = dataset_of(CAPTIONS, crop_frames=6)
    dataset = PairDataset(CAPTIONS, plain.speech, plain.images, 6, Altered())
    draws = torch.tensor([0.25, 0.5], dtype=torch.float64)
    batch = dataset.batch([3, 0], NO_DRAWS[:2], draws)
    assert batch.speech.shape == (2, 2, 6, 1)
    assert batch.speech[:, 1, 5, 0].tolist() == [3.25, 0.5]
    assert dataset.lengths.tolist() == plain.lengths.tolist()


@given(st.permutations(range(5)))
def test_an_image_has_one_number_in_whatever_order_the_captions_come(order: list[int]) -> None:
    expected = dataset_of(CAPTIONS).image_numbers
    dataset = dataset_of([CAPTIONS[row] for row in order])
    assert dataset.image_numbers.tolist() == expected[order].tolist()
    assert sorted(set(expected.tolist())) == [0, 1, 2]
    assert expected[0] == expected[4] != expected[1] == expected[3]


@given(st.permutations(range(5)))
def test_image_tokens_are_read_again_by_number(order: list[int]) -> None:
    dataset = dataset_of([CAPTIONS[row] for row in order])
    numbers = torch.from_numpy(dataset.image_numbers)
    tokens = dataset.image_tokens(numbers)
    assert tokens.dtype == torch.float32
    assert tokens[:, 0, 0].tolist() == [ord("bacab"[row]) for row in order]


def test_long_recordings_are_cut_where_the_draw_says() -> None:
    dataset = dataset_of(CAPTIONS, crop_frames=5)
    last = math.nextafter(1, 0)
    assert dataset.lengths.tolist() == [4, 5, 5, 5, 5]
    assert dataset_of(CAPTIONS).lengths.tolist() == [4, 5, 6, 7, 8]
    batch = dataset.batch([0, 4, 4, 4], torch.tensor([last, 0.0, last, 0.5], dtype=torch.float64))
    assert batch.speech_mask.sum(1).tolist() == [4, 5, 5, 5]
    assert ((batch.speech[1:, 0, 0, 0] - 4) * 8).tolist() == [0, 3, 2]
    for draw in (0.0, last):  # the lengths that order the data are those of the batches
        mask = dataset.batch(range(5), torch.full((5,), draw, dtype=torch.float64)).speech_mask
        assert mask.sum(1).tolist() == dataset.lengths.tolist()


# ---- memory

PER_IMAGE, PER_SHARD = 5, 8_192
SHARED = 3_000_000  # bytes that are held however many captions there are, as blocks that are read at once
M_MMAP_THRESHOLD = -3  # of mallopt(3)
COLUMNS = [field.name for field in fields(SpokenCaption)]
SPEECH, IMAGES = "5" * 64, "1" * 64  # fingerprints
STATUS = os.stat_result((0o100644, 7, 1, 1, 0, 0, 1000, 0, 0, 0))


class Name(str):
    """The path of a file that is said to be there and not to have changed: half a million real ones take minutes."""

    def stat(self) -> os.stat_result:
        return STATUS


class Made:
    """A record of the manifest below as it is parsed, each value made when it is asked for."""

    text = speaker = language = concept = None

    def __init__(self, folder: str, number: int) -> None:
        self.folder, self.number = folder, number

    id = property(lambda self: str(self.number))
    audio = property(lambda self: Name(f"{self.folder}/{self.number}.wav"))
    image_id = property(lambda self: str(self.number // PER_IMAGE))
    image = property(lambda self: Name(f"{self.folder}/{self.number // PER_IMAGE}.jpg"))
    shown = SpokenCaption.shown
    split = property(lambda self: "dev" if self.number // PER_IMAGE % 10 == 0 else "train")


class Generated(CaptionFile):
    """The records of the manifest below, again and again; parsing them so often takes minutes."""

    def __init__(self, captions: CaptionFile) -> None:
        super().__init__(captions._content, captions._folder, captions._starts, captions._splits)

    def __getitem__(self, index: Any) -> Any:
        if index >= len(self):
            raise IndexError
        return Made(str(self._folder), index)


def _write_everything(folder: Path, count: int) -> None:
    """Write a manifest, and the cache as extraction leaves it: all features stored, all hashes remembered."""
    record = '{"id": "%d", "audio": "%d.wav", "image_id": "%d", "image": "%d.jpg", "text": null, '
    record += '"speaker": null, "language": null, "split": "%s"}\n'
    folder.mkdir()
    with (folder / "manifest.jsonl").open("w") as file:
        file.write('{"saysee_manifest": 1, "split_by": "image"}\n')
        numbers = ((n, n // PER_IMAGE) for n in range(count))
        file.writelines(record % (n, n, m, m, "train" if m % 10 else "dev") for n, m in numbers)
    speech = _store(folder, SPEECH, 1 + np.arange(count) % 4)
    images = _store(folder, IMAGES, np.full(count // PER_IMAGE, 2))
    names = [f"{folder}/{n}.wav" for n in range(count)] + [f"{folder}/{n}.jpg" for n in range(count // PER_IMAGE)]
    hashes = FileHashes(folder)
    for name, content in zip(names, np.concatenate([speech, images]), strict=True):
        hashes.put(file_key(Name(name), STATUS), content.tobytes())  # type: ignore[arg-type]
    hashes.save()


def _store(cache: Path, fingerprint: str, frames: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Write the features of as many files, of one number a frame; return the SHA-256 of their contents (n, 32)."""
    contents = np.random.default_rng(int(fingerprint[0])).integers(0, 256, (len(frames), 32), np.uint8)
    store = FeatureStore(cache, fingerprint)
    for start in range(0, len(frames), PER_SHARD):
        part = frames[start : start + PER_SHARD].tolist()
        rows = torch.zeros(sum(part), 1, dtype=torch.float16).split(part)  # type: ignore[no-untyped-call]
        store.write([content.tobytes() for content in contents[start : start + PER_SHARD]], rows)
    return contents


def _nothing_is_missing(units: Iterator[Sequence[Path]]) -> Iterator[UnitResult]:
    for unit in units:
        raise AssertionError(f"{unit[0]} is not in the store")
    yield from ()


def _read_everything(folder: Path, tell: Callable[[object], None]) -> None:
    """Do what a run does before its first step, each part as it is done there."""
    captions = read_manifest(folder / "manifest.jsonl").captions
    tell("manifest")
    assert isinstance(captions, CaptionFile)
    made = Generated(captions)
    assert [str(getattr(made[999], name)) for name in COLUMNS] == [
        str(getattr(captions[999], name)) for name in COLUMNS
    ]
    assert structural_faults(Manifest("image", made), ("train", "dev")) == []
    tell("structural faults")
    speech, _ = extract((caption.audio for caption in made), SPEECH, folder, _nothing_is_missing)
    images, _ = extract((caption.image for caption in made), IMAGES, folder, _nothing_is_missing)
    tell("features")
    dataset = PairDataset(made, speech, images)
    order = BatchOrder(dataset.image_numbers, dataset.lengths, 256, 0, bucket_batches=64, one_caption_per_image=True)
    batches = order[0], order[order.batches_per_epoch]
    tell("data set and order")
    tell((len(made), *map(len, batches), int(dataset.lengths.sum())))


def _write_corpora(small: Path, large: Path, count: int) -> None:
    _untraced()
    _write_everything(small, 1_000)
    _write_everything(large, count)


def _read_large_corpus(small: Path, large: Path, answer: "Connection[object, object]") -> None:
    _untraced()
    # what the C library keeps of freed memory for later is not this program's: pieces above 64 kB are given back
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 16)
    _read_everything(small, lambda _: None)  # whatever is loaded with the first use of a library
    answer.send("begun")
    _read_everything(large, answer.send)


def _untraced() -> None:
    """Stop the measuring of coverage, which takes memory of its own, and minutes."""
    coverage = sys.modules.get("coverage")
    if coverage and (tracing := coverage.Coverage.current()):
        tracing.stop()


def _anonymous_bytes(process: int) -> int:
    """What a process holds, without the pages of mapped files."""
    (line,) = [line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) * 1024


@pytest.mark.timeout(900)
@pytest.mark.parametrize("count", [100_000, pytest.param(600_000, marks=pytest.mark.slow)])
def test_captions_take_less_than_a_hundred_bytes_each(tmp_path: Path, count: int) -> None:
    """At the peak of all that happens before the first step, in a process of its own that is watched from here."""
    small, large = tmp_path / "small", tmp_path / "large"
    spawn = multiprocessing.get_context("spawn")
    writer = spawn.Process(target=_write_corpora, args=(small, large, count))
    writer.start()
    writer.join()
    assert writer.exitcode == 0
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_read_large_corpus, args=(small, large, sender))
    process.start()
    sender.close()
    assert receiver.recv() == "begun"
    assert process.pid is not None
    before = peak = _anonymous_bytes(process.pid)
    peaks: dict[str, float] = {}
    while not isinstance(told := receiver.recv() if receiver.poll(0.005) else None, tuple):
        peak = max(peak, _anonymous_bytes(process.pid))
        if told is not None:
            peaks[str(told)] = (peak - before - SHARED) / count
            peak = before
    process.join()
    assert told == (count, 256, 256, count * 5 // 2)
    assert list(peaks) == ["manifest", "structural faults", "features", "data set and order"]
    assert max(peaks.values()) < 100, peaks
