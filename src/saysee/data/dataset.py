"""Spoken captions with the cached features of both sides."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from saysee.data.collate import Sample
from saysee.data.manifest import ManifestError, SpokenCaption
from saysee.data.validate import RECORDING_LIMITS
from saysee.errors import AudioError, ImageError
from saysee.features.audio import load_waveform
from saysee.features.cache import FeatureCache
from saysee.features.extract import CachedFeatures, extract
from saysee.features.image import ImageLimits, load_image
from saysee.features.sources import read_bytes


class Features(Protocol):
    """The features of files, by path."""

    def __getitem__(self, path: Path) -> Tensor: ...


class PairDataset(Dataset[Sample]):
    """One sample a spoken caption.

    Args:
        captions: what is iterated.
        speech: features (L, T, D) of each recording.
        images: features (P, D') of each picture.
    """

    def __init__(self, captions: Sequence[SpokenCaption], speech: Features, images: Features) -> None:
        self.captions = captions
        self.speech = speech
        self.images = images
        paths = {caption.image_id: caption.image for caption in captions}
        self.image_numbers: Mapping[str, int] = {image_id: number for number, image_id in enumerate(sorted(paths))}
        self.image_paths = [paths[image_id] for image_id in sorted(paths)]

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> Sample:
        caption = self.captions[index]
        return Sample(
            caption.id, self.speech[caption.audio], self.images[caption.image], self.image_numbers[caption.image_id]
        )

    def image_tokens(self, image_id: Tensor) -> Tensor:
        """Read the tokens (n, P, D') of the pictures numbered `image_id` (n,) again, float32."""
        return torch.stack([self.images[self.image_paths[number]] for number in image_id.tolist()]).float()


class SpeechBackboneLike(Protocol):
    """What extraction needs of a frozen speech backbone; see `saysee.models.backbones.SpeechBackbone`."""

    @property
    def fingerprint(self) -> str:
        """Identity of weights and settings."""
        ...

    def prepare(self, waveform: NDArray[np.float32]) -> Tensor:
        """Bring one waveform (S,) into the form that the encoder takes."""
        ...

    def __call__(self, prepared: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return hidden states (B, L, T, D) and their mask (B, T)."""
        ...


class ImageBackboneLike(Protocol):
    """What extraction needs of a frozen image backbone; see `saysee.models.backbones.ImageBackbone`."""

    @property
    def fingerprint(self) -> str:
        """Identity of weights and settings."""
        ...

    def prepare(self, image: Image.Image) -> Tensor:
        """Bring one picture into the form that the encoder takes (3, H, W)."""
        ...

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return image tokens (B, P, D')."""
        ...


def extract_features(
    captions: Sequence[SpokenCaption],
    speech_backbone: SpeechBackboneLike,
    image_backbone: ImageBackboneLike,
    cache_folder: Path,
    *,
    workers: int = 2,
    progress: bool = False,
) -> tuple[CachedFeatures, CachedFeatures]:
    """Bring the features of all recordings and pictures into the cache, as float16.

    Returns:
        Speech features (L, T, D) of each recording and image features (P, D') of each picture.

    Raises:
        ManifestError: files that do not open or decode, all of them listed: a wrong file would spoil the result.
    """

    # Each file is encoded alone: in a batch its last bits would depend on its neighbours, and a run that was stopped
    # while it extracted would end with other tensors. On a CPU a batch is hardly faster.
    def encode_speech(prepared: Sequence[Tensor]) -> list[Tensor]:
        hidden, mask = speech_backbone(prepared)
        return [clip[:, :length].half().cpu() for clip, length in zip(hidden, mask.sum(1).tolist(), strict=True)]

    def encode_images(pixels: Sequence[Tensor]) -> list[Tensor]:
        return list(image_backbone(torch.stack(list(pixels))).half().cpu())

    speech, speech_faults = extract(
        (caption.audio for caption in captions),
        lambda path: read_bytes(path, RECORDING_LIMITS.max_bytes, AudioError),
        lambda content, path: speech_backbone.prepare(load_waveform(content, RECORDING_LIMITS, str(path))),
        encode_speech,
        FeatureCache(cache_folder, speech_backbone.fingerprint),
        batch_size=1,
        workers=workers,
        progress="recordings" if progress else None,
    )
    images, image_faults = extract(
        (caption.image for caption in captions),
        lambda path: read_bytes(path, ImageLimits().max_bytes, ImageError),
        lambda content, path: image_backbone.prepare(load_image(content, name=str(path))),
        encode_images,
        FeatureCache(cache_folder, image_backbone.fingerprint),
        batch_size=1,
        workers=workers,
        progress="pictures" if progress else None,
    )
    if faults := [*speech_faults.values(), *image_faults.values()]:
        raise ManifestError("files of the manifest cannot be used", faults)
    return speech, images
