"""The store for when one machine is outgrown: the same index as a collection of a Milvus cluster, through pymilvus.

Of an item the collection has its id (the primary key), its embedding and its record. Neither tokens nor thumbnails: at
10^9 pictures they would be 25 TB and 15 TB, and a cluster keeps what it has in memory or on the disks of its query
nodes. Both are made again from the files, for the few items that are shown or re-ranked. The records, about 250 bytes
an item, are marked to be read from disk (`mmap`), so that the embeddings alone take memory.

The embeddings have an HNSW index (inner product, M = 16, ef = 8 k and more): it needs no training, takes new items as
they come, finds them behind any filter, and its one setting means the same on every server. An operator may put
another kind in its place; `recall` says what that costs. Before `optimise` the server searches what is new through a
coarse index of its own, which finds as few as half of what is nearest.

Reads follow what this process has written (session consistency), and `refresh` catches up with the others. Every
write is an upsert or a delete by id, so that the same one twice is the same as once.

Shapes: Q questions, n items, E embedding length.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from saysee.errors import SayseeError
from saysee.search.stores.approximate import likely_questions
from saysee.search.stores.base import EncodedItem, Filter, Item, Nearest, check_filter, first_second, path_id
from saysee.search.stores.milvus_collection import LONG_SECONDS, Collection, Row, path_of, stored_path

_RECORD = ("path", "size", "modified", "taken", "content")
_TOP = 16_384  # the most that Milvus finds for one question
_FOUND = 100_000  # found in one request, by all of its questions
_EFFORT, _LEAST_EFFORT = 8, 1_024  # HNSW's ef over k, and at least; twice that with a filter. See benchmarks/milvus.py
_BATCH = 1_000  # items written at a time
_HANDING_SECONDS = 60.0  # for the query nodes to take over an index that is built
_UNIT = 1e-3  # how far a sound embedding's length may be from 1

_Pattern = re.Pattern[str] | None


class MilvusStore:
    """See `saysee.search.stores.base.Store`. Safe to call from several threads.

    Attributes:
        keeps_hidden: False; tokens are made again from the files.
        keeps_thumbnails: False; so are thumbnails.
    """

    keeps_hidden = False
    keeps_thumbnails = False

    def __init__(self, collection: Collection) -> None:
        """Use `create` or `open`."""
        self._collection = collection

    @classmethod
    def create(cls, uri: str, collection: str, dim: int, fingerprint: str) -> Self:
        """Make an empty collection, or open the one whose making was interrupted.

        Args:
            uri: of the server, as `http://HOST:19530` or `http://HOST:19530/DATABASE`.
            collection: its name: letters, digits and underscores.
            dim: E.
            fingerprint: of the model that makes the embeddings.

        Raises:
            SayseeError: the collection is there and not empty, or what `open` raises.
        """
        store = cls(Collection.open(uri, collection, fingerprint, make_with=dim))
        if count := len(store):
            raise SayseeError(f"{store._collection.name} holds {count} items already; give another name, or drop it")
        return store

    @classmethod
    def open(cls, uri: str, collection: str, fingerprint: str) -> Self:
        """Open a collection.

        Raises:
            SayseeError: pymilvus is not installed, the uri or the name is none, the server does not answer or refuses
                the token, or the collection is missing, not one of saysee, of another format or of another model.
        """
        return cls(Collection.open(uri, collection, fingerprint))

    def close(self) -> None:
        """Let go of the connection."""
        self._collection.close()

    # ---- what is there

    def __len__(self) -> int:
        return self._collection.count()

    def refresh(self) -> None:
        """Wait until the server has applied what anybody wrote before now.

        Of a collection with several replicas, one that did not take part in that may lag by moments more.
        """
        self._collection.catch_up()

    def items(self) -> Iterator[Item]:
        """Yield all items, a page at a time."""
        for rows in self._collection.pages(_RECORD):
            yield from map(_item, rows)

    def get(self, ids: Sequence[str]) -> list[Item | None]:
        """Return the items, None for an id that is not there."""
        found = self._collection.rows_of(ids, _RECORD)
        return [_item(found[item_id]) if item_id in found else None for item_id in ids]

    def thumbnail(self, item_id: str) -> bytes | None:
        """Return None: thumbnails are made again from the files."""
        return None

    def embeddings(self, ids: Sequence[str]) -> NDArray[np.float32]:
        """Return (n, E) of items that are there.

        Raises:
            KeyError: one is not.
        """
        found = self._collection.rows_of(ids, ["embedding"])
        return self._matrix([found[item_id] for item_id in ids])

    def hidden(self, ids: Sequence[str]) -> list[Tensor] | None:
        """Return None: tokens are made again from the files."""
        return None

    def sample(self, count: int) -> NDArray[np.float32]:
        """Return the embeddings with the smallest ids: these are hashes, so that they are spread over everything."""
        rows: list[Row] = []
        for page in self._collection.pages(["embedding"], most=max(1, min(count, _BATCH))):
            rows += sorted(page, key=lambda row: str(row["id"]))
            if len(rows) >= count:
                break
        return self._matrix(rows[:count])

    # ---- search

    def nearest(self, questions: NDArray[np.float32], k: int, only: Filter) -> list[Nearest]:
        """Find the nearest items of each question (Q, E); where the index finds too few, compare with every item.

        Too few are found when more are asked for than Milvus gives at once, and now and then behind a narrow filter.
        A server before 2.4 knows no pattern but a beginning: for any other, many are found and filtered here.
        """
        expression, pattern = self._expression(only)
        found = list(self._found(questions, _TOP if pattern else min(k, _TOP), expression, pattern))
        fewest = min((len(nearest.ids) for nearest in found), default=k)
        if fewest < k and (pattern or fewest < min(k, self._collection.count(expression))):
            return self._exact(questions, k, expression, pattern)
        return [Nearest(nearest.ids[:k], nearest.similarity[:k]) for nearest in found]

    def _found(
        self, questions: NDArray[np.float32], limit: int, expression: str, pattern: _Pattern
    ) -> Iterator[Nearest]:
        together = max(1, _FOUND // limit)
        effort = max(_LEAST_EFFORT, _EFFORT * limit) * (2 if expression else 1)
        for first in range(0, len(questions), together):
            answers = self._collection.ask(
                "search",
                data=questions[first : first + together],
                limit=limit,
                filter=expression,
                anns_field="embedding",
                search_params={"metric_type": "IP", "params": {"ef": min(effort, 2 * _TOP)}},
                output_fields=["path" if pattern else "id"],
                consistency_level="Session",
            )
            for answer in answers:
                hits = [hit for hit in answer if not pattern or pattern.fullmatch(hit["entity"]["path"])]
                similarity = np.array([hit["distance"] for hit in hits], np.float32)
                yield Nearest(tuple(hit["id"] for hit in hits), similarity)

    def _exact(self, questions: NDArray[np.float32], k: int, expression: str, pattern: _Pattern) -> list[Nearest]:
        """Compare the questions with every item that passes, a page at a time."""
        ids, similarity = np.zeros((len(questions), 0), "U32"), np.zeros((len(questions), 0), np.float32)
        for page in self._collection.pages(["path", "embedding"], expression):
            rows = [row for row in page if not pattern or pattern.fullmatch(row["path"])]
            products = questions @ self._matrix(rows).T
            best = _best(products, k)
            ids = np.concatenate([ids, np.array([row["id"] for row in rows], "U32")[best]], axis=1)
            similarity = np.concatenate([similarity, np.take_along_axis(products, best, 1)], axis=1)
            best = _best(similarity, k)
            ids, similarity = np.take_along_axis(ids, best, 1), np.take_along_axis(similarity, best, 1)
        return [Nearest(tuple(row.tolist()), values) for row, values in zip(ids, similarity, strict=True)]

    def _expression(self, only: Filter) -> tuple[str, _Pattern]:
        """Return a filter as Milvus reads it and, where it cannot say it all, a pattern of the stored paths.

        Raises:
            SayseeError: nothing can pass it.
        """
        check_filter(only)
        conditions, pattern = [], None
        if only.path is not None:
            parts = [stored_path(part) for part in only.path.split("*")]
            like = re.sub("%+", "%", "%".join(parts))
            if "%" in like[:-1] and not self._collection.any_pattern:
                like, pattern = f"{parts[0]}%", re.compile(".*".join(map(re.escape, parts)))
            conditions.append(f'path like "{like}"' if "%" in like else f'path == "{like}"')
        if only.since is not None:
            conditions.append(f"taken >= {first_second(only.since)}")
        if only.until is not None:
            conditions.append(f"taken < {first_second(only.until) + 86_400}")
        return " and ".join(conditions), pattern

    # ---- writing

    def write(
        self,
        add: Sequence[EncodedItem] = (),
        remove: Sequence[str] = (),
        move: Sequence[tuple[str, Item]] = (),
    ) -> None:
        """Remove, move and add items, in this order; the moves all at once.

        An item that moves is there under its new id before it goes from under the old one: whoever is killed in
        between leaves it twice, and the next update finds the file of the old one gone.
        """
        self._collection.delete(remove)
        removed = set(remove)
        moving = {old: item for old, item in move if old not in removed}
        found = self._collection.rows_of(list(moving), ["embedding"])
        moved = {moving[old].id: _row(moving[old], row["embedding"]) for old, row in found.items()}
        self._upsert(moved)
        self._collection.delete([old for old in moving if old not in moved])
        self._upsert({encoded.item.id: _row(encoded.item, encoded.embedding) for encoded in add})
        if remove or move:  # a server of 2.3 does not tell when it deleted: a session would not wait for it
            self._collection.catch_up()

    def _upsert(self, rows: Mapping[str, Row]) -> None:
        listed = list(rows.values())
        for first in range(0, len(listed), _BATCH):
            self._collection.ask("upsert", data=listed[first : first + _BATCH])

    # ---- keeping it sound and fast

    def check(self) -> list[str]:
        """Read everything back; an item is sound if its embedding has unit length and its id is that of its path.

        Raises:
            SayseeError: the server gives back fewer items than it says it has.
        """
        damaged, count, expected = [], 0, len(self)
        for rows in self._collection.pages(["path", "embedding"]):
            # not true where it is not finite
            unit = np.abs(np.linalg.norm(self._matrix(rows), axis=1) - 1) <= _UNIT
            for row, sound in zip(rows, unit, strict=True):
                if not sound or path_id(path_of(row["path"])) != row["id"]:
                    damaged.append(row["id"])
            count += len(rows)
        if count < min(expected, len(self)):
            raise SayseeError(
                f"{self._collection.name} says that it has {expected} items and gives back {count}; see that all of "
                "its query nodes run"
            )
        return damaged

    def recall(self, count: int, k: int) -> float | None:
        """Return the share of the exact `k` nearest that is found for `count` questions; None if there is no item.

        Every item is read for it. Of items that are equally near, any counts.
        """
        items = self.sample(count)
        if not len(items):
            return None
        questions = likely_questions(items, np.arange(len(items)), count)
        found = self.nearest(questions, k, Filter())
        exact = self._exact(questions, k, "", None)
        right = sum(
            int((near.similarity >= best.similarity[-1] - 1e-6).sum()) for near, best in zip(found, exact, strict=True)
        )
        return right / sum(len(best.ids) for best in exact)

    def optimise(self) -> None:
        """Have the cluster seal and index what is new, and wait until it searches through that."""
        self._collection.ask("flush", long=True)
        _wait(self._collection.is_indexed, LONG_SECONDS)
        _wait(self._collection.searches_its_index, _HANDING_SECONDS)

    def _matrix(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        return np.array([row["embedding"] for row in rows], np.float32).reshape(len(rows), self._collection.dim)


def _wait(until: Callable[[], bool], seconds: float) -> None:
    """Wait so long at most: whatever the cluster does not finish by then it finishes by itself."""
    end = time.monotonic() + seconds
    while not until() and time.monotonic() < end:
        time.sleep(0.5)


def _best(similarity: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """Return the columns (Q, k or fewer) with the largest values of each row, the best first."""
    return np.argsort(-similarity, axis=1, kind="stable")[:, :k]


def _row(item: Item, embedding: Any) -> Row:
    record = {"size": item.size, "modified": item.modified, "taken": item.taken, "content": item.content}
    return {"id": item.id, "embedding": embedding, "path": stored_path(item.path), **record}


def _item(row: Row) -> Item:
    return Item(path_of(row["path"]), row["size"], row["modified"], row["taken"], row["content"])
