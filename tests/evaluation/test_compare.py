"""Comparing two results: pairing by query, verdicts, and what cannot be compared."""

import json
from typing import Any

import numpy as np
import pytest

from evaluation_samples import results, seen, spoken
from saysee.errors import SayseeError
from saysee.evaluation.bootstrap import paired_difference
from saysee.evaluation.compare import Comparison, ComparisonRow, compare, to_json, to_markdown
from saysee.evaluation.results import Results, StageResult

GOOD = np.random.default_rng(0).integers(1, 12, 60).tolist()
POOR = [rank + 8 for rank in GOOD]


def both(ranks: list[int], **about: Any) -> Results:
    return results(spoken(ranks), seen(ranks[::2]), **about)


def row_of(comparison: Comparison, direction: str, metric: str) -> ComparisonRow:
    (row,) = [row for row in comparison.rows if (row.direction, row.metric) == (direction, metric)]
    return row


def shuffled(ranking: StageResult) -> StageResult:
    order = np.random.default_rng(1).permutation(len(ranking.query_ids))
    return StageResult(
        ranking.stage,
        ranking.direction,
        ranking.counts.select(order),
        tuple(ranking.query_ids[i] for i in order),
        tuple(ranking.clusters[i] for i in order),
        ranking.gallery_size,
    )


def test_a_row_holds_both_values_and_the_paired_difference() -> None:
    a, b = both(POOR), both(GOOD)
    comparison = compare(a, b, resamples=200, seed=5, level=0.9)
    for ranking_a, ranking_b in zip(a.stages, b.stages, strict=True):
        expected = paired_difference(
            ranking_a.counts, ranking_b.counts, ranking_a.clusters, resamples=200, seed=5, level=0.9
        )
        for metric, difference in expected.items():
            row = row_of(comparison, ranking_a.direction, metric)
            assert row.difference == difference
            assert row.value_a == a.metric(f"{ranking_a.name}/{metric}")
            assert row.value_b == b.metric(f"{ranking_b.name}/{metric}")
            assert row.differs == (difference.low > 0 or difference.high < 0)
    assert row_of(comparison, "speech_to_image", "MRR").differs
    assert (comparison.resamples, comparison.level) == (200, 0.9)


def test_the_mean_of_both_directions_is_compared_too() -> None:
    comparison = compare(both(POOR), both(GOOD))
    rows = {direction: row_of(comparison, direction, "R@10") for direction in ("speech_to_image", "image_to_speech")}
    mean = row_of(comparison, "mean", "R@10")
    assert mean.difference.value == pytest.approx(sum(row.difference.value for row in rows.values()) / 2)
    assert mean.difference.low < mean.difference.value < mean.difference.high
    assert [row.metric for row in comparison.rows if row.direction == "mean"] == ["R@1", "R@5", "R@10"]


def test_a_result_does_not_differ_from_itself_in_another_order() -> None:
    a = both(GOOD)
    b = results(*(shuffled(ranking) for ranking in a.stages))
    assert b.stages[0].counts.above.tolist() != a.stages[0].counts.above.tolist()
    for row in compare(a, b).rows:
        assert (row.difference.low, row.difference.high, row.difference.p_value, row.differs) == (0, 0, 1, False)
        assert row.difference.value == pytest.approx(0, abs=1e-12)


def test_the_order_of_queries_cannot_change_a_difference() -> None:
    a, b = both(POOR), both(GOOD)
    straight = compare(a, b)
    crossed = compare(a, results(*(shuffled(ranking) for ranking in b.stages)))
    for one, other in zip(straight.rows, crossed.rows, strict=True):
        assert one.difference.low == pytest.approx(other.difference.low)
        assert one.difference.value == pytest.approx(other.difference.value)


def test_stages_are_compared_with_their_own_kind() -> None:
    a = results(spoken(POOR), spoken(GOOD, "fine"))
    comparison = compare(a, a)
    assert {(row.stage_a, row.stage_b) for row in comparison.rows} == {("coarse", "coarse"), ("fine", "fine")}
    assert len(comparison.rows) == 2 * 5


def test_a_fine_stage_that_the_other_lacks_meets_its_coarse_one() -> None:
    coarse_only, full = results(spoken(POOR)), results(spoken(POOR), spoken(GOOD, "fine"))
    for a, b, stages in ((coarse_only, full, ("coarse", "fine")), (full, coarse_only, ("fine", "coarse"))):
        rows = compare(a, b).rows
        assert {(row.stage_a, row.stage_b) for row in rows} == {("coarse", "coarse"), stages}
        assert not any(row.differs for row in rows if row.stage_a == row.stage_b)
        gains = [row.difference.value for row in rows if row.stage_a != row.stage_b and row.metric == "R@10"]
        assert gains == [
            pytest.approx(b.metric(f"{stages[1]}/speech_to_image/R@10") - a.metric(f"{stages[0]}/speech_to_image/R@10"))
        ]
    assert "coarse of A, fine of B" in to_markdown(compare(coarse_only, full))


def test_says_differs_only_when_the_interval_excludes_zero() -> None:
    steps = np.random.default_rng(1).integers(-3, 4, 60)
    noisy = [max(1, rank + int(step)) for rank, step in zip(GOOD, steps, strict=True)]
    text = to_markdown(compare(both(GOOD), both(noisy)))
    assert "no difference shown" in text
    table = [line for line in text.splitlines() if line.startswith("| coarse")]
    for row, line in zip(compare(both(GOOD), both(noisy)).rows, table, strict=True):
        assert line.endswith("| differs             |") == row.differs
    clear = to_markdown(compare(both(POOR), both(GOOD)))
    line = next(line for line in clear.splitlines() if "| R@10 " in line and "speech to image" in line)
    assert "| differs" in line
    assert "| +" in line


def test_what_was_changed_is_named() -> None:
    comparison = compare(both(GOOD, model="x", seed=0, rerank=32), both(GOOD, model="x", seed=1, extra="a|b\n"))
    assert comparison.changed == {"seed": (0, 1), "rerank": (32, None), "extra": (None, "a|b\n")}
    text = to_markdown(comparison)
    assert "a\\|b" in text
    assert "model" not in text.split("| stage")[0]
    assert "is the same" in to_markdown(compare(both(GOOD), both(GOOD)))


def test_json_holds_every_row_with_its_verdict() -> None:
    comparison = compare(both(POOR), both(GOOD), resamples=100)
    record = json.loads(to_json(comparison))
    assert record["resamples"] == 100
    assert [row["differs"] for row in record["rows"]] == [row.differs for row in comparison.rows]
    assert record["rows"][0]["difference"]["p_value"] == comparison.rows[0].difference.p_value


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (results(spoken(GOOD, gallery=90)), "A ranks a gallery of 100 and B one of 90"),
        (results(spoken(GOOD[:-2])), "A has 60 queries and B 58, and 2 stand in one alone, 'caption058'"),
        (results(spoken(GOOD, captions=3)), "'caption002' belongs to image 'image001' in A and to 'image000' in B"),
        (results(seen(GOOD)), "no ranking in common: A has coarse/speech_to_image and B coarse/image_to_speech"),
    ],
)
def test_says_what_cannot_be_compared(other: Results, message: str) -> None:
    with pytest.raises(SayseeError, match=message) as caught:
        compare(results(spoken(GOOD)), other)
    assert "\n" not in str(caught.value)
