"""The records of an embedded store, in SQLite: what each item is, where its row and tokens are, and its thumbnail.

SQLite is transactional through kill -9, lets others read while one writes, takes every byte as a parameter, and comes
with Python. `benchmarks/records.py` has it beside LanceDB.

A revision counts the writings. Rows that changed after a revision and rows that were removed after it can be asked for,
so that a reader follows a writer without reading everything again.
"""

import errno
import json
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

from saysee.errors import SayseeError
from saysee.search.stores.base import Filter, Item, check_filter, first_second, quote_path, quote_pattern, unquote_path

_BUSY_SECONDS = 30.0
_PAGE = 10_000  # items read at a time where all are

_SCHEMA = """
CREATE TABLE state (
    dim INTEGER NOT NULL, keeps_hidden INTEGER NOT NULL, generation INTEGER NOT NULL, revision INTEGER NOT NULL,
    rows INTEGER NOT NULL, tokens INTEGER NOT NULL, width INTEGER NOT NULL
);
CREATE TABLE items (
    id TEXT PRIMARY KEY, path TEXT NOT NULL, size INTEGER NOT NULL, modified INTEGER NOT NULL, taken INTEGER NOT NULL,
    content TEXT NOT NULL, row INTEGER NOT NULL, first_token INTEGER NOT NULL, tokens INTEGER NOT NULL,
    digest BLOB NOT NULL, revision INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX items_by_revision ON items (revision);
CREATE TABLE thumbnails (id TEXT PRIMARY KEY, jpeg BLOB NOT NULL);
CREATE TABLE removed (row INTEGER PRIMARY KEY, revision INTEGER NOT NULL);
CREATE INDEX removed_by_revision ON removed (revision);
"""


class State(NamedTuple):
    """What holds for the whole store.

    Attributes:
        generation: of the flat files.
        revision: how often it was written to.
        rows: how many the embeddings have, removed ones too.
        tokens: how many all rows have together, removed ones too.
        width: H of a token; 0 before the first.
    """

    generation: int
    revision: int
    rows: int
    tokens: int
    width: int


class Place(NamedTuple):
    """Where an item lies in the flat files: its row, its first token and how many it has."""

    row: int
    first_token: int
    tokens: int


