"""Attention weights that are those of the fused kernel; dropout by bytes: rate, scale, gradient, exact eval mode."""

import pytest
import torch

from saysee.models.attention import Attention, Dropout


def test_weights_are_those_with_which_attend_takes_the_values() -> None:
    torch.manual_seed(0)
    attention = Attention(24, heads=3)
    queries = attention.project_queries(torch.randn(2, 6, 24) * 5)
    keys, values = attention.project_keys(torch.randn(2, 9, 24) * 5)
    weights = attention.weights(queries, keys)
    assert weights.shape == (2, 3, 6, 9)
    assert weights.max() > 0.9  # far from uniform, so that a wrong scale would show
    taken = attention.output((weights @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(taken, attention.attend(queries, keys, values), atol=1e-5, rtol=0)


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_every_position_is_dropped_at_the_rate_and_the_mean_stays(probability: float) -> None:
    torch.manual_seed(0)
    dropout = Dropout(probability)
    rate = round(256 * probability) / 256
    draws = dropout(torch.ones(20_000, 16))
    # position modulo 8 is the byte of a random number: its sign bit must be as random as the rest
    dropped = (draws == 0).double().mean(0)
    deviation = (rate * (1 - rate) / 20_000) ** 0.5
    assert (abs(dropped - rate) < 5 * deviation).all()
    torch.testing.assert_close(draws.unique(), torch.tensor([0, 1 / (1 - rate)]))


def test_neighbours_are_independent() -> None:
    torch.manual_seed(1)
    kept = (Dropout(0.5)(torch.ones(200_000)) != 0).double() - 0.5
    for lag in (1, 2, 7, 8, 64):
        assert abs((kept[lag:] * kept[:-lag]).mean().item() * 4) < 5 / 200_000**0.5


def test_the_gradient_passes_where_the_value_does() -> None:
    x = torch.ones(1001, requires_grad=True)
    out = Dropout(0.3)(x)
    out.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, out.detach())


def test_eval_mode_and_probability_zero_return_the_input_itself() -> None:
    x = torch.randn(5)
    assert Dropout(0.3).eval()(x) is x
    assert Dropout(0.0)(x) is x
