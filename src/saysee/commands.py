"""The commands of `saysee`, one function each: options in, a few calls into the library, what was made printed.

torch and transformers are imported where they are needed: they take seconds that `saysee --help` need not wait for.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saysee.config import Config, load_config
from saysee.data.manifest import SPLITS, Manifest, ManifestError, Prepared, Split, read_manifest, write_manifest
from saysee.errors import SayseeError

if TYPE_CHECKING:
    from saysee.evaluation.results import Results
    from saysee.models.retrieval_model import SpeechImageModel
    from saysee.search.building import UpdateReport
    from saysee.search.searcher import Answer
    from saysee.search.stores.base import Filter
    from saysee.serving.server import Settings


def prepare_command(options: argparse.Namespace) -> None:
    """Read a corpus, check every file, write the manifest."""
    from saysee.data.validate import structural_faults, validate, without_faults
    from saysee.files import write_text

    published = options.corpus != "picture-folder"
    if options.leave_out_faults and not published:
        raise SayseeError("--leave-out-faults is for published corpora; take what is wrong out of your table")
    prepared = _prepared(options)
    left_out: list[str] = []
    if options.leave_out_faults:
        manifest, faulty = without_faults(prepared.manifest, progress=True)
        left_out = [str(fault) for fault in faulty]
        count, prepared = len(prepared.manifest.captions), prepared.with_fewer(manifest)
    for warning in prepared.warnings:
        _remark(f"warning: {warning}")
    faults = structural_faults(manifest) if options.leave_out_faults else validate(prepared.manifest, progress=True)
    if faults:
        advice = "" if options.leave_out_faults or not published else " (--leave-out-faults goes on without them)"
        raise ManifestError(f"{options.folder}{advice}", [str(fault) for fault in faults])
    if left_out:
        listed = options.out.with_suffix(".left-out.txt")
        write_text(listed, "\n".join(left_out) + "\n")
        _warn_of_left_out(f"left out {len(left_out):,} of {count:,} records", left_out, listed)
    write_manifest(options.out, prepared.manifest)
    print("\n".join([*prepared.notes, f"wrote {options.out}"]))


def speak_command(options: argparse.Namespace) -> None:
    """Speak written captions."""
    from saysee.data.speak import Delivery, parse_voices, speak
    from saysee.data.written_captions import read_captions

    delivery = Delivery(options.speed, options.pitch, options.tries)
    captions, notes = read_captions(options.captions, images=options.images, first=options.first, seed=options.seed)
    spoken = speak(
        captions,
        parse_voices(options.voices),
        options.out,
        seed=options.seed,
        delivery=delivery,
        voices_per_caption=options.voices_per_caption,
        split_by=options.split_by,
        workers=options.workers,
        progress=True,
    )
    if spoken.left_out:
        summary = f"{len(spoken.left_out):,} recordings could not be made"
        _warn_of_left_out(summary, spoken.left_out, options.out / "left-out.txt")
    print("\n".join([*spoken.notes, *notes, f"wrote {options.out / 'manifest.jsonl'}"]))


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
    _warn_of_precision([config], options.device)
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
    _warn_of_precision([config], options.device)
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

    out = _record_path(options, "results.json" if options.split == "test" else f"results-{options.split}.json")
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
    from saysee.models.model_folder import find_model
    from saysee.workflows import evaluate_on_manifest

    out = _record_path(options, f"zero-shot-{options.data.stem}.json")
    results = evaluate_on_manifest(
        _load_model(options.model, options.device),
        _checked_manifest(options.data, (options.split,)),
        options.split,
        about={"zero_shot": True, "model": str(options.model), "data": str(options.data)},
        cache=options.cache,
        unseen_by=find_model(options.model),
    )
    _report(results, out)


def ablate_command(options: argparse.Namespace) -> None:
    """Train and measure the rows that are not on record yet, and write the table."""
    from saysee.experiments import ablate

    config = load_config(options.config, options.overrides)
    _warn_of_precision([config], options.device)
    print(
        ablate(
            config,
            _checked_manifest(options.data),
            options.out,
            seeds=_whole_numbers(options.seeds, "--seeds"),
            rows=options.rows and [row.strip() for row in options.rows.split(",")],
            split=options.split,
            cache=options.cache,
            device=options.device,
        )
    )


def table_command(options: argparse.Namespace) -> None:
    """Train and measure the recipes and seeds that are not on record yet, and write the tables."""
    from saysee.experiments import tabulate

    recipes: dict[str, Config] = {}
    for name in options.config:
        row = Path(name).stem  # of a bundled recipe its name
        if row in recipes:
            raise SayseeError(f"two recipes are called {row!r}, and a row has a name of its own; rename one file")
        recipes[row] = load_config(name, options.overrides)
    _warn_of_precision(recipes.values(), options.device)
    other: Path | None = options.zero_shot
    print(
        tabulate(
            recipes,
            _checked_manifest(options.data),
            options.out,
            seeds=_whole_numbers(options.seeds, "--seeds"),
            split=options.split,
            zero_shot=(other.stem, _checked_manifest(other, (options.split,))) if other else None,
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


def index_build_command(options: argparse.Namespace) -> None:
    """Index a folder."""
    from saysee.search.building import build_index

    model = _load_model(options.model, options.device)
    report = build_index(
        options.folder,
        model,
        options.model,
        options.into,
        kind="recording" if options.recordings else "picture",
        coarse_only=options.coarse_only,
        milvus=options.milvus,
        collection=options.collection,
        progress=True,
        tell=_remark,
    )
    _report_update(report, options.into, "recordings" if options.recordings else "pictures", options.verbose)


def index_update_command(options: argparse.Namespace) -> None:
    """Bring an index up to date."""
    from saysee.search.building import update_index
    from saysee.search.index import open_index

    with closing(open_index(options.index)) as index:
        model_folder = options.model or index.description.model
        model = _load_model(model_folder, options.device)
        report = update_index(index, model, str(model_folder), progress=True, tell=_remark)
        _report_update(report, options.index, f"{index.description.kind}s", options.verbose)


def index_watch_command(options: argparse.Namespace) -> None:
    """Bring an index up to date again and again."""
    from saysee.search.building import watch_index
    from saysee.search.index import open_index

    with closing(open_index(options.index)) as index:
        model_folder = options.model or index.description.model
        model = _load_model(model_folder, options.device)
        for report in watch_index(index, model, str(model_folder), tell=_remark):
            _report_update(report, options.index, f"{index.description.kind}s", options.verbose)
            sys.stdout.flush()


def index_check_command(options: argparse.Namespace) -> None:
    """Say how sound an index is; damage that stays is an error."""
    from saysee.search.building import check_index
    from saysee.search.index import open_index

    with closing(open_index(options.index)) as index:
        report = check_index(index, repair=options.repair, tell=_remark)
        kind = index.description.kind
        print(f"{options.index}: {report.total:,} {kind}s of {index.description.folder}")
    if report.recall is None:
        print("search is exact")
    else:
        print(f"search is approximate: it finds {100 * report.recall:.1f} % of the exact 100 nearest")
    for path in report.damaged:
        print(f"damaged: {_one_line(str(path))}", file=sys.stderr)
    if report.damaged and not options.repair:
        raise SayseeError(
            f"{len(report.damaged):,} of {report.total:,} {kind}s are damaged; run `saysee index check {options.index} "
            f"--repair` and then `saysee index update {options.index}`"
        )
    if report.damaged:
        print(f"took out {len(report.damaged):,}; `saysee index update {options.index}` encodes them again")
    else:
        print("nothing is damaged")


def search_command(options: argparse.Namespace) -> None:
    """Answer one question."""
    from saysee.search.index import open_index
    from saysee.search.question import read_question
    from saysee.search.searcher import Searcher

    name, content = _question_content(options)
    question = read_question(content, name=name)
    with closing(open_index(options.index)) as index:
        kind, total = index.description.kind, len(index)
        if options.sheet and (kind, question.kind) != ("picture", "recording"):
            raise SayseeError("--sheet shows pictures that answer a recording; leave it out")
        model_folder = options.model or index.description.model
        searcher = Searcher(index, _load_model(model_folder, options.device), str(model_folder))
        found = searcher.search(
            question, top=options.top, rerank=options.rerank, fusion=options.fusion, only=_filter(options)
        )
    answers = found.answers
    if options.json:
        listed = [{**asdict(answer), "path": str(answer.path)} for answer in answers]
        print(json.dumps({"fits": found.fits, "chance": found.chance, "answers": listed}, indent=2))
    else:
        print(_answer_table(answers, kind))
    if found.fits is False:
        _remark(
            f"nothing here fits: the best of {total:,} pictures that do not fit has as high a score "
            f"{100 * (found.chance or 0):.0f} % of the time"
        )
    if options.sheet:
        from saysee.search.sheet import write_sheet
        from saysee.workflows import sheet_question

        write_sheet(options.sheet, [sheet_question(name, content, answers)], "saysee", f"{total:,} pictures")
        print(f"wrote {options.sheet}", file=sys.stderr)


def serve_command(options: argparse.Namespace) -> None:
    """Serve the search."""
    from saysee.search.index import open_index
    from saysee.search.searcher import Searcher
    from saysee.serving.server import serve_search

    settings = _server_settings(options)
    with closing(open_index(options.index)) as index:
        model_folder = options.model or index.description.model
        serve_search(Searcher(index, _load_model(model_folder, options.device), str(model_folder)), settings)


def record_command(options: argparse.Namespace) -> None:
    """Serve the recording of captions."""
    from saysee.serving.server import serve_recording

    serve_recording(options.folder, options.out, _server_settings(options))


def calibrate_command(options: argparse.Namespace) -> None:
    """Measure a model's mismatched pairs."""
    from saysee.models.calibration import CALIBRATION_FILE
    from saysee.workflows import calibrate_on_manifest

    _require_own_model(options.model, "copy its folder and calibrate the copy")
    calibration = calibrate_on_manifest(
        options.model, _checked_manifest(options.data, ("dev",)), cache=options.cache, device=options.device
    )
    print(f"wrote {options.model / CALIBRATION_FILE}: {calibration.pairs:,} mismatched pairs of dev")