class Records:
    """The table of items. Safe to call from several threads.

    Attributes:
        dim: E of the store's embeddings.
        keeps_hidden: whether it has tokens.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        """Use `create` or `open`."""
        self._path = path
        self._connection = connection
        self._lock = threading.RLock()
        self.dim, keeps_hidden = map(int, self._one("SELECT dim, keeps_hidden FROM state"))
        self.keeps_hidden = bool(keeps_hidden)

    @classmethod
    def create(cls, path: Path, dim: int, keeps_hidden: bool) -> Self:
        """Make an empty table, or open the one whose making was interrupted."""
        with _disk_errors(path):
            connection = _connect(path)
            connection.execute("PRAGMA journal_mode = WAL")
        with _disk_errors(path), _transaction(connection, write=True):
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'state'").fetchone():
                for statement in _SCHEMA.split(";"):
                    connection.execute(statement)
                connection.execute("INSERT INTO state VALUES (?, ?, 0, 0, 0, 0, 0)", (dim, keeps_hidden))
        return cls(path, connection)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a table.

        Raises:
            SayseeError: it is missing or damaged.
        """
        if not path.is_file():
            raise SayseeError(f"{path} is missing; build the index again with `saysee index build`")
        try:
            return cls(path, _connect(path))
        except (sqlite3.DatabaseError, TypeError) as error:
            raise _damaged(path, error) from None

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    @contextmanager
    def transaction(self, *, write: bool = True) -> Iterator[State]:
        """Give the state; in the block nothing else changes, and what the block writes is there with its end or never.

        Other threads wait.

        Raises:
            OSError: the disk is full or fails, or another process has been writing for half a minute.
        """
        with _disk_errors(self._path), self._lock, _transaction(self._connection, write=write):
            yield State(*self._one("SELECT generation, revision, rows, tokens, width FROM state"))

    # ---- reading

    def items(self) -> Iterator[Item]:
        """Yield all items in the order of their ids."""
        last = ""
        while rows := self._all(
            "SELECT path, size, modified, taken, content FROM items WHERE id > ? ORDER BY id LIMIT ?", last, _PAGE
        ):
            items = [_item(row) for row in rows]
            yield from items
            last = items[-1].id

    def get(self, ids: Sequence[str]) -> dict[str, Item]:
        """Return those of the items that are there."""
        rows = self._all(
            "SELECT path, size, modified, taken, content FROM items WHERE id IN (SELECT value FROM json_each(?))",
            json.dumps(list(ids)),
        )
        return {item.id: item for item in map(_item, rows)}

    def places(self, ids: Sequence[str]) -> dict[str, Place]:
        """Return where those of the items are that are there."""
        rows = self._all(
            "SELECT id, row, first_token, tokens FROM items WHERE id IN (SELECT value FROM json_each(?))",
            json.dumps(list(ids)),
        )
        return {item_id: Place(*place) for item_id, *place in rows}

    def thumbnail(self, item_id: str) -> bytes | None:
        """Return the JPEG of an item, None if it is not there."""
        rows = self._all("SELECT jpeg FROM thumbnails WHERE id = ?", item_id)
        return bytes(rows[0][0]) if rows else None

    def changed_since(self, revision: int) -> list[tuple[str, Place]]:
        """Return id and place of every item that was added or moved after a revision."""
        rows = self._all("SELECT id, row, first_token, tokens FROM items WHERE revision > ?", revision)
        return [(item_id, Place(*place)) for item_id, *place in rows]

    def removed_since(self, revision: int) -> list[int]:
        """Return the rows that were removed after a revision."""
        return [row for (row,) in self._all("SELECT row FROM removed WHERE revision > ?", revision)]

    def rows_of(self, only: Filter) -> list[int]:
        """Return the rows of the items that pass a filter, in rising order.

        Raises:
            SayseeError: nothing can pass it.
        """
        check_filter(only)
        found = self._all(
            "SELECT row FROM items WHERE (?1 IS NULL OR path GLOB ?1) AND (?2 IS NULL OR taken >= ?2) "
            "AND (?3 IS NULL OR taken < ?3) ORDER BY row",
            None if only.path is None else quote_pattern(only.path),
            None if only.since is None else first_second(only.since),
            None if only.until is None else first_second(only.until) + 86_400,
        )
        return [row for (row,) in found]

    def digests(self) -> list[tuple[str, Place, bytes]]:
        """Return id, place and digest of every item, in the order of the rows.

        Raises:
            sqlite3.DatabaseError: the table is damaged.
        """
        (verdict,) = self._one("PRAGMA quick_check")
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        rows = self._all("SELECT id, digest, row, first_token, tokens FROM items ORDER BY row")
        return [(item_id, Place(*place), digest) for item_id, digest, *place in rows]

    # ---- writing, inside a transaction

    def add(self, item: Item, place: Place, digest: bytes, thumbnail: bytes, revision: int) -> None:
        """Add an item in the place of the one that has its path."""
        self.remove(item.id, revision)
        self._all(
            "INSERT INTO items VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", *_values(item), *place, digest, revision
        )
        self._all("INSERT INTO thumbnails VALUES (?, ?)", item.id, thumbnail)

    def remove(self, item_id: str, revision: int) -> None:
        """Remove an item if it is there."""
        for (row,) in self._all("DELETE FROM items WHERE id = ? RETURNING row", item_id):
            self._all("INSERT INTO removed VALUES (?, ?)", row, revision)
            self._all("DELETE FROM thumbnails WHERE id = ?", item_id)

    def move(self, old_id: str, item: Item, revision: int) -> None:
        """Say anew what an item is, if it is there; another one with its new path goes."""
        if not self.places([old_id]):
            return
        if item.id != old_id:
            self.remove(item.id, revision)
        self._all(
            "UPDATE items SET id = ?, path = ?, size = ?, modified = ?, taken = ?, content = ?, revision = ? "
            "WHERE id = ?",
            *_values(item), revision, old_id,
        )  # fmt: skip
        self._all("UPDATE thumbnails SET id = ? WHERE id = ?", item.id, old_id)

    def set_place(self, item_id: str, place: Place, revision: int) -> None:
        """Say where an item lies now."""
        self._all(
            "UPDATE items SET row = ?, first_token = ?, tokens = ?, revision = ? WHERE id = ?",
            *place, revision, item_id,
        )  # fmt: skip

    def forget_removed(self) -> None:
        """Forget which rows were removed: the flat files do not have them any more."""
        self._all("DELETE FROM removed")

    def set_state(self, state: State) -> None:
        """Say what holds for the whole store now."""
        self._all("UPDATE state SET generation = ?, revision = ?, rows = ?, tokens = ?, width = ?", *state)

    def _all(self, statement: str, *values: Any) -> list[Any]:
        with self._lock:
            return self._connection.execute(statement, values).fetchall()

    def _one(self, statement: str) -> Any:
        with self._lock:
            return self._connection.execute(statement).fetchone()


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA synchronous = FULL")
    return connection


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise OSError(errno.EIO, str(error), str(path)) from None


@contextmanager
def _transaction(connection: sqlite3.Connection, *, write: bool) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _damaged(path: Path, error: Exception) -> SayseeError:
    return SayseeError(
        f"{path} cannot be read ({error}); if no other process holds it, it is damaged: remove {path.parent} and build "
        "the index again"
    )


def _values(item: Item) -> tuple[str, str, int, int, int, str]:
    return item.id, quote_path(item.path), item.size, item.modified, item.taken, item.content


def _item(values: Sequence[Any]) -> Item:
    path, size, modified, taken, content = values
    return Item(unquote_path(path), size, modified, taken, content)
