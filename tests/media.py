"""Recordings and pictures made on the fly, good ones and every kind of bad one."""

import io
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import soundfile
from numpy.typing import NDArray
from PIL import Image

AudioKind = Literal["wav", "flac", "ogg", "opus", "mp3", "m4a", "aac", "webm"]
AUDIO_KINDS: tuple[AudioKind, ...] = ("wav", "flac", "ogg", "opus", "mp3", "m4a", "aac", "webm")

_SOUNDFILE: dict[str, tuple[str, str]] = {
    "wav": ("WAV", "FLOAT"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}
_PYAV = {"m4a": ("ipod", "aac"), "aac": ("adts", "aac"), "webm": ("webm", "libopus")}


def sine(seconds: float, rate: int = 16_000, frequency: float = 440.0, channels: int = 1) -> NDArray[np.float32]:
    """A sine of amplitude 0.5, shape (frames, channels)."""
    wave = 0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)
    return np.repeat(wave.astype(np.float32)[:, None], channels, axis=1)


def encode_audio(samples: NDArray[Any], rate: int, kind: AudioKind) -> bytes:
    """The file of samples of shape (frames,) or (frames, channels): WAV as float32, FLAC with 16 bits."""
    buffer = io.BytesIO()
    if kind in _SOUNDFILE:
        container, subtype = _SOUNDFILE[kind]
        soundfile.write(buffer, samples, rate, format=container, subtype=subtype)
        return buffer.getvalue()
    return encode_with(*_PYAV[kind], samples, rate)


def encode_with(container: str, codec: str, samples: NDArray[Any], rate: int) -> bytes:
    """The file of samples of shape (frames,) or (frames, channels) in a container and codec of FFmpeg's."""
    buffer = io.BytesIO()
    table = samples.reshape(len(samples), -1).astype(np.float32)
    layout = {1: "mono", 2: "stereo"}[table.shape[1]]
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate)
        assert isinstance(stream, av.AudioStream)
        stream.layout = layout
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(table.T), format="fltp", layout=layout)
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), 0
        stream.codec_context.open()  # now the encoder knows how many samples it takes at a time
        cut = av.AudioResampler(stream.format, layout, rate, stream.codec_context.frame_size)
        for piece in [*cut.resample(frame), *cut.resample(None), None]:
            output.mux(stream.encode(piece))
    return buffer.getvalue()


def write_wav(path: Path, seconds: float = 1.0, rate: int = 16_000, frequency: float = 440.0) -> Path:
    """Write a sine as a WAV file that is in order."""
    path.write_bytes(encode_audio(sine(seconds, rate, frequency), rate, "wav"))
    return path


def raw_wav(samples: NDArray[np.int16], rate: int = 16_000, channels: int = 1, promised: int | None = None) -> bytes:
    """A 16-bit WAV whose header claims what it is told to, also nonsense."""
    data = samples.astype("<i2").tobytes()
    claims = (1, channels, rate, rate * channels * 2 & 0xFFFFFFFF, channels * 2, 16)
    size = len(data) if promised is None else promised
    head = b"RIFF" + struct.pack("<I", 36 + size & 0xFFFFFFFF) + b"WAVE"
    return head + b"fmt " + struct.pack("<IHHIIHH", 16, *claims) + b"data" + struct.pack("<I", size) + data


def flac_promising(flac: bytes, frames: int) -> bytes:
    """The same FLAC file with another number of frames in STREAMINFO: 36 bits from byte 21.5; 0 is "unknown"."""
    fields = int.from_bytes(flac[18:26], "big") >> 36 << 36 | frames
    return flac[:18] + fields.to_bytes(8, "big") + flac[26:]


def truncate(path: Path, keep: float = 0.5) -> Path:
    """Cut a file down to a part of its bytes."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    return path


def encode_image(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The file of a picture in a format of Pillow's."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_image(path: Path, size: tuple[int, int] = (64, 48), colour: str = "red") -> Path:
    """Write a picture of one colour, in the format of the file's ending."""
    Image.new("RGB", size, colour).save(path)
    return path


def _noise() -> NDArray[np.int16]:
    return np.random.default_rng(0).integers(-9000, 9000, 16_000, dtype=np.int16)


def _with(value: float) -> bytes:
    samples = sine(1.0)
    samples[5000] = value
    return encode_audio(samples, 16_000, "wav")


def _half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _gradient() -> Image.Image:
    return Image.fromarray(np.add.outer(np.arange(96), np.arange(128)).astype(np.uint8)).convert("RGB")


BAD_RECORDINGS: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "a text": lambda: b"this is no recording\n" * 50,
    "a picture": lambda: encode_image(_gradient()),
    "silent": lambda: encode_audio(np.zeros(16_000), 16_000, "wav"),
    "NaN": lambda: _with(np.nan),
    "infinite": lambda: _with(np.inf),
    "an hour": lambda: encode_audio(np.zeros(3600 * 8000), 8000, "flac"),
    "1 Hz": lambda: raw_wav(_noise(), rate=1),
    "1,000 channels": lambda: raw_wav(_noise(), channels=1000),
    "too short": lambda: raw_wav(_noise()[:300]),
    "no samples": lambda: raw_wav(_noise()[:0]),
    "half a flac": lambda: _half(encode_audio(_noise(), 16_000, "flac")),
    "half an ogg": lambda: _half(encode_audio(_noise(), 16_000, "ogg")),
    "half a wav": lambda: _half(raw_wav(_noise())),
    "half an opus": lambda: _half(encode_audio(_noise(), 16_000, "opus")),
    "half an m4a": lambda: _half(encode_audio(_noise(), 16_000, "m4a")),
    "half a webm": lambda: _half(encode_audio(_noise(), 48_000, "webm")),
}
"""Contents of files that are no usable recordings."""

BAD_PICTURES: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "a text": lambda: b"this is no picture\n" * 50,
    "a recording": lambda: encode_audio(sine(0.1), 16_000, "wav"),
    "1 x 1": lambda: encode_image(Image.new("RGB", (1, 1))),
    "100 megapixels": lambda: encode_image(Image.new("1", (10_000, 10_000))),
    "half a JPEG": lambda: _half(encode_image(_gradient(), "JPEG")),
    "half a PNG": lambda: _half(encode_image(_gradient(), "PNG")),
    "half a WEBP": lambda: _half(encode_image(_gradient(), "WEBP")),
    "half a GIF": lambda: _half(encode_image(_gradient(), "GIF")),
    "half a BMP": lambda: _half(encode_image(_gradient(), "BMP")),
    "half a TIFF": lambda: _half(encode_image(_gradient(), "TIFF")),
    "half an AVIF": lambda: _half(encode_image(_gradient(), "AVIF")),
}
"""Contents of files that are no usable pictures."""
