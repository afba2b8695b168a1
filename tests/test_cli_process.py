"""The command line as a process: interrupted, out of disk space, and with nobody reading what it prints."""

import contextlib
import itertools
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

from command_line import RECIPE, SPOKEN, Outcome, contents, finish, litter, saysee, start, stub_encoders, write_corpus
from media import write_image
from saysee.models.retrieval_model import SpeechImageModel
from saysee.search.building import check_index
from saysee.search.index import open_index
from saysee.training import trainer
from saysee.training.step import StepReport, training_step
from saysee.training.trainer import CHECKPOINT_FILE

STUBBED = [Path(__file__).with_name("command_line.py")]
STEP_BY_STEP = ("--training.checkpoint_every", "1", "--training.evaluate_every", "1", "--training.steps", "100000")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, a recipe, a trained model, its index and the features, all in one folder; not to be changed."""
    folder = tmp_path_factory.mktemp("corpus")
    manifest = write_corpus(folder / "corpus")
    (folder / "recipe.yaml").write_text(RECIPE)
    with stub_encoders():
        assert saysee(*train(folder, folder / "model")).status == 0
        assert (
            saysee("index", "build", manifest.parent, "--model", folder / "model", "--into", folder / "index")[0] == 0
        )
    return folder


def train(folder: Path, out: Path, *more: str) -> list[object]:
    manifest = folder / "corpus" / "manifest.jsonl"
    return ["train", folder / "recipe.yaml", "--data", manifest, "--out", out, "--cache", folder / "cache", *more]


def wait_for_lines(process: "subprocess.Popen[str]", path: Path, lines: int) -> None:
    while process.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < lines):
        time.sleep(0.002)


@contextlib.contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """Inside the block this process cannot write a file beyond `size` bytes: writing fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def assert_full(outcome: Outcome) -> None:
    """One line, and status 1."""
    assert outcome.status == 1, outcome
    assert outcome.err.startswith("saysee: ")
    assert outcome.err.count("\n") == 1, outcome.err
    assert any(reason in outcome.err for reason in ("No space left on device", "File too large"))


def test_ctrl_c_in_training(corpus: Path, tmp_path: Path) -> None:
    process = start(STUBBED, *train(corpus, tmp_path / "model", *STEP_BY_STEP))
    wait_for_lines(process, tmp_path / "model" / "training" / "log.jsonl", 5)
    process.send_signal(signal.SIGINT)
    outcome = finish(process)
    assert outcome.status == 130
    assert outcome.err == "saysee: interrupted; the same command goes on from where it was\n"
    assert outcome.out == ""
    assert litter(tmp_path) == []


def test_a_run_goes_on_from_what_was_saved_before_the_disk_was_full(corpus: Path, tmp_path: Path) -> None:
    out, expected = tmp_path / "model", corpus / "model"
    saved = ("model.safetensors", CHECKPOINT_FILE)
    steps = itertools.count(1)

    def interrupted(*arguments: Any) -> StepReport:
        if next(steps) == 8:
            raise KeyboardInterrupt
        return training_step(*arguments)

    with stub_encoders():
        with mock.patch.object(trainer, "training_step", interrupted):
            assert saysee(*train(corpus, out)).status == 130
        before = contents(out)
        with no_file_above(20_000):
            assert_full(saysee(*train(corpus, out)))
        after = contents(out)
        assert litter(tmp_path) == []
        assert [after[name] for name in saved] == [before[name] for name in saved]
        assert saysee(*train(corpus, out)).status == 0
    for name in saved:
        received, wanted = load_file(out / name), load_file(expected / name)
        assert received.keys() == wanted.keys()
        assert all(torch.equal(received[key], wanted[key]) for key in wanted)


def build(corpus: Path, tmp_path: Path) -> Outcome:
    with stub_encoders():
        model, into = corpus / "model", tmp_path / "index"
        return saysee("index", "build", tmp_path / "pictures", "--model", model, "--into", into)


