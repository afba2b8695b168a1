"""The tables of docs/results.md, written into it from the records alone."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from flickr8k_synthetic.plan import planned_rows, run_of
from flickr8k_synthetic.reranking import FITTED
from flickr8k_synthetic.rival import HEARD, WRITTEN
from saysee.evaluation.ablation import ROWS
from saysee.evaluation.metrics import RECALLS
from saysee.evaluation.report import DIRECTION_NAMES, markdown_table
from saysee.evaluation.results import DIRECTIONS, STAGES

DOCUMENT = Path("docs/results.md")
NAMES = [f"{direction}/{recall}" for direction in DIRECTIONS for recall in RECALLS]
_RECALLS = [f"{DIRECTION_NAMES[direction]}, {recall}" for direction in DIRECTIONS for recall in RECALLS]

Record = Mapping[str, Any]
Group = tuple[str, str, list[Record]]
"""How a row is called, which data it had, and the records of its seeds."""


def tables(test: Mapping[str, Sequence[Record]], dev: Mapping[str, Sequence[Record]]) -> dict[str, str]:
    """Return all tables as Markdown, by their names.

    Args:
        test: the figures of what was read on test; see `measure.on_record`.
        dev: of what was read on dev.
    """
    rows = groups(test["runs"])
    return {
        "recall": _by_seed(rows, STAGES),
        "gain": _gains(test.get("gains", [])),
        "cost": _costs(rows),
        "many candidates": _by_seed(
            [(f"{name}, k = {run['rerank']}", data, [run]) for name, data, [run] in _measured(rows, "many_candidates")],
            ("fine",),
        ),
        "zero-shot": _by_seed(_measured(rows, "zero_shot"), STAGES),
        "reranking": _rules(dev.get("reranking", [])),
        "dev": _trials(dev["runs"]),
    }


def written_into(document: str, made: Mapping[str, str]) -> str:
    """Return the document with each table where `<!-- flickr8k_synthetic: NAME -->` and `<!-- end -->` stand for it."""

    def fill(place: re.Match[str]) -> str:
        return f"{place[1]}\n\n{made[place[2]]}\n\n<!-- end -->"

    place = r"(<!-- flickr8k_synthetic: ([^\n]+?) -->)\n(?:(?!<!--).)*<!-- end -->"
    return re.sub(place, fill, document, flags=re.DOTALL)


def groups(records: Sequence[Record]) -> list[Group]:
    """Return the plan's rows that are on record, each with its seeds; behind them those of the rival."""
    named = [
        (row.title, _data(row.captions, row.noise), [record for _, record in runs])
        for row, runs in planned_rows(records).items()
    ]
    rival = [record for record in records if record["key"]["row"] in (HEARD, WRITTEN)]
    return named + [(_rival(record), _data(record["key"]["captions"], 0.0), [record]) for record in rival]


def _measured(rows: Sequence[Group], what: str) -> list[Group]:
    """Return the runs of which that was measured besides, each alone, with what was found."""
    return [(name, data, [{**run, **run[what]}]) for name, data, runs in rows for run in runs if what in run]


def _by_seed(rows: Sequence[Group], stages: Sequence[str]) -> str:
    """Return recalls of the stages, seed by seed."""
    lines = [
        [name, data, stage, *line]
        for name, data, runs in rows
        for stage in stages
        if f"{stage}/{NAMES[0]}" in runs[0]["recall"]
        for line in _seed_by_seed(runs, stage)
    ]
    return markdown_table(["row", "training captions", "stage", "seed", *_RECALLS], lines)


def _gains(gains: Sequence[Record]) -> str:
    rows = []
    for record in gains:
        row = run_of(record["row"])
        seeds = f"{len(record['seeds'])} over {len(record['seeds of that'])}"
        for stage in STAGES:
            if f"{stage}/{NAMES[0]}" in record["gain"]:
                cells = [row.title, _data(row.captions, row.noise), stage, record["over"], seeds]
                rows.append([*cells, *(_gain(record["gain"][f"{stage}/{name}"]) for name in NAMES)])
    return markdown_table(["row", "training captions", "stage", "over", "seeds", *_RECALLS], rows)


