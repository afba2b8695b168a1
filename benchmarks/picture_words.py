"""Contrast-only beside the full method on picture-words: drawings of words, human voices in nine languages.

    python benchmarks/picture_words.py dev PICTURE_WORDS     # the dev budget: every candidate, one seed
    python benchmarks/picture_words.py test PICTURE_WORDS    # the committed recipes, three seeds, two splits
    python benchmarks/picture_words.py table                 # the Markdown of docs/results.md, from the records

Two splits (`picture_words_data`). `voice`: the test speaker's drawings were seen, the voice was not. `drawing`: a tenth
of the drawings is held out for dev and a tenth for test; the voices were heard.

`dev` trains the same number of candidates of each row on the `voice` split and measures them on dev, never on test;
what it found is in the recipes `picture_words` and `picture_words_contrast`. `test` reads test once for each run:
a finished run is a record in `results/picture_words.json` that is skipped next time.
"""

import argparse
import itertools
import json
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from picture_words_data import DEV_SPEAKERS, by_drawing, by_voice
from record import RESULTS, commit, keep
from saysee.config import Config, load_config
from saysee.data.manifest import Manifest
from saysee.evaluation.results import write_results
from saysee.models.retrieval_model import SpeechImageModel
from saysee.workflows import evaluate_on_manifest, train_on_manifest

ROWS = {"contrast only": "picture_words_contrast", "full method": "picture_words"}
SPLITS = ("voice", "drawing")
SEEDS = (0, 1, 2)
RUNS = Path("runs/picture_words")

# the dev budget: as many candidates for each row
CANDIDATES: dict[str, list[list[str]]] = {
    "contrast only": [
        ["--training.learning_rate", "0.0005"],
        ["--training.learning_rate", "0.001"],
    ],
    "full method": [
        ["--training.learning_rate", "0.0005"],
        ["--training.learning_rate", "0.001"],
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = parser.add_subparsers(dest="stage", required=True)
    for stage, run in (("dev", run_dev), ("test", run_test)):
        command = stages.add_parser(stage)
        command.add_argument("picture_words", type=Path)
        command.add_argument("--only", help="for programs side by side: a split, a row, row:split, row:candidate")
        command.set_defaults(run=run)
    stages.add_parser("table")
    options = parser.parse_args()
    if options.stage == "table":
        print(table(runs_of("picture_words")))
    else:
        options.run(options.picture_words, options.only)


def run_dev(folder: Path, only: str | None) -> None:
    """Measure every candidate on the dev speaker."""
    manifest = by_voice(folder)
    for row, candidates in CANDIDATES.items():
        for number, overrides in enumerate(candidates):
            if only in (None, f"{row}:{number}") and not recorded("picture_words_dev", row=row, overrides=overrides):
                out = RUNS / f"dev-{ROWS[row]}-{number}"
                seconds = train(load_config(ROWS[row], overrides), manifest, out)
                metrics = evaluate_on_manifest(SpeechImageModel.from_pretrained(out), manifest, "dev").metrics()
                record = {"row": row, "overrides": overrides, "seconds": seconds, "dev": rounded(metrics)}
                data = f"picture-words by human voices, measured on the dev speakers {', '.join(DEV_SPEAKERS)}"
                add("picture_words_dev", record, data, seed=0)


def run_test(folder: Path, only: str | None) -> None:
    """Train and measure what is not recorded yet."""
    for seed, split, (row, recipe) in itertools.product(SEEDS, SPLITS, ROWS.items()):
        if only not in (None, split, row, f"{row}:{split}") or recorded(
            "picture_words", split=split, row=row, seed=seed
        ):
            continue
        manifest = by_voice(folder) if split == "voice" else by_drawing(folder)
        out = RUNS / f"{split}-{recipe}-{seed}"
        seconds = train(load_config(recipe, ["--training.seed", str(seed)]), manifest, out)
        model = SpeechImageModel.from_pretrained(out)
        results = evaluate_on_manifest(model, manifest, "test", about={"data": f"picture-words, {split}"})
        write_results(out / "results.json", results)
        record = {
            "split": split,
            "row": row,
            "seed": seed,
            "commit": commit(),
            "seconds": seconds,
            "images": results.about["images"],
            "captions": results.about["captions"],
            "coarse_recall_at_k": rounded(results.coarse_recall_at_k),
            "metrics": rounded(results.metrics()),
        }
        add("picture_words", record, "picture-words by human voices (Art4Apps, GCompris)", seed=list(SEEDS))


def runs_of(name: str) -> list[dict[str, Any]]:
    """Return the finished runs on record."""
    path = RESULTS / f"{name}.json"
    runs: list[dict[str, Any]] = json.loads(path.read_text())["figures"]["runs"] if path.exists() else []
    return runs


def recorded(name: str, **key: object) -> bool:
    """Say whether a run is on record."""
    return any(all(run[field] == value for field, value in key.items()) for run in runs_of(name))


def add(name: str, record: dict[str, Any], data: str, seed: int | list[int]) -> None:
    """Put a run on record; read again just before, since two programs may share the work by `--only`."""
    keep(name, data=data, seed=seed, figures={"runs": [*runs_of(name), record]})


def train(config: Config, manifest: Manifest, out: Path) -> float:
    """Train into `out` and return the seconds it took, with the features that were not in the cache."""
    started = time.perf_counter()
    train_on_manifest(config, manifest, out)
    return round(time.perf_counter() - started, 1)


def rounded(metrics: Mapping[Any, float]) -> dict[str, float]:
    """Round metrics to four places."""
    return {name: round(value, 4) for name, value in metrics.items()}


def table(runs: list[dict[str, Any]]) -> str:
    """Return one Markdown table: mean over seeds, with the lowest and highest seed in brackets."""
    names = [f"{direction}/R@{k}" for direction in ("speech_to_image", "image_to_speech") for k in (1, 5, 10)]
    lines = [
        "| split | row | stage | " + " | ".join(name.replace("_to_", " → ").replace("/", " ") for name in names) + " |",
        "|---|---|---|" + "---|" * len(names),
    ]
    for split in SPLITS:
        for row in ROWS:
            chosen = [run for run in runs if (run["split"], run["row"]) == (split, row)]
            for stage in ("coarse", "fine"):
                if chosen and f"{stage}/{names[0]}" in chosen[0]["metrics"]:
                    cells = [spread([run["metrics"][f"{stage}/{name}"] for run in chosen]) for name in names]
                    lines.append(f"| {split} | {row} | {stage} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Return `mean [lowest-highest]` in percent."""
    percent = [100 * value for value in values]
    return f"{mean(percent):.1f} [{min(percent):.1f}-{max(percent):.1f}]"


if __name__ == "__main__":
    main()
