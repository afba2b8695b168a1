"""Many runs in one table: the record of each row and seed, and what the seeds of a row say together.

A table is of one corpus and split. Its rows are what is compared: a recipe with its parts switched (`ablation`), or
several recipes.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any, Literal

from saysee.config import differences
from saysee.errors import SayseeError
from saysee.evaluation.metrics import RECALLS
from saysee.evaluation.report import DIRECTION_NAMES, markdown_table
from saysee.evaluation.results import STAGES
from saysee.files import write_text

Kind = Literal["ablation", "table"]

_FORMAT = 1


@dataclass(frozen=True)
class Run:
    """One row trained with one seed, and measured.

    Attributes:
        row: its name.
        seed: of the training.
        seconds: that training took; None for a run that was interrupted, whose first part nobody timed.
        best_step: the step whose model was measured.
        dev: its primary metric on dev.
        metrics: by full name, as in results.json.
    """

    row: str
    seed: int
    seconds: float | None
    best_step: int
    dev: float
    metrics: dict[str, float]


@dataclass(frozen=True)
class Record:
    """The runs on record.

    Attributes:
        about: what all of them share, in plain JSON values: data and split, and what else there is.
        rows: by name and in the table's order, what each row is made of, in plain JSON values.
        runs: each row and seed once.
    """

    about: dict[str, Any]
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: tuple[Run, ...] = ()

    def run(self, row: str, seed: int) -> Run | None:
        """Return that run, if it is finished."""
        return next((run for run in self.runs if (run.row, run.seed) == (row, seed)), None)

    def with_run(self, run: Run) -> "Record":
        """Return the record with one run more; one of the same row and seed gives way to it."""
        others = [other for other in self.runs if (other.row, other.seed) != (run.row, run.seed)]
        return replace(self, runs=(*others, run))


@dataclass(frozen=True)
class Spread:
    """A figure over seeds.

    Attributes:
        mean: over the seeds.
        lowest: of a seed; None where there is one seed alone: how far seeds spread is then unknown, not 0.
        highest: the same.
        seeds: how many there are.
    """

    mean: float
    lowest: float | None
    highest: float | None
    seeds: int


@dataclass(frozen=True)
class RowSummary:
    """One row of the table.

    Attributes:
        row: its name.
        finished: seeds on record.
        missing: seeds that are not.
        seconds: of training.
        metrics: recalls by full name.
        differences: recalls by full name, this row minus the baseline seed by seed, over the seeds that both have. The
            fine stage is compared with the coarse one of a baseline that has no other: the best that each can do.
    """

    row: str
    finished: tuple[int, ...]
    missing: tuple[int, ...]
    seconds: Spread | None
    metrics: dict[str, Spread]
    differences: dict[str, Spread]


def read_record(path: Path, kind: Kind, about: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> Record:
    """Read the runs on record; where there is no file, none are.

    Args:
        path: of the JSON file.
        kind: what wrote it.
        about: what runs made now would share, or as much of it as is known yet.
        rows: what rows run now are made of. Others on record stay, behind these.

    Raises:
        SayseeError: the file is damaged, of another format, or its runs were made of something else: named, with what
            stands there and here.
    """
    here = {row: dict(made_of) for row, made_of in rows.items()}
    if not path.exists():
        return Record(dict(about), here)
    try:
        record = json.loads(path.read_bytes())
        version, about_there = record[f"saysee_{kind}"], dict(record["about"])
        rows_there: dict[str, dict[str, Any]] = dict(record.get("rows", {}))
        runs = tuple(_run(run) for run in record["runs"]) if version == _FORMAT else ()
        changed = _changes(about_there, about)
        for row in (row for row in here if row in rows_there):
            changed += _changes(rows_there[row], here[row], f"{row}.")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise SayseeError(f"{path} is damaged or no record of {_ARTICLE[kind]}; give another folder (--out)") from None
    if version != _FORMAT:
        raise SayseeError(f"{path} has format {version} and this saysee reads {_FORMAT}; give another folder (--out)")
    if changed:
        raise SayseeError(
            f"{path} holds runs with another {', '.join(changed)}; one table is of one data and split, and a row of "
            "one recipe, so give another folder (--out)"
        )
    others = {row: made_of for row, made_of in rows_there.items() if row not in here}
    return Record(about_there, {**here, **others}, runs)


def write_record(path: Path, kind: Kind, record: Record, table: Iterable[RowSummary]) -> None:
    """Write the record and the table's figures as JSON, atomically."""
    content = {
        f"saysee_{kind}": _FORMAT,
        "about": record.about,
        "rows": record.rows,
        "runs": [asdict(run) for run in record.runs],
        "table": [asdict(row) for row in table],
    }
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def summarize(
    record: Record, rows: Sequence[str], seeds: Sequence[int], baseline: str | None = None
) -> list[RowSummary]:
    """Compute the table: rows and seeds that are on record, and those that are asked for and are not.

    Args:
        record: in whose order the rows come.
        rows: that are asked for.
        seeds: that are asked for.
        baseline: the row that the others are compared with.
    """
    shown = [row for row in record.rows if row in rows or any(run.row == row for run in record.runs)]
    expected = sorted({*seeds, *(run.seed for run in record.runs)})
    beside = {run.seed: run.metrics for run in record.runs if run.row == baseline}
    summaries = []
    for row in shown:
        runs = sorted((run for run in record.runs if run.row == row), key=_seed)
        summaries.append(_summary(row, runs, expected, beside if row != baseline else {}))
    return summaries


