"""Where a model folder is found: a path, or a name in the package; and how it is kept in 16 bits."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from command_line import stub_encoders
from saysee.errors import SayseeError
from saysee.models.model_folder import bundled_models, find_model, name_of_model, read_model_folder
from saysee.models.retrieval_model import SpeechImageModel
from stubs import small_model


def test_a_model_of_the_package_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = bundled_models()["saysee-small"]
    assert find_model("saysee-small") == find_model(Path("saysee-small")) == folder
    assert name_of_model(folder) == Path("saysee-small")  # wherever the package is installed next year
    (tmp_path / "saysee-small").mkdir()
    assert find_model("saysee-small") == folder  # whatever lies in the folder of the moment
    own = tmp_path / "saysee-small"
    assert (find_model(own), name_of_model(own)) == (own, own.resolve())


def test_what_is_not_there_is_said_with_what_is(tmp_path: Path) -> None:
    with pytest.raises(SayseeError, match=r"nothing is no model folder: config.json is missing.*: saysee-small$"):
        SpeechImageModel.from_pretrained(tmp_path / "nothing")


@pytest.mark.parametrize("name", sorted(bundled_models()))
def test_every_model_of_the_package_is_whole(name: str) -> None:
    folder = bundled_models()[name]
    read_model_folder(folder)  # checks every hash
    assert {path.name for path in folder.iterdir()} == {
        *("README.md", "config.json", "model.safetensors", "calibration.json", "seen.safetensors"),
    }


def test_a_model_in_16_bits_is_half_as_large_and_the_rounded_one(tmp_path: Path) -> None:
    model = small_model()
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "half", torch.float16)
    tensors = load_file(tmp_path / "half" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    with stub_encoders():
        half = SpeechImageModel.from_pretrained(tmp_path / "half")
    assert half.temperature.dtype == torch.float32
    for name, tensor in model.trainable_state().items():
        torch.testing.assert_close(half.trainable_state()[name], tensor.half().float(), rtol=0, atol=0)
    assert half.fingerprint != model.fingerprint  # no index takes one for the other
