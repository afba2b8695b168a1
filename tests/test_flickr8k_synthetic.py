"""The suite on Flickr8k's photographs and synthetic speech: all its stages, on ten pictures in Flickr8k's layout.

Its real inputs cannot lie here and a run takes hours, so what is tested is that each stage takes up what the one before
has left, that nothing is done twice, and that the list of runs and the recipes are what the record says they are.
"""

import importlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor

from command_line import RECIPE, SPOKEN, stub_encoders
from corpora import write_flickr8k
from media import write_image
from saysee.config import load_config
from saysee.data import speech_synthesis
from saysee.data.speech_synthesis.base import Voice
from saysee.evaluation.bootstrap import paired_difference
from saysee.evaluation.metrics import RECALLS, RankCounts, summarize
from saysee.evaluation.results import DIRECTIONS, Results, StageResult, read_results
from saysee.features.audio import SAMPLE_RATE, load_waveform
from saysee.models.retrieval_model import SpeechImageModel

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks" / "flickr8k_synthetic"
WAYS = (("speech", "image"), ("image", "speech"))


class Suite:
    """The suite's modules, imported as it imports them."""

    def __init__(self) -> None:
        for name in ("corpus", "figures", "gains", "measure", "plan", "reranking", "rival", "sheets", "suite", "table"):
            setattr(self, name, importlib.import_module(f"flickr8k_synthetic.{name}"))

    corpus: ModuleType
    figures: ModuleType
    gains: ModuleType
    measure: ModuleType
    plan: ModuleType
    reranking: ModuleType
    rival: ModuleType
    sheets: ModuleType
    suite: ModuleType
    table: ModuleType


class OneWord:
    """Says the same word three times whatever it is given, as fast as it is asked to."""

    version = "one word 1"

    def voice(self, name: str) -> Voice:
        return Voice("en-us", f"licence of {name}")

    def speak(self, text: str, voice: str, speed: float, pitch: float) -> tuple[NDArray[np.float32], int]:
        return np.tile(load_waveform(SPOKEN), 3), round(SAMPLE_RATE * speed)


