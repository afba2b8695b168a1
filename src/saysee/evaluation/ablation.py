"""The ablation: a recipe with its parts switched, the record of its runs, and the table over seeds.

The rows differ in `LossConfig` alone, and there in the switches of `ROWS`: optimiser, steps, temperature and the rule
for captions of one image are the recipe's own in all of them.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from saysee.config import Config, differences
from saysee.errors import SayseeError
from saysee.evaluation.metrics import RECALLS
from saysee.evaluation.report import DIRECTION_NAMES, markdown_table
from saysee.evaluation.results import STAGES
from saysee.files import write_text

BASELINE = "contrast"
ROWS: Mapping[str, Mapping[str, object]] = {
    "contrast": {"queue_size": 0, "image_negatives_from": "batch", "distillation_alpha": 0.0, "matching": False},
    "queue": {"distillation_alpha": 0.0, "matching": False},
    "distillation": {"queue_size": 0, "image_negatives_from": "batch", "matching": False},
    "matching-random": {
        "queue_size": 0,
        "image_negatives_from": "batch",
        "distillation_alpha": 0.0,
        "negatives": "random",
    },
    "matching-hard": {"queue_size": 0, "image_negatives_from": "batch", "distillation_alpha": 0.0},
    "all": {},
}
"""The switch matrix: by row, what of the recipe's `LossConfig` is changed. The choice of rows is ours.

Each part is added to `contrast` by itself; hard negatives stand in the place of random ones. Without a queue, negative
images can come from the batch alone.
"""

_FORMAT = 1


@dataclass(frozen=True)
class Run:
    """One row trained with one seed, and measured.

    Attributes:
        row: one of ROWS.
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
class Ablation:
    """The runs on record.

    Attributes:
        about: what all of them share, in plain JSON values: recipe, data, encoders, split.
        runs: each row and seed once.
    """

    about: dict[str, Any]
    runs: tuple[Run, ...] = ()

    def has(self, row: str, seed: int) -> bool:
        """Return whether that run is finished."""
        return any((run.row, run.seed) == (row, seed) for run in self.runs)

    def with_run(self, run: Run) -> "Ablation":
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
        row: one of ROWS.
        finished: seeds on record.
        missing: seeds that are not.
        seconds: of training.
        metrics: recalls by full name.
        differences: recalls by full name, this row minus BASELINE seed by seed, over the seeds that both have. The fine
            stage is compared with BASELINE's coarse one, which is all it has: the best that each can do.
    """

    row: str
    finished: tuple[int, ...]
    missing: tuple[int, ...]
    seconds: Spread | None
    metrics: dict[str, Spread]
    differences: dict[str, Spread]


def require_rows(rows: Sequence[str] | None) -> list[str]:
    """Return the rows that are asked for, each once and in the order of ROWS; None asks for all.

    Raises:
        SayseeError: there is no such row.
    """
    for row in rows or ():
        if row not in ROWS:
            raise SayseeError(f"there is no row {row!r} in the ablation; choose of: {', '.join(ROWS)}")
    return [row for row in ROWS if not rows or row in rows]


def config_of(config: Config, row: str, seed: int) -> Config:
    """Return the recipe with the row's parts switched and another seed; all else is the recipe's own.

    Raises:
        SayseeError: the recipe lacks a part that is to be switched, or chooses its model by the fine stage, which some
            rows do not have.
    """
    loss = config.loss
    for there, key, value, wanted in (
        (loss.queue_size > 0, "queue_size", loss.queue_size, "more than 0"),
        (loss.distillation_alpha > 0, "distillation_alpha", loss.distillation_alpha, "more than 0"),
        (loss.matching, "matching", loss.matching, "true"),
        (loss.negatives == "hard", "negatives", loss.negatives, "hard"),
    ):
        if not there:
            raise SayseeError(
                f"loss.{key} is {value}; an ablation starts from a recipe with all parts, so give {wanted}: the rows "
                "switch them off"
            )
    if config.training.primary_metric.startswith("fine/"):
        raise SayseeError(
            f"training.primary_metric is {config.training.primary_metric!r}, and rows without matching have no fine "
            "stage; choose all rows' models by one metric of the coarse stage, such as coarse/mean/R@1"
        )
    switches: Any = ROWS[row]
    return replace(config, loss=replace(loss, **switches), training=replace(config.training, seed=seed))


def read_ablation(path: Path, about: Mapping[str, Any]) -> Ablation:
    """Read the runs on record; where there is no file, none are.

    Args:
        path: of ablation.json.
        about: what runs made now would share.

    Raises:
        SayseeError: the file is damaged, of another format, or its runs were made of something else: named, with what
            stands there and here.
    """
    if not path.exists():
        return Ablation(dict(about))
    try:
        record = json.loads(path.read_bytes())
        version, there = record["saysee_ablation"], record["about"]
        runs = tuple(_run(run) for run in record["runs"]) if version == _FORMAT else ()
        changed = differences(there, about)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise SayseeError(f"{path} is damaged or no record of an ablation; give another folder (--out)") from None
    if version != _FORMAT:
        raise SayseeError(f"{path} has format {version} and this saysee reads {_FORMAT}; give another folder (--out)")
    if changed:
        raise SayseeError(
            f"{path} holds runs with another {', '.join(changed)}; one table is of one recipe, data and split, so "
            "give another folder (--out)"
        )
    return Ablation(there, runs)


def write_ablation(path: Path, ablation: Ablation, table: Iterable[RowSummary]) -> None:
    """Write the record and the table's figures as JSON, atomically."""
    record = {
        "saysee_ablation": _FORMAT,
        "about": ablation.about,
        "runs": [asdict(run) for run in ablation.runs],
        "table": [asdict(row) for row in table],
    }
    write_text(path, json.dumps(record, indent=2, allow_nan=False) + "\n")


