"""Flickr8k's captions spoken by synthetic voices, and what the runs take of that."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from saysee.data.manifest import Manifest, Split, SpokenCaption, read_manifest
from saysee.data.picture_folder import prepare
from saysee.data.speak import speak
from saysee.data.speech_synthesis import load_engine
from saysee.data.written_captions import read_captions
from saysee.errors import SayseeError

RUNS = Path("runs/flickr8k_synthetic")
"""Recordings, models and contact sheets; git-ignored."""

VOICES: Mapping[Split, Sequence[str]] = {
    "train": ("hibari:heart", "flite:slt", "flite:kal16", "espeak-ng:en-us", "espeak-ng:en-gb+f4"),
    "dev": ("flite:awb", "espeak-ng:en-us+f3"),
    "test": ("flite:rms", "espeak-ng:en-gb+m7"),
}
"""Who speaks: a neural voice, diphones, units cut from recordings, formants. No voice speaks in two splits, but the
engines do: nothing here sounds as unlike the training as a person would."""

ENGINES = {"hibari": "hibari-tts 0.2.1", "flite": "flite-2.2-current", "espeak-ng": "espeak-ng 1.51"}
"""The versions that spoke; another one may say the same text otherwise."""

SEED = 0
"""Of voices, speed and pitch, and of which images are permuted: the same in all runs."""


def speak_captions(folder: Path, captions: int, workers: int) -> list[str]:
    """Speak the captions of dev and test and the first ones of each training image; return notes on what was done.

    Args:
        folder: Flickr8k's photographs, captions and split lists.
        captions: of each training image.
        workers: processes.

    Raises:
        SayseeError: an engine that is missing or of another version.
    """
    for engine in dict.fromkeys(voice.partition(":")[0] for voices in VOICES.values() for voice in voices):
        if (version := load_engine(engine).version) != ENGINES[engine]:
            raise SayseeError(f"here is {version}, and the record was made with {ENGINES[engine]}; install that one")
    written, _ = read_captions(folder / "Flickr8k.token.txt")
    taken = [caption for caption in written if caption.split != "train" or _number(caption.id) < captions]
    spoken = speak(taken, VOICES, RUNS / "spoken", seed=SEED, workers=workers, progress=True)
    return [*spoken.notes, *spoken.left_out]


def corpus(captions: int, noise: float = 0.0) -> Manifest:
    """Return what was spoken, with the first captions of each training image.

    Args:
        captions: of each training image.
        noise: share of the training images that are permuted among themselves.

    Raises:
        SayseeError: it has not been spoken.
    """
    manifest = read_manifest(RUNS / "spoken" / "manifest.jsonl")
    taken = tuple(c for c in manifest.captions if c.split != "train" or _number(c.id) < captions)
    if not any(c.split == "train" and _number(c.id) == captions - 1 for c in taken):
        raise SayseeError(f"{captions} captions of a training image have not been spoken; run --only speak first")
    return with_wrong_images(replace(manifest, captions=taken), noise)


def with_wrong_images(manifest: Manifest, share: float) -> Manifest:
    """Give the captions of some training images another's picture: all captions of one image the same wrong one.

    The identity follows the picture, so that the captions of an image stay positives of each other, and of nothing
    else. Dev and test stay as they are.

    Args:
        manifest: whose training captions are meant.
        share: of the training images; each of these gets the picture of another of them.
    """
    pictures = manifest.images("train")
    chosen = random.Random(SEED).sample(sorted(pictures), round(share * len(pictures)))
    # one ring through all of them in random order: none keeps its own
    given = dict(zip(chosen, chosen[1:] + chosen[:1], strict=True))

    def with_given(caption: SpokenCaption) -> SpokenCaption:
        if caption.split != "train" or caption.image_id not in given:
            return caption
        image_id = given[caption.image_id]
        return replace(caption, image_id=image_id, image=pictures[image_id])

    return replace(manifest, captions=tuple(with_given(caption) for caption in manifest.captions))


def spoken_words(folder: Path) -> Manifest:
    """Return picture-words in English by human voices, all of it as test."""
    manifest = prepare(folder, split_by="recording").manifest
    english = tuple(replace(c, split="test") for c in manifest.captions if c.language == "en")
    return replace(manifest, captions=english)


def _number(caption_id: str) -> int:
    """Return n of `<image.jpg>#<n>`."""
    return int(caption_id.rpartition("#")[2])