class Mean(torch.nn.Module):
    """A sentence encoder of one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.letters = torch.nn.Embedding(256, 6)

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor]:
        del mask
        return (self.letters(tokens),)


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> Suite:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return Suite()


@pytest.fixture
def miniature(suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Ten pictures and fifty captions, an engine of one word, recipes of a few steps; everything below `tmp_path`."""
    flickr8k = write_flickr8k(tmp_path / "published", images=10)
    small = tmp_path / "flickr8k"
    (flickr8k / "Flickr8k_text").rename(small)
    (flickr8k / "Flicker8k_Dataset").rename(small / "images")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.replace("steps: 12", "steps: 4"))
    speech_synthesis.load_engine.cache_clear()
    monkeypatch.setitem(speech_synthesis._ENGINES, "one", OneWord)
    for module, name, value in (
        (suite.corpus, "VOICES", {"train": ("one:a", "one:b"), "dev": ("one:c",), "test": ("one:d",)}),
        (suite.corpus, "ENGINES", {"one": OneWord.version}),
        (suite.plan, "RECIPES", {2: recipe, 5: recipe}),
        (suite.suite, "RECIPES", {2: recipe, 5: recipe}),
        (suite.measure, "RESULTS", tmp_path / "results"),
        (importlib.import_module("record"), "RESULTS", tmp_path / "results"),
        (suite.rival, "load_reader", lambda: suite.rival.Reader(Mean(), 6)),
        (suite.rival, "_tokens", lambda text: torch.tensor(list(text.encode()))),
        (suite.rival, "recognise", lambda waveform: "A picture, described once."),
    ):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setenv("SAYSEE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["benchmarks/flickr8k_synthetic"])
    monkeypatch.chdir(tmp_path)
    with stub_encoders():
        yield small
    speech_synthesis.load_engine.cache_clear()


def on_record(folder: Path, name: str = "flickr8k_synthetic") -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((folder / "results" / f"{name}.json").read_text())["figures"]
    return figures


def runs_on_record(folder: Path, name: str = "flickr8k_synthetic") -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = on_record(folder, name)["runs"]
    return runs


def test_one_command_makes_everything_and_the_next_does_nothing_twice(
    suite: Suite, miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tmp_path / "words"
    (words / "images").mkdir(parents=True)
    write_image(words / "images" / "back.png")
    rows = ["image,audio,word,language,speaker,split"]
    for language in ("en", "es", "fr"):
        (words / f"{language}.ogg").write_bytes(SPOKEN.read_bytes())
        rows.append(f"images/back.png,{language}.ogg,back,{language},anna,test")
    (words / "recordings.csv").write_text("\n".join(rows))
    run_of = suite.plan.Run
    runs = [run_of("contrast"), run_of("all"), run_of("contrast", equal_time=True), run_of("all", 5, noise=0.4)]
    monkeypatch.setattr(suite.suite, "plan", lambda: runs)
    monkeypatch.setattr(suite.plan, "plan", lambda: runs)
    monkeypatch.setattr(suite.measure, "MEASURED_AT_MANY", runs[1])
    tried = ["--only", "runs", "--split", "dev", "--rows", "all", "--captions", "2"]
    tried += ["--change", "training.learning_rate=0.001"]
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "results.md").write_text(
        "Before.\n<!-- flickr8k_synthetic: recall -->\nold\n<!-- end -->\nAfter.\n"
    )
    suite.suite.main([str(miniature), "--only", "speak", "--workers", "1"])
    suite.suite.main(tried)
    (model,) = (tmp_path / "runs" / "flickr8k_synthetic" / "models").glob("*/")
    log = (model / "training" / "log.jsonl").read_bytes()
    suite.suite.main([*tried, "--change", "search.fusion=match"])  # another question to the same model
    assert [log] == [path.read_bytes() for path in model.parent.glob("*/training/log.jsonl")]
    command = [str(miniature), "--workers", "1", "--picture-words", str(words)]
    suite.suite.main(command)

    manifest = suite.corpus.corpus(5)
    assert Counter(caption.split for caption in manifest.captions) == {"train": 35, "dev": 5, "test": 10}
    assert len(suite.corpus.corpus(2).of("train")) == 14
    records = runs_on_record(tmp_path)
    assert len(records) == 8
    by_row = {(r["key"]["row"], r["key"]["captions"], r["key"]["equal_time"]): r for r in records}
    rival = [(row, captions, False) for captions in (2, 5) for row in ("recognised text", "written text")]
    assert set(by_row) == {
        *(("contrast", 2, False), ("all", 2, False), ("contrast", 2, True), ("all", 5, False), *rival)
    }
    full, longer = by_row["all", 2, False], by_row["contrast", 2, True]
    changes = [["training.learning_rate=0.001"], ["training.learning_rate=0.001", "search.fusion=match"]]
    assert full["explored_on_dev"] == changes
    assert (full["images"], full["captions"], full["steps"]) == (2, 10, 4)
    value, low, high = full["recall"]["fine/speech_to_image/R@1"]
    assert 0 <= low <= value <= high <= 1
    computed = {"machine", "torch", "threads", "matrix_product_gflop_per_second"}
    assert set(full["milliseconds_of_a_question"]) == {"hear", "rank", "match", *computed}
    gains = {(g["row"]["captions"], g["over"]): g["gain"] for g in on_record(tmp_path)["gains"]}
    itself = "its own coarse stage"
    assert set(gains) == {(2, "contrast only"), (2, "contrast only, equal time"), (2, itself), (5, itself)}
    assert {name.partition("/")[0] for name in gains[5, itself]} == {"fine"}
    value, low, high, least, most = gains[2, "contrast only, equal time"]["fine/mean/R@10"]
    assert low <= value <= high
    assert least == value == most  # one seed of each
    assert value == pytest.approx(
        full["recall"]["fine/mean/R@10"][0] - longer["recall"]["coarse/mean/R@10"][0], abs=2e-4
    )
    assert full["many_candidates"]["rerank"] == 128
    assert full["zero_shot"]["captions"] == 1
    assert "zero_shot" not in by_row["all", 5, False]  # which saw wrong pairs
    expected = 4 * full["seconds_a_step"] / by_row["contrast", 2, False]["seconds_a_step"]
    assert longer["steps"] == round(expected)
    assert by_row["recognised text", 2, False]["word_error_rate"] == pytest.approx(2 / 6, abs=1e-4)
    explored = runs_on_record(tmp_path, "flickr8k_synthetic_dev")
    assert [run["key"]["changes"] for run in explored] == changes
    assert [(run["captions"], run["fusion"]) for run in explored] == [(5, "match+scaled-similarity"), (5, "match")]
    ranked = {model["key"]["captions"]: model for model in on_record(tmp_path, "flickr8k_synthetic_dev")["reranking"]}
    assert set(ranked) == {2, 5}
    (folder,) = (tmp_path / "runs" / "flickr8k_synthetic" / "models").glob(f"all-2*{full['key']['recipe']}/")
    measured = suite.measure.evaluate_on_manifest(SpeechImageModel.from_pretrained(folder), manifest, "dev")
    for rule, stage in (("similarity", "coarse"), ("match+scaled-similarity", "fine")):
        found = summarize(measured.ranking(stage, "speech_to_image").counts)
        assert {name: ranked[2]["rules"][rule][name] for name in RECALLS} == pytest.approx(
            {name: found[name] for name in RECALLS}, abs=1e-4
        )
    losses = [rule["log_loss"] for rule in ranked[2]["rules"].values()]
    assert ranked[2]["rules"]["fitted weights"]["log_loss"] == min(losses)
    printed = capsys.readouterr().out
    document = (tmp_path / "docs" / "results.md").read_text()
    for said in ("| contrast only, equal time ", "| 5 an image, 40% wrong ", "| recognised text, 33.3 % of the words "):
        assert said in document, said
        assert said in printed
    assert document.startswith("Before.\n") and document.endswith("\nAfter.\n")
    for figure in ("curves", "rows"):
        ElementTree.parse(tmp_path / "docs" / f"flickr8k_synthetic_{figure}.svg")
    assert len(list((tmp_path / "runs" / "flickr8k_synthetic" / "sheets").glob("all-*.html"))) == 4

    # the same again trains nothing, asks nothing and leaves the record as it is
    monkeypatch.setattr(suite.suite, "carry_out", None)
    monkeypatch.setattr(suite.suite, "measure_zero_shot", None)
    monkeypatch.setattr(suite.suite, "question_time", None)
    monkeypatch.setattr(suite.reranking, "reranking", None)
    monkeypatch.setattr(suite.rival, "train", None)
    suite.suite.main(command)
    assert runs_on_record(tmp_path) == records


@pytest.mark.usefixtures("miniature")
def test_the_recipe_is_changed_for_dev_alone(suite: Suite, capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["--only", "runs"], ["--split", "dev"], ["--only", "rival", "--split", "dev"]):
        with pytest.raises(SystemExit):
            suite.suite.main(["flickr8k", *options, "--change", "training.steps=9"])
        assert "tried on dev alone" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        suite.suite.main(["--only", "speak"])
    assert "give the folder of Flickr8k" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        suite.suite.main(["flickr8k"])
    assert "give --picture-words" in capsys.readouterr().err


def test_wrong_pairs_follow_the_picture_and_none_keeps_its_own(suite: Suite, miniature: Path) -> None:
    suite.corpus.speak_captions(miniature, 5, 1)
    clean, wrong = suite.corpus.corpus(5), suite.corpus.corpus(5, noise=0.4)
    assert [replace(c, image_id="", image=Path()) for c in clean.captions] == [
        replace(c, image_id="", image=Path()) for c in wrong.captions
    ]
    given = {a.image_id: b.image_id for a, b in zip(clean.captions, wrong.captions, strict=True)}
    moved = {image for image, other in given.items() if image != other}
    assert len(moved) == round(0.4 * 7)
    assert {given[image] for image in moved} == moved  # among themselves
    assert moved <= set(clean.images("train"))
    assert all(caption.image.name == caption.image_id for caption in wrong.captions)
    assert len(set(given.values())) == len(given)


def test_another_version_of_an_engine_is_refused(
    suite: Suite, miniature: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite.corpus, "ENGINES", {"one": "one word 2"})
    with pytest.raises(Exception, match="here is one word 1, and the record was made with one word 2"):
        suite.corpus.speak_captions(miniature, 2, 1)


def test_the_plan_has_the_rows_and_seeds_of_the_evidence(suite: Suite) -> None:
    runs = suite.plan.plan()
    assert len(set(runs)) == len(runs)
    seeds = Counter((run.row, run.changes, run.captions, run.noise, run.equal_time) for run in runs)
    compared = suite.plan.COMPARED
    assert [row for row, _ in compared] == ["contrast", "all", "matching-hard"]
    several = (*compared, ("contrast", suite.plan.OWN_BEST))
    assert {seeds[*row, 2, 0.0, False] for row in several} == {3}
    assert {run.row for run in runs if run.captions == 5} == {"contrast", "all"}
    assert {seeds[row, (), 2, 0.4, False] for row in ("contrast", "all", "distillation")} == {1}
    assert {run.row for run in runs if (run.captions, run.noise) == (2, 0.0)} == set(suite.suite.ROWS)
    spoken = [voice for voices in suite.corpus.VOICES.values() for voice in voices]
    assert len(set(spoken)) == len(spoken)  # no voice of dev or test is heard in training


def test_the_recipes_differ_in_what_an_epoch_is_alone_and_say_whose_their_values_are(suite: Suite) -> None:
    two, five = (load_config(str(path)) for path in suite.plan.RECIPES.values())
    scaled = replace(
        two,
        loss=replace(two.loss, distillation_ramp_steps=five.loss.distillation_ramp_steps),
        training=replace(two.training, steps=five.training.steps, evaluate_every=five.training.evaluate_every),
    )
    assert scaled == five
    epochs = [recipe.training.steps / recipe.training.evaluate_every for recipe in (two, five)]
    assert 6 < epochs[1] < epochs[0] < 8
    for path in suite.plan.RECIPES.values():
        assert yaml.safe_load(path.read_text())
        valued = [line for line in path.read_text().splitlines() if re.match(r"\s*\w+: *[^#\s]", line)]
        origins = r"\bours\b|\b(ALBEF|BLIP|SpeechCLIP|figure)\b"
        assert [line for line in valued if not re.search(origins, line.partition("#")[2])] == []


def test_word_errors_are_counted(suite: Suite) -> None:
    rate = suite.rival.word_error_rate
    assert rate([("A dog runs .", "a dog runs")]) == 0
    assert rate([("a dog runs", "a big dog ran")]) == pytest.approx(2 / 3)
    assert rate([("a dog runs", ""), ("a dog", "a dog")]) == pytest.approx(3 / 5)


def test_what_was_tried_on_dev_is_shown_row_by_row_the_rival_behind_them(suite: Suite) -> None:
    def tried(row: str, *stages: str, changes: tuple[str, ...] = ()) -> dict[str, Any]:
        recall = {f"{stage}/mean/{name}": [0.25, 0.2, 0.3] for stage in stages for name in ("R@1", "R@5", "R@10")}
        key = {"row": row, "captions": 2, "noise": 0.0, "seed": 0, "equal_time": False, "recipe": "0"}
        return {"key": {**key, "changes": changes}, "recall": recall, "course": [{"step": 4}], "machine": "one"}

    explored = [tried("recognised text", "coarse"), tried("all", "coarse", "fine"), tried("contrast", "coarse")]
    explored += [tried("matching-hard", "coarse", changes=(*suite.plan.LISTED, "training.learning_rate=0.001"))]
    lines = suite.table.tables({"runs": []}, {"runs": explored})["dev"].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")][2:]
    names = ["contrast only", "+ matching, list, learning rate 0.001", "full method", "recognised text"]
    assert [row[0] for row in rows] == names
    assert [row[3:5].count("25.0 / 25.0 / 25.0") for row in rows] == [1, 1, 2, 1]


def test_a_gain_is_over_the_seeds_of_both(suite: Suite) -> None:
    """The mean of all pairs of seeds, its interval over the pictures, and the pairs that differ most."""

    names = tuple(f"{number}" for number in range(10))

    def result(spoken: int, shown: int) -> Results:
        """Of ten questions so many are answered first in either direction, all others at the 51st place."""
        none = np.zeros(10, np.int64)
        counts = [RankCounts(np.array([0] * hits + [50] * (10 - hits)), none, none + 1) for hits in (spoken, shown)]
        both = zip(DIRECTIONS, counts, strict=True)
        return Results({}, tuple(StageResult("coarse", way, found, names, names, 100) for way, found in both), {}, {})

    first, second, ours = result(4, 2), result(5, 2), result(7, 3)
    gains = suite.gains.gain([(first, ours), (second, ours)])
    assert set(gains) == {f"coarse/{where}/R@{k}" for where in (*DIRECTIONS, "mean") for k in (1, 5, 10)}
    assert gains["coarse/image_to_speech/R@10"][0] == pytest.approx(0.1)
    assert gains["coarse/mean/R@1"][0] == pytest.approx(0.175)
    value, low, high, least, most = gains["coarse/speech_to_image/R@1"]
    assert (value, least, most) == pytest.approx((0.25, 0.2, 0.3))
    assert 0 <= low < value < high <= 0.6
    alone = suite.gains.gain([(second, ours)])["coarse/speech_to_image/R@1"]
    difference = paired_difference(second.stages[0].counts, ours.stages[0].counts, ours.stages[0].clusters)["R@1"]
    assert alone == pytest.approx([0.2, difference.low, difference.high, 0.2, 0.2], abs=1e-4)


def test_fitted_weights_are_those_that_the_right_candidates_were_drawn_by(suite: Suite) -> None:
    drawn = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 8, 2, generator=drawn)
    chances = (logits @ torch.tensor([1.5, -0.5])).softmax(1)
    right = torch.nn.functional.one_hot(chances.multinomial(1, generator=drawn)[:, 0], 8).bool()
    right[:5_000] = False  # not among the candidates
    assert suite.reranking.fitted_weights(logits, right) == pytest.approx([1.5, -0.5], abs=0.05)


