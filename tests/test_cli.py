"""Every mistake ends with one clear message and status 2, and leaves everything as it was."""

import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from command_line import (
    RECIPE,
    TRAIN,
    World,
    assert_mistake,
    contents,
    finished_world,
    litter,
    stub_encoders,
    write_corpus,
)
from media import BAD_PICTURES, BAD_RECORDINGS, write_image


@pytest.fixture(autouse=True)
def stand_ins() -> Iterator[None]:
    with stub_encoders():
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Not to be changed."""
    return finished_world(tmp_path_factory.mktemp("world") / "a folder with spaces")


@pytest.fixture
def world(finished: World, tmp_path: Path) -> World:
    """The same, to be changed. The index remembers the first one's pictures and model."""
    shutil.copytree(finished.folder, tmp_path / "world")
    return World(tmp_path / "world")


MISTAKES = {
    "prepare picture-folder {nowhere} --out {new}": "is not a folder",
    "prepare picture-folder {corpus} --out {new}": "neither recordings.csv nor recordings.jsonl",
    "prepare picture-folder {corpus} --out {new} --recordings {recipe.yaml}": "allowed: a file named *.csv, *.tsv",
    "prepare picture-folder {corpus} --out {new} --dev anna": "'anna' is no share; give a number such as 0.1",
    "prepare flickr8k {nowhere} --out {new}": "is not a folder",
    "evaluate saysee-small --data {corpus/manifest.jsonl}": "lies in the package, where nothing is written; say",
    "zero-shot saysee-small --data {corpus/manifest.jsonl}": "lies in the package, where nothing is written; say by",
    "calibrate saysee-small --data {corpus/manifest.jsonl}": "lies in the package, where nothing is written; copy its",
    "train nowhere.yaml --data {corpus/manifest.jsonl} --out {new}": "bundled recipes: ",
    "train {corpus/0.png} --data {corpus/manifest.jsonl} --out {new}": "cannot read the configuration",
    "train {corpus} --data {corpus/manifest.jsonl} --out {new}": "cannot read the configuration",
    TRAIN + " --data {corpus/manifest.jsonl} --out {new} --training.stepz 3": "--training.stepz",
    TRAIN + " --data {corpus/manifest.jsonl} --out {new} --training.steps many": "training.steps",
    TRAIN + " --data {corpus/manifest.jsonl} --out {new} --training.steps": "expected one argument",
    TRAIN + " --data {corpus/manifest.jsonl} --out {new} --training.steps -5": "steps is -5; allowed: 1 or more",
    TRAIN + " --data {corpus/manifest.jsonl} --out {new} --loss.negatives soft": "loss.negatives",
    TRAIN + " --data {corpus/manifest.jsonl} --out {new} more": "unrecognized arguments: more",
    TRAIN + " --data {corpus/manifest.jsonl} --out {new} --device tpu": "device 'tpu' cannot be used",
    # fails: torch makes tensors on its `meta` device, which hold no numbers, and a traceback comes of it
    TRAIN + " --data {corpus/manifest.jsonl} --out {new} --device meta": "device 'meta' cannot be used",
    TRAIN + " --data {corpus/manifest.jsonl} --out {model} --training.seed 7": "training.seed (0 there, 7 here)",
    TRAIN + " --data {corpus/manifest.jsonl} --out {other} --training.seed 1 --loss.queue_size 8": "loss.queue_size",
    "evaluate {nowhere} --data {corpus/manifest.jsonl}": "is no model folder: config.json is missing",
    "evaluate {index} --data {corpus/manifest.jsonl}": "is no model folder",
    "evaluate {model} --data {corpus/manifest.jsonl} --rerank -1": "rerank is -1; allowed: ",
    "evaluate {model} --data {corpus/manifest.jsonl} --out {new.md}": "give a JSON file, the Markdown goes beside it",
    "evaluate {contrast} --data {corpus/manifest.jsonl} --rerank 5": "trained with loss.matching off",
    "evaluate {contrast} --data {corpus/manifest.jsonl} --fusion match": "trained with loss.matching off",
    "evaluate {model} --data {corpus/manifest.jsonl} --device cuda:99": "device 'cuda:99' cannot be used",
    "compare {nowhere} {model/results.json}": "cannot read the results",
    "compare {model/results.json} {model/config.json}": "is not a record of saysee",
    "compare {model/results.json} {corpus/0.png}": "is not JSON",
    "index build {nowhere} --model {model} --into {new}": "is no folder",
    "index build {model} --model {model} --into {new}": "no picture in",
    "index build {corpus} --model {corpus} --into {new}": "is no model folder",
    "index build {corpus} --model {model} --into {other}": "exists and is no index",
    "index build {corpus} --model {model} --into {recipe.yaml}": "exists and is no index",
    "search {nowhere} {question.ogg}": "is no index; make one with `saysee index build",
    "search {model} {question.ogg}": "is no index",
    "search {index} {nowhere.wav}": "nowhere.wav: there is no such file",
    "search {index} {corpus}": "a folder or a device",
    "search {index} {question.ogg} --model {other}": "the index was built with",
    "search {index} {question.ogg} --model {nowhere}": "is no model folder",
    "search {index} {question.ogg} --top 0": "top is 0",
    "search {index} {noise.wav}": "noise.wav: no speech was heard in it",
    "search {index} {recipe.yaml}": "recipe.yaml: is neither a recording (wav, ",
    "search {index}": "give a QUESTION, - for standard input, or --microphone",
    "search {index} {question.ogg} --microphone": "one of them",
    "search {index} {question.ogg} --since yesterday": "--since is 'yesterday'; give a day as 2024-05-31",
    "search {index} {question.ogg} --since 2024-02-01 --until 2024-01-01": "give the earlier day as since",
    "search {index} {corpus/3.png} --sheet {new}": "--sheet shows pictures that answer a recording",
    "index update {nowhere}": "is no index",
    "index update {index} --model {other}": "the index was built with",
    "index watch {nowhere}": "is no index",
    "index check {model}": "is no index",
    "index build {corpus} --model {other} --into {index}": "was built with",
    "index build {corpus} --model {model} --into {new} --milvus nowhere": "nowhere",
    "search {index} {question.ogg} --rerank -1": "rerank -1; allowed: 1 or more answers, 0 or more re-ranked",
}


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_one_line_and_changes_nothing(finished: World, command: str) -> None:
    before = contents(finished.folder)
    assert_mistake(finished(command), MISTAKES[command])
    assert contents(finished.folder) == before


