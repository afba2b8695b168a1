"""The model in the package: how it is made from what training kept, what its card says, and that it knows something."""

import importlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from command_line import saysee, stub_encoders
from make_saysee_small import FOLDER, RECIPE, ship
from saysee.config import load_config
from saysee.data.sample import sample_manifest_path
from saysee.evaluation.overlap import SEEN_FILE
from saysee.models.model_folder import bundled_models, read_model_folder
from saysee.models.retrieval_model import SpeechImageModel
from stubs import small_model

ROOT = Path(__file__).parents[1]
QUESTION = sample_manifest_path().parent / "audio" / "en-art4apps" / "cow.ogg"
LARGEST, TRACKED = 45_000_000, 55_000_000  # bytes of everything that is in the package, and of all that git tracks


def test_what_training_kept_is_shipped_in_16_bits_with_what_it_has_seen(tmp_path: Path) -> None:
    trained, into = tmp_path / "trained", tmp_path / "package" / "small"
    model = small_model()
    model.save_pretrained(trained)
    (trained / SEEN_FILE).write_bytes(b"seen")
    with stub_encoders():
        ship(trained, into)
        shipped = SpeechImageModel.from_pretrained(into)
    assert (into / SEEN_FILE).read_bytes() == b"seen"
    assert {tensor.dtype for tensor in load_file(into / "model.safetensors").values()} == {torch.float16}
    for name, tensor in model.trainable_state().items():
        torch.testing.assert_close(shipped.trainable_state()[name], tensor, atol=1e-3, rtol=1e-3)


def test_the_model_is_of_its_recipe() -> None:
    assert bundled_models()["saysee-small"] == FOLDER
    assert read_model_folder(FOLDER).config == load_config(RECIPE)


def test_an_index_is_built_with_it_by_default_and_finds_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its name, so that an index outlives the environment that it was built in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    for name in ("boat", "cow", "owl"):
        shutil.copy(sample_manifest_path().parent / "images" / f"{name}.jpg", tmp_path / "pictures")
    built = saysee("index", "build", "pictures", "--into", "pictures.index")
    assert built.status == 0, built.err
    assert json.loads((tmp_path / "pictures.index" / "index.json").read_text())["model"] == "saysee-small"
    asked = saysee("search", "pictures.index", QUESTION, "--json")
    assert asked.status == 0, asked.err
    assert len(json.loads(asked.out)["answers"]) == 3


def test_the_card_has_the_figures_on_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    tables = importlib.import_module("shipped_model").tables()
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for table in tables.split("\n\n"):
        assert table in card
    assert "@@" not in card


def test_the_figures_on_record_are_of_the_weights_in_the_package() -> None:
    figures = json.loads((ROOT / "benchmarks" / "results" / "shipped_model.json").read_text())["figures"]
    assert figures["model_fingerprint"] == SpeechImageModel.from_pretrained("saysee-small").fingerprint


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no checkout")
def test_what_is_tracked_stays_small() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    tracked = [ROOT / os.fsdecode(name) for name in listed.split(b"\0") if name]
    assert sum(path.stat().st_size for path in tracked if path.is_file()) < TRACKED


def test_all_that_is_in_the_package_stays_small() -> None:
    files = [path for path in (ROOT / "src" / "saysee").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert sum(path.stat().st_size for path in files) < LARGEST
