"""The batch contract: what a training step gets.

Shapes: B pairs, L backbone layers, T frames of the longest recording, D and D' the backbones' widths, P image tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Sample(NamedTuple):
    """One spoken caption with its picture, as cached features."""

    caption_id: str
    speech: Tensor
    """(L, T, D)"""
    image_tokens: Tensor
    """(P, D')"""
    image_id: int


class Batch(NamedTuple):
    """B pairs.

    Attributes:
        caption_ids: names, for messages.
        speech: hidden states of the speech backbone (B, L, T, D), zero behind a recording's end.
        speech_mask: (B, T), True where a frame is real.
        image_tokens: (B, P, D').
        image_id: (B,) int64; two pairs with one picture have the same.
    """

    caption_ids: tuple[str, ...]
    speech: Tensor
    speech_mask: Tensor
    image_tokens: Tensor
    image_id: Tensor

    def to(self, device: torch.device) -> "Batch":
        """Move the tensors."""
        return Batch(self.caption_ids, *(tensor.to(device, non_blocking=True) for tensor in self[1:]))


def pad_speech(clips: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Pad hidden states (L, T_i, D) to (B, L, T, D) float32, with the mask (B, T)."""
    lengths = torch.tensor([clip.shape[1] for clip in clips])
    layers, _, width = clips[0].shape
    padded = torch.zeros(len(clips), layers, int(lengths.max()), width)
    for row, clip in zip(padded, clips, strict=True):
        row[:, : clip.shape[1]] = clip
    return padded, torch.arange(padded.shape[2])[None, :] < lengths[:, None]


def collate(samples: Sequence[Sample]) -> Batch:
    """Make a batch of samples."""
    speech, mask = pad_speech([sample.speech for sample in samples])
    return Batch(
        tuple(sample.caption_id for sample in samples),
        speech,
        mask,
        torch.stack([sample.image_tokens for sample in samples]).float(),
        torch.tensor([sample.image_id for sample in samples]),
    )
