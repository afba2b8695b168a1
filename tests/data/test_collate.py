"""The batch: padded behind, masked, in the type that is stored, and float32 where it is used."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saysee.data.collate import Batch, crop, pad_speech

LAYERS, DIM, TOKENS, IMAGE_DIM = 3, 4, 5, 6
dtypes = st.sampled_from([torch.float16, torch.bfloat16])


def clip(frames: int, value: float = 1.0, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    """(L, T, D), as it lies in the store; no number is zero."""
    numbers = torch.arange(1, LAYERS * frames * DIM + 1).view(LAYERS, frames, DIM)
    return (numbers * value).to(dtype)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), dtypes)
def test_padding_is_zero_and_behind_and_the_mask_says_where(lengths: list[int], dtype: torch.dtype) -> None:
    clips = [clip(length, row + 1, dtype) for row, length in enumerate(lengths)]
    padded, mask = pad_speech(clips)
    assert padded.shape == (len(lengths), LAYERS, max(lengths), DIM)
    assert (padded.dtype, mask.dtype) == (dtype, torch.bool)
    for row, length in enumerate(lengths):
        assert torch.equal(padded[row, :, :length], clips[row])
        assert not padded[row, :, length:].any()
        assert mask[row].tolist() == [frame < length for frame in range(max(lengths))]


def batch(dtype: torch.dtype) -> Batch:
    speech, mask = pad_speech([clip(2, 1.5, dtype), clip(3, 0.1, dtype)])
    tokens = torch.randn(2, TOKENS, IMAGE_DIM).to(dtype)
    return Batch(("c0", "c1"), speech, mask, tokens, torch.tensor([7, 2**40]))


def test_moving_a_batch_moves_every_tensor_and_keeps_the_names() -> None:
    before = batch(torch.float16)
    moved = before.to(torch.device("meta"))
    assert moved.caption_ids == ("c0", "c1")
    assert [tensor.device.type for tensor in moved[1:]] == ["meta"] * 4
    assert [tensor.shape for tensor in moved[1:]] == [tensor.shape for tensor in before[1:]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_features_are_float32_where_they_arrive_and_the_rest_stays(dtype: torch.dtype) -> None:
    before = batch(dtype)
    moved = before.to(torch.device("cpu"))
    assert moved.speech.dtype == moved.image_tokens.dtype == torch.float32
    assert torch.equal(moved.speech, before.speech.float())
    assert torch.equal(moved.image_tokens, before.image_tokens.float())
    assert torch.equal(moved.speech_mask, before.speech_mask)
    assert moved.image_id.dtype == torch.int64
    assert moved.image_id.tolist() == [7, 2**40]


# ---- crop


@given(st.integers(1, 30), st.integers(1, 30), st.floats(0, 1, exclude_max=True))
def test_a_crop_is_a_piece_of_neighbouring_frames(frames: int, kept: int, draw: float) -> None:
    whole = clip(frames, dtype=torch.float32)
    cut = crop(whole, kept, draw)
    assert cut.shape == (LAYERS, min(kept, frames), DIM)
    starts = [start for start in range(frames) if torch.equal(whole[:, start : start + cut.shape[1]], cut)]
    assert len(starts) == 1


def test_the_draw_says_where_from_the_first_place_to_the_last() -> None:
    whole = torch.arange(10.0).view(1, 10, 1)
    last = math.nextafter(1, 0)
    assert crop(whole, 4, 0.0).flatten().tolist() == [0, 1, 2, 3]
    assert crop(whole, 4, last).flatten().tolist() == [6, 7, 8, 9]
    assert crop(whole, 10, last) is whole
    assert crop(whole, 11, last) is whole
    # seven places, each for a seventh of the draws
    starts = [int(crop(whole, 4, draw / 7_000)[0, 0, 0]) for draw in range(7_000)]
    assert [starts.count(start) for start in range(7)] == pytest.approx([1_000] * 7, abs=1)


@given(st.integers(1, 2**20))
def test_no_draw_is_beyond_the_last_place(spare: int) -> None:
    """Rounding of the product never leaves less than what is asked for."""
    whole = torch.empty(1, 1, 1).expand(1, spare + 1, 1)
    assert crop(whole, 1, math.nextafter(1, 0)).shape == (1, 1, 1)
