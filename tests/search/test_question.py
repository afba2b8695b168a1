"""What somebody asks: told by its content, trimmed, and refused in plain words."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from command_line import SPOKEN
from media import AUDIO_KINDS, AudioKind, encode_audio
from saysee.errors import AudioError, ImageError, SayseeError
from saysee.features.audio import AudioLimits, load_waveform
from saysee.features.image import ImageLimits
from saysee.search.question import UnknownFormatError, read_question


def picture(format_name: str = "PNG", size: tuple[int, int] = (40, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, format_name)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", AUDIO_KINDS)
def test_a_recording_of_any_kind_is_heard(kind: AudioKind) -> None:
    question = read_question(encode_audio(load_waveform(SPOKEN)[:, None], 16_000, kind), name="it")
    assert question.kind == "recording"
    assert question.image is None
    assert question.seconds == pytest.approx(len(load_waveform(SPOKEN)) / 16_000, abs=0.15)  # AAC adds two frames


@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_a_picture_of_any_kind_is_seen(format_name: str) -> None:
    question = read_question(picture(format_name))
    assert question.kind == "picture"
    assert question.image is not None
    assert question.image.size == (40, 30)


def test_what_is_silent_at_the_ends_is_cut_off_and_nothing_between() -> None:
    voice = load_waveform(SPOKEN)
    quiet = np.random.default_rng(0).normal(0, 1e-4, 3 * 16_000).astype(np.float32)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.concatenate([quiet, voice, quiet, voice, quiet]), 16_000, format="WAV", subtype="FLOAT")
    question = read_question(buffer.getvalue(), name="it")
    assert question.waveform is not None
    start, stop = question.heard
    assert 2 < start < 3 + len(voice) / 16_000
    assert 6 + len(voice) / 16_000 < stop < 8 + 2 * len(voice) / 16_000
    assert len(question.waveform) == pytest.approx((stop - start) * 16_000, abs=1)
    whole = np.concatenate([quiet, voice, quiet, voice, quiet])
    np.testing.assert_array_equal(question.waveform, whole[round(start * 16_000) :][: len(question.waveform)])


def test_silence_noise_and_what_is_neither_are_refused_in_plain_words(tmp_path: Path) -> None:
    silent, noise = np.zeros((16_000, 1), np.float32), np.random.default_rng(0).normal(0, 0.1, (32_000, 1))
    with pytest.raises(AudioError, match=r"^it: is silent throughout"):
        read_question(encode_audio(silent, 16_000, "wav"), name="it")
    with pytest.raises(AudioError, match=r"^it: no speech was heard in it"):
        read_question(encode_audio(noise, 16_000, "wav"), name="it")
    with pytest.raises(UnknownFormatError, match=r"^it: is neither a recording \(wav, .*\) nor a picture \(JPEG, "):
        read_question(b"To be, or not to be", name="it")
    with pytest.raises(SayseeError, match="is empty"):
        read_question(b"", name="it")
    with pytest.raises(SayseeError, match="there is no such file"):
        read_question(tmp_path / "nowhere.wav")
    heic = b"\0\0\0\x18ftypheic" + bytes(100)
    with pytest.raises(ImageError, match="is HEIC"):
        read_question(heic, name="it")


def test_limits_are_those_that_are_given() -> None:
    with pytest.raises(AudioError, match=r"at most 0\.5 s are allowed"):
        read_question(SPOKEN, audio=AudioLimits(max_seconds=0.5))
    with pytest.raises(ImageError, match="at most 100 are allowed"):
        read_question(picture(), image=ImageLimits(max_pixels=100))
    with pytest.raises(SayseeError, match="at most 10 are allowed"):
        read_question(picture(), audio=AudioLimits(max_bytes=10), image=ImageLimits(max_bytes=10))
