"""What the fine stage knows that the coarse one does not: dev's candidates by each rule of fusion, and by the best one.

SIC's logit of a pair is similarity / temperature, and SIM's is the log-odds of a match. Were both calibrated and about
different evidence, as when SIM's negatives are drawn by SIC's own softmax, their sum would be the logit of the right
candidate, `match+scaled-similarity`. How much of each is to be believed is what two weights say that are fitted to the
candidates of dev by the likelihood of the right one: 1 and 1 where the sum is right, 0 for what adds nothing. The
weights are a diagnosis; nothing is chosen by them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from flickr8k_synthetic.corpus import corpus
from flickr8k_synthetic.measure import finished, model_folder, on_record, put_figures_on_record
from flickr8k_synthetic.plan import config_for, has_fine_stage, planned_records
from saysee.config import Fusion, SearchConfig
from saysee.data.manifest import SpokenCaption
from saysee.evaluation.metrics import RECALLS, count_ranks, summarize
from saysee.evaluation.retrieval import encode_images, encode_speech, reordered
from saysee.features.store import default_cache_folder
from saysee.models.retrieval_model import SpeechImageModel
from saysee.search.reranker import best_candidates, fuse, match_logits
from saysee.workflows import features_of

COARSE, FITTED = "similarity", "fitted weights"
BATCH = 32
"""Recordings or pictures encoded together; changes no figure."""


def measure_reranking() -> None:
    """Put on record what re-ranking does on dev in the models of the plan that lie here and are not on record yet."""
    found = on_record("dev").get("reranking", [])
    records = finished("test")
    for run, record in planned_records(records):
        config = config_for(run, records)
        if config is None or not has_fine_stage(run) or any(other["key"] == record["key"] for other in found):
            continue
        if (folder := model_folder(run, config)).exists():
            model = SpeechImageModel.from_pretrained(folder)
            found = [*found, {"key": record["key"], **reranking(model, corpus(run.captions).of("dev"))}]
            put_figures_on_record("dev", "reranking", found)


@torch.inference_mode()
def reranking(model: SpeechImageModel, captions: Sequence[SpokenCaption]) -> dict[str, Any]:
    """Rank the best k pictures of each caption by each rule.

    Returns:
        `k`; `weights`, the fitted ones of `match` and `similarity`; and for each rule its recalls, and the mean
        `log_loss` of the right candidate, in nats, over the captions that have it among the k. The rule of the coarse
        ranking is similarity / temperature alone.
    """
    speech, pictures, _ = features_of(model, captions, default_cache_folder(), progress=True)
    paths = {caption.image_id: caption.image for caption in captions}
    number = {image_id: row for row, image_id in enumerate(paths)}
    embedding, tokens = encode_images(model, list(paths.values()), pictures, BATCH)
    k = model.config.search.rerank
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for heard in encode_speech(model, captions, speech, BATCH):
        similarity = heard.embedding @ embedding.T
        best = best_candidates(similarity, k)
        rows = torch.arange(len(best)).repeat_interleave(best.shape[1])
        logits = match_logits(model, heard, tokens, rows, best.flatten()).view_as(best)
        parts.append((similarity, best, logits))
    similarity, best, match = (torch.cat(part) for part in zip(*parts, strict=True))
    right = torch.tensor([number[caption.image_id] for caption in captions])
    relevant = F.one_hot(right, len(paths)).bool()
    among = similarity.gather(1, best)
    scaled = among / model.temperature
    found = best == right[:, None]
    weights = fitted_weights(torch.stack([match, scaled], -1), found)
    scores: Mapping[str, Tensor] = {
        COARSE: scaled,
        **{rule: fuse(match, among, model.temperature, SearchConfig(k, rule)) for rule in get_args(Fusion)},
        FITTED: weights[0] * match + weights[1] * scaled,
    }
    return {
        "k": k,
        "weights": {"match": round(weights[0], 3), "similarity": round(weights[1], 3)},
        "rules": {
            rule: {
                **{name: round(measured[name], 4) for name in RECALLS},
                "log_loss": round(log_loss(score, found).item(), 4),
            }
            for rule, score in scores.items()
            for measured in [summarize(count_ranks(reordered(similarity, best, score), relevant))]
        },
    }


def fitted_weights(logits: Tensor, right: Tensor) -> list[float]:
    """Return the weights (n,) with which a softmax over the candidates makes the right ones most likely.

    Args:
        logits: (Q, k, n) of n kinds.
        right: (Q, k), True at the right candidate; questions that have none are left out.
    """
    with torch.inference_mode(mode=False), torch.enable_grad():
        logits = logits.double().clone()
        weights = torch.ones(logits.shape[-1], dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = log_loss(logits @ weights, right.clone())
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weights.tolist()


def log_loss(scores: Tensor, right: Tensor) -> Tensor:
    """Return the mean of -log(softmax) at the right candidate over the questions (Q, k) that have one."""
    asked = right.any(1)
    return -scores[asked].log_softmax(1)[right[asked]].mean()
