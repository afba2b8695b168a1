"""The ablation's switches."""

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saysee.config import Config, LossConfig, TrainingConfig
from saysee.errors import SayseeError
from saysee.evaluation.ablation import ROWS, config_of, require_rows

SWITCHES = {"queue_size", "image_negatives_from", "distillation_alpha", "matching", "matching_loss", "negatives"}

recipes = st.builds(
    lambda loss, training: Config(loss=loss, training=training),
    st.builds(
        lambda form, **values: LossConfig(**form, **values),
        st.sampled_from([{"matching_loss": "list"}, {"image_negatives_from": "queue"}, {}]),
        queue_size=st.integers(1, 70_000),
        momentum=st.floats(0, 0.999),
        distillation_alpha=st.floats(0.01, 1),
        distillation_ramp_steps=st.integers(0, 1000),
        same_image=st.sampled_from(["positives", "excluded"]),
        negatives_from_all_ranks=st.booleans(),
    ),
    st.builds(
        TrainingConfig,
        steps=st.integers(1, 10_000),
        learning_rate=st.floats(1e-6, 1),
        seed=st.integers(0, 99),
        one_caption_per_image=st.booleans(),
    ),
)


@given(config=recipes, row=st.sampled_from(list(ROWS)), seed=st.integers(0, 1000))
def test_all_but_the_switches_and_the_seed_is_the_recipes_own(config: Config, row: str, seed: int) -> None:
    switched = config_of(config, row, seed)
    assert switched.training == replace(config.training, seed=seed)
    assert (switched.model, switched.search) == (config.model, config.search)
    for name in (field.name for field in fields(LossConfig) if field.name not in SWITCHES):
        assert getattr(switched.loss, name) == getattr(config.loss, name), name


@given(config=recipes)
def test_each_row_has_its_own_parts_and_no_other(config: Config) -> None:
    queue, alpha = config.loss.queue_size, config.loss.distillation_alpha
    expected: dict[str, tuple[Any, ...]] = {
        "contrast": (0, 0, False),
        "queue": (queue, 0, False),
        "distillation": (0, alpha, False),
        "matching-random": (0, 0, True, "random", "binary"),
        "matching-hard": (0, 0, True, "hard", "binary"),
        "all": (queue, alpha, True, "hard", config.loss.matching_loss),
    }
    assert list(ROWS) == list(expected)
    for row, parts in expected.items():
        loss = config_of(config, row, 0).loss
        there = (loss.queue_size, loss.distillation_alpha, loss.matching, loss.negatives, loss.matching_loss)
        assert there[: len(parts)] == parts, row
    assert config_of(config, "all", config.training.seed) == config


@pytest.mark.parametrize(
    "change", [{"queue_size": 0}, {"distillation_alpha": 0.0}, {"matching": False}, {"negatives": "random"}]
)
@pytest.mark.parametrize("row", ["contrast", "all"])
def test_a_recipe_that_lacks_a_part_is_refused(change: dict[str, Any], row: str) -> None:
    ((name, value),) = change.items()
    config = Config(loss=LossConfig(**change))
    with pytest.raises(
        SayseeError, match=rf"^loss\.{name} is {value}; an ablation starts from a recipe with all parts"
    ):
        config_of(config, row, 0)


def test_a_model_is_not_chosen_by_a_stage_that_some_rows_lack() -> None:
    config = Config(training=TrainingConfig(primary_metric="fine/mean/R@1"))
    with pytest.raises(SayseeError, match="'fine/mean/R@1', and rows without matching have no fine stage; choose"):
        config_of(config, "all", 0)


def test_rows_are_taken_once_in_the_order_of_the_table() -> None:
    assert require_rows(None) == list(ROWS)
    assert require_rows(["all", "contrast", "all"]) == ["contrast", "all"]
    with pytest.raises(SayseeError, match="no row 'everything' in the ablation; choose of: contrast, queue, "):
        require_rows(["contrast", "everything"])
