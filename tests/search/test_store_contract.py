"""What every store must do, asked of each: the folder, Milvus Lite, and where it is installed the real Milvus."""

import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from milvus_servers import REAL_SERVER, WHY_NOT, milvus_lite, milvus_server
from saysee.errors import SayseeError
from saysee.search.stores.base import EncodedItem, Filter, Item, Nearest, Store, first_second, path_id
from saysee.search.stores.embedded import EmbeddedStore
from saysee.search.stores.milvus import MilvusStore

DIM = 8

HOSTILE = (
    "plain.jpg",
    'sub/it\'s "quoted".jpg',
    "line\nbreak\r\t.jpg",
    "100%_sure*.jpg",
    "back\\slash\\_.jpg",
    os.fsdecode(b"caf\xe9 \xff.jpg"),
    "n" * 251 + ".jpg",
    "\N{SLIGHTLY SMILING FACE}/\N{SLIGHTLY SMILING FACE}.jpg",
    "sub/a_b.jpg",
    "sub/aXb.jpg",
    "' or 1 == 1 or path like '%",
    '" or id != "',
    "[a-z]?{x}^$(y)|.jpg",
    "~5F%20%.jpg",
    "sub/deep/er/ x .jpg",
    "\u00fcml\u0061\u0308ut.jpg",
)


@dataclass(frozen=True)
class Backend:
    """A kind of store: `create` makes an empty one under a new name, `open` gives another handle on it."""

    create: Callable[[str], Store]
    open: Callable[[str], Store]
    keeps_hidden: bool
    names: Iterator[str]

    def new(self) -> tuple[Store, Callable[[], Store]]:
        name = next(self.names)
        return self.create(name), lambda: self.open(name)


@pytest.fixture(
    scope="module",
    params=[
        "embedded",
        "embedded-coarse",
        "milvus-lite",
        pytest.param(
            "milvus",
            marks=pytest.mark.skipif(REAL_SERVER is None, reason=WHY_NOT),
        ),
    ],
)
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    folder = tmp_path_factory.mktemp("stores")
    names = (f"store_{number}" for number in itertools.count())
    if request.param.startswith("embedded"):
        keeps = request.param == "embedded"
        yield Backend(
            lambda name: EmbeddedStore.create(folder / name, DIM, keeps),
            lambda name: EmbeddedStore.open(folder / name),
            keeps,
            names,
        )
    else:
        with (milvus_lite if request.param == "milvus-lite" else milvus_server)(folder) as uri:
            yield Backend(
                lambda name: MilvusStore.create(uri, name, DIM, "model"),
                lambda name: MilvusStore.open(uri, name, "model"),
                False,
                names,
            )


def encoded(path: str, seed: int = 0, taken: int = 0) -> EncodedItem:
    """An item all of which follows from path and seed."""
    digest = hashlib.sha256(os.fsencode(path) + bytes([seed]))
    random = np.random.default_rng(int.from_bytes(digest.digest()[:8], "big"))
    vector = random.normal(size=DIM)
    item = Item(path, int(random.integers(1 << 40)), int(random.integers(1 << 61)), taken, digest.hexdigest())
    hidden = random.normal(size=(int(random.integers(1, 4)), 6)).astype(np.float16)
    return EncodedItem(item, (vector / np.linalg.norm(vector)).astype(np.float32), hidden, digest.digest())


def questions(count: int = 3) -> np.ndarray:
    values = np.random.default_rng(7).normal(size=(count, DIM))
    unit: np.ndarray = (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)
    return unit


def assert_nearest(found: Nearest, question: np.ndarray, k: int, known: Mapping[str, EncodedItem]) -> None:
    """The best `k` of what is known by a plain scan; of equally near ones any."""
    exact = {item_id: float(encoded.embedding @ question) for item_id, encoded in known.items()}
    assert len(set(found.ids)) == len(found.ids) == min(k, len(known))
    np.testing.assert_allclose(found.similarity, [exact[item_id] for item_id in found.ids], atol=1e-5)
    np.testing.assert_allclose(found.similarity, sorted(exact.values(), reverse=True)[:k], atol=1e-5)


