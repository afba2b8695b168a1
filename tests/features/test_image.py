import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from media import BAD_PICTURES, encode_image
from saysee.errors import ImageError
from saysee.features.image import ALLOWED_FORMATS, ImageLimits, load_image

# Four colours that no turn or reflection leaves in place.
CORNERS = np.zeros((16, 24, 3), np.uint8)
CORNERS[:8, :12], CORNERS[:8, 12:], CORNERS[8:, :12], CORNERS[8:, 12:] = (255, 0, 0), (0, 255, 0), (0, 0, 255), 90
# As near to lossless as each format goes.
FINE: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 100, "subsampling": 0},
    "MPO": {"quality": 100, "subsampling": 0},
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
}


def pixels(source: Path | bytes, **options: Any) -> NDArray[np.uint8]:
    image = load_image(source, **options)
    assert image.mode == "RGB"
    return np.asarray(image)


def with_orientation(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


@pytest.mark.parametrize("kind", ALLOWED_FORMATS)
def test_every_allowed_format_keeps_its_colours_whatever_the_file_is_called(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "misleading.txt"
    path.write_bytes(encode_image(Image.fromarray(CORNERS), kind, **FINE.get(kind, {})))
    found = pixels(path)
    assert found.shape == CORNERS.shape
    # in the middle of each quarter, away from the edges that JPEG and AVIF smear
    np.testing.assert_allclose(found[4::8, 6::12].astype(int), CORNERS[4::8, 6::12].astype(int), atol=6)
    np.testing.assert_array_equal(pixels(path.read_bytes()), found)


def test_result_does_not_need_the_file_any_more(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(encode_image(Image.fromarray(CORNERS)))
    image = load_image(path)
    path.unlink()
    np.testing.assert_array_equal(np.asarray(image), CORNERS)
    assert type(image) is Image.Image


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "MPO"])
def test_orientation_is_applied_as_pillow_does(kind: str, orientation: int) -> None:
    options = FINE.get(kind, {}) | {"exif": with_orientation(orientation)}
    content = encode_image(Image.fromarray(CORNERS), kind, **options)
    with Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(pixels(content), expected)
    assert expected.shape[:2] == ((24, 16) if orientation in (5, 6, 7, 8) else (16, 24))


def test_orientation_6_of_a_phone_puts_the_left_side_on_top() -> None:
    upright = pixels(encode_image(Image.fromarray(CORNERS), "PNG", exif=with_orientation(6)))
    np.testing.assert_array_equal(upright[0, 0], (0, 0, 255))
    np.testing.assert_array_equal(upright[0, -1], (255, 0, 0))


def test_broken_exif_does_not_spoil_the_picture() -> None:
    content = encode_image(Image.fromarray(CORNERS), "PNG", exif=b"Exif\0\0no TIFF header at all")
    np.testing.assert_array_equal(pixels(content), CORNERS)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_laid_over_white(mode: str, kind: str) -> None:
    alpha = np.linspace(0, 255, 256).astype(np.uint8).reshape(16, 16)
    image = Image.fromarray(np.full((16, 16), 40, np.uint8)).convert(mode)
    image.putalpha(Image.fromarray(alpha))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    expected = (40 * alpha.astype(float) + 255 * (255 - alpha.astype(float))) / 255
    for channel in np.moveaxis(pixels(encode_image(image, kind, **options)), 2, 0):
        np.testing.assert_allclose(channel, expected, atol=1)


@pytest.mark.filterwarnings("error")
def test_transparent_colours_of_palettes_and_keys_become_white() -> None:
    indices = np.arange(64, dtype=np.uint8).reshape(8, 8) % 3
    palette = Image.fromarray(indices)
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    colours = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255)], np.uint8)
    key_1 = np.where((indices == 1)[..., None], 255, colours[indices])
    np.testing.assert_array_equal(pixels(encode_image(palette, "PNG")), colours[indices])
    np.testing.assert_array_equal(pixels(encode_image(palette, "PNG", transparency=1)), key_1)
    np.testing.assert_array_equal(pixels(encode_image(palette, "GIF", transparency=1)), key_1)
    half = pixels(encode_image(palette, "PNG", transparency=bytes([255, 0, 127])))
    np.testing.assert_allclose(half[indices == 2], np.array([(128, 128, 255)] * 21), atol=1)

    np.testing.assert_array_equal(
        pixels(encode_image(Image.fromarray(colours[indices]), "PNG", transparency=(0, 255, 0))), key_1
    )
    grey = Image.fromarray(indices * 50)
    np.testing.assert_array_equal(
        pixels(encode_image(grey, "PNG", transparency=100))[..., 0], np.where(indices == 2, 255, indices * 50)
    )


