"""The record of runs over seeds, and their table beside a naive computation."""

import json
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saysee.errors import SayseeError
from saysee.evaluation.runs import Record, Run, read_record, summarize, to_markdown, write_record

ABOUT = {"split": "test", "data": "d1", "config": {"loss": {"queue_size": 16, "momentum": 0.995}}}
NAMES = ("contrast", "queue", "distillation", "matching-random", "matching-hard", "all")
ROWS: dict[str, dict[str, Any]] = {name: {} for name in NAMES}


def run(row: str, seed: int, r1: float, *, seconds: float | None = 10.0, fine: float | None = None) -> Run:
    metrics = {}
    for stage, value in (("coarse", r1), ("fine", fine)):
        for shift, direction in enumerate(("speech_to_image", "image_to_speech", "mean")):
            for number, recall in enumerate(("R@1", "R@5", "R@10")):
                if value is not None:
                    metrics[f"{stage}/{direction}/{recall}"] = value + shift / 100 + number / 10
    return Run(row, seed, seconds, 8, r1 / 2, metrics)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "ablation.json"
    assert read_record(path, "ablation", ABOUT, ROWS) == Record(ABOUT, ROWS)
    written = Record(ABOUT, ROWS).with_run(run("contrast", 0, 0.1)).with_run(run("all", 2, 0.3, seconds=None, fine=0.4))
    write_record(path, "ablation", written, summarize(written, ["contrast"], [0]))
    assert read_record(path, "ablation", ABOUT, ROWS) == written
    assert written.run("all", 2) == run("all", 2, 0.3, seconds=None, fine=0.4)
    assert written.run("all", 0) is written.run("queue", 2) is None
    again = written.with_run(run("contrast", 0, 0.2))
    assert [(r.row, r.seed) for r in again.runs] == [("all", 2), ("contrast", 0)]
    assert again.runs[1].metrics["coarse/speech_to_image/R@1"] == 0.2


def test_a_record_of_before_rows_were_described_is_read(tmp_path: Path) -> None:
    path = tmp_path / "ablation.json"
    write_record(path, "ablation", Record(ABOUT, ROWS, (run("all", 0, 0.1),)), [])
    old = json.loads(path.read_text())
    del old["rows"]
    path.write_text(json.dumps(old))
    assert read_record(path, "ablation", ABOUT, ROWS) == Record(ABOUT, ROWS, (run("all", 0, 0.1),))


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({**ABOUT, "split": "dev"}, "split (test there, dev here)"),
        ({**ABOUT, "data": "d2"}, "data (d1 there, d2 here)"),
        (
            {**ABOUT, "config": {"loss": {"queue_size": 16, "momentum": 0.9}}},
            "config.loss.momentum (0.995 there, 0.9 here)",
        ),
        (
            {**ABOUT, "config": {"loss": {"queue_size": 16, "momentum": 0.995, "new": 1}}},
            "config.loss.new (None there, 1 here)",
        ),
        ({"data": "d2"}, "data (d1 there, d2 here)"),  # while the rest is not known yet
    ],
)
def test_runs_of_something_else_are_refused_by_name(tmp_path: Path, about: dict[str, Any], said: str) -> None:
    path = tmp_path / "ablation.json"
    write_record(path, "ablation", Record(ABOUT, ROWS, (run("contrast", 0, 0.1),)), [])
    with pytest.raises(SayseeError) as caught:
        read_record(path, "ablation", about, ROWS)
    assert str(caught.value).startswith(f"{path} holds runs with another {said}; ")
    assert str(caught.value).endswith("so give another folder (--out)")
    assert read_record(path, "ablation", {"split": "test"}, ROWS).runs == (run("contrast", 0, 0.1),)


def test_a_row_made_of_something_else_is_refused_and_rows_may_come_one_after_the_other(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    first = Record(ABOUT, {"a": {"config": {"steps": 4}, "encoders": "e"}}, (run("a", 0, 0.1),))
    write_record(path, "table", first, summarize(first, ["a"], [0]))
    both = read_record(path, "table", ABOUT, {"b": {"config": {"steps": 9}}})
    assert list(both.rows) == ["b", "a"]  # what is asked for now comes first
    assert both.rows["a"] == first.rows["a"]
    assert both.runs == first.runs
    assert read_record(path, "table", ABOUT, {"a": {"config": {"steps": 4}}}).runs == first.runs
    with pytest.raises(
        SayseeError, match=r"holds runs with another a\.config\.steps \(4 there, 5 here\); one table is"
    ):
        read_record(path, "table", ABOUT, {"a": {"config": {"steps": 5}}})
    with pytest.raises(SayseeError, match=r"holds runs with another a\.encoders \(e there, f here\); "):
        read_record(path, "table", ABOUT, {"a": {"encoders": "f"}})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b'{"saysee_ablation": 1, "about": {}, "runs": [{"row": "all"}]}',
        b'{"saysee_ablation": 1, "about": {}, "runs": 3}',
        b'{"saysee_ablation": 1, "about": 5, "runs": []}',
        b'{"saysee_ablation": 1, "about": {}, "rows": 5, "runs": []}',
        b'{"saysee_ablation": 1, "about": {}, "rows": {"all": 5}, "runs": []}',
        b'{"saysee_table": 1, "about": {}, "runs": []}',
    ],
)
def test_a_damaged_record_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ablation.json"
    path.write_bytes(content)
    with pytest.raises(
        SayseeError, match=r"ablation\.json is damaged or no record of an ablation; give another folder"
    ):
        read_record(path, "ablation", {}, {"all": {"queue_size": 0}})


