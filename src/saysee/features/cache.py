"""What the frozen backbones made of a file, kept on disk by the file's content and the backbone's fingerprint.

An entry's name is made of both hashes, so a changed file or backbone has another name and no answer can be stale. An
entry is written whole under a temporary name and renamed; of two processes that make the same entry, the later one
replaces it by one that is as right.
"""

import os
from pathlib import Path

import safetensors
from safetensors.torch import load_file, save_file
from torch import Tensor

from saysee.files import atomic_path


def default_cache_folder() -> Path:
    """Return `$SAYSEE_CACHE`, or `saysee` below `$XDG_CACHE_HOME`, or `~/.cache/saysee`."""
    if given := os.environ.get("SAYSEE_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "saysee"


class FeatureCache:
    """A folder of tensors, one file an entry: `<fingerprint>/<2 digits>/<content hash>.safetensors`."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        """Open the part of the cache that belongs to one backbone; nothing is created before the first `put`."""
        self.folder = folder / fingerprint[:32]

    def path(self, content: str) -> Path:
        """Return where the entry for a content hash is, or would be."""
        return self.folder / content[:2] / f"{content}.safetensors"

    def __contains__(self, content: str) -> bool:
        """Say whether there is an entry for a content hash; one that was cut short (its header tells) is none."""
        try:
            with safetensors.safe_open(self.path(content), "pt"):
                return True
        except (OSError, safetensors.SafetensorError):
            return False

    def get(self, content: str) -> Tensor:
        """Return an entry's tensor.

        Raises:
            KeyError: there is no entry, or its file is damaged (it is removed, so that it is made again).
        """
        path = self.path(content)
        try:
            return load_file(path)["features"]
        except FileNotFoundError:
            raise KeyError(content) from None
        except (safetensors.SafetensorError, KeyError):
            path.unlink(missing_ok=True)
            raise KeyError(content) from None

    def put(self, content: str, features: Tensor) -> None:
        """Keep a tensor."""
        with atomic_path(self.path(content)) as temporary:
            save_file({"features": features.contiguous()}, temporary)
