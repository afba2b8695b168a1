"""Pictures of any allowed format to what a person sees: 8-bit RGB, upright, on white, the first frame.

Resizing and normalisation belong to the backbones.
"""

import io
import os
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from saysee.errors import ImageError
from saysee.features.sources import open_source

# Each reader is called by itself. `Image.open` warns of a large picture before its size can be looked at, and that
# warning can only be silenced for all threads at once; its own choice of readers includes some that start programs.
_READERS: dict[str, tuple[re.Pattern[bytes], Callable[[BinaryIO], ImageFile]]] = {
    "JPEG": (re.compile(rb"\xff\xd8\xff"), JpegImageFile),
    "PNG": (re.compile(rb"\x89PNG\r\n\x1a\n"), PngImageFile),
    "WEBP": (re.compile(rb"RIFF....WEBP", re.DOTALL), WebPImageFile),
    "GIF": (re.compile(rb"GIF8[79]a"), GifImageFile),
    "BMP": (re.compile(rb"BM"), BmpImageFile),
    "TIFF": (re.compile(rb"II[*+]\0|MM\0[*+]"), TiffImageFile),
    "AVIF": (re.compile(rb"....ftyp.{0,40}avi[fs]", re.DOTALL), AvifImageFile),
}
# Others that people have, to call them by their name.
_REFUSED = {
    "HEIC": re.compile(rb"....ftyp(hei|hev|mif1|msf1)", re.DOTALL),
    "SVG": re.compile(rb"\s*(<\?xml.*)?<svg", re.DOTALL),
    "PDF": re.compile(rb"%PDF"),
    "EPS": re.compile(rb"%!PS|\xc5\xd0\xd3\xc6"),
    "JPEG 2000": re.compile(rb"....jP  ", re.DOTALL),
    "PSD": re.compile(rb"8BPS"),
}

ALLOWED_FORMATS = (*_READERS, "MPO")
"""The formats that are read. MPO, a phone's stereo picture, begins with a whole JPEG and is read as that."""

# EXIF 2.32, 4.6.4, tag 274: how the stored picture must be turned to stand upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class ImageLimits:
    """What a picture may be. All values are ours.

    Attributes:
        max_bytes: size of the file.
        max_pixels: width times height.
        min_side: shortest side in pixels; below it there is nothing to see.
    """

    max_bytes: int = 50 * 1024 * 1024
    max_pixels: int = 64_000_000
    min_side: int = 8


_DEFAULT_LIMITS = ImageLimits()


def load_image(
    source: Path | bytes,
    limits: ImageLimits = _DEFAULT_LIMITS,
    name: str | None = None,
    smallest_side: int | None = None,
) -> Image.Image:
    """Decode a picture of one of `ALLOWED_FORMATS`, told by its content, the way a person sees it.

    EXIF orientation is applied, transparency is laid over white, CMYK becomes RGB, 16 bits are scaled to 8, and of
    several frames the first is taken. Integers of 32 bits and floats have no agreed white: they are scaled from the
    first of the ranges 0 to 1 (floats only), 255 and 65,535 that holds them all, else from their own range (ours).
    Of a damaged compressed TIFF, libtiff may write remarks to stderr besides; Pillow has no switch for it.

    Args:
        source: path of the file, or its bytes.
        limits: what is allowed, checked by the header before anything is decoded.
        name: what an error calls the picture; by default its path.
        smallest_side: a JPEG may be decoded at a half, a quarter or an eighth of its size (much faster) as long as no
            side falls below this. None decodes it whole.

    Returns:
        Picture of mode RGB.

    Raises:
        ImageError: one line that names the file: missing, empty, not a picture of these formats, cut off or damaged,
            outside the limits.
    """
    with open_source(source, name, limits.max_bytes, ImageError) as file:
        format_name = _find_format(file)
        if format_name == "GIF":
            _check_size(_gif_size(file), limits)
        file.seek(0)
        with _reading(format_name):
            image = _READERS[format_name][1](file)
        _check_size(image.size, limits)
        with _reading(format_name):
            if smallest_side is not None:
                image.draft(None, (max(smallest_side, 1), max(smallest_side, 1)))
            image.load()
            return as_rgb(image)


def looks_like_picture(file: BinaryIO) -> bool:
    """Return whether a file begins as a picture does, one of a format that is not read included."""
    file.seek(0)
    head = file.read(512)
    signatures = [*(signature for signature, _ in _READERS.values()), *_REFUSED.values()]
    return any(signature.match(head) for signature in signatures)