def line_7(text: str) -> str:
    lines = text.splitlines()
    lines[6] = lines[6].replace(",", ";", 1)
    return "\n".join(lines) + "\n"


BAD_MANIFESTS: dict[str, tuple[Callable[[str], str], str]] = {
    "a duplicate id": (lambda text: text.replace('"c4"', '"c3"'), "'c3': this id stands 2 times"),
    "an unknown column": (lambda text: text.replace('"language"', '"tongue"', 1), "line 2 ('c0'): unknown column"),
    "invalid JSON": (line_7, "line 7: invalid JSON"),
    "an image in two splits": (lambda text: text.replace("9.png", "0.png"), "image_id '0.png' is in train and in dev"),
    "no header": (lambda text: text.partition("\n")[2], "line 1: it is no header"),
    "a newer format": (lambda text: text.replace('"saysee_manifest": 1', '"saysee_manifest": 2'), "update saysee"),
    "an unknown split": (lambda text: text.replace('"split": "test"', '"split": "exam"'), "unknown split 'exam'"),
    "no dev": (lambda text: text.replace('"split": "dev"', '"split": "test"'), "no caption is in dev"),
    "nothing": (lambda _: "", "line 1: it is no header"),
}


@pytest.mark.parametrize("command", ["validate", f"{TRAIN} --out {{new}} --data", "evaluate {model} --data"])
@pytest.mark.parametrize("kind", BAD_MANIFESTS)
def test_a_bad_manifest_is_refused_with_all_its_faults(world: World, kind: str, command: str) -> None:
    spoil, message = BAD_MANIFESTS[kind]
    path = world.folder / "corpus" / "manifest.jsonl"
    path.write_text(spoil(path.read_text()))
    before = contents(world.folder)
    outcome = world(command + " {corpus/manifest.jsonl}")
    if kind == "no dev" and command.startswith("evaluate"):  # a corpus that is only tested on needs no other split
        assert outcome.status == 0
        return
    count = int(re.findall(r"manifest\.jsonl: (\d+) faults?\n", outcome.err)[0])
    assert_mistake(outcome, message, lines=1 + count)
    assert contents(world.folder) == before


@pytest.mark.parametrize("command", ["validate", f"{TRAIN} --out {{new}} --data", "evaluate {model} --data"])
def test_a_manifest_that_is_not_there(finished: World, command: str) -> None:
    assert_mistake(finished(command + " {nowhere.jsonl}"), "nowhere.jsonl: 1 fault", "it cannot be read", lines=2)
    assert not (finished.folder / "new").exists()


