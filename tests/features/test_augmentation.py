"""Alterations against their definitions: decibels, Schroeder's decay, durations, a round trip; and whose they are."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from saysee.config import AugmentationConfig, Codec
from saysee.features import augmentation
from saysee.features.audio import SAMPLE_RATE, load_waveform
from saysee.features.augmentation import (
    add_noise,
    alter,
    altered_fingerprint,
    amplify,
    at_speed,
    coloured_noise,
    impulse_response,
    reverberate,
    through_codec,
    variant_number,
)

Waveform = NDArray[np.float32]
WORD = Path(str(resources.files("saysee"))) / "assets" / "art4apps" / "audio" / "en-art4apps" / "alligator.ogg"
ALL = AugmentationConfig(
    probability=1.0,
    speed=(0.9, 1.1),
    rt60_seconds=(0.2, 0.6),
    snr_db=(5.0, 20.0),
    gain_db=(-12.0, 3.0),
    codecs=get_args(Codec),
)


@pytest.fixture(scope="module")
def word() -> Waveform:
    return load_waveform(WORD)


def decibels(power: float) -> float:
    return 10 * math.log10(power)


def power(samples: NDArray[np.floating]) -> float:
    return float(np.square(samples.astype(np.float64)).mean())


@settings(deadline=None, max_examples=30)
@given(st.floats(-20, 40), st.floats(0, 2), st.integers(0, 2**32))
def test_noise_is_as_far_below_speech_as_is_asked_for(snr_db: float, exponent: float, seed: int) -> None:
    speech = load_waveform(WORD)
    noise = coloured_noise(len(speech), exponent, np.random.default_rng(seed))
    noisy = add_noise(speech, noise, snr_db)
    assert noisy.dtype == np.float32
    assert decibels(power(speech) / power(noisy.astype(np.float64) - speech)) == pytest.approx(snr_db, abs=0.01)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_the_power_of_noise_falls_with_the_frequency_to_its_exponent(exponent: float) -> None:
    noise = coloured_noise(60 * SAMPLE_RATE, exponent, np.random.default_rng(0))
    spectrum = np.abs(np.fft.rfft(noise)) ** 2
    frequency = np.fft.rfftfreq(len(noise), 1 / SAMPLE_RATE)
    low, high = (spectrum[(frequency > f) & (frequency < 1.1 * f)].mean() for f in (400, 4000))
    assert decibels(low / high) == pytest.approx(10 * exponent, abs=0.3)


def schroeder_rt60(response: NDArray[np.float64]) -> float:
    """Measure RT60 by ISO 3382's T30: the slope of the energy that is still to come, from -5 to -35 dB of the tail."""
    decay = np.cumsum(np.square(response[1:])[::-1])[::-1]  # the direct sound is no part of the tail
    level = 10 * np.log10(decay / decay[0])
    between = (level < -5) & (level > -35)
    slope = np.polyfit(np.flatnonzero(between) / SAMPLE_RATE, level[between], 1)[0]
    return float(-60 / slope)


@settings(deadline=None, max_examples=20)
@given(st.floats(0.15, 2.0), st.integers(0, 2**32))
def test_a_room_decays_in_the_time_that_is_asked_for(rt60: float, seed: int) -> None:
    response = impulse_response(rt60, np.random.default_rng(seed))
    assert schroeder_rt60(response) == pytest.approx(rt60, rel=0.1)
    assert response[0] ** 2 == pytest.approx(np.square(response[1:]).sum())


def test_reverberation_is_convolution_as_loud_as_before(word: Waveform) -> None:
    response = impulse_response(0.3, np.random.default_rng(1))
    heard = reverberate(word, response)
    expected = np.convolve(word.astype(np.float64), response)[: len(word)]
    expected *= math.sqrt(power(word) / power(expected))
    assert heard.shape == word.shape
    assert heard.dtype == np.float32
    assert np.abs(heard - expected).max() < 1e-5


@settings(deadline=None, max_examples=30)
@given(st.floats(0.5, 2.0))
def test_speed_divides_the_duration_and_multiplies_the_pitch(factor: float) -> None:
    time = np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
    faster = at_speed(np.sin(2 * np.pi * 500 * time).astype(np.float32), factor)
    assert len(faster) == pytest.approx(len(time) / factor, abs=2)
    peak = np.abs(np.fft.rfft(faster * np.hanning(len(faster)), 1 << 18)).argmax() * SAMPLE_RATE / (1 << 18)
    assert peak == pytest.approx(500 * factor, rel=0.002)


@given(st.floats(-60, 40))
def test_gain_is_exact(gain_db: float) -> None:
    waveform = np.array([0.5, -0.25, 0.0], np.float32)
    assert amplify(waveform, gain_db) == pytest.approx(waveform * 10 ** (gain_db / 20), rel=1e-6)
    assert decibels(power(amplify(waveform, gain_db)) / power(waveform)) == pytest.approx(gain_db, abs=1e-4)


@pytest.mark.parametrize("codec", get_args(Codec))
def test_a_codec_loses_something_and_keeps_the_speech_in_its_place(word: Waveform, codec: Codec) -> None:
    received = through_codec(word, codec)
    assert received.shape == word.shape
    assert received.dtype == np.float32
    assert 0.95 < np.corrcoef(word, received)[0, 1] < 0.99999


