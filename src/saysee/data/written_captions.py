"""Captions that are written and not yet spoken: a table like that of a picture folder, or Flickr8k's own file.

A table (`*.csv`, `*.tsv`, `*.jsonl`) has the columns `image`, a path within the folder of the images, and `text` (or
`word`), and may have `language`, `id`, `image_id`, `concept` and `split`. `Flickr8k.token.txt` has lines
`<image.jpg>#<n>`, a tab, the caption; if the published split lists lie beside it, they are the splits.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from saysee.data.flickr8k import IMAGE_FOLDERS, SPLIT_LISTS, listed_splits, token_lines
from saysee.data.manifest import SPLITS, ManifestError, Split, SpokenCaption
from saysee.data.split import assign_splits
from saysee.data.table import SUFFIXES, Row, clashes, path_fault, read_rows, split_fault, within
from saysee.errors import SayseeError

REQUIRED_COLUMNS = ("image",)
COLUMNS = (*REQUIRED_COLUMNS, "text", "word", "language", "id", "image_id", "concept", "split")


@dataclass(frozen=True, slots=True)
class WrittenCaption:
    """What is to be said of one picture.

    Attributes:
        id: names this caption; unique among them.
        image_id: identity of the picture.
        image: absolute path of the picture.
        text: as it is written.
        language: of the text, if known.
        split: which part of the corpus has it.
        concept: what the picture shows, where several show one thing; see `SpokenCaption`.
    """

    id: str
    image_id: str
    image: Path
    text: str
    language: str | None
    split: Split
    concept: str | None = None


def read_captions(
    path: Path, *, images: Path | None = None, first: int | None = None, seed: int = 0
) -> tuple[list[WrittenCaption], list[str]]:
    """Read written captions, each with its split.

    A caption's `id` is its image and how many of the image's captions stand before it, `<image>#<n>`, unless it is
    given. Where no splits are given, they are drawn by image, a tenth for dev and a tenth for test.

    Args:
        path: the table, or `Flickr8k.token.txt`.
        images: the folder of the images; by default that of the table, and for Flickr8k the folder of the photographs
            beside the file or beside its folder.
        first: how many captions of an image are taken, those that stand first; None takes all.
        seed: of splits that are drawn.

    Returns:
        The captions in the order of the file, and notes on what was left out and where the splits come from.

    Raises:
        ManifestError: all faults with their line numbers: unknown or missing columns, nothing to say, images that are
            missing, ids that stand twice, an image_id with two images or two concepts, unknown splits.
        SayseeError: a file of another kind, no folder of images, or splits that cannot be drawn.
    """
    if first is not None and first < 1:
        raise SayseeError(f"the first {first} captions of an image are asked for; give 1 or more")
    suffix = path.suffix.lower()
    if suffix == ".txt":
        captions, notes, has_splits = _read_flickr8k(path, images)
    elif suffix in SUFFIXES:
        captions, notes, has_splits = _read_table(path, images)
    else:
        allowed = ", ".join(f"*{suffix}" for suffix in SUFFIXES)
        raise SayseeError(f"the captions are in {str(path)!r}; allowed: {allowed}, or Flickr8k.token.txt")
    if first is not None:
        met: Counter[str] = Counter()
        kept = []
        for caption in captions:
            met[caption.image_id] += 1
            if met[caption.image_id] <= first:
                kept.append(caption)
        notes.append(f"left out: {len(captions) - len(kept):,} captions after the first {first} of their image")
        captions = kept
    if not has_splits:
        captions = _with_drawn_splits(captions, seed)
        notes.append(f"splits drawn with seed {seed}")
    return captions, notes


def _read_table(path: Path, images: Path | None) -> tuple[list[WrittenCaption], list[str], bool]:
    folder = (images or path.parent).resolve()
    rows, faults = read_rows(path, REQUIRED_COLUMNS, COLUMNS)
    has_splits = any("split" in row.cells for row in rows)
    captions: dict[int, WrittenCaption] = {}
    count: Counter[Path] = Counter()
    for row in rows:
        row_faults = _row_faults(row, folder, has_splits)
        if not row_faults:
            image = within(row.cells["image"])
            captions[row.line] = _caption(row, folder, image, count[image])
            count[image] += 1
        faults += [f"line {row.line}: {fault}" for fault in row_faults]
    faults += clashes(captions)
    if not faults and not captions:
        faults = ["it lists no captions; give each a line with its image and its text"]
    if faults:
        raise ManifestError(str(path), faults)
    return list(captions.values()), [], has_splits


def _row_faults(row: Row, folder: Path, has_splits: bool) -> list[str]:
    fault = path_fault(row, "image", folder)
    faults = [fault] if fault else []
    text = row.cells.get("text", row.cells.get("word"))
    if text is None or not says_something(text):
        faults.append(f"text is {text!r}; give at least one letter or digit to say")
    if has_splits and (fault := split_fault(row)):
        faults.append(fault)
    return faults


def _caption(row: Row, folder: Path, image: Path, number: int) -> WrittenCaption:
    cells = row.cells
    return WrittenCaption(
        id=cells.get("id", f"{image.as_posix()}#{number}"),
        image_id=cells.get("image_id", image.as_posix()),
        image=folder / image,
        text=cells.get("text") or cells["word"],
        language=cells.get("language"),
        concept=cells.get("concept"),
        split=cast("Split", cells.get("split", "train")),  # where none is given, the splits are drawn afterwards
    )


def _read_flickr8k(path: Path, images: Path | None) -> tuple[list[WrittenCaption], list[str], bool]:
    folder = images.resolve() if images else _photographs(path)
    faults: list[str] = []
    lines = token_lines(path, faults)
    lists = {split: path.with_name(name) for split, name in SPLIT_LISTS.items()}
    missing = [listed.name for listed in lists.values() if not listed.is_file()]
    has_splits = len(missing) < len(lists)
    if has_splits and missing:
        faults.append(f"{' and '.join(missing)} must lie beside it, or no list of a split")
    if faults:
        raise ManifestError(str(path), faults)
    split_of = listed_splits(lists, faults) if has_splits else {image: SPLITS[0] for image, _, _ in lines}
    captions: dict[int, WrittenCaption] = {}
    for number, (image, place, text) in enumerate(lines, start=1):
        if image in split_of:
            captions[number] = WrittenCaption(image + place, image, folder / image, text, "en", split_of[image])
            if not says_something(text):
                faults.append(f"{image + place} says {text!r}; give at least one letter or digit to say")
    there = {photograph.name for photograph in folder.glob("*.jpg")}
    spoken_of = dict.fromkeys(caption.image_id for caption in captions.values())
    faults += [f"{image!r} is not in {folder}; put it there" for image in spoken_of if image not in there]
    faults += clashes(captions)
    if faults:
        raise ManifestError(str(path), faults)
    left_out = len(lines) - len(captions)
    notes = [f"left out: {left_out:,} captions of images in no split"] if left_out else []
    return list(captions.values()), notes, has_splits


def _photographs(path: Path) -> Path:
    for folder in (path.resolve().parent, path.resolve().parent.parent):
        for name in IMAGE_FOLDERS:
            if (folder / name).is_dir():
                return folder / name
    raise SayseeError(f"no folder {', '.join(IMAGE_FOLDERS)} beside {str(path)!r} or its folder; say where images lie")


def _with_drawn_splits(captions: Sequence[WrittenCaption], seed: int) -> list[WrittenCaption]:
    unspoken = [SpokenCaption(c.id, Path(), c.image_id, c.image, c.text, None, c.language, c.split) for c in captions]
    drawn = assign_splits(unspoken, "image", 0.1, 0.1, seed)
    return [dataclasses.replace(caption, split=given.split) for caption, given in zip(captions, drawn, strict=True)]


def says_something(text: str) -> bool:
    """Say whether a text has a letter or a digit, of any script."""
    return any(character.isalnum() for character in text)
