"""The batch: padded behind, masked, in float32."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from saysee.data.collate import Sample, collate, pad_speech

LAYERS, DIM, TOKENS, IMAGE_DIM = 3, 4, 5, 6


def clip(frames: int, value: float = 1.0) -> torch.Tensor:
    """(L, T, D) float16, as it lies in the cache; no number is zero."""
    numbers = torch.arange(1, LAYERS * frames * DIM + 1).view(LAYERS, frames, DIM)
    return (numbers * value).half()


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_padding_is_zero_and_behind_and_the_mask_says_where(lengths: list[int]) -> None:
    clips = [clip(length, row + 1) for row, length in enumerate(lengths)]
    padded, mask = pad_speech(clips)
    assert padded.shape == (len(lengths), LAYERS, max(lengths), DIM)
    assert (padded.dtype, mask.dtype) == (torch.float32, torch.bool)
    for row, length in enumerate(lengths):
        assert torch.equal(padded[row, :, :length], clips[row].float())
        assert not padded[row, :, length:].any()
        assert mask[row].tolist() == [frame < length for frame in range(max(lengths))]


def test_a_batch_holds_its_samples_row_by_row() -> None:
    samples = [
        Sample(f"c{row}", clip(2 + row), torch.full((TOKENS, IMAGE_DIM), row, dtype=torch.float16), image_id)
        for row, image_id in enumerate([7, 7, 2**40])
    ]
    batch = collate(samples)
    assert batch.caption_ids == ("c0", "c1", "c2")
    assert batch.speech.shape == (3, LAYERS, 4, DIM)
    assert batch.speech_mask.sum(1).tolist() == [2, 3, 4]
    assert batch.image_tokens.dtype == torch.float32
    assert batch.image_tokens[:, 0, 0].tolist() == [0, 1, 2]
    assert batch.image_id.dtype == torch.int64
    assert batch.image_id.tolist() == [7, 7, 2**40]


def test_moving_a_batch_moves_every_tensor_and_keeps_the_names() -> None:
    batch = collate([Sample("c0", clip(2), torch.ones(TOKENS, IMAGE_DIM), 0)])
    moved = batch.to(torch.device("meta"))
    assert moved.caption_ids == ("c0",)
    assert [tensor.device.type for tensor in moved[1:]] == ["meta"] * 4
    assert [tensor.shape for tensor in moved[1:]] == [tensor.shape for tensor in batch[1:]]
