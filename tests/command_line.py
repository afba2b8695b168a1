"""The command line under test: run in this process or in one of its own, also with stand-ins for the two encoders.

`python tests/command_line.py ARGUMENTS` is `saysee ARGUMENTS` with the stand-ins of `stubs`: a real process that can be
interrupted or given a full disk, and does not load Whisper first.
"""

import contextlib
import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple
from unittest import mock

import numpy as np

from media import encode_audio, write_image, write_wav
from saysee.cli import main
from saysee.data.manifest import Manifest, Split, SpokenCaption, write_manifest
from saysee.data.sample import sample_manifest_path
from stubs import StubImageBackbone, StubSpeechBackbone

RECIPE = """\
model: {width: 16, embedding_dim: 8, heads: 2, multimodal_layers: 1}
loss: {queue_size: 16}
training: {steps: 12, batch_size: 4, warmup_steps: 2, evaluate_every: 4, checkpoint_every: 3}
"""


SPOKEN = sample_manifest_path().parent / "audio" / "en-art4apps" / "back.ogg"
"""A recording of a voice: a sine is no question."""

TRAIN = "train {recipe.yaml} --cache {../cache}"
"""For `World`: what it does with a manifest is not said yet."""


class Outcome(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str


def saysee(*arguments: object) -> Outcome:
    """Run a command in this process."""
    # as a terminal is: what UTF-8 cannot hold is an error, on standard error it is escaped
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace"))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as leaving:  # argparse's own way out
            status = leaving.code if isinstance(leaving.code, int) else 1
    for stream in (out, err):
        stream.seek(0)
    return Outcome(status, out.read(), err.read())


@dataclass(frozen=True)
class World:
    """A folder in which everything has been done once."""

    folder: Path

    def __call__(self, command: str) -> Outcome:
        """Run a command line in which `{name}` is the path `name` in the folder."""
        return saysee(*(re.sub(r"{(.+?)}", lambda m: str(self.folder / m[1]), word) for word in shlex.split(command)))


def finished_world(folder: Path) -> World:
    """Do everything once: a corpus, a recipe, a model with its results, other models, an index, a spoken question."""
    world = World(folder)
    write_corpus(folder / "corpus")
    shutil.copy(SPOKEN, folder / "question.ogg")
    noise = np.random.default_rng(0).normal(0, 0.1, (32_000, 1))
    (folder / "noise.wav").write_bytes(encode_audio(noise, 16_000, "wav"))
    (folder / "recipe.yaml").write_text(RECIPE)
    commands = [
        f"{TRAIN} --data {{corpus/manifest.jsonl}} --out {{model}}",
        f"{TRAIN} --data {{corpus/manifest.jsonl}} --out {{other}} --training.seed 1",
        f"{TRAIN} --data {{corpus/manifest.jsonl}} --out {{contrast}} --loss.matching false",
        "evaluate {model} --data {corpus/manifest.jsonl} --cache {../cache}",
        "evaluate {other} --data {corpus/manifest.jsonl} --cache {../cache}",
        "index build {corpus} --model {model} --into {index}",
    ]
    with stub_encoders():
        for command in commands:
            outcome = world(command)
            assert (outcome.status, outcome.err) == (0, ""), command
    return world


def assert_mistake(outcome: Outcome, *parts: str, lines: int = 1) -> None:
    """The last thing on stderr is one message, with these parts; nothing is on stdout."""
    assert outcome.status == 2, outcome
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    message = outcome.err[outcome.err.index("saysee: ") :]
    assert message.count("\n") == lines, message
    assert message.endswith("\n")
    for part in parts:
        assert part in message


def start(
    program: Sequence[object],
    *arguments: object,
    stdin: int | None = None,
    stdout: int | IO[str] = subprocess.PIPE,
) -> "subprocess.Popen[str]":
    """Start `python PROGRAM ARGUMENTS` with one thread, so that two runs compute the same bits."""
    # Python's own default, whatever is set for the tests: what is printed waits in a buffer
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    # a shell lets its background jobs ignore Ctrl-C, and what they start inherits that. It is not left to `preexec_fn`,
    # for which this process would be forked, perhaps with threads of gRPC in it: such a child aborts now and then
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            [sys.executable, *map(str, program), *map(str, arguments)],
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            env={**environment, "OMP_NUM_THREADS": "1"},
        )
    finally:
        signal.signal(signal.SIGINT, before)


def finish(process: "subprocess.Popen[str]") -> Outcome:
    """Wait for a process's end; one that does not come to it is killed, and the test fails."""
    try:
        out, err = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return Outcome(process.returncode, out or "", err)


@contextlib.contextmanager
def stub_encoders() -> Iterator[None]:
    """Inside the block every model is built on the stand-ins."""
    with (
        mock.patch("saysee.models.retrieval_model.load_speech_backbone", lambda _: StubSpeechBackbone()),
        mock.patch("saysee.models.retrieval_model.load_image_backbone", lambda _: StubImageBackbone()),
        mock.patch("saysee.workflows.load_speech_backbone", lambda _: StubSpeechBackbone()),
        mock.patch("saysee.workflows.load_image_backbone", lambda _: StubImageBackbone()),
    ):
        yield


def write_corpus(folder: Path, recordings: Mapping[str, bytes] | None = None) -> Path:
    """Write 12 pictures of one colour, 12 sines about them, and `manifest.jsonl`; return the manifest's path.

    Args:
        folder: of the corpus.
        recordings: further training captions of the first picture, by file name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    captions = []
    for number in range(12):
        image = write_image(folder / f"{number}.png", colour=f"hsl({30 * number}, 90%, 50%)")
        audio = write_wav(folder / f"{number}.wav", 0.5, frequency=200.0 + 60 * number)
        split: Split = "train" if number < 8 else "dev" if number < 10 else "test"
        captions.append(SpokenCaption(f"c{number}", audio, image.name, image, None, "anna", "en", split))
    for name, content in (recordings or {}).items():
        (folder / name).write_bytes(content)
        first = captions[0]
        captions.append(SpokenCaption(name, folder / name, first.image_id, first.image, None, "anna", "en", "train"))
    manifest = folder / "manifest.jsonl"
    write_manifest(manifest, Manifest("image", tuple(captions)))
    return manifest


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder with its content, hidden ones too."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def litter(folder: Path) -> list[Path]:
    """Return what was written under a temporary name and left below a folder."""
    return [path for path in folder.rglob("*") if path.name.startswith(".") or path.suffix == ".tmp"]


if __name__ == "__main__":
    with stub_encoders():
        sys.exit(main())
