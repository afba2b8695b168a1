"""Your own corpus: a folder with pictures, recordings, and one CSV or JSON Lines file that says what belongs together.

`recordings.csv` (or `recordings.jsonl`) has the columns `image` and `audio`, paths within the folder, and may have
`text` (or `word`), `language`, `speaker`, `id`, `image_id` and `split`. An empty cell is the same as none.
"""

import csv
import io
import os
import reprlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from saysee.data.manifest import (
    SPLITS,
    Manifest,
    ManifestError,
    Prepared,
    Split,
    SplitBy,
    SpokenCaption,
    parse_json,
    read_utf8,
)
from saysee.data.split import assign_splits
from saysee.errors import SayseeError

REQUIRED_COLUMNS = ("image", "audio")
COLUMNS = (*REQUIRED_COLUMNS, "text", "word", "language", "speaker", "id", "image_id", "split")


@dataclass(frozen=True)
class _Row:
    """One recording of the table: the line it starts on, and its cells that are not empty."""

    line: int
    cells: dict[str, str]


def prepare(
    folder: Path,
    *,
    recordings: Path | None = None,
    split_by: SplitBy = "image",
    dev: float | Collection[str] = 0.1,
    test: float | Collection[str] = 0.1,
    seed: int = 0,
) -> Prepared:
    """Make a manifest of a picture folder.

    `image_id` is the picture's path within the folder unless it is given, `id` the recording's without its suffix.

    Args:
        folder: holds pictures and recordings, in any sub-folders.
        recordings: the table; by default `recordings.csv` or `recordings.jsonl` in the folder.
        split_by: what no two splits may share.
        dev: share or speakers, as `assign_splits` takes them; not used when the table has a column `split`.
        test: the same for test.
        seed: the same.

    Raises:
        ManifestError: all faults of the table with their line numbers: unknown or missing columns, paths that leave
            the folder or lead to no file, ids that stand twice, an image_id with two pictures, unknown splits.
        SayseeError: no folder or table, or splits that cannot be made as asked.
    """
    if not folder.is_dir():
        raise SayseeError(f"{str(folder)!r} is not a folder; give one with pictures, recordings and recordings.csv")
    folder = folder.resolve()
    table = _find_table(folder, recordings)
    read = _csv_rows if table.suffix.lower() == ".csv" else _jsonl_rows
    rows, faults = read(read_utf8(table))
    has_splits = any("split" in row.cells for row in rows)
    captions: dict[int, SpokenCaption] = {}
    for row in rows:
        row_faults = _row_faults(row, folder, has_splits)
        if not row_faults:
            captions[row.line] = _caption(row, folder)
        faults += [f"line {row.line}: {fault}" for fault in row_faults]
    faults += _clashes(captions)
    if not faults and not captions:
        faults = ["it lists no recordings; give each a line with its image and its audio"]
    if faults:
        raise ManifestError(str(table), faults)
    if has_splits:
        manifest = Manifest(split_by, tuple(captions.values()))
        note = "splits are those of the column `split`"
    else:
        manifest = Manifest(split_by, assign_splits(captions.values(), split_by, dev, test, seed))
        note = "splits made by the speakers named" if split_by == "speaker" else f"splits drawn with seed {seed}"
    return Prepared(manifest, [manifest.summary(), note])


def _find_table(folder: Path, given: Path | None) -> Path:
    if given is not None:
        if given.suffix.lower() not in {".csv", ".jsonl"}:
            raise SayseeError(f"the recordings are listed in {str(given)!r}; allowed: a file named *.csv or *.jsonl")
        return given
    found = [path for name in ("recordings.csv", "recordings.jsonl") if (path := folder / name).is_file()]
    if len(found) != 1:
        have = "both recordings.csv and recordings.jsonl" if found else "neither recordings.csv nor recordings.jsonl"
        raise SayseeError(f"{str(folder)!r} has {have}; keep one there or say which file lists the recordings")
    return found[0]


