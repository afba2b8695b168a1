"""Recordings altered for training, as a room, a microphone and a telephone alter them; evaluation never hears it.

A waveform is spoken faster or slower, sounds in a room, in noise, is recorded too loud or too quiet, and is coded, in
this order. Which of these happen, and how much, follows from a number that the caller gives: the same number alters a
waveform to the same samples, in whatever batch, thread or process. Each kind has random numbers of its own, so that
switching one off leaves the others as they were.

Waveforms are mono float32 at 16 kHz, (S,).
"""

import hashlib
import io
import json
from collections.abc import Sequence

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from saysee.config import AugmentationConfig, Codec
from saysee.features.audio import SAMPLE_RATE

Waveform = NDArray[np.float32]

_OUTPUT_VERSION = 1  # part of every fingerprint: raise it when a change here gives other samples
# Of each codec: container, coding, rate in Hz, and libsndfile's compression level, with which speech takes about 20
# kbit/s in Opus and 32 in MP3. mu-law is the telephone's, G.711: 64 kbit/s.
_CODECS: dict[Codec, tuple[str, str, int, float | None]] = {
    "opus": ("OGG", "OPUS", 16_000, 0.95),
    "mp3": ("MP3", "MPEG_LAYER_III", 16_000, 0.9),
    "mu-law": ("WAV", "ULAW", 8_000, None),
}


def alter(waveform: Waveform, config: AugmentationConfig, number: int) -> Waveform:
    """Alter a waveform (S,); its length changes with its speed alone.

    Args:
        waveform: what was recorded.
        config: what may happen to it.
        number: decides what does, and how much; 0 or more.
    """
    # the seed's second part names the kind
    speed, room, noise, gain, codec = (np.random.default_rng([number, kind]) for kind in range(5))
    if config.speed is not None and speed.random() < config.probability:
        waveform = at_speed(waveform, speed.uniform(*config.speed))
    if config.rt60_seconds is not None and room.random() < config.probability:
        waveform = reverberate(waveform, impulse_response(room.uniform(*config.rt60_seconds), room))
    if config.snr_db is not None and noise.random() < config.probability:
        snr_db, exponent = noise.uniform(*config.snr_db), noise.uniform(0, 2)
        waveform = add_noise(waveform, coloured_noise(len(waveform), exponent, noise), snr_db)
    if config.gain_db is not None and gain.random() < config.probability:
        waveform = amplify(waveform, gain.uniform(*config.gain_db))
    if config.codecs and codec.random() < config.probability:
        waveform = through_codec(waveform, config.codecs[codec.integers(len(config.codecs))])
    return waveform


def variant_number(content: bytes, variant: int) -> int:
    """Return the number by which a stored variant of a recording is altered.

    It belongs to the file's content (its SHA-256), not to a training seed: runs over several seeds share what is
    stored.
    """
    return int.from_bytes(hashlib.blake2b(content, digest_size=8, salt=variant.to_bytes(8, "big")).digest(), "big")


def altered_fingerprint(fingerprint: str, config: AugmentationConfig, variant: int) -> str:
    """Return the SHA-256 (hexadecimal) that names the features of a variant in the store.

    Args:
        fingerprint: of the speech backbone.
        config: what may happen to recordings; how many variants there are does not matter to one of them.
        variant: its number, from 1.
    """
    kinds = {name: getattr(config, name) for name in ("probability", *config.kinds)}
    identity = json.dumps([fingerprint, kinds, variant, _OUTPUT_VERSION], sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()


def at_speed(waveform: Waveform, factor: float) -> Waveform:
    """Play a waveform (S,) faster, to (about S / factor,); the pitch rises with it [Ko et al. 2015].

    Ko, Peddinti, Povey and Khudanpur, Audio augmentation for speech recognition, Interspeech 2015.
    """
    faster: Waveform = soxr.resample(waveform, SAMPLE_RATE * factor, SAMPLE_RATE)
    return faster


def impulse_response(rt60: float, generator: np.random.Generator) -> NDArray[np.float64]:
    """Make the impulse response of a room: the direct sound and a tail of noise with the same energy.

    So much do both have at the critical distance, beyond which most of what is heard is the room. The tail is white
    and decays exponentially, by 60 dB in `rt60` seconds [Polack 1988; Schroeder 1965 measures it].
    """
    time = np.arange(1, round(rt60 * SAMPLE_RATE) + 1) / SAMPLE_RATE
    tail = generator.standard_normal(len(time)) * 10 ** (-3 * time / rt60)
    return np.concatenate([[1.0], tail / np.sqrt(np.square(tail).sum())])


def reverberate(waveform: Waveform, response: NDArray[np.float64]) -> Waveform:
    """Let a waveform (S,) sound in a room, as loud as it was; what rings on after its end is cut off."""
    size = 1 << (len(waveform) + len(response) - 2).bit_length()
    heard = np.fft.irfft(np.fft.rfft(waveform, size) * np.fft.rfft(response, size), size)[: len(waveform)]
    as_loud: Waveform = (heard * np.sqrt(_power(waveform) / _power(heard))).astype(np.float32)
    return as_loud


def coloured_noise(samples: int, exponent: float, generator: np.random.Generator) -> NDArray[np.float64]:
    """Make Gaussian noise (samples,) whose power falls with the frequency to `exponent`: 0 white, 1 pink, 2 brown."""
    spectrum = np.fft.rfft(generator.standard_normal(samples))
    # level below 50 Hz, where there is no speech: brown noise would else be all rumble
    frequency = np.maximum(np.fft.rfftfreq(samples, 1 / SAMPLE_RATE), 50.0)
    noise: NDArray[np.float64] = np.fft.irfft(spectrum * frequency ** (-exponent / 2), samples)
    return noise


def add_noise(waveform: Waveform, noise: NDArray[np.float64], snr_db: float) -> Waveform:
    """Add noise (S,) to a waveform (S,), so that the ratio of their mean powers is `snr_db` decibels."""
    scale = np.sqrt(_power(waveform) / _power(noise) / 10 ** (snr_db / 10))
    noisy: Waveform = (waveform + scale * noise).astype(np.float32)
    return noisy


def amplify(waveform: Waveform, gain_db: float) -> Waveform:
    """Make a waveform louder by `gain_db` decibels of amplitude; nothing is clipped."""
    return waveform * np.float32(10 ** (gain_db / 20))


def through_codec(waveform: Waveform, codec: Codec) -> Waveform:
    """Code a waveform (S,) and decode it again, to (S,). What is beyond full scale is clipped, as a codec does."""
    container, coding, rate, level = _CODECS[codec]
    sent = np.clip(soxr.resample(waveform, SAMPLE_RATE, rate), -1, 1)
    file = io.BytesIO()
    soundfile.write(file, sent, rate, format=container, subtype=coding, compression_level=level)
    file.seek(0)
    received, _ = soundfile.read(file, dtype="float32")  # not by `load_waveform`, which refuses what has become silent
    received = soxr.resample(received, rate, SAMPLE_RATE)[: len(waveform)]
    return np.pad(received, (0, len(waveform) - len(received)))


def _power(samples: Sequence[float] | NDArray[np.floating]) -> float:
    return float(np.square(samples, dtype=np.float64).mean())