def assert_holds(store: Store, known: Mapping[str, EncodedItem], *, backend: Backend) -> None:
    """The store gives back these items by every way that there is, and nothing else."""
    assert len(store) == len(known)
    assert sorted(item.id for item in store.items()) == sorted(known)
    assert {item.id: item for item in store.items()} == {item_id: one.item for item_id, one in known.items()}
    ids = list(known)
    missing = path_id("not there")
    assert store.get([*ids, missing, "no id"]) == [*(known[item_id].item for item_id in ids), None, None]
    assert store.embeddings(ids).tolist() == [known[item_id].embedding.tolist() for item_id in ids]
    assert store.keeps_hidden == backend.keeps_hidden
    hidden = store.hidden(ids)
    if hidden is None:
        assert not backend.keeps_hidden
    else:
        for tokens, item_id in zip(hidden, ids, strict=True):
            torch.testing.assert_close(tokens, torch.from_numpy(known[item_id].hidden), atol=0, rtol=0)
    for item_id in ids:
        if getattr(store, "keeps_thumbnails", True):
            assert store.thumbnail(item_id) == known[item_id].thumbnail
        else:
            assert store.thumbnail(item_id) is None
    assert store.thumbnail(missing) is None
    for k in (1, 3, len(known) + 5):
        for found, question in zip(store.nearest(questions(), k, Filter()), questions(), strict=True):
            assert_nearest(found, question, k, known)


def by_id(items: Sequence[EncodedItem]) -> dict[str, EncodedItem]:
    return {one.item.id: one for one in items}


def test_hostile_names_come_back_as_they_are(backend: Backend) -> None:
    store, again = backend.new()
    items = [encoded(path, taken=index * 1_000 - 5_000) for index, path in enumerate(HOSTILE)]
    store.write(add=items)
    assert_holds(store, by_id(items), backend=backend)
    assert store.check() == []
    store.optimise()
    assert_holds(store, by_id(items), backend=backend)
    assert_holds(again(), by_id(items), backend=backend)
    for path in HOSTILE:  # each is a pattern that fits itself, and without `*` nothing else
        (found,) = store.nearest(questions(1), 30, Filter(path=path))
        if "*" not in path:
            assert found.ids == (path_id(path),)
        assert path_id(path) in found.ids
    store.write(remove=[path_id(path) for path in HOSTILE[::2]])
    assert_holds(store, by_id(items[1::2]), backend=backend)


def test_an_empty_store_answers(backend: Backend) -> None:
    store, again = backend.new()
    for empty in (store, again()):
        assert_holds(empty, {}, backend=backend)
        assert empty.sample(5).shape == (0, DIM)
        assert empty.embeddings([]).shape == (0, DIM)
        assert empty.check() == []
        assert empty.recall(3, 3) is None
        empty.optimise()
        for only in (Filter("a*b"), Filter(since=date(2020, 1, 1))):
            assert [found.ids for found in empty.nearest(questions(2), 4, only)] == [(), ()]
    store.write()
    store.write(remove=[path_id("x")], move=[(path_id("x"), encoded("y").item)])
    assert_holds(store, {}, backend=backend)


def test_what_was_written_again_is_there_once_and_new(backend: Backend) -> None:
    store, _ = backend.new()
    store.write(add=[encoded("a.jpg"), encoded("b.jpg")])
    store.write(add=[encoded("a.jpg"), encoded("b.jpg")])
    assert_holds(store, by_id([encoded("a.jpg"), encoded("b.jpg")]), backend=backend)
    store.write(add=[encoded("b.jpg", 1), encoded("c.jpg"), encoded("c.jpg", 2)])
    assert_holds(store, by_id([encoded("a.jpg"), encoded("b.jpg", 1), encoded("c.jpg", 2)]), backend=backend)


def test_a_moved_item_keeps_what_the_model_made_of_it(backend: Backend) -> None:
    store, _ = backend.new()
    old, other = encoded("old.jpg"), encoded("other.jpg")
    store.write(add=[old, other])
    new = replace(old, item=replace(old.item, path="new/name.jpg", modified=5))
    for _ in range(2):
        store.write(move=[(old.item.id, new.item)])
        assert_holds(store, by_id([new, other]), backend=backend)
    touched = replace(new, item=replace(new.item, modified=6))
    onto = replace(touched, item=replace(touched.item, path="other.jpg"))
    store.write(move=[(new.item.id, touched.item)])
    assert_holds(store, by_id([touched, other]), backend=backend)
    store.write(move=[(new.item.id, onto.item)], add=[encoded("new/name.jpg", 3)])
    assert_holds(store, by_id([onto, encoded("new/name.jpg", 3)]), backend=backend)
    store.write(remove=[onto.item.id], move=[(onto.item.id, old.item)])
    assert_holds(store, by_id([encoded("new/name.jpg", 3)]), backend=backend)