@pytest.mark.parametrize("command", ["validate", f"{TRAIN} --out {{new}} --data"])
def test_all_files_of_a_manifest_that_cannot_be_used_are_listed_at_once(world: World, command: str) -> None:
    """Recordings of every bad kind, one that is missing, a bad picture: nothing is trained, all are named."""
    names = {f"bad {number}.wav": make() for number, make in enumerate(BAD_RECORDINGS.values())}
    write_corpus(world.folder / "corpus", recordings=names)
    (world.folder / "corpus" / "1.wav").unlink()
    (world.folder / "corpus" / "2.png").write_text("not a picture")
    outcome = world(command + " {corpus/manifest.jsonl}")
    assert_mistake(outcome, f": {len(names) + 2} faults\n", lines=1 + len(names) + 2)
    for name in (*names, "1.wav", "2.png"):
        assert len(re.findall(rf"corpus/{re.escape(name)}: ", outcome.err)) == 1, name
    assert not (world.folder / "new").exists()


@pytest.mark.parametrize("kind", [kind for kind in BAD_RECORDINGS if kind != "a picture"])
def test_a_bad_recording_is_no_question(finished: World, tmp_path: Path, kind: str) -> None:
    question = tmp_path / "question.wav"
    question.write_bytes(BAD_RECORDINGS[kind]())
    sheet = tmp_path / "answers.html"
    outcome = finished(f"search {{index}} '{question}' --sheet '{sheet}'")
    assert_mistake(outcome, "question.wav: ")
    assert list(tmp_path.iterdir()) == [question]


def test_bad_pictures_are_skipped_and_named_and_the_rest_is_indexed(world: World) -> None:
    for number, make in enumerate(BAD_PICTURES.values()):
        (world.folder / "corpus" / f"bad {number}.jpg").write_bytes(make())
    outcome = world("index build {corpus} --model {model} --into {new}")
    assert outcome.status == 0
    told = f"12 new or changed, {len(BAD_PICTURES)} skipped, 13 of other kinds"
    assert outcome.out == f"{world.folder / 'new'}: 12 pictures ({told})\n"
    *named, end = outcome.err.split("\n")
    assert end == ""
    assert len(named) == len(BAD_PICTURES)
    for number in range(len(BAD_PICTURES)):
        assert sum(line.startswith("saysee: skipped ") and f"bad {number}.jpg: " in line for line in named) == 1


def test_an_unknown_key_of_a_recipe_is_named(world: World) -> None:
    (world.folder / "recipe.yaml").write_text(RECIPE + "optimiser: {name: sgd}\n")
    outcome = world(f"{TRAIN} --data {{corpus/manifest.jsonl}} --out {{new}}")
    assert_mistake(outcome, "configuration: ", "optimiser")
    assert not (world.folder / "new").exists()


def test_a_run_on_other_data_is_refused_and_left_as_it_is(world: World) -> None:
    image = world.folder / "corpus" / "0.png"
    write_image(image, colour="black")
    before = contents(world.folder)
    outcome = world(f"{TRAIN} --data {{corpus/manifest.jsonl}} --out {{model}}")
    assert_mistake(outcome, "belongs to a run on other data; train into another folder")
    assert contents(world.folder) == before


def test_a_model_without_its_checkpoint_is_not_overwritten(world: World) -> None:
    (world.folder / "model" / "training" / "last.safetensors").unlink()
    before = contents(world.folder)
    outcome = world(f"{TRAIN} --data {{corpus/manifest.jsonl}} --out {{model}}")
    assert_mistake(outcome, "already holds a model and no checkpoint")
    assert contents(world.folder) == before


def test_a_picture_that_has_gone_since_the_index_was_built(world: World) -> None:
    """The ranking stands; the sheet, which needs the picture, is not half-written."""
    assert world("index build {corpus} --model {model} --into {new}").status == 0
    (world.folder / "corpus" / "3.png").unlink()
    assert world("search {new} {question.ogg} --top 12").status == 0
    outcome = world("search {new} {question.ogg} --top 12 --sheet {answers.html}")
    assert outcome.status == 2
    assert outcome.err.startswith("saysee: ")
    assert "3.png: there is no such file" in outcome.err
    assert not (world.folder / "answers.html").exists()
    assert litter(world.folder) == []


def test_a_picture_whose_name_is_not_text_can_be_an_answer(world: World) -> None:
    """File names are bytes: what UTF-8 cannot hold, and a line end, are shown escaped, one answer a line."""
    for name in (b"caf\xe9.png", b"two\nlines.png"):
        shutil.copy(world.folder / "corpus" / "3.png", world.folder / "corpus" / os.fsdecode(name))
    assert world("index build {corpus} --model {model} --into {new}").status == 0
    outcome = world("search {new} {question.ogg} --top 14")
    assert outcome.status == 0
    assert len(outcome.out.splitlines()) == 1 + 14
    assert "two\\nlines.png" in outcome.out
    assert len(json.loads(world("search {new} {question.ogg} --top 14 --json").out)["answers"]) == 14


