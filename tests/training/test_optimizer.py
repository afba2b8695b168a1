"""AdamW's groups and the learning rate's schedule, against their closed forms."""

import itertools
import math
from dataclasses import replace
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from saysee.config import TrainingConfig
from saysee.training.optimizer import build_optimizer, learning_rate
from stubs import small_model

CONFIG = TrainingConfig(steps=101, warmup_steps=20, learning_rate=8e-4, final_learning_rate=2e-4)


def test_matrices_decay_and_vectors_and_scalars_do_not() -> None:
    """A step with gradients of zero leaves decay alone: matrices shrink by 1 - rate x decay, the rest stays."""
    model = small_model()
    optimizer = build_optimizer(model, replace(CONFIG, weight_decay=0.5, learning_rate=0.1))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    kinds = set()
    for name, parameter in model.named_parameters():
        decays = parameter.ndim >= 2 and "backbone" not in name
        kinds.add((decays, parameter.ndim))
        torch.testing.assert_close(parameter.detach(), before[name] * (0.95 if decays else 1.0), msg=name)
    assert {(True, 2), (False, 1), (False, 0), (False, 2)} <= kinds


def test_everything_trainable_is_in_one_group_and_the_frozen_backbones_in_none() -> None:
    model = small_model()
    held = [id(parameter) for group in build_optimizer(model, CONFIG).param_groups for parameter in group["params"]]
    trainable = {id(p) for name, p in model.named_parameters() if not name.startswith(("speech_back", "image_back"))}
    assert len(held) == len(set(held))
    assert set(held) == trainable
    fixed = small_model(learn_temperature=False)
    held = [id(parameter) for group in build_optimizer(fixed, CONFIG).param_groups for parameter in group["params"]]
    assert id(fixed.temperature) not in held


def test_the_first_step_is_adams() -> None:
    """Kingma and Ba 2015: corrected for bias, the moments' ratio is then the gradient's sign, times the rate."""
    layer = nn.Linear(3, 2)
    optimizer = build_optimizer(layer, replace(CONFIG, weight_decay=0.0, betas=(0.7, 0.8)))
    assert [group["betas"] for group in optimizer.param_groups] == [(0.7, 0.8)] * 2
    before = layer.weight.detach().clone()
    layer(torch.tensor([[1.0, -2.0, 3.0]])).sum().backward()
    optimizer.step()
    expected = before - CONFIG.learning_rate * torch.tensor([[1.0, -1.0, 1.0]] * 2)
    torch.testing.assert_close(layer.weight.detach(), expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_rate_rises_to_the_peak_and_ends_where_it_shall(schedule: Literal["cosine", "linear"]) -> None:
    config = replace(CONFIG, schedule=schedule)
    assert learning_rate(config, 0) == pytest.approx(8e-4 / 20)
    assert learning_rate(config, 9) == pytest.approx(4e-4)
    assert learning_rate(config, 19) == pytest.approx(8e-4)  # the end of the warm-up
    assert learning_rate(config, 20) == pytest.approx(8e-4)  # the beginning of the decay
    assert learning_rate(config, 60) == pytest.approx(5e-4)  # half-way from 20 to 100: the middle of 8 and 2
    assert learning_rate(config, 100) == pytest.approx(2e-4, abs=1e-12)  # the last step


def test_a_quarter_of_the_way_tells_cosine_from_linear() -> None:
    assert learning_rate(CONFIG, 40) == pytest.approx(2e-4 + 6e-4 * (1 + math.sqrt(0.5)) / 2)
    assert learning_rate(replace(CONFIG, schedule="linear"), 40) == pytest.approx(2e-4 + 6e-4 * 0.75)


@pytest.mark.parametrize(
    ("steps", "warmup_steps", "expected"),
    [
        (1, 0, [8e-4]),
        (2, 0, [8e-4, 2e-4]),
        (3, 1, [8e-4, 8e-4, 2e-4]),
        (3, 3, [8e-4 / 3, 16e-4 / 3, 8e-4]),
        (2, 4, [2e-4, 4e-4]),  # killed by its own length, the warm-up is not shortened
    ],
)
def test_runs_of_a_few_steps(steps: int, warmup_steps: int, expected: list[float]) -> None:
    config = replace(CONFIG, steps=steps, warmup_steps=warmup_steps)
    assert [learning_rate(config, step) for step in range(steps)] == pytest.approx(expected)


@given(
    st.integers(1, 400),
    st.integers(0, 500),
    st.sampled_from(["cosine", "linear"]),
    st.floats(1e-6, 1.0),
    st.floats(0, 1.0),
)
def test_the_rate_rises_then_falls_and_keeps_its_bounds(
    steps: int, warmup_steps: int, schedule: Literal["cosine", "linear"], peak: float, share: float
) -> None:
    config = TrainingConfig(
        steps=steps,
        warmup_steps=warmup_steps,
        schedule=schedule,
        learning_rate=peak,
        final_learning_rate=peak * share,
    )
    rates = [learning_rate(config, step) for step in range(steps)]
    assert all(0 < rate <= peak * (1 + 1e-9) for rate in rates[:warmup_steps])
    assert all(peak * share * (1 - 1e-9) <= rate <= peak * (1 + 1e-9) for rate in rates[warmup_steps:])
    warm, cold = rates[:warmup_steps], rates[warmup_steps:]
    assert warm == sorted(warm)
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(cold))
