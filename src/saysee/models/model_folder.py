"""A model folder on disk: what lies in it, where it is found, and how it is read without its backbones.

It holds `config.json` (the whole configuration, format version, what the backbones were) and `model.safetensors` (the
trainable parts). The frozen backbones are referred to by name and fingerprint. The hash of every tensor and of the
configuration stands in the header of `model.safetensors`, so that an altered file is refused, and a training run that
finds a better model replaces it by one rename.

A few model folders lie in the package itself and are found by their name.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from saysee.config import Config
from saysee.errors import SayseeError
from saysee.files import atomic_path, write_text

FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


def bundled_models() -> dict[str, Path]:
    """Return the folders of the models that come with the package, by their names."""
    folder = Path(str(resources.files("saysee") / "assets" / "models"))
    return {path.name: path for path in sorted(folder.iterdir()) if path.is_dir()}


def find_model(name: Path | str) -> Path:
    """Return the folder that is meant: that of a model in the package by its name, or else the path itself.

    A name means the package's model in whatever folder a command is given; one's own of the same name has a whole path.
    """
    return bundled_models().get(str(name), Path(name))


def name_of_model(name: Path | str) -> Path:
    """Return by what a model is found again from any folder: a whole path, or the name of one in the package."""
    folder = find_model(name).resolve()
    return Path({path.resolve(): bundled for bundled, path in bundled_models().items()}.get(folder, str(folder)))


@dataclass(frozen=True)
class SavedModel:
    """A model folder's content, checked against its hashes."""

    config: Config
    described: dict[str, Any]
    state: dict[str, Tensor]


def read_model_folder(folder: Path) -> SavedModel:
    """Read and check a model folder without loading its backbones.

    Raises:
        SayseeError: no such folder, a file missing or altered, a newer format.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise SayseeError(
                f"{folder} is no model folder: {name} is missing; give a folder written by `saysee train` or "
                f"`save_pretrained`, or the name of a model in the package: {', '.join(bundled_models())}"
            )
    config_bytes = (folder / CONFIG_FILE).read_bytes()
    altered = f"{folder}: {{}} was altered or damaged after it was written; restore the folder from a copy"
    try:
        described = json.loads(config_bytes)
        version = described.pop("format_version")
    except (ValueError, KeyError, AttributeError, TypeError):
        raise SayseeError(altered.format(CONFIG_FILE)) from None
    if version != FORMAT_VERSION:
        raise SayseeError(
            f"{folder} has model format {version}; this saysee reads format {FORMAT_VERSION}: upgrade saysee, or train "
            "again"
        )
    try:
        with safetensors.safe_open(folder / WEIGHTS_FILE, "pt") as file:
            hashes = dict(json.loads((file.metadata() or {})["saysee"]))
        state = load_file(folder / WEIGHTS_FILE)
    except (safetensors.SafetensorError, OSError, KeyError, ValueError, TypeError):
        raise SayseeError(altered.format(WEIGHTS_FILE)) from None
    if hashes.get("tensors_sha256") != hash_tensors(state):
        raise SayseeError(altered.format(WEIGHTS_FILE))
    if hashes.get("config_sha256") != hashlib.sha256(config_bytes).hexdigest():
        raise SayseeError(altered.format(CONFIG_FILE))
    sections = {name: described[name] for name in Config.__dataclass_fields__ if name in described}
    return SavedModel(Config.from_dict(sections), described, state)


def write_model_folder(folder: Path, described: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Write a model folder's two files.

    A reader meanwhile sees the old model or the new one, as long as both have one configuration (in training they
    have). Over another model's folder, a crash between its two files leaves one that is refused as altered.

    Args:
        folder: is made if it is not there.
        described: the configuration and what the backbones were.
        state: the trainable tensors by name, on the CPU.
    """
    config_text = json.dumps({"format_version": FORMAT_VERSION, **described}, indent=2) + "\n"
    hashes = {
        "tensors_sha256": hash_tensors(state),
        "config_sha256": hashlib.sha256(config_text.encode()).hexdigest(),
    }
    write_text(folder / CONFIG_FILE, config_text)
    with atomic_path(folder / WEIGHTS_FILE) as temporary:
        # one entry: safetensors writes several in an order of its own, and equal models should be equal files
        save_file(dict(state), temporary, {"saysee": json.dumps(hashes)})


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 (hexadecimal) over names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
