"""How fast each synthetic voice speaks, on one core, and how sound its recordings are.

    python benchmarks/speech_synthesis.py Flickr8k.token.txt --captions 60

Captions drawn from Flickr8k, and as many words of the sample corpus, are said by every voice at its own speed and
pitch. Of each voice: seconds of speech for a second of computing (a caption that is said a second time by a voice that
is loaded already; checking and writing are not in it); how many recordings `saysee speak` would refuse at the first
draw; letters a second, which its limits are set by; and how probable the detector finds speech in the least sure of
them. Kokoro is measured on one caption in ten, since it takes as long as it speaks.
"""

import argparse
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from record import keep
from saysee.data.flickr8k import token_lines
from saysee.data.manifest import read_manifest
from saysee.data.sample import sample_manifest_path
from saysee.data.speak import require_speech, spoken_letters
from saysee.data.speech_synthesis import load_engine
from saysee.data.speech_synthesis.base import SynthesisError, speakable
from saysee.errors import AudioError, SayseeError
from saysee.features.audio import as_waveform
from saysee.features.speech_activity import speech_probability

SEED = 0
VOICES = (
    *("flite:slt", "flite:rms", "flite:awb", "flite:kal16", "flite:kal", "hibari:heart"),
    *(f"espeak-ng:{voice}" for voice in ("en-us", "en-gb", "en-gb-scotland", "en-us+f2", "en-us+f3", "en-gb+f4")),
    *(f"espeak-ng:{voice}" for voice in ("en-us+m3", "en-gb+m7", "en-us+klatt", "en-gb+Annie", "en-us+Andy")),
    *(f"kokoro:{voice}" for voice in ("af_bella", "am_michael", "bf_emma", "bm_george")),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokens", type=Path, help="Flickr8k.token.txt")
    parser.add_argument("--captions", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    draw = random.Random(SEED)
    captions = draw.sample(
        sorted({speakable(text) for _, _, text in token_lines(options.tokens, [])}), options.captions
    )
    sample = read_manifest(sample_manifest_path()).captions
    words = draw.sample(sorted({c.text for c in sample if c.language == "en" and c.text}), options.captions)
    figures: dict[str, Any] = {"voices": {}, "not_here": {}}
    for speaker in VOICES:
        engine, _, voice = speaker.partition(":")
        try:
            load_engine(engine).voice(voice)
        except SayseeError as error:
            figures["not_here"][speaker] = str(error)
            continue
        part = slice(None, None, 10 if engine == "kokoro" else 1)
        figures["voices"][speaker] = {
            "engine": load_engine(engine).version,
            "captions": measured(engine, voice, captions[part]),
            "words": measured(engine, voice, words[part]),
        }
        print(speaker, figures["voices"][speaker], flush=True)
    keep(
        "speech_synthesis",
        data=f"{options.captions} captions of Flickr8k, and as many words of the sample corpus",
        seed=SEED,
        figures=figures,
    )


def measured(engine: str, voice: str, texts: Sequence[str]) -> dict[str, Any]:
    """Say the texts; what is timed is this process and the programs that it runs."""
    load_engine(engine).speak(texts[0], voice, 1.0, 0.0)
    spent, seconds, letters, refused = 0.0, 0.0, 0, 0
    surest: list[float] = []
    for text in texts:
        before = computing()
        samples, rate = load_engine(engine).speak(text, voice, 1.0, 0.0)
        spent += computing() - before
        seconds += len(samples) / rate
        letters += spoken_letters(text)
        try:
            waveform = as_waveform(samples, rate)
            surest.append(float(speech_probability(waveform).max()))
            require_speech(waveform, text, 1.0)
        except (SynthesisError, AudioError):
            refused += 1
    return {
        "recordings": len(texts),
        "seconds_of_speech_a_second": round(seconds / spent, 1),
        "refused": refused,
        "letters_a_second": round(letters / seconds, 1),
        "lowest_probability_of_speech": round(min(surest), 2),
    }


def computing() -> float:
    """Return the processor time of this process and of its programs, in seconds."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


if __name__ == "__main__":
    main()
