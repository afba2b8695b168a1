"""What matching can know by SIC alone: the arithmetic of the benchmark, beside counting every case."""

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("lowest_matching_loss")


@pytest.mark.parametrize("drawn", ["hard", "random"])
def test_the_loss_is_that_of_counting_every_match_and_negative(program: ModuleType, drawn: str) -> None:
    for p in np.random.default_rng(1).dirichlet([0.5] * 5, size=20):
        positive, negative = np.zeros(5), np.zeros(5)
        for match in range(5):
            positive[match] += p[match]
            others = [other for other in range(5) if other != match]
            weight = {other: p[other] if drawn == "hard" else 1.0 for other in others}
            for other in others:
                negative[other] += 2 * p[match] * weight[other] / sum(weight.values())
        answer = positive / (positive + negative)
        lost = -(positive * np.log(answer) + negative * np.log(1 - answer)).sum() / 3
        assert getattr(program, drawn)(p[None]) == pytest.approx(lost)


def test_who_knows_nothing_answers_by_the_classes(program: ModuleType) -> None:
    nothing = np.full((1, 64), 1 / 64)
    assert program.hard(nothing) == pytest.approx(program.entropy(1 / 3))
    assert program.random(nothing) == pytest.approx(program.entropy(1 / 3))


@pytest.mark.parametrize("loss", [3.5, 1.0])
def test_scores_are_scaled_to_the_loss_of_sic(program: ModuleType, loss: float) -> None:
    p = program.probabilities(np.random.default_rng(2).normal(size=(100, 64)), loss)
    assert p.sum(1) == pytest.approx(1)
    assert -(p * np.log(p)).sum(1).mean() == pytest.approx(loss, abs=1e-4)