def _costs(rows: Sequence[Group]) -> str:
    """Return what each row's first seed took, for others may have been trained on another machine."""
    cells = []
    for name, data, runs in rows:
        first = runs[0]
        question = first.get("milliseconds_of_a_question", {})
        reached = [run["coarse_recall_at_k"] for run in runs if "rerank" in run]
        cells.append(
            [
                *(name, data, str(first["steps"])),
                f"{first['seconds_a_step']:.2f}",
                f"{first['seconds_of_training'] / 60:.0f}",
                ", ".join(str(run["best_step"]) for run in runs),
                *(f"{question[part]:.1f}" if part in question else "-" for part in ("hear", "rank", "match")),
                *(_percent(mean(of[direction] for of in reached)) if reached else "-" for direction in DIRECTIONS),
            ]
        )
    headers = ["row", "training captions", "steps", "seconds a step", "minutes of training", "best steps"]
    headers += ["ms to hear a question", "ms to rank", "ms to match k"]
    headers += [f"{DIRECTION_NAMES[direction]}, % among the k" for direction in DIRECTIONS]
    return markdown_table(headers, cells)


def _rules(models: Sequence[Record]) -> str:
    """Return what the candidates of each model are when they are ranked by each rule."""
    cells = []
    for record in models:
        run, weights = run_of(record["key"]), record["weights"]
        fitted = f"{weights['match']:.2f} match + {weights['similarity']:.2f} scaled similarity"
        for rule, found in record["rules"].items():
            name = fitted if rule == FITTED else rule
            recalls = [_percent(found[recall]) for recall in RECALLS]
            loss = f"{found['log_loss']:.2f}"
            cells.append([run.title, _data(run.captions, run.noise), str(run.seed), name, *recalls, loss])
    return markdown_table(["row", "training captions", "seed", "ranked by", *RECALLS, "loss among the k"], cells)


def _trials(explored: Sequence[Record]) -> str:
    """Return what was tried on dev, row by row, the budget that each had; recalls are means of both directions."""
    cells = []
    runs = [run_of(record["key"]) for record in explored]
    places = [*ROWS, HEARD, WRITTEN]
    for run, record in sorted(
        zip(runs, explored, strict=True), key=lambda trial: (places.index(trial[0].row), trial[0].changes)
    ):
        right = record["course"][-1].get("matching_accuracy")
        recalls = [[record["recall"].get(f"{stage}/mean/{name}") for name in RECALLS] for stage in STAGES]
        cells.append(
            [
                run.title if run.row in ROWS else run.row,
                _data(run.captions, run.noise),
                str(run.seed),
                *(" / ".join(_percent(recall[0]) for recall in found if recall) or "-" for found in recalls),
                "-" if right is None else _percent(right),
                record["machine"],
            ]
        )
    recall = " / ".join(RECALLS)
    headers = ["row", "training captions", "seed", f"coarse {recall}", f"fine {recall}", "matching right, %", "machine"]
    return markdown_table(headers, cells)


def _rival(record: Record) -> str:
    name: str = record["key"]["row"]
    wrong = record.get("word_error_rate")
    return name if wrong is None else f"{name}, {_percent(wrong)} % of the words wrong"


def _data(captions: int, noise: float) -> str:
    return f"{captions} an image" + (f", {noise:.0%} wrong" if noise else "")


def _seed_by_seed(runs: Sequence[Record], stage: str) -> Iterator[list[str]]:
    """Yield each seed with its bootstrap intervals; behind several, their mean with the lowest and the highest."""
    for run in runs:
        yield [str(run["key"]["seed"]), *(_with_interval(run["recall"][f"{stage}/{name}"]) for name in NAMES)]
    if len(runs) > 1:
        by_metric = [[run["recall"][f"{stage}/{name}"][0] for run in runs] for name in NAMES]
        spread = [f"{_percent(mean(v))} [{_percent(min(v))}-{_percent(max(v))}]" for v in by_metric]
        yield ["mean", *spread]


def _gain(difference: Sequence[float]) -> str:
    value, low, high, least, most = (f"{100 * number:+.1f}" for number in difference)
    return f"{value} ({low} to {high})" + (f" [{least} to {most}]" if least != most else "")


def _with_interval(recall: Sequence[float]) -> str:
    value, low, high = recall
    return f"{_percent(value)} ({_percent(low)}-{_percent(high)})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
