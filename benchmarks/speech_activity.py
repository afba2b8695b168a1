"""Does trimming cut words, does it refuse voices, does it hear speech in noise? Beside a plain threshold on energy.

    python benchmarks/speech_activity.py PICTURE_WORDS

All human recordings of picture-words, single words by ten voices in eight languages, three times: as they are; laid
into four seconds of pink noise, 20 dB below the word (its loudest fifth); and 40 dB quieter in the noise of a silent
room. Of each is counted whether it is refused, and whether what is cut off holds more than 1 % of the word's energy;
and of the noise around it, how much is left. Then sounds without speech, a hundred of each kind: how many are taken for
speech. Music-like sounds are among them, which are meant to be let through rather than singing to be refused.

The rival keeps all between the first and the last 32 ms that are at most 30 or 60 dB below the loudest (60 is the rule
and the value of `librosa.effects.trim`), with the same margin; it refuses nothing.

Last, whether trimming harms the answers, since a model is trained on recordings that are not trimmed: the recipe `tiny`
on the sample corpus, whose test recordings are asked as they are and in noise, each with and without trimming.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from record import keep
from saysee.config import load_config
from saysee.data.manifest import read_manifest
from saysee.data.sample import sample_manifest_path
from saysee.errors import AudioError
from saysee.features.audio import SAMPLE_RATE, load_waveform
from saysee.features.speech_activity import CHUNK, find_speech, speech_probability
from saysee.models.retrieval_model import SpeechImageModel
from saysee.workflows import train_on_manifest

SEED = 0
MARGIN = 8000
Samples = NDArray[np.float32]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture_words", type=Path)
    parser.add_argument("--every", type=int, default=1, help="take one of so many recordings (default: 1)")
    options = parser.parse_args()
    paths = sorted((options.picture_words / "audio").rglob("*.ogg"))[:: options.every]
    words = [load_waveform(path) for path in paths]
    lowest = sorted(
        (float(speech_probability(word).max()), path.parent.name) for word, path in zip(words, paths, strict=True)
    )
    figures: dict[str, Any] = {
        "recordings": len(words),
        "lowest_probabilities": [(round(value, 2), voice) for value, voice in lowest[:5]],
        "voices": {name: on_voices(words, find) for name, find in FINDERS.items()},
        "taken_for_speech_of_100": {name: taken_for_speech(make) for name, make in SOUNDS.items()},
        "cost": cost(words),
        "answers": answers(),
    }
    keep(
        "speech_activity",
        data="picture-words by human voices (Art4Apps, GCompris), and generated sounds; answers: the sample corpus",
        seed=SEED,
        figures=figures,
    )


# ---- ours and the rival


def energy(decibels: float) -> Callable[[Samples], tuple[int, int]]:
    """Return what keeps all between the first and the last chunk that is at most so much below the loudest."""

    def find(waveform: Samples) -> tuple[int, int]:
        filled = np.pad(waveform, (0, -len(waveform) % CHUNK)).reshape(-1, CHUNK)
        loudness = np.sqrt(np.square(filled).mean(1))
        loud = np.flatnonzero(loudness >= loudness.max() * 10 ** (-decibels / 20))
        start, stop = int(loud[0]) * CHUNK - MARGIN, (int(loud[-1]) + 1) * CHUNK + MARGIN
        return max(0, start), min(len(waveform), stop)

    return find


FINDERS: dict[str, Callable[[Samples], tuple[int, int]]] = {
    "ours": find_speech,
    "energy, 30 dB": energy(30),
    "energy, 60 dB": energy(60),
}


# ---- voices


def laid_into(word: Samples, noise: Samples, loudness: float = 1.0) -> tuple[Samples, int]:
    """Return the word somewhere in the noise, and where it starts."""
    start = (len(noise) - len(word)) // 2
    laid = noise.copy()
    laid[start : start + len(word)] += word * np.float32(loudness)
    return laid, start


def situations(word: Samples, generator: np.random.Generator) -> dict[str, tuple[Samples, int]]:
    """Return the three recordings that are made of one, and where the word starts in each."""
    length = len(word) + 4 * SAMPLE_RATE
    pink = coloured(generator, length, 1) * np.float32(loud_part(word) * 10 ** (-20 / 20))
    room = (3e-5 * generator.standard_normal(length)).astype(np.float32)
    return {
        "as recorded": (word, 0),
        "in noise": laid_into(word, pink),
        "quiet": laid_into(word, room, 10 ** (-40 / 20)),
    }


def on_voices(words: list[Samples], find: Callable[[Samples], tuple[int, int]]) -> dict[str, dict[str, Any]]:
    generator = np.random.default_rng(SEED)
    refused: dict[str, int] = {}
    lost: dict[str, list[float]] = {}
    left: dict[str, list[float]] = {}
    for word in words:
        total = float(np.square(word, dtype=np.float64).sum())
        for name, (waveform, at) in situations(word, generator).items():
            try:
                start, stop = find(waveform)
            except AudioError:
                refused[name] = refused.get(name, 0) + 1
                continue
            kept = word[max(0, start - at) : max(0, stop - at)]
            lost.setdefault(name, []).append(1 - float(np.square(kept, dtype=np.float64).sum()) / total)
            around = max(0, at - start) + max(0, stop - at - len(word))
            left.setdefault(name, []).append(around / SAMPLE_RATE)
    return {
        name: {
            "refused": refused.get(name, 0),
            "lose_over_1_percent": sum(share > 0.01 for share in lost[name]),
            "most_lost": round(max(lost[name]), 3),
            "seconds_left_around": round(float(np.mean(left[name])), 2),
        }
        for name in lost
    }


def loud_part(word: Samples) -> float:
    """Return the mean amplitude of the loudest fifth of a word, in stretches of 25 ms."""
    power = np.sort(np.square(word[: len(word) // 400 * 400].reshape(-1, 400)).mean(1))
    return float(np.sqrt(power[-max(1, len(power) // 5) :].mean()))


# ---- sounds without speech; each is given its length and scaled to a peak between -50 and -3 dB afterwards


def coloured(generator: np.random.Generator, length: int, exponent: float) -> Samples:
    """Return noise whose power falls with the frequency to this exponent, standard deviation 1."""
    spectrum = np.fft.rfft(generator.standard_normal(length))
    noise = np.fft.irfft(spectrum / np.maximum(np.arange(len(spectrum)), 1) ** (exponent / 2), length)
    return np.asarray(noise / noise.std(), np.float32)


def ramp(length: int) -> Samples:
    return (np.arange(length) / SAMPLE_RATE).astype(np.float32)


def hum(generator: np.random.Generator, length: int) -> Samples:
    base = generator.choice([50, 60])
    partials = [generator.uniform() / k * np.sin(2 * np.pi * base * k * ramp(length)) for k in range(1, 9)]
    return np.asarray(np.sum(partials, axis=0), np.float32)


def bursts(generator: np.random.Generator, length: int, longest: float, tones: int) -> Samples:
    """Return clicks (no tones, short), knocks (tones, short), beeps (one tone) or chords (tones with overtones)."""
    sound = np.zeros(length + SAMPLE_RATE * 2, np.float32)
    at = 0
    while at < length:
        samples = int(generator.uniform(0.2, 1) * longest * SAMPLE_RATE)
        t = ramp(samples)
        fade = np.exp(-5 * t / t[-1]) if tones != 1 else np.ones(samples)
        if tones == 0:
            sound[at : at + samples] += generator.standard_normal(samples) * fade
        root = generator.uniform(100, 800)
        for tone in range(tones):
            sound[at : at + samples] += np.sin(2 * np.pi * root * (1 + tone / 4) * t) * fade
        at += samples + int(generator.uniform(0.05, 0.5) * SAMPLE_RATE)
    return sound[:length]


def melody(generator: np.random.Generator, length: int) -> Samples:
    """Return notes with nine overtones and vibrato, which are nearly a voice."""
    sound = np.zeros(length + SAMPLE_RATE, np.float32)
    at = 0
    while at < length:
        t = ramp(int(generator.uniform(0.15, 0.7) * SAMPLE_RATE))
        phase = 2 * np.pi * 110 * 2 ** (generator.integers(0, 30) / 12) * (t + 1e-4 * np.sin(2 * np.pi * 5.5 * t))
        sound[at : at + len(t)] = np.sum([np.sin(k * phase) / k for k in range(1, 10)], axis=0)
        at += len(t)
    return sound[:length]


SOUNDS: dict[str, Callable[[np.random.Generator, int], Samples]] = {
    "white noise": lambda generator, length: coloured(generator, length, 0),
    "pink noise": lambda generator, length: coloured(generator, length, 1),
    "rumble": lambda generator, length: coloured(generator, length, 2),
    "hum": hum,
    "clicks": lambda generator, length: bursts(generator, length, 0.05, 0),
    "knocks": lambda generator, length: bursts(generator, length, 0.1, 3),
    "tone": lambda generator, length: np.sin(2 * np.pi * generator.uniform(80, 4000) * ramp(length)),
    "beeps": lambda generator, length: bursts(generator, length, 0.4, 1),
    "chords": lambda generator, length: bursts(generator, length, 1.0, 4),
    "melody": melody,
}


def taken_for_speech(make: Callable[[np.random.Generator, int], Samples]) -> int:
    generator = np.random.default_rng(SEED)
    taken = 0
    for _ in range(100):
        length = int(generator.uniform(1, 5) * SAMPLE_RATE)
        sound = make(generator, length)
        sound = sound / np.abs(sound).max() * 10 ** (generator.uniform(-50, -3) / 20)
        sound += 3e-5 * generator.standard_normal(length)
        try:
            find_speech(sound.astype(np.float32))
            taken += 1
        except AudioError:
            pass
    return taken


# ---- cost, and the answers of a model


def cost(words: list[Samples]) -> dict[str, float]:
    """Return milliseconds for recordings of three seconds and a minute, the best of five."""
    minute = np.resize(np.concatenate(words[:100]), 60 * SAMPLE_RATE)
    milliseconds = {}
    for seconds in (3, 60):
        times = []
        for _ in range(5):
            begun = time.perf_counter()
            find_speech(minute[: seconds * SAMPLE_RATE])
            times.append(time.perf_counter() - begun)
        milliseconds[f"milliseconds_for_{seconds}_s"] = round(1000 * min(times), 1)
    return milliseconds


def answers() -> dict[str, dict[str, float]]:
    """Train `tiny` and ask it the test recordings of the sample corpus, of all its pictures."""
    manifest = read_manifest(sample_manifest_path())
    with tempfile.TemporaryDirectory() as folder:
        train_on_manifest(load_config("tiny"), manifest, Path(folder) / "model")
        model = SpeechImageModel.from_pretrained(Path(folder) / "model")
    pictures = manifest.images()
    embedding = model.encode_image(list(pictures.values())).embedding
    captions = manifest.of("test")
    right = torch.tensor([list(pictures).index(caption.image_id) for caption in captions])
    figures = {}
    for name, waveforms in questions([load_waveform(caption.audio) for caption in captions]):
        similarity = model.encode_speech(waveforms).embedding @ embedding.T
        rank = (similarity > similarity.gather(1, right[:, None])).sum(1) + 1
        figures[name] = {
            "R@1": round(100 * float((rank <= 1).double().mean()), 1),
            "R@10": round(100 * float((rank <= 10).double().mean()), 1),
            "median_rank": float(rank.double().median()),
        }
    return figures


def questions(words: list[Samples]) -> Iterator[tuple[str, list[Samples]]]:
    generator = np.random.default_rng(SEED)
    made = [situations(word, generator) for word in words]
    for name in made[0]:
        waveforms = [situation[name][0] for situation in made]
        yield name, waveforms
        yield f"{name}, trimmed", [waveform[slice(*find_speech(waveform))] for waveform in waveforms]


if __name__ == "__main__":
    main()
