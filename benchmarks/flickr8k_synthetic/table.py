"""What stands in docs/results.md, made from the records: tables as Markdown, recall curves as SVG."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any
from xml.sax.saxutils import escape

from flickr8k_synthetic.measure import CURVE
from flickr8k_synthetic.plan import FULL, Run, planned_records
from flickr8k_synthetic.rival import HEARD, WRITTEN
from saysee.evaluation.ablation import BASELINE, ROWS
from saysee.evaluation.metrics import RECALLS
from saysee.evaluation.report import DIRECTION_NAMES, markdown_table
from saysee.evaluation.results import DIRECTIONS, STAGES

CURVES = Path("docs/flickr8k_synthetic.svg")
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
        [name, data, stage, str(len(runs)), *(_over_seeds(runs, f"{stage}/{metric}") for metric in NAMES)]
        for name, data, runs in rows
        for stage in STAGES
        if f"{stage}/{NAMES[0]}" in runs[0]["recall"]
    ]
    directions = [f"{DIRECTION_NAMES[direction]}, {recall}" for direction in DIRECTIONS for recall in RECALLS]
    parts = [markdown_table(["row", "training captions", "stage", "seeds", *directions], main)]
    parts += ["Gain over contrast only, in points, seed by seed", _gains(records)]
    parts += ["Cost", _costs(rows)]
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


def curves(records: Sequence[Record]) -> str:
    """Return recall against k as SVG, both directions side by side; the first seed of the rows that matter most."""
    shown = [
        (f"{name}, {stage}", run["curve"][f"{stage}/{direction}"], number)
        for number, direction in enumerate(DIRECTIONS)
        for name, data, runs in groups(records)
        for run in runs[:1]
        if data == _data(5, 0.0)
        for stage in STAGES
        if f"{stage}/{direction}" in run["curve"]
    ]
    labels = list(dict.fromkeys(label for label, _, _ in shown))
    height = _TOP + _SIDE + 40 + 18 * len(labels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * (_SIDE + _LEFT) + 20} {height}" '
        'font-family="sans-serif" font-size="12" fill="none">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for number, direction in enumerate(DIRECTIONS):
        left = _LEFT + number * (_SIDE + _LEFT)
        parts.append(
            f'<text x="{left}" y="{_TOP - 8}" fill="black">{DIRECTION_NAMES[direction]}, recall at k in %</text>'
        )
        for percent in range(0, 101, 20):
            y = _y(percent / 100)
            parts.append(f'<path d="M{left} {y:.1f}h{_SIDE}" stroke="#ddd"/>')
            parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end" fill="black">{percent}</text>')
        for place, k in enumerate(CURVE):
            parts.append(
                f'<text x="{_x(left, place):.1f}" y="{_TOP + _SIDE + 16}" text-anchor="middle" fill="black">{k}</text>'
            )
    for label, recalls, number in shown:
        left, colour = _LEFT + number * (_SIDE + _LEFT), _COLOURS[labels.index(label) % len(_COLOURS)]
        points = " ".join(f"{_x(left, place):.1f},{_y(recall):.1f}" for place, recall in enumerate(recalls))
        parts.append(f'<polyline points="{points}" stroke="{colour}" stroke-width="2"/>')
    for row, label in enumerate(labels):
        y, colour = _TOP + _SIDE + 42 + 18 * row, _COLOURS[row % len(_COLOURS)]
        parts.append(f'<path d="M{_LEFT} {y}h24" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{_LEFT + 32}" y="{y + 4}" fill="black">{escape(label)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


_LEFT, _TOP, _SIDE = 44, 28, 280
# told apart by people who see few colours [Okabe and Ito 2008]
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def _x(left: float, place: int) -> float:
    """Return where the place-th k stands: nearly a logarithmic scale, since each k is about twice the last."""
    return left + _SIDE * place / (len(CURVE) - 1)


def _y(recall: float) -> float:
    return _TOP + _SIDE * (1 - recall)


def _gains(records: Sequence[Record]) -> str:
    """Return each row minus the baseline of the same data and seed; a fine stage minus the baseline's coarse one."""
    planned = planned_records(records)
    recalls = {run: record["recall"] for run, record in planned}
    rows = []
    for run, record in planned:
        baseline = Run(BASELINE, run.captions, run.seed, run.noise)
        longer = replace(baseline, equal_time=True)
        if run in (baseline, longer):
            continue
        against = {"equal steps": baseline} | ({"equal time": longer} if run.row == FULL else {})
        for stage in STAGES:
            for what, other in against.items():
                if other not in recalls or f"{stage}/{NAMES[0]}" not in record["recall"]:
                    continue
                points = [
                    record["recall"][f"{stage}/{name}"][0] - recalls[other][f"coarse/{name}"][0] for name in NAMES
                ]
                cells = [run.title, _data(run.captions, run.noise), stage, str(run.seed), what]
                rows.append([*cells, *(f"{100 * value:+.1f}" for value in points)])
    return markdown_table(["row", "captions", "stage", "seed", "against", *NAMES], rows)


def _costs(rows: Sequence[Group]) -> str:
    cells = []
    for name, data, runs in rows:
        question = runs[0].get("milliseconds_of_a_question", {})
        cells.append(
            [
                *(name, data, str(runs[0]["steps"])),
                f"{mean(run['seconds_a_step'] for run in runs):.2f}",
                f"{mean(run['seconds_of_training'] for run in runs) / 60:.0f}",
                ", ".join(str(run["best_step"]) for run in runs),
                *(f"{question[part]:.1f}" if part in question else "-" for part in ("hear", "rank", "match")),
            ]
        )
    headers = ["row", "training captions", "steps", "seconds a step", "minutes of training", "best steps"]
    return markdown_table([*headers, "ms to hear a question", "ms to rank", "ms to match k"], cells)


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


def _over_seeds(runs: Sequence[Record], metric: str) -> str:
    """Return the mean over seeds with the lowest and the highest; of one seed its value and bootstrap interval."""
    if len(runs) == 1:
        return _with_interval(runs[0]["recall"][metric])
    values = [run["recall"][metric][0] for run in runs]
    return f"{_percent(mean(values))} [{_percent(min(values))}-{_percent(max(values))}]"


def _with_interval(recall: Sequence[float]) -> str:
    value, low, high = recall
    return f"{_percent(value)} ({_percent(low)}-{_percent(high)})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
