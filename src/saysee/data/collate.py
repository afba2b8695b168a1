"""The batch contract: what a training step gets.

Shapes: B pairs, L backbone layers, T frames of the longest recording, D and D' the backbones' widths, P image tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """B pairs.

    Attributes:
        caption_ids: names, for messages.
        speech: hidden states of the speech backbone (B, L, T, D), zero behind a recording's end; in the type that they
            are stored in.
        speech_mask: (B, T), True where a frame is real.
        image_tokens: (B, P, D'), in the type that they are stored in.
        image_id: (B,) int64; two pairs with one picture, or with pictures of one concept, have the same.
    """

    caption_ids: tuple[str, ...]
    speech: Tensor
    speech_mask: Tensor
    image_tokens: Tensor
    image_id: Tensor

    def to(self, device: torch.device) -> "Batch":
        """Move the tensors, and bring the features to float32 there: half as many bytes have travelled."""
        ids, speech, mask, tokens, image_id = self
        speech, mask, tokens, image_id = (
            tensor.to(device, non_blocking=True) for tensor in (speech, mask, tokens, image_id)
        )
        return Batch(ids, speech.float(), mask, tokens.float(), image_id)


def pad_speech(clips: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Pad hidden states (L, T_i, D) to (B, L, T, D) of their own type, with the mask (B, T)."""
    lengths = torch.tensor([clip.shape[1] for clip in clips])
    layers, _, width = clips[0].shape
    padded = clips[0].new_zeros(len(clips), layers, int(lengths.max()), width)
    for row, clip in zip(padded, clips, strict=True):
        row[:, : clip.shape[1]] = clip
    return padded, torch.arange(padded.shape[2])[None, :] < lengths[:, None]


def crop(clip: Tensor, frames: int, draw: float) -> Tensor:
    """Cut hidden states (L, T, D) to `frames` neighbouring frames; `draw` in [0, 1) says where. Shorter ones stay."""
    spare = clip.shape[1] - frames
    if spare <= 0:
        return clip
    start = int(draw * (spare + 1))
    return clip[:, start : start + frames]
