"""What every store of an index does: keep items, give them back by id, and find the nearest of a question.

Above this protocol there is one code path; below it lie a folder on this machine (`embedded`) or a Milvus cluster
(`milvus`). The same tests run against both (`tests/search/test_store_contract.py`).

Shapes: Q questions, n items, E embedding length, P tokens or frames of an item, H width.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Literal, Protocol
from urllib.parse import quote_from_bytes, unquote_to_bytes

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from saysee.errors import SayseeError

Kind = Literal["picture", "recording"]
"""What an index holds, or what a question is."""

# of ASCII, what stands for itself in a stored path: neither quotation marks nor what a query language gives a meaning
_PLAIN = "/ ._-,;:@+=()!&~#$"


@dataclass(frozen=True, slots=True)
class Item:
    """A picture (or a recording) of an index.

    Attributes:
        path: its file, relative to the index's folder, with `/`; bytes that are no UTF-8 as `os.fsdecode` gives them.
        size: bytes of the file.
        modified: time of its last change, nanoseconds since 1970 (`st_mtime_ns`).
        taken: when the picture was taken, seconds since 1970 on the clock of that place, as if that were UTC: the date
            in its EXIF data, else that of its last change on this machine's clock.
        content: SHA-256 of the file, hexadecimal.
    """

    path: str
    size: int
    modified: int
    taken: int
    content: str

    @property
    def id(self) -> str:
        """32 hexadecimal digits that stand for the path: the same in every store and after every crash."""
        return path_id(self.path)


@dataclass(frozen=True, slots=True)
class EncodedItem:
    """An item with what the model made of it.

    Attributes:
        item: which file.
        embedding: (E,), float32, unit length.
        hidden: (P, H), float16: a picture's projected tokens, a recording's states; None if nothing keeps them.
        thumbnail: a JPEG without EXIF; empty for a recording.
    """

    item: Item
    embedding: NDArray[np.float32]
    hidden: NDArray[np.float16] | None
    thumbnail: bytes


@dataclass(frozen=True, slots=True)
class Filter:
    """Which items a question is asked of; what is None asks nothing.

    Attributes:
        path: a pattern for the whole relative path, in which `*` stands for any characters, `/` included.
        since: first day on which it may have been taken.
        until: last day, itself included.
    """

    path: str | None = None
    since: date | None = None
    until: date | None = None

    @property
    def asks(self) -> bool:
        """Whether anything is left out."""
        return self != EVERYTHING


EVERYTHING = Filter()
"""The filter that leaves nothing out."""


@dataclass(frozen=True, slots=True)
class Nearest:
    """The nearest items of one question, the best first.

    Attributes:
        ids: (n,).
        similarity: (n,), cosine, float32.
    """

    ids: tuple[str, ...]
    similarity: NDArray[np.float32]


class Store(Protocol):
    """Items of one index. One process writes at a time (see `Index.writing`); any number read meanwhile.

    What has been written by a call of `write` that came back is there after any crash; of one that did not come back,
    all of its items or none are (embedded), or each item is wholly there or not (distributed), and writing them again
    changes nothing more.
    """

    keeps_hidden: bool
    """Whether `hidden` gives what was written; else it is made again from the files, for the best k of a question."""

    def __len__(self) -> int:
        """Return the number of items."""

    def refresh(self) -> None:
        """See what another process has written since the store was opened or refreshed last."""

    def items(self) -> Iterator[Item]:
        """Yield all items, in no order that means anything."""

    def get(self, ids: Sequence[str]) -> list[Item | None]:
        """Return the items, None for an id that is not there (any more)."""

    def thumbnail(self, item_id: str) -> bytes | None:
        """Return the JPEG of an item, None for an id that is not there."""

    def nearest(self, questions: NDArray[np.float32], k: int, only: Filter) -> list[Nearest]:
        """Find the nearest items of each question by inner product.

        Args:
            questions: (Q, E), unit length.
            k: how many; fewer come back when fewer are there.
            only: which items are asked.
        """

    def embeddings(self, ids: Sequence[str]) -> NDArray[np.float32]:
        """Return (n, E) of items that are there.

        Raises:
            KeyError: one is not.
        """

    def hidden(self, ids: Sequence[str]) -> list[Tensor] | None:
        """Return (P, H) float16 of each item that is there; None if the store keeps none.

        Raises:
            KeyError: one is not there.
        """

    def sample(self, count: int) -> NDArray[np.float32]:
        """Return embeddings (min(count, n), E) of items spread over the whole index, the same at every call."""

    def write(
        self,
        add: Sequence[EncodedItem] = (),
        remove: Sequence[str] = (),
        move: Sequence[tuple[str, Item]] = (),
    ) -> None:
        """Remove, move and add items, in this order.

        Args:
            add: new items, and changed ones, which take the place of those with their path.
            remove: ids; one that is not there is no fault.
            move: the id under which an item is known, and what it is now: what the model made of it stays.
        """

    def check(self) -> list[str]:
        """Read everything back and return the ids of the items that are damaged; what can be mended by itself is."""

    def recall(self, count: int, k: int) -> float | None:
        """Return the share of the exact `k` nearest that `nearest` finds for `count` questions; None if it is exact."""

    def optimise(self) -> None:
        """Bring the store into the form in which it is searched fastest; called after changes, by the writing process.

        Killed meanwhile, the store is as it was before.
        """

    def close(self) -> None:
        """Let go of files and connections."""


def path_id(path: str) -> str:
    """Return the id of the item with this relative path."""
    return hashlib.blake2b(os.fsencode(path), digest_size=16).hexdigest()


def quote_path(path: str) -> str:
    """Return a path in the ASCII in which stores keep it: everything but letters, digits and a few signs as %XX.

    File names hold quotation marks, line breaks and bytes that are no text; in this form no query can mistake them.
    """
    return quote_from_bytes(os.fsencode(path), safe=_PLAIN)


def unquote_path(quoted: str) -> str:
    """Return the path that `quote_path` was given."""
    return os.fsdecode(unquote_to_bytes(quoted))


def quote_pattern(pattern: str) -> str:
    """Return a `Filter.path` in the form of stored paths; its `*` stay, those of names have become %2A."""
    return "*".join(quote_path(part) for part in pattern.split("*"))


def first_second(day: date) -> int:
    """Return the first second of a day on the clock of `Item.taken`."""
    return (day - date(1970, 1, 1)).days * 86_400


def check_filter(only: Filter) -> None:
    """Refuse a filter that nothing can pass.

    Raises:
        SayseeError: it ends before it begins.
    """
    if only.since and only.until and only.since > only.until:
        raise SayseeError(f"since is {only.since} and until {only.until}; give the earlier day as since")
