import io
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from media import AUDIO_KINDS, BAD_RECORDINGS, AudioKind, encode_audio, encode_with, flac_promising, raw_wav, sine
from saysee.errors import AudioError
from saysee.features import audio
from saysee.features.audio import SAMPLE_RATE, AudioLimits, as_waveform, load_waveform

NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, (30_000, 2)).astype(np.float32)


def whole_resampled(samples: NDArray[Any], rate: int) -> NDArray[np.float32]:
    """The reference: mean of the channels, then the whole signal at once through soxr."""
    resampled: NDArray[np.float32] = soxr.resample(samples.mean(axis=1, dtype=np.float32), rate, SAMPLE_RATE, "HQ")
    return resampled


def strongest_frequency(waveform: NDArray[np.float32]) -> float:
    """The frequency of the highest peak, in Hz, interpolated in a spectrum with many more points than samples."""
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform)), 1 << 19))
    return float(spectrum.argmax()) * SAMPLE_RATE / (1 << 19)


@pytest.mark.parametrize("kind", AUDIO_KINDS)
@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (48_000, 2), (24_000, 1)])
def test_sine_keeps_frequency_loudness_and_length_in_every_format(
    kind: AudioKind, rate: int, channels: int, tmp_path: Path
) -> None:
    path = tmp_path / "misleading.txt"
    path.write_bytes(encode_audio(sine(1.0, rate, 440.0, channels), rate, kind))
    waveform = load_waveform(path)
    assert waveform.dtype == np.float32
    assert waveform.ndim == 1
    # AAC pads to whole frames of 1,024 and, without a container, keeps as many of its encoder's delay
    slack = 2048 * SAMPLE_RATE / rate if kind in ("m4a", "aac") else 0
    assert SAMPLE_RATE <= len(waveform) <= SAMPLE_RATE + slack
    assert strongest_frequency(waveform) == pytest.approx(440, abs=0.3)
    assert np.sqrt(2) * waveform[2000:14_000].std() == pytest.approx(0.5, rel=0.02)
    np.testing.assert_array_equal(load_waveform(path.read_bytes()), waveform)


@pytest.mark.parametrize(("kind", "tolerance"), [("wav", 1e-6), ("flac", 5e-5)])
@pytest.mark.parametrize("rate", [8000, 11_025, 16_000, 44_100, 96_000])
def test_lossless_formats_equal_the_whole_signal_resampled_at_once(
    kind: AudioKind, tolerance: float, rate: int
) -> None:
    expected = whole_resampled(NOISE, rate)
    np.testing.assert_allclose(load_waveform(encode_audio(NOISE, rate, kind)), expected, atol=tolerance)


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "opus"])
def test_size_of_blocks_changes_nothing(kind: AudioKind, monkeypatch: pytest.MonkeyPatch) -> None:
    content = encode_audio(NOISE, 48_000, kind)
    whole = load_waveform(content)
    monkeypatch.setattr(audio, "_BLOCK_VALUES", 1000)
    np.testing.assert_array_equal(load_waveform(content), whole)


def test_lossless_sound_in_mp4() -> None:
    np.testing.assert_allclose(load_waveform(encode_with("ipod", "alac", NOISE[:, 0], 16_000)), NOISE[:, 0], atol=1e-6)


@given(
    rate=st.sampled_from([4000, 8000, 11_025, 16_000, 22_050, 44_100, 48_000, 192_000, 384_000]),
    channels=st.integers(0, 4),
    dtype=st.sampled_from(["int8", "int16", "int32", "uint8", "uint16", "float16", "float32", "float64"]),
    seconds=st.floats(0.06, 0.3),
    gains=st.lists(st.floats(0.2, 1.0), min_size=4, max_size=4),
)
@settings(max_examples=60, deadline=None)
def test_any_array_becomes_the_mean_of_its_channels(
    rate: int, channels: int, dtype: str, seconds: float, gains: list[float]
) -> None:
    wave = sine(seconds, rate, 300.0, max(channels, 1)).astype(np.float64) * gains[: max(channels, 1)]
    full = 1.0 if dtype.startswith("float") else 2.0 ** (8 * np.dtype(dtype).itemsize - 1)
    zero = full if dtype.startswith("uint") else 0.0
    stored = (np.rint(wave * full) + zero if full > 1 else wave).astype(dtype)
    waveform = as_waveform(stored[:, 0] if channels == 0 else stored, rate)
    step = {"int8": 2**-7, "uint8": 2**-7, "float16": 2**-10}.get(dtype, 2**-14)
    expected = whole_resampled(wave.astype(np.float32), rate)
    assert abs(len(waveform) - len(wave) * SAMPLE_RATE / rate) <= 1
    np.testing.assert_allclose(waveform, expected, atol=2 * step)


