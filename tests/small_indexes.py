"""A folder of small pictures, a question to ask them, and an index of them."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from media import write_image
from saysee.models.retrieval_model import SpeechImageModel
from saysee.search.building import UpdateReport, build_index
from saysee.search.index import Index, open_index
from saysee.search.question import Question
from saysee.search.stores.base import Item

COLOURS = ("red", "green", "blue", "white", "black", "orange", "purple", "brown", "pink")


def write_pictures(folder: Path) -> Path:
    """Nine pictures of one colour, four of them in a folder below."""
    for number, colour in enumerate(COLOURS):
        path = folder / ("nested" if number % 2 else ".") / f"{colour} o'clock {number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, colour=colour)
    return folder


def spoken(seed: int = 0, samples: int = 12_000) -> Question:
    """A question whose waveform is noise: what is heard in it is not asked here."""
    return Question("recording", np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32))


def heard(question: Question) -> NDArray[np.float32]:
    assert question.waveform is not None
    return question.waveform


def build(folder: Path, model: SpeechImageModel, into: Path, **options: object) -> UpdateReport:
    return build_index(folder, model, folder.parent / "m", into, **options)  # type: ignore[arg-type]


def indexed(folder: Path, model: SpeechImageModel, into: Path, **options: object) -> Index:
    build(folder, model, into, **options)
    return open_index(into)


def by_path(index: Index) -> dict[str, Item]:
    items = list(index.store.items())
    found = {item.path: item for item in items}
    assert len(found) == len(items) == len(index)
    return found
