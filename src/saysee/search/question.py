"""What somebody asks an index: a recording that was spoken, or a picture."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from saysee.errors import SayseeError
from saysee.features.audio import AudioLimits, load_waveform
from saysee.features.containers import FORMATS, find_format
from saysee.features.image import ALLOWED_FORMATS, ImageLimits, load_image, looks_like_picture
from saysee.features.sources import open_source
from saysee.features.speech_activity import trim
from saysee.search.stores.base import Kind

_AUDIO, _IMAGE = AudioLimits(), ImageLimits()


class UnknownFormatError(SayseeError):
    """A question that is neither a recording nor a picture."""


@dataclass(frozen=True)
class Question:
    """A question that has been decoded.

    Attributes:
        kind: what it is.
        waveform: (S,) of a recording, from where speech begins to where it ends.
        image: of a picture, RGB.
        seconds: how long the whole recording is.
        heard: from where to where it was kept, in seconds.
    """

    kind: Kind
    waveform: NDArray[np.float32] | None = None
    image: Image.Image | None = None
    seconds: float = 0.0
    heard: tuple[float, float] = (0.0, 0.0)


def read_question(
    source: Path | bytes, *, audio: AudioLimits = _AUDIO, image: ImageLimits = _IMAGE, name: str | None = None
) -> Question:
    """Read a question: a recording or a picture, told by its content.

    What is silent at the ends of a recording is cut off.

    Args:
        source: path of the file, or its bytes.
        audio: what a recording may be.
        image: what a picture may be.
        name: what an error calls it; by default its path.

    Raises:
        AudioError: a recording that does not decode, is out of the limits, is silent, or holds no speech.
        ImageError: a picture that does not decode or is out of the limits.
        UnknownFormatError: it is neither.
        SayseeError: there is no such file, or it is empty.
    """
    with open_source(source, name, max(audio.max_bytes, image.max_bytes), UnknownFormatError) as file:
        picture = looks_like_picture(file)
        if not picture and find_format(file) is None:
            raise UnknownFormatError(
                f"is neither a recording ({', '.join(FORMATS)}) nor a picture ({', '.join(ALLOWED_FORMATS)})"
            )
    if picture:
        return Question("picture", image=load_image(source, image, name))
    return hear(load_waveform(source, audio, name), name or (str(source) if isinstance(source, Path) else "it"))


def hear(waveform: NDArray[np.float32], name: str) -> Question:
    """Make a question of a waveform (S,) at 16 kHz.

    Raises:
        AudioError: it holds no speech; `name` stands before the message.
    """
    trimmed, heard = trim(waveform, name=name)
    return Question("recording", waveform=trimmed, seconds=len(waveform) / 16_000, heard=heard)
