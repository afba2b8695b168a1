"""Metrics against enumeration, against values worked by hand, and against trec_eval."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saysee.evaluation.metrics import (
    METRICS,
    RankCounts,
    count_ranks,
    expected_rank,
    recall_at,
    reciprocal_rank,
    summarize,
)

Row = tuple[list[int], list[bool]]


@st.composite
def ranked_rows(draw: st.DrawFn, longest: int = 6) -> Row:
    """Few distinct scores, so that most rows have ties; at least one relevant item."""
    n = draw(st.integers(1, longest))
    scores = draw(st.lists(st.integers(-1, 1), min_size=n, max_size=n))
    relevant = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    relevant[draw(st.integers(0, n - 1))] = True
    return scores, relevant


def counts_of(*rows: Row) -> RankCounts:
    return RankCounts.concatenate([count_ranks(torch.tensor([s]).float(), torch.tensor([r])) for s, r in rows])


def first_ranks(row: Row) -> list[int]:
    """The rank of the first relevant item in every order that ties may take: each permutation breaks them once."""
    scores, relevant = row
    ranks = []
    for shuffled in itertools.permutations(range(len(scores))):
        order = sorted(shuffled, key=lambda item: -scores[item])  # stable: ties keep the shuffled order
        ranks.append(next(place for place, item in enumerate(order, start=1) if relevant[item]))
    return ranks


def mean(values: list[Fraction]) -> float:
    return float(sum(values) / len(values))


@settings(max_examples=80, deadline=None)
@given(ranked_rows(), st.integers(1, 7))
def test_equals_the_mean_over_all_orders_of_ties(row: Row, k: int) -> None:
    ranks, counts = first_ranks(row), counts_of(row)
    assert recall_at(counts, k)[0] == pytest.approx(mean([Fraction(r <= k) for r in ranks]), abs=1e-12)
    assert expected_rank(counts)[0] == pytest.approx(mean([Fraction(r) for r in ranks]), abs=1e-12)
    assert reciprocal_rank(counts)[0] == pytest.approx(mean([Fraction(1, r) for r in ranks]), abs=1e-12)


def test_without_ties_a_metric_is_the_textbook_one() -> None:
    scores = torch.tensor([[0.9, 0.5, 0.1, 0.0], [0.9, 0.5, 0.1, 0.0], [0.9, 0.5, 0.1, 0.0]])
    relevant = torch.eye(4, dtype=torch.bool)[[0, 1, 3]]
    counts = count_ranks(scores, relevant)
    assert expected_rank(counts).tolist() == [1, 2, 4]
    assert reciprocal_rank(counts).tolist() == [1, 1 / 2, 1 / 4]
    assert recall_at(counts, 1).tolist() == [1, 0, 0]
    assert recall_at(counts, 3).tolist() == [1, 1, 0]
    assert summarize(counts) == pytest.approx(
        {"R@1": 1 / 3, "R@5": 1.0, "R@10": 1.0, "median_rank": 2.0, "MRR": 7 / 12}
    )


def test_any_of_several_captions_is_a_hit() -> None:
    # a picture with five captions at ranks 3, 4, 6, 7, 8: the best counts, the others neither help nor hurt
    relevant = torch.tensor([[False, False, True, True, False, True, True, True]])
    counts = count_ranks(torch.arange(8, 0, -1).float()[None], relevant)
    assert expected_rank(counts)[0] == 3
    assert recall_at(counts, 2)[0] == 0
    assert recall_at(counts, 3)[0] == 1


def test_ties_by_hand() -> None:
    # two items above; two relevant among five equal ones: P(hit at 4) = 1 - C(3,2)/C(5,2) = 7/10
    counts = RankCounts(np.array([2]), np.array([3]), np.array([2]))
    assert recall_at(counts, 2)[0] == 0
    assert recall_at(counts, 3)[0] == pytest.approx(2 / 5)
    assert recall_at(counts, 4)[0] == pytest.approx(7 / 10)
    assert recall_at(counts, 6)[0] == 1  # four places, three irrelevant items
    assert expected_rank(counts)[0] == 4  # 2 + (5 + 1) / (2 + 1)
    assert reciprocal_rank(counts)[0] == pytest.approx((4 / 3 + 3 / 4 + 2 / 5 + 1 / 6) / 10)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 49, 1000])
def test_constant_scores_are_at_chance_exactly(n: int) -> None:
    counts = count_ranks(torch.zeros(n, n), torch.eye(n, dtype=torch.bool))
    assert set(recall_at(counts, 1)) == {1 / n}
    assert summarize(counts)["R@10"] == pytest.approx(min(1.0, 10 / n), abs=1e-12)
    assert summarize(counts)["median_rank"] == (n + 1) / 2
    assert summarize(counts)["MRR"] == pytest.approx(sum(1 / rank for rank in range(1, n + 1)) / n)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(0, 30_000), st.integers(1, 60), st.integers(1, 128))
def test_long_ties_stay_exact(above: int, tied: int, relevant_tied: int, k: int) -> None:
    places = max(0, k - above)
    miss = Fraction(math.comb(tied, places), math.comb(tied + relevant_tied, min(places, tied + relevant_tied)))
    counts = RankCounts(np.array([above]), np.array([tied]), np.array([relevant_tied]))
    assert recall_at(counts, k)[0] == pytest.approx(float(1 - miss), rel=1e-11, abs=0)


@settings(max_examples=60, deadline=None)
@given(st.lists(ranked_rows(longest=4), min_size=1, max_size=6))
def test_queries_do_not_influence_each_other(rows: list[Row]) -> None:
    """A row with a long tie beside one without any: the shared loop over places must not leak."""
    together = counts_of(*rows)
    for metric in (expected_rank, reciprocal_rank, lambda counts: recall_at(counts, 2)):
        assert metric(together).tolist() == [metric(counts_of(row))[0] for row in rows]


@pytest.mark.parametrize("size", [1, 3, 10])
def test_chunks_change_nothing(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 5, (10, 30), generator=generator).float()
    relevant = torch.rand(10, 30, generator=generator) < 0.2
    relevant[:, 0] = True
    whole = count_ranks(scores, relevant)
    parts = RankCounts.concatenate(
        [count_ranks(scores[i : i + size], relevant[i : i + size]) for i in range(0, 10, size)]
    )
    for field in ("above", "tied", "relevant_tied"):
        assert getattr(parts, field).tolist() == getattr(whole, field).tolist()
        assert getattr(parts, field).dtype == np.int64
    assert whole.tied.any(), "the case is meant to have ties"


def test_selection_by_mask_and_by_index() -> None:
    counts = RankCounts(np.array([0, 1, 2]), np.array([3, 4, 5]), np.array([1, 2, 3]))
    assert counts.select(np.array([True, False, True])).above.tolist() == [0, 2]
    assert counts.select([2, 0]).tied.tolist() == [5, 3]
    assert len(counts.select([])) == 0


def test_infinite_scores_rank_and_tie() -> None:
    # a re-ranker may put all that it did not score at -inf: those are tied, not lost
    counts = count_ranks(torch.tensor([[1.0, -torch.inf, -torch.inf, -torch.inf]]), torch.eye(4, dtype=torch.bool)[[2]])
    assert (counts.above[0], counts.tied[0], counts.relevant_tied[0]) == (1, 2, 1)


def test_agrees_with_trec_eval() -> None:
    pytrec_eval = pytest.importorskip("pytrec_eval", reason="pytrec_eval-terrier is not installed")
    generator = torch.Generator().manual_seed(1)
    scores = torch.stack(
        [torch.randperm(60, generator=generator) for _ in range(50)]
    ).float()  # no ties: it has no rule
    relevant = torch.rand(50, 60, generator=generator) < 0.05
    relevant[:, 7] = True
    counts = count_ranks(scores, relevant)

    run = {f"q{q}": {f"d{i}": score for i, score in enumerate(row.tolist())} for q, row in enumerate(scores)}
    judged = {f"q{q}": {f"d{i}": int(hit) for i, hit in enumerate(row.tolist())} for q, row in enumerate(relevant)}
    theirs = pytrec_eval.RelevanceEvaluator(judged, {"success", "recip_rank"}).evaluate(run)
    for ours, name in (
        (recall_at(counts, 1), "success_1"),
        (recall_at(counts, 5), "success_5"),
        (recall_at(counts, 10), "success_10"),
        (reciprocal_rank(counts), "recip_rank"),
    ):
        assert ours.tolist() == pytest.approx([theirs[f"q{q}"][name] for q in range(50)], abs=1e-6)


def test_summary_has_the_promised_names_in_order() -> None:
    assert tuple(summarize(counts_of(([1, 0], [True, False])))) == METRICS


@pytest.mark.parametrize(
    ("scores", "relevant", "message"),
    [
        (torch.zeros(3, 2), torch.ones(2, 3, dtype=torch.bool), "shape"),
        (torch.zeros(3), torch.ones(3, dtype=torch.bool), "shape"),
        (torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 2, dtype=torch.bool), "floating point"),
        (torch.zeros(1, 2), torch.ones(1, 2), "bool"),
        (torch.tensor([[0.0, 1.0], [0.0, torch.nan]]), torch.ones(2, 2, dtype=torch.bool), "query 1 .*NaN"),
        (torch.zeros(2, 2), torch.tensor([[True, False], [False, False]]), "query 1 has no relevant"),
        (torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.bool), "query 0 has no relevant"),
    ],
)
def test_refuses_what_cannot_be_ranked(scores: torch.Tensor, relevant: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        count_ranks(scores, relevant)


def test_refuses_impossible_counts_and_cutoffs() -> None:
    one, zero = np.array([1]), np.array([0])
    with pytest.raises(ValueError, match="relevant_tied 1 or more"):
        RankCounts(zero, zero, zero)
    with pytest.raises(ValueError, match="one shape"):
        RankCounts(zero, np.array([0, 0]), one)
    with pytest.raises(ValueError, match="received 0"):
        recall_at(RankCounts(zero, zero, one), 0)
    with pytest.raises(ValueError, match="no queries"):
        summarize(count_ranks(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.bool)))
