"""Many runs that belong together, trained, measured and put into one table: the ablation, and recipes side by side."""

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from tqdm import tqdm

from saysee.config import Config
from saysee.data.extraction import LiveFeatures, picture_encoder, recording_encoder
from saysee.data.manifest import Manifest, Split, SpokenCaption
from saysee.errors import AudioError, ImageError, SayseeError
from saysee.evaluation.ablation import BASELINE, ROWS, config_of, require_rows
from saysee.evaluation.overlap import require_unseen, write_seen
from saysee.evaluation.results import write_results
from saysee.evaluation.runs import (
    Kind,
    Record,
    RowSummary,
    Run,
    read_record,
    summarize,
    to_markdown,
    write_record,
)
from saysee.features.extract import StoredFeatures
from saysee.features.hashes import FileHashes
from saysee.features.store import default_cache_folder
from saysee.files import sole_process, write_text
from saysee.models.retrieval_model import SpeechImageModel
from saysee.workflows import choose_device, data_fingerprint, evaluate_on_manifest, features_of, train_on_manifest

Features = StoredFeatures | LiveFeatures

_ROW_KEYS: dict[Kind, str] = {"ablation": "ablation_row", "table": "recipe"}
"""What a results.json calls its row."""


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
    _require_one_process("ablate", "--rows or --seeds")
    rows = require_rows(rows)
    runs = {(row, seed): config_of(config, row, seed) for seed, row in product(seeds, rows)}
    cache = cache or default_cache_folder()
    about: dict[str, Any] = {"split": split, "config": _without_seed(config)}
    switches = {row: dict(parts) for row, parts in ROWS.items()}
    table = _Table(out / "ablation.json", "ablation", "Ablation", rows, seeds, about, switches, BASELINE)
    table.read()  # what another recipe has filled is refused before an encoder is loaded
    _make_ready(config, manifest, cache, device, table, table.about)
    _run_all(runs, manifest, out, cache, device, table)
    return table.finish()


def tabulate(
    recipes: Mapping[str, Config],
    manifest: Manifest,
    out: Path,
    *,
    seeds: Sequence[int],
    split: Split = "test",
    zero_shot: tuple[str, Manifest] | None = None,
    cache: Path | None = None,
    device: str = "auto",
) -> str:
    """Train and measure recipes side by side and, if asked for, measure the same models on another corpus.

    Each run has its model folder `out/<recipe>-seed<seed>` with its results.json, and a record in `out/table.json`;
    with `zero_shot` also `zero-shot-<name>.json` in the model folder, and a record in `out/zero-shot-<name>.json`. What
    is on record is skipped, and a run that was killed goes on from its checkpoint. Recipes and seeds may come one after
    the other, or from several programs at once, into one folder.

    Args:
        recipes: by the name of their row; their own seeds are not used.
        manifest: without structural faults.
        out: the folder for models, records and tables.
        seeds: of the runs; all recipes with the first come first.
        split: what the tables measure. Models are chosen by dev.
        zero_shot: name and manifest of the other corpus; nothing of its split may be in train or dev of `manifest`.
        cache: where features are kept; None takes the default folder.
        device: see `choose_device`.

    Returns:
        The tables as Markdown, as they stand in `out/table.md` and `out/zero-shot-<name>.md`.

    Raises:
        ManifestError: files that do not decode, or that the models would have seen, all listed, before the first run.
        SayseeError: `out` holds runs of another recipe of that name, of other data or another split, or another program
            trains the next run; see also `saysee.training.trainer.train`.
    """
    _require_one_process("table", "RECIPEs or --seeds")
    runs = {
        (name, seed): replace(recipes[name], training=replace(recipes[name].training, seed=seed))
        for seed, name in product(seeds, recipes)
    }
    cache = cache or default_cache_folder()
    rows: dict[str, dict[str, Any]] = {name: {"config": _without_seed(config)} for name, config in recipes.items()}
    table = _Table(out / "table.json", "table", "Recipes", list(recipes), seeds, {"split": split}, rows)
    other = None
    if zero_shot is not None:
        name, there = zero_shot
        about = {"split": split, "zero_shot": True}
        path = out / f"zero-shot-{name}.json"
        other = _Other(name, there, _Table(path, "table", f"Zero-shot on {name}", list(recipes), seeds, about, rows))
    tables = [table, *([other.table] if other else [])]
    for one in tables:
        one.read()
    for name, config in recipes.items():
        _make_ready(config, manifest, cache, device, table, rows[name], other)
    _run_all(runs, manifest, out, cache, device, table, other)
    return "\n".join(one.finish() for one in tables)


@dataclass(frozen=True)
class _Table:
    """A table that is being filled.

    Attributes:
        path: of the record; the Markdown stands beside it.
        kind: of the record.
        title: of the Markdown.
        asked: rows that are to be there in the end.
        seeds: that each of them is to have.
        about: what its runs share, as far as it is known yet.
        rows: what each row is made of, as far as it is known yet.
        baseline: the row that the others are compared with.
    """

    path: Path
    kind: Kind
    title: str
    asked: Sequence[str]
    seeds: Sequence[int]
    about: dict[str, Any]
    rows: dict[str, dict[str, Any]]
    baseline: str | None = None

    def read(self) -> Record:
        """Read what is on record; runs of something else are refused."""
        return read_record(self.path, self.kind, self.about, self.rows)

    def has(self, row: str, seed: int) -> bool:
        """Return whether that run is on record."""
        return self.read().run(row, seed) is not None

    def add(self, run: Run) -> None:
        """Put a run on record, beside what another program may have written meanwhile."""
        with self._alone():
            record = self.read().with_run(run)
            write_record(self.path, self.kind, record, self._summary(record))
            self._write_text(record)

    def finish(self) -> str:
        """Write the Markdown once more, since other rows or seeds may be asked for now, and return it."""
        with self._alone():
            return self._write_text(self.read())

    def _alone(self) -> AbstractContextManager[None]:
        return sole_process(self.path.parent / "lock", f"writing {self.path}", wait=True)

    def _summary(self, record: Record) -> list[RowSummary]:
        return summarize(record, self.asked, self.seeds, self.baseline)

    def _write_text(self, record: Record) -> str:
        text = to_markdown(self.title, record, self._summary(record), self.baseline)
        write_text(self.path.with_suffix(".md"), text)
        return text


