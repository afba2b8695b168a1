"""The commands of `saysee`, one function each: options in, a few calls into the library, what was made printed.

torch and transformers are imported where they are needed: they take seconds that `saysee --help` need not wait for.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saysee.config import load_config
from saysee.data.manifest import SPLITS, Manifest, ManifestError, Prepared, Split, read_manifest, write_manifest
from saysee.errors import SayseeError

if TYPE_CHECKING:
    from saysee.evaluation.results import Results
    from saysee.models.retrieval_model import SpeechImageModel
    from saysee.search.searcher import Answer


def prepare_command(options: argparse.Namespace) -> None:
    """Read a corpus, check every file, write the manifest."""
    from saysee.data.validate import validate

    prepared = _prepared(options)
    for warning in prepared.warnings:
        print(f"saysee: warning: {warning}", file=sys.stderr)
    faults = validate(prepared.manifest, progress=True)
    if faults:
        raise ManifestError(str(options.folder), [str(fault) for fault in faults])
    write_manifest(options.out, prepared.manifest)
    print("\n".join([*prepared.notes, f"wrote {options.out}"]))


def validate_command(options: argparse.Namespace) -> None:
    """List all faults."""
    from saysee.data.validate import validate

    manifest = read_manifest(options.manifest)
    if faults := validate(manifest, progress=True):
        raise ManifestError(str(options.manifest), [str(fault) for fault in faults])
    print(f"{options.manifest}: no faults; {manifest.summary()}")


def train_command(options: argparse.Namespace) -> None:
    """Train and say what came of it."""
    from saysee.workflows import train_on_manifest

    config = load_config(options.config, options.overrides)
    progress = train_on_manifest(
        config, _checked_manifest(options.data), options.out, cache=options.cache, device=options.device
    )
    dev = f"dev {config.training.primary_metric} {100 * progress.best_metric:.1f} %"
    if os.environ.get("RANK", "0") == "0":  # under torchrun one process speaks for all
        print(f"trained {progress.step} steps; the model of step {progress.best_step} ({dev}) is in {options.out}")


def extract_command(options: argparse.Namespace) -> None:
    """Fill the store."""
    from saysee.workflows import extract_on_manifest, remove_damaged

    for name in ("workers", "batch_size"):
        if getattr(options, name) < 1:
            raise SayseeError(f"--{name.replace('_', '-')} is {getattr(options, name)}; give 1 or more")
    config = load_config(options.config, options.overrides)
    if options.verify:
        print(f"removed {remove_damaged(config, options.cache)} damaged files of features")
    extract_on_manifest(
        config,
        _checked_manifest(options.data, ()),
        cache=options.cache,
        workers=options.workers,
        batch_size=options.batch_size,
        ray=options.ray,
        device=options.device,
        tell=lambda line: print(line, flush=True),
    )
    print("all features are there")


def evaluate_command(options: argparse.Namespace) -> None:
    """Measure, print the table, keep the record."""
    from saysee.workflows import evaluate_on_manifest

    name = "results.json" if options.split == "test" else f"results-{options.split}.json"
    out = options.out or options.model / name
    _require_json(out)
    model = _load_model(options.model, options.device)
    search = model.config.search
    if options.rerank or options.fusion:
        model.require_multimodal_encoder()
    if options.rerank:
        search = replace(search, rerank=options.rerank)
    if options.fusion:
        search = replace(search, fusion=options.fusion)
    results = evaluate_on_manifest(
        model,
        _checked_manifest(options.data, (options.split,)),
        options.split,
        search=search,
        fine=options.rerank != 0,
        about={"model": str(options.model), "data": str(options.data)},
        cache=options.cache,
    )
    _report(results, out)


def zero_shot_command(options: argparse.Namespace) -> None:
    """Measure on another corpus, and refuse one that is not another."""
    from saysee.workflows import evaluate_on_manifest

    out = options.out or options.model / f"zero-shot-{options.data.stem}.json"
    _require_json(out)
    results = evaluate_on_manifest(
        _load_model(options.model, options.device),
        _checked_manifest(options.data, (options.split,)),
        options.split,
        about={"zero_shot": True, "model": str(options.model), "data": str(options.data)},
        cache=options.cache,
        unseen_by=options.model,
    )
    _report(results, out)


def ablate_command(options: argparse.Namespace) -> None:
    """Train and measure the rows that are not on record yet, and write the table."""
    from saysee.experiments import ablate

    print(
        ablate(
            load_config(options.config, options.overrides),
            _checked_manifest(options.data),
            options.out,
            seeds=_whole_numbers(options.seeds, "--seeds"),
            rows=options.rows and [row.strip() for row in options.rows.split(",")],
            split=options.split,
            cache=options.cache,
            device=options.device,
        )
    )


def compare_command(options: argparse.Namespace) -> None:
    """Compare two records."""
    from saysee.evaluation.compare import compare, to_json, to_markdown
    from saysee.evaluation.results import read_results

    comparison = compare(read_results(options.a), read_results(options.b))
    print(to_json(comparison) if options.json else to_markdown(comparison))


def index_command(options: argparse.Namespace) -> None:
    """Index a folder."""
    from saysee.search.index import build_index

    model = _load_model(options.model, options.device)
    report = build_index(options.folder, model, options.model, options.into, progress=True)
    for reason in report.skipped.values():
        print(f"skipped {reason}", file=sys.stderr)
    skipped = f", skipped {len(report.skipped):,}" if report.skipped else ""
    print(f"indexed {report.indexed:,} pictures{skipped} into {options.into}")


def search_command(options: argparse.Namespace) -> None:
    """Answer one question."""
    from saysee.search.index import read_index
    from saysee.search.searcher import Searcher

    index = read_index(options.index)
    searcher = Searcher(index, _load_model(options.model or index.model, options.device))
    answers = searcher.search(options.question, options.top, options.rerank, options.fusion)
    if options.json:
        print(json.dumps([{**asdict(answer), "path": str(answer.path)} for answer in answers], indent=2))
    else:
        print(_answer_table(answers))
    if options.sheet:
        from saysee.search.sheet import write_sheet
        from saysee.workflows import sheet_question

        write_sheet(
            options.sheet,
            [sheet_question(options.question.name, options.question, answers)],
            "saysee",
            f"{len(index):,} pictures",
        )
        print(f"wrote {options.sheet}", file=sys.stderr)


def demo_command(options: argparse.Namespace) -> None:
    """Run the demo."""
    from saysee.demo import run_demo

    run_demo(options.out)


def _prepared(options: argparse.Namespace) -> Prepared:
    """Call the corpus's own `prepare` with the options that are its own."""
    from saysee.data import flickr8k, hugging_face, picture_folder, places, spoken_coco

    folder = Path(options.folder)
    shares: dict[str, Any] = {
        name: _share_or_names(value, options.split_by)
        for name in ("dev", "test")
        if (value := getattr(options, name)) is not None
    }
    if options.corpus == "flickr8k":
        return flickr8k.prepare(folder)
    if options.corpus == "picture-folder":
        return picture_folder.prepare(
            folder, recordings=options.recordings, split_by=options.split_by, seed=options.seed, **shares
        )
    if options.corpus == "hugging-face":
        return hugging_face.prepare(
            options.folder,
            options.files or options.out.with_name(f"{options.out.stem}-files"),
            revision=options.revision,
            config=options.subset,
            split=options.split,
            columns=_columns(options.columns),
            seed=options.seed,
            **shares,
        )
    if "test" in shares:
        raise SayseeError(f"--test is {options.test}; {options.corpus} has a published test split: leave it out")
    if options.corpus == "spoken-coco":
        return spoken_coco.prepare(folder, images=options.images, seed=options.seed, **shares)
    return places.prepare(folder, images=options.images, held_out=options.held_out, seed=options.seed, **shares)


