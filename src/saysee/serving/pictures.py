"""Pictures as they leave the server: made anew from the file, so that nothing but what is seen goes out."""

from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from saysee.errors import ImageError
from saysee.features.image import load_image
from saysee.search.sheet import make_thumbnail
from saysee.serving.refusal import Refusal
from saysee.serving.web import answer_file, not_modified, tag_of
from saysee.serving.workers import Workers

CACHING = "private, max-age=60"
"""How long a browser shows a picture before it asks whether it has changed (ours)."""

JPEG: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/jpeg": {}}},
    304: {"description": "It is the one that the client has."},
}
"""The OpenAPI description of such an answer."""


async def answer_picture(request: Request, path: Path, name: str, side: int, decoders: Workers) -> Response:
    """Return a picture of a file as JPEG, made anew, so that nothing but its pixels leaves this machine.

    Args:
        request: may say which picture the client has already.
        path: of the file.
        name: what an error calls it.
        side: longest side in pixels.
        decoders: threads in which that is done.

    Raises:
        Refusal: 404, the file is gone or is no picture (any more).
    """

    def make() -> bytes:
        return make_thumbnail(load_image(path, name=name, smallest_side=side), side)

    try:
        there = path.stat()
        tag = tag_of(path, there.st_mtime_ns, there.st_size, side)
        known = not_modified(request, tag, CACHING)
        return known or answer_file(request, await decoders.run(make), "image/jpeg", tag, CACHING)
    except (OSError, ImageError) as error:
        message = str(error) if isinstance(error, ImageError) else f"{name}: the file is gone"
        raise Refusal(404, message) from None


def file_name(name: str) -> str:
    """Return a file's name or path as text; bytes that are no UTF-8 are replaced."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
