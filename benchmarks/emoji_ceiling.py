"""How well emoji find other pictures of the same things, with the frozen image encoder alone.

    python scripts/make_emoji_corpus.py CORPUS --pictures
    python benchmarks/emoji_ceiling.py CORPUS PICTURE_WORDS FLICKR8K

No speech and nothing trained: the pooled token of the bundled EfficientNet-Lite0, and the cosine. Asked are, as
benchmarks/shipped_model.py asks them by speech, another maker's pictures, drawings, and photographs, by the pictures of
the thing that training has. Beside a speech model's figures this says which half limits. Once with the tokens as they
are; and once `centred`: each maker's and each collection's mean, which is its style, taken off. Speech may learn to
look past the style of what it was trained on, and not past that of a collection that is asked, whose mean a model does
not know.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from emoji_words import concepts_named
from record import keep
from saysee.config import ImageBackboneConfig
from saysee.data.emoji import TEST_VENDOR, VENDORS, Concept, picture_name, read_concepts
from saysee.features.image import load_image
from saysee.models.backbones import load_image_backbone
from shipped_model import FIRST, drawings_of_concepts, words_of_photographs

RANKS = (1, 5, 10)

Style = Callable[[Tensor], Tensor]
"""What is done with a collection's tokens (n, D)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("picture_words", type=Path)
    parser.add_argument("flickr8k", type=Path)
    options = parser.parse_args()
    concepts = read_concepts()
    things = [concept.thing for concept in concepts]
    tokens = {
        vendor: pooled_tokens(tuple(options.corpus / picture_name(concept, vendor) for concept in concepts))
        for vendor in VENDORS
    }
    figures: dict[str, Any] = {"pictures_of_each_vendor": len(concepts), "test_vendor": TEST_VENDOR}
    for name, style in STYLES.items():
        emoji = of_training(tokens, concepts, style)
        figures[name] = {
            "between": recall_between({vendor: style(of) for vendor, of in tokens.items()}, things),
            "emoji": recall(emoji, things, style(tokens[TEST_VENDOR]), things),
            **of_drawings(emoji, concepts, options.picture_words, style),
            "photographs": of_photographs(emoji, things, options.flickr8k, style),
        }
    data = "emoji of three makers (scripts/make_emoji_corpus.py), picture-words, Flickr8k's test photographs"
    keep("emoji_ceiling", data=data, seed=0, figures=figures)


def of_training(tokens: dict[str, Tensor], concepts: Sequence[Concept], style: Style) -> Tensor:
    """Return where each concept is (n, D): its pictures that are in training, on average."""
    together = torch.zeros_like(tokens[TEST_VENDOR])
    for vendor, of in tokens.items():
        rows = [row for row, concept in enumerate(concepts) if concept.split(vendor) == "train"]
        if rows:
            together[rows] += F.normalize(style(of[rows]), dim=-1)
    return F.normalize(together, dim=-1)


@torch.inference_mode()
@cache
def pooled_tokens(paths: tuple[Path, ...]) -> Tensor:
    """Return the pooled tokens (n, D) of pictures."""
    backbone = load_image_backbone(ImageBackboneConfig())
    tokens = [backbone(backbone.prepare(load_image(path)).unsqueeze(0))[0, 0].float() for path in paths]
    return torch.stack(tokens)


def as_they_are(tokens: Tensor) -> Tensor:
    """Leave tokens (n, D) alone."""
    return tokens


def centred(tokens: Tensor) -> Tensor:
    """Take their mean from tokens (n, D)."""
    return tokens - tokens.mean(0)


def recall_between(tokens: dict[str, Tensor], things: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the recall from every maker's pictures to every other's."""
    pairs = permutations(tokens, 2)
    return {f"{asked} to {given}": recall(tokens[asked], things, tokens[given], things) for asked, given in pairs}


def recall(asked: Tensor, asked_things: Sequence[str], given: Tensor, given_things: Sequence[str]) -> dict[str, float]:
    """Return R@k of questions (q, D) among answers (n, D), each with the thing that it shows; any of it is right."""
    similarity = F.normalize(asked, dim=-1) @ F.normalize(given, dim=-1).T
    right = torch.from_numpy(np.array(asked_things)[:, None] == np.array(given_things)[None])
    best = similarity.masked_fill(~right, -2).amax(1, keepdim=True)
    rank = (~right & (similarity > best)).sum(1)
    return {f"R@{k}": round(float((rank < k).float().mean()), 4) for k in RANKS}


def of_drawings(emoji: Tensor, concepts: Sequence[Concept], folder: Path, style: Style) -> dict[str, Any]:
    """Return the recall of drawings: those that English voices name among themselves, each language's among all.

    A recording asks by the emoji of its concept, so a drawing that two voices name asks twice, as it does in
    shipped_model.
    """
    captions = drawings_of_concepts(folder).captions
    paths = sorted({caption.image for caption in captions})
    named = concepts_named([path.stem for path in paths], concepts)
    things = [named[path.stem].thing for path in paths]
    row = {concept.thing: number for number, concept in reversed(list(enumerate(concepts)))}
    given = style(pooled_tokens(tuple(paths)))

    def asked(language: str) -> tuple[Tensor, list[str], list[int]]:
        numbers = [paths.index(caption.image) for caption in captions if caption.language == language]
        asked_things = [things[number] for number in numbers]
        return emoji[[row[thing] for thing in asked_things]], asked_things, numbers

    english, english_things, english_numbers = asked("en")
    languages = sorted({str(caption.language) for caption in captions})
    return {
        "drawings that English voices name": recall(english, english_things, given[english_numbers], english_things),
        "drawings": {language: recall(*asked(language)[:2], given, things) for language in languages},
    }


def of_photographs(emoji: Tensor, things: Sequence[str], folder: Path, style: Style) -> dict[str, float]:
    """Return the precision at ten of each word that is said of photographs, asked by its emoji."""
    said_of, paths = words_of_photographs(folder)
    names = sorted(paths)
    photographs = F.normalize(style(pooled_tokens(tuple(paths[name] for name in names))), dim=-1)
    precisions = {}
    for word, photographed in said_of.items():
        asked = emoji[[number for number, thing in enumerate(things) if thing == word]].mean(0)
        best = (photographs @ asked).topk(FIRST).indices.tolist()
        precisions[word] = sum(names[number] in photographed for number in best) / FIRST
    return precisions


STYLES: dict[str, Style] = {"as they are": as_they_are, "centred": centred}


if __name__ == "__main__":
    main()
