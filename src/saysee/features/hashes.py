"""The SHA-256 of files, remembered, so that a corpus of 64 GB is not read again to see that nothing has changed.

A file is known by its path, size, inode and the times of its last change, as git knows it. The time of the last change
of the inode (`st_ctime_ns`) cannot be set by a program, so a file that was rewritten and given its old size and date is
hashed again. A file that was changed within the last two seconds is not remembered: it may be changed again within the
clock's resolution.
"""

import hashlib
import json
import mmap
import os
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from saysee.files import atomic_path

_RACY_NANOSECONDS = 2_000_000_000


class FileHashes:
    """What is remembered in one file, `files.safetensors`; lost or damaged, it costs time and nothing else.

    Args:
        folder: of the cache.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "files.safetensors"
        self._keys, self._digests = self._read()
        self._new: dict[bytes, bytes] = {}

    def get(self, path: Path) -> bytes | None:
        """Return the SHA-256 (32 bytes) of a file that has not changed since it was remembered, else None."""
        try:
            key = file_key(path, path.stat())
        except (OSError, UnicodeEncodeError):  # a manifest may name what no file can be called
            return None
        if key in self._new:
            return self._new[key]
        place = int(np.searchsorted(self._keys, np.bytes_(key)))
        # numpy drops the zeros that a key ends in, which one in 256 has
        if place < len(self._keys) and self._keys[place] == key.rstrip(b"\0"):
            digest: bytes = self._digests[place].tobytes()
            return digest
        return None

    def put(self, key: bytes, digest: bytes) -> None:
        """Remember a file's SHA-256; `key` must have been taken before the file was read."""
        self._new[key] = digest

    def save(self) -> None:
        """Write what is new. Of two processes that do so at once, one may forget what the other has learnt."""
        if not self._new:
            return
        keys, digests = self._read()
        # what is new stands first, so that it replaces a digest that was spoilt on disk
        keys = np.concatenate([np.array(list(self._new), dtype="S16"), keys])
        digests = np.concatenate([np.frombuffer(b"".join(self._new.values()), np.uint8).reshape(-1, 32), digests])
        keys, first = np.unique(keys, return_index=True)
        self._keys, self._digests, self._new = keys, digests[first], {}
        with atomic_path(self._path) as temporary:
            tensors = {
                "file": torch.from_numpy(self._keys.view(np.uint8).reshape(-1, 16).copy()),
                "sha256": torch.from_numpy(self._digests),
            }
            save_file(tensors, temporary)

    def _read(self) -> tuple[NDArray[np.bytes_], NDArray[np.uint8]]:
        """Map what is remembered (n,), (n, 32): a million files are 48 MB that need not be in memory."""
        try:
            # opened once: `safe_open` opens a file again to map it, and another process may have replaced it by then
            with self._path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            start = 8 + int.from_bytes(mapped[:8], "little")  # safetensors: length of the header, header, tensors
            header = json.loads(mapped[8:start])
            keys, digests = (
                np.frombuffer(mapped, kind, header[name]["shape"][0], start + header[name]["data_offsets"][0])
                for name, kind in (("file", "S16"), ("sha256", "(32,)u1"))
            )
        except (OSError, ValueError, LookupError, TypeError):
            keys, digests = np.empty(0, "S16"), np.empty((0, 32), np.uint8)
        return keys, digests


def sha256(content: bytes) -> bytes:
    """Return the SHA-256 of a file's content, 32 bytes."""
    return hashlib.sha256(content).digest()


def is_settled(status: os.stat_result) -> bool:
    """Say whether a file's last change is long enough ago for it to be remembered."""
    return time.time_ns() - status.st_ctime_ns > _RACY_NANOSECONDS


def file_key(path: Path, status: os.stat_result) -> bytes:
    """Return what a file is known by, 16 bytes."""
    known = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    return hashlib.blake2b(os.fsencode(path) + repr(known).encode(), digest_size=16).digest()