@pytest.mark.parametrize(
    ("ink", "colour"),
    [((0, 0, 0, 0), (255, 255, 255)), ((255, 0, 0, 0), (0, 255, 255)), ((0, 0, 0, 255), (0, 0, 0))],
)
@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(kind: str, ink: tuple[int, ...], colour: tuple[int, ...]) -> None:
    content = encode_image(Image.new("CMYK", (16, 16), ink), kind)
    np.testing.assert_allclose(pixels(content)[8, 8].astype(int), colour, atol=2)


@given(values=st.lists(st.integers(0, 65_535), min_size=64, max_size=64))
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_are_scaled_and_not_clipped(kind: str, values: list[int]) -> None:
    table = np.array(values, np.uint16).reshape(8, 8)
    found = pixels(encode_image(Image.fromarray(table), kind))
    expected = np.array([round(value * 255 / 65_535) for value in values]).reshape(8, 8)
    for channel in np.moveaxis(found, 2, 0):
        np.testing.assert_array_equal(channel, expected)


def test_16_bits_of_the_other_byte_order_and_with_an_invisible_grey() -> None:
    table = (np.arange(64).reshape(8, 8) * 1040).astype(np.uint16)
    expected = np.rint(table / 257)
    swapped = Image.frombytes("I;16B", (8, 8), table.astype(">u2").tobytes())
    np.testing.assert_array_equal(pixels(encode_image(swapped, "TIFF"))[..., 0], expected)
    expected[3, 3] = 255
    keyed = encode_image(Image.fromarray(table), "PNG", transparency=int(table[3, 3]))
    np.testing.assert_array_equal(pixels(keyed)[..., 0], expected)


@pytest.mark.parametrize(
    ("dtype", "least", "most", "darkest", "lightest"),
    [
        (np.float32, 0.0, 1.0, 0, 255),
        (np.float32, 0.0, 0.5, 0, 128),
        (np.float32, 0.0, 255.0, 0, 255),
        (np.float32, 10.0, 60_000.0, 0, 233),
        (np.float32, -3.0, 7.0, 0, 255),
        (np.float32, 1e9, 1e9, 0, 0),
        (np.int32, 0, 200, 0, 200),
        (np.int32, 0, 65_535, 0, 255),
        (np.int32, -(2**31), 2**31 - 1, 0, 255),
    ],
)
def test_floats_and_32_bit_integers_are_scaled_by_the_range_that_holds_them(
    dtype: type, least: float, most: float, darkest: int, lightest: int
) -> None:
    table: NDArray[Any] = np.linspace(least, most, 64).astype(dtype).reshape(8, 8)
    found = pixels(encode_image(Image.fromarray(table), "TIFF"))[..., 0]
    assert (found[0, 0], found[-1, -1]) == (darkest, lightest)
    assert (np.diff(found.ravel().astype(int)) >= 0).all()


def test_floats_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ImageError, match="NaN or infinite"):
        load_image(encode_image(Image.fromarray(np.full((8, 8), np.nan, np.float32)), "TIFF"))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF", "MPO"])
def test_first_frame_is_taken(kind: str) -> None:
    red, blue = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
    content = encode_image(red, kind, save_all=True, append_images=[blue])
    with Image.open(io.BytesIO(content)) as image:
        assert getattr(image, "n_frames", 1) == 2
    np.testing.assert_allclose(pixels(content)[8, 8].astype(int), (255, 0, 0), atol=3)


