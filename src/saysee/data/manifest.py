"""The manifest: which recording belongs to which picture, and which split has it.

JSON Lines. The first line is a header, `{"saysee_manifest": 1, "split_by": "image"}`; each further line is one
`SpokenCaption` with exactly its attributes as keys; `concept` may be left out. Paths in the file are relative to the
manifest's folder, with `/`, when they lie below it, so that a corpus can be moved as a whole; else they are absolute.
In memory all are absolute.

A manifest that was read stays on disk: it is mapped, and a record is parsed when it is asked for. That takes nine bytes
of memory a record, where 600,000 records as objects would take most of a gigabyte.
"""

import json
import mmap
import os
import reprlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, overload

import numpy as np
from numpy.typing import NDArray

from saysee.errors import SayseeError
from saysee.files import write_text

FORMAT_VERSION = 1

Split = Literal["train", "dev", "test"]
SplitBy = Literal["image", "speaker", "recording"]
SPLITS: tuple[Split, ...] = get_args(Split)
SPLIT_BY: tuple[SplitBy, ...] = get_args(SplitBy)

_MARK = b"\xef\xbb\xbf"
_HEADER = ("saysee_manifest", "split_by")
_NULLABLE = ("text", "speaker", "language")
_COLUMNS = ("id", "audio", "image_id", "image", *_NULLABLE, "split")
_OPTIONAL = ("concept",)  # null if it is not there, and then not written


class ManifestError(SayseeError):
    """A manifest, or a corpus that one is made from, with its faults: all that were found, one line each.

    Attributes:
        source: what has the faults, a file or a folder.
        faults: one line for each.
    """

    def __init__(self, source: str, faults: Sequence[str]) -> None:
        super().__init__(source, faults)
        self.source = source
        self.faults = list(faults)

    def __str__(self) -> str:
        count = len(self.faults)
        return "\n  ".join([f"{self.source}: {count} fault{'' if count == 1 else 's'}", *self.faults])


@dataclass(frozen=True, slots=True)
class SpokenCaption:
    """One recording that speaks about one picture.

    Attributes:
        id: names this record; unique in the manifest.
        audio: absolute path of the recording.
        image_id: identity of the picture: captions with the same `image_id` are positives of each other.
        image: absolute path of the picture.
        text: what is said, if written down; never needed for training.
        speaker: whose voice it is, if known.
        language: of the recording, if known.
        split: which part of the corpus has it.
        concept: what the picture shows, where several pictures show one thing (a dog, as three people draw it): to all
            captions of its pictures they are then as one picture.
    """

    id: str
    audio: Path
    image_id: str
    image: Path
    text: str | None
    speaker: str | None
    language: str | None
    split: Split
    concept: str | None = None

    @property
    def shown(self) -> str:
        """What decides which captions and pictures belong together: the concept, or else the picture itself."""
        return self.image_id if self.concept is None else f"\0{self.concept}"  # no picture is called so


class CaptionFile(Sequence[SpokenCaption]):
    """Records of a manifest file, in its order, each parsed when it is asked for.

    Equal to any sequence of equal captions. The file may be replaced meanwhile (by a rename, as `write_manifest` does):
    what was read stays.

    Args:
        content: the mapped file.
        folder: where relative paths start.
        starts: (n,) where each record's line starts, in bytes.
        splits: (n,) the position of each record's split in SPLITS.
    """

    def __init__(self, content: mmap.mmap, folder: Path, starts: NDArray[np.int64], splits: NDArray[np.uint8]) -> None:
        self._content = content
        self._folder = folder
        self._starts = starts
        self._splits = splits

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> SpokenCaption: ...
    @overload
    def __getitem__(self, index: slice) -> "CaptionFile": ...
    def __getitem__(self, index: int | slice) -> "SpokenCaption | CaptionFile":
        """Return one record, or those of a slice."""
        if isinstance(index, slice):
            return CaptionFile(self._content, self._folder, self._starts[index], self._splits[index])
        return _caption(json.loads(_line_at(self._content, int(self._starts[index]))), self._folder)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def of(self, *splits: Split) -> "CaptionFile":
        """Return the records of one or several splits."""
        chosen = np.flatnonzero(np.isin(self._splits, [SPLITS.index(split) for split in splits]))
        return CaptionFile(self._content, self._folder, self._starts[chosen], self._splits[chosen])


