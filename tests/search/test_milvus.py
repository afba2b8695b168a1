"""What is Milvus's alone: whom it refuses and how it says so, what it sends, and what it does where a server fails."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pymilvus
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milvus_servers import REAL_SERVER, WHY_NOT, free_port, milvus_lite, milvus_server
from saysee.errors import SayseeError
from saysee.search.stores import milvus, milvus_collection
from saysee.search.stores.base import EncodedItem, Filter, Item, Nearest, path_id
from saysee.search.stores.milvus import MilvusStore
from saysee.search.stores.milvus_collection import TOKEN_VARIABLE, Collection, Row, path_of, stored_path

DIM = 6
NAMES = ("a.jpg", "it's.jpg", 'say "x".jpg', "50%_off.jpg", "sub/back\\slash.jpg", os.fsdecode(b"\xff*.jpg"), "b/c.jpg")


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with milvus_lite(tmp_path_factory.mktemp("milvus")) as running:
        yield running


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return re.sub(r"\W", "_", request.node.name)


def encoded(path: str, seed: int = 0) -> EncodedItem:
    vector = np.random.default_rng([seed, *os.fsencode(path)]).normal(size=DIM)
    item = Item(path, len(path), seed, 1_000 * seed, "0" * 64)
    return EncodedItem(item, (vector / np.linalg.norm(vector)).astype(np.float32), None, b"")


def filled(uri: str, name: str, items: Sequence[EncodedItem]) -> MilvusStore:
    store = MilvusStore.create(uri, name, DIM, "model")
    store.write(add=items)
    return store


def contents(store: MilvusStore) -> dict[str, tuple[Item, list[float]]]:
    items = list(store.items())
    rows = store.embeddings([item.id for item in items]).tolist()
    assert len({item.id for item in items}) == len(items) == len(store)
    return {item.id: (item, row) for item, row in zip(items, rows, strict=True)}


def expected(items: Sequence[EncodedItem]) -> dict[str, tuple[Item, list[float]]]:
    return {one.item.id: (one.item, one.embedding.tolist()) for one in items}


# ---- whom it refuses


@pytest.mark.parametrize(
    "wrong",
    ["localhost:19530", "/tmp/pictures.db", "http://", "ftp://host:1", "http://host:1/pictures.db", "unix:/run/x", ""],
)
def test_what_is_no_uri_is_refused(wrong: str) -> None:
    with pytest.raises(SayseeError, match=r"no uri of a Milvus server; give one like http://HOST:19530"):
        MilvusStore.open(wrong, "pictures", "model")


def test_a_password_in_the_uri_is_refused_and_not_repeated() -> None:
    with pytest.raises(SayseeError, match=TOKEN_VARIABLE) as refused:
        MilvusStore.create("http://root:secret@host:19530", "pictures", DIM, "model")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("wrong", ["", "my pictures", "1st", "a-b", "x" * 256, 'a"b', "bilder_\u00e4"])
def test_what_is_no_collection_is_refused(wrong: str) -> None:
    with pytest.raises(SayseeError, match="is no name of a collection"):
        MilvusStore.open("http://127.0.0.1:1", wrong, "model")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(SayseeError, match=r"pip install 'saysee\[milvus\]'"):
        MilvusStore.open("http://127.0.0.1:1", "pictures", "model")


def test_importing_the_store_does_not_import_pymilvus() -> None:
    program = "import sys, saysee.search.stores.milvus; sys.exit('pymilvus' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_server_that_is_not_there_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(SayseeError, match=f"{nowhere} answers: .*see that it runs") as refused:
        MilvusStore.open(nowhere, "pictures", "model")
    assert "\n" not in str(refused.value)
    assert capfd.readouterr() == ("", "")


def test_a_server_that_goes_away_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with milvus_lite(tmp_path) as running:
        store = filled(running, "pictures", [encoded("a.jpg")])
    monkeypatch.setattr(milvus_collection, "_SECONDS", 1.0)
    for ask in (
        lambda: len(store),
        store.refresh,
        lambda: list(store.items()),
        lambda: store.nearest(np.ones((1, DIM), np.float32), 1, Filter()),
        lambda: store.write(add=[encoded("b.jpg")]),
    ):
        with pytest.raises(SayseeError, match=f"{running} answers: ") as refused:
            ask()
        assert "\n" not in str(refused.value)
    assert capfd.readouterr() == ("", "")


def test_a_collection_that_is_not_there_is_named(uri: str, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SayseeError, match=f"there is no collection {name} at {uri}; build the index"):
        MilvusStore.open(uri, name, "model")
    assert capfd.readouterr().err == ""


def test_a_collection_of_another_model_is_refused_with_both_names(uri: str, name: str) -> None:
    MilvusStore.create(uri, name, DIM, "the first")
    refused = "made with the model the first, not with the second"
    with pytest.raises(SayseeError, match=refused):
        MilvusStore.open(uri, name, "the second")
    with pytest.raises(SayseeError, match=refused):
        MilvusStore.create(uri, name, DIM, "the second")


def test_a_collection_of_another_size_is_refused(uri: str, name: str) -> None:
    MilvusStore.create(uri, name, DIM, "model")
    with pytest.raises(SayseeError, match=f"embeddings of {DIM} numbers, not {DIM + 1}"):
        MilvusStore.create(uri, name, DIM + 1, "model")


def test_a_collection_that_is_not_of_saysee_is_refused(uri: str, name: str) -> None:
    pymilvus.MilvusClient(uri).create_collection(name, dimension=DIM)
    with pytest.raises(SayseeError, match="has the format None, not 1 of this version"):
        MilvusStore.open(uri, name, "model")


def test_a_collection_with_items_is_not_built_into(uri: str, name: str) -> None:
    filled(uri, name, [encoded("a.jpg")])
    with pytest.raises(SayseeError, match="holds 1 items already"):
        MilvusStore.create(uri, name, DIM, "model")
    assert contents(MilvusStore.open(uri, name, "model")) == expected([encoded("a.jpg")])


def test_a_collection_whose_making_was_interrupted_is_finished(uri: str, name: str) -> None:
    Collection(uri, name)._make(DIM, "model")
    store = filled(uri, name, [encoded("a.jpg")])
    assert pymilvus.MilvusClient(uri).list_indexes(name) == ["embedding"]
    assert contents(store) == expected([encoded("a.jpg")])


def test_the_token_is_the_environments_and_goes_nowhere_else(
    uri: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Mapping[str, Any]] = []

    class Client(pymilvus.MilvusClient):  # type: ignore[misc]
        def __init__(self, uri: str, **arguments: Any) -> None:
            given.append(arguments)
            super().__init__(uri, **arguments)

    monkeypatch.setattr(pymilvus, "MilvusClient", Client)
    monkeypatch.setenv(TOKEN_VARIABLE, "root:secret")
    store = MilvusStore.create(uri, name, DIM, "model")
    assert given[0]["token"] == "root:secret"
    assert "secret" not in str(store._collection.ask("describe_collection"))


# ---- what it sends


@given(st.binary(max_size=300).filter(lambda name: b"\0" not in name))
def test_a_stored_path_has_no_sign_with_a_meaning_and_comes_back(name: bytes) -> None:
    path = os.fsdecode(name)
    assert re.fullmatch(r"[A-Za-z0-9/.~-]*", stored_path(path))
    assert path_of(stored_path(path)) == path


CONDITION = (
    r'(id (>=|<) "[0-9a-f]*"|id in \["[0-9a-f]{32}"(, "[0-9a-f]{32}")*\]|path (==|like) "[A-Za-z0-9/.~%-]*"'
    r"|taken (>=|<) -?\d+)"
)


def test_no_name_and_no_pattern_is_part_of_an_expression(uri: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    ask = Collection.ask

    def listening(self: Collection, method: str, **arguments: Any) -> Any:
        if expression := arguments.get("filter"):
            sent.append(expression)
        return ask(self, method, **arguments)

    monkeypatch.setattr(Collection, "ask", listening)
    store = filled(uri, name, [encoded(path) for path in NAMES])
    hostile = [*NAMES, '" or id != "', "' or 1==1", "*'*\"*", "%_\\%\\_", "a\nb"]
    for text in hostile:
        store.nearest(np.ones((1, DIM), np.float32), 2, Filter(path=text))
        store.get([text])
        store.write(remove=[text], move=[(text, encoded("z").item)])
        with pytest.raises(KeyError):
            store.embeddings([text])
    assert len(store) == len(NAMES)
    assert len(sent) > len(hostile)
    for expression in sent:
        assert re.fullmatch(f"{CONDITION}( and {CONDITION})*", expression), expression


# ---- what it does where a server cannot, or fails


def assert_best(found: Nearest, question: np.ndarray, k: int, items: Sequence[EncodedItem]) -> None:
    exact = sorted(((float(one.embedding @ question), one.item.id) for one in items), reverse=True)[:k]
    assert found.ids == tuple(item_id for _, item_id in exact)
    np.testing.assert_allclose(found.similarity, [similarity for similarity, _ in exact], atol=1e-5)


@pytest.mark.parametrize("most", [4, 16_384])
@pytest.mark.parametrize("any_pattern", [True, False])
def test_what_the_server_does_not_find_is_found_by_comparing_with_all(
    uri: str, name: str, monkeypatch: pytest.MonkeyPatch, most: int, any_pattern: bool
) -> None:
    items = [encoded(f"{'odd' if number % 2 else 'even'}/{number}.jpg", number) for number in range(20)]
    store = filled(uri, name, [*items, encoded("almost odd/1.jpg.png"), encoded("odd/1Xjpg")])
    assert store._collection.any_pattern
    store._collection.any_pattern = any_pattern
    monkeypatch.setattr(milvus, "_TOP", most)
    monkeypatch.setattr(milvus_collection, "_PAGE", 3)
    questions = np.stack([encoded("question", number).embedding for number in range(3)])
    for k in (2, 4, 7, 30):
        for pattern, passing in (
            ("*/*.jpg", items),
            ("odd/*.jpg", items[1::2]),
            ("o*d/1*.jpg", items[1:2] + items[11::2]),
            ("even/*", items[::2]),
            ("odd/1.jpg", items[1:2]),
        ):
            for found, question in zip(store.nearest(questions, k, Filter(pattern)), questions, strict=True):
                assert_best(found, question, k, passing)


MOVED = ("moved.jpg", "moved too.jpg")


@pytest.mark.parametrize("survived", range(9))
def test_a_write_that_was_interrupted_loses_nothing_and_is_whole_after_another(
    uri: str, name: str, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    before = [encoded(path) for path in NAMES]
    store = filled(uri, name, before)
    moved = [replace(one, item=replace(one.item, path=path)) for one, path in zip(before, MOVED, strict=False)]
    move = [(old.item.id, new.item) for old, new in zip(before, moved, strict=False)]
    remove = [before[2].item.id, before[3].item.id]
    add = [encoded(NAMES[3], 1), encoded(NAMES[4], 1), encoded("new.jpg")]
    after = [*moved, *add, *before[5:]]
    ask, asked = Collection.ask, 0

    def killed(self: Collection, method: str, **arguments: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked > survived:
            raise KeyboardInterrupt
        return ask(self, method, **arguments)

    monkeypatch.setattr(milvus, "_BATCH", 1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Collection, "ask", killed)
        store.write(add, remove, move)
    again = MilvusStore.open(uri, name, "model")
    there = contents(again)
    either = {**expected(before), **expected(after)}
    assert all(found in (expected(before).get(item_id), either[item_id]) for item_id, found in there.items())
    kept = {found[0].content + str(found[1]) for found in there.values()}
    assert kept >= {one.item.content + str(one.embedding.tolist()) for one in [*before[:2], *before[5:]]}
    for _ in range(2):
        again.write(add, remove, move)
        assert contents(again) == expected(after)


def test_check_names_what_is_damaged(uri: str, name: str) -> None:
    store = filled(uri, name, [encoded(path) for path in NAMES])
    assert store.check() == []
    good = encoded("good.jpg")

    def row(item_id: str, path: str, embedding: np.ndarray) -> Row:
        record = {"path": stored_path(path), "size": 1, "modified": 1, "taken": 1, "content": ""}
        return {"id": item_id, "embedding": embedding, **record}

    bad = [
        row(path_id("long.jpg"), "long.jpg", 1.01 * good.embedding),
        row(path_id("zero.jpg"), "zero.jpg", np.zeros(DIM)),
        row(path_id("one.jpg"), "other.jpg", good.embedding),
        row("no id", "no id.jpg", good.embedding),
        row("", "empty.jpg", good.embedding),
        row("zzz", "last.jpg", good.embedding),
    ]
    store._collection.ask("upsert", data=[*bad, row(good.item.id, "good.jpg", good.embedding)])
    assert sorted(store.check()) == sorted(one["id"] for one in bad)


def test_check_says_when_the_server_keeps_items_back(uri: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(uri, name, [encoded(path) for path in NAMES])
    pages = Collection.pages

    def without_one(self: Collection, *arguments: Any, **options: Any) -> Iterator[list[Row]]:
        for page in pages(self, *arguments, **options):
            yield page[1:]

    monkeypatch.setattr(Collection, "pages", without_one)
    with pytest.raises(SayseeError, match=f"says that it has {len(NAMES)} items and gives back {len(NAMES) - 1}"):
        store.check()


def test_a_sample_has_the_smallest_ids(uri: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [encoded(f"{number}.jpg") for number in range(40)]
    store = filled(uri, name, items)
    items.sort(key=lambda one: one.item.id)
    for count in (1, 7, 40):
        assert store.sample(count).tolist() == [one.embedding.tolist() for one in items[:count]]


def test_recall_is_the_share_that_is_found(uri: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(uri, name, [encoded(f"{number}.jpg") for number in range(30)])
    assert store.recall(10, 5) == 1.0
    nearest = MilvusStore.nearest

    def without_the_second(
        self: MilvusStore, questions: np.ndarray, k: int, only: Filter
    ) -> list[Nearest]:  # and with the one after the last
        found = nearest(self, questions, k + 1, only)
        return [Nearest((one.ids[0], *one.ids[2:]), np.delete(one.similarity, 1)) for one in found]

    monkeypatch.setattr(MilvusStore, "nearest", without_the_second)
    assert store.recall(10, 5) == pytest.approx(4 / 5)


# ---- several processes

WRITE = """
import sys
import numpy as np
from saysee.search.stores.base import EncodedItem, Item, path_id
from saysee.search.stores.milvus import MilvusStore