def _columns(text: str | None) -> dict[str, str] | None:
    """Read `audio=speech,image=photo`."""
    if text is None:
        return None
    pairs = [part.split("=") for part in text.split(",")]
    if not all(len(pair) == 2 for pair in pairs):
        raise SayseeError(f"--columns is {text!r}; give pairs joined by commas, as audio=speech,image=photo")
    return {name.strip(): column.strip() for name, column in pairs}


def _share_or_names(text: str, split_by: str) -> float | list[str]:
    """Read --dev or --test: a speaker's name may be a number too, so `split_by` decides what is meant."""
    if split_by == "speaker":
        return [name.strip() for name in text.split(",") if name.strip()]
    try:
        return float(text)
    except ValueError:
        raise SayseeError(
            f"{text!r} is no share; give a number such as 0.1, or --split-by speaker with the speakers' names"
        ) from None


def _checked_manifest(path: Path, needed: Sequence[Split] = SPLITS) -> Manifest:
    """Read a manifest and refuse one with faults; faults of its files are found when they are read."""
    from saysee.data.validate import structural_faults

    manifest = read_manifest(path)
    if faults := structural_faults(manifest, needed):
        raise ManifestError(str(path), [str(fault) for fault in faults])
    return manifest


def _report(results: "Results", out: Path) -> None:
    """Keep the record of an evaluation as JSON and Markdown, and print it."""
    from saysee.evaluation.report import to_markdown, to_terminal
    from saysee.evaluation.results import write_results
    from saysee.files import write_text

    write_results(out, results)
    write_text(out.with_suffix(".md"), to_markdown(results))
    print(to_terminal(results))
    print(f"wrote {out} and {out.with_suffix('.md').name}")


def _require_json(out: Path) -> None:
    if out.suffix == ".md":
        raise SayseeError(f"--out is {out}; give a JSON file, the Markdown goes beside it")


def _whole_numbers(text: str, option: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise SayseeError(f"{option} is {text!r}; give whole numbers joined by commas, as 0,1,2") from None


def _load_model(folder: Path, device: str) -> "SpeechImageModel":
    from saysee.models.retrieval_model import SpeechImageModel
    from saysee.workflows import choose_device

    return SpeechImageModel.from_pretrained(folder, choose_device(device))


def _answer_table(answers: "Sequence[Answer]") -> str:
    from saysee.features.sources import one_line

    rows = [f"{'rank':>4}  {'coarse':>6}  {'fine':>6}  picture"]
    for answer in answers:
        fine = "" if answer.fine is None else f"{answer.fine:+.2f}"
        rows.append(f"{answer.rank:>4}  {answer.coarse:>6.3f}  {fine:>6}  {one_line(str(answer.path))}")
    return "\n".join(rows)
