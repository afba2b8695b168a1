"""The flat files of an embedded store as one moment of it: which rows are there, and the nearest of a question.

    embeddings-G.f32        (N, E) float32
    hidden-G.f16            (tokens, H) float16, those of one item after the other's

Both are memory-mapped. Nothing here changes once it is made: a reader keeps its moment while a writer goes on.

Shapes: Q questions, N rows, E embedding length, H width.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray

from saysee.search.stores.approximate import ApproximateRows
from saysee.search.stores.records import Place

EXACT_UP_TO = 200_000
"""Rows up to which every question is compared with every row; see `benchmarks/search.py` for what that takes."""

Found = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Rows and their similarities, the best first."""


@dataclass(frozen=True)
class Rows:
    """The rows of one moment.

    Attributes:
        generation: of the flat files.
        revision: of the records.
        ids: (N,) of each row's item, 32 bytes.
        alive: (N,) whether the row is an item's, and wholly in the files.
        embeddings: (N or fewer, E).
        hidden: (tokens, H).
        approximate: for a large store, an approximate index over the first rows.
    """

    generation: int
    revision: int
    ids: NDArray[np.bytes_]
    alive: NDArray[np.bool_]
    embeddings: NDArray[np.float32]
    hidden: NDArray[np.float16]
    approximate: ApproximateRows | None = None

    @classmethod
    def none(cls, dim: int) -> "Rows":
        """Return the moment before anything is read."""
        return cls(-1, -1, np.zeros(0, "S32"), np.zeros(0, bool), np.zeros((0, dim), np.float32), _no_tokens())

    def followed_by(
        self,
        folder: Path,
        generation: int,
        revision: int,
        rows: int,
        width: int,
        changed: Sequence[tuple[str, Place]],
        removed: Sequence[int],
    ) -> "Rows":
        """Return a later moment of the same generation.

        Args:
            folder: of the flat files.
            generation: of that moment.
            revision: of that moment.
            rows: N of that moment.
            width: H.
            changed: items that were added or moved since.
            removed: rows that were removed since.

        Raises:
            FileNotFoundError: there is no such generation (any more).
        """
        ids, alive = np.zeros(rows, "S32"), np.zeros(rows, bool)
        ids[: len(self.ids)], alive[: len(self.alive)] = self.ids, self.alive
        embeddings, hidden = self.embeddings, _no_tokens()
        if rows:
            embeddings = _mapped(flat_file(folder, "embeddings", generation), embeddings.shape[1], np.float32)[:rows]
        if width:
            hidden = _mapped(flat_file(folder, "hidden", generation), width, np.float16)
        for item_id, place in changed:
            ids[place.row] = item_id
            # of a damaged file less may be there than the records say
            alive[place.row] = place.row < len(embeddings) and place.first_token + place.tokens <= len(hidden)
        alive[list(removed)] = False
        approximate = ApproximateRows.newest(folder, generation) if rows > EXACT_UP_TO else None
        return Rows(generation, revision, ids, alive, embeddings, hidden, approximate)

    def with_newest_approximate(self, folder: Path) -> "Rows":
        """Return the same moment with the approximate index that is there now."""
        return replace(self, approximate=ApproximateRows.newest(folder, self.generation))

    def nearest(self, questions: NDArray[np.float32], k: int, only: NDArray[np.int64] | None) -> list[Found]:
        """Find the `k` nearest rows of each question (Q, E); `only` these, if rows are given.

        Exact up to EXACT_UP_TO rows. Above, an approximate index names the candidates among the rows that it knows, and
        the candidates and all later rows are scored exactly.
        """
        if self.approximate is None or (only is not None and len(only) <= EXACT_UP_TO):
            return self.exact(questions, k, only)
        allowed = self.alive
        if only is not None:
            allowed = np.zeros_like(self.alive)
            allowed[only] = True
        known = self.approximate.rows
        later = known + np.flatnonzero(allowed[known:])
        candidates = self.approximate.candidates(questions, k, allowed)
        return [
            self.exact(question[None], k, np.concatenate([rows, later]))[0]
            for question, rows in zip(questions, candidates, strict=True)
        ]

    def exact(self, questions: NDArray[np.float32], k: int, only: NDArray[np.int64] | None) -> list[Found]:
        """Compare each question (Q, E) with every row, or with some rows alone."""
        found = []
        embeddings = self.embeddings if only is None else self.embeddings[only]
        gone = np.flatnonzero(~self.alive[: len(embeddings)]) if only is None else np.zeros(0, np.int64)
        for question in questions:  # one at a time: the product then runs at the speed of the memory
            scores = embeddings @ question
            scores[gone] = -np.inf
            best = _highest(scores, min(k, len(scores) - len(gone)))
            found.append((best if only is None else only[best], scores[best]))
        return found

    def spread(self, count: int) -> NDArray[np.int64]:
        """Return at most `count` rows at equal distances."""
        rows = np.flatnonzero(self.alive)
        return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64)]


def flat_file(folder: Path, name: str, generation: int) -> Path:
    """Return the path of `embeddings` or `hidden`."""
    return folder / f"{name}-{generation}.{'f32' if name == 'embeddings' else 'f16'}"


@contextmanager
def opened(path: Path, *, fresh: bool = False) -> Iterator[BinaryIO]:
    """Give a file to write to, made if there is none, and flush it to the disk at the end."""
    flags = os.O_RDWR | os.O_CREAT | (os.O_TRUNC if fresh else 0)
    with os.fdopen(os.open(path, flags, 0o666), "rb+") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _mapped(path: Path, width: int, dtype: DTypeLike) -> NDArray[Any]:
    """Map a file of rows (n, width); a last one that is not whole is left out."""
    rows = path.stat().st_size // (width * np.dtype(dtype).itemsize)
    return np.memmap(path, dtype, "r", shape=(rows, width)) if rows else np.zeros((0, width), dtype)


def _no_tokens() -> NDArray[np.float16]:
    return np.zeros((0, 0), np.float16)


def _highest(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Return the positions of the `k` highest scores (N,), best first; of equal ones the earlier first."""
    best = np.argpartition(scores, -k)[-k:] if 0 < k < len(scores) else np.arange(len(scores))
    return best[np.lexsort((best, -scores[best]))][:k]
