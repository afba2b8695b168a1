"""Emoji as a corpus: things that three makers have drawn, each with its names, and who says them.

A concept is an emoji of the groups of things (no people, so no skin tones; no faces, signs and flags) that all three
sets of pictures have. `assets/emoji/concepts.tsv` lists them, and with them the split:

- The pictures of one maker, `TEST_VENDOR`, are test and never seen in training.
- Of every fifth concept or so, one picture of the other two makers is dev: the concept is trained by the other picture
  alone.
- Voices are held out by speaker: nobody who speaks in dev or test is heard in training.

So no picture and no voice stands in two splits, and every concept is in training. Vendor, dev pictures and voices are
drawn by `hashed_position` and were fixed before anything was trained.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saysee.data.manifest import SPLITS, ManifestError, Split
from saysee.data.split import hashed_position
from saysee.data.table import read_rows

SEED = 0

GROUPS = ("Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects")
"""Unicode's groups of emoji that are things."""

VENDORS = ("fluent", "noto", "twemoji")
"""Who drew the pictures: Microsoft (MIT), Google (Apache-2.0), Twitter (CC BY 4.0)."""

TEST_VENDOR = min(VENDORS, key=lambda vendor: hashed_position(SEED, vendor))
"""Whose pictures are test alone."""

_DEV_SHARE = 0.1  # of the pictures of the other two
# A keyword that more concepts have than this is a kind of many things (`nature`, `food`); `car` and `flower` are kept.
_KEYWORD_CONCEPTS = 12
_KEYWORDS = 4

_COLUMNS = ("code", "name", "keywords", "dev")

# Who speaks, by engine, and how many of them speak in test and in dev. What stands in one string is one speaker: both
# `kal` are one man at two rates, and Hibari's `heart` was distilled from Kokoro's.
_SPEAKERS = {
    "flite": ("flite:slt", "flite:rms", "flite:awb", "flite:kal16 flite:kal"),
    "espeak-ng": tuple(
        f"espeak-ng:{voice}"
        for voice in (
            *("en-us", "en-us+f2", "en-us+f5", "en-us+m3", "en-us+m7", "en-us+klatt4", "en-us+Andy", "en-us+anika"),
            *("en-gb", "en-gb+f3", "en-gb+f4", "en-gb+m1", "en-gb+m8", "en-gb+Annie", "en-gb-scotland", "en-029"),
        )
    ),
    "kokoro": (
        *("hibari:heart kokoro:af_heart", "kokoro:af_alloy", "kokoro:af_aoede", "kokoro:af_bella", "kokoro:af_jessica"),
        *("kokoro:af_kore", "kokoro:af_nicole", "kokoro:af_nova", "kokoro:af_river", "kokoro:af_sarah"),
        *("kokoro:af_sky", "kokoro:am_adam", "kokoro:am_echo", "kokoro:am_eric", "kokoro:am_fenrir", "kokoro:am_liam"),
        *("kokoro:am_michael", "kokoro:am_onyx", "kokoro:am_puck", "kokoro:am_santa", "kokoro:bf_alice"),
        *("kokoro:bf_emma", "kokoro:bf_isabella", "kokoro:bf_lily", "kokoro:bm_daniel", "kokoro:bm_fable"),
        *("kokoro:bm_george", "kokoro:bm_lewis"),
    ),
}
_HELD_OUT: dict[str, dict[Split, int]] = {
    "flite": {"test": 1, "dev": 1},
    "espeak-ng": {"test": 2, "dev": 2},
    "kokoro": {"test": 4, "dev": 3},
}


@dataclass(frozen=True)
class Concept:
    """A thing that all vendors have drawn.

    Attributes:
        code: its code points in hexadecimal, joined by `-`; every vendor's file is named so.
        name: as Unicode's CLDR has it.
        keywords: other words for it, the most telling first.
        dev: the vendor whose picture of it is dev, if any.
    """

    code: str
    name: str
    keywords: tuple[str, ...]
    dev: str | None

    def split(self, vendor: str) -> Split:
        """Return the split of a vendor's picture of it."""
        if vendor == TEST_VENDOR:
            return "test"
        return "dev" if vendor == self.dev else "train"

    def names(self) -> tuple[str, ...]:
        """Return what it is called."""
        return tuple(dict.fromkeys([self.name, self.thing]))

    @property
    def thing(self) -> str:
        """What it shows: whoever says `dog` means the dog's face no less than the dog."""
        return self.name.removesuffix(" face")

    def phrases(self, split: Split) -> tuple[str, ...]:
        """Return what is said of it: its name alone in dev and test, where an answer must be right or wrong.

        In training, with its article besides, which is `the` because `a` does not go with `scissors` and `rice`; and
        its keywords, which some other concepts may share.
        """
        if split != "train":
            return (self.name,)
        names = self.names()
        return (*names, *(f"the {name}" for name in names), *self.keywords)


def concepts_path() -> Path:
    """Return where the list of concepts lies."""
    return Path(__file__).parent.parent / "assets" / "emoji" / "concepts.tsv"


