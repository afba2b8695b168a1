"""What the command line says of itself: help, version, words it does not know; and the demo, which shows it all."""

import re
import shlex
import signal
import tomllib
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import yaml

from command_line import RECIPE, Outcome, contents, finish, saysee, start, stub_encoders
from saysee import demo
from saysee.cli import build_parser
from saysee.config import Config
from saysee.data.manifest import read_manifest
from saysee.data.sample import sample_manifest_path

COMMANDS = (
    *("prepare", "speak", "validate", "extract", "train", "evaluate", "zero-shot", "ablate", "table", "compare"),
    *("index", "index build", "index update", "index watch", "index check", "search", "serve", "record"),
    *("calibrate", "demo"),
)


def test_help_shows_an_example_of_every_command_that_is_valid() -> None:
    assert "saysee demo" in saysee("--help").out
    for command in COMMANDS:
        outcome = saysee(*command.split(), "--help")
        assert outcome.status == 0
        (example,) = re.findall(r"^example:\n  (saysee .*)$", outcome.out, re.MULTILINE)
        program, *words = shlex.split(example)
        assert (program, " ".join(words).startswith(command)) == ("saysee", True)
        options, unknown = build_parser().parse_known_args(words)
        assert options.command == command.split()[0]
        if command == "train":
            values = dict(zip(unknown[::2], unknown[1::2], strict=True))
            assert values
            assert Config.from_dict({}, unknown) != Config()
        else:
            assert unknown == []


def test_help_lists_every_command() -> None:
    listed = re.findall(r"^    ([a-z-]+)(?:  |$)", saysee("--help").out, re.MULTILINE)
    assert listed == [command for command in COMMANDS if " " not in command]


def test_version_is_that_of_the_package() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    assert saysee("--version") == Outcome(0, f"saysee {project['project']['version']}\n", "")


def test_help_does_not_wait_for_torch() -> None:
    heavy = "{'torch', 'transformers', 'jsonargparse'} & set(sys.modules)"
    program = f"import sys; from saysee.cli import build_parser; build_parser(); print({heavy})"
    assert finish(start(["-c", program])) == Outcome(0, "set()\n", "")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "required: COMMAND"),
        ("find", "invalid choice: 'find'"),
        ("index", "required: ACTION"),
        ("train tiny", "required: --data, --out"),
        ("search my.index question.wav --fast", "unrecognized arguments: --fast"),
        ("search my.index question.wav --top ten", "invalid int value: 'ten'"),
        ("evaluate runs/tiny --data manifest.jsonl --split all", "invalid choice: 'all'"),
        ("evaluate runs/tiny --data manifest.jsonl --fusion sum", "invalid choice: 'sum'"),
        # no option may be shortened: a later option of the same beginning would change what a script means
        ("evaluate runs/tiny --dat manifest.jsonl", "required: --data"),
    ],
)
def test_a_wrong_word_is_told_by_argparse(command: str, message: str) -> None:
    outcome = saysee(*command.split())
    assert outcome.status == 2
    assert outcome.out == ""
    *_, last = outcome.err.splitlines()
    assert re.match(r"saysee( \w+)*: error: ", last)
    assert message in last


@pytest.mark.parametrize("option", ["--out", "--cache"])
@pytest.mark.parametrize("command", ["train", "ablate", "table"])
def test_a_file_where_a_folder_belongs_is_told_at_once(tmp_path: Path, command: str, option: str) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        outcome = saysee(command, "tiny", "--data", tmp_path / "m.jsonl", "--out", tmp_path / "out", option, path)
        assert (outcome.status, outcome.out) == (2, "")
        advice = f"argument {option}: '{tmp_path}/file' is a file; give a folder, which is made if it is not there"
        assert advice in outcome.err


def test_the_demo_asks_the_model_in_the_package_and_lets_the_user_speak(tmp_path: Path) -> None:
    """The real model, in a process of its own as a newcomer starts it, up to the page."""
    demo = start(("-m", "saysee"), "demo", "--out", tmp_path)
    try:
        assert demo.stdout is not None
        told = ""
        while not (line := demo.stdout.readline()).startswith("open "):
            told += line
            assert line, (told, finish(demo))
        page = line.removeprefix("open ").strip()
        about = httpx.get(f"{page}api/about", trust_env=False).json()
    finally:
        demo.send_signal(signal.SIGINT)
        ended = finish(demo)
    assert (ended.status, ended.err) == (0, "")
    assert about["items"] == 184
    asked = re.search(r"Asking (\d+) words of all 184 drawings.* first for (\d+) .* first ten for (\d+)", told)
    assert asked, told
    words, first, ten = map(int, asked.groups())
    # of drawings and a voice that it has never met: by chance 0 and 2
    assert (words, first >= 3, ten >= 12) == (34, True, True), told
    assert (tmp_path / "answers.html").read_text(encoding="utf-8").count("<figure") == 18


def test_the_demo_tells_what_it_does_and_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo of training on the whole sample corpus, with stand-ins for the encoders and 3 steps of hundreds."""

    def recipe(*overrides: str) -> Callable[[str], Config]:
        return lambda name: Config.from_dict(yaml.safe_load(RECIPE), ["--training.steps", "3", *overrides])

    monkeypatch.setattr(demo, "load_config", recipe())
    with stub_encoders():
        first, again = saysee("demo", "--train", "--out", tmp_path), saysee("demo", "--train", "--out", tmp_path)
        monkeypatch.setattr(demo, "load_config", recipe("--training.seed", "1"))
        refused = saysee("demo", "--train", "--out", tmp_path)
    assert (first.status, first.err) == (0, "")
    assert again == first
    assert refused.status == 2
    assert "belongs to a run with another training.seed" in refused.err

    corpus = read_manifest(sample_manifest_path())
    assert corpus.summary() in first.out
    assert re.search(r"^fine +image to speech +\d", first.out, re.MULTILINE)
    for question in ("English recording for the drawing `back`", "Spanish recording for", "French recording for"):
        assert question in first.out
    sheet = (tmp_path / "answers.html").read_text(encoding="utf-8")
    assert (sheet.count("<section"), sheet.count("<figure"), sheet.count("<audio")) == (3, 18, 3)
    assert f"trained on the spot on {len(corpus.of('train'))} recordings" in sheet
    assert contents(tmp_path / "model").keys() >= {"config.json", "model.safetensors", "results.json", "results.md"}
