"""The ablation's switches, its record, and its table beside a naive computation."""

import json
from dataclasses import fields, replace
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saysee.config import Config, LossConfig, TrainingConfig
from saysee.errors import SayseeError
from saysee.evaluation.ablation import (
    ROWS,
    Ablation,
    Run,
    config_of,
    read_ablation,
    require_rows,
    summarize,
    to_markdown,
    write_ablation,
)

SWITCHES = {"queue_size", "image_negatives_from", "distillation_alpha", "matching", "negatives"}
ABOUT = {"split": "test", "data": "d1", "config": {"loss": {"queue_size": 16, "momentum": 0.995}}}

recipes = st.builds(
    lambda loss, training: Config(loss=loss, training=training),
    st.builds(
        LossConfig,
        queue_size=st.integers(1, 70_000),
        momentum=st.floats(0, 0.999),
        distillation_alpha=st.floats(0.01, 1),
        distillation_ramp_steps=st.integers(0, 1000),
        same_image=st.sampled_from(["positives", "excluded"]),
        image_negatives_from=st.sampled_from(["batch", "queue"]),
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


# ---- the switches


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
        "matching-random": (0, 0, True, "random"),
        "matching-hard": (0, 0, True, "hard"),
        "all": (queue, alpha, True, "hard"),
    }
    assert list(ROWS) == list(expected)
    for row, parts in expected.items():
        loss = config_of(config, row, 0).loss
        there = (loss.queue_size, loss.distillation_alpha, loss.matching, loss.negatives)
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


# ---- the record


def run(row: str, seed: int, r1: float, *, seconds: float | None = 10.0, fine: float | None = None) -> Run:
    metrics = {}
    for stage, value in (("coarse", r1), ("fine", fine)):
        for shift, direction in enumerate(("speech_to_image", "image_to_speech", "mean")):
            for number, recall in enumerate(("R@1", "R@5", "R@10")):
                if value is not None:
                    metrics[f"{stage}/{direction}/{recall}"] = value + shift / 100 + number / 10
    return Run(row, seed, seconds, 8, r1 / 2, metrics)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "ablation.json"
    assert read_ablation(path, ABOUT) == Ablation(ABOUT)
    written = Ablation(ABOUT).with_run(run("contrast", 0, 0.1)).with_run(run("all", 2, 0.3, seconds=None, fine=0.4))
    write_ablation(path, written, summarize(written, ["contrast"], [0]))
    assert read_ablation(path, ABOUT) == written
    assert (written.has("all", 2), written.has("all", 0), written.has("queue", 2)) == (True, False, False)
    again = written.with_run(run("contrast", 0, 0.2))
    assert [(r.row, r.seed) for r in again.runs] == [("all", 2), ("contrast", 0)]
    assert again.runs[1].metrics["coarse/speech_to_image/R@1"] == 0.2


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({**ABOUT, "split": "dev"}, "split (test there, dev here)"),
        ({**ABOUT, "data": "d2"}, "data (d1 there, d2 here)"),
        (
            {**ABOUT, "config": {"loss": {"queue_size": 16, "momentum": 0.9}}},
            "config.loss.momentum (0.995 there, 0.9 here)",
        ),
        (
            {**ABOUT, "config": {"loss": {"queue_size": 16, "momentum": 0.995, "new": 1}}},
            "config.loss.new (None there, 1 here)",
        ),
    ],
)
def test_runs_of_something_else_are_refused_by_name(tmp_path: Path, about: dict[str, Any], said: str) -> None:
    path = tmp_path / "ablation.json"
    write_ablation(path, Ablation(ABOUT, (run("contrast", 0, 0.1),)), [])
    with pytest.raises(SayseeError) as caught:
        read_ablation(path, about)
    assert str(caught.value).startswith(f"{path} holds runs with another {said}; ")
    assert str(caught.value).endswith("so give another folder (--out)")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b'{"saysee_ablation": 1, "about": {}, "runs": [{"row": "all"}]}',
        b'{"saysee_ablation": 1, "about": {}, "runs": 3}',
        b'{"saysee_ablation": 1, "about": 5, "runs": []}',
    ],
)
def test_a_damaged_record_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ablation.json"
    path.write_bytes(content)
    with pytest.raises(
        SayseeError, match=r"ablation\.json is damaged or no record of an ablation; give another folder"
    ):
        read_ablation(path, ABOUT)


