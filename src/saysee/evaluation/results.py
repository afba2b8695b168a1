"""The record of an evaluation, in memory and as `results.json`: counts of every query, from which all metrics follow.

A metric's name is `{stage}/{direction}/{metric}`, as `coarse/speech_to_image/R@1`; `{stage}/mean/R@K` is the mean over
both directions. The trainer chooses checkpoints by these names.
"""

import json
import lzma
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from saysee.errors import SayseeError
from saysee.evaluation.bootstrap import LEVEL, RESAMPLES, Interval, interval_of, metric_draws
from saysee.evaluation.metrics import RECALLS, FloatArray, IntArray, RankCounts, summarize
from saysee.files import atomic_path

Stage = Literal["coarse", "fine"]
Direction = Literal["speech_to_image", "image_to_speech"]
STAGES: tuple[Stage, ...] = ("coarse", "fine")
DIRECTIONS: tuple[Direction, ...] = ("speech_to_image", "image_to_speech")
GROUPINGS = ("language", "speaker")

_FORMAT = 1
_Value = TypeVar("_Value", float, FloatArray)


@dataclass(frozen=True)
class StageResult:
    """One ranking of one gallery by Q queries.

    Attributes:
        stage: `coarse` (by similarity) or `fine` (the best k of it re-ranked by matching).
        direction: what asks and what is ranked.
        counts: of the Q queries.
        query_ids: Q caption ids when speech asks, Q image ids when an image asks; each once.
        clusters: Q image ids: the image whose caption asks, or the image that asks; or its concept, if it has one.
        gallery_size: N, how many items are ranked.

    Raises:
        ValueError: lengths differ, a query stands twice, or a count exceeds the gallery.
    """

    stage: Stage
    direction: Direction
    counts: RankCounts
    query_ids: tuple[str, ...]
    clusters: tuple[str, ...]
    gallery_size: int

    def __post_init__(self) -> None:
        if self.stage not in STAGES or self.direction not in DIRECTIONS:
            raise ValueError(f"{self.name} is none of the rankings {', '.join(STAGES)} x {', '.join(DIRECTIONS)}")
        if not 0 < len(self.counts) == len(self.query_ids) == len(self.clusters):
            raise ValueError(
                f"{self.name}: counts of {len(self.counts)} queries, {len(self.query_ids)} query ids and "
                f"{len(self.clusters)} clusters; all three must be as many, and not none"
            )
        if len(set(self.query_ids)) < len(self.query_ids):
            raise ValueError(f"{self.name}: a query id stands twice")
        if (self.counts.above + self.counts.tied + self.counts.relevant_tied > self.gallery_size).any():
            raise ValueError(f"{self.name}: a query counts more items than the gallery of {self.gallery_size} holds")

    @property
    def name(self) -> str:
        """The beginning of the names of its metrics: `coarse/speech_to_image`."""
        return f"{self.stage}/{self.direction}"


@dataclass(frozen=True)
class Results:
    """All rankings of one evaluation.

    Attributes:
        about: what was measured, in plain JSON values: model, model_fingerprint, data, split, images, captions, rerank,
            fusion, seed and whatever else tells two records apart.
        stages: one ranking for each stage and direction that was measured.
        coarse_recall_at_k: by direction, the share of queries whose answer is among the `rerank` items that the fine
            stage gets: its recall cannot be higher.
        groups: `language` and `speaker`: from each one's name to the positions of its queries in speech_to_image.

    Raises:
        ValueError: a ranking stands twice, those of one direction have different queries or galleries, the two
            directions have different images, or a group names a query that is not there.
    """

    about: dict[str, Any]
    stages: tuple[StageResult, ...]
    coarse_recall_at_k: dict[Direction, float]
    groups: dict[str, dict[str, tuple[int, ...]]]

    def __post_init__(self) -> None:
        names = [ranking.name for ranking in self.stages]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"results hold each ranking once and at least one; received {names}")
        for direction in DIRECTIONS:
            same = [ranking for ranking in self.stages if ranking.direction == direction]
            if len({(r.query_ids, r.clusters, r.gallery_size) for r in same}) > 1:
                raise ValueError(f"the stages of {direction} differ in their queries or gallery")
        # the intervals of the means over directions draw the images of both at once
        if len({frozenset(ranking.clusters) for ranking in self.stages}) > 1:
            raise ValueError("the two directions are about different images")
        spoken = self.queries("speech_to_image")
        last = len(spoken.query_ids) if spoken else 0
        if not set(self.groups) <= set(GROUPINGS) or not set(self.coarse_recall_at_k) <= set(DIRECTIONS):
            raise ValueError(f"groups are by {GROUPINGS} and recall at k by {DIRECTIONS}")
        for name, rows in ((name, rows) for group in self.groups.values() for name, rows in group.items()):
            if not rows or not all(0 <= row < last for row in rows):
                raise ValueError(f"the group {name!r} is empty or names a query that is not there")

    def ranking(self, stage: str, direction: str) -> StageResult | None:
        """Return the ranking of a stage and direction, if it was measured."""
        return next((r for r in self.stages if r.stage == stage and r.direction == direction), None)

    def queries(self, direction: Direction) -> StageResult | None:
        """Return a ranking of that direction, of whichever stage: queries and gallery are the same in both."""
        return next((r for r in self.stages if r.direction == direction), None)

    def metrics(self) -> dict[str, float]:
        """Return every metric by its full name. Recalls and MRR lie in [0, 1]."""
        return self._by_name(lambda ranking: summarize(ranking.counts))

    def metric(self, name: str) -> float:
        """Return one metric by its full name.

        Raises:
            SayseeError: there is none of that name.
        """
        metrics = self.metrics()
        if name not in metrics:
            raise SayseeError(f"there is no metric {name!r}; choose one of: {', '.join(metrics)}")
        return metrics[name]

    def intervals(self, *, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL) -> dict[str, Interval]:
        """Return every metric with its bootstrap interval over images; see `saysee.evaluation.bootstrap`."""
        draws = self._by_name(
            lambda ranking: metric_draws(ranking.counts, ranking.clusters, resamples=resamples, seed=seed)
        )
        return {name: interval_of(value, draws[name], level) for name, value in self.metrics().items()}

    def _by_name(self, measure: Callable[[StageResult], dict[str, _Value]]) -> dict[str, _Value]:
        values: dict[str, _Value] = {}
        for stage in STAGES:
            found = ((direction, self.ranking(stage, direction)) for direction in DIRECTIONS)
            measured = with_mean({str(direction): measure(ranking) for direction, ranking in found if ranking})
            for direction, metrics in measured.items():
                values |= {f"{stage}/{direction}/{name}": value for name, value in metrics.items()}
        return values


