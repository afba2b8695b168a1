"""Captions with their features, as batches; and what that takes of memory for half a million of them."""

import ctypes
import math
import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saysee.data.dataset import PairDataset
from saysee.data.manifest import SpokenCaption, read_manifest
from saysee.data.sampler import BatchOrder
from saysee.features.extract import StoredFeatures
from saysee.features.store import FeatureStore, _Index
from saysee.files import hash64
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

CAPTION_COUNT, PER_IMAGE, PER_SHARD = 600_000, 5, 256


def _anonymous_bytes() -> int:
    """What this process holds, without the pages of mapped files and what the C library keeps for later."""
    ctypes.CDLL(None).malloc_trim(0)
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) * 1024


def _stored(name: str, count: int, frames: Callable[[int], int]) -> StoredFeatures:
    """Features of files as `extract` gives them, of a store whose shards are said to be there."""
    hashes = np.fromiter((hash64(name % number) for number in range(count)), np.uint64, count)
    rows = np.fromiter((frames(number) for number in range(count)), np.int32, count)
    store = FeatureStore(Path("/nowhere"), "ab" * 32)
    numbers = np.arange(count, dtype=np.int32)
    keys = np.sort(np.random.default_rng(0).integers(0, 256, (count, 16), dtype=np.uint8).view("S16")[:, 0])
    shards = [Path(f"/nowhere/{shard}.safetensors") for shard in range(count // PER_SHARD + 1)]
    store._index = _Index(
        shards, np.ones(len(shards), np.int64), keys, numbers // PER_SHARD, np.zeros(count, np.int32), rows
    )
    order = np.argsort(hashes)
    return StoredFeatures(store, hashes[order], numbers[order])


class Generated(Sequence[SpokenCaption]):
    """The records of the manifest below, made when they are asked for: parsing them twice takes half a minute."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __len__(self) -> int:
        return CAPTION_COUNT

    def __getitem__(self, index: Any) -> Any:
        if index >= CAPTION_COUNT:
            raise IndexError
        audio: Any = f"{self.folder}/{index}.wav"  # a text does for a path here
        return SpokenCaption("", audio, str(index // PER_IMAGE), audio, None, None, None, "train")


def _measure(manifest: Path, answer: "Connection[object, object]") -> None:
    folder = manifest.parent.resolve()
    before = _anonymous_bytes()
    captions = read_manifest(manifest).of("train")
    records = _anonymous_bytes()
    speech = _stored(f"{folder}/%d.wav", CAPTION_COUNT, lambda n: 100 + n % 400)
    images = _stored(f"{folder}/%d.jpg", CAPTION_COUNT // PER_IMAGE, lambda _: 257)
    assert str(captions[-1].audio) == Generated(folder)[CAPTION_COUNT - 1].audio
    dataset = PairDataset(Generated(folder), speech, images)
    order = BatchOrder(dataset.image_numbers, dataset.lengths, 256, 0, bucket_batches=64, one_caption_per_image=True)
    first = order[0]
    held = _anonymous_bytes()
    bounds = dataset.lengths.min(), dataset.lengths.max()
    answer.send((len(captions), len(first), bounds, records - before, held - before))


def test_600_000_captions_take_less_than_a_hundred_bytes_each(tmp_path: Path) -> None:
    """Manifest, index of the store, features of both sides, data set and order, in a process of their own.

    Records stay in the mapped manifest, features in the store.
    """
    record = '{"id": "%d", "audio": "%d.wav", "image_id": "%d", "image": "%d.jpg", "text": "a man on a horse", '
    record += '"speaker": null, "language": "en", "split": "train"}\n'
    manifest = tmp_path / "manifest.jsonl"
    with manifest.open("w") as file:
        file.write('{"saysee_manifest": 1, "split_by": "image"}\n')
        file.writelines(record % (n, n, n // PER_IMAGE, n // PER_IMAGE) for n in range(CAPTION_COUNT))
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_measure, args=(manifest, sender))
    process.start()
    sender.close()
    captions, batch, bounds, records, held = receiver.recv()
    process.join()
    assert (captions, batch, bounds) == (CAPTION_COUNT, 256, (100, 499))
    assert records / CAPTION_COUNT < 25
    assert held / CAPTION_COUNT < 100, f"{records / CAPTION_COUNT:.0f} of {held / CAPTION_COUNT:.0f} are the manifest's"
