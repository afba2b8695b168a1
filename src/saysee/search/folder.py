"""What lies in a folder, and what of it an index does not know yet."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from saysee.search.stores.base import Item, Kind

SUFFIXES: dict[Kind, frozenset[str]] = {
    "picture": frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}),
    "recording": frozenset(
        {".wav", ".flac", ".ogg", ".opus", ".oga", ".mp3", ".m4a", ".mp4", ".aac", ".webm", ".weba"}
    ),
}
"""By these names files are looked for; what they are is told by their content."""


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file in the folder.

    Attributes:
        path: relative to the folder, as in `Item`.
        size: in bytes.
        modified: `st_mtime_ns`.
    """

    path: str
    size: int
    modified: int


@dataclass
class Listing:
    """What lies in a folder.

    Attributes:
        files: of the wanted kind.
        others: files of no such kind.
        unreadable: folders that could not be listed and files that could not be looked at, with the reason.
    """

    files: list[FoundFile] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    unreadable: dict[Path, str] = field(default_factory=dict)

    def hides(self, path: str, folder: Path) -> bool:
        """Whether this relative path lies where nothing could be read, so that it may be there all the same."""
        return any((folder / path).is_relative_to(place) for place in self.unreadable)


@dataclass
class Changes:
    """How a folder differs from what an index has of it.

    Attributes:
        new: files that the index does not have.
        changed: files whose size or time is another than the index has, and what it has.
        vanished: items whose file is not there any more.
        unchanged: items that are as they were.
    """

    new: list[FoundFile] = field(default_factory=list)
    changed: list[tuple[FoundFile, Item]] = field(default_factory=list)
    vanished: list[Item] = field(default_factory=list)
    unchanged: list[Item] = field(default_factory=list)


def find_files(
    folder: Path,
    kind: Kind,
    unreadable: Callable[[OSError], None] | None = None,
    other: Callable[[Path], None] | None = None,
) -> Iterator[Path]:
    """Yield the files below a folder whose suffix is one of the kind's, in the order of their names.

    Hidden files and folders are left out, and links to folders are not followed, so that the walk ends.

    Args:
        folder: where to look.
        kind: what is looked for.
        unreadable: is told of each folder below that cannot be listed.
        other: is told of each file of another kind.
    """
    for root, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.startswith("."):
                continue
            path = Path(root) / name
            if path.suffix.lower() in SUFFIXES[kind]:
                yield path
            elif other is not None:
                other(path)


def list_folder(folder: Path, kind: Kind) -> Listing:
    """Look at every file below a folder."""
    listing = Listing()

    def unreadable(error: OSError) -> None:
        listing.unreadable[Path(error.filename)] = f"{error.filename}: {error.strerror}"

    for path in find_files(folder, kind, unreadable, listing.others.append):
        try:
            status = path.stat()
        except OSError as error:  # a link that leads nowhere, or a file that has just been removed
            listing.unreadable[path] = f"{path}: {error.strerror}"
            continue
        listing.files.append(FoundFile(os.path.relpath(path, folder), status.st_size, status.st_mtime_ns))
    return listing


def compare(folder: Path, listing: Listing, items: Iterable[Item]) -> Changes:
    """Say how a folder differs from the items of an index."""
    changes = Changes()
    there = {file.path: file for file in listing.files}
    for item in items:
        file = there.pop(item.path, None)
        if file is not None and (file.size, file.modified) == (item.size, item.modified):
            changes.unchanged.append(item)
        elif file is not None:
            changes.changed.append((file, item))
        elif not listing.hides(item.path, folder):
            changes.vanished.append(item)
    changes.new = list(there.values())
    return changes