def test_the_telephone_has_nothing_above_four_kilohertz(word: Waveform) -> None:
    def high(waveform: Waveform) -> float:
        spectrum = np.abs(np.fft.rfft(waveform)) ** 2
        return float(spectrum[np.fft.rfftfreq(len(waveform), 1 / SAMPLE_RATE) > 4200].sum() / spectrum.sum())

    assert high(through_codec(word, "mu-law")) < high(word) / 100


def test_a_codec_clips_what_is_beyond_full_scale(word: Waveform) -> None:
    loud = word / np.abs(word).max() * np.float32(4)
    assert np.abs(through_codec(loud, "mu-law")).max() < 2


@pytest.mark.parametrize("codec", get_args(Codec))
def test_what_becomes_silent_in_a_codec_is_no_error(word: Waveform, codec: Codec) -> None:
    assert np.abs(through_codec(amplify(word, -100), codec)).max() < 0.001


# ---- which alteration, and whose


def test_a_number_decides_the_alteration_in_whatever_thread(word: Waveform) -> None:
    with ThreadPoolExecutor(4) as pool:
        several = list(pool.map(lambda number: alter(word, ALL, number), [5, 6, 7, 5, 6, 7]))
    for first, again in zip(several[:3], several[3:], strict=True):
        assert np.array_equal(first, again)
    assert not np.array_equal(several[0], several[1])
    assert all(waveform.dtype == np.float32 and np.isfinite(waveform).all() for waveform in several)


def test_nothing_happens_when_no_kind_is_on_or_none_is_drawn(word: Waveform) -> None:
    assert np.array_equal(alter(word, AugmentationConfig(), 3), word)
    rare = AugmentationConfig(probability=1e-9, variants=1, gain_db=(-6.0, 6.0))
    assert np.array_equal(alter(word, rare, 3), word)


def test_kinds_happen_with_their_probability_and_evenly_over_their_range(word: Waveform) -> None:
    config = AugmentationConfig(probability=0.25, variants=1, gain_db=(-12.0, 0.0))
    gains = [decibels(power(alter(word[:400], config, number)) / power(word[:400])) for number in range(2000)]
    changed = [gain for gain in gains if gain != 0]
    assert len(changed) / len(gains) == pytest.approx(0.25, abs=0.04)
    assert np.mean(changed) == pytest.approx(-6, abs=0.5)
    assert -12 <= min(changed) < -11
    assert -1 < max(changed) <= 0


def test_kinds_happen_independently_of_each_other() -> None:
    config = AugmentationConfig(probability=0.5, variants=1, speed=(0.8, 0.9), gain_db=(20.0, 30.0))
    tone = np.full(800, 0.01, np.float32)
    altered = [alter(tone, config, number) for number in range(400)]
    slower = np.array([len(waveform) > len(tone) for waveform in altered])
    louder = np.array([np.median(waveform) > 0.05 for waveform in altered])
    for share in (slower.mean(), louder.mean(), (slower == louder).mean()):
        assert share == pytest.approx(0.5, abs=0.09)


@pytest.mark.parametrize("kind", ALL.kinds)
def test_every_kind_alters_by_its_own_draws(word: Waveform, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one kind does is the same whether another is on: seen in the arguments that it is given."""
    alone = AugmentationConfig(probability=1.0, **{kind: getattr(ALL, kind)})
    assert alone.kinds == (kind,)
    altered = alter(word, alone, 11)
    assert not (altered.shape == word.shape and np.array_equal(altered, word))

    names = ("at_speed", "impulse_response", "add_noise", "amplify", "through_codec")
    calls: dict[str, list[object]] = {}

    def spy(name: str) -> Callable[..., object]:
        real = getattr(augmentation, name)

        def record(*arguments: object) -> object:
            calls.setdefault(name, []).append(arguments[0] if name == "impulse_response" else arguments[-1])
            return real(*arguments)

        return record

    for name in names:
        monkeypatch.setattr(augmentation, name, spy(name))
    alter(word, alone, 11)
    alter(word, ALL, 11)
    name = names[ALL.kinds.index(kind)]
    assert len(calls[name]) == 2
    assert calls[name][0] == calls[name][1]


def test_a_stored_variant_belongs_to_content_and_number() -> None:
    content, other = b"a" * 32, b"b" * 32
    numbers = [variant_number(content, 1), variant_number(content, 2), variant_number(other, 1)]
    assert len(set(numbers)) == 3
    assert all(0 <= number < 2**64 for number in numbers)
    assert variant_number(content, 1) == numbers[0]


def test_the_fingerprint_holds_all_that_decides_a_variant_and_not_how_many_there_are() -> None:
    config = AugmentationConfig(variants=2, snr_db=(5.0, 20.0))
    names = [
        altered_fingerprint("encoder", config, 1),
        altered_fingerprint("encoder", config, 2),
        altered_fingerprint("another", config, 1),
        altered_fingerprint("encoder", AugmentationConfig(variants=2, snr_db=(5.0, 21.0)), 1),
        altered_fingerprint("encoder", AugmentationConfig(variants=2, snr_db=(5.0, 20.0), probability=0.6), 1),
        altered_fingerprint("encoder", AugmentationConfig(variants=2, snr_db=(5.0, 20.0), codecs=("opus",)), 1),
    ]
    assert len(set(names)) == len(names)
    assert altered_fingerprint("encoder", AugmentationConfig(variants=9, snr_db=(5.0, 20.0)), 1) == names[0]
