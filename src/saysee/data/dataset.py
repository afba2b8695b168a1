"""Spoken captions with the features of both sides, as batches."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saysee.data.collate import Batch, crop, pad_speech
from saysee.data.extraction import AlteredSpeech, Features
from saysee.data.manifest import SpokenCaption
from saysee.files import hash64


class PairDataset:
    """One pair a spoken caption; up to 12 bytes of memory each, besides what captions and features take.

    Args:
        captions: what is iterated.
        speech: features (L, T, D) of each recording.
        images: features (P, D') of each picture.
        crop_frames: a longer recording is cut to so many frames; None leaves it whole.
        altered: the same recordings as training hears them; None takes them as they are.

    Attributes:
        image_numbers: (n,) int32, what each caption's image shows as a number: equal for captions of one image, or of
            images of one concept, and the same in whatever order the captions come.
    """

    def __init__(
        self,
        captions: Sequence[SpokenCaption],
        speech: Features,
        images: Features,
        crop_frames: int | None = None,
        altered: AlteredSpeech | None = None,
    ) -> None:
        self.captions = captions
        self.speech = speech
        self.images = images
        self.crop_frames = crop_frames
        self.altered = altered
        hashes = np.fromiter((hash64(caption.shown) for caption in captions), np.uint64, len(captions))
        order = np.argsort(hashes, kind="stable")
        hashes = hashes[order]
        first = np.ones(len(hashes), dtype=bool)
        first[1:] = hashes[1:] != hashes[:-1]
        del hashes  # half a million captions are not to take more than they must
        self._caption_of_image = order[first].astype(np.int32)
        self.image_numbers = np.empty(len(captions), dtype=np.int32)
        self.image_numbers[order] = np.cumsum(first, dtype=np.int32) - 1

    def __len__(self) -> int:
        return len(self.captions)

    @cached_property
    def lengths(self) -> NDArray[np.int32]:
        """Frames of each caption (n,), after the crop; zeros where features are live and lengths not known.

        Those of the recordings as they are: a batch of like length need not know that one is spoken a little faster.
        """
        frames = np.fromiter((self.speech.frames(caption.audio) for caption in self.captions), np.int32, len(self))
        return frames if self.crop_frames is None else np.minimum(frames, self.crop_frames, out=frames)

    def batch(self, indices: Sequence[int], draws: Tensor, alterations: Tensor | None = None) -> Batch:
        """Read the captions `indices` as one batch.

        Args:
            indices: B captions.
            draws: (B,) numbers in [0, 1): where a recording that is too long is cut.
            alterations: (B,) numbers in [0, 1): how each recording is altered; needed where they are altered.
        """
        captions = [self.captions[index] for index in indices]
        recordings = [caption.audio for caption in captions]
        if self.altered is None:
            clips = self.speech.read(recordings)
        else:
            assert alterations is not None, "recordings are altered by draws"
            clips = self.altered.read(recordings, alterations.tolist())
        if self.crop_frames is not None:
            clips = [crop(clip, self.crop_frames, draw) for clip, draw in zip(clips, draws.tolist(), strict=True)]
        speech, mask = pad_speech(clips)
        return Batch(
            tuple(caption.id for caption in captions),
            speech,
            mask,
            torch.stack(self.images.read([caption.image for caption in captions])),
            torch.from_numpy(self.image_numbers[list(indices)]).long(),
        )

    def image_tokens(self, image_id: Tensor) -> Tensor:
        """Read the tokens (n, P, D') of the pictures numbered `image_id` (n,) again, float32."""
        paths = [self.captions[int(self._caption_of_image[number])].image for number in image_id.tolist()]
        return torch.stack(self.images.read(paths)).float()