def read_concepts(path: Path | None = None) -> list[Concept]:
    """Read the list of concepts; by default that of the package.

    Raises:
        ManifestError: it is damaged.
    """
    path = path or concepts_path()
    rows, faults = read_rows(path, _COLUMNS, _COLUMNS)
    faults += [
        f"line {row.line}: {name} is empty" for row in rows for name in ("code", "name") if name not in row.cells
    ]
    if faults:
        raise ManifestError(str(path), faults)
    return [
        Concept(
            code=row.cells["code"],
            name=row.cells["name"],
            keywords=tuple(filter(None, row.cells.get("keywords", "").split(", "))),
            dev=row.cells.get("dev"),
        )
        for row in rows
    ]


def concepts_as_text(concepts: Sequence[Concept]) -> str:
    """Return the content of the list's file."""
    lines = ["\t".join(_COLUMNS)]
    lines += ["\t".join([c.code, c.name, ", ".join(c.keywords), c.dev or ""]) for c in concepts]
    return "\n".join(lines) + "\n"


def find_concepts(
    emoji: Mapping[str, Mapping[str, Any]],
    emojilib: Mapping[str, Sequence[str]],
    cldr: Mapping[str, Mapping[str, Sequence[str]]],
    drawn: Mapping[str, Collection[str]],
) -> list[Concept]:
    """Find the concepts in what the packages hold.

    A keyword is kept if both lists give it, since each has its whims (`banana` for a monkey, `goguma` for a sweet
    potato), if it is not the name of another concept, and if few concepts share it.

    Args:
        emoji: of unicode-emoji-json, emoji -> name and group, in Unicode's order.
        emojilib: emoji -> keywords.
        cldr: of cldr-annotations-full, emoji -> keywords as `default`; without variation selectors.
        drawn: of each vendor, the codes of its pictures.
    """
    named: dict[str, str] = {}
    listed: dict[str, list[str]] = {}
    for symbol, about in emoji.items():
        code = "-".join(f"{ord(character):04x}" for character in symbol)
        if about["group"] not in GROUPS or not all(code in drawn[vendor] for vendor in VENDORS):
            continue
        named[code] = _plain(about["name"])
        second = {_plain(word) for word in cldr.get(symbol.replace("\ufe0f", ""), {}).get("default", ())}
        listed[code] = [word for word in dict.fromkeys(map(_plain, emojilib.get(symbol, ()))) if word in second]
    taken = {name.lower() for name in named.values()}
    taken |= {name.removesuffix(" face") for name in taken}
    shared = Counter(word for words in listed.values() for word in words)
    return [
        Concept(code, name, _telling(listed[code], shared, taken), _dev_vendor(code)) for code, name in named.items()
    ]


def caption_rows(concepts: Sequence[Concept]) -> Iterator[dict[str, str]]:
    """Give the rows of the table of written captions, as `saysee speak` reads it."""
    for concept in concepts:
        for vendor in VENDORS:
            split = concept.split(vendor)
            for number, phrase in enumerate(concept.phrases(split)):
                image = picture_name(concept, vendor)
                row = {"id": f"{vendor}/{concept.code}#{number}", "image": image, "text": phrase, "language": "en"}
                yield row | {"concept": concept.thing, "split": split}


def picture_name(concept: Concept, vendor: str) -> str:
    """Return a picture's path within the corpus."""
    return f"pictures/{vendor}/{concept.code}.png"


def voices() -> dict[Split, list[str]]:
    """Return who speaks in each split, as `engine:voice`."""
    speaking: dict[Split, list[str]] = {split: [] for split in SPLITS}
    for engine, speakers in _SPEAKERS.items():
        drawn = sorted(speakers, key=lambda speaker: hashed_position(SEED, speaker))
        test = _HELD_OUT[engine]["test"]
        behind = test + _HELD_OUT[engine]["dev"]
        parts: dict[Split, list[str]] = {"train": drawn[behind:], "dev": drawn[test:behind], "test": drawn[:test]}
        for split, heard in parts.items():
            speaking[split] += [voice for speaker in heard for voice in speaker.split()]
    return speaking


def _dev_vendor(code: str) -> str | None:
    """Return the vendor whose picture of a concept is dev: none, or one of those whose pictures are not test."""
    seen = [vendor for vendor in VENDORS if vendor != TEST_VENDOR]
    place = hashed_position(SEED, code) / _DEV_SHARE
    return seen[int(place)] if place < len(seen) else None


def _telling(words: Sequence[str], shared: Mapping[str, int], taken: Collection[str]) -> tuple[str, ...]:
    """Choose a concept's keywords, those that the fewest concepts share first."""
    kept = [
        word
        for word in words
        if shared[word] <= _KEYWORD_CONCEPTS and word.lower() not in taken and re.fullmatch(r"[^\W\d_]{3,}", word)
    ]
    return tuple(sorted(kept, key=lambda word: shared[word])[:_KEYWORDS])


def _plain(text: str) -> str:
    """Return a name or a keyword in one spelling."""
    return unicodedata.normalize("NFC", text).replace("_", " ").replace("’", "'").strip()