@dataclass(frozen=True)
class Manifest:
    """A corpus, divided.

    Attributes:
        split_by: what the splits separate. `image`: no image stands in two splits, so what is measured is unseen
            pictures. `speaker`: no speaker does; images may. `recording`: only the recording itself is unseen (ours,
            for small corpora in which a picture has one recording by each voice).
        captions: in the order of the file.
    """

    split_by: SplitBy
    captions: Sequence[SpokenCaption]

    def of(self, *splits: Split) -> Sequence[SpokenCaption]:
        """Return the captions of one or several splits, in the order of the file."""
        if isinstance(self.captions, CaptionFile):
            return self.captions.of(*splits)
        return tuple(caption for caption in self.captions if caption.split in splits)

    def images(self, split: Split | None = None) -> dict[str, Path]:
        """Return image_id -> path of the images (of one split: its gallery), in the order of first appearance."""
        images: dict[str, Path] = {}
        for caption in self.captions:
            if split is None or caption.split == split:
                images.setdefault(caption.image_id, caption.image)
        return images

    def summary(self) -> str:
        """Return one line with the numbers of pictures and recordings, for a person to read."""
        parts = ", ".join(f"{split} {len(self.of(split)):,}" for split in SPLITS)
        return f"{len(self.images()):,} pictures, {len(self.captions):,} recordings ({parts}), split by {self.split_by}"


@dataclass(frozen=True)
class Prepared:
    """What a corpus's `prepare` returns.

    Attributes:
        manifest: made from the corpus; `saysee.data.validate` has not seen it yet.
        notes: what was counted and what was left out, one line each, to be printed; the first is the summary.
        warnings: what a user should look into before trusting a result, one line each.
        compare: which of the warnings say that the numbers are not the published ones.
    """

    manifest: Manifest
    notes: list[str]
    warnings: list[str] = field(default_factory=list)
    compare: Callable[[Manifest], list[str]] = lambda manifest: []

    def with_fewer(self, manifest: Manifest) -> "Prepared":
        """Return the same with a manifest that lacks some of the records: what is said of numbers is said of it."""
        compared = self.compare(self.manifest)
        warnings = [warning for warning in self.warnings if warning not in compared]
        return Prepared(
            manifest, [manifest.summary(), *self.notes[1:]], [*warnings, *self.compare(manifest)], self.compare
        )


def read_utf8(path: Path) -> str:
    """Return a text file's content; a byte order mark at its start is dropped, line ends stay as they are.

    Raises:
        ManifestError: the file cannot be read or is not UTF-8.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ManifestError(str(path), [f"it cannot be read ({error.strerror}); give a file that is there"]) from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        text = error.object  # without the byte order mark, as `start` counts
        line = text.count(b"\n", 0, error.start) + 1
        fault = f"line {line}: byte 0x{text[error.start]:02x} is not UTF-8; save the file as UTF-8"
        raise ManifestError(str(path), [fault]) from None


def parse_json(line: str) -> Any:
    """Return the value of one line of JSON Lines.

    Raises:
        ValueError: with a message that needs only the number of the line before it.
    """
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"invalid JSON ({error.msg}, column {error.colno})") from None
    except (ValueError, RecursionError) as error:  # a number of 10,000 digits, 10,000 brackets
        raise ValueError(f"invalid JSON ({error})") from None


def read_manifest(path: Path) -> Manifest:
    """Read a manifest's form. Whether its content holds together is asked by `saysee.data.validate`.

    Args:
        path: of the JSON Lines file; relative paths in it start at its folder.

    Raises:
        ManifestError: with all faults that were found: no such file, not UTF-8, a bad header, a newer format version,
            invalid JSON, an unknown or missing column, a value of the wrong type, an unknown split.
    """
    content = _mapped(path)
    folder = path.parent.resolve()
    starts: list[NDArray[np.int64]] = []
    splits: list[NDArray[np.uint8]] = []
    chunk_starts: list[int] = []
    chunk_splits: list[int] = []
    split_by: SplitBy = "image"
    faults: list[str] = []
    for number, (start, line) in enumerate(_lines(content), start=1):
        if number == 1:
            header = _parsed_header(line)
            faults += [f"line 1: {fault}" for fault in _header_faults(header)]
            if isinstance(header, dict) and _is_newer(header.get("saysee_manifest")):
                # a newer format may have other columns: a fault for every record would hide the one that matters
                raise ManifestError(str(path), faults)
            if not faults:
                split_by = header["split_by"]
            continue
        if not line.strip():
            continue
        try:
            record = parse_json(_decoded(line))
        except ValueError as error:
            faults.append(f"line {number}: {error}")
            continue
        if record_faults := _record_faults(record):
            id_ = record.get("id") if isinstance(record, dict) else None
            name = f" ({id_!r})" if isinstance(id_, str) else ""
            faults += [f"line {number}{name}: {fault}" for fault in record_faults]
            continue
        chunk_starts.append(start)
        chunk_splits.append(SPLITS.index(record["split"]))
        if len(chunk_starts) == 1 << 16:  # numbers in a list take four times the memory
            starts.append(np.array(chunk_starts))
            splits.append(np.array(chunk_splits, dtype=np.uint8))
            chunk_starts, chunk_splits = [], []
    if faults:
        raise ManifestError(str(path), faults)
    starts.append(np.array(chunk_starts, dtype=np.int64))
    splits.append(np.array(chunk_splits, dtype=np.uint8))
    return Manifest(split_by, CaptionFile(content, folder, np.concatenate(starts), np.concatenate(splits)))


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write a manifest atomically; `read_manifest` gives it back as it was.

    Args:
        path: of the JSON Lines file. Recordings and pictures below its folder are written relative to it.
        manifest: its paths must be absolute and without `..`.
    """
    folder = path.parent.resolve()
    lines = [_line({"saysee_manifest": FORMAT_VERSION, "split_by": manifest.split_by})]
    for caption in manifest.captions:
        record = {name: getattr(caption, name) for name in _COLUMNS}
        for name in ("audio", "image"):
            file: Path = record[name]
            record[name] = file.relative_to(folder).as_posix() if file.is_relative_to(folder) else str(file)
        record |= {name: value for name in _OPTIONAL if (value := getattr(caption, name)) is not None}
        lines.append(_line(record))
    write_text(path, "\n".join(lines) + "\n")


