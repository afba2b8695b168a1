"""What the model in the package knows: emoji of a maker and voices held out, drawings by human voices, photographs.

    python scripts/make_saysee_small.py WORK --workers 2
    python benchmarks/shipped_model.py WORK/corpus PICTURE_WORDS FLICKR8K

1. Emoji: R@1/5/10 among the 849 pictures of the maker that training has not seen, asked by voices that it has not
   heard. Beside it, so that one sees which half limits: the same recordings asking for pictures that were in training.
2. Drawings: Art4Apps' drawings of words that are names of concepts, asked by human voices. English among the drawings
   that English voices name, and every language among all of them. English is the language of training, the others are
   not.
3. Photographs: of Flickr8k's test split, asked by one word, as two synthetic voices of the emoji's test split say it:
   how many of the first ten have the word (or its plural) in one of their five captions, beside the share of all
   photographs that have it. Coarse stage.
4. Speed: a question of four seconds to ranked pictures over an index of 10,000, by part.

`--table` prints the card's tables from the record, and beside them what emoji find with the frozen image encoder alone
(benchmarks/emoji_ceiling.py), so that one sees which half limits.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emoji_words import AT_LEAST, askable, concepts_named
from record import RESULTS, keep
from saysee.data.emoji import TEST_VENDOR, read_concepts
from saysee.data.manifest import Manifest, read_manifest
from saysee.data.picture_folder import prepare
from saysee.data.written_captions import read_captions
from saysee.evaluation.bootstrap import LEVEL, RESAMPLES, bootstrap_intervals, interval_of
from saysee.evaluation.report import markdown_table
from saysee.evaluation.results import Results
from saysee.features.audio import load_waveform
from saysee.models.retrieval_model import SpeechImageModel
from saysee.workflows import evaluate_on_manifest
from search import query

MODEL = "saysee-small"
FIRST = 10
QUESTION_SECONDS = 4.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, nargs="?")
    parser.add_argument("picture_words", type=Path, nargs="?")
    parser.add_argument("flickr8k", type=Path, nargs="?")
    parser.add_argument("--table", action="store_true", help="print the record's tables, and measure nothing")
    parser.add_argument("--cache", type=Path, help="of features")
    parser.add_argument("--model", type=Path, default=Path(MODEL))
    options = parser.parse_args()
    if options.table:
        print(tables())
        return
    if options.flickr8k is None:
        parser.error("give CORPUS, PICTURE_WORDS and FLICKR8K")
    model = SpeechImageModel.from_pretrained(options.model)
    emoji = read_manifest(options.corpus / "manifest.jsonl")
    drawings = drawings_of_concepts(options.picture_words)
    english = Manifest("recording", tuple(c for c in drawings.captions if c.language == "en"))
    figures = {
        "model_fingerprint": model.fingerprint,
        "emoji": {
            "held_out": f"{TEST_VENDOR}'s pictures, and voices",
            **recalls(evaluate_on_manifest(model, emoji, "test", cache=options.cache)),
            "pictures_of_training": recalls(
                evaluate_on_manifest(model, of_trained_pictures(emoji), "test", cache=options.cache)
            ),
        },
        "drawings": {
            "english": recalls(evaluate_on_manifest(model, english, "test", cache=options.cache)),
            "pictures": len(drawings.images()),
            "by_language": by_language(evaluate_on_manifest(model, drawings, "test", cache=options.cache)),
        },
        "photographs": photographs(model, emoji, options.flickr8k),
        "speed_10000_pictures": speed(model, emoji),
    }
    data = "emoji and synthetic voices (scripts/make_emoji_corpus.py), picture-words, Flickr8k's test photographs"
    keep("shipped_model", data=data, seed=model.config.training.seed, figures=figures)


def recalls(results: Results) -> dict[str, Any]:
    """Return recall from speech to image of each stage, in percent with the interval, and chance."""
    asked = results.queries("speech_to_image")
    assert asked is not None
    return {
        "recordings": len(asked.counts),
        "pictures": asked.gallery_size,
        "chance_R@10": round(1000 / asked.gallery_size, 1),
        **{
            name.replace("/speech_to_image", ""): [round(100 * value, 1) for value in (i.value, i.low, i.high)]
            for name, i in results.intervals().items()
            if "speech_to_image/R@" in name
        },
    }


def of_trained_pictures(emoji: Manifest) -> Manifest:
    """Return the recordings of test, each of a picture of its concept from training: unseen is the voice alone."""
    trained = {caption.concept: caption for caption in emoji.of("train")}
    captions = [(caption, trained[caption.concept]) for caption in emoji.of("test")]
    return Manifest(
        "speaker", tuple(replace(said, image_id=seen.image_id, image=seen.image) for said, seen in captions)
    )


def by_language(results: Results) -> dict[str, Any]:
    """Return the same of every language, among all drawings."""
    figures: dict[str, Any] = {}
    for language, rows in results.groups["language"].items():
        figures[language] = {"recordings": len(rows)}
        for ranking in results.stages:
            if ranking.direction == "speech_to_image":
                clusters = [ranking.clusters[row] for row in rows]
                intervals = bootstrap_intervals(ranking.counts.select(rows), clusters)
                for name in ("R@1", "R@5", "R@10"):
                    i = intervals[name]
                    figures[language][f"{ranking.stage}/{name}"] = [
                        round(100 * value, 1) for value in (i.value, i.low, i.high)
                    ]
    return figures


def tables() -> str:
    """Return the record as the model's card has it."""
    figures = json.loads((RESULTS / "shipped_model.json").read_text())["figures"]
    ceiling = json.loads((RESULTS / "emoji_ceiling.json").read_text())["figures"]
    emoji, drawings, photographs = figures["emoji"], figures["drawings"], figures["photographs"]
    rows = [
        ["emoji of another maker, other voices", *counts(emoji), *of_ceiling(ceiling, "emoji")],
        ["emoji that were in training, other voices", *counts(emoji["pictures_of_training"]), "", ""],
    ]
    names = {"ca": "Catalan", "de": "German", "en": "English", "es": "Spanish", "fr": "French"}
    names |= {"gd": "Scottish Gaelic", "pt_BR": "Brazilian Portuguese", "ro": "Romanian"}
    named = "drawings that English voices name"
    rows += [[f"{named}, English", *counts(drawings["english"]), *of_ceiling(ceiling, named)]]
    pictures = str(drawings["pictures"])
    for language, row in sorted(drawings["by_language"].items(), key=lambda item: item[0] != "en"):
        alone = of_ceiling(ceiling, "drawings", language)
        rows.append([f"drawings, {names[language]}", str(row["recordings"]), pictures, *cells(row), *alone])
    headers = [
        "asked for",
        "recordings",
        "pictures",
        "R@1",
        "R@5",
        "R@10",
        "by emoji, R@1 / 5 / 10",
        "styles taken off",
    ]

    words, (plain, centred) = photographs["by_word"], (of["photographs"] for of in ceilings(ceiling))
    shares = [
        [word, words[word]["precision"], plain[word], centred[word], words[word]["share_of_all"]]
        for word in sorted(words, key=lambda word: -words[word]["precision"])
    ]
    by_word = [[word, *(f"{100 * share:.0f}" for share in found)] for word, *found in shares]
    *found, _ = zip(*(found for _, *found in shares), strict=True)
    chance = f"{100 * photographs['mean_share_of_all']:.1f}"
    by_word.append([f"mean of {len(shares)}", *map(over_words, found), chance])
    asked = ["word", "of the first ten, %", "by emoji, %", "styles taken off, %", "of all, %"]
    speed = figures["speed_10000_pictures"]
    parts = [["decode the recording", "decode_ms"], ["hear it", "encode_ms"], ["rank 10,000 pictures", "coarse_ms"]]
    times = [[what, f"{speed[part]:.0f}"] for what, part in [*parts, ["together", "total_ms"]]]
    return "\n\n".join(
        (markdown_table(headers, rows), markdown_table(asked, by_word), markdown_table(["part", "milliseconds"], times))
    )


