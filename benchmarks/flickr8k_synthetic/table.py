"""The tables from which those of docs/results.md are made, as Markdown, from the records alone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import mean
from typing import Any

from flickr8k_synthetic.plan import Run, planned_records
from flickr8k_synthetic.rival import HEARD, WRITTEN
from saysee.evaluation.ablation import ROWS
from saysee.evaluation.metrics import RECALLS
from saysee.evaluation.report import DIRECTION_NAMES, markdown_table
from saysee.evaluation.results import DIRECTIONS, STAGES

NAMES = [f"{direction}/{recall}" for direction in DIRECTIONS for recall in RECALLS]

Record = Mapping[str, Any]
Group = tuple[str, str, list[Record]]
"""How a row is called, which data it had, and the records of its seeds."""


def table(records: Sequence[Record], explored: Sequence[Record]) -> str:
    """Return all tables as Markdown.

    Args:
        records: read on test.
        explored: read on dev.
    """
    rows = groups(records)
    main = [
        [name, data, stage, *line]
        for name, data, runs in rows
        for stage in STAGES
        if f"{stage}/{NAMES[0]}" in runs[0]["recall"]
        for line in _seed_by_seed(runs, stage)
    ]
    directions = [f"{DIRECTION_NAMES[direction]}, {recall}" for direction in DIRECTIONS for recall in RECALLS]
    parts = [markdown_table(["row", "training captions", "stage", "seed", *directions], main)]
    parts += ["Gain over contrast only, in points, with paired intervals; a fine stage over a coarse one"]
    parts += [_gains(records)]
    parts += ["Cost; how often the right one is among the k that are matched", _costs(rows)]
    many = [run["many_candidates"] for _, _, runs in rows for run in runs if "many_candidates" in run]
    for measured in many:
        cells = [_with_interval(measured["recall"][f"fine/{metric}"]) for metric in NAMES]
        parts += [f"The fine stage with k = {measured['rerank']}", markdown_table(directions, [cells])]
    asked = [
        [name, data, stage, str(run["key"]["seed"]), *(_with_interval(recall[f"{stage}/{metric}"]) for metric in NAMES)]
        for name, data, runs in rows
        for run in runs
        if (recall := run.get("zero_shot", {}).get("recall"))
        for stage in STAGES
        if f"{stage}/{NAMES[0]}" in recall
    ]
    if asked:
        parts += [
            "Zero-shot on picture-words",
            markdown_table(["row", "captions", "stage", "seed", *directions], asked),
        ]
    parts += [f"Word error rate of the recogniser: {_percent(run['word_error_rate'])} %" for run in _heard(records)[:1]]
    if explored:
        parts += ["Tried on dev", _trials(explored)]
    return "\n\n".join(parts)


def groups(records: Sequence[Record]) -> list[Group]:
    """Return the plan's rows that are on record, each with its seeds; behind them those of the rival."""
    found: dict[Run, list[Record]] = {}
    for run, record in planned_records(records):
        found.setdefault(replace(run, seed=0), []).append(record)
    named = [(run.title, _data(run.captions, run.noise), runs) for run, runs in found.items()]
    rival = [record for record in records if record["key"]["row"] in (HEARD, WRITTEN)]
    return named + [(record["key"]["row"], _data(record["key"]["captions"], 0.0), [record]) for record in rival]


def _gains(records: Sequence[Record]) -> str:
    rows = []
    for run, record in planned_records(records):
        for what, gains in record.get("gain", {}).items():
            for stage in STAGES:
                if f"{stage}/{NAMES[0]}" in gains:
                    cells = [run.title, _data(run.captions, run.noise), stage, str(run.seed), what]
                    rows.append([*cells, *(_gain(gains[f"{stage}/{name}"]) for name in NAMES)])
    return markdown_table(["row", "captions", "stage", "seed", "at equal", *NAMES], rows)


def _costs(rows: Sequence[Group]) -> str:
    cells = []
    for name, data, runs in rows:
        question = runs[0].get("milliseconds_of_a_question", {})
        reached = runs[0]["coarse_recall_at_k"] if "rerank" in runs[0] else {}
        cells.append(
            [
                *(name, data, str(runs[0]["steps"])),
                f"{mean(run['seconds_a_step'] for run in runs):.2f}",
                f"{mean(run['seconds_of_training'] for run in runs) / 60:.0f}",
                ", ".join(str(run["best_step"]) for run in runs),
                *(f"{question[part]:.1f}" if part in question else "-" for part in ("hear", "rank", "match")),
                *(_percent(reached[direction]) if direction in reached else "-" for direction in DIRECTIONS),
            ]
        )
    headers = ["row", "training captions", "steps", "seconds a step", "minutes of training", "best steps"]
    headers += ["ms to hear a question", "ms to rank", "ms to match k"]
    headers += [f"{DIRECTION_NAMES[direction]}, % among the k" for direction in DIRECTIONS]
    return markdown_table(headers, cells)


def _trials(explored: Sequence[Record]) -> str:
    """Return what was tried on dev, row by row, the budget that each had; recalls are means of both directions."""
    shown = [f"{stage}/mean/{recall}" for stage in STAGES for recall in RECALLS]
    cells = []
    for record in sorted(explored, key=lambda record: [*ROWS, HEARD, WRITTEN].index(record["key"]["row"])):
        key, recall = record["key"], record["recall"]
        right = record["course"][-1].get("matching_accuracy")
        cells.append(
            [
                *(key["row"], _data(key["captions"], key["noise"]), str(key["seed"])),
                " ".join(key["changes"]) or "the recipe",
                *(_with_interval(recall[name]) if name in recall else "-" for name in shown),
                "-" if right is None else _percent(right),
                record["machine"],
            ]
        )
    return markdown_table(["row", "captions", "seed", "tried", *shown, "matching right", "machine"], cells)


def _heard(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if "word_error_rate" in record]


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
    value, low, high = (f"{100 * number:+.1f}" for number in difference)
    return f"{value} ({low} to {high})"


def _with_interval(recall: Sequence[float]) -> str:
    value, low, high = recall
    return f"{_percent(value)} ({_percent(low)}-{_percent(high)})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