def test_the_document_says_what_the_record_says(suite: Suite) -> None:
    """Whoever edits a table by hand, or adds a run and does not make the tables, is told so."""
    document = (ROOT / "docs" / "results.md").read_text()
    made = suite.table.tables(suite.measure.on_record("test"), suite.measure.on_record("dev"))
    assert suite.table.written_into(document, made) == document
    filled = {name for name, table in made.items() if len(table.splitlines()) > 2}
    assert filled == set(re.findall(r"<!-- flickr8k_synthetic: (.+?) -->", document))


def test_the_record_says_what_the_ranks_say(suite: Suite) -> None:
    """Recalls of contrast only and the full method, and what the one gains over the other."""
    records, plan = suite.measure.on_record("test"), suite.plan
    read = {}
    for run, record in plan.planned_records(records["runs"]):
        if run.row in ("contrast", "all") and replace(run, seed=0) == plan.Run(run.row):
            read[run] = read_results(suite.measure.results_file(run, plan.config_for(run, ())))
            assert suite.measure.measured(read[run])["recall"] == record["recall"]
    contrast, full = ([run for run in read if run.row == row] for row in ("contrast", "all"))
    (held,) = [
        gain
        for gain in records["gains"]
        if (gain["row"]["row"], gain["row"]["captions"], gain["row"]["noise"]) == ("all", 2, 0.0)
        and gain["over"] == "contrast only"
    ]
    assert held["seeds"] == [run.seed for run in full]
    assert held["seeds of that"] == [run.seed for run in contrast] == [0, 1, 2]
    pairs = [(read[one], read[other]) for one in contrast for other in full]
    assert suite.gains.gain(pairs) == held["gain"]