def test_a_newer_record_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ablation.json"
    path.write_text('{"saysee_ablation": 2, "about": {}, "runs": []}')
    with pytest.raises(SayseeError, match="has format 2 and this saysee reads 1"):
        read_ablation(path, ABOUT)


# ---- the table


@given(
    values=st.dictionaries(
        st.tuples(st.sampled_from(list(ROWS)), st.integers(0, 4)), st.tuples(st.floats(0, 1), st.floats(0, 1))
    )
)
def test_figures_are_those_of_a_naive_computation(values: dict[tuple[str, int], tuple[float, float]]) -> None:
    fine = {"matching-random", "matching-hard", "all"}
    runs = tuple(run(*key, coarse, fine=fined if key[0] in fine else None) for key, (coarse, fined) in values.items())
    table = {row.row: row for row in summarize(Ablation(ABOUT, runs), list(ROWS), [0, 1])}
    assert list(table) == list(ROWS)
    seeds = {0, 1} | {seed for _, seed in values}
    for name, row in table.items():
        mine = {seed: pair for (other, seed), pair in values.items() if other == name}
        base = {seed: coarse for (other, seed), (coarse, _) in values.items() if other == "contrast"}
        assert row.finished == tuple(sorted(mine))
        assert row.missing == tuple(sorted(seeds - set(mine)))
        for place, stage in enumerate(("coarse", "fine")):
            spread = row.metrics.get(f"{stage}/speech_to_image/R@1")
            difference = row.differences.get(f"{stage}/speech_to_image/R@1")
            if not mine or (stage == "fine" and name not in fine):
                assert spread is None
                assert difference is None
                continue
            assert spread is not None
            of_stage = [pair[place] for pair in mine.values()]
            assert spread.mean == pytest.approx(mean(of_stage))
            ends = (min(of_stage), max(of_stage)) if len(of_stage) > 1 else (None, None)
            assert (spread.lowest, spread.highest, spread.seeds) == (*ends, len(of_stage))
            gains = [mine[seed][place] - base[seed] for seed in mine if seed in base]
            if name == "contrast" or not gains:
                assert difference is None
            else:
                assert difference is not None
                assert difference.mean == pytest.approx(mean(gains))
                assert difference.seeds == len(gains)


def test_the_table_shows_what_is_missing_and_does_not_call_one_seed_certain() -> None:
    runs = (run("contrast", 0, 0.1, seconds=None), run("contrast", 1, 0.2), run("all", 0, 0.25, fine=0.5))
    ablation = Ablation(ABOUT, runs)
    text = to_markdown(ablation, summarize(ablation, ["contrast", "queue", "all"], [0, 1]))
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    first = lines[lines.index(["## Speech to image"]) :][4:]
    assert first[0] == ["contrast", "coarse", "2", *(f"{v} [{v - 5} to {v + 5}]" for v in (15.0, 25.0, 35.0)), *"---"]
    assert first[1] == ["queue", "-", "0 of 2", *"------"]
    assert first[2][:3] == ["all", "coarse", "1 of 2"]
    assert first[2][3::3] == ["25.0 [unknown]", "+15.0 [unknown]"]
    assert first[3][:2] == ["all", "fine"]
    assert first[3][3::3] == ["50.0 [unknown]", "+40.0 [unknown]"]  # beside contrast's coarse 10.0
    training = lines[lines.index(["## Training"]) :][4:]
    assert training[0] == ["contrast", "2", "-", "10 [unknown]"]  # the other was interrupted
    assert training[1] == ["queue", "0 of 2", "0, 1", "-"]
    assert training[2] == ["all", "1 of 2", "1", "10 [unknown]"]
    assert "queue" not in to_markdown(ablation, summarize(ablation, ["contrast"], [0]))


def test_the_figures_stand_in_the_json_too(tmp_path: Path) -> None:
    ablation = Ablation(ABOUT, (run("contrast", 0, 0.1), run("all", 0, 0.3, fine=0.5)))
    write_ablation(tmp_path / "ablation.json", ablation, summarize(ablation, ["contrast", "all"], [0, 1]))
    contrast, full = json.loads((tmp_path / "ablation.json").read_text())["table"]
    assert (contrast["row"], contrast["finished"], contrast["missing"]) == ("contrast", [0], [1])
    assert contrast["metrics"]["coarse/mean/R@5"] == {
        "mean": pytest.approx(0.22),
        "lowest": None,
        "highest": None,
        "seeds": 1,
    }
    assert full["differences"]["fine/mean/R@5"]["mean"] == pytest.approx(0.4)
