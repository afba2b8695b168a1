"""Do two results differ? Paired bootstrap over the images that both were measured on."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from saysee.errors import SayseeError
from saysee.evaluation.bootstrap import LEVEL, RESAMPLES, Difference, difference_draws, difference_of
from saysee.evaluation.metrics import FloatArray, RankCounts, summarize
from saysee.evaluation.report import DIRECTION_NAMES, format_metric, markdown_table, printable
from saysee.evaluation.results import DIRECTIONS, STAGES, Results, Stage, StageResult, with_mean


@dataclass(frozen=True)
class ComparisonRow:
    """One metric of one direction in both results.

    Attributes:
        stage_a: the stage of A that is compared.
        stage_b: that of B; another one only where one of the two has no fine stage.
        direction: `speech_to_image`, `image_to_speech`, or `mean` of both.
        metric: one of METRICS; of `mean` the recalls only.
        value_a: recalls and MRR in [0, 1].
        value_b: the same.
        difference: B - A. More is better, except for `median_rank`.
    """

    stage_a: Stage
    stage_b: Stage
    direction: str
    metric: str
    value_a: float
    value_b: float
    difference: Difference

    @property
    def differs(self) -> bool:
        """Whether the interval of the difference excludes 0."""
        return self.difference.excludes_zero


@dataclass(frozen=True)
class Comparison:
    """All metrics of two results side by side.

    Attributes:
        changed: what is recorded about the two and is not the same: by its key, the values of A and B.
        rows: by stage, direction and metric.
        resamples: of the bootstrap.
        level: of the intervals.
    """

    changed: dict[str, tuple[object, object]]
    rows: tuple[ComparisonRow, ...]
    resamples: int
    level: float


def compare(a: Results, b: Results, *, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL) -> Comparison:
    """Compare two results stage by stage; where only one has a fine stage, also that with the other's coarse one.

    Args:
        a: the baseline.
        b: what is measured against it: differences are B - A.
        resamples: how many times the images are drawn; both results get the same draws.
        seed: of the draws.
        level: of the intervals.

    Raises:
        SayseeError: the two have no stage and direction in common, or a direction has other queries, other images or
            another gallery size.
    """
    rows = [
        row
        for stages in _stage_pairs(a, b)
        for row in _compare_stages(a, b, stages, resamples=resamples, seed=seed, level=level)
    ]
    if not rows:
        raise SayseeError(
            f"the results have no ranking in common: A has {', '.join(r.name for r in a.stages)} and B "
            f"{', '.join(r.name for r in b.stages)}; evaluate both in the same directions"
        )
    keys = [key for key in {**a.about, **b.about} if a.about.get(key) != b.about.get(key)]
    changed = {key: (a.about.get(key), b.about.get(key)) for key in keys}
    return Comparison(changed, tuple(rows), resamples, level)


def to_markdown(comparison: Comparison) -> str:
    """Return what was changed and a table of all differences, readable as plain text too."""
    changed = [[key, printable(a), printable(b)] for key, (a, b) in comparison.changed.items()]
    rows = [
        [
            row.stage_a if row.stage_a == row.stage_b else f"{row.stage_a} of A, {row.stage_b} of B",
            DIRECTION_NAMES[row.direction],
            row.metric,
            format_metric(row.metric, row.value_a),
            format_metric(row.metric, row.value_b),
            _signed(row.metric, row.difference.value),
            f"{_signed(row.metric, row.difference.low)} to {_signed(row.metric, row.difference.high)}",
            f"{row.difference.p_value:.3f}",
            "differs" if row.differs else "no difference shown",
        ]
        for row in comparison.rows
    ]
    interval = f"{comparison.level:.0%} interval"
    parts = [
        "# Comparison",
        markdown_table(["", "A", "B"], changed) if changed else "What is recorded about A and B is the same.",
        markdown_table(["stage", "direction", "metric", "A", "B", "B - A", interval, "p", "verdict"], rows),
        f"R@K in percent, differences in points. Paired percentile bootstrap over pictures, {comparison.resamples} "
        f"resamples, the gallery fixed; p is two-sided.\n`differs`: the {interval} excludes 0. That is about these "
        "pictures and these two models; training either again with another seed moves the values too.",
    ]
    return "\n\n".join(parts) + "\n"


def to_json(comparison: Comparison) -> str:
    """Return the comparison as JSON, each row with its verdict `differs`."""
    record = {
        "changed": comparison.changed,
        "rows": [{**asdict(row), "differs": row.differs} for row in comparison.rows],
        "resamples": comparison.resamples,
        "level": comparison.level,
    }
    return json.dumps(record, indent=2, allow_nan=False) + "\n"


def _stage_pairs(a: Results, b: Results) -> Iterator[tuple[Stage, Stage]]:
    in_a, in_b = ({ranking.stage for ranking in results.stages} for results in (a, b))
    yield from ((stage, stage) for stage in STAGES if stage in in_a & in_b)
    if ("fine" in in_a) != ("fine" in in_b):  # contrast alone beside the whole method: the best that each can do
        yield ("fine" if "fine" in in_a else "coarse", "fine" if "fine" in in_b else "coarse")


def _compare_stages(
    a: Results, b: Results, stages: tuple[Stage, Stage], *, resamples: int, seed: int, level: float
) -> Iterator[ComparisonRow]:
    values_a: dict[str, dict[str, float]] = {}
    values_b: dict[str, dict[str, float]] = {}
    draws: dict[str, dict[str, FloatArray]] = {}
    for direction in DIRECTIONS:
        first, second = a.ranking(stages[0], direction), b.ranking(stages[1], direction)
        if first and second:
            counts = _in_the_order_of(first, second)
            values_a[direction], values_b[direction] = summarize(first.counts), summarize(counts)
            draws[direction] = difference_draws(first.counts, counts, first.clusters, resamples=resamples, seed=seed)

    after, drawn = with_mean(values_b), with_mean(draws)
    for where, before in with_mean(values_a).items():
        for metric, value in before.items():
            difference = difference_of(after[where][metric] - value, drawn[where][metric], level)
            yield ComparisonRow(*stages, where, metric, value, after[where][metric], difference)


def _in_the_order_of(a: StageResult, b: StageResult) -> RankCounts:
    """Return the counts of `b` in the order of the queries of `a`."""
    where = a.direction.replace("_", " ")
    if a.gallery_size != b.gallery_size:
        raise SayseeError(
            f"{where}: A ranks a gallery of {a.gallery_size} and B one of {b.gallery_size}; "
            "evaluate both on the same data"
        )
    only = sorted(set(a.query_ids) ^ set(b.query_ids))
    if only:
        raise SayseeError(
            f"{where}: A has {len(a.query_ids)} queries and B {len(b.query_ids)}, and {len(only)} stand in one alone, "
            f"{printable(only[0])!r} for one; evaluate both on the same data and split"
        )
    position = {query: row for row, query in enumerate(b.query_ids)}
    order = [position[query] for query in a.query_ids]
    for query, image_a, row in zip(a.query_ids, a.clusters, order, strict=True):
        if image_a != b.clusters[row]:
            raise SayseeError(
                f"{where}: query {printable(query)!r} belongs to image {printable(image_a)!r} in A and to "
                f"{printable(b.clusters[row])!r} in B; evaluate both on the same data"
            )
    return b.counts.select(order)


def _signed(metric: str, value: float) -> str:
    text = format_metric(metric, value)
    return text if text.startswith("-") or value == 0 else f"+{text}"