def to_markdown(title: str, record: Record, table: Sequence[RowSummary], baseline: str | None = None) -> str:
    """Return the table as Markdown: one for each direction and for the mean of both, and one of the training."""
    recalls = list(RECALLS)
    parts = [f"# {title}"]
    for direction, name in DIRECTION_NAMES.items():
        cells = []
        for row in table:
            stages: list[str] = [stage for stage in STAGES if f"{stage}/{direction}/{recalls[0]}" in row.metrics]
            for stage in stages or ["-"]:
                names = [f"{stage}/{direction}/{recall}" for recall in recalls]
                cells.append([row.row, stage, _seeds(row), *(_percent(row.metrics.get(name)) for name in names)])
                if baseline is not None:
                    cells[-1] += [_percent(row.differences.get(name), "+") for name in names]
        headers = ["row", "stage", "seeds", *recalls]
        if baseline is not None:
            headers += [f"{recall} - {baseline}" for recall in recalls]
        parts += [f"## {name[0].upper()}{name[1:]}", markdown_table(headers, cells)]
    training = [
        [row.row, _seeds(row), ", ".join(map(str, row.missing)) or "-", _spread(row.seconds, ".0f")] for row in table
    ]
    headers = ["row", "seeds", "seeds missing", "seconds"]
    note = _NOTE + (_NOTE_OF_BASELINE.format(baseline) if baseline is not None else "")
    parts += ["## Training", markdown_table(headers, training), f"Measured on {record.about['split']}. {note}"]
    return "\n\n".join(parts) + "\n"


_ARTICLE: dict[Kind, str] = {"ablation": "an ablation", "table": "a table"}
_NOTE = (
    "R@K in percent: the mean over the finished seeds and, in brackets, the lowest\n"
    "and the highest; of one seed the spread is unknown. Seconds are of runs that were not interrupted."
)
_NOTE_OF_BASELINE = (
    "\n`- {0}`: the difference in points, seed by seed, over the seeds that both rows have;\n"
    "a fine stage is compared with the coarse one of `{0}`."
)


def _changes(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Say what of `here` stands there otherwise; what is not known here is not compared."""
    return differences({name: there.get(name) for name in here}, here, prefix)


def _summary(
    row: str, runs: Sequence[Run], expected: Sequence[int], baseline: Mapping[int, Mapping[str, float]]
) -> RowSummary:
    finished = tuple(run.seed for run in runs)
    metrics, gains = {}, {}
    for stage in STAGES:
        for name in (f"{stage}/{direction}/{recall}" for direction in DIRECTION_NAMES for recall in RECALLS):
            values = {run.seed: run.metrics[name] for run in runs if name in run.metrics}
            if not values:
                continue
            metrics[name] = _over_seeds(values.values())
            beside = name.replace("fine/", "coarse/")
            gained = [value - baseline[seed][beside] for seed, value in values.items() if seed in baseline]
            if gained:
                gains[name] = _over_seeds(gained)
    timed = [run.seconds for run in runs if run.seconds is not None]
    return RowSummary(
        row,
        finished,
        tuple(seed for seed in expected if seed not in finished),
        _over_seeds(timed) if timed else None,
        metrics,
        gains,
    )


def _over_seeds(values: Iterable[float]) -> Spread:
    known = list(values)
    several = len(known) > 1
    return Spread(mean(known), min(known) if several else None, max(known) if several else None, len(known))


def _run(record: Mapping[str, Any]) -> Run:
    seconds = record["seconds"]
    return Run(
        str(record["row"]),
        int(record["seed"]),
        None if seconds is None else float(seconds),
        int(record["best_step"]),
        float(record["dev"]),
        {str(name): float(value) for name, value in record["metrics"].items()},
    )


def _seeds(row: RowSummary) -> str:
    count = len(row.finished)
    return f"{count} of {count + len(row.missing)}" if row.missing else str(count)


def _percent(recall: Spread | None, sign: str = "") -> str:
    if recall is None:
        return "-"
    low, high = (None if value is None else 100 * value for value in (recall.lowest, recall.highest))
    return _spread(Spread(100 * recall.mean, low, high, recall.seeds), f"{sign}.1f")


def _spread(figure: Spread | None, form: str) -> str:
    if figure is None:
        return "-"
    if figure.lowest is None or figure.highest is None:
        return f"{figure.mean:{form}} [unknown]"
    return f"{figure.mean:{form}} [{figure.lowest:{form}} to {figure.highest:{form}}]"


def _seed(run: Run) -> int:
    return run.seed
