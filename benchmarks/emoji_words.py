"""Which words of picture-words, and which photographs of Flickr8k, ask for something that is an emoji.

    python benchmarks/emoji_words.py PICTURE_WORDS FLICKR8K_TOKENS

prints both lists. A model that is trained on emoji is asked with these: by human voices for drawings that it has never
seen, and by one spoken word for photographs.
"""

import argparse
import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from saysee.data.emoji import Concept, read_concepts
from saysee.data.flickr8k import listed_splits, token_lines
from saysee.data.manifest import read_utf8

AT_LEAST = 10  # photographs that a word must be said of: precision at 10 can then reach 1


def concepts_named(words: Iterable[str], concepts: Sequence[Concept], *, keywords: bool = False) -> dict[str, Concept]:
    """Return word -> concept for the words that name one, in the order of the words.

    Args:
        words: as file names and tables have them: `air_horn` is the air horn, `Book` a book.
        concepts: what there is.
        keywords: whether a keyword counts too, which may be of several concepts; the first is then given.
    """
    of_word: dict[str, Concept] = {}
    for concept in concepts:
        for name in concept.names():
            of_word.setdefault(name.lower(), concept)
    if keywords:
        for concept in concepts:
            for keyword in concept.keywords:
                of_word.setdefault(keyword.lower(), concept)
    spelled = {word: word.lower().replace("_", " ") for word in words}
    return {word: of_word[plain] for word, plain in spelled.items() if plain in of_word}


def photographs_said_of(word: str, captions: Iterable[tuple[str, str]]) -> set[str]:
    """Return the photographs of which a caption has a word, or its plural.

    Args:
        word: one word or several.
        captions: photograph and caption.
    """
    asked = re.compile(rf"\b(?:{'|'.join(map(re.escape, _forms(word.lower())))})\b")
    return {photograph for photograph, caption in captions if asked.search(caption.lower())}


def askable(
    concepts: Sequence[Concept],
    captions: Sequence[tuple[str, str]],
    *,
    keywords: bool = False,
    at_least: int = AT_LEAST,
) -> dict[str, set[str]]:
    """Return word -> photographs of which it is said, for words that are said of `at_least`.

    Words are the names that are one word, and with `keywords` those too.
    """
    words = [name for concept in concepts for name in concept.names()]
    if keywords:
        words += [keyword for concept in concepts for keyword in concept.keywords]
    single = dict.fromkeys(word.lower() for word in words if word.isalpha())
    said = {word: photographs_said_of(word, captions) for word in single}
    return {word: photographs for word, photographs in said.items() if len(photographs) >= at_least}


def _forms(word: str) -> list[str]:
    """Return a word and its plural; of a word that has none, the plural is found nowhere."""
    if re.search(r"[^aeiou]y$", word):
        return [word, f"{word[:-1]}ies"]
    return [word, f"{word}es" if re.search(r"(?:s|x|z|ch|sh)$", word) else f"{word}s"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture_words", type=Path)
    parser.add_argument("tokens", type=Path, help="Flickr8k.token.txt, with the list of the test split beside it")
    options = parser.parse_args()
    concepts = read_concepts()
    rows = list(csv.DictReader(read_utf8(options.picture_words / "recordings.csv").splitlines()))
    for language in dict.fromkeys(row["language"] for row in rows):
        spoken = {row["word"] for row in rows if row["language"] == language}
        names = concepts_named(sorted(spoken), concepts)
        either = concepts_named(sorted(spoken), concepts, keywords=True)
        print(f"{language}: {len(spoken)} words, {len(names)} are names of concepts, {len(either)} with keywords")
        print(f"  {', '.join(names)}")
    test = listed_splits({"test": options.tokens.with_name("Flickr_8k.testImages.txt")}, [])
    captions = [(image, text) for image, _, text in token_lines(options.tokens, []) if image in test]
    for keywords in (False, True):
        said = askable(concepts, captions, keywords=keywords)
        which = "names and keywords" if keywords else "names"
        print(f"Flickr8k: {len(said)} {which} are said of {AT_LEAST} test photographs or more")
        print(f"  {', '.join(f'{word} {len(photographs)}' for word, photographs in said.items())}")


if __name__ == "__main__":
    main()
