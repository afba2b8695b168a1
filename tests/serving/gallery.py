"""A folder of pictures with everything that such folders hold, a small model, and the index of both."""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from media import encode_audio, encode_image
from saysee.data.sample import sample_manifest_path
from saysee.features.audio import load_waveform
from saysee.models.retrieval_model import SpeechImageModel
from saysee.search.building import build_index
from saysee.search.index import Index, open_index
from saysee.search.searcher import Searcher
from saysee.serving.limits import ServingLimits
from saysee.serving.schemas import Error
from stubs import small_model

LIMITS = ServingLimits(
    body_bytes=4_000_000,
    seconds=20.0,
    pixels=3_000_000,
    questions=4,
    rate=10_000,
    burst=100_000,
    refresh_seconds=0.0,
)
"""Of the servers in the tests: small, and with all clients at one address."""

CAMERA = "a camera of nobody's"
"""What stands in the metadata of `with a place.jpg`, besides coordinates."""


@dataclass(frozen=True)
class Gallery:
    """Pictures, and the index of them."""

    pictures: Path
    path: Path
    model: SpeechImageModel

    def searcher(self) -> Searcher:
        """A searcher of its own, for the server or to compare it with."""
        return Searcher(open_index(self.path), self.model)

    def index(self) -> Index:
        return open_index(self.path)


def make_gallery(folder: Path, model: SpeechImageModel | None = None) -> Gallery:
    """Write 18 pictures and index them."""
    pictures = folder / "pictures"
    (pictures / "nested").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(14):
        noise = generator.integers(0, 255, (6, 8, 3), dtype=np.uint8)
        picture = Image.fromarray(noise).resize((160, 120), Image.Resampling.NEAREST)
        picture.save(pictures / ("nested" if number % 2 else ".") / f"picture {number:02}.png")
    for name in (b"o'clock.png", b"two\nlines.png", b"caf\xe9.png"):
        noise = generator.integers(0, 255, (6, 8, 3), dtype=np.uint8)
        (Path(str(pictures)) / name.decode("utf-8", "surrogateescape")).write_bytes(
            encode_image(Image.fromarray(noise).resize((64, 64)))
        )
    (pictures / "with a place.jpg").write_bytes(picture_with_a_place())
    model = model or small_model()
    build_index(pictures, model, folder / "model", folder / "index", tell=lambda _: None)
    return Gallery(pictures, folder / "index", model)


def picture_with_a_place() -> bytes:
    """A large photograph on its side, with the coordinates of where it was taken, a comment and a thumbnail."""
    image = Image.effect_mandelbrot((2000, 1200), (-2, -1, 1, 1), 20).convert("RGB")
    exif = Image.Exif()
    exif[0x0110] = CAMERA
    exif[0x0112] = 6  # to be turned by a quarter
    exif[0x8825] = {1: "N", 2: (IFDRational(47), IFDRational(30), IFDRational(0)), 3: "E", 4: (8, 30, 0)}
    buffer = BytesIO()
    image.save(buffer, "JPEG", exif=exif, comment=CAMERA.encode(), xmp=CAMERA.encode())
    return buffer.getvalue()


def recordings(count: int) -> list[bytes]:
    """Spoken words of the sample corpus, as files."""
    folder = sample_manifest_path().parent / "audio" / "en-art4apps"
    return [path.read_bytes() for path in sorted(folder.glob("*.ogg"))[:count]]


def as_wav(recording: bytes, times: int = 1) -> bytes:
    """The same without compression, so often one after the other."""
    return encode_audio(np.tile(load_waveform(recording), times), 16_000, "wav")


def ask(client: httpx.Client, body: bytes, **narrowed: object) -> httpx.Response:
    """Ask the server for the pictures of a question."""
    return client.post("/api/search", params=narrowed, content=body)  # type: ignore[arg-type]


def error_of(answer: httpx.Response) -> str:
    """The line of a refusal, which has one form for all of them."""
    assert set(answer.json()) == {"error"}, answer.text
    line = Error.model_validate(answer.json()).error
    assert line.isprintable()
    return line
