"""How far a metric would move with other pictures: percentile bootstrap over images, the gallery fixed.

The captions of one image are no independent evidence, so whole images are drawn (the cluster bootstrap, Field and Welsh
2007). C clusters (images), Q queries, R resamples: a resample gives every cluster a weight, multinomial with mean 1,
and a metric becomes the weighted mean over its queries. The gallery stays whole: the intervals hold for this gallery
and its size, not for another.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from saysee.evaluation.metrics import (
    METRICS,
    RECALLS,
    FloatArray,
    IntArray,
    RankCounts,
    expected_rank,
    recall_at,
    reciprocal_rank,
    summarize,
)

RESAMPLES = 1000  # ours; the ends of a 95 % interval are then the 25th draw from either side
LEVEL = 0.95
_BLOCK = 4_000_000  # weights held at once: 32 MB in float64

Draws = dict[str, FloatArray]
"""A metric's values (R,) by its name."""


@dataclass(frozen=True)
class Interval:
    """A value and the interval around it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """A difference, its interval and its two-sided p."""

    value: float
    low: float
    high: float
    p_value: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies wholly on one side of zero."""
        return self.low > 0 or self.high < 0


def metric_draws(counts: RankCounts, cluster: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0) -> Draws:
    """Return each of `METRICS` in each resample.

    The weights depend on `seed` and on the number of clusters alone and go to the clusters in sorted order: draws over
    the same images are paired, so those of two directions, or of two models, may be averaged or subtracted.

    Args:
        counts: of Q queries.
        cluster: the image id of each query, Q of them.
        resamples: R.
        seed: of the weights.

    Raises:
        ValueError: no queries, no resamples, or `cluster` has another length than `counts`.
    """
    return _draws(_mean_values(counts), [expected_rank(counts)], cluster, resamples, seed)


def difference_draws(
    counts_a: RankCounts, counts_b: RankCounts, cluster: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0
) -> Draws:
    """Return b - a of each of `METRICS` in each resample; row i of both is the same query.

    Raises:
        ValueError: as `metric_draws`, or the two have different numbers of queries.
    """
    if len(counts_a) != len(counts_b):
        raise ValueError(f"paired counts must have the same queries; received {len(counts_a)} and {len(counts_b)}")
    # Subtracted query by query, before any sum: where two models agree the difference is 0 and not a rounding error.
    means = _mean_values(counts_b) - _mean_values(counts_a)
    return _draws(means, [expected_rank(counts_b), expected_rank(counts_a)], cluster, resamples, seed)


def bootstrap_intervals(
    counts: RankCounts, cluster: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> dict[str, Interval]:
    """Return each of `METRICS` with the interval between the (1 - level)/2 quantiles of its draws.

    With very few images, or a recall of exactly 0 or 1, such an interval is too narrow (it may have no width at all).
    """
    draws = metric_draws(counts, cluster, resamples=resamples, seed=seed)
    return {name: interval_of(value, draws[name], level) for name, value in summarize(counts).items()}


def paired_difference(
    counts_a: RankCounts,
    counts_b: RankCounts,
    cluster: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> dict[str, Difference]:
    """Return b - a of each of `METRICS`: what the second gains over the first on the same queries.

    Both sides get the same weights in each resample, so what is hard for both cancels. The p-value is
    2 min(P(draw <= 0), P(draw >= 0)), at most 1, where each P counts one draw more than there are: (1 + n) / (1 + R).
    It is therefore never below 2 / (1 + R), and it is 1 when the two never differ.
    """
    draws = difference_draws(counts_a, counts_b, cluster, resamples=resamples, seed=seed)
    before, after = summarize(counts_a), summarize(counts_b)
    return {name: difference_of(after[name] - before[name], draws[name], level) for name in METRICS}


def interval_of(value: float, draws: FloatArray, level: float) -> Interval:
    """Return the percentile interval of `draws` (R,) around `value`.

    Raises:
        ValueError: `level` is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"the level of an interval lies between 0 and 1; received {level}")
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def difference_of(value: float, draws: FloatArray, level: float) -> Difference:
    """Return the percentile interval and the two-sided p of `draws` (R,) of a difference."""
    interval = interval_of(value, draws, level)
    tail = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    return Difference(value, interval.low, interval.high, min(1.0, 2 * (1 + tail) / (1 + len(draws))))


def _mean_values(counts: RankCounts) -> FloatArray:
    """Return what the mean metrics are means of, (Q, 4): the recalls, then MRR."""
    return np.stack([*(recall_at(counts, k) for k in RECALLS.values()), reciprocal_rank(counts)], axis=1)


def _draws(
    means: FloatArray, medians: Sequence[FloatArray], cluster: Sequence[str], resamples: int, seed: int
) -> Draws:
    """Return the draws of the mean metrics and of the median: that of the first of `medians`, less that of a second."""
    if len(cluster) != len(means):
        raise ValueError(f"there are {len(means)} queries and {len(cluster)} cluster names")
    if len(means) == 0 or resamples < 1:
        raise ValueError(f"a bootstrap needs a query and a resample; received {len(means)} and {resamples}")
    names, member = np.unique(np.asarray(cluster, dtype=np.str_), return_inverse=True)
    sums = np.stack([np.bincount(member, weights=column) for column in means.T], axis=1)  # (C, 4)
    sizes = np.bincount(member)

    blocks = []
    for weights in _weights(len(names), resamples, seed, width=len(means)):
        mean = (weights @ sums) / (weights @ sizes)[:, None]
        median = [_weighted_median(ranks, weights, member) for ranks in medians]
        blocks.append(np.column_stack([mean, median[0] - sum(median[1:])]))
    return dict(zip((*RECALLS, "MRR", "median_rank"), np.concatenate(blocks).T, strict=True))


def _weights(clusters: int, resamples: int, seed: int, width: int) -> Iterator[IntArray]:
    """Yield how often each cluster is drawn, (r, C), in blocks whose r * `width` numbers fit in memory."""
    generator = np.random.default_rng(seed)
    share = np.full(clusters, 1 / clusters)
    step = max(1, _BLOCK // max(clusters, width))
    for start in range(0, resamples, step):
        yield generator.multinomial(clusters, share, size=min(step, resamples - start))


def _weighted_median(ranks: FloatArray, weights: IntArray, member: IntArray) -> FloatArray:
    """Return the median (r,) of `ranks` (Q,), each repeated as often as its cluster was drawn in `weights` (r, C)."""
    order = np.argsort(ranks, kind="stable")
    seen = np.cumsum(weights[:, member[order]], axis=1)  # (r, Q): how many of the draw lie at or below each rank
    total = seen[:, -1:]
    lower = (seen <= (total - 1) // 2).sum(axis=1)
    upper = (seen <= total // 2).sum(axis=1)
    middle: FloatArray = (ranks[order][lower] + ranks[order][upper]) / 2
    return middle