def over_words(shares: Sequence[float]) -> str:
    """Return the mean over words, in percent, with its percentile bootstrap over words, which are few."""
    drawn = np.random.default_rng(0).choice(np.array(shares), (RESAMPLES, len(shares))).mean(1)
    mean = interval_of(float(np.mean(shares)), drawn, LEVEL)
    return f"{100 * mean.value:.1f} ({100 * mean.low:.1f}-{100 * mean.high:.1f})"


def counts(row: dict[str, Any]) -> list[str]:
    return [f"{row['recordings']:,}", f"{row['pictures']:,}", *cells(row)]


def cells(row: dict[str, Any]) -> list[str]:
    """Return the recalls with their intervals, of the fine stage if there is one."""
    stage = "fine" if "fine/R@1" in row else "coarse"
    return ["{} ({}-{})".format(*row[f"{stage}/{name}"]) for name in ("R@1", "R@5", "R@10")]


def ceilings(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what emoji_ceiling found with tokens as they are, and with each collection's style taken off."""
    return [figures["as they are"], figures["centred"]]


def of_ceiling(figures: dict[str, Any], *path: str) -> list[str]:
    """Return the two ceilings of a row, which stands at a path in both."""
    found = [reduce(getitem, path, of) for of in ceilings(figures)]
    return [" / ".join(f"{100 * recalls[name]:.1f}" for name in ("R@1", "R@5", "R@10")) for recalls in found]


def drawings_of_concepts(folder: Path) -> Manifest:
    """Return the recordings of drawings whose file is called as a concept is, all in test."""
    captions = prepare(folder, split_by="recording").manifest.captions
    named = concepts_named(sorted({caption.image.stem for caption in captions}), read_concepts())
    # two collections have the same Spanish recordings: see picture_words_data.py
    chosen = [c for c in captions if c.image.stem in named and c.speaker != "es-gcompris"]
    return Manifest("recording", tuple(replace(caption, split="test") for caption in chosen))


def words_of_photographs(folder: Path) -> tuple[dict[str, set[str]], dict[str, Path]]:
    """Return the words with the names of the photographs of which they are said, and where each photograph lies."""
    captions = [c for c in read_captions(folder / "Flickr8k.token.txt")[0] if c.split == "test"]
    said_of = askable(read_concepts(), [(c.image.name, c.text) for c in captions], at_least=AT_LEAST)
    return said_of, {c.image.name: c.image for c in captions}


def photographs(model: SpeechImageModel, emoji: Manifest, folder: Path) -> dict[str, Any]:
    """Return the precision at ten of every word that is said of ten photographs or more."""
    said_of, paths = words_of_photographs(folder)
    gallery = sorted(paths)
    pictures = model.encode_image([paths[name] for name in gallery])
    words: dict[str, Any] = {}
    for word, photographed in said_of.items():
        said = {name: [c.audio for c in emoji.of("test") if c.text == name] for name in (word, f"{word} face")}
        recordings = said[word] or said[f"{word} face"]
        right = torch.tensor([name in photographed for name in gallery])
        best = model.similarity(model.encode_speech(recordings), pictures).topk(FIRST).indices
        precision = right[best].double().mean().item()
        words[word] = {"precision": round(precision, 3), "share_of_all": round(right.double().mean().item(), 3)}
    return {
        "photographs": len(gallery),
        "words": len(words),
        f"mean_precision_at_{FIRST}": round(float(np.mean([word["precision"] for word in words.values()])), 3),
        "mean_share_of_all": round(float(np.mean([word["share_of_all"] for word in words.values()])), 3),
        "by_word": words,
    }


def speed(model: SpeechImageModel, emoji: Manifest) -> dict[str, Any]:
    """Return the milliseconds of each part of a question, as benchmarks/search.py measures them."""
    import soundfile

    said: list[Any] = []
    for caption in emoji.of("test"):
        said.append(load_waveform(caption.audio))
        if sum(map(len, said)) >= QUESTION_SECONDS * 16_000:
            break
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "question.wav"
        soundfile.write(path, np.concatenate(said)[: int(QUESTION_SECONDS * 16_000)], 16_000)
        return query(model, Path(name) / "index", 10_000, 15, 0, path)


if __name__ == "__main__":
    main()
