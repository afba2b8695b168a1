"""How probable it is that nothing in a gallery fits: what mismatched pairs of a model score, kept beside the model.

A similarity alone says little: one gallery lies closer to a question than another. A score is therefore compared with
those of the gallery's other pictures, and the result with what mismatched pairs got when the model was measured
(`saysee.evaluation.calibration`). Bulk and tail are kept apart: quantiles up to the 99th percentile, and above it the
mean excess of an exponential tail (peaks over a threshold: Pickands 1975, *Statistical inference using extreme order
statistics*; Coles 2001, *An Introduction to Statistical Modeling of Extreme Values*, chapter 4; that the tail's shape
is taken as 0, exponential, is ours: what a dev split has beyond its 99th percentile is too little to estimate it).
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from saysee.errors import SayseeError
from saysee.files import write_text

CALIBRATION_FILE = "calibration.json"
BACKGROUND = 1024
"""Most pictures of a gallery whose similarities say what a score is to be compared with (ours)."""

_FORMAT = 1
_LEVELS = np.arange(100) / 100
_LEAST_DEVIATION = 1e-6  # where all similarities are one, what float32 makes of them is no score


@dataclass(frozen=True)
class Calibration:
    """The scores of a model's mismatched pairs.

    Attributes:
        model_fingerprint: of the model that was measured; see `SpeechImageModel.fingerprint`.
        recordings: how many were measured.
        pictures: how many each was compared with, its own among them.
        pairs: how many mismatched pairs that gave.
        quantiles: the 0th to the 99th percentile of their scores, ascending (100).
        mean_excess: by how much those above the 99th percentile are above it, on average; positive.
    """

    model_fingerprint: str
    recordings: int
    pictures: int
    pairs: int
    quantiles: tuple[float, ...]
    mean_excess: float

    def tail(self, score: float) -> float:
        """Return the probability that a mismatched pair has at least this score (see `standardised`)."""
        threshold = self.quantiles[-1]
        if score >= threshold:
            return (1 - float(_LEVELS[-1])) * math.exp(-(score - threshold) / self.mean_excess)
        return 1 - float(np.interp(score, self.quantiles, _LEVELS)) if score >= self.quantiles[0] else 1.0

    def chance(self, best: float, pictures: int) -> float:
        """Return the probability that the best of so many mismatched pictures has at least the score `best`.

        With the probability P that one of them has, and pictures that are independent of each other (an assumption):

            chance = 1 - (1 - P)^N

        Above a half, the best picture of a gallery is what galleries without a fitting picture have as a rule.

        Args:
            best: the score of the best one.
            pictures: N.
        """
        tail = self.tail(best)
        # 1 - (1 - P)^N would be 0 for P below 1e-16, however many pictures there are
        return 1.0 if tail >= 1 else -math.expm1(pictures * math.log1p(-tail))

    def write(self, folder: Path) -> None:
        """Put the calibration into a model folder."""
        record = {"saysee_calibration": _FORMAT, **asdict(self)}
        write_text(folder / CALIBRATION_FILE, json.dumps(record, indent=2) + "\n")


def standardised(similarity: Tensor, background: Tensor) -> Tensor:
    """Return by how many standard deviations a similarity lies above the mean of the background's: a score.

    Args:
        similarity: (..., n) of one recording with pictures.
        background: (..., m) of the same recording with up to `BACKGROUND` pictures of the gallery, two or more.
    """
    mean, deviation = background.mean(-1, keepdim=True), background.std(-1, keepdim=True)
    return (similarity - mean) / deviation.clamp(min=_LEAST_DEVIATION)


def read_calibration(folder: Path, model_fingerprint: str) -> Calibration | None:
    """Read the calibration in a model folder; None if it has none, or one of a model with other weights.

    Raises:
        SayseeError: the file is damaged, or of a newer saysee.
    """
    path = folder / CALIBRATION_FILE
    again = f"make it again with `saysee calibrate {folder} --data MANIFEST`, or delete it"
    try:
        record = json.loads(path.read_bytes())
        version = record.pop("saysee_calibration")
        if version != _FORMAT:
            raise SayseeError(f"{path} has calibration format {version}; this saysee reads {_FORMAT}: {again}")
        calibration = _checked(record)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise SayseeError(f"{path} is damaged ({reason}); {again}") from None
    return calibration if calibration.model_fingerprint == model_fingerprint else None


def _checked(record: dict[str, Any]) -> Calibration:
    """Return what a file holds, or raise ValueError, KeyError or TypeError: its numbers decide what a user is told."""
    counts = {name: record[name] for name in ("recordings", "pictures", "pairs")}
    quantiles, excess = np.asarray(record["quantiles"], dtype=np.float64), float(record["mean_excess"])
    if not isinstance(record["model_fingerprint"], str) or not all(type(count) is int for count in counts.values()):
        raise ValueError("a name or a count is something else")
    if quantiles.shape != _LEVELS.shape or not np.isfinite(quantiles).all() or (np.diff(quantiles) < 0).any():
        raise ValueError(f"quantiles are no {len(_LEVELS)} ascending numbers")
    if not 0 < excess < math.inf:
        raise ValueError(f"mean_excess is {excess}, allowed are positive numbers")
    return Calibration(record["model_fingerprint"], **counts, quantiles=tuple(quantiles.tolist()), mean_excess=excess)
