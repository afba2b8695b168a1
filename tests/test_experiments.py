"""Ablation and table as they are run: every row and seed trained once, skipped afterwards, and put into one table."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any
from unittest import mock

import pytest
import yaml

from command_line import RECIPE, assert_mistake, contents, litter, saysee, stub_encoders, write_corpus
from media import write_image, write_wav
from saysee import experiments
from saysee.config import Config
from saysee.data.extraction import extract_features
from saysee.data.manifest import Manifest, ManifestError, read_manifest
from saysee.errors import SayseeError
from saysee.evaluation.results import read_results
from saysee.experiments import ablate, tabulate
from saysee.models.model_folder import read_model_folder
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


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that a test has just written count as old, so that their hashes are remembered."""
    monkeypatch.setattr("saysee.features.hashes._RACY_NANOSECONDS", -1)


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
    name = {"training": "train_on_manifest", "evaluation": "evaluate_on_manifest", "record": "write_record"}[before]
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


@pytest.mark.usefixtures("settled")
def test_runs_of_other_data_are_refused_before_anything_is_extracted(manifest: Manifest, tmp_path: Path) -> None:
    """Its files are read, which takes minutes, and not encoded, which takes hours."""
    run(manifest, tmp_path, rows=["contrast"], seeds=[3])
    other = read_manifest(write_corpus(tmp_path / "other", {"new.wav": manifest.captions[0].audio.read_bytes() + b"."}))
    with mock.patch("saysee.workflows.extract_features", wraps=extract_features) as extracted:
        with pytest.raises(SayseeError, match="another config"):
            run(manifest, tmp_path, recipe("--training.steps", "5"))
        with pytest.raises(SayseeError, match="another data "):
            run(other, tmp_path)
        extracted.assert_not_called()
        run(manifest, tmp_path, rows=["contrast"], seeds=[3])
        extracted.assert_called_once()
    # a file that cannot be read is the extraction's to name, with all others
    manifest.captions[0].audio.unlink()
    with pytest.raises(ManifestError, match="1 fault"):
        run(manifest, tmp_path)


def test_nothing_is_extracted_where_features_are_live(manifest: Manifest, tmp_path: Path) -> None:
    live = recipe("--training.live_features", "true", "--training.steps", "1")
    with mock.patch("saysee.workflows.extract_features", wraps=extract_features) as extracted:
        run(manifest, tmp_path, live, rows=["contrast"], seeds=[0])
    extracted.assert_not_called()
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_dir()] == [], "a store was made"
    about = record(tmp_path)["about"]
    # the same data have the same name, however they are read
    ablate(recipe(), manifest, tmp_path / "stored", seeds=[0], rows=["contrast"], cache=tmp_path / "cache")
    stored = json.loads((tmp_path / "stored" / "ablation.json").read_text())["about"]
    assert (about["data"], about["encoders"]) == (stored["data"], stored["encoders"])
    live_results, results = (read_results(tmp_path / out / "contrast-seed0/results.json") for out in ("out", "stored"))
    assert live_results.about["captions"] == results.about["captions"] == len(manifest.of("test"))


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


# ---- recipes side by side


def recipes() -> dict[str, Config]:
    return {"full": recipe(), "no_queue": recipe("--loss.queue_size", "0", "--loss.distillation_alpha", "0")}


def table(manifest: Manifest, tmp_path: Path, which: dict[str, Config] | None = None, **changes: Any) -> str:
    options = {"seeds": [3, 5], "cache": tmp_path / "cache", "device": "cpu", **changes}
    return tabulate(which or recipes(), manifest, tmp_path / "out", **options)


def on_record(path: Path) -> list[tuple[str, int]]:
    return [(done["row"], done["seed"]) for done in json.loads(path.read_text())["runs"]]


@pytest.fixture
def other(tmp_path: Path) -> Manifest:
    """A corpus with one picture and recording of its own in test."""
    path = write_corpus(tmp_path / "other")
    write_wav(tmp_path / "other" / "11.wav", 0.7, frequency=2_000.0)
    write_image(tmp_path / "other" / "11.png", colour="black")
    return read_manifest(path)


