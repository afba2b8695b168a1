"""`saysee demo`: the whole way on the sample corpus, from files on disk to pictures for spoken questions.

Train the `tiny` recipe, print the recall table of the held-out recordings, index the drawings, ask three spoken
questions that were not in training, and write the answers as one HTML file that opens offline.
"""

from pathlib import Path

from saysee.config import load_config
from saysee.data.manifest import read_manifest
from saysee.data.sample import DEMO_QUESTIONS, sample_manifest_path
from saysee.evaluation.report import to_markdown, to_terminal
from saysee.evaluation.results import write_results
from saysee.files import write_text
from saysee.models.retrieval_model import SpeechImageModel
from saysee.search.building import build_index
from saysee.search.index import open_index
from saysee.search.question import read_question
from saysee.search.searcher import Searcher
from saysee.search.sheet import write_sheet
from saysee.workflows import evaluate_on_manifest, sheet_question, train_on_manifest

LANGUAGES = {"en": "English", "es": "Spanish", "fr": "French"}
ANSWERS = 6


def run_demo(out: Path) -> None:
    """Run the demo into the folder `out`; interrupted and started again, it goes on.

    Writes `model/`, `index/`, `cache/` and `answers.html`, and prints what it finds.

    Raises:
        SayseeError: `out` holds a model of another recipe.
    """
    manifest = read_manifest(sample_manifest_path())
    config = load_config("tiny")
    cache, model_folder, index_folder = out / "cache", out / "model", out / "index"
    print(f"The sample corpus: {manifest.summary()} (Art4Apps, CC BY-SA 3.0)")
    print(f"Training the recipe `tiny`, {config.training.steps} steps, on the CPU or GPU that is here ...", flush=True)
    train_on_manifest(config, manifest, model_folder, cache=cache)

    model = SpeechImageModel.from_pretrained(model_folder)
    results = evaluate_on_manifest(
        model, manifest, "test", cache=cache, about={"model": str(model_folder), "data": "sample corpus"}
    )
    write_results(model_folder / "results.json", results)
    write_text(model_folder / "results.md", to_markdown(results))
    print(f"\n{to_terminal(results)}\n")

    pictures = sample_manifest_path().parent / "images"
    report = build_index(pictures, model, model_folder, index_folder)
    searcher = Searcher(open_index(index_folder), model)
    print(f"Asking {len(DEMO_QUESTIONS)} spoken questions of all {report.total} drawings:")
    captions = {caption.id: caption for caption in manifest.captions}
    questions = []
    for question in DEMO_QUESTIONS:
        caption = captions[question]
        language = LANGUAGES[str(caption.language)]
        ranked = searcher.search(read_question(caption.audio), top=report.total).answers
        right = next(answer.rank for answer in ranked if answer.path.name == caption.image.name)
        answers = ranked[:ANSWERS]
        names = ", ".join(answer.path.stem for answer in answers)
        print(f"  {language} recording for the drawing `{caption.image.stem}` (it has rank {right}): {names}")
        questions.append(
            sheet_question(
                f"{language}: the word for the drawing `{caption.image.stem}`",
                caption.audio.read_bytes(),
                answers,
                note=f"A recording that was not in training. Its drawing has rank {right} of {report.total}.",
                correct=frozenset({searcher.index.description.folder / caption.image.name}),
            )
        )
    sheet = out / "answers.html"
    write_sheet(
        sheet,
        questions,
        "say it, see it",
        "Drawings and voices: Art4Apps, CC BY-SA 3.0. The recipe `tiny`, trained on the spot on 408 recordings.",
    )
    print(f"\nThe answers, with pictures and sound: {sheet.resolve()}")
