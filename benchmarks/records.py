"""The records of an index in SQLite beside LanceDB: writing in batches, reading by id, a filter, and what lies on disk.

    pip install 'lancedb>=0.38,<0.41'
    python benchmarks/records.py

Records as an index has them (path, size, times, hash, a thumbnail of 8 kB); batches of 16, each there for good when its
call returns, as after each batch of pictures that was encoded. LanceDB is used as its documentation has it:
`merge_insert` on the id, a scalar index on it, `optimize()` every hundred batches, prefiltered queries.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from record import keep
from saysee.search.stores.base import Filter, Item, quote_path
from saysee.search.stores.records import Place, Records

BATCH, IDS, THUMBNAIL = 16, 128, 8_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=20_000, help="(default: 20,000)")
    parser.add_argument("--repeats", type=int, default=20, help="of each reading (default: 20)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random = np.random.default_rng(options.seed)
    items = [
        Item(f"{n % 50}/it's picture {n}.jpg", n, n, 86_400 * (n % 3_000), f"{n:064x}") for n in range(options.records)
    ]
    thumbnails = [random.bytes(THUMBNAIL) for _ in range(64)]
    asked = [[items[n].id for n in random.choice(options.records, IDS, replace=False)] for _ in range(options.repeats)]
    figures: dict[str, Any] = {"records": options.records, "batch": BATCH, "ids": IDS}
    with tempfile.TemporaryDirectory() as name:
        for kind, measure in (("sqlite", in_sqlite), ("lancedb", in_lancedb)):
            folder = Path(name) / kind
            folder.mkdir()
            figures[kind] = measure(folder, items, thumbnails, asked) | on_disk(folder)
    figures["ratio"] = {
        name: round(figures["sqlite"][name] / figures["lancedb"][name], 3)
        for name in ("write_s", "get_ms", "filter_ms")
    }
    keep("records", data="drawn at random", seed=options.seed, figures=figures)


def in_sqlite(
    folder: Path, items: Sequence[Item], thumbnails: Sequence[bytes], asked: Sequence[list[str]]
) -> dict[str, float]:
    records = Records.create(folder / "records.sqlite", 256, True)
    begun = time.perf_counter()
    for start in range(0, len(items), BATCH):
        with records.transaction() as state:
            for row, item in enumerate(items[start : start + BATCH], start=start):
                records.add(item, Place(row, row, 1), bytes(16), thumbnails[row % 64], state.revision + 1)
            records.set_state(state._replace(revision=state.revision + 1, rows=start + BATCH))
    written = time.perf_counter() - begun
    figures = {
        "write_s": written,
        "get_ms": milliseconds(records.get, asked),
        "filter_ms": milliseconds(lambda _: records.rows_of(Filter(path="7/*")), asked),
    }
    assert len(records.rows_of(Filter(path="7/*"))) == len(items) // 50
    records.close()
    return rounded(figures)


def in_lancedb(
    folder: Path, items: Sequence[Item], thumbnails: Sequence[bytes], asked: Sequence[list[str]]
) -> dict[str, float]:
    import lancedb
    import pyarrow as pa

    texts, numbers = ("id", "path", "content"), ("size", "modified", "taken", "row")
    fields = [*((name, pa.string()) for name in texts), *((name, pa.int64()) for name in numbers)]
    schema = pa.schema([*fields, ("thumbnail", pa.binary())])
    table = lancedb.connect(folder).create_table("items", schema=schema)
    begun = time.perf_counter()
    for batch, start in enumerate(range(0, len(items), BATCH)):
        rows = [
            {
                **{"id": item.id, "path": quote_path(item.path), "size": item.size, "modified": item.modified},
                **{"taken": item.taken, "content": item.content, "row": row, "thumbnail": thumbnails[row % 64]},
            }
            for row, item in enumerate(items[start : start + BATCH], start=start)
        ]
        table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(
            pa.Table.from_pylist(rows, schema)
        )
        if batch % 100 == 99:
            table.optimize()
    table.create_scalar_index("id")
    table.optimize()
    written = time.perf_counter() - begun
    columns = ["path", "size", "modified", "taken", "content"]

    def get(ids: list[str]) -> Any:
        listed = ", ".join(f"'{item_id}'" for item_id in ids)
        return table.search().where(f"id IN ({listed})", prefilter=True).select(columns).limit(len(ids)).to_arrow()

    def filtered(_: object) -> Any:
        return table.search().where("path LIKE '7/%'", prefilter=True).select(["row"]).limit(len(items)).to_arrow()

    assert len(get(asked[0])) == IDS
    assert len(filtered(None)) == len(items) // 50
    return rounded({"write_s": written, "get_ms": milliseconds(get, asked), "filter_ms": milliseconds(filtered, asked)})


def milliseconds(read: Callable[[list[str]], object], asked: Sequence[list[str]]) -> float:
    read(asked[0])
    taken = []
    for ids in asked:
        begun = time.perf_counter()
        read(ids)
        taken.append(1000 * (time.perf_counter() - begun))
    return median(taken)


def rounded(figures: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in figures.items()}


def on_disk(folder: Path) -> dict[str, float]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {"files": len(files), "megabytes": round(sum(path.stat().st_size for path in files) / 1e6, 1)}


if __name__ == "__main__":
    main()
