"""Files to encoded items: read, hashed, decoded in threads, encoded in batches; a bad file is named and skipped."""

import hashlib
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saysee.errors import AudioError, ImageError
from saysee.features.audio import AudioLimits, load_waveform
from saysee.features.extract import read_ahead
from saysee.features.image import ImageLimits, load_image, picture_date
from saysee.features.sources import read_bytes
from saysee.models.retrieval_model import SpeechImageModel
from saysee.search.folder import FoundFile
from saysee.search.sheet import make_thumbnail
from saysee.search.stores.base import EncodedItem, Item, Kind

THUMBNAIL_SIDE = 320
"""Pixels of the longer side of a stored thumbnail (ours)."""


@dataclass(frozen=True)
class _Decoded:
    """A file ready for the model.

    Attributes:
        item: what it is.
        ready: pixels (3, H, W) of a picture, waveform (S,) of a recording.
        thumbnail: of a picture.
    """

    item: Item
    ready: Tensor | NDArray[np.float32]
    thumbnail: bytes


class Encoder:
    """Makes items of files with one model.

    Args:
        model: in eval mode.
        kind: of the files.
        keep_hidden: whether tokens are made too.
        batch_size: files encoded together.
        workers: threads that decode.
    """

    def __init__(
        self, model: SpeechImageModel, kind: Kind, *, keep_hidden: bool, batch_size: int = 16, workers: int = 2
    ) -> None:
        self.model = model
        self.kind = kind
        self.keep_hidden = keep_hidden
        self.batch_size = batch_size
        self.workers = workers

    def encode(
        self, folder: Path, files: Sequence[FoundFile], known: Collection[str]
    ) -> Iterator[tuple[list[EncodedItem], list[Item], dict[str, str]]]:
        """Encode files, a batch at a time, in their order.

        Args:
            folder: where their paths start.
            files: which.
            known: contents (SHA-256) that need no encoding.

        Yields:
            New items; those whose content is known; and bad files with the reason in one line. Together they are some
            further files of `files`.
        """
        by_path = {folder / file.path: file for file in files}

        def decode(path: Path) -> _Decoded | Item:
            return self._decode(path, by_path[path], known)

        batch: list[_Decoded] = []
        same: list[Item] = []
        bad: dict[str, str] = {}
        for path, result in read_ahead(by_path, decode, workers=self.workers, ahead=2 * self.batch_size):
            if isinstance(result, str):
                bad[by_path[path].path] = result
            elif isinstance(result, Item):
                same.append(result)
            else:
                batch.append(result)
            if len(batch) + len(same) + len(bad) >= self.batch_size:
                yield self._encode(batch), same, bad
                batch, same, bad = [], [], {}
        if batch or same or bad:
            yield self._encode(batch), same, bad

    def _decode(self, path: Path, file: FoundFile, known: Collection[str]) -> _Decoded | Item:
        picture = self.kind == "picture"
        most = ImageLimits().max_bytes if picture else AudioLimits().max_bytes
        content = read_bytes(path, most, ImageError if picture else AudioError)
        taken = picture_date(content) if picture else None
        digest = hashlib.sha256(content).hexdigest()
        item = Item(file.path, file.size, file.modified, _clock_here(file.modified) if taken is None else taken, digest)
        if digest in known:
            return item
        if not picture:
            return _Decoded(item, load_waveform(content, name=str(path)), b"")
        image = load_image(content, name=str(path))
        return _Decoded(item, self.model.image_backbone.prepare(image), make_thumbnail(image, THUMBNAIL_SIDE))

    def _encode(self, batch: Sequence[_Decoded]) -> list[EncodedItem]:
        if not batch:
            return []
        if self.kind == "picture":
            encoding = self.model.encode_pixels(torch.stack([torch.as_tensor(decoded.ready) for decoded in batch]))
            embedding, hidden = encoding.embedding, list(encoding.hidden)
        else:
            speech = self.model.encode_speech([np.asarray(decoded.ready) for decoded in batch])
            embedding = speech.embedding
            hidden = [states[mask] for states, mask in zip(speech.hidden, speech.mask, strict=True)]
        return [
            EncodedItem(
                decoded.item,
                vector.float().cpu().numpy(),
                tokens.half().cpu().numpy() if self.keep_hidden else None,
                decoded.thumbnail,
            )
            for decoded, vector, tokens in zip(batch, embedding, hidden, strict=True)
        ]


def make_again(model: SpeechImageModel, paths: Sequence[Path], read: Callable[[Path], Tensor]) -> list[Tensor | None]:
    """Return the projected tokens (P, H) of pictures, encoded anew; None for a file that cannot be read (any more)."""
    pixels = [
        None if isinstance(result, str) else result
        for _, result in read_ahead(paths, read, workers=2, ahead=len(paths))
    ]
    good = [picture for picture in pixels if picture is not None]
    if not good:
        return [None] * len(paths)
    hidden = iter(model.encode_pixels(torch.stack(good)).hidden)
    return [None if picture is None else next(hidden) for picture in pixels]


def _clock_here(modified: int) -> int:
    """Return a time of change on this machine's clock, in seconds as if that were UTC."""
    seconds = modified // 1_000_000_000
    return seconds + time.localtime(seconds).tm_gmtoff
