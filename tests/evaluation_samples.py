"""Small made-up results for the tests of this folder."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from saysee.evaluation.metrics import RankCounts
from saysee.evaluation.results import Direction, Results, Stage, StageResult


def ranked(ranks: npt.ArrayLike) -> RankCounts:
    """Queries whose first relevant item stands at these ranks, without ties."""
    above = np.asarray(ranks, dtype=np.int64) - 1
    return RankCounts(above, np.zeros_like(above), np.ones_like(above))


def spoken(ranks: Sequence[int], stage: Stage = "coarse", *, captions: int = 2, gallery: int = 100) -> StageResult:
    """Speech to image: caption i belongs to image i // `captions`."""
    ids = tuple(f"caption{i:03}" for i in range(len(ranks)))
    images = tuple(f"image{i // captions:03}" for i in range(len(ranks)))
    return StageResult(stage, "speech_to_image", ranked(ranks), ids, images, gallery)


def seen(ranks: Sequence[int], stage: Stage = "coarse", *, gallery: int = 200) -> StageResult:
    """Image to speech: image i asks."""
    ids = tuple(f"image{i:03}" for i in range(len(ranks)))
    return StageResult(stage, "image_to_speech", ranked(ranks), ids, ids, gallery)


def results(
    *stages: StageResult,
    groups: dict[str, dict[str, tuple[int, ...]]] | None = None,
    recall_at_k: dict[Direction, float] | None = None,
    **about: Any,
) -> Results:
    return Results(about, stages, recall_at_k or {}, groups or {})
