"""How much disk the features of a corpus will take, before hours are spent on them."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from saysee.data.manifest import SpokenCaption
from saysee.data.validate import RECORDING_LIMITS
from saysee.errors import AudioError
from saysee.features.audio import SAMPLE_RATE, load_waveform
from saysee.files import hash64

SAMPLE = 200
"""Recordings that are decoded to learn how long they are on average (ours)."""


class SpeechSize(Protocol):
    """What decides the size of a recording's features; see `saysee.models.backbones.SpeechBackbone`."""

    dim: int
    num_layers: int
    frames_per_second: float
    max_samples: int


class ImageSize(Protocol):
    """What decides the size of a picture's features; see `saysee.models.backbones.ImageBackbone`."""

    dim: int
    num_tokens: int


def bytes_of_features(captions: Sequence[SpokenCaption], speech: SpeechSize, images: ImageSize) -> int:
    """Return about how many bytes the features of a corpus take in the store, with two bytes a number."""
    pictures = np.unique(np.fromiter((hash64(str(caption.image)) for caption in captions), np.uint64, len(captions)))
    a_picture = images.num_tokens * images.dim * torch.float16.itemsize
    return bytes_of_recordings(captions, speech) + len(pictures) * a_picture


def bytes_of_recordings(captions: Sequence[SpokenCaption], speech: SpeechSize) -> int:
    """Return about how many bytes the features of the recordings alone take.

    The seconds are those of up to `SAMPLE` recordings, drawn at random; a bad one counts for nothing here.
    """
    files = np.fromiter((hash64(str(caption.audio)) for caption in captions), np.uint64, len(captions))
    _, recordings = np.unique(files, return_index=True)
    drawn = random.Random(0).sample(recordings.tolist(), min(SAMPLE, len(recordings)))  # noqa: S311
    seconds = [_seconds(captions[index].audio, speech.max_samples) for index in drawn]
    mean = sum(seconds) / max(1, len(seconds))
    a_second = speech.frames_per_second * speech.num_layers * speech.dim * torch.float16.itemsize
    return round(len(recordings) * mean * a_second)


def gigabytes(count: int) -> str:
    """Return a number of bytes as a person reads it."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1000:,.1f} kB"


def _seconds(path: Path, max_samples: int) -> float:
    try:
        return min(len(load_waveform(path, RECORDING_LIMITS)), max_samples) / SAMPLE_RATE
    except AudioError:
        return 0.0