def test_how_a_model_is_measured_can_be_said(finished: World, tmp_path: Path) -> None:
    common = f"evaluate {{model}} --data {{corpus/manifest.jsonl}} --cache {{../cache}} --out '{tmp_path / 'r.json'}'"
    assert finished(f"{common} --split dev --rerank 1 --fusion match").status == 0
    record = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    told = [record["about"][name] for name in ("split", "rerank", "fusion", "captions")]
    assert told == ["dev", 1, "match", 2]
    assert finished(f"{common} --rerank 0").status == 0
    record = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert {name.split("/")[0] for name in record["metrics"]} == {"coarse"}


def test_an_index_is_kept_up_to_date_and_checked(world: World) -> None:
    corpus, index = world.folder / "corpus", world.folder / "new"
    assert world("index build {corpus} --model {model} --into {new}").status == 0
    write_image(corpus / "new.png", colour="navy")
    (corpus / "0.png").rename(corpus / "moved.png")
    (corpus / "1.png").unlink()
    outcome = world("index update {new} --verbose")
    assert outcome.out == (
        f"{index}: 12 pictures (1 new or changed, 10 unchanged, 1 moved, 1 removed, 13 of other kinds)\n"
    )
    assert f"saysee: left out {corpus / '3.wav'}\n" in outcome.err
    checked = world("index check {new}")
    assert (checked.status, checked.err) == (0, "")
    assert checked.out == f"{index}: 12 pictures of {corpus}\nsearch is exact\nnothing is damaged\n"
    flat = index / "embeddings-0.f32"
    flat.write_bytes(b"\0" + flat.read_bytes()[1:])
    assert_spoilt = world("index check {new}")
    assert assert_spoilt.status == 2
    assert "are damaged; run `saysee index check" in assert_spoilt.err
    assert "took out 1;" in world("index check {new} --repair").out
    assert "1 new or changed" in world("index update {new}").out
    assert world("index check {new}").status == 0


def test_a_question_comes_from_standard_input_too(finished: World, monkeypatch: pytest.MonkeyPatch) -> None:
    content = (finished.folder / "question.ogg").read_bytes()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    piped = finished("search {index} -")
    assert piped == finished("search {index} {question.ogg}")
    assert piped.status == 0


def test_a_picture_asks_for_recordings_and_for_pictures(world: World) -> None:
    assert world("index build {corpus} --model {model} --into {sounds} --recordings").status == 0
    listed = json.loads(world("search {sounds} {corpus/3.png} --json --top 3").out)["answers"]
    assert {Path(answer["path"]).suffix for answer in listed} == {".wav"}
    assert all(answer["fine"] is not None for answer in listed)
    (first, *_) = json.loads(world("search {index} {corpus/3.png} --json").out)["answers"]
    assert first["path"].endswith("corpus/3.png")
    table = world("search {sounds} {corpus/3.png}").out
    assert table.split("\n")[0].split() == ["rank", "coarse", "fine", "recording"]


def test_two_results_are_compared(finished: World) -> None:
    told = finished("compare {model/results.json} {other/results.json}")
    assert told.status == 0
    assert str(finished.folder / "other") in told.out
    assert "image to speech" in told.out
    listed = finished("compare {model/results.json} {other/results.json} --json")
    assert listed.status == 0
    assert json.loads(listed.out)


@pytest.mark.parametrize(
    "command",
    [
        "evaluate {model} --data {corpus/manifest.jsonl} --cache {../cache} --out {corpus}",
        "search {index} {question.ogg} --sheet {corpus}",
    ],
)
def test_a_result_that_cannot_be_written_is_named_as_it_was_given(finished: World, command: str) -> None:
    before = contents(finished.folder)
    outcome = finished(command)
    assert (outcome.status, outcome.err) == (1, f"saysee: Is a directory: {finished.folder / 'corpus'}\n")
    assert contents(finished.folder) == before


def test_ctrl_c_is_one_line_and_keeps_what_was_finished(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(content: bytes, name: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("saysee.search.encoding.load_image", interrupted)
        outcome = world("index build {corpus} --model {model} --into {new}")
    assert (outcome.status, outcome.out) == (130, "")
    assert outcome.err == "saysee: interrupted; the same command goes on from where it was\n"
    assert world("index build {corpus} --model {model} --into {new}").status == 0


def test_a_fault_of_ours_is_not_hidden(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what a user or a disk can cause becomes one line."""

    def broken(content: bytes, name: str) -> None:
        raise IndexError

    monkeypatch.setattr("saysee.search.encoding.load_image", broken)
    with pytest.raises(IndexError):
        world("index build {corpus} --model {model} --into {new}")
    assert litter(world.folder) == []