def picture_date(content: bytes) -> int | None:
    """Return when a picture was taken, as its EXIF data says (DateTimeOriginal, else DateTime; EXIF 2.32, 4.6.5).

    Args:
        content: of the file.

    Returns:
        Seconds since 1970 on the clock of that place, as if that were UTC; None where it does not say.
    """
    try:
        exif = _READERS[_find_format(io.BytesIO(content))][1](io.BytesIO(content)).getexif()
        text = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.DateTimeOriginal) or exif.get(ExifTags.Base.DateTime)
        return int(datetime.strptime(str(text)[:19], "%Y:%m:%d %H:%M:%S").replace(tzinfo=UTC).timestamp())
    except Exception:  # no EXIF block, a broken one, or a date that is none: the picture is good all the same
        return None


def as_rgb(image: Image.Image) -> Image.Image:
    """Return a picture of any mode as `load_image` gives it: upright, over white, 8-bit RGB."""
    rgb = _to_rgb(image)
    # after loading: PNG may hold it behind the pixels, and the TIFF reader turns the picture by itself
    turn = _UPRIGHT.get(_orientation(image))
    upright = rgb if turn is None else rgb.transpose(turn)
    upright.info.clear()  # it has been done: who is given the picture would turn it a second time
    return upright


@contextmanager
def _reading(format_name: str) -> Iterator[None]:
    """Make one error of whatever a reader trips over in a file that is cut off or damaged."""
    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"is too large ({error})") from None
    except Exception as error:
        raise ImageError(f"is a truncated or damaged {format_name} ({error})") from None


def _find_format(file: BinaryIO) -> str:
    head = file.read(512)
    for name, (signature, _) in _READERS.items():
        if signature.match(head):
            return name
    found = next((name for name, signature in _REFUSED.items() if signature.match(head)), None)
    raise ImageError(f"is {found or 'not a picture of a known format'}; {', '.join(ALLOWED_FORMATS)} are read")


def _check_size(size: tuple[int, int], limits: ImageLimits) -> None:
    width, height = size
    if min(size) < limits.min_side:
        raise ImageError(f"has {width} x {height} pixels; each side must have at least {limits.min_side}")
    if width * height > limits.max_pixels:
        raise ImageError(
            f"has {width:,} x {height:,} = {width * height:,} pixels; at most {limits.max_pixels:,} are allowed: "
            "shrink it or raise max_pixels"
        )


def _gif_size(file: BinaryIO) -> tuple[int, int]:
    """Return the width and height that the first frame of a GIF needs (GIF89a, sections 18 and 20).

    Pillow's reader fills memory of this size when it is made, and warns of it.
    """
    file.seek(6)
    width, height, flags = struct.unpack("<HHBxx", file.read(7).ljust(7, b"\0"))
    if flags & 0x80:
        file.seek(3 * 2 ** ((flags & 7) + 1), os.SEEK_CUR)
    while (block := file.read(1)) not in (b"", b",", b";"):
        if block == b"!":
            file.seek(1, os.SEEK_CUR)
            while (length := file.read(1)) not in (b"", b"\0"):
                file.seek(length[0], os.SEEK_CUR)
    frame = file.read(8)
    if block == b"," and len(frame) == 8:
        left, top, frame_width, frame_height = struct.unpack("<4H", frame)
        width, height = max(width, left + frame_width), max(height, top + frame_height)
    return width, height


def _orientation(image: Image.Image) -> int:
    try:
        orientation: int = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a broken EXIF block does not spoil the pixels
        return 1
    return orientation


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        image = _to_eight_bits(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    picture = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale one channel of 16-bit integers, 32-bit integers or floats to 8 bits, where Pillow's `convert` clips."""
    values = np.asarray(image)
    low, high = 0.0, 65_535.0
    if image.mode in ("I", "F"):
        least, most = float(values.min()), float(values.max())
        if not np.isfinite(most - least):
            raise ImageError("holds pixels that are NaN or infinite")
        tops = (1.0, 255.0, 65_535.0) if image.mode == "F" else (255.0, 65_535.0)
        low, high = next(((0.0, top) for top in tops if least >= 0 and most <= top), (least, most))
    scaled = values.astype(np.float64)
    scaled -= low
    scaled *= 255 / ((high - low) or 1)
    grey = Image.fromarray(np.rint(scaled, out=scaled).astype(np.uint8))
    if (clear := image.info.get("transparency")) is not None:  # the one grey that a 16-bit PNG declares invisible
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey
