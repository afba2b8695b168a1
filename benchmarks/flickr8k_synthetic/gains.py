"""What each row gains over contrast only on the same questions, over the seeds of both."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import product
from typing import Any

import numpy as np

from flickr8k_synthetic.measure import finished, put_gains_on_record, results_file
from flickr8k_synthetic.plan import FULL, OWN_BEST, Run, config_for, planned_records
from saysee.evaluation.ablation import BASELINE
from saysee.evaluation.bootstrap import LEVEL, difference_draws, interval_of
from saysee.evaluation.metrics import RECALLS, FloatArray, recall_at
from saysee.evaluation.results import DIRECTIONS, STAGES, Results, Stage, StageResult, read_results, with_mean


def measure_gains() -> None:
    """Put on record what the rows of the plan gain, by the ranks that lie beside the record."""
    records = finished("test")
    seeds: dict[Run, list[Run]] = {}
    for run, _ in planned_records(records):
        seeds.setdefault(replace(run, seed=0), []).append(run)
    results = {row: [_results(run, records) for run in runs] for row, runs in seeds.items()}
    put_gains_on_record(
        [
            {
                "row": {name: value for name, value in asdict(row).items() if name != "seed"},
                "at equal": equal,
                "seeds": [run.seed for run in seeds[row]],
                "seeds of contrast": [run.seed for run in seeds[baseline]],
                "gain": gain(results[baseline], results[row]),
            }
            for row in seeds
            for equal, baseline in baselines(row).items()
            if baseline in seeds
        ]
    )


def baselines(row: Run) -> dict[str, Run]:
    """Return what a row is held against, by what is equal: the steps.

    The full method, for which the recipe is the best that was found on dev, also against contrast only at its own best
    there, and in equal time.
    """
    baseline = Run(BASELINE, row.captions, noise=row.noise)
    others = {"steps, own best": replace(baseline, changes=OWN_BEST), "time": replace(baseline, equal_time=True)}
    if row in (baseline, *others.values()):
        return {}
    return {"steps": baseline} | (others if row.row == FULL else {})


def gain(baseline: Sequence[Results], ours: Sequence[Results]) -> dict[str, list[float]]:
    """Return what a row has above contrast only.

    A fine stage is held against the coarse one of contrast only, which has no other.

    Args:
        baseline: of contrast only, a result for each seed, all of the same questions in the same order.
        ours: of the row.

    Returns:
        By metric five differences: of the means over the seeds; the ends of its paired interval over the pictures; and
        of all pairs of seeds the lowest and the highest, for the interval knows nothing of other seeds.
    """
    gains = {}
    for stage in STAGES:
        pairs = {direction: _pairs(baseline, ours, stage, direction) for direction in DIRECTIONS}
        if not all(pairs.values()):
            continue
        values = with_mean({direction: _differences(found) for direction, found in pairs.items()})
        draws = with_mean({direction: _draws(found) for direction, found in pairs.items()})
        for where, name in product(values, RECALLS):
            found = values[where][name]
            interval = interval_of(float(found.mean()), draws[where][name], LEVEL)
            numbers = (interval.value, interval.low, interval.high, found.min(), found.max())
            gains[f"{stage}/{where}/{name}"] = [round(float(number), 4) for number in numbers]
    return gains


Pair = tuple[StageResult, StageResult]


def _pairs(baseline: Iterable[Results], ours: Iterable[Results], stage: Stage, direction: str) -> list[Pair]:
    """Return each seed of contrast only with each seed of the row, if the row has that stage."""
    pairs = [(a.ranking("coarse", direction), b.ranking(stage, direction)) for a, b in product(baseline, ours)]
    found = [(a, b) for a, b in pairs if a and b]
    assert all(a.query_ids == b.query_ids for a, b in found)
    return found


def _differences(pairs: Sequence[Pair]) -> dict[str, FloatArray]:
    """Return each recall's difference, one for each pair of seeds."""
    return {
        name: np.array([recall_at(b.counts, k).mean() - recall_at(a.counts, k).mean() for a, b in pairs])
        for name, k in RECALLS.items()
    }


def _draws(pairs: Iterable[Pair]) -> dict[str, FloatArray]:
    """Return the draws of the mean over the pairs of seeds: all pairs get the same pictures in each draw."""
    drawn = [difference_draws(a.counts, b.counts, a.clusters) for a, b in pairs]
    return {name: np.mean([draws[name] for draws in drawn], axis=0) for name in RECALLS}


def _results(run: Run, records: Iterable[Mapping[str, Any]]) -> Results:
    config = config_for(run, records)
    assert config is not None  # it is on record
    return read_results(results_file(run, config))
