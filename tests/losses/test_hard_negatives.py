"""Drawn negatives: never of the same image, with the probabilities that are promised, and never a crash."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from saysee.losses.hard_negatives import draw_negatives


def uniform(count: int) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@settings(max_examples=200, deadline=None)
@given(
    same=hnp.arrays(bool, st.tuples(st.integers(1, 6), st.integers(1, 9))),
    scale=st.sampled_from([0.0, 1.0, 1e3]),
    hard=st.booleans(),
    seed=st.integers(0, 2**31),
    number=st.floats(0, 1, exclude_max=True) | st.just(1 - 2**-53),
)
def test_a_drawn_negative_shows_another_image(same: object, scale: float, hard: bool, seed: int, number: float) -> None:
    same_image = torch.as_tensor(same)
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(same_image.shape, generator=generator) * scale
    draws = torch.rand(len(logits), generator=generator, dtype=torch.float64)
    draws[0] = number
    column, valid = draw_negatives(logits, same_image, "hard" if hard else "random", draws)
    assert torch.equal(valid, ~same_image.all(1))
    drawn_same = same_image.gather(1, column[:, None]).squeeze(1)
    assert not (drawn_same & valid).any()


def test_hard_draws_follow_the_softmax_over_valid_candidates() -> None:
    """100,000 draws: each frequency within five standard deviations of its probability."""
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    same = torch.tensor([[False, False, False, True]])
    draws = 100_000
    column, _ = draw_negatives(logits.expand(draws, -1), same.expand(draws, -1), "hard", uniform(draws))
    frequency = torch.bincount(column, minlength=4) / draws
    probability = torch.cat([logits[0, :3].softmax(0), torch.zeros(1)])
    deviation = (probability * (1 - probability) / draws).sqrt()
    assert (abs(frequency - probability) <= 5 * deviation).all()


def test_random_draws_do_not_care_for_the_similarity() -> None:
    logits = torch.tensor([[50.0, 0.0, 0.0, 0.0]])
    same = torch.tensor([[False, False, True, False]])
    draws = 30_000
    column, _ = draw_negatives(logits.expand(draws, -1), same.expand(draws, -1), "random", uniform(draws))
    frequency = torch.bincount(column, minlength=4) / draws
    assert (abs(frequency - torch.tensor([1, 1, 0, 1]) / 3) < 0.015).all()


def test_an_overwhelming_false_negative_is_still_never_drawn() -> None:
    """ALBEF adds 1e-4 after the softmax and relies on it; here the same image is masked before."""
    logits = torch.tensor([[1e4, -1e4]])
    column, valid = draw_negatives(logits, torch.tensor([[True, False]]), "hard", uniform(1))
    assert column.tolist() == [1]
    assert valid.tolist() == [True]


def test_a_draw_inverts_the_cumulative_distribution() -> None:
    """So a row's candidate follows from its own number, whichever rows are drawn with it."""
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()[None].expand(6, -1)
    same = torch.zeros(6, 4, dtype=torch.bool)
    numbers = torch.tensor([0.0, 0.09, 0.11, 0.49, 0.51, 1 - 2**-53], dtype=torch.float64)
    together, _ = draw_negatives(logits, same, "hard", numbers)
    assert together.tolist() == [0, 0, 1, 1, 2, 3]
    alone = [draw_negatives(logits[:1], same[:1], "hard", number[None]).column.item() for number in numbers]
    assert alone == together.tolist()


def test_what_rounding_adds_at_a_false_negative_is_never_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU sums each column in an order of its own: here the sum rises by rounding where the same image stands."""
    exact = Tensor.cumsum

    def rounded(values: Tensor, dim: int) -> Tensor:
        return exact(values, dim) + torch.tensor([0, 1e-15, 0, -1e-15, 0], dtype=torch.float64)

    monkeypatch.setattr(Tensor, "cumsum", rounded)
    same = torch.tensor([[False, True, False, True, False]])
    numbers = torch.tensor([0, 1 / 3, 1 / 3 + 5e-16, 2 / 3 - 5e-16, 2 / 3, 1 - 2**-53], dtype=torch.float64)
    column, _ = draw_negatives(torch.zeros(6, 5), same.expand(6, -1), "hard", numbers)
    assert not same[0, column].any()
