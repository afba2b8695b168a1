"""A table that a person writes, as CSV, TSV or JSON Lines: its rows, and all that is wrong with them by line.

An empty cell is the same as none.
"""

import csv
import io
import os
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from saysee.data.manifest import SPLITS, parse_json, read_utf8

SUFFIXES = (".csv", ".tsv", ".jsonl")


@dataclass(frozen=True)
class Row:
    """One line of the table: where it starts, and its cells that are not empty."""

    line: int
    cells: dict[str, str]


class Pictured(Protocol):
    """What a row becomes: something with an id of its own that speaks about a picture."""

    @property
    def id(self) -> str:
        """Names it; unique in the table."""
        ...

    @property
    def image_id(self) -> str:
        """Identity of the picture."""
        ...

    @property
    def image(self) -> Path:
        """The picture's file."""
        ...

    @property
    def concept(self) -> str | None:
        """What the picture shows, where several show one thing."""
        ...


def read_rows(path: Path, required: Sequence[str], allowed: Sequence[str]) -> tuple[list[Row], list[str]]:
    """Read a table; its suffix, one of `SUFFIXES`, says what form it has.

    Args:
        path: of the file, in UTF-8.
        required: columns that there must be; of JSON Lines the caller asks row by row.
        allowed: all columns that there may be.

    Returns:
        The rows that can be read, and the faults of the others and of the columns, one line each.

    Raises:
        ManifestError: the file cannot be read or is not UTF-8.
    """
    suffix, text = path.suffix.lower(), read_utf8(path)
    if suffix == ".jsonl":
        return _jsonl_rows(text, allowed)
    return _csv_rows(text, required, allowed, "\t" if suffix == ".tsv" else ",")


def within(path: str) -> Path:
    """Return a path of the table in its one spelling."""
    return Path(os.path.normpath(path))


def path_fault(row: Row, name: str, folder: Path) -> str | None:
    """Say what is wrong with a path within `folder` in column `name`, if anything is."""
    path = row.cells.get(name)
    if path is None:
        return f"{name} is empty; give a path within the folder"
    if Path(path).is_absolute() or within(path).parts[:1] == ("..",):
        return f"{name} {path!r} leaves the folder; give a path within it"
    if not (folder / within(path)).is_file():
        return f"{name} {path!r} is missing; put the file there or remove the line"
    return None


def split_fault(row: Row) -> str | None:
    """Say what is wrong with the split of a row whose table gives splits, if anything is."""
    split = row.cells.get("split")
    if split in SPLITS:
        return None
    return f"split is {split!r}; allowed: {', '.join(SPLITS)}, or leave all lines without"


def clashes(records: Mapping[int, Pictured]) -> list[str]:
    """Return the faults between lines: ids that stand twice, an image_id with two pictures or two concepts."""
    faults = []
    line_of: dict[str, int] = {}
    image_of: dict[str, tuple[Pictured, int]] = {}
    for line, record in records.items():
        first = line_of.setdefault(record.id, line)
        if first != line:
            faults.append(f"line {line}: id {record.id!r} stands already on line {first}; give every line an own `id`")
        other, other_line = image_of.setdefault(record.image_id, (record, line))
        for what in ("image", "concept"):
            if getattr(other, what) != getattr(record, what):
                message = f"image_id {record.image_id!r} has another {what} on line {other_line}; give one"
                faults.append(f"line {line}: {message}")
    return faults


def _csv_rows(
    text: str, required: Sequence[str], allowed: Sequence[str], delimiter: str
) -> tuple[list[Row], list[str]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    header: list[str] = []
    rows: list[Row] = []
    faults: list[str] = []
    line = 1
    try:
        for cells in reader:
            start, line = line, reader.line_num + 1  # a quoted cell may hold line ends: a row can span lines
            if not cells:
                continue
            if not header:
                header = cells
                missing = [f"missing column {name!r}" for name in required if name not in header]
                faults = [f"line {start}: {fault}" for fault in _column_faults(header, allowed) + missing]
                if missing:
                    break
            elif len(cells) != len(header):
                faults.append(f"line {start}: {len(cells)} cells, but the header has {len(header)}; quote commas")
            else:
                rows.append(Row(start, {name: cell for name, cell in zip(header, cells, strict=True) if cell}))
    except csv.Error as error:
        faults.append(f"line {line}: not CSV from here on ({error}); look for a quote that is not closed")
    return rows, faults


def _jsonl_rows(text: str, allowed: Sequence[str]) -> tuple[list[Row], list[str]]:
    rows: list[Row] = []
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
        faults += [f"line {line}: {fault}" for fault in _column_faults(list(record), allowed) + wrong]
        if not wrong:
            rows.append(Row(line, {name: value for name, value in record.items() if value}))
    return rows, faults


def _column_faults(names: list[str], allowed: Sequence[str]) -> list[str]:
    faults = [f"unknown column {name!r}; allowed: {', '.join(allowed)}" for name in names if name not in allowed]
    faults += [f"column {name!r} stands twice" for name in allowed if names.count(name) > 1]
    if "text" in names and "word" in names:
        faults.append("columns 'text' and 'word' mean the same; keep one")
    return faults
