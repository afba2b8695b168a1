"""Contrast-only beside the full method on picture-words: drawings of words, human voices in eight languages.

    python benchmarks/picture_words.py run PICTURE_WORDS     # the committed recipes, three seeds, two splits
    python benchmarks/picture_words.py table                 # the Markdown of docs/results.md, from the record

Two splits (`picture_words_data`). `voice`: the test speaker's drawings were seen, the voice was not. `drawing`: a tenth
of the drawings is held out for dev and a tenth for test; the voices were heard.

Both rows have the same dev budget: none but the choice of the checkpoint, every 100 steps. Test is read once for each
run; a finished run is a record in `results/picture_words.json` that is skipped next time.
"""

import argparse
import itertools
import json
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from picture_words_data import by_drawing, by_voice
from record import RESULTS, commit, keep
from saysee.config import load_config
from saysee.evaluation.results import write_results
from saysee.models.retrieval_model import SpeechImageModel
from saysee.workflows import evaluate_on_manifest, train_on_manifest

NAME = "picture_words"
ROWS = {"contrast only": "picture_words_contrast", "full method": "picture_words"}
SPLITS = {"voice": by_voice, "drawing": by_drawing}
SEEDS = (0, 1, 2)
RUNS = Path("runs/picture_words")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = parser.add_subparsers(dest="stage", required=True)
    command = stages.add_parser("run")
    command.add_argument("picture_words", type=Path)
    command.add_argument("--only", choices=SPLITS, help="one split, for two programs side by side")
    stages.add_parser("table")
    options = parser.parse_args()
    if options.stage == "table":
        print(table(finished()))
    else:
        run(options.picture_words, options.only)


def run(folder: Path, only: str | None) -> None:
    """Train and measure what is not recorded yet."""
    for seed, split, (row, recipe) in itertools.product(SEEDS, SPLITS, ROWS.items()):
        key = {"split": split, "row": row, "seed": seed}
        if only not in (None, split) or any(record.items() >= key.items() for record in finished()):
            continue
        manifest = SPLITS[split](folder)
        out = RUNS / f"{split}-{recipe}-{seed}"
        started = time.perf_counter()
        progress = train_on_manifest(load_config(recipe, ["--training.seed", str(seed)]), manifest, out)
        seconds = time.perf_counter() - started
        model = SpeechImageModel.from_pretrained(out)
        results = evaluate_on_manifest(model, manifest, "test", about={"data": f"picture-words, {split}"})
        write_results(out / "results.json", results)
        record = key | {
            "commit": commit(),
            "seconds": round(seconds, 1),
            "best_step": progress.best_step,
            "dev": round(progress.best_metric, 4),
            "images": results.about["images"],
            "captions": results.about["captions"],
            "coarse_recall_at_k": rounded(results.coarse_recall_at_k),
            "metrics": rounded(results.metrics()),
        }
        # read again just before: two programs may share the work by --only
        keep(
            NAME,
            data="picture-words by human voices (Art4Apps, GCompris)",
            seed=list(SEEDS),
            figures={"runs": [*finished(), record]},
        )


def finished() -> list[dict[str, Any]]:
    """Return the runs on record."""
    path = RESULTS / f"{NAME}.json"
    runs: list[dict[str, Any]] = json.loads(path.read_text())["figures"]["runs"] if path.exists() else []
    return runs


def rounded(metrics: Mapping[Any, float]) -> dict[str, float]:
    """Round metrics to four places."""
    return {name: round(value, 4) for name, value in metrics.items()}


def table(runs: list[dict[str, Any]]) -> str:
    """Return one Markdown table: mean over seeds, with the lowest and highest seed in brackets."""
    names = [f"{direction}/R@{k}" for direction in ("speech_to_image", "image_to_speech") for k in (1, 5, 10)]
    heads = [name.replace("_to_", " → ").replace("/", " ") for name in names]
    lines = ["| split | row | stage | " + " | ".join(heads) + " |", "|---|---|---|" + "---|" * len(names)]
    for split, row, stage in itertools.product(SPLITS, ROWS, ("coarse", "fine")):
        metrics = [run["metrics"] for run in runs if (run["split"], run["row"]) == (split, row)]
        if metrics and f"{stage}/{names[0]}" in metrics[0]:
            cells = [spread([values[f"{stage}/{name}"] for values in metrics]) for name in names]
            lines.append(f"| {split} | {row} | {stage} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Return `mean [lowest-highest]` in percent."""
    percent = [100 * value for value in values]
    return f"{mean(percent):.1f} [{min(percent):.1f}-{max(percent):.1f}]"


if __name__ == "__main__":
    main()
