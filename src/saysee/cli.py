"""The command line: what can be asked, and how an error is answered. What is done stands in `commands`.

What was made goes to standard output; progress and errors go to standard error. A user's mistake ends with one clear
message and status 2, a failing disk with status 1, Ctrl-C with status 130.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast, get_args

from saysee import __version__, commands
from saysee.config import Fusion, bundled_configs
from saysee.data.manifest import SPLIT_BY, SPLITS
from saysee.errors import SayseeError

CORPORA = ("picture-folder", "flickr8k", "spoken-coco", "places", "hugging-face")

Handler = Callable[[argparse.Namespace], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = build_parser()
    options, unknown = parser.parse_known_args(arguments)
    if unknown and not hasattr(options, "config"):
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    options.overrides = unknown
    try:
        cast(Handler, options.handler)(options)
        sys.stdout.flush()  # here, where a closed pipe or a full disk is still answered
    except SayseeError as error:
        return _complain(str(error), 2)
    except KeyboardInterrupt:
        resumes = options.command in ("extract", "train", "ablate", "demo")
        return _complain("interrupted" + ("; the same command goes on from where it was" if resumes else ""), 130)
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
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    prepare = _command(
        subparsers, "prepare", commands.prepare_command, "make a validated manifest of a corpus",
        "saysee prepare picture-folder my_pictures --split-by speaker --dev anna --test omar --out manifest.jsonl",
    )  # fmt: skip
    prepare.add_argument("corpus", choices=CORPORA, help="the corpus's layout on disk")
    prepare.add_argument("folder", metavar="DIR", help="of the corpus; for hugging-face also a name on the hub")
    prepare.add_argument("--out", type=Path, required=True, metavar="MANIFEST", help="the JSON Lines file to write")
    prepare.add_argument("--seed", type=int, default=0, help="of splits that are drawn (default: 0)")
    prepare.add_argument(
        "--dev", help="where splits are drawn: a share of the images; by speaker: names joined by commas"
    )
    prepare.add_argument("--test", help="the same for test")
    prepare.add_argument(
        "--images", type=Path, metavar="DIR", help="spoken-coco, places: where the pictures lie, if elsewhere"
    )
    folder = prepare.add_argument_group("picture-folder")
    folder.add_argument(
        "--recordings", type=Path, metavar="FILE", help="the CSV or JSONL (default: recordings.* in DIR)"
    )
    folder.add_argument(
        "--split-by", choices=SPLIT_BY, default="image", help="what no two splits share (default: image)"
    )
    hub = prepare.add_argument_group("hugging-face")
    hub.add_argument("--files", type=Path, metavar="DIR", help="where media are written (default: beside MANIFEST)")
    hub.add_argument("--revision", help="of the data set on the hub")
    hub.add_argument("--config", dest="subset", metavar="NAME", help="which configuration of several is read")
    hub.add_argument("--split", metavar="NAME", help="read this split alone")
    hub.add_argument("--columns", metavar="audio=X,image=Y", help="which columns, where they cannot be told")
    places = prepare.add_argument_group("places")
    places.add_argument(
        "--held-out", choices=["seen", "unseen"], default="seen", help="dev and test of 2020 (default: seen)"
    )

    validate = _command(
        subparsers, "validate", commands.validate_command, "list every fault of a manifest and of its files",
        "saysee validate manifest.jsonl",
    )  # fmt: skip
    validate.add_argument("manifest", type=Path, metavar="MANIFEST")

    extract = _command(
        subparsers, "extract", commands.extract_command, "run the frozen encoders over a corpus, before training",
        "saysee extract flickr8k_c2f_large --data flickr8k.jsonl --cache /data/features --workers 8",
    )  # fmt: skip
    _config_argument(extract)
    extract.add_argument("--data", type=Path, required=True, metavar="MANIFEST")
    extract.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes on this machine, each with its own encoder"
    )
    extract.add_argument(
        "--batch-size",
        type=int,
        default=1,
        metavar="B",
        help="files encoded together: faster on a GPU; the last bits then depend on the neighbours (default: 1)",
    )
    extract.add_argument(
        "--ray", metavar="ADDRESS", help="a Ray cluster that does it: auto, HOST:6379, ray://HOST:10001"
    )
    extract.add_argument(
        "--verify", action="store_true", help="first read all stored features and make the damaged ones again"
    )
    _features_options(extract)

    train = _command(
        subparsers, "train", commands.train_command, "train a model; started again it goes on where it was",
        "saysee train tiny --data manifest.jsonl --out runs/tiny --training.steps 600",
    )  # fmt: skip
    _config_argument(train)
    train.add_argument("--data", type=Path, required=True, metavar="MANIFEST")
    train.add_argument("--out", type=Path, required=True, metavar="MODEL", help="the model folder")
    _features_options(train)

    evaluate = _command(
        subparsers, "evaluate", commands.evaluate_command, "measure recall, coarse and fine, in both directions",
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

    zero_shot = _command(
        subparsers, "zero-shot", commands.zero_shot_command, "measure a model on a corpus of which it has seen nothing",
        "saysee zero-shot runs/spoken_coco --data flickr8k.jsonl",
    )  # fmt: skip
    zero_shot.add_argument("model", type=Path, metavar="MODEL")
    zero_shot.add_argument("--data", type=Path, required=True, metavar="MANIFEST")
    zero_shot.add_argument("--split", choices=SPLITS, default="test", help="(default: test)")
    zero_shot.add_argument("--out", type=Path, metavar="FILE", help="(default: zero-shot-NAME.json in MODEL)")
    _features_options(zero_shot)

    ablate = _command(
        subparsers, "ablate", commands.ablate_command, "train a recipe with its parts switched, over seeds; the table",
        "saysee ablate flickr8k_c2f_base --data flickr8k.jsonl --out runs/ablation --seeds 0,1,2",
    )  # fmt: skip
    _config_argument(ablate)
    ablate.add_argument("--data", type=Path, required=True, metavar="MANIFEST")
    ablate.add_argument("--out", type=Path, required=True, metavar="DIR", help="for models, records and the table")
    ablate.add_argument("--seeds", default="0,1,2", help="joined by commas (default: 0,1,2)")
    ablate.add_argument("--rows", help="joined by commas (default: all)")
    ablate.add_argument("--split", choices=SPLITS, default="test", help="what the table measures (default: test)")
    _features_options(ablate)

    compare = _command(
        subparsers, "compare", commands.compare_command, "say whether two results differ (paired bootstrap)",
        "saysee compare runs/a/results.json runs/b/results.json",
    )  # fmt: skip
    compare.add_argument("a", type=Path, metavar="A")
    compare.add_argument("b", type=Path, metavar="B")
    compare.add_argument("--json", action="store_true", help="print JSON")

    index_example = "saysee index build ~/Pictures --model runs/tiny --into pictures.index"
    index = _command(subparsers, "index", commands.index_command, "make a folder of pictures searchable", index_example)
    actions = index.add_subparsers(dest="action", required=True, metavar="ACTION")
    build = _command(
        actions, "build", commands.index_command, "index every picture below a folder; a bad one is skipped and named",
        index_example,
    )  # fmt: skip
    build.add_argument("folder", type=Path, metavar="DIR")
    build.add_argument("--model", type=Path, required=True)
    build.add_argument("--into", type=Path, required=True, metavar="INDEX")
    _device_option(build)

    search = _command(
        subparsers, "search", commands.search_command, "rank the indexed pictures for a spoken question",
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
        subparsers, "demo", commands.demo_command, "train on the sample corpus, measure, ask three spoken questions",
        "saysee demo --out demo",
    )  # fmt: skip
    demo.add_argument("--out", type=Path, default=Path("demo"), help="(default: demo)")
    return parser


def _command(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    handler: Handler,
    summary: str,
    example: str,
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(handler=handler)
    return parser


def _config_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", metavar="CONFIG", help=f"a YAML file, or a bundled recipe: {', '.join(bundled_configs())}"
    )
    parser.epilog = f"{parser.epilog}\nEvery value of the configuration is an option too: --SECTION.KEY VALUE"


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
