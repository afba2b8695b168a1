"""Many runs that belong together: the ablation's rows and seeds, trained, measured and put into one table."""

import os
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from tqdm import tqdm

from saysee.config import Config
from saysee.data.manifest import Manifest, Split
from saysee.errors import SayseeError
from saysee.evaluation.ablation import (
    Ablation,
    Run,
    config_of,
    read_ablation,
    require_rows,
    summarize,
    to_markdown,
    write_ablation,
)
from saysee.evaluation.results import write_results
from saysee.features.store import default_cache_folder
from saysee.files import sole_process, write_text
from saysee.models.retrieval_model import SpeechImageModel
from saysee.workflows import choose_device, evaluate_on_manifest, features_of, train_on_manifest


def ablate(
    config: Config,
    manifest: Manifest,
    out: Path,
    *,
    seeds: Sequence[int],
    rows: Sequence[str] | None = None,
    split: Split = "test",
    cache: Path | None = None,
    device: str = "auto",
) -> str:
    """Train and measure a recipe with its parts switched; see `saysee.evaluation.ablation.ROWS`.

    Each run has its model folder `out/<row>-seed<seed>` with its results.json, and a record in `out/ablation.json`.
    What is on record is skipped, and a run that was killed goes on from its checkpoint. Several programs, each with its
    own `rows` or `seeds`, may share the work in one folder.

    Args:
        config: a recipe with all parts; its own seed is not used.
        manifest: without structural faults.
        out: the folder for models, records and the table.
        seeds: of the runs; all rows of the first come first.
        rows: of the table; None takes all.
        split: what the table measures. Models are chosen by dev.
        cache: where features are kept; None takes the default folder.
        device: see `choose_device`.

    Returns:
        The table as Markdown, as it stands in `out/ablation.md`.

    Raises:
        ManifestError: files that do not decode, all listed, before the first run.
        SayseeError: the recipe lacks a part, no such row, `out` holds runs of another recipe, data or split, or another
            program trains the next run; see also `saysee.training.trainer.train`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SayseeError(
            "ablate runs in one process and not under torchrun; to use several GPUs start one program for each, with "
            "the same --out, its own --device (cuda:0, cuda:1) and its own --rows or --seeds"
        )
    rows = require_rows(rows)
    runs = {(row, seed): config_of(config, row, seed) for seed, row in product(seeds, rows)}
    about = _about(config, manifest, split, cache, device)
    path = out / "ablation.json"
    with tqdm(runs.items(), "runs", unit="run", disable=None) as bar:
        for (row, seed), switched in bar:
            bar.set_postfix_str(f"{row}, seed {seed}")
            if read_ablation(path, about).has(row, seed):
                continue
            run = _run(switched, row, manifest, out / f"{row}-seed{seed}", split, cache, device)
            with sole_process(
                out / "lock", "writing the ablation's record", wait=True
            ):  # another program may have written since
                ablation = read_ablation(path, about).with_run(run)
                write_ablation(path, ablation, summarize(ablation, rows, seeds))
                write_text(out / "ablation.md", _table(ablation, rows, seeds))
    with sole_process(out / "lock", "writing the ablation's record", wait=True):
        table = _table(read_ablation(path, about), rows, seeds)
        write_text(out / "ablation.md", table)
    return table


def _run(
    config: Config, row: str, manifest: Manifest, folder: Path, split: Split, cache: Path | None, device: str
) -> Run:
    """Train one row with one seed, or end its training, and measure it."""
    in_one_go = not folder.exists()
    started = time.perf_counter()
    progress = train_on_manifest(config, manifest, folder, cache=cache, device=device)
    seconds = time.perf_counter() - started
    model = SpeechImageModel.from_pretrained(folder, choose_device(device))
    about = {"model": str(folder), "ablation_row": row}
    results = evaluate_on_manifest(model, manifest, split, about=about, cache=cache)
    write_results(folder / "results.json", results)
    return Run(
        row,
        config.training.seed,
        round(seconds, 1) if in_one_go else None,
        progress.best_step,
        progress.best_metric,
        results.metrics(),
    )


def _about(config: Config, manifest: Manifest, split: Split, cache: Path | None, device: str) -> dict[str, Any]:
    """Return what makes two runs rows of one table, and extract all features, so that no run's time has that in it."""
    recipe = config.to_dict()
    del recipe["training"]["seed"]
    model = SpeechImageModel.from_config(config).to(choose_device(device))
    _, _, data = features_of(model, manifest.captions, cache or default_cache_folder(), progress=True)
    return {
        "split": split,
        "data": data,
        "encoders": {"speech": model.speech_backbone.fingerprint, "image": model.image_backbone.fingerprint},
        "config": recipe,
    }


def _table(ablation: Ablation, rows: Sequence[str], seeds: Sequence[int]) -> str:
    return to_markdown(ablation, summarize(ablation, rows, seeds))