def test_one_handle_sees_what_another_wrote(backend: Backend) -> None:
    writer, again = backend.new()
    reader = again()
    known: dict[str, EncodedItem] = {}
    for path in HOSTILE[:4]:
        known |= by_id([encoded(path)])
        writer.write(add=[encoded(path)])
        reader.refresh()
        assert_holds(reader, known, backend=backend)
    writer.write(remove=[path_id(HOSTILE[0])])
    writer.optimise()
    reader.refresh()
    known.pop(path_id(HOSTILE[0]))
    assert_holds(reader, known, backend=backend)
    reader.close()
    assert_holds(writer, known, backend=backend)


def test_what_is_not_there_is_a_key_error(backend: Backend) -> None:
    store, _ = backend.new()
    store.write(add=[encoded("a.jpg")])
    for ids in ([path_id("b.jpg")], [path_id("a.jpg"), path_id("b.jpg")], ["' or 1==1"]):
        with pytest.raises(KeyError):
            store.embeddings(ids)
        if backend.keeps_hidden:
            with pytest.raises(KeyError):
                store.hidden(ids)
    store.write(remove=["' or 1==1", '" or id != "', "%", "*", ""])
    assert_holds(store, by_id([encoded("a.jpg")]), backend=backend)
    twice = store.embeddings([path_id("a.jpg")] * 2)
    assert twice.tolist() == [encoded("a.jpg").embedding.tolist()] * 2


def test_a_sample_is_the_same_every_time_and_from_everywhere(backend: Backend) -> None:
    store, again = backend.new()
    items = [encoded(f"{number:02}.jpg") for number in range(40)]
    store.write(add=items[:20])
    store.write(add=items[20:])
    rows = {tuple(one.embedding.tolist()): number for number, one in enumerate(items)}
    for count in (1, 10, 40, 50):
        sample = store.sample(count)
        assert sample.shape == (min(count, 40), DIM)
        assert sample.dtype == np.float32
        numbers = [rows[tuple(row)] for row in sample.tolist()]
        assert len(set(numbers)) == len(numbers)
        if count == 10:
            assert min(numbers) < 20 <= max(numbers)
        for handle in (store, again()):
            assert handle.sample(count).tolist() == sample.tolist()


def test_many_items_are_read_in_parts_and_found(backend: Backend) -> None:
    store, _ = backend.new()
    items = [encoded(f"folder {number % 7}/{number}.jpg", taken=number) for number in range(4_500)]
    store.write(add=items)
    known = by_id(items)
    assert {item.id: item for item in store.items()} == {item_id: one.item for item_id, one in known.items()}
    assert store.get([one.item.id for one in items]) == [one.item for one in items]
    assert store.embeddings(list(known)).tolist() == [one.embedding.tolist() for one in items]
    assert store.check() == []
    store.optimise()
    recall = store.recall(20, 10)
    assert recall is None or 0.95 <= recall <= 1
    asked, passing = questions(40), by_id(items[3::7])
    for nearest, question in zip(store.nearest(asked, 50, Filter("folder 3/*")), asked, strict=True):
        if recall is None:
            assert_nearest(nearest, question, 50, passing)
        else:  # a real index misses one now and then
            similarity = {item_id: float(one.embedding @ question) for item_id, one in passing.items()}
            np.testing.assert_allclose(nearest.similarity, [similarity[item_id] for item_id in nearest.ids], atol=1e-5)
            assert len(set(nearest.ids)) == len(nearest.ids) == 50
            assert nearest.similarity[42] >= sorted(similarity.values())[-50] - 1e-5
    store.write(remove=list(known)[100:])
    assert len(store) == len(list(store.items())) == 100


