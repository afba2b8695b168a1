"""Speech and no speech: against a chunk-by-chunk reference, on real voices, and on what only makes a noise."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file

from saysee.errors import AudioError, SayseeError
from saysee.features import speech_activity
from saysee.features.audio import SAMPLE_RATE, load_waveform
from saysee.features.speech_activity import CHUNK, find_speech, speech_probability, trim

ASSETS = Path(str(resources.files("saysee"))) / "assets"
RECORDINGS = sorted((ASSETS / "art4apps" / "audio").rglob("*.ogg"))
Waveform = NDArray[np.float32]


@cache
def word() -> Waveform:
    """A real recording: 1.1 s, quiet at both ends."""
    return load_waveform(ASSETS / "art4apps" / "audio" / "en-art4apps" / "alligator.ogg")


def dither(seconds: float, seed: int = 0) -> Waveform:
    """What a good microphone hears in a silent room."""
    noise = np.random.default_rng(seed).standard_normal(round(seconds * SAMPLE_RATE))
    return (3e-4 * noise).astype(np.float32)


def coloured(seconds: float, exponent: float) -> NDArray[np.float64]:
    """Noise whose power falls with the frequency to this exponent, standard deviation 1."""
    spectrum = np.fft.rfft(np.random.default_rng(1).standard_normal(round(seconds * SAMPLE_RATE)))
    noise: NDArray[np.float64] = np.fft.irfft(spectrum / np.maximum(np.arange(len(spectrum)), 1) ** (exponent / 2))
    return np.asarray(noise / noise.std())


# ---- the detector


def chunk_by_chunk(waveform: Waveform) -> list[float]:
    """The detector as its authors wrote it for tinygrad: one chunk after the other, the state handed on; in NumPy."""
    weights = load_file(ASSETS / "silero-vad" / "silero_vad_16k.safetensors")

    def sigmoid(x: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(1 / (1 + np.exp(-x)))

    def convolved(x: Waveform, name: str, stride: int) -> Waveform:
        padded = np.pad(x, ((0, 0), (1, 1)))
        columns = [padded[:, at : at + 3] for at in range(0, x.shape[1], stride)]
        summed = [np.einsum("oik,ik->o", weights[f"{name}.weight"], column) for column in columns]
        return np.asarray(np.maximum(np.stack(summed, 1) + weights[f"{name}.bias"][:, None], 0))

    waveform = np.pad(waveform, (64, -len(waveform) % CHUNK))
    h, c = np.zeros(128, np.float32), np.zeros(128, np.float32)
    probabilities = []
    for start in range(64, len(waveform), CHUNK):
        heard = np.pad(waveform[start - 64 : start + CHUNK], (0, 64), "reflect")
        spectrum = np.stack([weights["stft_conv.weight"][:, 0] @ heard[at : at + 256] for at in range(0, 385, 128)], 1)
        x = np.hypot(spectrum[:129], spectrum[129:])
        for name, stride in (("conv1", 1), ("conv2", 2), ("conv3", 2), ("conv4", 1)):
            x = convolved(x, name, stride)
        gates = weights["lstm_cell.weight_ih"] @ x[:, 0] + weights["lstm_cell.bias_ih"]
        gates = gates + weights["lstm_cell.weight_hh"] @ h + weights["lstm_cell.bias_hh"]
        enter, forget, new, out = np.split(gates, 4)
        c = sigmoid(forget) * c + sigmoid(enter) * np.tanh(new)
        h = sigmoid(out) * np.tanh(c)
        logit = weights["final_conv.weight"][0, :, 0] @ np.maximum(h, 0) + weights["final_conv.bias"]
        probabilities.append(float(sigmoid(logit)[0]))
    return probabilities


@pytest.mark.parametrize(("start", "stop"), [(0, 17_554), (6000, 15_000), (8000, 8800)])
def test_probabilities_are_those_of_the_chunk_by_chunk_reference(start: int, stop: int) -> None:
    loud = (word() / np.abs(word()).max())[start:stop]  # so loud that it is not made louder
    received = speech_probability(loud)
    assert len(received) == -(-len(loud) // CHUNK)
    np.testing.assert_allclose(received, chunk_by_chunk(loud), atol=2e-4)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = speech_probability(np.tile(word(), 3))
    monkeypatch.setattr(speech_activity, "_BLOCK", 7)
    np.testing.assert_allclose(speech_probability(np.tile(word(), 3)), whole, atol=1e-4)


def test_threads_get_what_one_thread_gets() -> None:
    waveforms = [load_waveform(path) for path in RECORDINGS[::60]] * 3
    alone = [speech_probability(waveform) for waveform in waveforms]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(speech_probability, waveforms))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture
def unread() -> Iterator[None]:
    """The detector is read again, inside the test and after it."""
    speech_activity._detector.cache_clear()
    yield
    speech_activity._detector.cache_clear()


@pytest.mark.usefixtures("unread")
def test_reading_the_detector_uses_no_random_numbers() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    speech_probability(word())
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.usefixtures("unread")
def test_another_file_in_its_place_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech_activity, "_SHA256", "0" * 64)
    with pytest.raises(SayseeError, match=r"silero_vad_16k\.safetensors is missing or has been altered; install"):
        speech_probability(word())


# ---- what is kept


@pytest.mark.parametrize("voice", ["en", "es", "fr"])
def test_every_tenth_bundled_recording_is_heard_and_loses_nothing(voice: str) -> None:
    for path in [path for path in RECORDINGS if path.parent.name.startswith(voice)][::10]:
        waveform = load_waveform(path)
        kept, (start, stop) = trim(waveform)
        np.testing.assert_array_equal(kept, waveform[round(start * SAMPLE_RATE) : round(stop * SAMPLE_RATE)])
        assert np.square(kept).sum() > 0.995 * np.square(waveform).sum(), path


@pytest.mark.parametrize("loudness", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("noise", ["dither", "pink"])
def test_silence_and_noise_at_the_ends_are_cut_off_but_for_a_margin(noise: str, loudness: float) -> None:
    spoken = word()
    around = dither(7) if noise == "dither" else (coloured(7, 1) * spoken.std() / 10).astype(np.float32)
    before, after = np.split(around, [3 * SAMPLE_RATE])
    whole = np.concatenate([before, spoken, after]) * np.float32(loudness)
    kept, (start, stop) = trim(whole)
    # the word is 0.25 to 1.0 s after the beginning of its recording
    assert 3 - 0.6 < start < 3.2
    assert 3 + 1.0 < stop < 3 + 1.1 + 0.7
    assert len(kept) == round((stop - start) * SAMPLE_RATE)


def test_the_margin_is_half_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    probability = np.zeros(200, np.float32)
    probability[[60, 120]], probability[90] = 0.12, 0.9
    monkeypatch.setattr(speech_activity, "speech_probability", lambda _: probability)
    assert find_speech(np.zeros(200 * CHUNK - 5, np.float32)) == (60 * CHUNK - 8000, 121 * CHUNK + 8000)
    probability[[0, 199]] = 0.12
    assert find_speech(np.zeros(200 * CHUNK - 5, np.float32)) == (0, 200 * CHUNK - 5)


def test_a_pause_in_the_middle_stays() -> None:
    whole = np.concatenate([word(), dither(5), word()])
    kept, (start, stop) = trim(whole)
    assert start < 0.3
    assert stop > 1.1 + 5 + 0.8
    assert len(kept) > 6.5 * SAMPLE_RATE


def test_a_click_does_not_make_a_quiet_voice_inaudible() -> None:
    whole: Waveform = np.concatenate([dither(1), word() * np.float32(0.01), dither(1)])
    whole *= np.float32(0.1)
    whole[5000:5400] += np.float32(0.9)
    start, stop = find_speech(whole)
    assert start < 1.3 * SAMPLE_RATE
    assert stop > 1.9 * SAMPLE_RATE


def hum(seconds: float) -> NDArray[np.float64]:
    t = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return np.asarray(sum(np.sin(2 * np.pi * 50 * k * t) / k for k in (1, 2, 3, 5)))


def clicks(seconds: float) -> NDArray[np.float64]:
    generator = np.random.default_rng(2)
    sound = np.zeros(round(seconds * SAMPLE_RATE))
    for at in generator.integers(0, len(sound) - 200, 6):
        sound[at : at + 200] = generator.standard_normal(200) * np.exp(-np.arange(200) / 40)
    return sound


NO_SPEECH: dict[str, Callable[[], NDArray[np.float64]]] = {
    "a silent room": lambda: dither(3).astype(np.float64),
    "white noise": lambda: 0.1 * coloured(3, 0),
    "pink noise": lambda: 0.1 * coloured(3, 1),
    "a deep rumble": lambda: 0.1 * coloured(3, 2),
    "loud noise": lambda: 0.5 * coloured(3, 0).clip(-2, 2),
    "a twentieth of a second": lambda: 0.1 * coloured(0.05, 0),
    "mains hum": lambda: 0.1 * hum(3),
    "a tone": lambda: 0.3 * np.sin(2 * np.pi * 1000 * np.arange(3 * SAMPLE_RATE) / SAMPLE_RATE),
    "clicks": lambda: clicks(3),
    "a constant": lambda: np.full(SAMPLE_RATE, 0.1),
}


@pytest.mark.parametrize("name", NO_SPEECH)
def test_without_speech_one_line_says_so(name: str) -> None:
    waveform = NO_SPEECH[name]().astype(np.float32)
    with pytest.raises(
        AudioError, match=r"^question\.wav: no speech was heard in it: .* 0\.\d\d, 0\.2 is needed"
    ) as caught:
        trim(waveform, name="question.wav")
    assert "\n" not in str(caught.value)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40_000), st.floats(0, 1), st.integers(0, 10_000))
def test_whatever_is_given_what_is_kept_lies_within_it(length: int, loudness: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    waveform = np.resize(word(), length) * np.float32(loudness)
    waveform += (1e-4 * generator.standard_normal(length)).astype(np.float32)
    try:
        start, stop = find_speech(waveform)
    except AudioError:
        return
    assert 0 <= start < stop <= length