def test_integers_are_divided_by_the_full_scale_of_their_type() -> None:
    extremes = {np.int16: (-32_768, 0, 16_384), np.uint8: (0, 128, 192), np.int32: (-(2**31), 0, 2**30)}
    for dtype, values in extremes.items():
        waveform = as_waveform(np.tile(np.array(values, dtype), 1000), SAMPLE_RATE)
        np.testing.assert_array_equal(waveform, np.tile([-1.0, 0.0, 0.5], 1000))


def test_channels_are_averaged_so_that_opposite_ones_are_silent() -> None:
    one = NOISE[:, 0]
    np.testing.assert_array_equal(as_waveform(np.stack([one, np.zeros_like(one)], axis=1), SAMPLE_RATE), one / 2)
    with pytest.raises(AudioError, match=r"^the array: is silent throughout: its peak, channels averaged, is 0"):
        as_waveform(np.stack([one, -one], axis=1), SAMPLE_RATE)


@pytest.mark.parametrize(
    ("samples", "rate", "message"),
    [
        (np.ones((3, 4, 5)), 16_000, "has type float64 and shape (3, 4, 5); floats or integers of shape (frames,) or"),
        (np.ones(9000, bool), 16_000, "has type bool and shape (9000,)"),
        (np.ones((2, 9000)), 16_000, "has shape (2, 9000); (frames, channels) is needed: transpose it"),
        (np.ones((9000, 17)), 16_000, "has 17 channels; 1 to 16 are allowed"),
        (np.ones((9000, 0)), 16_000, "has 0 channels; 1 to 16 are allowed"),
        (np.ones(9000), 0, "has 0 samples a second; 4,000 to 384,000 are allowed"),
        (np.ones(9000), 1_000_000, "has 1,000,000 samples a second"),
        (np.ones(0), 16_000, "lasts 0.000 s; at least 0.05 s are needed"),
        (np.ones(799), 16_000, "lasts 0.050 s; at least 0.05 s are needed"),
        (np.zeros(600 * 4000 + 1), 4000, "lasts 600.0 s; at most 600 s are allowed"),
        (np.full(9000, 9e-5), 16_000, "is silent throughout: its peak, channels averaged, is 9.0e-05; 0.0001 is"),
        (np.full(9000, 1e300), 16_000, "holds samples that are NaN, infinite or too large"),
    ],
)
def test_array_outside_the_limits_is_refused_in_one_line(samples: NDArray[Any], rate: int, message: str) -> None:
    with pytest.raises(AudioError) as caught:
        as_waveform(samples, rate)
    assert str(caught.value).startswith(f"the array: {message}")


def test_bounds_themselves_are_allowed() -> None:
    assert len(as_waveform(np.ones(800), 16_000)) == 800
    assert len(as_waveform(np.ones((600 * 4000, 1), np.int8), 4000)) == 600 * SAMPLE_RATE
    assert len(as_waveform(np.full((9000, 16), 1.01e-4), 16_000)) == 9000


@given(
    bad=st.sampled_from([np.nan, np.inf, -np.inf]),
    rate=st.sampled_from([8000, 16_000, 44_100, 384_000]),
    place=st.floats(0, 1),
    channels=st.integers(1, 2),
)
@settings(deadline=None)
def test_a_single_sample_that_is_not_finite_is_found(bad: float, rate: int, place: float, channels: int) -> None:
    samples = sine(0.2, rate, channels=channels)
    samples[int(place * (len(samples) - 1)), -1] = bad
    with pytest.raises(AudioError, match="NaN, infinite"):
        as_waveform(samples, rate)