def demo_command(options: argparse.Namespace) -> None:
    """Show what it does, and then let the user speak; or train a model before their eyes."""
    from saysee.demo import run_demo, run_training_demo

    if options.train:
        run_training_demo(options.out)
    else:
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
    require_files = not options.leave_out_faults  # else what is missing is named with what is broken
    if options.corpus == "flickr8k":
        return flickr8k.prepare(folder, require_files=require_files)
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
        return spoken_coco.prepare(
            folder, images=options.images, seed=options.seed, require_files=require_files, **shares
        )
    return places.prepare(
        folder,
        images=options.images,
        held_out=options.held_out,
        seed=options.seed,
        require_files=require_files,
        **shares,
    )


def _warn_of_precision(configs: Iterable[Config], device: str) -> None:
    """Say once, under torchrun too, that encoders will be very slow here."""
    from saysee.workflows import precision_warning

    warnings = {warning for config in configs if (warning := precision_warning(config, device))}
    if os.environ.get("RANK", "0") == "0":
        for warning in warnings:
            _remark(warning)


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


def _record_path(options: argparse.Namespace, name: str) -> Path:
    """Return where the record of an evaluation goes: --out, or a file of this name in the model's folder."""
    if options.out is None:
        _require_own_model(options.model, "say by --out where the record goes")
    out: Path = options.out or options.model / name
    if out.suffix == ".md":
        raise SayseeError(f"--out is {out}; give a JSON file, the Markdown goes beside it")
    return out


