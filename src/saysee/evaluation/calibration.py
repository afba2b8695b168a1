"""What mismatched pairs of a split score, from which search says that nothing fits; see `saysee.models.calibration`.

Shapes: Q recordings, N pictures.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from saysee.data.extraction import Features
from saysee.data.manifest import SpokenCaption
from saysee.errors import SayseeError
from saysee.evaluation.retrieval import encode_speech
from saysee.models.calibration import BACKGROUND, Calibration, standardised
from saysee.models.retrieval_model import SpeechImageModel

LEAST_PICTURES = 32
"""With fewer, what lies beyond the 99th percentile is under ten pairs, and says nothing (ours)."""
MOST_RECORDINGS = 4096
"""Recordings that are measured; with `BACKGROUND` pictures 4 million pairs, 16 MB (ours)."""

T = TypeVar("T")


class CalibrationError(SayseeError):
    """A split, or a model, that gives too little to calibrate with."""


@torch.inference_mode()
def calibrate(
    model: SpeechImageModel,
    captions: Sequence[SpokenCaption],
    speech: Features,
    images: Features,
    *,
    batch_size: int = 32,
) -> Calibration:
    """Measure how mismatched pairs of a split score.

    Every recording is compared with the same pictures. Its own picture, and others of its concept, are left out, of the
    pairs and of what they are compared with: measured is a gallery in which nothing fits.

    Args:
        model: it is put into eval mode.
        captions: a split that the model was not trained on. Of more than `MOST_RECORDINGS` recordings or `BACKGROUND`
            pictures so many are taken, spread over the whole.
        speech: features (L, T, D) of each recording.
        images: features (P, D') of each picture.
        batch_size: recordings or pictures encoded together.

    Raises:
        CalibrationError: the split has fewer than `LEAST_PICTURES` pictures, or the model gives no pair a higher score
            than the others.
    """
    paths: dict[str, Path] = {}
    shown: dict[str, str] = {}
    for caption in captions:
        paths.setdefault(caption.image_id, caption.image)
        shown.setdefault(caption.image_id, caption.shown)
    if (things := len(set(shown.values()))) < LEAST_PICTURES:
        raise CalibrationError(
            f"a calibration needs a split with {LEAST_PICTURES} pictures of different things, this one has {things}; "
            "give a manifest with a larger dev split"
        )
    model.eval()
    image_ids = _spread(list(paths), BACKGROUND)
    image_embedding = _encode_images(model, [paths[image_id] for image_id in image_ids], images, batch_size)
    columns: dict[str, list[int]] = defaultdict(list)
    for column, image_id in enumerate(image_ids):
        columns[shown[image_id]].append(column)
    parts = []
    chosen = _spread(captions, MOST_RECORDINGS)
    encodings = encode_speech(model, chosen, speech, batch_size)
    similarities = ((encoding.embedding @ image_embedding.T).cpu() for encoding in encodings)
    for caption, similarity in zip(chosen, chain.from_iterable(similarities), strict=True):
        mismatched = torch.ones(len(image_ids), dtype=torch.bool)
        mismatched[columns.get(caption.shown, [])] = False
        others = similarity[mismatched]
        parts.append(standardised(others, others))
    scores = torch.cat(parts).numpy()
    quantiles = np.quantile(scores, np.arange(100) / 100).tolist()
    beyond = scores[scores > quantiles[-1]]
    if len(beyond) == 0:
        raise CalibrationError("the model gives all mismatched pairs one score; train it first, or longer")
    excess = float(beyond.mean(dtype=np.float64)) - quantiles[-1]
    return Calibration(model.fingerprint, len(chosen), len(image_ids), len(scores), tuple(quantiles), excess)


def _spread(items: Sequence[T], count: int) -> list[T]:
    """Return so many items, spread evenly over the sequence, or all of them."""
    return [items[row] for row in np.linspace(0, len(items) - 1, min(count, len(items))).astype(int)]


def _encode_images(model: SpeechImageModel, paths: Sequence[Path], images: Features, batch_size: int) -> Tensor:
    embeddings = []
    for start in range(0, len(paths), batch_size):
        tokens = torch.stack(images.read(paths[start : start + batch_size])).float()
        embeddings.append(model.image_encoder(tokens.to(model.device)).embedding)
    return torch.cat(embeddings)
