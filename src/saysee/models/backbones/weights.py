"""Where the weights of a frozen encoder come from, read strictly: no tensor is missing, none is left over.

Three places: the files in this package (checked against their SHA-256), a folder, the Hugging Face hub. Only
safetensors are read, and, for old checkpoints that have nothing else, `pytorch_model.bin` through torch's reader for
weights alone.
"""

import dataclasses
import json
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from saysee.config import Precision
from saysee.errors import SayseeError
from saysee.files import sha256_of

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What a configuration's `precision` means."""

SCALE = ".scale"
"""Suffix of the fp32 scales (one per output channel) that stand beside an int8 tensor of a bundled file."""


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint: a folder, or the name of a repository on the Hugging Face hub.

    Attributes:
        name: the folder or the hub name.
        revision: the hub revision; None takes the newest.
    """

    name: str
    revision: str | None = None

    def pinned(self) -> "Checkpoint":
        """Return this checkpoint at one commit, so that all its files belong together whatever is pushed meanwhile.

        The revision of what comes back is the commit that the hub's cache names, `.../snapshots/<commit>/config.json`;
        a folder has none.

        Raises:
            SayseeError: see `find`.
        """
        if Path(self.name).is_dir():
            return dataclasses.replace(self, revision=None)
        path = self.find("config.json")
        commit = None if path is None else re.search(r"/snapshots/([^/]+)/", path.as_posix())
        return dataclasses.replace(self, revision=commit[1]) if commit else self

    def find(self, filename: str) -> Path | None:
        """Return the path of a file of the checkpoint, downloaded if need be; None if it has no such file.

        Raises:
            SayseeError: `name` is no folder and cannot be had from the hub.
        """
        folder = Path(self.name)
        if folder.is_dir():
            return folder / filename if (folder / filename).is_file() else None
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

        try:
            return Path(hf_hub_download(self.name, filename, revision=self.revision))
        except RemoteEntryNotFoundError:
            return None
        except LocalEntryNotFoundError as error:  # no network, and not in the cache
            if filename != "config.json" and self.find("config.json"):
                return None  # the rest is in the cache: a checkpoint in shards has no file that holds it all
            raise self._out_of_reach(error) from None
        except Exception as error:  # of the hub's client, its HTTP library or the file system: the advice is the same
            raise self._out_of_reach(error) from None

    def _out_of_reach(self, error: Exception) -> SayseeError:
        reason = " ".join(str(error).split())[:120]
        return SayseeError(
            f"the checkpoint {self.name!r} is no folder, and cannot be had from the Hugging Face hub ({reason}); "
            "give a folder that exists, or where there is a network make one: `hf download NAME --local-dir FOLDER`"
        )

    def architecture(self, *model_types: str) -> dict[str, Any]:
        """Read `config.json`, which must be of one of the families `model_types`.

        Raises:
            SayseeError: it is missing or of another family.
        """
        values = self.json("config.json")
        if values.get("model_type") not in model_types:
            raise SayseeError(
                f"the checkpoint {self.name!r} is of the type {values.get('model_type')!r}, not {model_types[0]!r}; "
                "change `family` or `checkpoint` in the config"
            )
        return values

    def json(self, filename: str) -> dict[str, Any]:
        """Read a JSON file of the checkpoint.

        Raises:
            SayseeError: it is missing or not a JSON object.
        """
        path = self.find(filename)
        if path is None:
            raise SayseeError(f"the checkpoint {self.name!r} has no {filename}; download the whole checkpoint again")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SayseeError(f"{path} cannot be read ({error}); download the checkpoint again") from None
        if not isinstance(values, dict):
            raise SayseeError(f"{path} holds {type(values).__name__} and not an object; download the checkpoint again")
        return values

    def tensors(self, wanted: Callable[[str], bool], precision: Precision = "fp32") -> dict[str, Tensor]:
        """Read the tensors whose names are wanted, and no others, one after the other, each brought to `precision`.

        A sharded checkpoint is read (and downloaded) only where the wanted tensors lie.

        Raises:
            SayseeError: there is no weight file in an allowed format, or it is damaged.
        """
        if path := self.find("model.safetensors"):
            return read_safetensors(path, wanted, precision)
        if self.find("model.safetensors.index.json"):
            shard_of = self.json("model.safetensors.index.json").get("weight_map", {})
            tensors: dict[str, Tensor] = {}
            for shard in sorted({file for name, file in shard_of.items() if wanted(name)}):
                path = self.find(shard)
                if path is None:
                    raise SayseeError(
                        f"the checkpoint {self.name!r} has no {shard}; download the whole checkpoint again"
                    )
                tensors |= read_safetensors(path, wanted, precision)
            return tensors
        if path := self.find("pytorch_model.bin"):
            return _read_torch(path, wanted, precision)
        raise SayseeError(
            f"the checkpoint {self.name!r} has no model.safetensors (nor its index, nor a pytorch_model.bin); "
            "give a whole checkpoint that was saved in the safetensors format"
        )


def published(name: str, revision: str | None) -> Checkpoint:
    """Return the checkpoint of a family of which none is bundled, pinned to one commit.

    Raises:
        SayseeError: `name` asks for a bundled one, or cannot be had.
    """
    if name.startswith("bundled"):
        raise SayseeError(
            f"checkpoint is {name!r}, but only Whisper and EfficientNet are bundled; "
            "give a folder or the name of a checkpoint on the Hugging Face hub, or change `family`"
        )
    return Checkpoint(name, revision).pinned()


def read_safetensors(
    path: Path, wanted: Callable[[str], bool] = lambda name: True, precision: Precision = "fp32"
) -> dict[str, Tensor]:
    """Read tensors of a safetensors file, one after the other, those that are int8 multiplied by their scales.

    Args:
        path: the file.
        wanted: which tensors, by name.
        precision: what each floating-point tensor is brought to; integers stay.

    Raises:
        SayseeError: the file is damaged.
    """
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(path, "pt") as file:
            names = set(file.keys())
            for name in sorted(filter(wanted, names)):
                if name.endswith(SCALE) and name.removesuffix(SCALE) in names:
                    continue
                tensor = file.get_tensor(name)
                if tensor.dtype == torch.int8 and name + SCALE in names:
                    tensor = tensor * file.get_tensor(name + SCALE).reshape(-1, *[1] * (tensor.dim() - 1))
                tensors[name] = _own(tensor, precision)
    except (OSError, SafetensorError) as error:
        raise SayseeError(f"{path} is not a whole safetensors file ({error}); fetch it again") from None
    return tensors


def bundled(filename: str, precision: Precision = "fp32") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a weight file that lies in this package.

    Returns:
        What the file says about itself (family, architecture, source, licence), and its tensors in `precision`.

    Raises:
        SayseeError: the file is not there, or is not the one in the list of checksums.
    """
    folder = resources.files("saysee") / "assets" / "weights"
    lines = (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    checksums = {name: checksum for checksum, name in (line.split() for line in lines)}
    if filename not in checksums or not (folder / filename).is_file():
        have = ", ".join(sorted(checksums))
        raise SayseeError(f"{filename} is not among the weights in this installation ({have}); choose one of these")
    with resources.as_file(folder / filename) as path:
        if sha256_of(path) != checksums[filename]:
            raise SayseeError(f"{path} has been altered (its SHA-256 is another); install saysee again")
        return describe(path), read_safetensors(path, precision=precision)


def describe(path: Path) -> dict[str, Any]:
    """Return what a weight file made by this project says about itself.

    Raises:
        SayseeError: it says nothing: it was made by something else.
    """
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    if "saysee" not in metadata:
        raise SayseeError(f"{path} was not made by make_encoder_weights.py; give a file that was, or `bundled`")
    description: dict[str, Any] = json.loads(metadata["saysee"])
    return description


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Give a module that was built on the meta device its weights, in the type that they have.

    Args:
        module: every parameter and buffer of it that is saved comes from `tensors`.
        tensors: by the module's own names.
        where: what the tensors were read from, for the message.

    Raises:
        SayseeError: a tensor is missing, left over or of the wrong shape; the message names it.
    """
    expected = module.state_dict()
    faults = {
        "missing": sorted(expected.keys() - tensors.keys()),
        "unexpected": sorted(tensors.keys() - expected.keys()),
        "of another shape": sorted(
            name for name in expected.keys() & tensors.keys() if expected[name].shape != tensors[name].shape
        ),
    }
    found = [
        f"{kind}: {names[0]}" + (f" and {len(names) - 1} more" if names[1:] else "")
        for kind, names in faults.items()
        if names
    ]
    if found:
        raise SayseeError(
            f"the weights of {where} do not fit its configuration ({'; '.join(found)}); "
            "give a complete checkpoint of this family"
        )
    module.load_state_dict(dict(tensors), strict=True, assign=True)


def _own(tensor: Tensor, precision: Precision) -> Tensor:
    # a copy: a tensor that still lies in the mapped file would change, or crash the process, when the file is replaced
    return tensor.to(DTYPES[precision] if tensor.is_floating_point() else tensor.dtype, copy=True)


def _read_torch(path: Path, wanted: Callable[[str], bool], precision: Precision) -> dict[str, Tensor]:
    try:
        # mapped, so that only what is wanted comes into memory; torch cannot do it for its format of before 2020
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        return {name: _own(tensor, precision) for name, tensor in stored.items() if wanted(name)}
    except (OSError, RuntimeError, AttributeError, pickle.UnpicklingError) as error:
        reason = str(error).split("\n", 1)[0][:160]
        raise SayseeError(f"{path} is not a plain dictionary of tensors ({reason}); give model.safetensors") from None
