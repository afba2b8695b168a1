"""Contact sheets of what the full method finds and misses: to look at, for the photographs may not be published."""

from collections.abc import Mapping
from pathlib import Path

import torch

from flickr8k_synthetic.corpus import RUNS, SEED, corpus
from flickr8k_synthetic.measure import finished, model_folder
from flickr8k_synthetic.plan import FULL, config_for, planned_records
from saysee.data.manifest import SpokenCaption
from saysee.models.image_encoder import ImageEncoding
from saysee.models.retrieval_model import SpeechImageModel
from saysee.search.reranker import best_candidates, fuse, match_logits
from saysee.search.searcher import Answer
from saysee.search.sheet import SheetQuestion, write_sheet
from saysee.workflows import sheet_question

QUESTIONS, SHOWN, EACH = 200, 8, 12
"""Captions that are asked, answers that are shown, and questions on a sheet."""


def write_sheets() -> None:
    """Ask some test captions of each full model on record; write its first hits and its first misses."""
    records = finished("test")
    for run, _ in planned_records(records):
        config = config_for(run, records)
        if run.row != FULL or config is None or not (folder := model_folder(run, config)).exists():
            continue
        model = SpeechImageModel.from_pretrained(folder)
        manifest = corpus(run.captions)
        pictures = manifest.images("test")
        images = model.encode_image(list(pictures.values()))
        captions = manifest.of("test")
        chosen = torch.randperm(len(captions), generator=torch.Generator().manual_seed(SEED))[:QUESTIONS].tolist()
        sheets: dict[str, list[SheetQuestion]] = {"hits": [], "misses": []}
        for caption in (captions[row] for row in chosen):
            answers = _answers(model, caption, images, pictures)
            sheet = sheets["hits" if answers[0].id == caption.image_id else "misses"]
            if len(sheet) < EACH:
                sheet.append(_question(caption, answers))
        for kind, questions in sheets.items():
            path = RUNS / "sheets" / f"{run.name}-{kind}.html"
            write_sheet(path, questions, f"{run.name}: {kind}", "Flickr8k: for research, not to be published.")


@torch.inference_mode()
def _answers(
    model: SpeechImageModel, caption: SpokenCaption, images: ImageEncoding, pictures: Mapping[str, Path]
) -> list[Answer]:
    """Return the first answers of the fine stage."""
    speech = model.encode_speech(caption.audio)
    similarity = model.similarity(speech, images)
    best = best_candidates(similarity, model.config.search.rerank)[0]
    logits = match_logits(model, speech, images.hidden, torch.zeros_like(best), best)
    order = fuse(logits, similarity[0, best], model.temperature, model.config.search).argsort(descending=True)[:SHOWN]
    names = list(pictures)
    return [
        Answer(rank, name, pictures[name], similarity[0, best[place]].item(), logits[place].item(), 0)
        for rank, place in enumerate(order.tolist(), start=1)
        for name in [names[int(best[place])]]
    ]


def _question(caption: SpokenCaption, answers: list[Answer]) -> SheetQuestion:
    return sheet_question(
        caption.text or caption.id,
        caption.audio.read_bytes(),
        answers,
        note=caption.speaker or "",
        correct=frozenset([caption.image]),
    )
