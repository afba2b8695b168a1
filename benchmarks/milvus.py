"""How fast the distributed store writes and answers on a real Milvus server, beside a plain scan of the same vectors.

    pip install milvus==2.3.5       # the standalone server, for Linux; into an environment of its own, if you like
    python benchmarks/milvus.py --server .venv/bin/milvus-server

The server runs on this machine for as long as the benchmark. The vectors are random, in clumps that vary in 64
directions, the questions as far from them as speech is from pictures. Every question is asked alone, through
`MilvusStore`, as a search does. The rival is numpy: one product with all vectors that pass the filter, and a partial
sort, in this process.
"""

import argparse
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pymilvus
from numpy.typing import NDArray

from record import keep
from saysee.errors import SayseeError
from saysee.search.stores.approximate import likely_questions
from saysee.search.stores.base import EncodedItem, Filter, Item, first_second
from saysee.search.stores.milvus import MilvusStore

DIM, LATENT, CENTRES, SEED = 256, 64, 2_000, 0
FOLDERS, DAYS = 100, 1_000
START = date(2020, 1, 1)
QUESTIONS = 50
FILTERS = {
    "nothing": (Filter(), QUESTIONS),
    "one folder in 100": (Filter(path="folder 7/*"), QUESTIONS),
    "100 days of 1,000": (Filter(since=START, until=START + timedelta(days=99)), QUESTIONS),
    "a pattern within the path": (Filter(path="*7/1*.jpg"), 10),  # 2.3 cannot: half a second each
}
Found = Callable[[NDArray[np.float32], int], Sequence[int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default=shutil.which("milvus-server"), help="path of milvus-server")
    parser.add_argument("--count", type=int, default=100_000, help="items in the collection")
    options = parser.parse_args()
    if options.server is None:
        parser.error("there is no milvus-server on the PATH; pip install milvus==2.3.5, or give --server")
    vectors = clumps(options.count)
    questions = likely_questions(vectors, np.arange(options.count), QUESTIONS)
    items = [
        Item(
            path=f"folder {number % FOLDERS}/{number}.jpg",
            size=number,
            modified=number,
            taken=first_second(START + timedelta(days=number // FOLDERS % DAYS)),
            content=f"{number:064x}",
        )
        for number in range(options.count)
    ]
    with tempfile.TemporaryDirectory() as folder, running(options.server, Path(folder)) as uri:
        figures = measure(uri, items, vectors, questions)
    data = (
        f"{options.count:,} random vectors of {DIM} numbers in {CENTRES:,} clumps that vary in {LATENT} directions, "
        f"{QUESTIONS} questions with a cosine of 0.45 to one of them"
    )
    keep("milvus", data=data, seed=SEED, figures=figures)


def clumps(count: int) -> NDArray[np.float32]:
    """Return (count, E) unit vectors that lie in clumps and vary in fewer directions than they have numbers."""
    random = np.random.default_rng(SEED)
    directions, centres = random.normal(size=(LATENT, DIM)), random.normal(size=(CENTRES, LATENT))
    values = (centres[random.integers(CENTRES, size=count)] + random.normal(size=(count, LATENT))) @ directions
    unit: NDArray[np.float32] = (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)
    return unit


def measure(
    uri: str, items: list[Item], vectors: NDArray[np.float32], questions: NDArray[np.float32]
) -> dict[str, object]:
    """Write, wait for the index, ask, and compare with the scan."""
    store = MilvusStore.create(uri, "benchmark", DIM, "benchmark")
    numbers = {item.id: number for number, item in enumerate(items)}
    start = time.perf_counter()
    for first in range(0, len(items), 1_000):
        pairs = zip(items[first : first + 1_000], vectors[first : first + 1_000], strict=True)
        store.write(add=[EncodedItem(item, vector, None, b"") for item, vector in pairs])
    written = time.perf_counter() - start
    store.optimise()
    optimised = time.perf_counter() - start - written
    figures: dict[str, object] = {
        "server": pymilvus.MilvusClient(uri).get_server_version(),
        "items": len(items),
        "items_written_per_second": round(len(items) / written),
        "seconds_to_index": round(optimised, 1),
    }
    print(figures, flush=True)
    for name, (only, count) in FILTERS.items():
        passing = np.array([number for number, item in enumerate(items) if passes(only, item)])

        def scan(question: NDArray[np.float32], k: int, passing: NDArray[np.int64] = passing) -> Sequence[int]:
            similarity = (vectors if len(passing) == len(vectors) else vectors[passing]) @ question
            best = np.argpartition(-similarity, min(k, len(similarity) - 1))[:k]
            return [int(number) for number in passing[best[np.argsort(-similarity[best])]]]

        def ask(question: NDArray[np.float32], k: int, only: Filter = only) -> Sequence[int]:
            return [numbers[item_id] for item_id in store.nearest(question[None], k, only)[0].ids]

        for k in (10, 128):
            exact, scanned = timed(scan, questions[:count], k)
            found, asked = timed(ask, questions[:count], k)
            right = sum(len(set(one) & set(other)) for one, other in zip(found, exact, strict=True))
            figures[f"{name}, k = {k}"] = here = {
                "passing": len(passing),
                "milvus": {**asked, "recall": round(right / sum(map(len, exact)), 4)},
                "numpy scan": scanned,
            }
            print(f"{name}, k = {k}", here, flush=True)
    return figures


def passes(only: Filter, item: Item) -> bool:
    """Whether one of the filters above lets an item through, told another way than the store does."""
    folder, name = item.path.split("/")
    if only.path is not None:
        return folder == "folder 7" if only.path == "folder 7/*" else folder.endswith("7") and name.startswith("1")
    return only.since is None or item.taken < first_second(START + timedelta(days=100))


def timed(find: Found, questions: NDArray[np.float32], k: int) -> tuple[list[Sequence[int]], dict[str, float]]:
    """Ask every question alone; return what is found, and the median and the 95th percentile in milliseconds."""
    find(questions[0], k)
    found, taken = [], []
    for question in questions:
        start = time.perf_counter()
        found.append(find(question, k))
        taken.append(1e3 * (time.perf_counter() - start))
    median, late = np.percentile(taken, [50, 95])
    return found, {"ms_p50": round(float(median), 2), "ms_p95": round(float(late), 2)}


@contextmanager
def running(server: str, folder: Path) -> Iterator[str]:
    """Run the server with its data in a folder; its wrapper stops it when it is interrupted."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{listening.getsockname()[1]}"
    port = uri.rpartition(":")[2]
    process = subprocess.Popen([server, "--data", str(folder), "--proxy-port", port], stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 120
        while not answers(uri):
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{server} does not answer; its log is in {folder}/logs")
            time.sleep(0.5)
        yield uri
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)


def answers(uri: str) -> bool:
    """Whether the server says that a collection is missing, instead of nothing."""
    try:
        MilvusStore.open(uri, "missing", "")
    except SayseeError as error:
        return "there is no collection" in str(error)
    return True


if __name__ == "__main__":
    main()
