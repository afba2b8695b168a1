"""All files of a manifest to features: stored ones, extracted once, or live ones, made whenever they are asked for."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from saysee.config import AugmentationConfig
from saysee.data.manifest import ManifestError, SpokenCaption
from saysee.data.validate import RECORDING_LIMITS
from saysee.errors import AudioError, ImageError
from saysee.features.audio import load_waveform
from saysee.features.augmentation import alter, altered_fingerprint, variant_number
from saysee.features.extract import FileEncoder, Run, StoredFeatures, extract, in_process, read_ahead
from saysee.features.hashes import FileHashes, file_key, is_settled, sha256
from saysee.features.image import ImageLimits, load_image
from saysee.features.sources import read_bytes

K = TypeVar("K")


class Features(Protocol):
    """The features of files, by path."""

    def read(self, paths: Sequence[Path]) -> list[Tensor]:
        """Return the features of each file: (L, T, D) of a recording, (P, D') of a picture."""
        ...

    def frames(self, path: Path) -> int:
        """Return T of a recording; 0 where it is not known without decoding it."""
        ...


class AlteredSpeech(Protocol):
    """The features of recordings as training hears them."""

    def read(self, paths: Sequence[Path], draws: Sequence[float]) -> list[Tensor]:
        """Return the features (L, T, D) of each recording; its draw in [0, 1) decides how it is altered."""
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


def variant_encoder(
    backbone: SpeechBackboneLike, augmentation: AugmentationConfig, variant: int, batch_size: int = 1
) -> FileEncoder:
    """Say how an altered copy of a recording becomes features (L, T, D) for the store.

    Args:
        backbone: frozen.
        augmentation: how recordings are altered.
        variant: which copy, from 1.
        batch_size: recordings that are encoded together.
    """

    def decode(content: bytes, path: Path) -> Tensor:
        waveform = load_waveform(content, RECORDING_LIMITS, str(path))
        return backbone.prepare(alter(waveform, augmentation, variant_number(sha256(content), variant)))

    fingerprint = altered_fingerprint(backbone.fingerprint, augmentation, variant)
    return replace(recording_encoder(backbone, batch_size), fingerprint=fingerprint, decode=decode)


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
        encoder = self._encoder
        return _encode_live(encoder, paths, lambda path: encoder.decode(encoder.read(path), path), self._threads)

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


class LiveAlterations:
    """Recordings that are altered and encoded whenever they are asked for.

    Args:
        backbone: frozen.
        augmentation: how they are altered.
        batch_size: recordings that are encoded together.
        threads: that read, decode and alter.
    """

    def __init__(
        self, backbone: SpeechBackboneLike, augmentation: AugmentationConfig, batch_size: int, threads: int = 4
    ) -> None:
        self._backbone = backbone
        self._augmentation = augmentation
        self._encoder = recording_encoder(backbone, batch_size)
        self._threads = threads

    def read(self, paths: Sequence[Path], draws: Sequence[float]) -> list[Tensor]:
        """See `AlteredSpeech.read`.

        Raises:
            ManifestError: files that do not open or decode, all of them listed.
        """

        def decode(reading: tuple[Path, float]) -> Tensor:
            path, draw = reading
            waveform = load_waveform(self._encoder.read(path), RECORDING_LIMITS, str(path))
            # all the digits of a draw: as many different alterations
            return self._backbone.prepare(alter(waveform, self._augmentation, int(draw * 2**53)))

        return _encode_live(self._encoder, list(zip(paths, draws, strict=True)), decode, self._threads)


class StoredVariants:
    """Recordings and their altered copies, all of whose features are stored; a draw takes one of them.

    Args:
        of_variants: the features of the recordings themselves and of each variant.
    """

    def __init__(self, of_variants: Sequence[Features]) -> None:
        self._of_variants = of_variants

    def read(self, paths: Sequence[Path], draws: Sequence[float]) -> list[Tensor]:
        """See `AlteredSpeech.read`."""
        count = len(self._of_variants)
        taken = [self._of_variants[int(draw * count)] for draw in draws]
        return [features.read([path])[0] for features, path in zip(taken, paths, strict=True)]


def extract_variants(
    captions: Sequence[SpokenCaption],
    backbone: SpeechBackboneLike,
    augmentation: AugmentationConfig,
    cache: Path,
    *,
    runs: Sequence[Run] | None = None,
    progress: bool = False,
) -> list[StoredFeatures]:
    """Bring the features of altered copies of all recordings into the store.

    Args:
        captions: whose recordings are meant: those of train.
        backbone: frozen.
        augmentation: how they are altered, and how many copies there are.
        cache: folder of the store.
        runs: how each copy is encoded; None encodes them in this process.
        progress: whether to show bars.

    Returns:
        Speech features (L, T, D) of each copy of each recording.

    Raises:
        ManifestError: files that do not open or decode, all of them listed.
    """
    stored = []
    for variant in range(1, augmentation.variants + 1):
        encoder = variant_encoder(backbone, augmentation, variant)
        features, faults = extract(
            (caption.audio for caption in captions),
            encoder.fingerprint,
            cache,
            runs[variant - 1] if runs else in_process(encoder, cache),
            progress=f"recordings, variant {variant}" if progress else None,
        )
        if faults:
            raise ManifestError("files of the manifest cannot be used", list(faults.values()))
        stored.append(features)
    return stored


def _encode_live(encoder: FileEncoder, readings: Sequence[K], decode: Callable[[K], Any], threads: int) -> list[Tensor]:
    """Decode and encode, `encoder.batch_size` at a time; what stands twice is encoded once.

    Raises:
        ManifestError: files that do not open or decode, all of them listed.
    """
    unique = list(dict.fromkeys(readings))
    decoded: dict[K, Any] = {}
    faults = []
    for reading, item in read_ahead(unique, decode, workers=threads, ahead=len(unique)):
        if isinstance(item, str):
            faults.append(item)
        decoded[reading] = item
    if faults:
        raise ManifestError("files of the manifest cannot be used", faults)
    features: dict[K, Tensor] = {}
    for start in range(0, len(unique), encoder.batch_size):
        part = unique[start : start + encoder.batch_size]
        features.update(zip(part, encoder.encode([decoded[reading] for reading in part]), strict=True))
    return [features[reading] for reading in readings]
