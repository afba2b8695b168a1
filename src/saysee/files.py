"""Files that are whole or not there: written to a temporary name, flushed, renamed; and their hashes."""

import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from saysee.errors import SayseeError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` that replaces it when the block ends without an error.

    A reader sees the old file or the new one, never a part. On an error (a full disk, Ctrl-C) the temporary file is
    removed and `path` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name[:64]}.{secrets.token_hex(6)}.tmp"
    temporary.touch(exist_ok=False)
    # what the umask makes of a new file; safetensors would let its owner alone read it
    mode = temporary.stat().st_mode
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` (UTF-8) atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def sole_process(path: Path, doing: str, *, wait: bool = False) -> Iterator[None]:
    """Hold a lock file for the block; the lock goes with the process, however it ends.

    Args:
        path: of the lock file.
        doing: what is done in the block, for the message.
        wait: whether to wait for another process that holds it.

    Raises:
        SayseeError: another process holds it, and this one is not to wait.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise SayseeError(f"another process is {doing}; wait for it to end, or stop it") from None
        yield


def free_bytes(folder: Path) -> int:
    """Return the room that is left where a folder is, or would be made."""
    while not folder.exists():
        folder = folder.absolute().parent
    return shutil.disk_usage(folder).free


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal, reading a megabyte at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def hash64(text: str) -> int:
    """Return 64 bits that stand for a text, the same on every machine; of a million texts two agree once in 3e7 tries.

    For tables in which the texts themselves would take ten times the memory.
    """
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
