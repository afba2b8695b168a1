"""Recordings of any kind to waveforms: mono float32 at 16 kHz, shape (S,).

soundfile reads WAV, FLAC and Ogg whose header states the length, PyAV (FFmpeg) all else: mp3 (libsndfile's reader of it
writes its remarks to stderr), AAC, MP4, WebM, and streamed WAV and FLAC. soxr resamples. Blocks are averaged over
channels and resampled as they are decoded, so that memory is bounded by `AudioLimits` and not by what a file claims.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from saysee.errors import AudioError
from saysee.features.containers import FORMATS, find_format, find_missing_end
from saysee.features.sources import naming, open_source

SAMPLE_RATE = 16_000
"""Samples a second of every waveform."""

# Ours: the peak of a 16-bit recording of nothing is 1 or 2 steps of 3e-5.
_SILENT_BELOW = 1e-4
# Values decoded at a time, all channels together: 4 MiB as float32.
_BLOCK_VALUES = 1 << 20
# libsndfile gives the largest number there is for a length that it does not know.
_UNKNOWN_FRAMES = 1 << 62

_FFMPEG_FORMATS = {"mp4": "mov", "webm": "matroska"}
# Where the header holds no duration FFmpeg guesses one from the bit rate, and is often wrong.
_GUESSED_DURATION = ("aac", "mp3")
_FFMPEG_CODECS = (
    *("aac", "alac", "flac", "mp3float", "opus", "vorbis", "pcm_alaw", "pcm_mulaw"),
    *("pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le"),
)


@dataclass(frozen=True)
class AudioLimits:
    """What a recording may be. All values are ours.

    Attributes:
        max_bytes: size of the file.
        min_seconds: shortest duration. HuBERT's convolutions need 400 samples, a fortieth of a second.
        max_seconds: longest duration.
        min_rate: lowest sampling rate in Hz; below it there is no speech, and resampling would multiply the size.
        max_rate: highest sampling rate in Hz.
        max_channels: most channels.
    """

    max_bytes: int = 200 * 1024 * 1024
    min_seconds: float = 0.05
    max_seconds: float = 600.0
    min_rate: int = 4_000
    max_rate: int = 384_000
    max_channels: int = 16


_DEFAULT_LIMITS = AudioLimits()


def load_waveform(
    source: Path | bytes, limits: AudioLimits = _DEFAULT_LIMITS, name: str | None = None
) -> NDArray[np.float32]:
    """Decode a recording: wav, flac, ogg (Vorbis, Opus), mp3, m4a/mp4/aac or webm, told by its content.

    Size, rate, channels and duration are checked before anything is decoded, and again as it is, since a header may
    say nothing or lie. A cut-off file is refused where the container shows it: see
    `saysee.features.containers.find_missing_end` for where it does and where (mp3, AAC, a browser's webm) it cannot.

    Args:
        source: path of the file, or its bytes.
        limits: what is allowed.
        name: what an error calls the recording; by default its path.

    Returns:
        Waveform of shape (S,), the mean of the channels at 16 kHz, finite.

    Raises:
        AudioError: one line that names the file: missing, empty, not a recording of these formats, cut off or damaged,
            outside the limits, NaN or infinite samples, silent throughout.
    """
    with open_source(source, name, limits.max_bytes, AudioError) as file:
        kind = find_format(file)
        if kind is None:
            raise AudioError(f"is not a recording of a known format; {', '.join(FORMATS)} are read")
        if (missing := find_missing_end(file, kind)) is not None:
            raise AudioError(f"is truncated: {missing}")
        file.seek(0)
        if kind in ("wav", "flac", "ogg"):
            waveform = _decode_soundfile(file, kind, limits)
            if waveform is not None:
                return waveform
            file.seek(0)
        return _decode_ffmpeg(file, kind, limits)


def as_waveform(
    samples: NDArray[Any], sampling_rate: int, limits: AudioLimits = _DEFAULT_LIMITS, name: str = "the array"
) -> NDArray[np.float32]:
    """Make a waveform of samples that are already in memory, with the checks of `load_waveform`.

    Args:
        samples: shape (frames,), or (frames, channels) as soundfile gives it. Floats are taken as they are; integers
            are divided by the full scale of their type (unsigned ones have their zero in the middle), so that they lie
            in [-1, 1].
        sampling_rate: frames a second.
        limits: what is allowed.
        name: what an error calls the samples.

    Returns:
        Waveform of shape (S,), the mean of the channels at 16 kHz, finite.

    Raises:
        AudioError: one line: not an array of numbers with one or two axes, outside the limits, NaN or infinite
            samples, silent throughout.
    """
    with naming(name, AudioError):
        if samples.dtype.kind not in "fiu" or samples.ndim not in (1, 2):
            raise AudioError(
                f"has type {samples.dtype} and shape {samples.shape}; floats or integers of shape (frames,) or "
                "(frames, channels) are needed"
            )
        table = samples[:, None] if samples.ndim == 1 else samples
        frames, channels = table.shape
        if channels > limits.max_channels >= frames:
            raise AudioError(f"has shape {samples.shape}; (frames, channels) is needed: transpose it")
        _check_header(sampling_rate, channels, frames / max(sampling_rate, 1), limits)
        step = _BLOCK_VALUES // channels
        return _resampled((table[start : start + step] for start in range(0, frames, step)), sampling_rate, limits)


def _decode_soundfile(file: BinaryIO, kind: str, limits: AudioLimits) -> NDArray[np.float32] | None:
    """Decode with libsndfile; None if the header does not state the length, which libsndfile then cannot read."""
    try:
        with soundfile.SoundFile(file) as sound:
            if not 0 < sound.frames < _UNKNOWN_FRAMES:
                return None
            _check_header(sound.samplerate, sound.channels, sound.frames / sound.samplerate, limits)
            return _resampled(_soundfile_blocks(sound), sound.samplerate, limits)
    except soundfile.LibsndfileError as error:
        reason = error.error_string.removeprefix("Error : ").rstrip(".")
        raise AudioError(f"is truncated or damaged {kind} ({reason})") from None


def _soundfile_blocks(sound: Any) -> Iterator[NDArray[np.float32]]:
    frames = 0
    while len(block := sound.read(_BLOCK_VALUES // sound.channels, dtype="float32", always_2d=True)) > 0:
        frames += len(block)
        yield block
    if frames < sound.frames:
        raise AudioError(f"is truncated: its header promises {sound.frames:,} frames and {frames:,} are there")


def _decode_ffmpeg(file: BinaryIO, kind: str, limits: AudioLimits) -> NDArray[np.float32]:
    # Handed an open file and one named format, FFmpeg opens nothing else: a name could be a URL or a list of files.
    options = {"codec_whitelist": ",".join(_FFMPEG_CODECS)}
    try:
        demuxer = _FFMPEG_FORMATS.get(kind, kind)
        with av.open(file, "r", format=demuxer, options=options, metadata_errors="replace") as media:
            if not media.streams.audio:
                raise AudioError("holds no sound")
            stream = media.streams.audio[0]
            codec = getattr(stream.codec_context, "name", "something unknown")  # PyAV then has None for a context
            if codec not in _FFMPEG_CODECS:
                raise AudioError(f"its sound is coded as {codec}; {', '.join(_FFMPEG_CODECS)} are read")
            duration = None if kind in _GUESSED_DURATION else media.duration
            seconds = None if duration is None else duration / av.time_base
            _check_header(stream.codec_context.sample_rate, stream.codec_context.channels, seconds, limits)
            frames = media.decode(stream)
            first = next(frames, None)
            if first is None:
                raise AudioError("holds no sound")
            # AAC's header may state half the rate that comes out of the decoder
            _check_header(first.sample_rate, first.layout.nb_channels, None, limits)
            return _resampled(_ffmpeg_blocks(chain([first], frames), limits), first.sample_rate, limits)
    except av.FFmpegError as error:
        raise AudioError(f"is truncated or damaged {kind} ({error.strerror})") from None


def _ffmpeg_blocks(frames: Iterable[av.AudioFrame], limits: AudioLimits) -> Iterator[NDArray[Any]]:
    rate = None
    for frame in frames:
        rate = rate or frame.sample_rate
        channels = frame.layout.nb_channels
        if frame.sample_rate != rate or channels > limits.max_channels:
            raise AudioError(f"changes on the way to {frame.sample_rate} Hz, {channels} channels")
        values = frame.to_ndarray()
        yield values.T if frame.format.is_planar else values.reshape(-1, channels)


def _check_header(rate: int, channels: int, seconds: float | None, limits: AudioLimits) -> None:
    if not limits.min_rate <= rate <= limits.max_rate:
        raise AudioError(f"has {rate:,} samples a second; {limits.min_rate:,} to {limits.max_rate:,} are allowed")
    if not 1 <= channels <= limits.max_channels:
        raise AudioError(f"has {channels:,} channels; 1 to {limits.max_channels} are allowed")
    if seconds is not None and seconds > limits.max_seconds:
        raise _too_long(f"{seconds:,.1f} s", limits)


def _too_long(duration: str, limits: AudioLimits) -> AudioError:
    return AudioError(f"lasts {duration}; at most {limits.max_seconds:g} s are allowed: cut it or raise max_seconds")


def _resampled(blocks: Iterable[NDArray[Any]], rate: int, limits: AudioLimits) -> NDArray[np.float32]:
    """Average blocks of shape (frames, channels) over channels, resample them as one signal, and check the result."""
    resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
    pieces: list[NDArray[np.float32]] = []
    frames = 0
    for block in blocks:
        frames += len(block)
        if frames > limits.max_seconds * rate:
            raise _too_long(f"over {limits.max_seconds:g} s", limits)
        pieces.append(resampler.resample_chunk(_mono(block)))
    if frames < limits.min_seconds * rate:
        raise AudioError(f"lasts {frames / rate:.3f} s; at least {limits.min_seconds:g} s are needed")
    pieces.append(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
    waveform = np.concatenate(pieces)
    # one number for three faults: the maximum of anything and NaN is NaN, and a filter spreads what is not finite
    peak = float(np.abs(waveform).max())
    if not np.isfinite(peak):
        raise AudioError("holds samples that are NaN, infinite or too large for float32")
    if peak < _SILENT_BELOW:
        raise AudioError(f"is silent throughout: its peak, channels averaged, is {peak:.1e}; {_SILENT_BELOW} is needed")
    return waveform


def _mono(block: NDArray[Any]) -> NDArray[np.float32]:
    """Return the mean over channels of a block of shape (frames, channels), integers brought to [-1, 1]."""
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused in the end
        if block.dtype.kind in "iu":
            half = 2.0 ** (np.iinfo(block.dtype).bits - 1)
            block = (block - half * (block.dtype.kind == "u")) / half
        mean: NDArray[np.float32] = block.astype(np.float32).mean(axis=1)
    return mean
