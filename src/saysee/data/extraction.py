"""All files of a manifest to features: stored ones, extracted once, or live ones, made whenever they are asked for."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from saysee.data.manifest import ManifestError, SpokenCaption
from saysee.data.validate import RECORDING_LIMITS
from saysee.errors import AudioError, ImageError
from saysee.features.audio import load_waveform
from saysee.features.extract import FileEncoder, Run, StoredFeatures, extract, in_process, read_ahead
from saysee.features.hashes import FileHashes, file_key, is_settled, sha256
from saysee.features.image import ImageLimits, load_image
from saysee.features.sources import read_bytes


class Features(Protocol):
    """The features of files, by path."""

    def read(self, paths: Sequence[Path]) -> list[Tensor]:
        """Return the features of each file: (L, T, D) of a recording, (P, D') of a picture."""
        ...

    def frames(self, path: Path) -> int:
        """Return T of a recording; 0 where it is not known without decoding it."""
        ...


class FileContents(Protocol):
    """What stands for the content of files, by path."""

    def content(self, path: Path) -> bytes:
        """Return the first 16 bytes of the SHA-256 of a file's content."""
        ...


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


def recording_encoder(backbone: SpeechBackboneLike, batch_size: int = 1) -> FileEncoder:
    """Say how a recording becomes features (L, T, D) for the store."""

    def encode(prepared: Sequence[Tensor]) -> list[Tensor]:
        hidden, mask = backbone(prepared)
        return [_stored(clip[:, :length]) for clip, length in zip(hidden, mask.sum(1).tolist(), strict=True)]

    return FileEncoder(
        backbone.fingerprint,
        lambda path: read_bytes(path, RECORDING_LIMITS.max_bytes, AudioError),
        lambda content, path: backbone.prepare(load_waveform(content, RECORDING_LIMITS, str(path))),
        encode,
        batch_size,
    )


def picture_encoder(backbone: ImageBackboneLike, batch_size: int = 1) -> FileEncoder:
    """Say how a picture becomes features (P, D') for the store."""

    def encode(pixels: Sequence[Tensor]) -> list[Tensor]:
        return [_stored(tokens) for tokens in backbone(torch.stack(list(pixels)))]

    return FileEncoder(
        backbone.fingerprint,
        lambda path: read_bytes(path, ImageLimits().max_bytes, ImageError),
        lambda content, path: backbone.prepare(load_image(content, name=str(path))),
        encode,
        batch_size,
    )


def _stored(features: Tensor) -> Tensor:
    """Bring features to the type that they are stored in: what bfloat16 made has no digits that float16 would keep."""
    return features.to("cpu", features.dtype if features.dtype == torch.bfloat16 else torch.float16)


def extract_features(
    captions: Iterable[SpokenCaption],
    speech_backbone: SpeechBackboneLike,
    image_backbone: ImageBackboneLike,
    cache: Path,
    *,
    runs: tuple[Run, Run] | None = None,
    progress: bool = False,
) -> tuple[StoredFeatures, StoredFeatures]:
    """Bring the features of all recordings and pictures into the store, as float16 or bfloat16.

    Args:
        captions: whose files are meant; gone through twice.
        speech_backbone: frozen.
        image_backbone: frozen.
        cache: folder of the store.
        runs: how recordings and pictures are encoded; None encodes them in this process.
        progress: whether to show bars.

    Returns:
        Speech features (L, T, D) of each recording and image features (P, D') of each picture.

    Raises:
        ManifestError: files that do not open or decode, all of them listed: a wrong file would spoil the result.
    """
    run_speech, run_images = runs or (
        in_process(recording_encoder(speech_backbone), cache),
        in_process(picture_encoder(image_backbone), cache),
    )
    speech, speech_faults = extract(
        (caption.audio for caption in captions),
        speech_backbone.fingerprint,
        cache,
        run_speech,
        progress="recordings" if progress else None,
    )
    images, image_faults = extract(
        (caption.image for caption in captions),
        image_backbone.fingerprint,
        cache,
        run_images,
        progress="pictures" if progress else None,
    )
    if faults := [*speech_faults.values(), *image_faults.values()]:
        raise ManifestError("files of the manifest cannot be used", faults)
    return speech, images


class LiveFeatures:
    """Features that are made whenever they are asked for: nothing is kept on disk, and the encoder runs every time.

    Args:
        encoder: how; files are encoded `encoder.batch_size` at a time.
        hashes: of files, remembered.
        threads: that read and decode.
    """

    def __init__(self, encoder: FileEncoder, hashes: FileHashes, threads: int = 4) -> None:
        self._encoder = encoder
        self._hashes = hashes
        self._threads = threads

    def read(self, paths: Sequence[Path]) -> list[Tensor]:
        """Decode and encode files; a path that stands twice is encoded once.

        Raises:
            ManifestError: files that do not open or decode, all of them listed.
        """
        encoder, unique = self._encoder, list(dict.fromkeys(paths))
        decoded: dict[Path, Any] = {}
        faults = []
        for path, item in read_ahead(
            unique, lambda path: encoder.decode(encoder.read(path), path), workers=self._threads, ahead=len(unique)
        ):
            if isinstance(item, str):
                faults.append(item)
            decoded[path] = item
        if faults:
            raise ManifestError("files of the manifest cannot be used", faults)
        features: dict[Path, Tensor] = {}
        for start in range(0, len(unique), encoder.batch_size):
            part = unique[start : start + encoder.batch_size]
            features.update(zip(part, encoder.encode([decoded[path] for path in part]), strict=True))
        return [features[path] for path in paths]

    def frames(self, path: Path) -> int:
        """Return 0: how long a recording is, only decoding it says."""
        del path
        return 0

    def content(self, path: Path) -> bytes:
        """Return the first 16 bytes of the SHA-256 of a file's content.

        Raises:
            AudioError, ImageError: the file cannot be read.
        """
        digest = self._hashes.get(path)
        if digest is None:
            key = None
            # asked before the file is read, see `saysee.features.extract`; what is missing is the reader's to name
            if path.is_file() and is_settled(status := path.stat()):
                key = file_key(path, status)
            digest = sha256(self._encoder.read(path))
            if key is not None:
                self._hashes.put(key, digest)
        return digest[:16]
