"""`saysee demo`: spoken questions of the sample drawings, answered by the model in the package; then the user's own.

Index the drawings, ask recordings of a human voice that the model has never heard, write the answers as one HTML file
that opens offline, and serve the page to be spoken to. `saysee demo --train` goes the whole way instead: it trains the
recipe `tiny` on the sample corpus, prints the recall table of the held-out recordings, and asks three of them.
"""

import hashlib
import os
import sys
import webbrowser
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from threading import Thread

from saysee.config import load_config
from saysee.data.emoji import read_concepts
from saysee.data.manifest import SpokenCaption, read_manifest
from saysee.data.sample import TRAINED_QUESTIONS, questions_in, sample_manifest_path
from saysee.evaluation.report import to_markdown, to_terminal
from saysee.evaluation.results import write_results
from saysee.files import write_text
from saysee.models.model_folder import bundled_models
from saysee.models.retrieval_model import SpeechImageModel
from saysee.search.building import build_index
from saysee.search.index import open_index
from saysee.search.question import read_question
from saysee.search.searcher import Answer, Searcher
from saysee.search.sheet import write_sheet
from saysee.serving.server import Settings, serve_search, tell_at_once
from saysee.workflows import evaluate_on_manifest, sheet_question, train_on_manifest

MODEL = "saysee-small"
LANGUAGES = {"en": "English", "es": "Spanish", "fr": "French"}
ANSWERS = 6
QUESTIONS = 3


def run_demo(out: Path) -> None:
    """Run the demo into the folder `out`.

    Writes an index and `answers.html`, prints what it finds, and serves the page until the process is told to end.

    Args:
        out: is made if it is not there; of an earlier run the index is taken.
    """
    folder = bundled_models()[MODEL]
    model = SpeechImageModel.from_pretrained(folder)
    pictures = sample_manifest_path().parent / "images"
    print(f"Indexing the sample drawings with the model {MODEL}, which has seen none of them ...", flush=True)
    # another version's model, or an installation elsewhere, has an index of its own
    known_by = hashlib.sha256(f"{pictures.resolve()}{model.fingerprint}".encode()).hexdigest()
    index_folder = out / f"index-{known_by[:8]}"
    report = build_index(pictures, model, folder, index_folder)
    with closing(open_index(index_folder)) as index:
        searcher = Searcher(index, model)
        known = {name.lower() for concept in read_concepts() for name in concept.names()}
        questions = questions_in("en", known)
        ranked = {question.id: _ranking(searcher, question, report.total) for question in questions}
        ranks = [_rank(ranked[question.id], question) for question in questions]
        first, ten = (sum(rank <= most for rank in ranks) for most in (1, 10))
        print(
            f"Asking {len(questions)} words of all {report.total} drawings, in a human voice: the drawing comes first "
            f"for {first} of them, and is among the first ten for {ten}. The first {QUESTIONS} words:"
        )
        shown = questions[:QUESTIONS]
        _show(shown, ranked)
        note = "A human voice. Neither it nor the drawing was in training."
        _write(out / "answers.html", shown, ranked, note, f"The model {MODEL}, trained on emoji and synthetic speech.")
        print("\nNow say something yourself:")
        serve_search(searcher, Settings(port=0), _tell_and_open)


def run_training_demo(out: Path) -> None:
    """Train, measure and ask, into the folder `out`; interrupted and started again, it goes on.

    Writes `model/`, `trained-index/`, `cache/` and `answers.html`, and prints what it finds.

    Raises:
        SayseeError: `out` holds a model of another recipe.
    """
    manifest = read_manifest(sample_manifest_path())
    config = load_config("tiny")
    cache, folder = out / "cache", out / "model"
    print(f"The sample corpus: {manifest.summary()} (Art4Apps, CC BY-SA 3.0)")
    print(f"Training the recipe `tiny`, {config.training.steps} steps, on the CPU or GPU that is here ...", flush=True)
    train_on_manifest(config, manifest, folder, cache=cache)

    model = SpeechImageModel.from_pretrained(folder)
    results = evaluate_on_manifest(
        model, manifest, "test", cache=cache, about={"model": str(folder), "data": "sample corpus"}
    )
    write_results(folder / "results.json", results)
    write_text(folder / "results.md", to_markdown(results))
    print(f"\n{to_terminal(results)}\n")

    report = build_index(sample_manifest_path().parent / "images", model, folder, out / "trained-index")
    with closing(open_index(out / "trained-index")) as index:
        searcher = Searcher(index, model)
        captions = {caption.id: caption for caption in manifest.captions}
        questions = [captions[question] for question in TRAINED_QUESTIONS]
        ranked = {question.id: _ranking(searcher, question, report.total) for question in questions}
        print(f"Asking {len(questions)} spoken questions of all {report.total} drawings:")
        _show(questions, ranked)
        note = "A recording that was not in training."
        model_note = f"The recipe `tiny`, trained on the spot on {len(manifest.of('train'))} recordings."
        _write(out / "answers.html", questions, ranked, note, model_note)


def _ranking(searcher: Searcher, question: SpokenCaption, total: int) -> Sequence[Answer]:
    return searcher.search(read_question(question.audio), top=total).answers


def _rank(ranked: Sequence[Answer], question: SpokenCaption) -> int:
    return next(answer.rank for answer in ranked if answer.path.name == question.image.name)


def _show(questions: Sequence[SpokenCaption], ranked: Mapping[str, Sequence[Answer]]) -> None:
    """Print each question's first answers, and where its own drawing stands."""
    for question in questions:
        names = ", ".join(answer.path.stem for answer in ranked[question.id][:ANSWERS])
        rank = _rank(ranked[question.id], question)
        language = LANGUAGES[str(question.language)]
        print(f"  {language} recording for the drawing `{question.image.stem}` (it has rank {rank}): {names}")


def _write(
    sheet: Path, questions: Sequence[SpokenCaption], ranked: Mapping[str, Sequence[Answer]], note: str, model: str
) -> None:
    """Write the questions with their first answers as one HTML file.

    Args:
        sheet: the file.
        questions: recordings of the sample corpus.
        ranked: all drawings for each question, by its id.
        note: what is to be said of every question.
        model: which model answers.
    """
    asked = []
    for question in questions:
        answers = ranked[question.id]
        right = _rank(answers, question)
        asked.append(
            sheet_question(
                f"{LANGUAGES[str(question.language)]}: the word for the drawing `{question.image.stem}`",
                question.audio.read_bytes(),
                answers[:ANSWERS],
                note=f"{note} Its drawing has rank {right} of {len(answers)}.",
                correct=frozenset({answers[right - 1].path}),
            )
        )
    write_sheet(sheet, asked, "say it, see it", f"Drawings and voices: Art4Apps, CC BY-SA 3.0. {model}")
    print(f"\nThe answers, with pictures and sound: {sheet.resolve()}")


def _tell_and_open(line: str) -> None:
    """Print what the server says, and show its page where somebody sits before a screen."""
    tell_at_once(line)
    has_screen = sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
    if line.startswith("open ") and has_screen and sys.stdout.isatty():
        # some browsers return only when they are closed, and the server is not running yet
        Thread(target=webbrowser.open, args=[line.removeprefix("open ")], daemon=True).start()