@dataclass(frozen=True)
class _Other:
    """Another corpus that the models are measured on, and the table of that."""

    name: str
    manifest: Manifest
    table: _Table


def _make_ready(
    config: Config,
    manifest: Manifest,
    cache: Path,
    device: str,
    table: _Table,
    made_of: dict[str, Any],
    other: _Other | None = None,
) -> None:
    """Extract all features that a recipe's runs need, so that no run's time has that in it, and refuse what is amiss.

    Args:
        config: the recipe.
        manifest: that it is trained on.
        cache: where features are kept.
        device: see `choose_device`.
        table: learns which data its runs have.
        made_of: learns which encoders they have.
        other: corpus that must not hold what the runs will have seen.
    """
    model = SpeechImageModel.from_config(config).to(choose_device(device))
    made_of["encoders"] = {"speech": model.speech_backbone.fingerprint, "image": model.image_backbone.fingerprint}
    speech, images = _extract(table, model, manifest.captions, cache)
    if other is None:
        return
    tested = other.manifest.of(table.about["split"])
    there = _extract(other.table, model, tested, cache)
    other.table.about["trained_on"] = table.about["data"]
    other.table.read()
    with tempfile.TemporaryDirectory() as folder:  # as a model's folder will be, long before there is one
        write_seen(Path(folder), manifest.of("train", "dev"), speech, images)
        require_unseen(Path(folder), tested, *there)


def _extract(
    table: _Table, model: SpeechImageModel, captions: Sequence[SpokenCaption], cache: Path
) -> tuple[Features, Features]:
    """Return the features of a corpus, which a table is about; if its runs are of another, before any are extracted."""
    if table.path.exists():
        # reading the files takes minutes where encoding them would take hours
        with suppress(AudioError, ImageError):  # the extraction lists all bad files
            table.about["data"] = _identity(model, captions, cache)
        table.read()
    speech, images, table.about["data"] = features_of(model, captions, cache, progress=True)
    table.read()
    return speech, images


def _identity(model: SpeechImageModel, captions: Sequence[SpokenCaption], cache: Path) -> str:
    hashes = FileHashes(cache)
    recordings = LiveFeatures(recording_encoder(model.speech_backbone), hashes)
    identity = data_fingerprint(captions, recordings, LiveFeatures(picture_encoder(model.image_backbone), hashes))
    hashes.save()
    return identity


def _run_all(
    runs: Mapping[tuple[str, int], Config],
    manifest: Manifest,
    out: Path,
    cache: Path,
    device: str,
    table: _Table,
    other: _Other | None = None,
) -> None:
    """Train, or end the training of, what is not on record, and measure it."""
    split: Split = table.about["split"]
    with tqdm(runs.items(), "runs", unit="run", disable=None) as bar:
        for (row, seed), config in bar:
            bar.set_postfix_str(f"{row}, seed {seed}")
            run, folder = table.read().run(row, seed), out / f"{row}-seed{seed}"
            if run and (other is None or other.table.has(row, seed)):
                continue
            about = {"model": str(folder), _ROW_KEYS[table.kind]: row}
            trained = run or _train(config, row, manifest, folder, cache, device)
            model = SpeechImageModel.from_pretrained(folder, choose_device(device))
            if run is None:
                results = evaluate_on_manifest(model, manifest, split, about=about, cache=cache)
                write_results(folder / "results.json", results)
                table.add(replace(trained, metrics=results.metrics()))
            if other is not None and not other.table.has(row, seed):
                about |= {"zero_shot": True, "data": other.name}
                results = evaluate_on_manifest(model, other.manifest, split, about=about, cache=cache, unseen_by=folder)
                write_results(folder / other.table.path.name, results)
                other.table.add(replace(trained, metrics=results.metrics()))


def _train(config: Config, row: str, manifest: Manifest, folder: Path, cache: Path, device: str) -> Run:
    """Train one row with one seed, or end its training; its metrics are not measured yet."""
    in_one_go = not folder.exists()
    started = time.perf_counter()
    progress = train_on_manifest(config, manifest, folder, cache=cache, device=device)
    seconds = round(time.perf_counter() - started, 1) if in_one_go else None
    return Run(row, config.training.seed, seconds, progress.best_step, progress.best_metric, {})


def _without_seed(config: Config) -> dict[str, Any]:
    recipe = config.to_dict()
    del recipe["training"]["seed"]
    return recipe


def _require_one_process(command: str, share: str) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SayseeError(
            f"{command} runs in one process and not under torchrun; to use several GPUs start one program for each, "
            f"with the same --out, its own --device (cuda:0, cuda:1) and its own {share}"
        )