def _require_own_model(model: Path, advice: str) -> None:
    """Refuse to write into a model folder of the package."""
    from saysee.models.model_folder import bundled_models, find_model, name_of_model

    if str(name_of_model(model)) in bundled_models():
        raise SayseeError(f"{find_model(model)} lies in the package, where nothing is written; {advice}")


def _whole_numbers(text: str, option: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise SayseeError(f"{option} is {text!r}; give whole numbers joined by commas, as 0,1,2") from None


def _load_model(folder: Path, device: str) -> "SpeechImageModel":
    from saysee.models.retrieval_model import SpeechImageModel
    from saysee.workflows import choose_device

    return SpeechImageModel.from_pretrained(folder, choose_device(device))


def _question_content(options: argparse.Namespace) -> tuple[str, bytes]:
    """Return the name and the bytes of the question: a file, standard input, or the microphone."""
    from saysee.features.audio import AudioLimits
    from saysee.features.sources import read_bytes

    if options.microphone == (options.question is not None):
        raise SayseeError("give a QUESTION, - for standard input, or --microphone; one of them")
    most = AudioLimits().max_bytes
    if options.microphone:
        from saysee.search.microphone import record

        return "the microphone", record(_remark)
    if options.question == "-":
        content = sys.stdin.buffer.read(most + 1)
        return "standard input", content
    return options.question, read_bytes(Path(options.question), most, SayseeError)


def _filter(options: argparse.Namespace) -> "Filter":
    from saysee.search.stores.base import Filter

    return Filter(options.path, _day(options.since, "--since"), _day(options.until, "--until"))


def _day(text: str | None, option: str) -> date | None:
    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise SayseeError(f"{option} is {text!r}; give a day as 2024-05-31") from None


def _report_update(report: "UpdateReport", path: Path, kind: str, verbose: bool) -> None:
    """Say what became of every file."""
    for reason in report.skipped.values():
        _remark(f"skipped {reason}")
    if verbose:
        for other in report.others:
            _remark(f"left out {_one_line(str(other))}")
    counts = {
        "new or changed": report.encoded,
        "unchanged": report.unchanged,
        "moved": report.moved,
        "removed": report.removed,
        "skipped": len(report.skipped),
        "of other kinds": len(report.others),
    }
    told = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
    print(f"{path}: {report.total:,} {kind}" + (f" ({told})" if told else ""))


def _server_settings(options: argparse.Namespace) -> "Settings":
    from saysee.features.sources import read_bytes
    from saysee.serving.server import Settings

    token = None
    if options.token_file is not None:
        token = read_bytes(options.token_file, 4096, SayseeError).decode("utf-8", "replace").strip()
    return Settings(
        options.host, options.port, options.cert, options.key, token=token, allowed_hosts=tuple(options.allow_host)
    )


def _remark(text: str) -> None:
    print(f"saysee: {text}", file=sys.stderr, flush=True)


def _warn_of_left_out(summary: str, lines: Sequence[str], listed: Path) -> None:
    """Say what is missing: how much, where all of it is named, and the first of it."""
    _remark(f"warning: {summary}, all named with the reason in {listed}")
    for line in lines[:10]:
        _remark(f"warning: {line}")


def _one_line(text: str) -> str:
    from saysee.features.sources import one_line

    return one_line(text)


def _from_here(path: Path) -> str:
    """Return a path on one line; without the folder that the command was given in, if it lies below that."""
    with suppress(OSError, ValueError):
        path = path.relative_to(Path.cwd())
    return _one_line(str(path))


def _answer_table(answers: "Sequence[Answer]", kind: str) -> str:
    rows = [f"{'rank':>4}  {'coarse':>6}  {'fine':>6}  {kind}"]
    for answer in answers:
        fine = "" if answer.fine is None else f"{answer.fine:+.2f}"
        rows.append(f"{answer.rank:>4}  {answer.coarse:>6.3f}  {fine:>6}  {_from_here(answer.path)}")
    return "\n".join(rows)
