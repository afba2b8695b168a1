"""Retrieval metrics as pure functions, with ties counted at chance.

Q queries rank N items. A query may have several relevant items (the five captions of a picture) and counts as a hit
at K when *any* of them stands in the first K. Items with equal scores stand in random order, and every metric is the
exact expectation over those orders: a model that gives all items one score has R@1 = 1/N, not 1.

Only three counts a query are needed for that, `RankCounts`, so a matrix of scores may be visited in chunks of any size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

RECALLS = {"R@1": 1, "R@5": 5, "R@10": 10}
METRICS = (*RECALLS, "median_rank", "MRR")


@dataclass(frozen=True, eq=False)
class RankCounts:
    """Where the best relevant item of each query stands; all metrics follow from it.

    Attributes:
        above: (Q,) items that score strictly higher than the best relevant item. All of them are irrelevant.
        tied: (Q,) irrelevant items with exactly its score.
        relevant_tied: (Q,) relevant items with exactly its score, itself included: 1 or more.

    Raises:
        ValueError: the three differ in length or are not one-dimensional, or a count is impossible.
    """

    above: IntArray
    tied: IntArray
    relevant_tied: IntArray

    def __post_init__(self) -> None:
        if self.above.ndim != 1 or not self.above.shape == self.tied.shape == self.relevant_tied.shape:
            raise ValueError(
                "above, tied and relevant_tied must have one shape (Q,); received "
                f"{self.above.shape}, {self.tied.shape}, {self.relevant_tied.shape}"
            )
        if (self.above < 0).any() or (self.tied < 0).any() or (self.relevant_tied < 1).any():
            raise ValueError("above and tied must be 0 or more, and relevant_tied 1 or more, for every query")

    def __len__(self) -> int:
        return len(self.above)

    def select(self, rows: npt.NDArray[Any] | Sequence[int]) -> "RankCounts":
        """Return the queries that `rows` names: a boolean mask (Q,), or indices, which may reorder and repeat."""
        index = np.asarray(rows)
        if index.dtype != np.bool_:  # an empty list would be an array of floats
            index = index.astype(np.int64)
        return RankCounts(self.above[index], self.tied[index], self.relevant_tied[index])

    @staticmethod
    def concatenate(chunks: Sequence["RankCounts"]) -> "RankCounts":
        """Return the queries of all chunks, in the order of the chunks.

        Raises:
            ValueError: there is no chunk.
        """
        return RankCounts(
            np.concatenate([chunk.above for chunk in chunks]),
            np.concatenate([chunk.tied for chunk in chunks]),
            np.concatenate([chunk.relevant_tied for chunk in chunks]),
        )


def count_ranks(scores: Tensor, relevant: Tensor) -> RankCounts:
    """Count what stands above and beside the best relevant item of each query.

    Args:
        scores: (Q, N) floating point, higher is better, on any device. Infinities are scores like any other.
        relevant: (Q, N) bool, True where the item answers the query.

    Returns:
        The counts of the Q queries.

    Raises:
        ValueError: wrong shapes or types, a NaN (which would rank in silence), or a query with no relevant item.
    """
    if scores.ndim != 2 or scores.shape != relevant.shape:
        raise ValueError(
            f"scores and relevant must have one shape (Q, N); received {tuple(scores.shape)}, {tuple(relevant.shape)}"
        )
    if not scores.is_floating_point() or relevant.dtype != torch.bool:
        raise ValueError(f"scores must be floating point and relevant bool; received {scores.dtype}, {relevant.dtype}")
    not_numbers = scores.isnan().any(dim=1)
    if not_numbers.any():
        raise ValueError(f"the scores of query {_first(not_numbers)} hold NaN, which has no rank")
    unanswerable = ~relevant.any(dim=1)
    if unanswerable.any():
        raise ValueError(f"query {_first(unanswerable)} has no relevant item; leave such queries out")
    if len(scores) == 0:
        return RankCounts(*(np.zeros(0, dtype=np.int64) for _ in range(3)))

    best = scores.masked_fill(~relevant, -torch.inf).amax(dim=1, keepdim=True)
    equal = scores == best
    return RankCounts(
        above=_row_counts(scores > best),
        tied=_row_counts(equal & ~relevant),
        relevant_tied=_row_counts(equal & relevant),
    )


def recall_at(counts: RankCounts, k: int) -> FloatArray:
    """Return the probability (Q,) that a relevant item stands in the first `k`.

    With m = k - above places left for the tied items it is 1 - C(tied, m) / C(tied + relevant_tied, m). That is summed
    here as the chance that the first relevant item takes the first, the second, ... of those places: only positive
    terms, so nothing cancels, and one relevant item among N equal scores gives exactly 1/N at k = 1.

    Raises:
        ValueError: `k` is below 1.
    """
    if k < 1:
        raise ValueError(f"recall is taken at k of 1 or more; received {k}")
    places = k - counts.above
    hit = np.zeros(len(counts))
    for place, probability in enumerate(_first_relevant_place(counts, last=k)):
        hit += np.where(place < places, probability, 0.0)
    # more places than irrelevant items to fill them: certain, whatever the sum has been rounded to
    return np.where(places > counts.tied, 1.0, np.minimum(hit, 1.0))


def expected_rank(counts: RankCounts) -> FloatArray:
    """Return the mean rank (Q,) of the first relevant item; ranks count from 1.

    The first of r items among n = tied + relevant_tied places in random order stands at (n + 1) / (r + 1) on average.
    """
    return counts.above + (counts.tied + counts.relevant_tied + 1) / (counts.relevant_tied + 1)


def reciprocal_rank(counts: RankCounts) -> FloatArray:
    """Return the mean (Q,) of 1/rank of the first relevant item: not 1/`expected_rank`, which is smaller."""
    mean = 1.0 / (counts.above + 1)
    uncertain = counts.tied > 0  # few, with real scores; the sum is as long as the longest tie
    some = counts.select(uncertain)
    total = np.zeros(len(some))
    for place, probability in enumerate(_first_relevant_place(some, last=int(some.tied.max(initial=0)) + 1)):
        total += probability / (some.above + 1 + place)
    mean[uncertain] = total
    return mean


def summarize(counts: RankCounts) -> dict[str, float]:
    """Return every one of `METRICS` over all queries.

    Recalls and the mean reciprocal rank (MRR) lie in [0, 1]; `median_rank` is the median of the expected ranks.

    Raises:
        ValueError: there is no query, so there is no mean.
    """
    if len(counts) == 0:
        raise ValueError("metrics of no queries are not defined")
    return {
        **{name: float(recall_at(counts, k).mean()) for name, k in RECALLS.items()},
        "median_rank": float(np.median(expected_rank(counts))),
        "MRR": float(reciprocal_rank(counts).mean()),
    }


def _first_relevant_place(counts: RankCounts, last: int) -> Iterator[FloatArray]:
    """Yield, for places 0, 1, ... below `last` among the tied items, the chance (Q,) that the first relevant is there.

    That is drawing without replacement: only irrelevant items so far, and now one of `relevant_tied` of those left.
    """
    none_yet = np.ones(len(counts))
    for place in range(min(last, int(counts.tied.max(initial=0)) + 1)):
        left = np.maximum(counts.tied + counts.relevant_tied - place, 1)
        yield none_yet * (counts.relevant_tied / left)
        none_yet = none_yet * (np.maximum(counts.tied - place, 0) / left)


def _row_counts(mask: Tensor) -> IntArray:
    return mask.sum(dim=1).cpu().numpy().astype(np.int64)


def _first(mask: Tensor) -> int:
    return int(mask.nonzero()[0, 0])
