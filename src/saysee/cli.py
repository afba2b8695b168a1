"""The command line: one function a command, each a few calls into the library.

What was made goes to standard output; progress and errors go to standard error. A user's mistake ends with one clear
message and status 2, a failing disk with status 1, Ctrl-C with status 130.
"""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from saysee import __version__
from saysee.config import Fusion, bundled_configs, load_config
from saysee.data.manifest import SPLIT_BY, SPLITS, Manifest, ManifestError, Prepared, read_manifest, write_manifest
from saysee.errors import SayseeError

if TYPE_CHECKING:  # torch and transformers take seconds that `saysee --help` need not wait for
    from saysee.models.retrieval_model import SpeechImageModel
    from saysee.search.searcher import Answer

Handler = Callable[[argparse.Namespace], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = build_parser()
    options, unknown = parser.parse_known_args(arguments)
    if unknown and options.command != "train":
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    options.overrides = unknown
    try:
        cast(Handler, options.handler)(options)
        sys.stdout.flush()  # here, where a closed pipe or a full disk is still answered
    except SayseeError as error:
        return _complain(str(error), 2)
    except KeyboardInterrupt:
        resumes = options.command in ("train", "demo")
        return _complain(
            "interrupted" + ("; the same command goes on from the last checkpoint" if resumes else ""), 130
        )
    except BrokenPipeError:  # `saysee search ... | head`
        _abandon_output()
        return 0
    except OSError as error:
        _abandon_output()
        name = error.filename2 or error.filename  # of a rename the second is the one that the user gave
        return _complain(f"{error.strerror or error}" + (f": {name}" if name else ""), 1)
    except Exception as error:
        if type(error).__name__ == "SafetensorError":  # how safetensors says that a disk is full
            return _complain(f"cannot write: {error}", 1)
        raise
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Describe all commands."""
    parser = argparse.ArgumentParser(
        prog="saysee",
        description="say it, see it: speech-image retrieval, with no transcript in between",
        epilog="First time here? Run `saysee demo`.",
    )
    parser.add_argument("--version", action="version", version=f"saysee {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    prepare = _command(
        commands, "prepare", prepare_command, "make a validated manifest of a corpus",
        "saysee prepare picture-folder my_pictures --split-by speaker --dev anna --test omar --out manifest.jsonl",
    )  # fmt: skip
    prepare.add_argument("corpus", choices=["picture-folder", "flickr8k"], help="the corpus's layout on disk")
    prepare.add_argument("folder", type=Path, metavar="DIR")
    prepare.add_argument("--out", type=Path, required=True, metavar="MANIFEST", help="the JSON Lines file to write")
    folder = prepare.add_argument_group("picture-folder")
    folder.add_argument(
        "--recordings", type=Path, metavar="FILE", help="the CSV or JSONL (default: recordings.* in DIR)"
    )
    folder.add_argument(
        "--split-by", choices=SPLIT_BY, default="image", help="what no two splits share (default: image)"
    )
    folder.add_argument("--dev", default="0.1", help="share, or speakers joined by commas (default: 0.1)")
    folder.add_argument("--test", default="0.1", help="share, or speakers joined by commas (default: 0.1)")
    folder.add_argument("--seed", type=int, default=0, help="of the drawn splits (default: 0)")

    validate = _command(
        commands, "validate", validate_command, "list every fault of a manifest and of its files",
        "saysee validate manifest.jsonl",
    )  # fmt: skip
    validate.add_argument("manifest", type=Path, metavar="MANIFEST")

    train = _command(
        commands, "train", train_command, "train a model; started again it goes on where it was",
        "saysee train tiny --data manifest.jsonl --out runs/tiny --training.steps 600",
    )  # fmt: skip
    train.add_argument(
        "config", metavar="CONFIG", help=f"a YAML file, or a bundled recipe: {', '.join(bundled_configs())}"
    )
    train.add_argument("--data", type=Path, required=True, metavar="MANIFEST")
    train.add_argument("--out", type=Path, required=True, metavar="MODEL", help="the model folder")
    train.epilog = f"{train.epilog}\nEvery value of the configuration is an option too: --SECTION.KEY VALUE"
    _features_options(train)

    evaluate = _command(
        commands, "evaluate", evaluate_command, "measure recall, coarse and fine, in both directions",
        "saysee evaluate runs/tiny --data manifest.jsonl --split test",
    )  # fmt: skip
    evaluate.add_argument("model", type=Path, metavar="MODEL")
    evaluate.add_argument("--data", type=Path, required=True, metavar="MANIFEST")
    evaluate.add_argument("--split", choices=SPLITS, default="test", help="(default: test)")
    evaluate.add_argument(
        "--out", type=Path, metavar="FILE", help="(default: results.json in MODEL; dev: results-dev.json)"
    )
    _ranking_options(evaluate)
    _features_options(evaluate)

    compare = _command(
        commands, "compare", compare_command, "say whether two results differ (paired bootstrap over images)",
        "saysee compare runs/a/results.json runs/b/results.json",
    )  # fmt: skip
    compare.add_argument("a", type=Path, metavar="A")
    compare.add_argument("b", type=Path, metavar="B")
    compare.add_argument("--json", action="store_true", help="print JSON")

    index_example = "saysee index build ~/Pictures --model runs/tiny --into pictures.index"
    index = _command(commands, "index", index_command, "make a folder of pictures searchable", index_example)
    actions = index.add_subparsers(dest="action", required=True, metavar="ACTION")
    build = _command(
        actions, "build", index_command, "index every picture below a folder; a bad one is skipped and named",
        index_example,
    )  # fmt: skip
    build.add_argument("folder", type=Path, metavar="DIR")
    build.add_argument("--model", type=Path, required=True)
    build.add_argument("--into", type=Path, required=True, metavar="INDEX")
    _device_option(build)

    search = _command(
        commands, "search", search_command, "rank the indexed pictures for a spoken question",
        "saysee search pictures.index question.wav --sheet answers.html",
    )  # fmt: skip
    search.add_argument("index", type=Path, metavar="INDEX")
    search.add_argument("question", type=Path, metavar="QUESTION", help="wav, flac, ogg, opus, mp3, m4a or webm")
    search.add_argument("--model", type=Path, help="(default: the folder that the index was built with)")
    search.add_argument("--top", type=int, default=10, metavar="N", help="answers to print (default: 10)")
    _ranking_options(search)
    _device_option(search)
    search.add_argument("--json", action="store_true", help="print JSON")
    search.add_argument("--sheet", type=Path, metavar="FILE", help="write a contact sheet, one HTML file")

    demo = _command(
        commands, "demo", demo_command, "train on the sample corpus, measure, ask three spoken questions",
        "saysee demo --out demo",
    )  # fmt: skip
    demo.add_argument("--out", type=Path, default=Path("demo"), help="(default: demo)")
    return parser


def prepare_command(options: argparse.Namespace) -> None:
    """Read a corpus, check every file, write the manifest."""
    from saysee.data import flickr8k, picture_folder
    from saysee.data.validate import validate

    prepared: Prepared
    if options.corpus == "flickr8k":
        prepared = flickr8k.prepare(options.folder)
    else:
        prepared = picture_folder.prepare(
            options.folder,
            recordings=options.recordings,
            split_by=options.split_by,
            dev=_share_or_names(options.dev, options.split_by),
            test=_share_or_names(options.test, options.split_by),
            seed=options.seed,
        )
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
    print(f"trained {progress.step} steps; the model of step {progress.best_step} ({dev}) is in {options.out}")


def evaluate_command(options: argparse.Namespace) -> None:
    """Measure, print the table, keep the record."""
    from saysee.evaluation.report import to_markdown, to_terminal
    from saysee.evaluation.results import write_results
    from saysee.files import write_text
    from saysee.workflows import evaluate_on_manifest

    name = "results.json" if options.split == "test" else f"results-{options.split}.json"
    out = options.out or options.model / name
    if out.suffix == ".md":
        raise SayseeError(f"--out is {out}; give a JSON file, the Markdown goes beside it")
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
        _checked_manifest(options.data),
        options.split,
        search=search,
        fine=options.rerank != 0,
        about={"model": str(options.model), "data": str(options.data)},
        cache=options.cache,
    )
    write_results(out, results)
    write_text(out.with_suffix(".md"), to_markdown(results))
    print(to_terminal(results))
    print(f"wrote {out} and {out.with_suffix('.md').name}")


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


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    handler: Handler,
    summary: str,
    example: str,
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(handler=handler)
    return parser


def _features_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="features of the frozen encoders (default: $SAYSEE_CACHE or ~/.cache/saysee)",
    )
    _device_option(parser)


def _device_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")


def _ranking_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rerank", type=int, metavar="K", help="of the coarse best, how many the fine stage ranks; 0: none"
    )
    parser.add_argument("--fusion", choices=get_args(Fusion), help="what those K are ranked by (default: the model's)")


def _abandon_output() -> None:
    """Let what is still buffered go nowhere: Python would complain of it once more at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(message: str, status: int) -> int:
    print(f"saysee: {message}", file=sys.stderr)
    return status


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


def _checked_manifest(path: Path) -> Manifest:
    """Read a manifest and refuse one with faults; faults of its files are found when they are read."""
    from saysee.data.validate import structural_faults

    manifest = read_manifest(path)
    if faults := structural_faults(manifest):
        raise ManifestError(str(path), [str(fault) for fault in faults])
    return manifest


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
