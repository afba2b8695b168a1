"""What each run gains over contrast only on the same questions."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flickr8k_synthetic.measure import finished, put_on_record, results_file
from flickr8k_synthetic.plan import FULL, Run, config_for, planned_records
from saysee.evaluation.ablation import BASELINE
from saysee.evaluation.compare import compare
from saysee.evaluation.metrics import RECALLS
from saysee.evaluation.results import read_results


def measure_gains() -> None:
    """Put on record what the runs of the plan gain, as far as their results on test lie here."""
    records = finished("test")
    planned = dict(planned_records(records))
    for run, record in planned.items():
        known = record.get("gain", {})
        ours = _results(run, records)
        files = {what: _results(other, records) for what, other in baselines(run).items() if other in planned}
        gains = {
            what: gain(baseline, ours)
            for what, baseline in files.items()
            if what not in known and baseline.exists() and ours.exists()
        }
        if gains:
            put_on_record("test", {"key": record["key"], "gain": {**known, **gains}})


def baselines(run: Run) -> dict[str, Run]:
    """Return what a run is held against, by what is equal: the steps, and for the full method the time too."""
    baseline = Run(BASELINE, run.captions, run.seed, run.noise)
    longer = replace(baseline, equal_time=True)
    if run in (baseline, longer):
        return {}
    return {"equal steps": baseline} | ({"equal time": longer} if run.row == FULL else {})


def gain(baseline: Path, ours: Path) -> dict[str, list[float]]:
    """Return what the second results have above the first: each recall's difference with its paired interval.

    A fine stage is held against the coarse one of the baseline, which has no other.
    """
    rows = compare(read_results(baseline), read_results(ours)).rows
    return {
        f"{row.stage_b}/{row.direction}/{row.metric}": [
            round(value, 4) for value in (row.difference.value, row.difference.low, row.difference.high)
        ]
        for row in rows
        if row.metric in RECALLS
    }


def _results(run: Run, records: Iterable[Mapping[str, Any]]) -> Path:
    config = config_for(run, records)
    assert config is not None  # it is on record
    return results_file(run, config, "test")
