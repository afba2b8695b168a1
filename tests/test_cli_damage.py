"""Model folders and indexes with a missing, damaged, altered or newer file: one line, and nothing is changed."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors
from safetensors.torch import load_file, save_file

from command_line import World, assert_mistake, contents, finished_world, stub_encoders


@pytest.fixture(autouse=True)
def stand_ins() -> Iterator[None]:
    with stub_encoders():
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> World:
    return finished_world(tmp_path_factory.mktemp("world") / "finished")


@pytest.fixture
def world(finished: World, tmp_path: Path) -> World:
    shutil.copytree(finished.folder, tmp_path / "world")
    return World(tmp_path / "world")


def newer(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 2}))


def newer_index(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "saysee_index": 3}))


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def another_dropout(path: Path) -> None:
    path.write_text(path.read_text().replace('"dropout": 0.1', '"dropout": 0.2'))


def another_temperature(path: Path) -> None:
    """A file that is in order, with its old header and other numbers."""
    with safetensors.safe_open(path, "pt") as file:
        header = file.metadata()
    tensors = load_file(path)
    tensors["temperature"] = tensors["temperature"] * 2
    save_file(tensors, path, header)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


SPOILT_MODELS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "no configuration": ("config.json", Path.unlink, "is no model folder: config.json is missing"),
    "no weights": ("model.safetensors", Path.unlink, "is no model folder: model.safetensors is missing"),
    "a newer format": ("config.json", newer, "has model format 2; this saysee reads format 1: upgrade saysee"),
    "another setting": ("config.json", another_dropout, "config.json was altered or damaged"),
    "a cut configuration": ("config.json", cut, "config.json was altered or damaged"),
    "other numbers": ("model.safetensors", another_temperature, "model.safetensors was altered or damaged"),
    "cut weights": ("model.safetensors", cut, "model.safetensors was altered or damaged"),
}


@pytest.mark.parametrize("kind", SPOILT_MODELS)
def test_a_model_folder_with_a_missing_altered_or_newer_file(world: World, kind: str) -> None:
    name, spoil, message = SPOILT_MODELS[kind]
    spoil(world.folder / "model" / name)
    before = contents(world.folder)
    assert_mistake(world("evaluate {model} --data {corpus/manifest.jsonl} --cache {../cache}"), message)
    assert_mistake(world("index build {corpus} --model {model} --into {new}"), message)
    assert_mistake(world("search {index} {question.ogg} --model {model}"), message)
    assert contents(world.folder) == before


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("index.json", newer_index, "has index format 3; this saysee reads 2: upgrade saysee, or remove"),
        ("index.json", half, "is damaged"),
        ("records.sqlite", Path.unlink, "records.sqlite is missing; build the index again"),
        ("records.sqlite", half, "records.sqlite"),
        ("embeddings-0.f32", Path.unlink, "embeddings-0.f32 is missing"),
        ("hidden-0.f16", Path.unlink, "hidden-0.f16 is missing"),
    ],
)
def test_an_index_with_a_missing_damaged_altered_or_newer_file(
    world: World, name: str, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(world.folder / "index" / name)
    assert_mistake(world("search {index} {question.ogg}"), message)
