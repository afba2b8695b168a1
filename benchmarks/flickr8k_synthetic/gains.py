"""What each row gains over contrast only on the same questions, over the seeds of both; what its fine stage adds."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import product
from typing import Any

import numpy as np

from flickr8k_synthetic.measure import finished, put_figures_on_record, results_file
from flickr8k_synthetic.plan import FULL, OWN_BEST, Run, config_for, has_fine_stage, planned_rows
from saysee.evaluation.ablation import BASELINE
from saysee.evaluation.bootstrap import LEVEL, difference_draws, interval_of
from saysee.evaluation.metrics import RECALLS, FloatArray, summarize
from saysee.evaluation.results import DIRECTIONS, STAGES, Results, Stage, StageResult, read_results, with_mean


def measure_gains() -> None:
    """Put on record what the rows of the plan gain, by the ranks that lie beside the record."""
    records = finished("test")
    seeds = {row: [run for run, _ in runs] for row, runs in planned_rows(records).items()}
    results = {row: [_results(run, records) for run in runs] for row, runs in seeds.items()}
    gains = []
    for row, ours in results.items():
        named = {name: value for name, value in asdict(row).items() if name != "seed"}
        said: dict[str, Any] = {"row": named, "seeds": [run.seed for run in seeds[row]]}
        for what, baseline in baselines(row).items():
            if baseline in seeds:
                pairs = [*product(results[baseline], ours)]
                others = [run.seed for run in seeds[baseline]]
                gains.append({**said, "over": what, "seeds of that": others, "gain": gain(pairs)})
        if has_fine_stage(row):  # each seed by itself: what re-ranking adds to what it re-ranks
            alone = gain([*zip(ours, ours, strict=True)], stages=("fine",))
            gains.append({**said, "over": "its own coarse stage", "seeds of that": said["seeds"], "gain": alone})
    put_figures_on_record("test", "gains", gains)


def baselines(row: Run) -> dict[str, Run]:
    """Return what a row is held against, by its name: contrast only with the same steps.

    Rows with a fine stage also against contrast only at the better learning rate that it has on dev; and the full
    method in equal time.
    """
    baseline = Run(BASELINE, row.captions, noise=row.noise)
    best, longer = replace(baseline, changes=OWN_BEST), replace(baseline, equal_time=True)
    if row in (baseline, longer):
        return {}
    held = {"contrast only": baseline}
    held |= {best.title: best} if has_fine_stage(row) else {}
    return held | ({longer.title: longer} if row.row == FULL else {})


def gain(pairs: Sequence[tuple[Results, Results]], stages: Sequence[Stage] = STAGES) -> dict[str, list[float]]:
    """Return what the second results have above the coarse stage of the first.

    Args:
        pairs: a baseline and a row, for each pair of seeds; all of the same questions in the same order.
        stages: of the row.

    Returns:
        By metric five differences: of the means over the pairs; the ends of its paired interval over the pictures; and
        of all pairs the lowest and the highest, for the interval knows nothing of other seeds.
    """
    gains = {}
    for stage in stages:
        rankings = {direction: _rankings(pairs, stage, direction) for direction in DIRECTIONS}
        if not all(rankings.values()):
            continue
        values = with_mean({direction: _differences(found) for direction, found in rankings.items()})
        draws = with_mean({direction: _draws(found) for direction, found in rankings.items()})
        for where, name in product(values, RECALLS):
            found = values[where][name]
            interval = interval_of(float(found.mean()), draws[where][name], LEVEL)
            numbers = (interval.value, interval.low, interval.high, found.min(), found.max())
            gains[f"{stage}/{where}/{name}"] = [round(float(number), 4) for number in numbers]
    return gains


Pair = tuple[StageResult, StageResult]


def _rankings(pairs: Iterable[tuple[Results, Results]], stage: Stage, direction: str) -> list[Pair]:
    """Return the coarse ranking of each baseline with that of the row, if the row has that stage."""
    rankings = [(a.ranking("coarse", direction), b.ranking(stage, direction)) for a, b in pairs]
    found = [(a, b) for a, b in rankings if a and b]
    assert all(a.query_ids == b.query_ids for a, b in found)
    return found


def _differences(pairs: Sequence[Pair]) -> dict[str, FloatArray]:
    """Return each recall's difference, one for each pair of seeds."""
    measured = [(summarize(a.counts), summarize(b.counts)) for a, b in pairs]
    return {name: np.array([after[name] - before[name] for before, after in measured]) for name in RECALLS}


def _draws(pairs: Iterable[Pair]) -> dict[str, FloatArray]:
    """Return the draws of the mean over the pairs of seeds: all pairs get the same pictures in each draw."""
    drawn = [difference_draws(a.counts, b.counts, a.clusters) for a, b in pairs]
    return {name: np.mean([draws[name] for draws in drawn], axis=0) for name in RECALLS}


def _results(run: Run, records: Iterable[Mapping[str, Any]]) -> Results:
    config = config_for(run, records)
    assert config is not None  # it is on record
    return read_results(results_file(run, config))
