"""The corpus of emoji: what is a concept by the rule, and that the split leaks nothing."""

import random
import shutil
from collections import defaultdict
from pathlib import Path

import pytest

from saysee.data import emoji
from saysee.data.emoji import (
    TEST_VENDOR,
    VENDORS,
    Concept,
    caption_rows,
    concepts_as_text,
    concepts_path,
    find_concepts,
    read_concepts,
    voices,
)
from saysee.data.manifest import SPLITS, ManifestError
from saysee.data.speech_synthesis.espeak import EspeakEngine
from saysee.data.split import hashed_position

EMOJI = {
    "🐶": {"name": "dog face", "group": "Animals & Nature"},
    "🐕": {"name": "dog", "group": "Animals & Nature"},
    "🏞️": {"name": "national park", "group": "Travel & Places"},
    "🪏": {"name": "shovel", "group": "Objects"},
    "👋🏽": {"name": "waving hand: medium skin tone", "group": "People & Body"},
    "🇫🇷": {"name": "flag France", "group": "Flags"},
    "👞": {"name": "man’s shoe", "group": "Objects"},
}
CODES = {"1f436", "1f415", "1f3de-fe0f", "1f44b-1f3fd", "1f1eb-1f1f7", "1f45e"}
DRAWN = {"fluent": CODES, "noto": CODES | {"1fa8f"}, "twemoji": CODES | {"1fa8f"}}


def keywords(emojilib: list[str], cldr: list[str]) -> tuple[str, ...]:
    """What is kept of the shoe's keywords."""
    (*_, shoe) = find_concepts(EMOJI, {"👞": emojilib}, {"👞": {"default": cldr}}, DRAWN)
    return shoe.keywords


def test_concepts_are_the_things_that_all_have_drawn() -> None:
    found = find_concepts(EMOJI, {}, {}, DRAWN)
    # no shovel, which one vendor lacks; no hand of any skin, no flag
    assert [concept.code for concept in found] == ["1f436", "1f415", "1f3de-fe0f", "1f45e"]
    assert [concept.name for concept in found] == ["dog face", "dog", "national park", "man's shoe"]


def test_a_keyword_is_kept_if_both_lists_have_it() -> None:
    assert keywords(["shoe", "leather", "fancy"], ["leather", "shoe", "clothing"]) == ("shoe", "leather")


def test_a_keyword_that_is_another_concepts_name_or_no_word_is_left_out() -> None:
    words = ["dog", "b2", "of", "brown shoe", "brogue"]
    assert keywords(words, words) == ("brogue",)


def test_a_keyword_of_many_concepts_is_left_out() -> None:
    letters = [chr(ord("🐀") + number) for number in range(20)]
    listed = {symbol: {"name": f"animal {number}", "group": emoji.GROUPS[0]} for number, symbol in enumerate(letters)}
    drawn = {vendor: {f"{ord(symbol):04x}" for symbol in letters} for vendor in VENDORS}
    few = {symbol: ["nature", "rodent"] if number < 12 else ["nature"] for number, symbol in enumerate(letters)}
    found = find_concepts(listed, few, {symbol: {"default": words} for symbol, words in few.items()}, drawn)
    assert {concept.keywords for concept in found[:12]} == {("rodent",)}
    assert {concept.keywords for concept in found[12:]} == {()}


def test_the_face_of_a_dog_is_a_dog() -> None:
    face = Concept("1f436", "dog face", ("puppy",), None)
    assert face.phrases("train") == ("dog face", "dog", "the dog face", "the dog", "puppy")
    assert face.phrases("dev") == face.phrases("test") == ("dog face",)


def test_the_list_in_the_package_is_whole_and_in_the_form_it_is_written_in() -> None:
    concepts = read_concepts()
    assert len(concepts) == 849
    for what in ("code", "name"):
        assert len({getattr(concept, what) for concept in concepts}) == 849
    assert concepts_as_text(concepts) == concepts_path().read_text(encoding="utf-8")
    assert concepts_path().stat().st_size < 300_000


def test_a_damaged_list_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "concepts.tsv"
    path.write_text("code\tname\tkeywords\tdev\n1f415\t\t\t\n", encoding="utf-8")
    with pytest.raises(ManifestError, match="line 2: name is empty"):
        read_concepts(path)


def test_no_picture_stands_in_two_splits_and_every_concept_is_trained() -> None:
    concepts = read_concepts()
    rows = list(caption_rows(concepts))
    splits = defaultdict(set)
    for row in rows:
        splits[row["image"]].add(row["split"])
    assert len(splits) == 849 * len(VENDORS)
    assert all(len(of) == 1 for of in splits.values())
    pictures = {split: {image for image, of in splits.items() if split in of} for split in SPLITS}
    assert pictures["test"] == {image for image in splits if f"/{TEST_VENDOR}/" in image}
    trained = {Path(image).stem for image in pictures["train"]}
    assert trained == {concept.code for concept in concepts}
    assert 0.07 < len(pictures["dev"]) / (849 * 2) < 0.13
    assert len({row["id"] for row in rows}) == len(rows)


def test_the_split_is_the_one_that_the_seed_draws() -> None:
    assert min(VENDORS, key=lambda vendor: hashed_position(0, vendor)) == TEST_VENDOR == "fluent"
    concepts = read_concepts()
    symbols = {"".join(chr(int(point, 16)) for point in concept.code.split("-")): concept for concept in concepts}
    listed = {symbol: {"name": concept.name, "group": emoji.GROUPS[0]} for symbol, concept in symbols.items()}
    drawn = {vendor: {concept.code for concept in concepts} for vendor in VENDORS}
    again = find_concepts(listed, {}, {}, drawn)
    assert [concept.dev for concept in again] == [concept.dev for concept in concepts]


def test_no_speaker_is_heard_in_two_splits() -> None:
    speaking = voices()
    everybody = [voice for split in SPLITS for voice in speaking[split]]
    assert len(set(everybody)) == len(everybody)
    for one, other in (("hibari:heart", "kokoro:af_heart"), ("flite:kal", "flite:kal16")):
        assert [one in speaking[split] for split in SPLITS] == [other in speaking[split] for split in SPLITS]
    engines = {split: {voice.partition(":")[0] for voice in speaking[split]} for split in SPLITS}
    assert engines["dev"] == engines["test"] == {"flite", "espeak-ng", "kokoro"}


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="the program espeak-ng is not installed")
def test_no_two_voices_of_espeak_are_one() -> None:
    engine = EspeakEngine()
    names = [voice.partition(":")[2] for of in voices().values() for voice in of if voice.startswith("espeak-ng:")]
    assert len({engine.speak("a dog", name, 1.0, 0.0)[0].tobytes() for name in names}) == len(names) == 16


def test_who_speaks_does_not_hang_on_the_order_they_are_listed_in(monkeypatch: pytest.MonkeyPatch) -> None:
    before = voices()
    shuffled = {engine: tuple(random.Random(1).sample(of, len(of))) for engine, of in emoji._SPEAKERS.items()}
    monkeypatch.setattr(emoji, "_SPEAKERS", shuffled)
    assert voices() == before
