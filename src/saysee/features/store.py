"""What the frozen backbones made of files, kept on disk in shards, and read back by memory map.

A backbone's features lie in a folder that is named by its fingerprint, and an entry is found by the SHA-256 of the file
that it was made of: a changed file or backbone has another name, so no answer can be stale. A shard is a safetensors
file with the entries of a few hundred files, one behind the other:

    features  (R, D)    fp16 or bf16; the rows of all entries: the L T frames of a recording, the P tokens of a picture
    ends      (n,)      int64, the row behind each entry's last one
    content   (n, 32)   uint8, the SHA-256 of each entry's file

and in its header the number of layers L (0 for pictures, whose entries have no such axis) and a SHA-256 over the three.
A shard is written whole under a temporary name and renamed; of two processes that make the same one, the later replaces
it by one that is as right. Many processes, on many machines that share the folder, may write at once.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from saysee.files import atomic_path

FORMAT_VERSION = 1
_KEY = 16  # bytes of a SHA-256 that are kept in memory; of a million files no two agree by chance


def default_cache_folder() -> Path:
    """Return `$SAYSEE_CACHE`, or `saysee` below `$XDG_CACHE_HOME`, or `~/.cache/saysee`."""
    if given := os.environ.get("SAYSEE_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "saysee"


@dataclass(frozen=True)
class _Index:
    """All entries of all shards, sorted by key; 28 bytes an entry."""

    shards: list[Path]
    layers: NDArray[np.int64]
    """(shards,)"""
    key: NDArray[np.bytes_]
    """(n,), the first 16 bytes of the SHA-256 of the file"""
    shard: NDArray[np.int32]
    start: NDArray[np.int32]
    end: NDArray[np.int32]


class FeatureStore:
    """The features of one backbone.

    Args:
        folder: of the cache; nothing is created there before the first shard is written.
        fingerprint: of the backbone.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder = folder / fingerprint[:32]
        self._open: dict[int, Any] = {}
        self._index = _read_index(self.folder)

    def __len__(self) -> int:
        return len(self._index.key)

    @property
    def nbytes(self) -> int:
        """Size of all shards on disk."""
        return sum(path.stat().st_size for path in self._index.shards if path.exists())

    def refresh(self) -> None:
        """See what has been written since, by this process or another; numbers of entries change."""
        self._open = {}
        self._index = _read_index(self.folder)

    def find(self, content: bytes) -> int:
        """Return the number of the entry for a file's SHA-256 (32 bytes), or -1."""
        place = int(np.searchsorted(self._index.key, np.bytes_(content[:_KEY])))
        # compared as bytes: numpy drops the zeros that a key ends in, which one in 256 has
        return place if place < len(self) and self.key(place) == content[:_KEY] else -1

    def frames(self, entry: int) -> int:
        """Return T of a recording's entry, P of a picture's."""
        index = self._index
        rows = int(index.end[entry]) - int(index.start[entry])
        return rows // max(1, int(index.layers[index.shard[entry]]))

    def key(self, entry: int) -> bytes:
        """Return what stands for the content of an entry's file: 16 bytes of its SHA-256."""
        return bytes(self._index.key[entry].ljust(_KEY, b"\0"))

    def read(self, entry: int) -> Tensor:
        """Return an entry, (L, T, D) or (P, D), in the type that it is stored in. It must not be written to.

        Raises:
            FileNotFoundError: its shard has been removed since.
            SafetensorError: its shard has been damaged since.
        """
        index = self._index
        shard = int(index.shard[entry])
        if shard not in self._open:
            file = safetensors.safe_open(index.shards[shard], "pt")
            self._open[shard] = file.get_slice("features")  # type: ignore[no-untyped-call]
        rows: Tensor = self._open[shard][int(index.start[entry]) : int(index.end[entry])]
        layers = int(index.layers[shard])
        return rows.view(layers, -1, rows.shape[1]) if layers else rows

    def write(self, content: Sequence[bytes], entries: Sequence[Tensor]) -> Path:
        """Write a shard; it counts from the next `refresh` on.

        Args:
            content: the SHA-256 of each entry's file, 32 bytes.
            entries: (L, T_i, D) or (P, D), of one type.

        Returns:
            The shard's path, which follows from the contents.
        """
        layers = entries[0].shape[0] if entries[0].dim() == 3 else 0
        rows = [entry.reshape(-1, entry.shape[-1]) for entry in entries]
        tensors = {
            "features": torch.cat(rows),
            "ends": torch.tensor([len(part) for part in rows]).cumsum(0),
            "content": torch.frombuffer(bytearray(b"".join(content)), dtype=torch.uint8).view(-1, 32),
        }
        header = {"format_version": FORMAT_VERSION, "layers": layers, "sha256": _checksum(tensors)}
        path = self.folder / f"{hashlib.sha256(b''.join(content)).hexdigest()[:24]}.safetensors"
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, {"saysee_features": json.dumps(header)})
        return path

    def damaged(self) -> Iterator[Path]:
        """Read every shard whole and give those whose bytes are no longer what was written."""
        for path in self._index.shards:
            try:
                with safetensors.safe_open(path, "pt") as file:
                    expected = json.loads(file.metadata()["saysee_features"])["sha256"]
                if _checksum(load_file(path)) != expected:
                    yield path
            except (OSError, safetensors.SafetensorError, KeyError):
                yield path


def _read_index(folder: Path) -> _Index:
    shards: list[Path] = []
    layers: list[int] = []
    keys: list[NDArray[np.bytes_]] = []
    ends: list[NDArray[np.int32]] = []
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safetensors.safe_open(path, "pt") as file:
                header = json.loads(file.metadata()["saysee_features"])
                number_of_layers, version = int(header["layers"]), header["format_version"]
                end, content = file.get_tensor("ends"), file.get_tensor("content")
        except FileNotFoundError:  # removed by another process
            continue
        except safetensors.SafetensorError:
            path.unlink(missing_ok=True)  # cut short by a failing disk: made again by the next extraction
            continue
        except (KeyError, TypeError, ValueError):  # no shard of ours
            continue
        if version != FORMAT_VERSION:  # another saysee's, which may still need it
            continue
        keys.append(content[:, :_KEY].contiguous().numpy().view(f"S{_KEY}")[:, 0])
        ends.append(end.numpy().astype(np.int32))
        shards.append(path)
        layers.append(number_of_layers)
    if not shards:
        nothing = np.empty(0, np.int32)
        return _Index([], np.empty(0, np.int64), np.empty(0, f"S{_KEY}"), nothing, nothing, nothing)
    # one column after the other, each let go of when it is done: there may be millions of entries
    shard = np.repeat(np.arange(len(shards), dtype=np.int32), [len(end) for end in ends])
    start = np.concatenate([np.r_[np.int32(0), end[:-1]] for end in ends])
    end = np.concatenate(ends)
    ends.clear()
    key = np.concatenate(keys)
    keys.clear()
    order = key.argsort(kind="stable")
    key = key[order]
    once = np.ones(len(key), bool)
    once[1:] = key[1:] != key[:-1]
    if not once.all():  # two processes may have made an entry twice: one of them counts
        key, order = key[once], order[once]
    return _Index(shards, np.array(layers), key, shard[order], start[order], end[order])


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in ("features", "ends", "content"):
        tensor = tensors[name].contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
