"""What is trained: the list of runs, and the configuration of each.

The rows are those of `saysee ablate`: one recipe with its parts switched, and in all of them the same features,
optimiser, temperature rule, same-image rule and steps. The recipes lie beside this file.

The sizes are chosen so that everything fits nine hours of two cores. Parts measured on one core of an EPYC (Zen 5, MKL
with AVX-512, 250 GFLOP/s in a float32 matrix product; the other core had other work), in hours of one core; on the
slower EPYC of the first runs they took three times as long:

| part | each | hours |
|---|---|---|
| speaking 40,000 captions | 0.03 s | 0.3 |
| features of 40,000 recordings of 3.2 s and 8,000 photographs | 0.05 s, 0.03 s | 0.6 |
| contrast, queue, distillation: 11 runs | 0.11 s a step of 64 pairs | 0.6 |
| contrast in equal time | | 0.2 |
| with drawn negatives: 7 runs | 0.48 s a step | 1.6 |
| with the whole batch as a list: 3 runs | 0.24 s a step | 0.3 |
| dev, coarse, 9 times a run; test, fine, k = 32 once a run and 128 once | 8 s; 2 or 5, and 16 min | 1.3 |
| rival: 5,000 transcripts and two heads | | 0.6 |
| together, three hours of two cores | | 5.5 |
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from saysee.config import Config, load_config
from saysee.evaluation.ablation import BASELINE, ROWS, config_of

FULL = "all"
LISTED = ("loss.matching_loss=list", "model.multimodal_layers=1")
"""SIM over the whole batch (ours), with the one layer that makes it cost less than the drawn pairs do with two."""
COMPARED: tuple[tuple[str, tuple[str, ...]], ...] = ((BASELINE, ()), (FULL, ()), ("matching-hard", LISTED))
"""The rows that matter most, with their changes: the first, the last, and what beat the last on dev."""
OWN_BEST = ("training.learning_rate=0.001",)
"""With which contrast only was best on dev by the metric that chooses a checkpoint, of two dropouts and two learning
rates; the recipe's is best for contrast only and full method together."""
RECIPES = {2: Path(__file__).with_name("two_captions.yaml"), 5: Path(__file__).with_name("five_captions.yaml")}
"""By how many captions a training image has."""

_TITLES = {
    "contrast": "contrast only",
    "queue": "+ queue and momentum",
    "distillation": "+ distillation and momentum",
    "matching-random": "+ matching, random negatives",
    "matching-hard": "+ matching, hard negatives",
    "all": "full method",
}
"""Queue and distillation bring the momentum encoder with them; a list draws no negatives."""


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        row: of the ablation.
        captions: of each training image.
        seed: of the training.
        noise: share of the training images that are permuted among themselves.
        equal_time: whether it has as many more steps as take the time of the full method.
        changes: of the row's configuration, as `training.steps=3000`: tried on dev, or a row of its own.
    """

    row: str
    captions: int = 2
    seed: int = 0
    noise: float = 0.0
    equal_time: bool = False
    changes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """What its row of a table is called; the data has a column of its own."""
        listed = set(LISTED) <= set(self.changes)
        changes = [change for change in self.changes if not listed or change not in LISTED]
        name = "+ matching" if listed and self.row == "matching-hard" else _TITLES[self.row]
        said = [change.partition(".")[2].replace("_", " ").replace("=", " ") for change in changes]
        return ", ".join([name, *(["list"] if listed else []), *(["equal time"] if self.equal_time else []), *said])

    @property
    def name(self) -> str:
        """What its folder is called, but for what tells its configuration from others."""
        parts = [self.row, f"{self.captions}captions", f"seed{self.seed}"]
        parts += [f"noise{self.noise:g}"] if self.noise else []
        parts += ["equal-time"] if self.equal_time else []
        return "-".join(parts)


def plan() -> list[Run]:
    """Return all runs, those first that say most."""
    compared = [Run(row, changes=changes) for row, changes in COMPARED]
    runs = [*compared, Run(BASELINE, equal_time=True), Run(BASELINE, captions=5), Run(FULL, captions=5)]
    runs += [Run(row, noise=0.4) for row in (BASELINE, FULL, "distillation")]
    runs += [Run(row) for row in ROWS if row not in (BASELINE, FULL)]
    runs += [best := Run(BASELINE, changes=OWN_BEST)]
    return runs + [replace(run, seed=seed) for seed in (1, 2) for run in (*compared, best)]


def has_fine_stage(row: Run) -> bool:
    """Return whether a row of the ablation matches."""
    return bool(ROWS[row.row].get("matching", True))


def config_for(run: Run, records: Iterable[Mapping[str, Any]]) -> Config | None:
    """Return the configuration of a run, or None where its steps follow from runs that are not on record yet.

    Args:
        run: of the plan, or explored.
        records: of finished runs, whose time a step is measured.

    Raises:
        SayseeError: a change that is not allowed.
    """
    config = _configuration(RECIPES[run.captions], run.row, run.seed, run.changes)
    if not run.equal_time:
        return config
    seconds = {}
    for row in (BASELINE, FULL):
        measured = replace(run, row=row, equal_time=False)
        record = record_of(measured, config_for(measured, ()), records)
        if record is None:
            return None
        seconds[row] = record["seconds_a_step"]
    steps = round(config.training.steps * seconds[FULL] / seconds[BASELINE])
    return replace(config, training=replace(config.training, steps=steps))


def trained_by(run: Run, config: Config) -> Config:
    """Return the configuration that a run's model is trained by: its own, but for how it is searched with."""
    return replace(config, search=load_config(str(RECIPES[run.captions])).search)


