"""The bootstrap against a loop that redraws queries one by one, against theory, and for its coverage."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation_samples import ranked
from saysee.evaluation import bootstrap
from saysee.evaluation.bootstrap import (
    Difference,
    bootstrap_intervals,
    difference_of,
    interval_of,
    metric_draws,
    paired_difference,
)
from saysee.evaluation.metrics import METRICS, RankCounts, summarize


def hits(successes: npt.ArrayLike) -> RankCounts:
    return ranked(np.where(np.asarray(successes, dtype=bool), 1, 100))


def one_each(counts: RankCounts) -> list[str]:
    return [f"image{i:04}" for i in range(len(counts))]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 4)), min_size=1, max_size=12), st.integers(0, 5))
def test_equals_redrawing_the_queries(rows: list[tuple[int, int]], seed: int) -> None:
    """A resample is the metrics of a list in which each query stands as often as its image was drawn."""
    counts, cluster = ranked([rank for rank, _ in rows]), [f"image{c}" for _, c in rows]
    draws = metric_draws(counts, cluster, resamples=5, seed=seed)

    images = sorted(set(cluster))
    generator = np.random.default_rng(seed)
    for resample in range(5):
        times = dict(zip(images, generator.multinomial(len(images), [1 / len(images)] * len(images)), strict=True))
        drawn = [query for query, image in enumerate(cluster) for _ in range(times[image])]
        expected = summarize(counts.select(drawn))
        assert {name: draws[name][resample] for name in METRICS} == pytest.approx(expected, abs=1e-12)


def test_blocks_of_resamples_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = ranked([1, 2, 30, 4, 5, 1])
    whole = metric_draws(counts, list("aabbcc"), resamples=11, seed=3)
    monkeypatch.setattr(bootstrap, "_BLOCK", 12)  # two resamples at a time
    parts = metric_draws(counts, list("aabbcc"), resamples=11, seed=3)
    for name in METRICS:
        assert parts[name].tolist() == whole[name].tolist()


def test_the_width_is_that_of_the_binomial() -> None:
    # 400 independent queries at R@1 = 0.3: the standard error is sqrt(0.3 * 0.7 / 400) = 0.0229
    counts = hits([True] * 120 + [False] * 280)
    interval = bootstrap_intervals(counts, one_each(counts), resamples=4000)["R@1"]
    assert interval.value == pytest.approx(0.3)
    expected = 1.96 * np.sqrt(0.3 * 0.7 / 400)
    assert interval.high - interval.value == pytest.approx(expected, rel=0.1)
    assert interval.value - interval.low == pytest.approx(expected, rel=0.1)


def test_captions_that_all_agree_are_one_piece_of_evidence() -> None:
    # five captions an image that all hit or all miss: the interval of 60 images, sqrt(5) wider than that of 300
    success = np.repeat(np.arange(60) % 3 == 0, 5)
    images = [f"image{i // 5}" for i in range(300)]
    together = bootstrap_intervals(hits(success), images, resamples=4000)["R@1"]
    apart = bootstrap_intervals(hits(success), one_each(hits(success)), resamples=4000)["R@1"]
    assert together.value == apart.value
    assert (together.high - together.low) / (apart.high - apart.low) == pytest.approx(np.sqrt(5), rel=0.1)


def test_covers_the_truth_as_often_as_it_says() -> None:
    """300 test sets from a known world: hit rates differ by image (uniform), so captions of an image are correlated."""
    generator = np.random.default_rng(7)
    trials, images, captions, truth = 300, 100, 5, 0.5
    covered = clustered = 0
    for trial in range(trials):
        rate = generator.uniform(0.0, 2 * truth, size=images).repeat(captions)
        counts = hits(generator.random(images * captions) < rate)
        by_image = np.arange(images).repeat(captions).astype(str).tolist()
        inner = bootstrap_intervals(counts, by_image, resamples=300, seed=trial)["R@1"]
        covered += inner.low <= truth <= inner.high
        naive = bootstrap_intervals(counts, one_each(counts), resamples=300, seed=trial)["R@1"]
        clustered += naive.low <= truth <= naive.high
    # 95 % of 300 with a standard error of 1.3 points; percentile intervals are known to fall a little short
    assert 0.91 <= covered / trials <= 0.98
    assert clustered / trials < 0.90, "without clusters the interval is too narrow: the test can tell"


def test_a_level_is_the_share_of_draws_inside() -> None:
    draws = np.arange(1001.0)
    wide, narrow = interval_of(500.0, draws, 0.95), interval_of(500.0, draws, 0.5)
    assert (wide.value, wide.low, wide.high) == pytest.approx((500, 25, 975))
    assert (narrow.value, narrow.low, narrow.high) == pytest.approx((500, 250, 750))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 5), st.integers(1, 3)), min_size=1, max_size=30))
def test_a_model_does_not_differ_from_itself(rows: list[tuple[int, int, int]]) -> None:
    counts = RankCounts(*(np.array(column) for column in zip(*rows, strict=True)))
    cluster = [f"image{i // 2}" for i in range(len(rows))]
    for difference in paired_difference(counts, counts, cluster, resamples=50).values():
        assert difference == Difference(0.0, 0.0, 0.0, 1.0)
        assert not difference.excludes_zero


def test_a_difference_has_the_sign_of_what_the_second_gains() -> None:
    worse, better = ranked([2, 2, 20, 1] * 20), ranked([1, 1, 3, 1] * 20)
    found = paired_difference(worse, better, one_each(worse))
    assert found["R@1"].value == pytest.approx(0.5)
    assert found["R@10"].value == pytest.approx(0.25)
    assert found["median_rank"].value == -1  # a lower rank is better
    for metric in METRICS:
        assert found[metric].low <= found[metric].value <= found[metric].high
    assert found["R@1"].low > 0
    assert found["R@1"].p_value == pytest.approx(2 / 1001)  # no draw at or below 0
    swapped = paired_difference(better, worse, one_each(worse))
    assert swapped["MRR"].value == -found["MRR"].value
    assert (swapped["R@1"].low, swapped["R@1"].high) == pytest.approx((-found["R@1"].high, -found["R@1"].low))


def test_pairing_cancels_what_is_hard_for_both() -> None:
    # both miss the same half; the second wins 5 % of the queries and loses none, far inside either one's own interval
    first = np.arange(200) % 2 == 0
    second = first.copy()
    second[1:20:2] = True
    found = paired_difference(hits(first), hits(second), one_each(hits(first)))["R@1"]
    own = bootstrap_intervals(hits(first), one_each(hits(first)))["R@1"]
    assert found.value == pytest.approx(0.05)
    assert found.excludes_zero
    assert found.value < own.high - own.value


def test_p_is_uniform_when_nothing_differs() -> None:
    """Two models of equal skill: p < 0.05 in about one comparison of twenty, and the interval agrees with p."""
    generator = np.random.default_rng(3)
    small = outside = 0
    for trial in range(300):
        first, second = generator.random((2, 150)) < 0.4
        found = paired_difference(hits(first), hits(second), one_each(hits(first)), resamples=300, seed=trial)["R@1"]
        small += found.p_value < 0.05
        outside += found.excludes_zero
    assert 0.02 <= small / 300 <= 0.09
    assert 0.02 <= outside / 300 <= 0.09


def test_p_counts_draws_on_the_other_side() -> None:
    draws = np.array([-1.0] * 3 + [0.0] + [1.0] * 95)
    assert difference_of(0.5, draws, 0.95).p_value == pytest.approx(2 * (1 + 4) / 100)


def test_refuses_what_has_no_pairs_or_no_spread() -> None:
    counts = ranked([1, 2])
    with pytest.raises(ValueError, match="2 queries and 1 cluster"):
        metric_draws(counts, ["a"])
    with pytest.raises(ValueError, match="received 2 and 1"):
        paired_difference(counts, ranked([1]), ["a", "b"])
    with pytest.raises(ValueError, match="needs a query"):
        metric_draws(counts.select([]), [])
    with pytest.raises(ValueError, match="a resample"):
        metric_draws(counts, ["a", "b"], resamples=0)
    with pytest.raises(ValueError, match="between 0 and 1"):
        bootstrap_intervals(counts, ["a", "b"], level=95)