@pytest.mark.parametrize("name", BAD_RECORDINGS)
@pytest.mark.filterwarnings("error")
def test_bad_recording_gives_one_line_that_names_it_and_nothing_else(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "question.wav"
    path.write_bytes(BAD_RECORDINGS[name]())
    with pytest.raises(AudioError) as caught:
        load_waveform(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a text", "is not a recording of a known format; wav, flac, ogg, mp4, webm, aac, mp3 are read"),
        ("an hour", "lasts 3,600.0 s; at most 600 s are allowed"),
        ("1 Hz", "has 1 samples a second; 4,000 to 384,000 are allowed"),
        ("1,000 channels", "has 1,000 channels; 1 to 16 are allowed"),
        ("half a wav", "is truncated: its header promises 32,000 bytes of samples and 15,978 are there"),
        ("half a flac", "is truncated or damaged flac (flac decoder lost sync)"),
        ("half an opus", "is truncated: its last Ogg page is incomplete"),
        ("half an m4a", "is truncated: its part 'mdat' ends"),
        ("NaN", "holds samples that are NaN, infinite or too large for float32"),
        ("no samples", "holds no sound"),
    ],
)
def test_message_says_what_is_wrong(name: str, message: str) -> None:
    with pytest.raises(AudioError) as caught:
        load_waveform(BAD_RECORDINGS[name](), name="question 7")
    assert str(caught.value).startswith(f"question 7: {message}")


def test_what_a_header_claims_is_refused_before_anything_is_decoded() -> None:
    # four hours by the header, one second by what follows: decoding would find it truncated
    with pytest.raises(AudioError, match=r"lasts 14,400\.0 s"):
        load_waveform(flac_promising(encode_audio(NOISE, 16_000, "flac"), 4 * 3600 * 16_000))
    with pytest.raises(AudioError, match=r"lasts 2\.0 s; at most 1 s are allowed"):
        load_waveform(encode_audio(sine(2.0, 48_000), 48_000, "webm"), AudioLimits(max_seconds=1.0))


@pytest.mark.parametrize("kind", ["flac", "mp3", "aac"])
def test_decoding_stops_at_the_limit_where_the_header_does_not_state_the_length(kind: AudioKind) -> None:
    minutes = encode_audio(np.zeros(3 * 60 * 16_000, np.float32), 16_000, kind)
    content = flac_promising(minutes, 0) if kind == "flac" else minutes
    tracemalloc.start()
    try:
        with pytest.raises(AudioError, match="lasts over 10 s; at most 10 s are allowed"):
            load_waveform(content, AudioLimits(max_seconds=10.0))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # three minutes are 11.5 MB as float32, 10 s are 0.64 MB
    assert peak < 4e6


def test_memory_is_bounded_by_the_waveform_and_not_by_rate_and_channels() -> None:
    content = encode_audio(sine(4.0, 384_000, channels=8), 384_000, "flac")
    tracemalloc.start()
    try:
        load_waveform(content)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # all of it would be 49 MB as float32; a block is 4 MiB and there are a few copies of one
    assert peak < 20e6


@pytest.mark.parametrize("placeholder", [0, 0x7FFF_F000, 0x7FFF_FFFF, 0xFFFF_FFFF])
def test_wav_written_to_a_pipe_is_read_to_its_end(placeholder: int) -> None:
    samples = (NOISE[:, 0] * 2**15).astype(np.int16)
    waveform = load_waveform(raw_wav(samples, promised=placeholder))
    np.testing.assert_array_equal(waveform, samples / np.float32(2**15))


def test_wav_that_misses_less_than_a_tenth_is_read() -> None:
    samples = (NOISE[:, 0] * 2**15).astype(np.int16)
    waveform = load_waveform(raw_wav(samples, promised=int(samples.nbytes / 0.91)))
    np.testing.assert_array_equal(waveform, samples / np.float32(2**15))