def key_of(run: Run, config: Config) -> dict[str, Any]:
    """Return what tells a run's record from all others, in plain JSON values."""
    # what an equal time comes to differs from machine to machine
    digest = recipe_digest(config, with_steps=not run.equal_time)
    return {**asdict(run), "changes": list(run.changes), "recipe": digest}


def recipe_digest(config: Config, *, with_steps: bool = True) -> str:
    """Return a hash of what in a configuration is not the default, so that an option that is added changes none.

    Backbones count with all that they say: their defaults are other encoders.
    """
    defaults = Config().to_dict()
    recipe = {
        section: {name: value for name, value in values.items() if value != defaults[section][name]}
        for section, values in config.to_dict().items()
    }
    if not with_steps:
        recipe["training"].pop("steps", None)
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]


def record_of(run: Run, config: Config | None, records: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the record of a run that was made by this very configuration, if there is one."""
    if config is None:
        return None
    key = key_of(run, config)
    return next((record for record in records if record["key"] == key), None)


def planned_records(records: Sequence[Mapping[str, Any]]) -> list[tuple[Run, Mapping[str, Any]]]:
    """Return the runs of the plan that are on record, in its order."""
    found = ((run, record_of(run, config_for(run, records), records)) for run in plan())
    return [(run, record) for run, record in found if record is not None]


def planned_rows(records: Sequence[Mapping[str, Any]]) -> dict[Run, list[tuple[Run, Mapping[str, Any]]]]:
    """Return the rows of the plan that are on record, each with the runs of its seeds; a row is its run of seed 0."""
    rows: dict[Run, list[tuple[Run, Mapping[str, Any]]]] = {}
    for run, record in planned_records(records):
        rows.setdefault(replace(run, seed=0), []).append((run, record))
    return rows


def run_of(said: Mapping[str, Any]) -> Run:
    """Return the run that a record's JSON speaks of: its key, or the row of a gain."""
    values = {name: value for name, value in said.items() if name != "recipe"}
    return Run(**{**values, "changes": tuple(values["changes"])})


@cache
def _configuration(path: Path, row: str, seed: int, changes: tuple[str, ...]) -> Config:
    """Read a recipe, switch a row's parts, then change it; once, for that takes longer than to look up a record."""
    switched = config_of(load_config(str(path)), row, seed)
    return Config.from_dict(switched.to_dict(), [f"--{change}" for change in changes]) if changes else switched
