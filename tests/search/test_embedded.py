"""The store of one machine when it is large: candidates from an approximate index, scored exactly."""

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from saysee.search.stores import embedded, rows
from saysee.search.stores.base import EncodedItem, Filter, Item
from saysee.search.stores.embedded import EmbeddedStore

DIM = 16
COUNT = 600


@pytest.fixture(autouse=True)
def large_begins_at_100(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (rows, embedded):
        monkeypatch.setattr(module, "EXACT_UP_TO", 100)


@pytest.fixture
def store(tmp_path: Path) -> EmbeddedStore:
    store = EmbeddedStore.create(tmp_path / "store", DIM, keeps_hidden=False)
    store.write([encoded(number) for number in range(COUNT)])
    store.optimise()
    return store


def encoded(number: int, vector: NDArray[np.float32] | None = None) -> EncodedItem:
    vector = unit(number) if vector is None else vector
    return EncodedItem(Item(f"{number % 2}/{number}.jpg", 1, number, 0, f"{number:064x}"), vector, None, b"")


def unit(seed: int) -> NDArray[np.float32]:
    value = np.random.default_rng(seed).standard_normal(DIM)
    return (value / np.linalg.norm(value)).astype(np.float32)


def approximate_file(tmp_path: Path) -> Path:
    (path,) = (tmp_path / "store").glob("approximate-*.faiss")
    return path


QUESTIONS = np.stack([unit(10_000 + number) for number in range(40)])


def exact(numbers: list[int], question: NDArray[np.float32], k: int) -> set[str]:
    scores = {number: float(unit(number) @ question) for number in numbers}
    return {encoded(number).item.id for number in sorted(scores, key=lambda number: -scores[number])[:k]}


def test_most_of_the_nearest_are_found_with_their_exact_similarities(store: EmbeddedStore, tmp_path: Path) -> None:
    assert approximate_file(tmp_path).name == f"approximate-0-{COUNT}.faiss"
    everything = list(range(COUNT))
    by_id = {encoded(number).item.id: number for number in everything}
    hits = 0
    for question, found in zip(QUESTIONS, store.nearest(QUESTIONS, 10, Filter()), strict=True):
        assert len(set(found.ids)) == 10
        np.testing.assert_allclose(found.similarity, [unit(by_id[id_]) @ question for id_ in found.ids], atol=1e-6)
        assert sorted(found.similarity, reverse=True) == list(found.similarity)
        hits += len(exact(everything, question, 10) & set(found.ids))
    assert hits / (10 * len(QUESTIONS)) > 0.95
    assert 0.95 < (store.recall(50, 10) or 0) <= 1


def test_few_cells_lose_some_and_recall_says_so(store: EmbeddedStore, tmp_path: Path) -> None:
    path = approximate_file(tmp_path)
    index: Any = faiss.read_index(str(path))
    index.nprobe = 1
    faiss.write_index(index, str(path))
    store.close()
    assert (EmbeddedStore.open(tmp_path / "store").recall(50, 10) or 0) < 0.8


def test_removed_and_filtered_items_do_not_come(store: EmbeddedStore) -> None:
    gone = {encoded(number).item.id for number in range(0, COUNT, 5)}
    store.write(remove=sorted(gone))
    left = [number for number in range(COUNT) if number % 5]
    for question, found in zip(QUESTIONS, store.nearest(QUESTIONS, 10, Filter()), strict=True):
        assert len(found.ids) == 10
        assert not gone & set(found.ids)
        assert len(exact(left, question, 10) & set(found.ids)) >= 7
    odd = {encoded(number).item.id for number in left if number % 2}
    assert len(odd) > 100  # so that the candidates are filtered and not all rows compared
    for found in store.nearest(QUESTIONS, 10, Filter(path="1/*")):
        assert len(found.ids) == 10
        assert set(found.ids) <= odd


def test_what_came_after_the_building_is_found_too(store: EmbeddedStore, tmp_path: Path) -> None:
    store.write([encoded(COUNT, QUESTIONS[0])])
    store.optimise()
    assert approximate_file(tmp_path).name == f"approximate-0-{COUNT}.faiss"  # one row is not worth building again
    (found,) = store.nearest(QUESTIONS[:1], 3, Filter())
    assert found.ids[0] == encoded(COUNT).item.id
    store.write([encoded(number) for number in range(COUNT + 1, COUNT + 300)])
    store.optimise()
    assert approximate_file(tmp_path).name == f"approximate-0-{COUNT + 300}.faiss"
    (found,) = store.nearest(QUESTIONS[:1], 3, Filter())
    assert found.ids[0] == encoded(COUNT).item.id


@pytest.mark.parametrize("damage", ["removed", "cut", "rubbish"])
def test_without_its_file_the_search_is_exact(store: EmbeddedStore, tmp_path: Path, damage: str) -> None:
    path = approximate_file(tmp_path)
    store.close()
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:1000] if damage == "cut" else b"rubbish" * 100)
    opened = EmbeddedStore.open(tmp_path / "store")
    assert opened.recall(10, 10) is None
    for question, found in zip(QUESTIONS, opened.nearest(QUESTIONS, 10, Filter()), strict=True):
        assert set(found.ids) == exact(list(range(COUNT)), question, 10)
    opened.optimise()
    assert opened.recall(10, 10) is not None  # built again
