"""Opening what a user names as a recording or a picture: a path, or the bytes of a file; and its name in an error."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from saysee.errors import SayseeError


@contextmanager
def open_source(
    source: Path | bytes, name: str | None, max_bytes: int, error_type: type[SayseeError]
) -> Iterator[BinaryIO]:
    """Give an open binary file, and turn every error inside the block into one line that names it.

    Args:
        source: the path of a file, or its content.
        name: what an error calls it; by default the path, or how many bytes there are.
        max_bytes: a larger file is refused before it is read.
        error_type: what is raised. One raised inside the block, or an `OSError`, comes out with the name in front.

    Raises:
        SayseeError: of type `error_type`: missing, a folder, empty, too large, or may not be read.
    """
    label = name if name is not None else f"{len(source)} bytes" if isinstance(source, bytes) else str(source)
    with naming(label, error_type), _opened(source, error_type) as file:
        size = size_of(file)
        if size == 0:
            raise error_type("is empty (0 bytes)")
        if size > max_bytes:
            raise error_type(f"has {size:,} bytes; at most {max_bytes:,} are allowed: shrink it or raise max_bytes")
        yield file


def read_bytes(path: Path, max_bytes: int, error_type: type[SayseeError]) -> bytes:
    """Return a file's content, so that what is hashed and what is decoded are the same bytes.

    Raises:
        SayseeError: see `open_source`.
    """
    with open_source(path, None, max_bytes, error_type) as file:
        return file.read()


@contextmanager
def naming(label: str, error_type: type[SayseeError]) -> Iterator[None]:
    """Put `label` in front of the message of an error of `error_type`, or of an `OSError`, and make it one line."""
    try:
        yield
    except error_type as error:
        raise error_type(f"{one_line(label)}: {one_line(str(error))}") from None
    except OSError as error:
        raise error_type(f"{one_line(label)}: cannot be read ({one_line(error.strerror or str(error))})") from None


def size_of(file: BinaryIO) -> int:
    """Return the number of bytes of an open file, and leave it at its beginning."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return size


def one_line(text: str) -> str:
    """Return `text` as one line that can be printed: a file's name may hold line breaks, or bytes that are not text."""
    return text if text.isprintable() else ascii(text)


def _opened(source: Path | bytes, error_type: type[SayseeError]) -> BinaryIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    path = Path(source)
    # opening a pipe would wait for its other end
    if not path.is_file():
        raise error_type("is a folder or a device, not a file" if path.exists() else "there is no such file")
    return path.open("rb")