store = MilvusStore.open(*sys.argv[1:3], "model")
for line in sys.stdin:
    number = int(line)
    item = Item(f"{number}.jpg", number, number, number, "0" * 64)
    remove = [path_id(f"{number - 1}.jpg")]
    store.write(add=[EncodedItem(item, np.eye(6, dtype=np.float32)[number % 6], None, b"")], remove=remove)
    print(flush=True)
"""


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(milvus_lite, id="milvus-lite"),
        pytest.param(
            milvus_server,
            id="milvus",
            marks=pytest.mark.skipif(REAL_SERVER is None, reason=WHY_NOT),
        ),
    ],
)
def test_one_process_sees_what_another_wrote(start: Any, tmp_path: Path) -> None:
    with start(tmp_path) as running:
        store = MilvusStore.create(running, "pictures", DIM, "model")
        command = [sys.executable, "-c", WRITE, running, "pictures"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdin is not None
            assert writer.stdout is not None
            for number in range(20):
                writer.stdin.write(f"{number}\n")
                writer.stdin.flush()
                assert writer.stdout.readline() == "\n"
                store.refresh()
                assert [item.path for item in store.items()] == [f"{number}.jpg"]
                (found,) = store.nearest(np.eye(DIM, dtype=np.float32)[:1], 5, Filter())
                assert found.ids == (path_id(f"{number}.jpg"),)
            writer.stdin.close()