def test_a_newer_record_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ablation.json"
    path.write_text('{"saysee_ablation": 2, "about": {}, "runs": []}')
    with pytest.raises(SayseeError, match="has format 2 and this saysee reads 1"):
        read_record(path, "ablation", ABOUT, ROWS)


# ---- the table


@given(
    values=st.dictionaries(
        st.tuples(st.sampled_from(NAMES), st.integers(0, 4)), st.tuples(st.floats(0, 1), st.floats(0, 1))
    )
)
def test_figures_are_those_of_a_naive_computation(values: dict[tuple[str, int], tuple[float, float]]) -> None:
    fine = {"matching-random", "matching-hard", "all"}
    runs = tuple(run(*key, coarse, fine=fined if key[0] in fine else None) for key, (coarse, fined) in values.items())
    table = {row.row: row for row in summarize(Record(ABOUT, ROWS, runs), NAMES, [0, 1], "contrast")}
    assert list(table) == list(NAMES)
    seeds = {0, 1} | {seed for _, seed in values}
    for name, row in table.items():
        mine = {seed: pair for (other, seed), pair in values.items() if other == name}
        base = {seed: coarse for (other, seed), (coarse, _) in values.items() if other == "contrast"}
        assert row.finished == tuple(sorted(mine))
        assert row.missing == tuple(sorted(seeds - set(mine)))
        for place, stage in enumerate(("coarse", "fine")):
            spread = row.metrics.get(f"{stage}/speech_to_image/R@1")
            difference = row.differences.get(f"{stage}/speech_to_image/R@1")
            if not mine or (stage == "fine" and name not in fine):
                assert spread is None
                assert difference is None
                continue
            assert spread is not None
            of_stage = [pair[place] for pair in mine.values()]
            assert spread.mean == pytest.approx(mean(of_stage))
            ends = (min(of_stage), max(of_stage)) if len(of_stage) > 1 else (None, None)
            assert (spread.lowest, spread.highest, spread.seeds) == (*ends, len(of_stage))
            gains = [mine[seed][place] - base[seed] for seed in mine if seed in base]
            if name == "contrast" or not gains:
                assert difference is None
            else:
                assert difference is not None
                assert difference.mean == pytest.approx(mean(gains))
                assert difference.seeds == len(gains)


def test_the_table_shows_what_is_missing_and_does_not_call_one_seed_certain() -> None:
    runs = (run("contrast", 0, 0.1, seconds=None), run("contrast", 1, 0.2), run("all", 0, 0.25, fine=0.5))
    record = Record(ABOUT, ROWS, runs)
    text = to_markdown(
        "Ablation", record, summarize(record, ["contrast", "queue", "all"], [0, 1], "contrast"), "contrast"
    )
    assert text.startswith("# Ablation\n")
    assert "Measured on test. " in text
    assert "`- contrast`: the difference in points" in text
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    first = lines[lines.index(["## Speech to image"]) :][4:]
    assert first[0] == ["contrast", "coarse", "2", *(f"{v} [{v - 5} to {v + 5}]" for v in (15.0, 25.0, 35.0)), *"---"]
    assert first[1] == ["queue", "-", "0 of 2", *"------"]
    assert first[2][:3] == ["all", "coarse", "1 of 2"]
    assert first[2][3::3] == ["25.0 [unknown]", "+15.0 [unknown]"]
    assert first[3][:2] == ["all", "fine"]
    assert first[3][3::3] == ["50.0 [unknown]", "+40.0 [unknown]"]  # beside contrast's coarse 10.0
    training = lines[lines.index(["## Training"]) :][4:]
    assert training[0] == ["contrast", "2", "-", "10 [unknown]"]  # the other was interrupted
    assert training[1] == ["queue", "0 of 2", "0, 1", "-"]
    assert training[2] == ["all", "1 of 2", "1", "10 [unknown]"]
    assert "queue" not in to_markdown("", record, summarize(record, ["contrast"], [0]))


def test_without_a_baseline_there_are_no_differences() -> None:
    """And rows that nobody asks for now are shown behind the others."""
    record = Record(ABOUT, {"b": {}, "a": {}, "c": {}}, (run("a", 0, 0.1), run("b", 0, 0.2, fine=0.3)))
    table = summarize(record, ["b"], [0])
    assert [row.row for row in table] == ["b", "a"]
    assert [row.differences for row in table] == [{}, {}]
    text = to_markdown("Recipes", record, table)
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert lines[4] == ["row", "stage", "seeds", "R@1", "R@5", "R@10"]
    assert [line[:4] for line in lines[6:9]] == [
        ["b", "coarse", "1", "20.0 [unknown]"],
        ["b", "fine", "1", "30.0 [unknown]"],
        ["a", "coarse", "1", "10.0 [unknown]"],
    ]
    assert "difference" not in text


def test_the_figures_stand_in_the_json_too(tmp_path: Path) -> None:
    record = Record(ABOUT, ROWS, (run("contrast", 0, 0.1), run("all", 0, 0.3, fine=0.5)))
    write_record(
        tmp_path / "ablation.json", "ablation", record, summarize(record, ["contrast", "all"], [0, 1], "contrast")
    )
    contrast, full = json.loads((tmp_path / "ablation.json").read_text())["table"]
    assert (contrast["row"], contrast["finished"], contrast["missing"]) == ("contrast", [0], [1])
    assert contrast["metrics"]["coarse/mean/R@5"] == {
        "mean": pytest.approx(0.22),
        "lowest": None,
        "highest": None,
        "seeds": 1,
    }
    assert full["differences"]["fine/mean/R@5"]["mean"] == pytest.approx(0.4)