def with_mean(measured: Mapping[str, dict[str, _Value]]) -> dict[str, dict[str, _Value]]:
    """Return `measured` and, when it has both directions, `mean`: the mean of each recall over the two.

    Args:
        measured: by direction and metric, numbers or draws (R,) that are paired over the directions.
    """
    if len(measured) < len(DIRECTIONS):
        return dict(measured)
    first, second = measured.values()
    return {**measured, "mean": {name: (first[name] + second[name]) / 2 for name in RECALLS}}


def write_results(path: Path, results: Results) -> None:
    """Write `results` as JSON, atomically, with the interval of every metric; compressed if the name ends in `.xz`.

    The metrics are there for people and other programs; `read_results` computes them again from the counts.
    """
    directions = [ranking for d in DIRECTIONS if (ranking := results.queries(d))]
    small = {
        "saysee_results": _FORMAT,
        "about": results.about,
        "metrics": {name: asdict(interval) for name, interval in results.intervals().items()},
        "intervals": {"kind": "percentile bootstrap over images", "level": LEVEL, "resamples": RESAMPLES, "seed": 0},
        "coarse_recall_at_k": results.coarse_recall_at_k,
    }
    large = {
        "groups": results.groups,
        "queries": {
            r.direction: {"gallery_size": r.gallery_size, "query_ids": r.query_ids, "clusters": r.clusters}
            for r in directions
        },
        "counts": [
            {
                "stage": r.stage,
                "direction": r.direction,
                "above": r.counts.above.tolist(),
                "tied": r.counts.tied.tolist(),
                "relevant_tied": r.counts.relevant_tied.tolist(),
            }
            for r in results.stages
        ],
    }
    # What a person reads stands indented at the top; what is as long as the queries follows in one line each.
    top = json.dumps(small, indent=2, allow_nan=False).removesuffix("\n}")
    rest = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in large.items()]
    content = (",\n".join([top, *rest]) + "\n}\n").encode()
    with atomic_path(path) as temporary:
        temporary.write_bytes(lzma.compress(content) if path.suffix == ".xz" else content)


def read_results(path: Path) -> Results:
    """Read what `write_results` wrote.

    Raises:
        SayseeError: the file cannot be read, is not such a record, is damaged, or is of a newer saysee.
    """
    try:
        content = path.read_bytes()
        record = json.loads(lzma.decompress(content) if path.suffix == ".xz" else content)
    except lzma.LZMAError as error:
        raise SayseeError(f"{path} is no whole xz file ({error}); copy it again") from None
    except OSError as error:
        raise SayseeError(f"cannot read the results {path} ({error.strerror}); give a results.json") from None
    except (ValueError, RecursionError):
        raise SayseeError(f"{path} is not JSON; give a results.json that `saysee evaluate` wrote") from None
    version = record.get("saysee_results") if isinstance(record, dict) else None
    if type(version) is not int:
        raise SayseeError(f"{path} is not a record of saysee; give a results.json that `saysee evaluate` wrote")
    if version != _FORMAT:
        raise SayseeError(
            f"{path} has format {version} and this saysee reads {_FORMAT}; "
            "install the saysee that wrote it, or evaluate again"
        )
    try:
        return _from_record(record)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise SayseeError(f"{path} is damaged ({reason}); evaluate again") from None


def _from_record(record: Mapping[str, Any]) -> Results:
    stages = []
    for counts in record["counts"]:
        queries = record["queries"][counts["direction"]]
        stages.append(
            StageResult(
                counts["stage"],
                counts["direction"],
                RankCounts(*(_integers(counts[name]) for name in ("above", "tied", "relevant_tied"))),
                _strings(queries["query_ids"]),
                _strings(queries["clusters"]),
                int(_integers([queries["gallery_size"]])[0]),
            )
        )
    return Results(
        about=dict(record["about"]),
        stages=tuple(stages),
        coarse_recall_at_k={direction: float(value) for direction, value in record["coarse_recall_at_k"].items()},
        groups={
            grouping: {name: tuple(_integers(rows).tolist()) for name, rows in names.items()}
            for grouping, names in record["groups"].items()
        },
    )


def _integers(values: Iterable[Any]) -> IntArray:
    checked = list(values)
    if not all(type(value) is int for value in checked):  # numpy would cut 1.5 to 1
        raise ValueError("a count is not a whole number")
    return np.array(checked, dtype=np.int64)


def _strings(values: Iterable[Any]) -> tuple[str, ...]:
    checked = tuple(values)
    if not all(isinstance(value, str) for value in checked):
        raise ValueError("an id is not a string")
    return checked