def _mapped(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ManifestError(str(path), [f"line 1: {_header_faults(None)[0]}"])
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ManifestError(str(path), [f"it cannot be read ({error.strerror}); give a file that is there"]) from None


def _lines(content: mmap.mmap) -> Iterator[tuple[int, bytes]]:
    """Give the start and the bytes of every line; a byte order mark at the start is passed over."""
    start = len(_MARK) if content[: len(_MARK)] == _MARK else 0
    while start < len(content):
        line = _line_at(content, start)
        yield start, line
        start += len(line) + 1


def _line_at(content: mmap.mmap, start: int) -> bytes:
    # found and sliced, not read: several threads ask one map for its lines
    end = content.find(b"\n", start)
    return content[start : len(content) if end < 0 else end]


def _decoded(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"byte 0x{line[error.start]:02x} is not UTF-8; save the file as UTF-8") from None


def _parsed_header(line: bytes) -> Any:
    try:
        return parse_json(_decoded(line))
    except ValueError:
        return None


def _caption(record: dict[str, Any], folder: Path) -> SpokenCaption:
    return SpokenCaption(**{**record, **{name: _absolute(folder, record[name]) for name in ("audio", "image")}})


def _line(record: dict[str, Any]) -> str:
    # written to be read, so `ñ` stays `ñ`; only what an editor cannot show, or UTF-8 cannot hold (a lone surrogate, as
    # in a file name that is not UTF-8), becomes an escape
    line = json.dumps(record, ensure_ascii=False)
    return line if line.isprintable() else json.dumps(record)


def _absolute(folder: Path, text: str) -> Path:
    # normpath: one file must be one path when `validate` compares them; `resolve` would ask the disk for each of them
    return Path(os.path.normpath(folder / text))


def _is_newer(version: object) -> bool:
    return isinstance(version, int) and version > FORMAT_VERSION


def _header_faults(header: object) -> list[str]:
    if not isinstance(header, dict) or "saysee_manifest" not in header:
        example = _line({"saysee_manifest": FORMAT_VERSION, "split_by": "image"})
        return [f"it is no header; a manifest starts with a line such as {example}"]
    version, split_by = header["saysee_manifest"], header.get("split_by")
    faults = []
    if _is_newer(version):
        faults.append(f"format version {version} is newer than {FORMAT_VERSION}, the newest known here; update saysee")
    elif type(version) is not int or version < 1:
        faults.append(f"format version {reprlib.repr(version)} does not exist; allowed: {FORMAT_VERSION}")
    if split_by not in SPLIT_BY:
        faults.append(f"split_by is {reprlib.repr(split_by)}; allowed: {', '.join(SPLIT_BY)}")
    faults += [f"unknown key {name!r}; allowed: {', '.join(_HEADER)}" for name in header if name not in _HEADER]
    return faults


def _record_faults(record: object) -> list[str]:
    if not isinstance(record, dict):
        return [f"it holds {reprlib.repr(record)}; a record is an object such as {{'id': ...}}"]
    allowed = (*_COLUMNS, *_OPTIONAL)
    faults = [f"unknown column {name!r}; allowed: {', '.join(allowed)}" for name in record if name not in allowed]
    for name in allowed:
        value = record.get(name)
        if name in _OPTIONAL and value is None:
            continue
        if name not in record:
            faults.append(f"missing column {name!r}" + ("; write null if unknown" if name in _NULLABLE else ""))
        elif name in _NULLABLE:
            if not isinstance(value, str | None):
                faults.append(f"{name} is {reprlib.repr(value)}; allowed: a string or null")
        elif not isinstance(value, str) or not value or "\0" in value:
            faults.append(f"{name} is {reprlib.repr(value)}; allowed: a string that is not empty")
        elif name == "split" and value not in SPLITS:
            faults.append(f"unknown split {value!r}; allowed: {', '.join(SPLITS)}")
    return faults
