"""The ablation as it is run: every row and seed trained once, skipped afterwards, and put into one table."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any
from unittest import mock

import pytest
import yaml

from command_line import RECIPE, contents, litter, stub_encoders, write_corpus
from saysee import experiments
from saysee.config import Config
from saysee.data.extraction import extract_features
from saysee.data.manifest import Manifest, ManifestError, read_manifest
from saysee.errors import SayseeError
from saysee.evaluation.results import read_results
from saysee.experiments import ablate
from saysee.models.retrieval_model import read_model_folder
from saysee.workflows import evaluate_on_manifest, train_on_manifest

ROWS = ["contrast", "all"]


@pytest.fixture(autouse=True)
def stand_ins() -> Iterator[None]:
    with stub_encoders():
        yield


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return read_manifest(write_corpus(tmp_path / "corpus"))


@pytest.fixture
def trained() -> Iterator[mock.Mock]:
    """Counts what is trained, and trains it."""
    with mock.patch("saysee.experiments.train_on_manifest", wraps=train_on_manifest) as counted:
        yield counted


def recipe(*overrides: str) -> Config:
    return Config.from_dict(yaml.safe_load(RECIPE), ["--training.steps", "4", *overrides])


def run(manifest: Manifest, tmp_path: Path, config: Config | None = None, **changes: Any) -> str:
    options = {"seeds": [3, 5], "rows": ROWS, "cache": tmp_path / "cache", "device": "cpu", **changes}
    return ablate(config or recipe(), manifest, tmp_path / "out", **options)


def record(tmp_path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((tmp_path / "out" / "ablation.json").read_text(encoding="utf-8"))
    return content


def folders(trained: mock.Mock) -> list[str]:
    return [call.args[2].name for call in trained.call_args_list]


def test_two_rows_and_two_seeds_are_trained_once_and_their_table_is_that_of_the_results(
    manifest: Manifest, tmp_path: Path, trained: mock.Mock
) -> None:
    table = run(manifest, tmp_path, split="train")  # which has more than two pictures
    out = tmp_path / "out"
    assert folders(trained) == ["contrast-seed3", "all-seed3", "contrast-seed5", "all-seed5"]
    assert (out / "ablation.md").read_text(encoding="utf-8") == table

    for row in record(tmp_path)["table"]:
        measured = [read_results(out / f"{row['row']}-seed{seed}" / "results.json") for seed in (3, 5)]
        base = [read_results(out / f"contrast-seed{seed}" / "results.json") for seed in (3, 5)]
        assert [results.about["ablation_row"] for results in measured] == [row["row"]] * 2
        assert [results.about["seed"] for results in measured] == [3, 5]
        recalls = [name for name in measured[0].metrics() if "R@" in name]
        assert list(row["metrics"]) == recalls
        assert len(recalls) == (9 if row["row"] == "contrast" else 18)
        for name in recalls:
            values = [results.metric(name) for results in measured]
            spread = row["metrics"][name]
            assert (spread["mean"], spread["lowest"], spread["highest"]) == (mean(values), min(values), max(values))
            if row["row"] != "contrast":
                beside = [results.metric(name.replace("fine", "coarse")) for results in base]
                assert row["differences"][name]["mean"] == pytest.approx(mean(values) - mean(beside))

    # a second call trains nothing, and says the same
    trained.reset_mock()
    before = contents(out)
    assert run(manifest, tmp_path, split="train") == table
    assert folders(trained) == []
    assert contents(out) == before
    assert litter(tmp_path) == []


def test_each_model_was_trained_by_its_row_and_seed(manifest: Manifest, tmp_path: Path) -> None:
    run(manifest, tmp_path, rows=["contrast", "matching-random"], seeds=[3])
    contrast = read_model_folder(tmp_path / "out" / "contrast-seed3").config
    random = read_model_folder(tmp_path / "out" / "matching-random-seed3").config
    own = recipe("--training.seed", "3")
    off = replace(own.loss, queue_size=0, distillation_alpha=0.0)
    assert contrast == replace(own, loss=replace(off, matching=False))
    assert random == replace(own, loss=replace(off, negatives="random"))


class Killed(BaseException):
    """Stands for kill -9, behind which nothing of ours runs."""


@pytest.mark.parametrize("before", ["training", "evaluation", "record"])
def test_what_was_killed_goes_on_and_keeps_what_was_finished(
    manifest: Manifest, tmp_path: Path, trained: mock.Mock, before: str
) -> None:
    name = {"training": "train_on_manifest", "evaluation": "evaluate_on_manifest", "record": "write_ablation"}[before]
    original, calls = getattr(experiments, name), []

    def killed_at_the_third(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise Killed
        return original(*arguments, **options)

    with mock.patch(f"saysee.experiments.{name}", killed_at_the_third), pytest.raises(Killed):
        run(manifest, tmp_path)
    assert [(done["row"], done["seed"]) for done in record(tmp_path)["runs"]] == [("contrast", 3), ("all", 3)]
    assert (tmp_path / "out" / "ablation.md").read_text(encoding="utf-8").count("1 of 2") == 11  # in every line

    trained.reset_mock()
    run(manifest, tmp_path)
    assert folders(trained) == ["contrast-seed5", "all-seed5"]
    seconds = {(done["row"], done["seed"]): done["seconds"] for done in record(tmp_path)["runs"]}
    # where training began twice, nobody knows how long it took
    assert [key for key, value in seconds.items() if value is None] == (
        [] if before == "training" else [("contrast", 5)]
    )


def test_two_programs_may_share_the_work(manifest: Manifest, tmp_path: Path, trained: mock.Mock) -> None:
    """While one trains its second run, another finishes all of its own."""

    def evaluate(*arguments: Any, **options: Any) -> Any:
        if options["about"]["ablation_row"] == "all":
            with mock.patch("saysee.experiments.evaluate_on_manifest", evaluate_on_manifest):
                run(manifest, tmp_path, seeds=[5])
        return evaluate_on_manifest(*arguments, **options)

    with mock.patch("saysee.experiments.evaluate_on_manifest", evaluate):
        table = run(manifest, tmp_path, seeds=[3])
    assert sorted(folders(trained)) == ["all-seed3", "all-seed5", "contrast-seed3", "contrast-seed5"]
    done = [(run["row"], run["seed"]) for run in record(tmp_path)["runs"]]
    assert done == [("contrast", 3), ("contrast", 5), ("all", 5), ("all", 3)]
    assert "1 of 2" not in table


def test_runs_of_another_recipe_data_or_split_are_refused(
    manifest: Manifest, tmp_path: Path, trained: mock.Mock
) -> None:
    run(manifest, tmp_path, rows=["contrast"], seeds=[3])
    trained.reset_mock()
    before = contents(tmp_path / "out")
    with pytest.raises(SayseeError, match=r"another config\.training\.steps \(4 there, 5 here\); .*\(--out\)$"):
        run(manifest, tmp_path, recipe("--training.steps", "5"))
    with pytest.raises(SayseeError, match=r"another split \(test there, dev here\)"):
        run(manifest, tmp_path, split="dev")
    first, *rest = manifest.captions
    with pytest.raises(SayseeError, match="another data "):
        run(Manifest("image", (replace(first, id="other"), *rest)), tmp_path)
    assert folders(trained) == []
    assert contents(tmp_path / "out") == before
    run(manifest, tmp_path, recipe("--training.seed", "9"), rows=["contrast"], seeds=[3])  # its own seed is not used


def test_a_bad_file_of_test_is_found_before_the_first_run(
    manifest: Manifest, tmp_path: Path, trained: mock.Mock
) -> None:
    manifest.of("test")[0].audio.write_text("no recording")
    with pytest.raises(ManifestError):
        run(manifest, tmp_path)
    assert folders(trained) == []
    assert not (tmp_path / "out").exists()


def test_nothing_is_extracted_beforehand_where_features_are_live(manifest: Manifest, tmp_path: Path) -> None:
    live = recipe("--training.live_features", "true", "--training.steps", "1")
    with mock.patch("saysee.workflows.extract_features", wraps=extract_features) as extracted:
        run(manifest, tmp_path, live, rows=["contrast"], seeds=[0])
    assert [call.args[0] for call in extracted.call_args_list] == [manifest.of("test")]  # to measure, in the end
    about = record(tmp_path)["about"]
    # the same data have the same name, however they are read
    ablate(recipe(), manifest, tmp_path / "stored", seeds=[0], rows=["contrast"], cache=tmp_path / "cache")
    stored = json.loads((tmp_path / "stored" / "ablation.json").read_text())["about"]
    assert (about["data"], about["encoders"]) == (stored["data"], stored["encoders"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"rows": ["contrast", "everything"]}, "no row 'everything'"), ({"seeds": [0, -1]}, "seed is -1")],
)
def test_a_mistake_is_found_before_anything_is_made(
    manifest: Manifest, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(SayseeError, match=said):
        run(manifest, tmp_path, **changes)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "cache").exists()


def test_torchrun_is_told_how_several_gpus_are_used(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SayseeError, match="not under torchrun; to use several GPUs start one program for each"):
        run(manifest, tmp_path)