def passes(only: Filter, item: Item) -> bool:
    """Whether an item passes, told letter by letter."""

    def fits(pattern: bytes, path: bytes) -> bool:
        ends = {0}  # of the part of the path that the pattern's part so far fits
        for sign in pattern:
            if sign == ord("*"):
                ends = set(range(min(ends, default=len(path) + 1), len(path) + 1))
            else:
                ends = {end + 1 for end in ends if end < len(path) and path[end] == sign}
        return len(path) in ends

    return (
        (only.path is None or fits(os.fsencode(only.path), os.fsencode(item.path)))
        and (only.since is None or item.taken >= first_second(only.since))
        and (only.until is None or item.taken < first_second(only.until) + 86_400)
    )


PIECES = st.sampled_from(
    [
        *"*%_\\'\".?[]^~ /",
        "*",
        "*",
        "sub",
        ".jpg",
        "a_b",
        "aXb",
        "%20",
        "100%",
        "\n",
        "caf",
        os.fsdecode(b"\xe9"),
        *HOSTILE,
    ]
)
DAYS = st.none() | st.dates(date(1969, 12, 28), date(1970, 1, 5))


@pytest.fixture(scope="module")
def hostile_store(backend: Backend) -> tuple[Store, list[EncodedItem]]:
    store, _ = backend.new()
    items = [encoded(path, taken=(index - 8) * 43_200) for index, path in enumerate(HOSTILE)]
    store.write(add=items)
    return store, items


@settings(max_examples=60, deadline=None, derandomize=True)
@given(pattern=st.none() | st.lists(PIECES, max_size=4).map("".join), since=DAYS, until=DAYS, k=st.integers(1, 20))
def test_a_filter_lets_through_what_a_plain_comparison_does(
    hostile_store: tuple[Store, list[EncodedItem]], pattern: str | None, since: date | None, until: date | None, k: int
) -> None:
    store, items = hostile_store
    only = Filter(pattern, since, until)
    if since and until and since > until:
        with pytest.raises(SayseeError, match="since"):
            store.nearest(questions(1), k, only)
        return
    known = by_id([one for one in items if passes(only, one.item)])
    for found, question in zip(store.nearest(questions(2), k, only), questions(2), strict=True):
        assert_nearest(found, question, k, known)


@dataclass(frozen=True)
class Writing:
    """A call of `write` by the numbers of paths; `again`: how often the same call is made."""

    add: Mapping[int, int]
    remove: frozenset[int]
    move: tuple[tuple[int, int], ...]
    again: int


@st.composite
def writings(draw: st.DrawFn) -> Writing:
    """No path moves to where another one goes from or is removed, so that the same call twice says the same as once."""
    paths = st.integers(0, len(HOSTILE) - 1)
    numbers = draw(st.lists(paths, unique=True, max_size=6))
    half = draw(st.integers(0, len(numbers) // 2))
    move = tuple(zip(numbers[:half], numbers[half : 2 * half], strict=True))
    rest = st.sampled_from(sorted(set(range(len(HOSTILE))) - set(numbers[: 2 * half])))
    return Writing(
        draw(st.dictionaries(rest, st.integers(0, 3), max_size=4)),
        frozenset(draw(st.lists(rest, max_size=3))),
        move,
        draw(st.integers(1, 2)),
    )


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(writings() | st.sampled_from(["optimise", "open"]), min_size=1, max_size=6))
def test_any_sequence_of_writings_is_as_of_a_dictionary(backend: Backend, steps: list[Writing | str]) -> None:
    store, again = backend.new()
    reader = again()
    known: dict[str, EncodedItem] = {}
    for step in steps:
        if step == "optimise":
            store.optimise()
        elif step == "open":
            store.close()
            store = again()
        else:
            assert isinstance(step, Writing)
            add = [encoded(HOSTILE[number], seed) for number, seed in step.add.items()]
            remove = [path_id(HOSTILE[number]) for number in step.remove]
            move = []
            for old, new in step.move:
                if moving := known.get(path_id(HOSTILE[old])):
                    moved = replace(moving, item=replace(moving.item, path=HOSTILE[new]))
                    move.append((moving.item.id, moved.item))
            for _ in range(step.again):
                store.write(add, remove, move)
            for item_id in remove:
                known.pop(item_id, None)
            for old_id, item in move:
                known[item.id] = replace(known.pop(old_id), item=item)
            known |= by_id(add)
        reader.refresh()
        for handle in (store, reader):
            assert_holds(handle, known, backend=backend)
    assert store.check() == []
