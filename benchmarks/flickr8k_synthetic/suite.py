"""The method's claims tested on data that anyone can obtain: Flickr8k's photographs, captions by synthetic voices.

    pip install 'saysee[speak]'
    pip install --require-hashes --no-deps -r benchmarks/flickr8k_synthetic/requirements.txt
    python benchmarks/flickr8k_synthetic FLICKR8K --picture-words WORDS    # everything, one stage after the other
    python benchmarks/flickr8k_synthetic FLICKR8K --only speak --captions 2
    python benchmarks/flickr8k_synthetic FLICKR8K --only runs --rows contrast,all --seeds 0
    python benchmarks/flickr8k_synthetic FLICKR8K --only runs --split dev --change training.steps=3000

FLICKR8K holds `Flickr8k.token.txt`, the three split lists, and the photographs in `images`. Stages:

- speak: captions to recordings in `runs/flickr8k_synthetic`; no voice speaks in two splits (`corpus.VOICES`).
- features: what the frozen encoders make of recordings and photographs, into the cache of features.
- runs: trains and measures what `plan.plan` lists: rows, seeds, captions of an image, noise. Each finished run is a
  record in `results/flickr8k_synthetic.json` that is skipped next time. With `--split dev`, dev is measured
  and the recipe may be changed; what was tried so is kept in `results/flickr8k_synthetic_dev.json`.
- gains: what each row gains over contrast only, with paired intervals; from the ranks beside the record.
- questions: how long a spoken question takes on this machine's processor, and with `--picture-words` the zero-shot
  question; asked of the models that lie here.
- reranking: what the fine stage knows that the coarse one does not, on dev, by each rule of fusion and by fitted
  weights (`reranking`); asked of the models that lie here.
- rival: speech recognition, then the same head on sentence embeddings (`rival`).
- table: the tables of docs/results.md, into it and on the terminal, and two figures into `docs`; from the records
  alone.
- sheets: contact sheets of hits and misses, below `runs`: Flickr8k's photographs may not be published.

Every stage goes on where it was stopped. Two programs started side by side share the runs; with OMP_NUM_THREADS=1 each
they get more out of two cores than one program with two threads.
"""

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from flickr8k_synthetic.corpus import corpus, speak_captions, spoken_words
from flickr8k_synthetic.figures import FIGURES
from flickr8k_synthetic.gains import measure_gains
from flickr8k_synthetic.measure import (
    carry_out,
    finished,
    measure_zero_shot,
    model_folder,
    on_record,
    put_on_record,
    question_time,
)
from flickr8k_synthetic.plan import COMPARED, RECIPES, Run, config_for, plan, planned_records, record_of
from flickr8k_synthetic.reranking import measure_reranking
from flickr8k_synthetic.rival import measure_rival
from flickr8k_synthetic.sheets import write_sheets
from flickr8k_synthetic.table import DOCUMENT, tables, written_into
from saysee.config import load_config
from saysee.data.manifest import Split
from saysee.errors import SayseeError
from saysee.evaluation.ablation import ROWS, require_rows
from saysee.files import sole_process, write_text
from saysee.models.retrieval_model import SpeechImageModel
from saysee.workflows import extract_on_manifest

