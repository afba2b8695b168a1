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
        resumes = options.command in ("speak", "extract", "train", "ablate", "table", "demo", "index")
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
    prepare.add_argument(
        "--leave-out-faults",
        action="store_true",
        help="published corpora: leave out, and name, records whose files cannot be used or that are in two splits",
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

    speak = _command(
        subparsers, "speak", commands.speak_command,
        "turn written captions into recordings by synthetic voices, and a manifest; started again it goes on",
        "saysee speak captions.csv --voices hibari:heart,flite:slt --voices test=flite:rms --out spoken",
    )  # fmt: skip
    speak.add_argument(
        "captions", type=Path, metavar="CAPTIONS", help="a table *.csv, *.tsv or *.jsonl, or Flickr8k.token.txt"
    )
    speak.add_argument(
        "--voices",
        action="append",
        required=True,
        metavar="[SPLIT=]ENGINE:VOICE,...",
        help="who speaks; with train=, dev= or test= in that split alone; may be repeated. Engines: flite, espeak-ng, "
        "hibari, kokoro",
    )
    speak.add_argument("--out", type=_folder, required=True, metavar="DIR", help="for recordings and manifest.jsonl")
    speak.add_argument("--images", type=Path, metavar="DIR", help="where images lie (default: beside CAPTIONS)")
    speak.add_argument("--first", type=int, metavar="N", help="of each image, its first N captions (default: all)")
    speak.add_argument(
        "--voices-per-caption", type=int, default=1, metavar="N", help="how many voices say each caption (default: 1)"
    )
    speak.add_argument(
        "--speed", type=float, default=0.1, metavar="SHARE", help="how much faster or slower, at most (default: 0.1)"
    )
    speak.add_argument(
        "--pitch", type=float, default=1.0, metavar="SEMITONES", help="how much higher or lower, at most (default: 1)"
    )
    speak.add_argument(
        "--tries", type=int, default=3, metavar="N", help="for a recording that is not sound (default: 3)"
    )
    speak.add_argument("--seed", type=int, default=0, help="draws voices, speed, pitch and splits (default: 0)")
    speak.add_argument(
        "--split-by", choices=SPLIT_BY, default="image", help="what no two splits of CAPTIONS share (default: image)"
    )
    speak.add_argument("--workers", type=int, default=1, metavar="N", help="processes on this machine (default: 1)")

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
    train.add_argument("--out", type=_folder, required=True, metavar="MODEL", help="the model folder")
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
    ablate.add_argument("--out", type=_folder, required=True, metavar="DIR", help="for models, records and the table")
    ablate.add_argument("--seeds", default="0,1,2", help="joined by commas (default: 0,1,2)")
    ablate.add_argument("--rows", help="joined by commas (default: all)")
    ablate.add_argument("--split", choices=SPLITS, default="test", help="what the table measures (default: test)")
    _features_options(ablate)

    table = _command(
        subparsers, "table", commands.table_command, "train several recipes over seeds; the main and zero-shot tables",
        "saysee table flickr8k_c2f_base flickr8k_coarse_to_fine_no_queue --data flickr8k.jsonl --out tables/flickr8k",
    )  # fmt: skip
    _config_argument(table, "recipes, one row each; ", "+")
    table.add_argument("--data", type=Path, required=True, metavar="MANIFEST")
    table.add_argument("--out", type=_folder, required=True, metavar="DIR", help="for models, records and the tables")
    table.add_argument("--seeds", default="0,1,2", help="joined by commas (default: 0,1,2)")
    table.add_argument("--split", choices=SPLITS, default="test", help="what the tables measure (default: test)")
    table.add_argument(
        "--zero-shot", type=Path, metavar="MANIFEST", help="another corpus, to measure the same models on"
    )
    _features_options(table)

    compare = _command(
        subparsers, "compare", commands.compare_command, "say whether two results differ (paired bootstrap)",
        "saysee compare runs/a/results.json runs/b/results.json",
    )  # fmt: skip
    compare.add_argument("a", type=Path, metavar="A")
    compare.add_argument("b", type=Path, metavar="B")
    compare.add_argument("--json", action="store_true", help="print JSON")

    _index_commands(subparsers)

    search = _command(
        subparsers, "search", commands.search_command, "rank what is indexed for a spoken question",
        "saysee search pictures.index question.wav --sheet answers.html",
    )  # fmt: skip
    search.add_argument("index", type=Path, metavar="INDEX")
    search.add_argument(
        "question",
        nargs="?",
        metavar="QUESTION",
        help="a recording (wav, flac, ogg, opus, mp3, m4a or webm) or a picture; - reads it from standard input",
    )
    search.add_argument(
        "--microphone", action="store_true", help="record the question (pip install 'saysee[microphone]')"
    )
    search.add_argument("--model", type=Path, help="(default: the folder that the index was built with)")
    search.add_argument("--top", type=int, default=10, metavar="N", help="answers to print (default: 10)")
    _ranking_options(search)
    search.add_argument(
        "--path", metavar="PATTERN", help="only files whose path in the folder is like this; * is anything: 'trips/*'"
    )
    search.add_argument("--since", metavar="DAY", help="only pictures taken on this day or later, as 2024-05-31")
    search.add_argument("--until", metavar="DAY", help="only pictures taken on this day or before")
    _device_option(search)
    search.add_argument("--json", action="store_true", help="print JSON")
    search.add_argument("--sheet", type=Path, metavar="FILE", help="write a contact sheet, one HTML file")

    serve = _command(
        subparsers, "serve", commands.serve_command, "search by voice in the browser, and over HTTP",
        "saysee serve pictures.index",
    )  # fmt: skip
    serve.add_argument("index", type=Path, metavar="INDEX")
    serve.add_argument("--model", type=Path, help="(default: the folder that the index was built with)")
    _server_options(serve)
    _device_option(serve)

    record = _command(
        subparsers, "record", commands.record_command, "record spoken captions of pictures in the browser",
        "saysee record ~/Pictures --out captions.jsonl",
    )  # fmt: skip
    record.add_argument("folder", type=Path, metavar="DIR", help="of the pictures")
    record.add_argument(
        "--out", type=Path, required=True, metavar="MANIFEST", help="what `train` takes; recordings lie beside it"
    )
    _server_options(record)

    calibrate = _command(
        subparsers, "calibrate", commands.calibrate_command,
        "measure what mismatched pairs score, so that a search can say that nothing fits (`train` does it at its end)",
        "saysee calibrate runs/tiny --data manifest.jsonl",
    )  # fmt: skip
    calibrate.add_argument("model", type=Path, metavar="MODEL")
    calibrate.add_argument("--data", type=Path, required=True, metavar="MANIFEST", help="its dev split is used")
    _features_options(calibrate)

    demo = _command(
        subparsers, "demo", commands.demo_command,
        "ask the model in the package for sample drawings, and open the page to be spoken to", "saysee demo",
    )  # fmt: skip
    demo.add_argument("--out", type=_folder, default=Path("demo"), metavar="DIR", help="(default: demo)")
    demo.add_argument(
        "--train", action="store_true", help="instead train the recipe tiny on the sample corpus, measure it and ask it"
    )
    return parser


def _index_commands(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe `saysee index build`, `update`, `watch` and `check`."""
    example = "saysee index build ~/Pictures --into pictures.index"
    index = _command(subparsers, "index", commands.index_build_command, "make a folder of pictures searchable", example)
    actions = index.add_subparsers(dest="action", required=True, metavar="ACTION")
    build = _command(
        actions, "build", commands.index_build_command,
        "index every picture below a folder; a bad one is skipped and named; started again it goes on",
        example,
    )  # fmt: skip
    build.add_argument("folder", type=Path, metavar="DIR")
    build.add_argument("--model", type=Path, default=Path("saysee-small"), help="(default: saysee-small)")
    build.add_argument("--into", type=Path, required=True, metavar="INDEX")
    build.add_argument("--recordings", action="store_true", help="index recordings, which are then found by a picture")
    build.add_argument("--coarse-only", action="store_true", help="no fine stage: a fiftieth of the disk space")
    build.add_argument(
        "--milvus",
        metavar="URI",
        help="keep the items in a Milvus cluster, as http://milvus:19530; MILVUS_TOKEN is read",
    )
    build.add_argument(
        "--collection", metavar="NAME", help="of the Milvus collection (default: saysee_ and INDEX's name)"
    )
    update = _command(
        actions, "update", commands.index_update_command,
        "take in what is new, changed or moved, and let go of what vanished", "saysee index update pictures.index",
    )  # fmt: skip
    watch = _command(
        actions, "watch", commands.index_watch_command, "update whenever the folder changes, until Ctrl-C",
        "saysee index watch pictures.index",
    )  # fmt: skip
    check = _command(
        actions, "check", commands.index_check_command,
        "read everything back; say what is damaged, and what an approximate search misses",
        "saysee index check pictures.index --repair",
    )  # fmt: skip
    check.add_argument("index", type=Path, metavar="INDEX")
    check.add_argument(
        "--repair", action="store_true", help="take what is damaged out, so that `update` encodes it again"
    )
    for action in (update, watch):
        action.add_argument("index", type=Path, metavar="INDEX")
        action.add_argument("--model", type=Path, help="(default: the folder that the index was built with)")
    for action in (build, update, watch):
        _device_option(action)
        action.add_argument("--verbose", action="store_true", help="name the files that are left out for their suffix")


def _server_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: 127.0.0.1, this machine alone)")
    parser.add_argument("--port", type=int, default=8765, help="0 takes a free one (default: 8765)")
    parser.add_argument("--cert", type=Path, metavar="PEM", help="TLS certificate: a phone's microphone needs HTTPS")
    parser.add_argument("--key", type=Path, metavar="PEM", help="its private key")
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="the token that every request must send (default: none on this machine, else one is made and printed)",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another name by which the server is called, such as a proxy's; may be repeated",
    )


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


def _config_argument(parser: argparse.ArgumentParser, what: str = "", nargs: str | None = None) -> None:
    parser.add_argument(
        "config",
        nargs=nargs,
        metavar="RECIPE" if nargs else "CONFIG",
        help=f"{what}a YAML file, or a bundled recipe: {', '.join(bundled_configs())}",
    )
    parser.epilog = f"{parser.epilog}\nEvery value of the configuration is an option too: --SECTION.KEY VALUE"


def _folder(text: str) -> Path:
    """Take the path of a folder, which may not be there yet."""
    path = Path(text)
    if file := next((place for place in (path, *path.parents) if place.exists() and not place.is_dir()), None):
        raise argparse.ArgumentTypeError(f"{str(file)!r} is a file; give a folder, which is made if it is not there")
    return path


def _features_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cache",
        type=_folder,
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
