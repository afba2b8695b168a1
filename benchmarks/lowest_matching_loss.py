"""How low the loss of matching can go by what SIC knows: arithmetic, nothing is trained.

    python benchmarks/lowest_matching_loss.py

SIC gives each of n candidates a probability; say that it is right about them, so that candidate j is the match with
probability p_j. The positive of SIM is then drawn from p, and a hard negative too, of those that are not the match:
little tells them apart, and nothing where all p_j are small. For candidate c the odds are

    positive : hard negative    1 : sum over j != c of p_j / (1 - p_j)
    positive : random negative  p_c : (1 - p_c) / (n - 1)

and with one positive to two negatives the best that can be answered by p has the cross-entropy that is printed, beside
the 0.637 of always answering by the classes' frequencies. Below it SIM comes only by knowing what SIC does not. The
scores behind p are normal draws, scaled so that SIC's own loss (the entropy of p) is that of the first column.
"""

import argparse

import numpy as np
import numpy.typing as npt

from record import keep
from saysee.evaluation.report import markdown_table

CANDIDATES, ANCHORS, SEED = 64, 4_000, 0
NEGATIVES = 2  # of each positive
SIC = (4.0, 3.5, 3.0, 2.5, 2.0, 1.5, 1.0)

FloatArray = npt.NDArray[np.float64]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    scores = np.random.default_rng(SEED).normal(size=(ANCHORS, CANDIDATES))
    rows = []
    for loss in SIC:
        p = probabilities(scores, loss)
        rows.append({"sic": loss, "hard": round(hard(p), 3), "random": round(random(p), 3)})
    print(markdown_table(list(rows[0]), [[str(value) for value in row.values()] for row in rows]))
    keep(
        "lowest_matching_loss",
        data="none",
        seed=SEED,
        figures={"candidates": CANDIDATES, "negatives": NEGATIVES, "frequencies": round(entropy(1 / 3), 3), "by": rows},
    )


def probabilities(scores: FloatArray, loss: float) -> FloatArray:
    """Return the softmax of scores (A, n), scaled so that its mean entropy is `loss`, in nats."""
    low, high = 0.0, 50.0
    while high - low > 1e-6:
        scale = (low + high) / 2
        low, high = (scale, high) if _softmax_entropy(scores * scale) > loss else (low, scale)
    return _softmax(scores * low)


def hard(p: FloatArray) -> float:
    """Return the lowest loss with negatives drawn from p (A, n) but for the match."""
    odds = p / (1 - p)
    others = odds.sum(1, keepdims=True) - odds
    return _cross_entropy(p, NEGATIVES * p * others)


def random(p: FloatArray) -> float:
    """Return the lowest loss with negatives drawn evenly from all but the match; p has shape (A, n)."""
    return _cross_entropy(p, NEGATIVES * (1 - p) / (p.shape[1] - 1))


def entropy(share: float) -> float:
    """Return the entropy of two classes, in nats."""
    return float(-share * np.log(share) - (1 - share) * np.log(1 - share))


def _cross_entropy(positive: FloatArray, negative: FloatArray) -> float:
    """Return the loss of the best answer, where a candidate is a positive and a negative that often (A, n)."""
    both = positive + negative
    lost = positive * np.log(both / positive) + negative * np.log(both / negative)
    return float(lost.sum(1).mean() / (1 + NEGATIVES))


def _softmax(scores: FloatArray) -> FloatArray:
    exponentials = np.exp(scores - scores.max(1, keepdims=True))
    shares: FloatArray = exponentials / exponentials.sum(1, keepdims=True)
    return shares


def _softmax_entropy(scores: FloatArray) -> float:
    p = _softmax(scores)
    return float(-(p * np.log(np.maximum(p, 1e-300))).sum(1).mean())


if __name__ == "__main__":
    main()
