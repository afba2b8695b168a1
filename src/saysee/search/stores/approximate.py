"""Candidates for a large index: an inverted file of 8-bit codes (FAISS) beside the exact embeddings.

Questions are compared with the codes in a few of many cells [IVF: Jegou et al. 2011, "Product quantization for nearest
neighbor search"; one byte a number], and the caller scores the candidates exactly. Rows that were added since the
building are not known here: the caller adds them. The file is made of the embeddings alone and may be deleted.
"""

import math
import re
from pathlib import Path
from typing import Any, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from saysee.files import atomic_path

# All ours; `recall` of the store measures what comes of them.
_CELLS_PER_ROOT = 2  # cells = 2 sqrt(rows)
_TRAINING_ROWS_PER_CELL = 32
_TRAINING_ROUNDS = 10  # of k-means
_CANDIDATES = 4  # times k, so that the 8-bit codes lose nothing at the edge
_AIMED_RECALL = 0.99  # the number of cells that are looked at is doubled until it is reached ...
_AIMED_AT = 100  # ... among so many nearest, over so many questions
_QUESTIONS = 100
_ADDED_AT_ONCE = 65_536


class ApproximateRows:
    """An approximate index over the first rows of a store.

    Attributes:
        path: of the file.
        rows: N, how many it knows.
        cells: how many cells they are in.
        cells_looked_at: how many of them a question is compared with.
    """

    def __init__(self, path: Path, rows: int, index: Any) -> None:
        self.path = path
        self.rows = rows
        self.cells: int = index.nlist
        self.cells_looked_at: int = index.nprobe
        self._index = index

    @classmethod
    def newest(cls, folder: Path, generation: int) -> Self | None:
        """Open the newest one of a generation, or return None where there is none that can be read."""
        found = []
        for path in folder.glob(f"approximate-{generation}-*.faiss"):
            if match := re.fullmatch(rf"approximate-{generation}-(\d+)\.faiss", path.name):
                found.append((int(match[1]), path))
        for rows, path in sorted(found, reverse=True):
            try:
                index = faiss.read_index(str(path))
            except RuntimeError:  # damaged; the exact search does without it
                continue
            return cls(path, rows, index)
        return None

    def candidates(self, questions: NDArray[np.float32], k: int, allowed: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
        """Return rows that may be among the `k` nearest, for each of the questions (Q, E).

        Args:
            questions: (Q, E).
            k: how many are wanted.
            allowed: (N or more,) which rows may come.
        """
        bits = np.packbits(allowed[: self.rows], bitorder="little")
        parameters = faiss.SearchParametersIVF(  # type: ignore[call-arg]
            nprobe=self._index.nprobe,
            sel=faiss.IDSelectorBitmap(bits),  # type: ignore[call-arg, arg-type]
        )
        _, rows = self._index.search(questions, _CANDIDATES * k, params=parameters)
        return [found[found >= 0] for found in rows]


def build_approximate(folder: Path, generation: int, embeddings: NDArray[np.float32], alive: NDArray[np.bool_]) -> None:
    """Make the file for all rows (N, E) there are now; those that are not alive get no entry."""
    rows, dim = embeddings.shape
    living = np.flatnonzero(alive)
    cells = max(1, round(_CELLS_PER_ROOT * math.sqrt(len(living))))
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(dim), dim, cells, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
    )
    index.cp.niter, index.cp.min_points_per_centroid = _TRAINING_ROUNDS, 1
    step = max(1, len(living) // (_TRAINING_ROWS_PER_CELL * cells))
    index.train(np.ascontiguousarray(embeddings[living[::step]]))
    for start in range(0, len(living), _ADDED_AT_ONCE):
        part = living[start : start + _ADDED_AT_ONCE]
        index.add_with_ids(np.ascontiguousarray(embeddings[part]), part)
    _look_at_enough_cells(index, embeddings, living)
    with atomic_path(folder / f"approximate-{generation}-{rows}.faiss") as temporary:
        faiss.write_index(index, str(temporary))


def likely_questions(embeddings: NDArray[np.float32], rows: NDArray[np.int64], count: int) -> NDArray[np.float32]:
    """Return questions (at most `count`, E) to measure recall with: as far from an item as speech is.

    What people say does not lie on a picture's own embedding, and for questions that do an inverted file flatters
    itself: their neighbours are all in one cell. These have a cosine of 0.45 with some item and go off in a random
    direction (ours).
    """
    chosen = embeddings[rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64)]]
    aside = np.random.default_rng(0).standard_normal(chosen.shape)
    aside /= np.linalg.norm(aside, axis=1, keepdims=True)
    questions = chosen + 2 * aside
    return np.asarray(questions / np.linalg.norm(questions, axis=1, keepdims=True), np.float32)


def _look_at_enough_cells(index: Any, embeddings: NDArray[np.float32], living: NDArray[np.int64]) -> None:
    """Set how many cells a question looks at: doubled until the candidates hold what an exact search finds."""
    k = min(_AIMED_AT, len(living))
    questions = likely_questions(embeddings, living, _QUESTIONS)
    similarity = questions @ embeddings[living].T
    exact = living[np.argpartition(similarity, -k, axis=1)[:, -k:]]
    index.nprobe = 1
    while index.nprobe < index.nlist:
        index.nprobe = min(index.nlist, 2 * index.nprobe)
        _, found = index.search(questions, _CANDIDATES * k)
        hits = [np.isin(right, got).mean() for right, got in zip(exact, found, strict=True)]
        if np.mean(hits) >= _AIMED_RECALL:
            return