def summarize(ablation: Ablation, rows: Sequence[str], seeds: Sequence[int]) -> list[RowSummary]:
    """Compute the table: rows and seeds that are on record, and those that are asked for and are not."""
    shown = [row for row in ROWS if row in rows or any(run.row == row for run in ablation.runs)]
    expected = sorted({*seeds, *(run.seed for run in ablation.runs)})
    baseline = {run.seed: run.metrics for run in ablation.runs if run.row == BASELINE}
    return [
        _summary(row, sorted((run for run in ablation.runs if run.row == row), key=_seed), expected, baseline)
        for row in shown
    ]


def to_markdown(ablation: Ablation, table: Sequence[RowSummary]) -> str:
    """Return the ablation as Markdown: a table for each direction and for the mean of both, and one of the training."""
    recalls = list(RECALLS)
    parts = ["# Ablation"]
    for direction, title in DIRECTION_NAMES.items():
        cells = []
        for row in table:
            stages: list[str] = [stage for stage in STAGES if f"{stage}/{direction}/{recalls[0]}" in row.metrics]
            for stage in stages or ["-"]:
                names = [f"{stage}/{direction}/{recall}" for recall in recalls]
                cells.append(
                    [row.row, stage, _seeds(row)]
                    + [_percent(row.metrics.get(name)) for name in names]
                    + [_percent(row.differences.get(name), "+") for name in names]
                )
        headers = ["row", "stage", "seeds", *recalls, *(f"{recall} - {BASELINE}" for recall in recalls)]
        parts += [f"## {title[0].upper()}{title[1:]}", markdown_table(headers, cells)]
    training = [
        [row.row, _seeds(row), ", ".join(map(str, row.missing)) or "-", _spread(row.seconds, ".0f")] for row in table
    ]
    headers = ["row", "seeds", "seeds missing", "seconds"]
    parts += ["## Training", markdown_table(headers, training), f"Measured on {ablation.about['split']}. {_NOTE}"]
    return "\n\n".join(parts) + "\n"


_NOTE = (
    "R@K in percent: the mean over the finished seeds and, in brackets, the lowest\n"
    f"and the highest; of one seed the spread is unknown. `- {BASELINE}`: the difference in\n"
    "points, seed by seed, over the seeds that both rows have; a fine stage is compared\n"
    f"with the coarse one of `{BASELINE}`. Seconds are of runs that were not interrupted."
)


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
            if gained and row != BASELINE:
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
