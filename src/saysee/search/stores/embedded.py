"""The store of one machine, a folder: records in SQLite, embeddings and tokens in flat files.

    records.sqlite          see `records`
    embeddings-G.f32        see `rows`
    hidden-G.f16
    approximate-G-N.faiss   see `approximate`; only where there are many rows

A row is written once and never again. `write` appends to the flat files, flushes them, and then commits the records:
what is in the records is in the files, and what a killed process appended besides is written over. A row that is
removed stays behind; `optimise` leaves such rows out when it copies the files to the next generation G.

Shapes: Q questions, n items, E embedding length, P tokens of an item, H width.
"""

import hashlib
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saysee.errors import SayseeError
from saysee.search.stores.approximate import build_approximate, likely_questions
from saysee.search.stores.base import EncodedItem, Filter, Item, Nearest
from saysee.search.stores.records import Place, Records, State
from saysee.search.stores.rows import EXACT_UP_TO, Rows, flat_file, opened

RECORDS_FILE = "records.sqlite"
_TAIL = 0.2  # of the rows may be newer than the approximate index before it is built again (ours)
_GONE = 0.25  # of the rows may be removed ones before the files are copied without them (ours)


class EmbeddedStore:
    """See `saysee.search.stores.base.Store`. Safe to call from several threads.

    Attributes:
        keeps_hidden: whether the tokens are there too.
    """

    def __init__(self, folder: Path, records: Records) -> None:
        """Use `create` or `open`."""
        self._folder = folder
        self._records = records
        self._lock = threading.RLock()
        self.keeps_hidden = records.keeps_hidden
        self._rows = Rows.none(records.dim)
        self.refresh()

    @classmethod
    def create(cls, folder: Path, dim: int, keeps_hidden: bool) -> Self:
        """Make an empty store in a folder, or open the one there whose making was interrupted.

        Args:
            folder: may exist.
            dim: E.
            keeps_hidden: whether tokens are kept too.
        """
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder, Records.create(folder / RECORDS_FILE, dim, keeps_hidden))

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a store.

        Raises:
            SayseeError: its records are missing or damaged, or its embeddings are missing.
        """
        return cls(folder, Records.open(folder / RECORDS_FILE))

    def close(self) -> None:
        """Close the records; the maps go with the object."""
        self._records.close()

    # ---- what is there

    def __len__(self) -> int:
        return int(self._rows.alive.sum())

    def refresh(self) -> None:
        """See what has been written since: which rows are new, and which are gone."""
        with self._lock:
            while True:
                with self._records.transaction(write=False) as state:
                    if state.revision == self._rows.revision:
                        return
                    known = self._rows
                    if known.generation != state.generation:
                        known = Rows.none(self._records.dim)
                    changed = self._records.changed_since(known.revision)
                    removed = self._records.removed_since(known.revision)
                try:
                    self._rows = known.followed_by(
                        self._folder, state.generation, state.revision, state.rows, state.width, changed, removed
                    )
                except FileNotFoundError as error:
                    with self._records.transaction(write=False) as now:
                        copied_since = now.generation != state.generation
                    if not copied_since:
                        raise SayseeError(
                            f"{error.filename} is missing; remove {self._folder} and build the index again"
                        ) from None

    def items(self) -> Iterator[Item]:
        """Yield all items in the order of their ids."""
        return self._records.items()

    def get(self, ids: Sequence[str]) -> list[Item | None]:
        """Return the items, None for an id that is not there."""
        found = self._records.get(ids)
        return [found.get(item_id) for item_id in ids]

    def thumbnail(self, item_id: str) -> bytes | None:
        """Return the JPEG of an item, None for an id that is not there."""
        return self._records.thumbnail(item_id)

    def embeddings(self, ids: Sequence[str]) -> NDArray[np.float32]:
        """Return (n, E) of items that are there."""
        rows, places = self._places(ids)
        return np.array(rows.embeddings[[place.row for place in places]]).reshape(len(ids), self._records.dim)

    def hidden(self, ids: Sequence[str]) -> list[Tensor] | None:
        """Return (P, H) float16 of each item that is there."""
        if not self.keeps_hidden:
            return None
        rows, places = self._places(ids)
        return [
            torch.from_numpy(np.array(rows.hidden[place.first_token : place.first_token + place.tokens]))
            for place in places
        ]

    def sample(self, count: int) -> NDArray[np.float32]:
        """Return the embeddings of rows at equal distances."""
        rows = self._rows
        return np.array(rows.embeddings[rows.spread(count)])

    def nearest(self, questions: NDArray[np.float32], k: int, only: Filter) -> list[Nearest]:
        """Find the nearest items of each question (Q, E): exactly, or in a large store approximately.

        In either case the similarities are float32 products with the stored embeddings.
        """
        rows, chosen = self._rows, None
        if only.asks:
            chosen = np.array(self._records.rows_of(only), np.int64)
            chosen = chosen[chosen < len(rows.alive)]  # not those that were written since
            chosen = chosen[rows.alive[chosen]]
        return [
            Nearest(tuple(item_id.decode() for item_id in rows.ids[best]), similarity)
            for best, similarity in rows.nearest(questions, k, chosen)
        ]

    # ---- writing

    def write(
        self,
        add: Sequence[EncodedItem] = (),
        remove: Sequence[str] = (),
        move: Sequence[tuple[str, Item]] = (),
    ) -> None:
        """Remove, move and add items; all of it is there afterwards, or, after a crash, none."""
        added = list({encoded.item.id: encoded for encoded in add}.values())
        with self._lock:
            with self._records.transaction() as state:
                revision = state.revision + 1
                for item_id in remove:
                    self._records.remove(item_id, revision)
                for old_id, item in move:
                    self._records.move(old_id, item, revision)
                self._records.set_state(self._append(added, state)._replace(revision=revision))
            self.refresh()

    def _append(self, added: Sequence[EncodedItem], state: State) -> State:
        """Write new rows and their tokens where the state says that the old ones end."""
        if not added:
            return state
        hiddens = [encoded.hidden for encoded in added if encoded.hidden is not None]
        width = hiddens[0].shape[1] if hiddens else state.width
        with opened(flat_file(self._folder, "embeddings", state.generation)) as file:
            file.seek(state.rows * self._records.dim * 4)
            file.write(b"".join(encoded.embedding.astype(np.float32).tobytes() for encoded in added))
        if hiddens:
            with opened(flat_file(self._folder, "hidden", state.generation)) as file:
                file.seek(state.tokens * width * 2)
                file.write(b"".join(hidden.astype(np.float16).tobytes() for hidden in hiddens))
        rows, tokens = state.rows, state.tokens
        for encoded in added:
            place = Place(rows, tokens, 0 if encoded.hidden is None else len(encoded.hidden))
            digest = _digest(encoded.embedding, encoded.hidden)
            self._records.add(encoded.item, place, digest, encoded.thumbnail, state.revision + 1)
            rows, tokens = rows + 1, tokens + place.tokens
        return state._replace(rows=rows, tokens=tokens, width=width)

    # ---- keeping it sound and fast

    def check(self) -> list[str]:
        """Compare every row and its tokens with the digest that was taken when it was written.

        Raises:
            SayseeError: the records themselves are damaged.
        """
        with self._lock:
            self.refresh()
            rows = self._rows
            try:
                records = self._records.digests()
            except sqlite3.DatabaseError as error:
                raise SayseeError(
                    f"{self._folder / RECORDS_FILE} is damaged ({error}); remove {self._folder} and build the index "
                    "again"
                ) from None
        damaged = []
        for item_id, place, digest in records:
            tokens = rows.hidden[place.first_token : place.first_token + place.tokens] if place.tokens else None
            if not rows.alive[place.row] or _digest(rows.embeddings[place.row], tokens) != digest:
                damaged.append(item_id)
        return damaged

    def recall(self, count: int, k: int) -> float | None:
        """Return the share of the exact `k` nearest of `count` questions that the approximate search finds."""
        rows = self._rows
        if rows.approximate is None:
            return None
        questions = likely_questions(rows.embeddings, np.flatnonzero(rows.alive), count)
        found = [set(best.tolist()) for best, _ in rows.nearest(questions, k, None)]
        exact = [set(best.tolist()) for best, _ in rows.exact(questions, k, None)]
        return sum(len(got & best) for got, best in zip(found, exact, strict=True)) / sum(map(len, exact))

    def optimise(self) -> None:
        """Leave removed rows behind when there are many, and build the approximate index of a large store anew."""
        with self._lock:
            self.refresh()
            count = len(self._rows.alive)
            if count - len(self) > _GONE * count:
                self._copy_without_removed()
            rows = self._rows
            count, known = len(rows.alive), rows.approximate.rows if rows.approximate else 0
            if count > EXACT_UP_TO and count - known > _TAIL * count:
                build_approximate(self._folder, rows.generation, rows.embeddings, rows.alive)
                self._rows = rows.with_newest_approximate(self._folder)
            self._remove_leftovers()

    def _copy_without_removed(self) -> None:
        rows = self._rows
        with self._records.transaction() as state:
            following = state._replace(generation=state.generation + 1, revision=state.revision + 1, rows=0, tokens=0)
            with (
                opened(flat_file(self._folder, "embeddings", following.generation), fresh=True) as embeddings,
                opened(flat_file(self._folder, "hidden", following.generation), fresh=True) as hidden,
            ):
                for item_id, place, _ in self._records.digests():
                    if not rows.alive[place.row]:  # its part of a flat file is lost: an update encodes it again
                        self._records.remove(item_id, following.revision)
                        continue
                    embeddings.write(rows.embeddings[place.row].tobytes())
                    hidden.write(rows.hidden[place.first_token : place.first_token + place.tokens].tobytes())
                    new_place = Place(following.rows, following.tokens, place.tokens)
                    self._records.set_place(item_id, new_place, following.revision)
                    following = following._replace(rows=new_place.row + 1, tokens=following.tokens + place.tokens)
            self._records.forget_removed()
            self._records.set_state(following)
        self.refresh()

    def _remove_leftovers(self) -> None:
        """Remove the files of other generations, of approximate indexes that were replaced, and of killed writers."""
        rows = self._rows
        keep = {flat_file(self._folder, name, rows.generation) for name in ("embeddings", "hidden")}
        if rows.approximate is not None:
            keep.add(rows.approximate.path)
        for pattern in ("embeddings-*.f32", "hidden-*.f16", "approximate-*.faiss", ".approximate-*.tmp"):
            for path in self._folder.glob(pattern):
                if path not in keep:
                    path.unlink(missing_ok=True)

    def _places(self, ids: Sequence[str]) -> tuple[Rows, list[Place]]:
        """Return the moment that is now, and where each item lies in it.

        Raises:
            KeyError: an item is not there, or not any more.
        """
        with self._lock:
            self.refresh()
            rows, places = self._rows, self._records.places(ids)
        for item_id in ids:
            if item_id not in places or not rows.alive[places[item_id].row]:
                raise KeyError(item_id)
        return rows, [places[item_id] for item_id in ids]


def _digest(embedding: NDArray[np.float32], hidden: NDArray[np.float16] | None) -> bytes:
    digest = hashlib.blake2b(embedding.astype(np.float32).tobytes(), digest_size=16)
    if hidden is not None:
        digest.update(hidden.astype(np.float16).tobytes())
    return digest.digest()
