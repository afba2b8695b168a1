"""Encoders loaded in half precision: what they weigh, what they give, and how much memory the loading takes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from checkpoints import write_blip2, write_clip, write_hubert
from saysee.config import ImageBackboneConfig, Precision, SpeechBackboneConfig
from saysee.models.backbones import ImageBackbone, SpeechBackbone, load_image_backbone, load_speech_backbone
from saysee.models.backbones.base import mix_layers, pool_frames
from saysee.models.backbones.weights import DTYPES, Checkpoint, read_safetensors

# relative error of all numbers of the worst layer, measured when this was written: HuBERT 0.9 %, Whisper 3.0 % (its
# last of six layers), BLIP-2 0.6 %, CLIP 0.7 %, EfficientNet 5.5 % in bfloat16; at most 0.4 % in float16
SPEECH = {"hubert-base": 0.02, "hubert-large": 0.02, "whisper": 0.05}
IMAGE = {
    "blip2-patches": 0.015,
    "blip2-queries": 0.015,
    "clip-patches": 0.015,
    "clip-pooled": 0.015,
    "efficientnet": 0.1,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    write_hubert(folder / "hubert-base", "base")
    write_hubert(folder / "hubert-large", "large")
    write_blip2(folder / "blip2")
    write_clip(folder / "clip")
    return folder


def speech_backbone(folder: Path, name: str, precision: Precision, mix: bool = False) -> SpeechBackbone:
    if name == "whisper":
        config = SpeechBackboneConfig(pool=3, fixed_mix=(1.0,) * 7 if mix else None, precision=precision)
    else:
        config = SpeechBackboneConfig(
            "hubert", str(folder / name), pool=3, fixed_mix=(1.0,) * 4 if mix else None, precision=precision
        )
    return load_speech_backbone(config)


def image_backbone(folder: Path, name: str, precision: Precision) -> ImageBackbone:
    match name.split("-"):
        case ["blip2", tokens]:
            chosen = ImageBackboneConfig(
                "blip2", str(folder / "blip2"), None, "queries" if tokens == "queries" else "patches", precision
            )
        case ["clip", tokens]:
            chosen = ImageBackboneConfig(
                "clip", str(folder / "clip"), None, "pooled" if tokens == "pooled" else "patches", precision
            )
        case _:
            chosen = ImageBackboneConfig(precision=precision)
    return load_image_backbone(chosen)


def hear(backbone: SpeechBackbone) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(0)
    clips = [(0.1 * rng.standard_normal(samples)).astype(np.float32) for samples in (8_000, 5_000)]
    hidden, mask = backbone([backbone.prepare(clip) for clip in clips])
    return hidden, mask


def see(backbone: ImageBackbone) -> Tensor:
    rng = np.random.default_rng(1)
    picture = Image.fromarray(rng.integers(0, 256, (90, 70, 3), dtype=np.uint8))
    tokens: Tensor = backbone(backbone.prepare(picture)[None])
    return tokens


def relative_error(output: Tensor, expected: Tensor) -> float:
    return float((output.float() - expected).norm() / expected.norm())


def assert_only(backbone: SpeechBackbone | ImageBackbone, dtype: torch.dtype) -> None:
    assert backbone.dtype == dtype
    assert {tensor.dtype for tensor in backbone.state_dict().values()} == {dtype}
    assert all(not buffer.is_floating_point() for buffer in backbone.buffers())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", SPEECH)
def test_speech_in_half_precision_is_close_and_stays_in_its_type(name: str, precision: Precision, folder: Path) -> None:
    whole, half = speech_backbone(folder, name, "fp32"), speech_backbone(folder, name, precision)
    assert_only(whole, torch.float32)
    assert_only(half, DTYPES[precision])
    (expected, mask), (hidden, half_mask) = hear(whole), hear(half)
    assert hidden.dtype == DTYPES[precision]
    assert torch.equal(mask, half_mask)
    assert (hidden[1, :, int(mask[1].sum()) :] == 0).all()
    bound = SPEECH[name] if precision == "bf16" else 0.01
    for layer in range(whole.num_layers):
        assert relative_error(hidden[:, layer], expected[:, layer]) < bound, layer

    mixed, _ = hear(speech_backbone(folder, name, precision, mix=True))
    assert mixed.dtype == DTYPES[precision]
    assert relative_error(mixed, hear(speech_backbone(folder, name, "fp32", mix=True))[0]) < bound


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", IMAGE)
def test_pictures_in_half_precision_are_close_and_stay_in_their_type(
    name: str, precision: Precision, folder: Path
) -> None:
    whole, half = image_backbone(folder, name, "fp32"), image_backbone(folder, name, precision)
    assert_only(whole, torch.float32)
    assert_only(half, DTYPES[precision])
    tokens = see(half)
    assert tokens.dtype == DTYPES[precision]
    assert relative_error(tokens, see(whole)) < (IMAGE[name] if precision == "bf16" else 0.01)


def test_each_precision_is_an_encoder_of_its_own(folder: Path) -> None:
    precisions: tuple[Precision, ...] = ("fp32", "bf16", "fp16")
    prints = {image_backbone(folder, "clip-pooled", precision).fingerprint for precision in precisions}
    prints |= {speech_backbone(folder, "hubert-base", precision).fingerprint for precision in precisions}
    assert len(prints) == 6


def test_pooling_and_mixing_keep_the_type() -> None:
    hidden = torch.ones(1, 2, 5, 3, dtype=torch.bfloat16)
    assert pool_frames(hidden, torch.ones(1, 5, dtype=torch.bool), 2)[0].dtype == torch.bfloat16
    assert mix_layers(list(hidden.unbind(1)), [0.5, 0.5]).dtype == torch.bfloat16


@pytest.mark.parametrize("filename", ["model.safetensors", "pytorch_model.bin"])
def test_numbers_are_rounded_once_and_integers_stay(filename: str, tmp_path: Path) -> None:
    stored = {
        "a": torch.tensor([1.0, 1 + 2**-9, 3e38]),
        "half": torch.tensor([1.5, 2.25]).half(),
        "count": torch.tensor([2**40 + 1]),
        "small": torch.tensor([[100, -3]], dtype=torch.int8),
        "small.scale": torch.tensor([0.01]),
    }
    if filename.endswith("bin"):
        torch.save(stored, tmp_path / filename)
    else:
        save_file(stored, tmp_path / filename)
    tensors = Checkpoint(str(tmp_path)).tensors(lambda name: True, "bf16")
    assert torch.equal(tensors["a"], stored["a"].bfloat16())
    assert torch.equal(tensors["half"], stored["half"].bfloat16())
    assert torch.equal(tensors["count"], stored["count"])
    if filename.endswith("safetensors"):
        assert torch.equal(tensors["small"], torch.tensor([[1.0, -0.03]]).bfloat16())
        assert "small.scale" not in tensors


def test_what_was_read_does_not_depend_on_the_file_any_more(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(1000)}, path)
    tensors = read_safetensors(path)
    with path.open("r+b") as file:  # as a download would that writes over it
        file.seek(0)
        file.write(b"\0" * path.stat().st_size)
    assert (tensors["a"] == 1).all()


PROGRAM = """
import json, sys
from pathlib import Path
from saysee.models.backbones.weights import Checkpoint
checkpoint = Checkpoint(sys.argv[1])
def memory(name):
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields[name].split()[0]) * 1024
before = memory("RssAnon"), memory("VmHWM")
tensors = checkpoint.tensors(lambda name: name.startswith("eye."), "bf16")
print(json.dumps({"kept": memory("RssAnon") - before[0], "peak": memory("VmHWM") - before[1]}))
"""


@pytest.mark.parametrize("filename", ["model.safetensors", "pytorch_model.bin"])
def test_loading_in_half_precision_never_holds_the_whole_in_float32(filename: str, tmp_path: Path) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("memory is read from /proc, which this system does not have")
    size = 4_000_000  # numbers in each of 8 tensors: 128 MB in float32, 64 MB in bfloat16
    stored = {f"eye.{number}": torch.full((size,), float(number)) for number in range(8)}
    stored["mouth.0"] = torch.zeros(8 * size)  # as much again, which is not wanted
    if filename.endswith("bin"):
        torch.save(stored, tmp_path / filename)
    else:
        save_file(stored, tmp_path / filename)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=True, timeout=120
    )
    memory = json.loads(done.stdout)
    kept = 2 * 8 * size
    assert memory["kept"] < 1.4 * kept  # what stays is the model in bfloat16
    # the pages of the mapped file count too, 2 x kept; a copy of all in float32 would add as much again
    assert memory["peak"] < 3.7 * kept