def names(index: Path) -> set[str]:
    opened = open_index(index)
    assert check_index(opened).damaged == ()
    found = {item.path for item in opened.store.items()}
    opened.close()
    return found


@pytest.mark.parametrize("room", [150_000, 60_000])
def test_a_disk_that_is_full_leaves_the_earlier_index(corpus: Path, tmp_path: Path, room: int) -> None:
    index, pictures = tmp_path / "index", tmp_path / "pictures"
    pictures.mkdir()
    write_image(pictures / "red.png")
    assert build(corpus, tmp_path).status == 0
    for number in range(200):
        write_image(pictures / f"{number}.png", colour=f"hsl({number}, 90%, 50%)", size=(40, 30 + number))
    with no_file_above(room):
        outcome = build(corpus, tmp_path)
    assert outcome.status == 1
    assert outcome.err.startswith("saysee: ")
    assert "Traceback" not in outcome.err
    assert "red.png" in names(index)
    assert len(names(index)) < 201
    assert litter(index) == []
    assert build(corpus, tmp_path).status == 0
    assert len(names(index)) == 201


def test_a_first_index_that_did_not_fit_can_be_built_when_there_is_room(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    write_image(tmp_path / "pictures" / "red.png")
    with no_file_above(100):
        assert build(corpus, tmp_path).status == 1
    assert build(corpus, tmp_path).status == 0
    assert names(tmp_path / "index") == {"red.png"}


def test_two_processes_do_not_train_into_one_folder(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    first = start(STUBBED, *train(corpus, out, "--training.steps", "100000"))
    wait_for_lines(first, out / "training" / "log.jsonl", 2)
    with stub_encoders():
        second = saysee(*train(corpus, out, "--training.steps", "100000"))
    first.kill()
    finish(first)
    assert second.status == 2
    assert second.err == f"saysee: another process is training into {out}; wait for it to end, or stop it\n"
    # the lock went with the process
    with stub_encoders():
        assert "training.steps" in saysee(*train(corpus, out)).err


@contextlib.contextmanager
def disk_of(size: int, folder: Path) -> Iterator[Path]:
    """A file system of `size` bytes at `folder`, inside the block."""
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mounting, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("this user may not mount a file system, and no other makes a disk really full")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(
    ("kilobytes", "there"),
    [(24, set()), (100, {"last.safetensors"}), (160, {"last.safetensors", "model.safetensors"})],
    ids=["the first checkpoint", "the first model", "the second checkpoint"],
)
def test_a_real_disk_on_which_something_does_not_fit(
    corpus: Path, tmp_path: Path, kilobytes: int, there: set[str]
) -> None:
    # What is not seen here, for it is a matter of chance: TensorBoard's writer writes in a thread of its own, at first
    # and then every two minutes, and the thread prints a traceback besides if the disk is full just then.
    with disk_of(kilobytes * 1024, tmp_path / "disk") as disk:
        assert_full(finish(start(STUBBED, *train(corpus, disk / "model", "--training.checkpoint_every", "4"))))
        assert {path.name for path in disk.rglob("*.safetensors")} == there
        assert litter(disk) == []
        if "model.safetensors" in there:
            with stub_encoders():
                SpeechImageModel.from_pretrained(disk / "model")


def search(corpus: Path) -> list[object]:
    return ["search", corpus / "index", SPOKEN]


def test_nobody_reads_the_answers(corpus: Path) -> None:
    """`saysee search ... | true`: few answers, which are printed when the program has nothing else to do."""
    # fails as long as standard output is flushed after `main` has returned, where nothing catches the error
    process = start(STUBBED, *search(corpus))
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    assert finish(process) == Outcome(0, "", "")


def test_the_answers_cannot_be_written(corpus: Path) -> None:
    # fails for the same reason
    with Path("/dev/full").open("w") as full:
        process = start(STUBBED, *search(corpus), stdout=full)
        assert_full(finish(process))