def _csv_rows(text: str) -> tuple[list[_Row], list[str]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    rows: list[_Row] = []
    faults: list[str] = []
    line = 1
    try:
        for cells in reader:
            start, line = line, reader.line_num + 1  # a quoted cell may hold line ends: a row can span lines
            if not cells:
                continue
            if not header:
                header = cells
                missing = [f"missing column {name!r}" for name in REQUIRED_COLUMNS if name not in header]
                faults = [f"line {start}: {fault}" for fault in _column_faults(header) + missing]
                if missing:
                    break
            elif len(cells) != len(header):
                faults.append(f"line {start}: {len(cells)} cells, but the header has {len(header)}; quote commas")
            else:
                rows.append(_Row(start, {name: cell for name, cell in zip(header, cells, strict=True) if cell}))
    except csv.Error as error:
        faults.append(f"line {line}: not CSV from here on ({error}); look for a quote that is not closed")
    return rows, faults


def _jsonl_rows(text: str) -> tuple[list[_Row], list[str]]:
    rows: list[_Row] = []
    faults: list[str] = []
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            record = parse_json(content)
        except ValueError as error:
            faults.append(f"line {line}: {error}")
            continue
        if not isinstance(record, dict):
            faults.append(f"line {line}: it holds {reprlib.repr(record)}; allowed: an object such as {{'image': ...}}")
            continue
        wrong = [
            f"{name} is {reprlib.repr(value)}; allowed: a string or null"
            for name, value in record.items()
            if not isinstance(value, str | None)
        ]
        faults += [f"line {line}: {fault}" for fault in _column_faults(list(record)) + wrong]
        if not wrong:
            rows.append(_Row(line, {name: value for name, value in record.items() if value}))
    return rows, faults


def _column_faults(names: list[str]) -> list[str]:
    faults = [f"unknown column {name!r}; allowed: {', '.join(COLUMNS)}" for name in names if name not in COLUMNS]
    faults += [f"column {name!r} stands twice" for name in COLUMNS if names.count(name) > 1]
    if "text" in names and "word" in names:
        faults.append("columns 'text' and 'word' mean the same; keep one")
    return faults


def _row_faults(row: _Row, folder: Path, has_splits: bool) -> list[str]:
    faults = []
    for name in REQUIRED_COLUMNS:
        path = row.cells.get(name)
        if path is None:
            faults.append(f"{name} is empty; give a path within the folder")
        elif Path(path).is_absolute() or _within(path).parts[:1] == ("..",):
            faults.append(f"{name} {path!r} leaves the folder; give a path within it")
        elif not (folder / _within(path)).is_file():
            faults.append(f"{name} {path!r} is missing; put the file there or remove the line")
    split = row.cells.get("split")
    if has_splits and split not in SPLITS:
        faults.append(f"split is {split!r}; allowed: {', '.join(SPLITS)}, or leave all lines without")
    return faults


def _within(path: str) -> Path:
    return Path(os.path.normpath(path))


def _caption(row: _Row, folder: Path) -> SpokenCaption:
    cells = row.cells
    image, audio = _within(cells["image"]), _within(cells["audio"])
    return SpokenCaption(
        id=cells.get("id", audio.with_suffix("").as_posix()),
        audio=folder / audio,
        image_id=cells.get("image_id", image.as_posix()),
        image=folder / image,
        text=cells.get("text", cells.get("word")),
        speaker=cells.get("speaker"),
        language=cells.get("language"),
        split=cast("Split", cells.get("split", "train")),  # where none is given, the splits are made afterwards
    )


def _clashes(captions: dict[int, SpokenCaption]) -> list[str]:
    faults = []
    line_of: dict[str, int] = {}
    image_of: dict[str, tuple[Path, int]] = {}
    for line, caption in captions.items():
        first = line_of.setdefault(caption.id, line)
        if first != line:
            faults.append(f"line {line}: id {caption.id!r} stands already on line {first}; give every line an own `id`")
        image, image_line = image_of.setdefault(caption.image_id, (caption.image, line))
        if image != caption.image:
            faults.append(
                f"line {line}: image_id {caption.image_id!r} has another image on line {image_line}; give one"
            )
    return faults