STAGES = ("speak", "features", "runs", "gains", "questions", "reranking", "rival", "table", "sheets")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("flickr8k", type=Path, nargs="?", help="the folder; the stage speak alone needs it")
    parser.add_argument("--only", choices=STAGES, help="one stage")
    parser.add_argument("--captions", type=int, choices=RECIPES, help="of each training image (default: both)")
    parser.add_argument("--rows", type=lambda text: require_rows(text.split(",")), default=list(ROWS))
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")])
    parser.add_argument("--split", choices=("test", "dev"), default="test", help="what is measured (default: test)")
    parser.add_argument("--picture-words", type=Path, help="folder of picture-words, for the zero-shot question")
    parser.add_argument("--workers", type=int, default=2, help="processes that speak and encode (default: 2)")
    parser.add_argument("--device", default="cpu", help="what encodes, trains and measures (default: cpu)")
    parser.add_argument(
        "--change", action="append", metavar="SECTION.NAME=VALUE", help="of the recipe; may be repeated"
    )
    options = parser.parse_args(arguments)
    if options.change and (options.only, options.split) != ("runs", "dev"):
        parser.error("another recipe is tried on dev alone: --only runs --split dev")
    if options.flickr8k is None and options.only in (None, "speak"):
        parser.error("give the folder of Flickr8k")
    if options.picture_words is None and options.only is None:
        parser.error("give --picture-words, which the zero-shot question needs, or one stage with --only")
    captions = [options.captions] if options.captions else sorted(RECIPES)
    for stage in [options.only] if options.only else STAGES:
        if stage == "speak":
            print("\n".join(speak_captions(options.flickr8k, max(captions), options.workers)))
        elif stage == "features":
            manifest = corpus(max(captions))
            recipe = load_config(str(RECIPES[max(captions)]))
            extract_on_manifest(recipe, manifest, workers=options.workers, device=options.device)
        elif stage == "runs":
            runs = [run for run in plan() if run.row in options.rows and run.captions in captions]
            runs = [run for run in runs if options.seeds is None or run.seed in options.seeds]
            if options.split == "dev":  # where recipes are tried: on clean data, all for the same steps
                plain = [run for run in runs if run.noise == 0 and not run.equal_time and not run.changes]
                runs = [replace(run, changes=tuple(options.change or ())) for run in plain]
            while any(attempt(run, options.split, options.device) for run in runs):
                pass  # from the first again: what waited for the time of another run may be next
        elif stage == "gains":
            measure_gains()
        elif stage == "questions":
            ask_models(options.picture_words)
        elif stage == "reranking":
            measure_reranking()
        elif stage == "rival":
            for count in captions:
                measure_rival(count, options.split)
        elif stage == "table":
            for figure, draw in FIGURES.items():
                write_text(figure, draw(finished("test")))
            made = tables(on_record("test"), on_record("dev"))
            write_text(DOCUMENT, written_into(DOCUMENT.read_text(encoding="utf-8"), made))
            print("\n\n".join(f"{name}\n\n{table}" for name, table in made.items()))
        else:
            write_sheets()


def attempt(run: Run, split: Split, device: str) -> bool:
    """Carry out a run that is not on record and that no other program is at; return whether this one did."""
    config = config_for(run, finished(split))
    if config is None:
        return False
    folder = model_folder(run, config)
    with ExitStack() as held:
        try:
            held.enter_context(sole_process(folder.with_name(f"{folder.name}.lock"), "at this run"))
        except SayseeError:
            return False
        if record_of(run, config, finished(split)) is not None:
            return False
        print(f"{run.name}, {config.training.steps:,} steps {' '.join(run.changes)}", flush=True)
        put_on_record(split, carry_out(run, config, corpus(run.captions, run.noise), split, device))
    return True


def ask_models(picture_words: Path | None) -> None:
    """Ask the models of the first seed, those that lie here, what they have not been asked yet.

    Args:
        picture_words: asked of the models of `COMPARED` that have seen no wrong pairs; None asks none.
    """
    words = None if picture_words is None else spoken_words(picture_words)
    for run, record in planned_records(finished("test")):
        config = config_for(run, finished("test"))
        if config is None or run.seed != 0 or not (folder := model_folder(run, config)).exists():
            continue
        compared = (run.row, run.changes) in COMPARED and run.noise == 0 and not run.equal_time
        asked = words if compared and "zero_shot" not in record else None
        if "milliseconds_of_a_question" in record and asked is None:
            continue
        model = SpeechImageModel.from_pretrained(folder)  # on the processor, where a question is timed
        answers: dict[str, Any] = {}
        if "milliseconds_of_a_question" not in record:
            answers["milliseconds_of_a_question"] = question_time(model, corpus(run.captions).of("test"))
        if asked is not None:
            answers["zero_shot"] = measure_zero_shot(model, folder, asked)
        put_on_record("test", {"key": record["key"], **answers})
