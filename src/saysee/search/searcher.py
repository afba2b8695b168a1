"""A spoken question against an index: coarse over all pictures, fine over the best k."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from saysee.config import Fusion
from saysee.errors import SayseeError
from saysee.models.retrieval_model import Recording, SpeechImageModel
from saysee.search.index import PictureIndex
from saysee.search.reranker import best_candidates, fuse, match_logits


@dataclass(frozen=True)
class Answer:
    """One picture for a question.

    Attributes:
        rank: from 1.
        path: the picture.
        coarse: cosine similarity.
        fine: matching log-odds; None below the best k and for a model without a fine stage.
    """

    rank: int
    path: Path
    coarse: float
    fine: float | None


class Searcher:
    """Answers spoken questions from one index with one model.

    Raises:
        SayseeError: the index was built by another model.
    """

    def __init__(self, index: PictureIndex, model: SpeechImageModel) -> None:
        if index.model_fingerprint != model.fingerprint:
            raise SayseeError(
                f"the index was built with {index.model} (fingerprint {index.model_fingerprint[:12]}), the model given "
                f"has fingerprint {model.fingerprint[:12]}; build the index again or give its own model"
            )
        self.index = index
        self.model = model.eval()

    @torch.inference_mode()
    def search(
        self, question: Recording, top: int = 10, rerank: int | None = None, fusion: Fusion | None = None
    ) -> list[Answer]:
        """Rank the pictures for a spoken question.

        Args:
            question: a recording.
            top: how many answers to give; clamped to the index.
            rerank: k of the fine stage; 0 leaves the coarse order, None takes the model's own setting.
            fusion: what the best k are ranked by; None takes the model's own setting.

        Returns:
            The best first. The fine stage reorders the best k among themselves; below k the coarse order stays.

        Raises:
            SayseeError: `top` or `rerank` is out of range, or re-ranking is asked of a model without a fine stage.
            AudioError: the question does not decode, is silent, or is out of the limits.
        """
        if top < 1 or (rerank is not None and rerank < 0):
            raise SayseeError(f"top is {top} and rerank {rerank}; allowed: 1 or more answers, 0 or more re-ranked")
        if rerank:
            self.model.require_multimodal_encoder()
        config = self.model.config.search
        if rerank:
            config = replace(config, rerank=rerank)
        if fusion is not None:
            config = replace(config, fusion=fusion)
        speech = self.model.encode_speech(question)
        similarity = speech.embedding.cpu() @ self.index.embedding.T
        order = best_candidates(similarity, max(top, config.rerank))[0]
        coarse = similarity[0, order]
        fine: list[float | None] = [None] * len(order)
        if rerank != 0 and self.index.hidden is not None:
            best = order[: config.rerank]
            logits = match_logits(self.model, speech, self.index.hidden, torch.zeros_like(best), best)
            by_fused = fuse(logits, coarse[: len(best)], self.model.temperature.cpu(), config).argsort(
                descending=True, stable=True
            )
            order = torch.cat([best[by_fused], order[len(best) :]])
            coarse = similarity[0, order]
            fine[: len(best)] = logits[by_fused].tolist()
        return [
            Answer(rank + 1, self.index.folder / self.index.paths[row], float(coarse[rank]), fine[rank])
            for rank, row in enumerate(order[:top].tolist())
        ]