def test_flac_of_unknown_length_is_read_whole_and_one_that_lies_is_truncated() -> None:
    content = encode_audio(NOISE, 16_000, "flac")
    np.testing.assert_array_equal(load_waveform(flac_promising(content, 0)), load_waveform(content))
    with pytest.raises(AudioError, match="truncated"):
        load_waveform(flac_promising(content, len(NOISE) + 5000))


def ogg_promising(ogg: bytes, frames: int) -> bytes:
    """The same Ogg file with another end position in its last page, and the page's checksum (RFC 3533, section 6)."""
    start = ogg.rfind(b"OggS\0")
    page = bytearray(ogg[start:])
    page[6:14], page[22:26] = frames.to_bytes(8, "little"), bytes(4)
    checksum = 0
    for byte in page:
        checksum ^= byte << 24
        for _ in range(8):
            checksum = (checksum << 1 ^ (0x04C11DB7 if checksum >> 31 else 0)) & 0xFFFFFFFF
    page[22:26] = checksum.to_bytes(4, "little")
    return ogg[:start] + bytes(page)


def test_ogg_that_promises_more_than_it_holds_is_truncated() -> None:
    content = encode_audio(NOISE[:, 0], 16_000, "ogg")
    np.testing.assert_array_equal(load_waveform(ogg_promising(content, len(NOISE))), load_waveform(content))
    with pytest.raises(AudioError, match=r"truncated: its header promises 90,000 frames and 3\d,\d+ are there"):
        load_waveform(ogg_promising(content, 90_000))


def test_file_that_is_all_header_holds_no_sound() -> None:
    content = flac_promising(encode_audio(NOISE, 16_000, "flac"), 0)
    with pytest.raises(AudioError, match="holds no sound"):
        load_waveform(content[: content.index(b"\xff\xf8")])


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("kind", ["flac", "ogg", "opus", "m4a", "aac", "webm"])
def test_cut_off_file_is_refused(kind: AudioKind, keep: float) -> None:
    content = encode_audio(np.tile(NOISE, (4, 1)), 48_000, kind)
    with pytest.raises(AudioError, match="truncated"):
        load_waveform(content[: int(len(content) * keep)])


def test_sound_that_is_missing_coded_otherwise_or_changing_is_refused() -> None:
    with pytest.raises(AudioError, match="its sound is coded as ac3; aac, alac"):
        load_waveform(encode_with("mp4", "ac3", sine(1.0, 48_000), 48_000))
    with pytest.raises(AudioError, match="its sound is coded as something unknown; aac, alac"):
        load_waveform(encode_audio(sine(1.0), 16_000, "m4a").replace(b"mp4a", b"what").replace(b"esds", b"none"))
    with pytest.raises(AudioError, match="holds no sound"):
        load_waveform(_mp4_of_pictures())
    two_rates = encode_audio(sine(1, 48_000), 48_000, "aac") + encode_audio(sine(1, 44_100), 44_100, "aac")
    with pytest.raises(AudioError, match="changes on the way to 44100 Hz, 1 channels"):
        load_waveform(two_rates)


def _mp4_of_pictures() -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("mpeg4", rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.width = stream.height = 32
        for _ in range(5):
            output.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def test_limits_can_be_changed() -> None:
    content = encode_audio(sine(1.0, 8000, channels=2), 8000, "wav")
    assert len(load_waveform(content)) == SAMPLE_RATE
    for limits, message in [
        (AudioLimits(max_bytes=100), "at most 100 are allowed"),
        (AudioLimits(max_channels=1), "has 2 channels"),
        (AudioLimits(min_rate=16_000), "has 8,000 samples a second"),
        (AudioLimits(max_seconds=0.5), "lasts 1.0 s"),
        (AudioLimits(min_seconds=2.0), "lasts 1.000 s"),
    ]:
        with pytest.raises(AudioError, match=message):
            load_waveform(content, limits)


def test_threads_get_what_one_thread_gets() -> None:
    contents = [encode_audio(NOISE * level, 48_000, kind) for kind in AUDIO_KINDS for level in (0.5, 1.0)] * 3
    alone = [load_waveform(content) for content in contents]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(load_waveform, contents))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)