def test_recipes_are_trained_once_and_both_their_tables_are_those_of_the_results(
    manifest: Manifest, other: Manifest, tmp_path: Path, trained: mock.Mock
) -> None:
    text = table(manifest, tmp_path, zero_shot=("elsewhere", other))
    out = tmp_path / "out"
    assert folders(trained) == ["full-seed3", "no_queue-seed3", "full-seed5", "no_queue-seed5"]
    both = [(out / name).read_text(encoding="utf-8") for name in ("table.md", "zero-shot-elsewhere.md")]
    assert text == "\n".join(both)
    assert both[0].startswith("# Recipes\n")
    assert both[1].startswith("# Zero-shot on elsewhere\n")
    for name, results_name, corpus in (
        ("table.json", "results.json", manifest),
        ("zero-shot-elsewhere.json", "zero-shot-elsewhere.json", other),
    ):
        content = json.loads((out / name).read_text())
        assert list(content["rows"]) == [row["row"] for row in content["table"]] == ["full", "no_queue"]
        assert content["rows"]["no_queue"]["config"]["loss"]["queue_size"] == 0
        for row in content["table"]:
            measured = [read_results(out / f"{row['row']}-seed{seed}" / results_name) for seed in (3, 5)]
            assert [results.about["recipe"] for results in measured] == [row["row"]] * 2
            assert {results.about.get("zero_shot", False) for results in measured} == {corpus is other}
            assert len(row["metrics"]) == 18
            assert row["differences"] == {}
            for metric, spread in row["metrics"].items():
                values = [results.metric(metric) for results in measured]
                assert (spread["mean"], spread["lowest"], spread["highest"]) == (mean(values), min(values), max(values))
    # on record is what was measured there, also where the figures happen to be the same
    assert (out / "full-seed3/results.json").read_bytes() != (out / "full-seed3/zero-shot-elsewhere.json").read_bytes()

    trained.reset_mock()
    before = contents(out)
    assert table(manifest, tmp_path, zero_shot=("elsewhere", other)) == text
    assert folders(trained) == []
    assert contents(out) == before
    assert litter(tmp_path) == []


def test_a_model_is_that_of_its_recipe_and_seed(manifest: Manifest, tmp_path: Path) -> None:
    table(manifest, tmp_path, seeds=[3])
    for name, config in recipes().items():
        seeded = replace(config, training=replace(config.training, seed=3))
        assert read_model_folder(tmp_path / "out" / f"{name}-seed3").config == seeded


def test_rows_seeds_and_the_other_corpus_may_come_later(
    manifest: Manifest, other: Manifest, tmp_path: Path, trained: mock.Mock
) -> None:
    (first, config), (second, config_of_second) = recipes().items()
    table(manifest, tmp_path, {first: config}, seeds=[3])
    assert folders(trained) == ["full-seed3"]
    text = table(manifest, tmp_path, {second: config_of_second}, zero_shot=("elsewhere", other))
    assert folders(trained) == ["full-seed3", "no_queue-seed3", "no_queue-seed5"]
    assert "1 of 2" in text  # the first row, with one seed of the two
    out = tmp_path / "out"
    assert on_record(out / "table.json") == [("full", 3), ("no_queue", 3), ("no_queue", 5)]
    assert on_record(out / "zero-shot-elsewhere.json") == [("no_queue", 3), ("no_queue", 5)]
    # what is trained is not trained again to be measured elsewhere
    trained.reset_mock()
    table(manifest, tmp_path, {first: config}, seeds=[3], zero_shot=("elsewhere", other))
    assert folders(trained) == []
    assert on_record(out / "zero-shot-elsewhere.json") == [("no_queue", 3), ("no_queue", 5), ("full", 3)]
    seconds = [
        {(run["row"], run["seed"]): run["seconds"] for run in json.loads((out / name).read_text())["runs"]}
        for name in ("table.json", "zero-shot-elsewhere.json")
    ]
    assert seconds[0] == seconds[1]