def test_every_curve_has_a_colour_of_its_own(suite: Suite) -> None:
    plan, rival = suite.plan, suite.rival
    recalls = [0.1] * len(suite.measure.CURVE)
    records = []
    for run in [run for run in plan.plan() if run.captions == 5]:
        names = [f"{stage}/{way}_to_{back}" for stage in suite.table.STAGES for way, back in WAYS]
        curve = {name: recalls for name in names if run.row != "contrast" or name.startswith("coarse")}
        records.append({"key": plan.key_of(run, plan.config_for(run, ())), "curve": curve})
    for row in (rival.HEARD, rival.WRITTEN):
        curve = {f"coarse/{way}_to_{back}": recalls for way, back in WAYS}
        records.append({"key": {"row": row, "captions": 5}, "curve": curve})
    colours = Counter(re.findall(r'<polyline [^>]*stroke="(#\w+)"', suite.figures.curves(records)))
    assert list(colours.values()) == [2] * 5


def test_a_record_names_the_code_that_trained(suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite.measure, "COMMIT", "the first")
    first = suite.measure.begin(tmp_path / "model", torch.device("cpu"))
    monkeypatch.setattr(suite.measure, "COMMIT", "the next")
    assert suite.measure.begin(tmp_path / "model", torch.device("cpu")) == first
    assert (first["commit"], first["threads"]) == ("the first", torch.get_num_threads())
