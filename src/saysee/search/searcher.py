"""A question against an index: coarse over all items, fine over the best k.

Shapes: E embedding length, T frames, P tokens, H width, k candidates.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from saysee.config import Fusion, SearchConfig
from saysee.errors import SayseeError
from saysee.models.calibration import BACKGROUND, read_calibration, standardised
from saysee.models.heat import Heat, attention_map
from saysee.models.image_encoder import ImageEncoding
from saysee.models.model_folder import find_model
from saysee.models.retrieval_model import SpeechImageModel
from saysee.models.speech_encoder import SpeechEncoding
from saysee.search.index import Index
from saysee.search.question import Question
from saysee.search.reranker import PreparedPictures, fuse, match_logits, match_prepared
from saysee.search.stores.base import EVERYTHING, Filter, Item

T = TypeVar("T")

_TRIES = 3  # when what was found is removed by another process before its tokens are read


@dataclass(frozen=True)
class Answer:
    """One item for a question.

    Attributes:
        rank: from 1.
        id: of the item.
        path: its file.
        coarse: cosine similarity.
        fine: matching log-odds; None below the best k, without a fine stage, and where the tokens cannot be had.
        taken: when a picture was taken; see `Item`.
    """

    rank: int
    id: str
    path: Path
    coarse: float
    fine: float | None
    taken: int


@dataclass(frozen=True)
class Answers:
    """What an index says to a question.

    Attributes:
        answers: the best first.
        chance: how probable it is that the best of as many items that do not fit has as high a score as the best one
            here; None where that is not known: the model is not calibrated, or the question is not a recording that
            was asked of all pictures.
        seconds: what each part took.
    """

    answers: tuple[Answer, ...]
    chance: float | None
    seconds: Mapping[str, float]

    @property
    def fits(self) -> bool | None:
        """Whether something here fits, as far as scores can tell; None where `chance` is None."""
        return None if self.chance is None else self.chance <= 0.5


@dataclass(frozen=True)
class EncodedQuestion:
    """A question as the model knows it: one recording, or one picture."""

    encoding: SpeechEncoding | ImageEncoding

    @property
    def spoken(self) -> bool:
        """Whether it is a recording."""
        return isinstance(self.encoding, SpeechEncoding)


class Searcher:
    """Answers questions from one index with one model. To be called from one thread at a time.

    Recordings ask pictures and pictures ask recordings, in two stages; what is of the kind of the index is compared
    coarse alone.

    Args:
        index: open.
        model: the one it was built with.
        name: what an error calls the model.

    Raises:
        SayseeError: the index was built by another model.
    """

    def __init__(self, index: Index, model: SpeechImageModel, name: str = "the model given") -> None:
        index.require_model(model, name)
        self.index = index
        self.model = model.eval()
        self.calibration = read_calibration(find_model(index.description.model), index.description.model_fingerprint)
        self._prepared = None
        if index.description.fine and index.description.kind == "picture":
            self._prepared = PreparedPictures(model.require_multimodal_encoder())
        self._background: Tensor | None = None

    def refresh(self) -> None:
        """See what another process has written to the index."""
        before = len(self.index)
        self.index.store.refresh()
        if len(self.index) != before:
            self._background = None

    @torch.inference_mode()
    def encode(self, questions: Sequence[Question]) -> list[EncodedQuestion]:
        """Encode questions together; none of them changes what becomes of another."""
        encoded: dict[int, EncodedQuestion] = {}
        spoken = [n for n, question in enumerate(questions) if question.kind == "recording"]
        shown = [n for n, question in enumerate(questions) if question.kind == "picture"]
        if spoken:
            speech = self.model.encode_speech([_required(questions[n].waveform) for n in spoken])
            for row, n in enumerate(spoken):
                real = speech.mask[row]
                own = (field[row : row + 1, real] for field in (speech.hidden, speech.mask))
                encoded[n] = EncodedQuestion(SpeechEncoding(speech.embedding[row : row + 1], *own))
        if shown:
            images = self.model.encode_image([_required(questions[n].image) for n in shown])
            for row, n in enumerate(shown):
                encoded[n] = EncodedQuestion(ImageEncoding(*(field[row : row + 1] for field in images)))
        return [encoded[n] for n in range(len(questions))]

    def search(
        self,
        question: Question,
        *,
        top: int = 10,
        rerank: int | None = None,
        fusion: Fusion | None = None,
        only: Filter = EVERYTHING,
    ) -> Answers:
        """Encode a question and rank the items for it; see `rank`."""
        begun = time.perf_counter()
        (encoded,) = self.encode([question])
        seconds = time.perf_counter() - begun
        answers = self.rank(encoded, top=top, rerank=rerank, fusion=fusion, only=only)
        return replace(answers, seconds={"encode": seconds, **answers.seconds})

    @torch.inference_mode()
    def rank(
        self,
        question: EncodedQuestion,
        *,
        top: int = 10,
        rerank: int | None = None,
        fusion: Fusion | None = None,
        only: Filter = EVERYTHING,
    ) -> Answers:
        """Rank the items for a question.

        Args:
            question: see `encode`.
            top: how many answers to give; clamped to the index.
            rerank: k of the fine stage; 0 leaves the coarse order, None takes the model's own setting.
            fusion: what the best k are ranked by; None takes the model's own setting.
            only: which items are asked.

        Returns:
            The best first. The fine stage reorders the best k among themselves; below k the coarse order stays.

        Raises:
            SayseeError: `top` or `rerank` is out of range, re-ranking is asked where there is no fine stage, or nothing
                can pass the filter.
        """
        if top < 1 or (rerank is not None and rerank < 0):
            raise SayseeError(f"top is {top} and rerank {rerank}; allowed: 1 or more answers, 0 or more re-ranked")
        kind, fine = self.index.description.kind, self.index.description.fine
        if rerank and not fine:
            self.model.require_multimodal_encoder()
            raise SayseeError(f"rerank is {rerank}, and this index was built without the fine stage; give 0")
        fine = fine and rerank != 0 and question.spoken == (kind == "picture")
        config = self.model.config.search
        config = replace(config, rerank=rerank or config.rerank, fusion=fusion or config.fusion)
        for _ in range(_TRIES):
            try:
                return self._rank(question, top, config if fine else None, only)
            except KeyError:  # removed by another process between the two stages
                self.refresh()
        raise SayseeError("the index changes faster than it can be searched; ask again")

    def _rank(self, question: EncodedQuestion, top: int, fine: SearchConfig | None, only: Filter) -> Answers:
        begun = time.perf_counter()
        embedding = question.encoding.embedding.cpu().numpy()
        (nearest,) = self.index.store.nearest(embedding, max(top, fine.rerank if fine else 0), only)
        items = self.index.store.get(nearest.ids)
        found = [
            (item, float(score)) for item, score in zip(items, nearest.similarity, strict=True) if item is not None
        ]
        coarse_done = time.perf_counter()
        logits: dict[int, float] = {}
        order = list(range(len(found)))
        if fine and found:
            logits, best = self._fine(question, found[: fine.rerank], fine)
            order[: len(best)] = best
        answers = [
            Answer(rank, found[n][0].id, self.index.file(found[n][0]), found[n][1], logits.get(n), found[n][0].taken)
            for rank, n in enumerate(order[:top], start=1)
        ]
        seconds = {"coarse": coarse_done - begun, "fine": time.perf_counter() - coarse_done}
        return Answers(tuple(answers), self._chance(question, found, only), seconds)

    def _fine(
        self, question: EncodedQuestion, found: Sequence[tuple[Item, float]], config: SearchConfig
    ) -> tuple[dict[int, float], list[int]]:
        """Return the matching log-odds by position in `found`, and the positions in the fused order.

        What has no tokens any more (its file is gone) comes after what has, in the coarse order.
        """
        items = [item for item, _ in found]
        if question.spoken:
            scored, logit = self._match_pictures(_speech(question), items)
        else:
            scored, logit = self._match_recordings(_image(question), items)
        coarse = torch.tensor([found[n][1] for n in scored])
        fused = fuse(logit, coarse, self.model.temperature.cpu(), config)
        best = [scored[n] for n in fused.argsort(descending=True, stable=True).tolist()]
        rest = [n for n in range(len(items)) if n not in set(scored)]
        return dict(zip(scored, logit.tolist(), strict=True)), best + rest

    def _match_pictures(self, speech: SpeechEncoding, items: Sequence[Item]) -> tuple[list[int], Tensor]:
        assert self._prepared is not None
        contents = [item.content for item in items]
        missing = self._prepared.missing(contents)
        hidden = self.index.hidden([items[n] for n in missing], self.model)
        tokens = {
            contents[n]: picture.to(self.model.device, speech.hidden.dtype)
            for n, picture in zip(missing, hidden, strict=True)
            if picture is not None
        }
        self._prepared.prepare(tokens, together=len(items))
        scored = [n for n, content in enumerate(contents) if content in self._prepared]
        if not scored:
            return [], torch.zeros(0)
        images = self._prepared.select([contents[n] for n in scored])
        return scored, match_prepared(self.model, speech, images)

    def _match_recordings(self, image: ImageEncoding, items: Sequence[Item]) -> tuple[list[int], Tensor]:
        hidden = [_required(tokens).float() for tokens in self.index.hidden(items, self.model)]
        lengths = torch.tensor([len(states) for states in hidden])
        padded = pad_sequence(hidden, batch_first=True).to(self.model.device)
        mask = (torch.arange(padded.shape[1]) < lengths[:, None]).to(self.model.device)
        speech = SpeechEncoding(padded.new_zeros(len(items), 0), padded, mask)
        rows = torch.arange(len(items))
        return rows.tolist(), match_logits(self.model, speech, image.hidden, rows, torch.zeros_like(rows))

    def like(self, item_id: str, *, top: int = 10, only: Filter = EVERYTHING) -> Answers:
        """Rank the other items by their likeness to one of the index, coarse.

        Raises:
            KeyError: it is not there (any more).
        """
        begun = time.perf_counter()
        embedding = self.index.store.embeddings([item_id])
        (nearest,) = self.index.store.nearest(embedding, top + 1, only)
        items = self.index.store.get(nearest.ids)
        found = [
            (item, float(score))
            for item, score in zip(items, nearest.similarity, strict=True)
            if item is not None and item.id != item_id
        ]
        answers = [
            Answer(rank, item.id, self.index.file(item), score, None, item.taken)
            for rank, (item, score) in enumerate(found[:top], start=1)
        ]
        return Answers(tuple(answers), None, {"coarse": time.perf_counter() - begun})

    def attention(self, question: EncodedQuestion, item_id: str) -> Heat:
        """Show where the model looks in a picture of the index at each moment of a recording.

        Raises:
            KeyError: the picture is not there (any more).
            SayseeError: the question is no recording, or the model has no such map.
        """
        (item,) = self.index.store.get([item_id])
        if item is None:
            raise KeyError(item_id)
        if not question.spoken or self.index.description.kind != "picture":
            raise SayseeError("cross-attention is between a recording and a picture; ask with a recording")
        if not self.index.description.fine:
            raise SayseeError("this index was built without the fine stage, so there is no cross-attention to show")
        (hidden,) = self.index.hidden([item], self.model)
        if hidden is None:
            raise KeyError(item_id)
        return attention_map(self.model, _speech(question), hidden)

    def _chance(self, question: EncodedQuestion, found: Sequence[tuple[Item, float]], only: Filter) -> float | None:
        """See `Answers.chance`."""
        spoken_to_pictures = question.spoken and self.index.description.kind == "picture"
        if self.calibration is None or not spoken_to_pictures or only.asks or not found:
            return None
        if self._background is None:
            self._background = torch.from_numpy(self.index.store.sample(BACKGROUND))
        background = self._background @ question.encoding.embedding[0].cpu()
        if len(background) < 2:
            return None
        best = standardised(torch.tensor([found[0][1]]), background)
        return self.calibration.chance(float(best), len(self.index))


def _required(value: T | None) -> T:
    assert value is not None
    return value


def _speech(question: EncodedQuestion) -> SpeechEncoding:
    assert isinstance(question.encoding, SpeechEncoding)
    return question.encoding


def _image(question: EncodedQuestion) -> ImageEncoding:
    assert isinstance(question.encoding, ImageEncoding)
    return question.encoding