@pytest.mark.parametrize("last", [False, True])
def test_a_table_that_was_killed_before_its_zero_shot_evaluation_goes_on_there(
    manifest: Manifest, other: Manifest, tmp_path: Path, trained: mock.Mock, last: bool
) -> None:
    calls = []

    def killed(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if len(calls) == (4 if last else 2):
            raise Killed
        return evaluate_on_manifest(*arguments, **options)

    with mock.patch("saysee.experiments.evaluate_on_manifest", killed), pytest.raises(Killed):
        table(manifest, tmp_path, seeds=[3], zero_shot=("elsewhere", other))
    done = [("full", 3), ("no_queue", 3)][: 2 if last else 1]
    assert on_record(tmp_path / "out" / "table.json") == done
    trained.reset_mock()
    table(manifest, tmp_path, seeds=[3], zero_shot=("elsewhere", other))
    assert folders(trained) == ([] if last else ["no_queue-seed3"])
    for name in ("table.json", "zero-shot-elsewhere.json"):
        assert on_record(tmp_path / "out" / name) == [("full", 3), ("no_queue", 3)]


def test_a_corpus_that_the_models_would_see_is_refused_before_the_first_run(
    manifest: Manifest, tmp_path: Path, trained: mock.Mock
) -> None:
    dev = manifest.of("dev")
    with pytest.raises(ManifestError, match="this is not zero-shot") as caught:
        table(manifest, tmp_path, split="dev", zero_shot=("same", manifest))
    assert len(caught.value.faults) == 2 * len(dev)
    assert folders(trained) == []
    assert not (tmp_path / "out").exists()
    table(manifest, tmp_path, seeds=[3], zero_shot=("same", manifest))  # its test is unseen


def test_a_model_that_does_not_say_what_it_has_seen_is_not_measured_as_zero_shot(
    manifest: Manifest, other: Manifest, tmp_path: Path
) -> None:
    table(manifest, tmp_path, seeds=[3])
    (tmp_path / "out" / "full-seed3" / "seen.safetensors").unlink()
    with pytest.raises(SayseeError, match="nobody can say whether this is zero-shot"):
        table(manifest, tmp_path, seeds=[3], zero_shot=("elsewhere", other))
    assert not (tmp_path / "out" / "zero-shot-elsewhere.json").exists()


def test_a_table_of_another_recipe_data_or_split_is_refused(
    manifest: Manifest, other: Manifest, tmp_path: Path, trained: mock.Mock
) -> None:
    table(manifest, tmp_path, seeds=[3], zero_shot=("elsewhere", other))
    trained.reset_mock()
    before = contents(tmp_path / "out")
    changed = {"full": recipe("--training.steps", "5")}
    with pytest.raises(SayseeError, match=r"table\.json .* another full\.config\.training\.steps \(4 there, 5 here\)"):
        table(manifest, tmp_path, changed)
    with pytest.raises(SayseeError, match=r"another split \(test there, dev here\)"):
        table(manifest, tmp_path, split="dev")
    with pytest.raises(SayseeError, match=r"table\.json holds runs with another data "):
        table(other, tmp_path)
    with pytest.raises(SayseeError, match=r"elsewhere\.json holds runs with another data "):
        table(manifest, tmp_path, zero_shot=("elsewhere", manifest))
    assert folders(trained) == []
    assert contents(tmp_path / "out") == before


def test_two_programs_may_fill_one_table(
    manifest: Manifest, other: Manifest, tmp_path: Path, trained: mock.Mock
) -> None:
    first, second = ({name: config} for name, config in recipes().items())

    def evaluate(*arguments: Any, **options: Any) -> Any:
        with mock.patch("saysee.experiments.evaluate_on_manifest", evaluate_on_manifest):
            table(manifest, tmp_path, second, seeds=[3], zero_shot=("elsewhere", other))
        return evaluate_on_manifest(*arguments, **options)

    with mock.patch("saysee.experiments.evaluate_on_manifest", evaluate):
        table(manifest, tmp_path, first, seeds=[3], zero_shot=("elsewhere", other))
    assert sorted(folders(trained)) == ["full-seed3", "no_queue-seed3"]
    for name in ("table.json", "zero-shot-elsewhere.json"):
        assert on_record(tmp_path / "out" / name) == [("no_queue", 3), ("full", 3)]


def test_the_command_names_rows_by_their_recipes(manifest: Manifest, tmp_path: Path, trained: mock.Mock) -> None:
    """Bundled ones and files, with what is changed in all of them; and a name stands for one recipe alone."""
    corpus = manifest.captions[0].audio.parent / "manifest.jsonl"
    (tmp_path / "mine.yaml").write_text(RECIPE)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "mine.yaml").write_text(RECIPE)
    common = ("--data", corpus, "--out", tmp_path / "out", "--cache", tmp_path / "cache", "--seeds", "1")
    assert_mistake(saysee("table", tmp_path / "mine.yaml", tmp_path / "more/mine.yaml", *common), "called 'mine'")
    small = ("--training.steps", "2", "--model.width", "16", "--model.heads", "2")
    outcome = saysee("table", "tiny", tmp_path / "mine.yaml", *common, "--zero-shot", corpus, *small)
    assert (outcome.status, outcome.err) == (0, "")
    assert folders(trained) == ["tiny-seed1", "mine-seed1"]
    assert "# Zero-shot on manifest\n" in outcome.out
    assert outcome.out.count("| tiny ") == outcome.out.count("| mine ") == 2 * (3 * 2 + 1)
    assert read_model_folder(tmp_path / "out" / "tiny-seed1").config.training.steps == 2


@pytest.mark.parametrize("command", ["extract", "train", "ablate", "table"])
def test_encoders_that_will_be_very_slow_are_said_once(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(f"torch.cpu.{name}", lambda: False)
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(RECIPE)
    files = [tmp_path / f"{name}.yaml" for name in ("one", "two")][: 2 if command == "table" else 1]
    corpus = manifest.captions[0].audio.parent / "manifest.jsonl"
    out = () if command == "extract" else ("--out", tmp_path / "out")
    seeds = ("--seeds", "0") if command in ("ablate", "table") else ()
    slow = ("--model.speech_backbone.precision", "bf16", "--training.steps", "1")
    common = ("--data", corpus, "--cache", tmp_path / "cache", "--device", "cpu", *out, *seeds)
    outcome = saysee(command, *files, *common, *slow)
    assert outcome.status == 0
    (line,) = outcome.err.splitlines()
    assert line.startswith("saysee: warning: an encoder's precision is bf16, which this processor only imitates")


def test_torchrun_is_told_how_a_table_uses_several_gpus(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SayseeError, match=r"^table runs in one process .* its own RECIPEs or --seeds$"):
        table(manifest, tmp_path)
