"""Your own corpus: a folder with pictures, recordings, and one table that says what belongs together.

`recordings.csv` (or `recordings.jsonl`; one with another name may be `*.tsv` too) has the columns `image` and `audio`,
paths within the folder, and may have `text` (or `word`), `language`, `speaker`, `id`, `image_id`,
`concept` and `split`.
"""

from collections.abc import Collection
from pathlib import Path
from typing import cast

from saysee.data.manifest import Manifest, ManifestError, Prepared, Split, SplitBy, SpokenCaption
from saysee.data.split import assign_splits
from saysee.data.table import SUFFIXES, Row, clashes, path_fault, read_rows, split_fault, within
from saysee.errors import SayseeError

REQUIRED_COLUMNS = ("image", "audio")
COLUMNS = (*REQUIRED_COLUMNS, "text", "word", "language", "speaker", "id", "image_id", "concept", "split")


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
    rows, faults = read_rows(table, REQUIRED_COLUMNS, COLUMNS)
    has_splits = any("split" in row.cells for row in rows)
    captions: dict[int, SpokenCaption] = {}
    for row in rows:
        row_faults = _row_faults(row, folder, has_splits)
        if not row_faults:
            captions[row.line] = _caption(row, folder)
        faults += [f"line {row.line}: {fault}" for fault in row_faults]
    faults += clashes(captions)
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
        if given.suffix.lower() not in SUFFIXES:
            allowed = ", ".join(f"*{suffix}" for suffix in SUFFIXES)
            raise SayseeError(f"the recordings are listed in {str(given)!r}; allowed: a file named {allowed}")
        return given
    found = [path for name in ("recordings.csv", "recordings.jsonl") if (path := folder / name).is_file()]
    if len(found) != 1:
        have = "both recordings.csv and recordings.jsonl" if found else "neither recordings.csv nor recordings.jsonl"
        raise SayseeError(f"{str(folder)!r} has {have}; keep one there or say which file lists the recordings")
    return found[0]


def _row_faults(row: Row, folder: Path, has_splits: bool) -> list[str]:
    faults = [fault for name in REQUIRED_COLUMNS if (fault := path_fault(row, name, folder))]
    if has_splits and (fault := split_fault(row)):
        faults.append(fault)
    return faults


def _caption(row: Row, folder: Path) -> SpokenCaption:
    cells = row.cells
    image, audio = within(cells["image"]), within(cells["audio"])
    return SpokenCaption(
        id=cells.get("id", audio.with_suffix("").as_posix()),
        audio=folder / audio,
        image_id=cells.get("image_id", image.as_posix()),
        image=folder / image,
        text=cells.get("text", cells.get("word")),
        speaker=cells.get("speaker"),
        language=cells.get("language"),
        concept=cells.get("concept"),
        split=cast("Split", cells.get("split", "train")),  # where none is given, the splits are made afterwards
    )