@given(side=st.integers(8, 300), other=st.integers(8, 300), smallest=st.integers(1, 400))
@settings(max_examples=40, deadline=None)
def test_smallest_side_lets_a_jpeg_be_decoded_smaller_but_never_too_small(side: int, other: int, smallest: int) -> None:
    content = encode_image(Image.new("RGB", (side, other), "teal"), "JPEG")
    image = load_image(content, smallest_side=smallest)
    shrunk = max(scale for scale in (1, 2, 4, 8) if scale == 1 or min(side, other) // scale >= smallest)
    assert image.size == (-(-side // shrunk), -(-other // shrunk))
    assert min(image.size) >= min(smallest, side, other)
    np.testing.assert_allclose(np.asarray(image).mean(axis=(0, 1)), (0, 128, 128), atol=3)


def test_other_formats_ignore_smallest_side() -> None:
    assert load_image(encode_image(Image.new("RGB", (300, 200)), "PNG"), smallest_side=50).size == (300, 200)


@pytest.mark.parametrize("name", BAD_PICTURES)
@pytest.mark.filterwarnings("error")
def test_bad_picture_gives_one_line_that_names_it_and_nothing_else(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(BAD_PICTURES[name]())
    with pytest.raises(ImageError) as caught:
        load_image(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"this is a text\n",
            "is not a picture of a known format; JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF, MPO are",
        ),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "is EPS; JPEG, PNG"),
        (b"\0\0\0\x24ftypheic\0\0\0\0mif1heic", "is HEIC; JPEG"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "is SVG; JPEG"),
        (b"\xff\xd8\xff\xe0 and no more", "is a truncated or damaged JPEG ("),
        (b"GIF89a" + bytes(7), "has 0 x 0 pixels; each side"),
        (BAD_PICTURES["1 x 1"](), "has 1 x 1 pixels; each side must have at least 8"),
        (
            BAD_PICTURES["100 megapixels"](),
            "has 10,000 x 10,000 = 100,000,000 pixels; at most 64,000,000 are allowed: shrink it or raise max_pixels",
        ),
    ],
)
def test_message_says_what_is_wrong(content: bytes, message: str) -> None:
    with pytest.raises(ImageError) as caught:
        load_image(content, name="picture 7")
    assert str(caught.value).startswith(f"picture 7: {message}")


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_cut_off_picture_is_refused(kind: str, keep: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 80, 3), dtype=np.uint8))
    content = encode_image(noise, kind)
    with pytest.raises(ImageError, match=f"is a truncated or damaged {kind} "):
        load_image(content[: int(len(content) * keep)])


def claiming(kind: str, width: int, height: int) -> bytes:
    """A small picture whose header claims another size."""
    content = bytearray(encode_image(Image.new("RGB", (16, 16), "red"), kind, **FINE.get(kind, {})))
    if kind == "PNG":
        content[16:24] = struct.pack(">II", width, height)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    elif kind == "GIF":
        content[6:10] = struct.pack("<HH", width, height)
    elif kind == "BMP":
        content[18:26] = struct.pack("<ii", width, height)
    elif kind == "JPEG":
        start = content.index(b"\xff\xc0")
        content[start + 5 : start + 9] = struct.pack(">HH", height, width)
    elif kind == "WEBP":
        content[21:25] = struct.pack("<I", width - 1 | height - 1 << 14)
    return bytes(content)


def gif_with_a_frame_of(width: int, height: int) -> bytes:
    comment = {"comment": b"a block in front of the frame, to be stepped over " * 9, "transparency": 1}
    content = bytearray(encode_image(Image.new("RGB", (16, 16), "red"), "GIF", **comment))
    start = content.index(b",\0\0\0\0\x10\0\x10\0")
    content[start + 5 : start + 9] = struct.pack("<HH", width, height)
    content[start:start] = b"\0"  # readers step over what is no block
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        *(
            (claiming(kind, 12_000, 8000), "has 12,000 x 8,000 = 96,000,000 p")
            for kind in ("PNG", "GIF", "BMP", "JPEG")
        ),
        (claiming("WEBP", 12_000, 8000), "has 12,000 x 8,000 = 96,000,000 pixels"),
        (gif_with_a_frame_of(12_000, 8000), "has 12,000 x 8,000 = 96,000,000 pixels"),
        (claiming("WEBP", 16_000, 16_000), "is too large|has 16,000 x 16,000"),
        (claiming("PNG", 60_000, 60_000), "has 60,000 x 60,000"),
    ],
)
def test_large_picture_is_refused_by_its_header_without_a_warning(content: bytes, message: str) -> None:
    limit, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    with warnings.catch_warnings(record=True) as warned, pytest.raises(ImageError, match=message):
        warnings.simplefilter("always")
        load_image(content)
    assert not warned
    assert limit == Image.MAX_IMAGE_PIXELS
    assert filters == list(warnings.filters)


def test_limits_can_be_changed() -> None:
    content = encode_image(Image.new("RGB", (20, 10)), "PNG")
    assert load_image(content, ImageLimits(max_pixels=200, min_side=10)).size == (20, 10)
    for limits, message in [
        (ImageLimits(max_pixels=199), "at most 199 are allowed"),
        (ImageLimits(min_side=11), "at least 11"),
        (ImageLimits(max_bytes=50), "at most 50 are allowed"),
    ]:
        with pytest.raises(ImageError, match=message):
            load_image(content, limits)


def test_threads_get_what_one_thread_gets() -> None:
    contents = [encode_image(Image.fromarray(CORNERS), kind) for kind in ALLOWED_FORMATS] * 8
    alone = [pixels(content) for content in contents]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(pixels, contents))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)
