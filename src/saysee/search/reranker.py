"""The fine stage: the multimodal encoder scores the best k of the coarse ranking and reorders them, and only them.

Evaluation ranks through these functions too: the ranking that is measured is the ranking that is served.

Shapes: Q questions, N gallery items, k candidates, M pairs.
"""

import torch
from torch import Tensor

from saysee.config import SearchConfig
from saysee.errors import SayseeError
from saysee.models.retrieval_model import SpeechImageModel
from saysee.models.speech_encoder import SpeechEncoding

PAIRS_AT_ONCE = 512
"""Pairs in one pass of the multimodal encoder; bounds memory and changes no score."""


def best_candidates(similarity: Tensor, k: int) -> Tensor:
    """Return the columns (Q, min(k, N)) of the highest similarities (Q, N), best first."""
    return similarity.topk(min(k, similarity.shape[1]), dim=1).indices


@torch.inference_mode()
def match_logits(
    model: SpeechImageModel, speech: SpeechEncoding, image_hidden: Tensor, speech_index: Tensor, image_index: Tensor
) -> Tensor:
    """Score M pairs of recordings and pictures.

    Args:
        model: in eval mode.
        speech: the recordings.
        image_hidden: projected tokens of the pictures (N, P, H), of any floating type and on any device.
        speech_index: the recording of each pair (M,).
        image_index: the picture of each pair (M,).

    Returns:
        `match_logit` (M,), float32, on the device of `speech_index`.

    Raises:
        SayseeError: the model has no multimodal encoder, or gives scores that are not finite.
    """
    encoder = model.require_multimodal_encoder()
    device = model.device
    scores = speech_index.new_empty(len(speech_index), dtype=torch.float32)
    for start in range(0, len(speech_index), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        recordings, speech_row = speech_index[part].unique(return_inverse=True)  # type: ignore[no-untyped-call]
        pictures, image_row = image_index[part].unique(return_inverse=True)  # type: ignore[no-untyped-call]
        scores[part] = encoder.match_pairs(
            speech.hidden[recordings.to(device)],
            speech.mask[recordings.to(device)],
            image_hidden[pictures.to(image_hidden.device)].to(device, speech.hidden.dtype),
            speech_row.to(device),
            image_row.to(device),
        ).to(scores.device)
    if not scores.isfinite().all():
        raise SayseeError(
            "the fine stage gives scores that are not finite; train the model again, or rank coarse alone"
        )
    return scores


def fuse(match_logit: Tensor, similarity: Tensor, temperature: Tensor, config: SearchConfig) -> Tensor:
    """Return the fused scores by which candidates are ranked; all three have one shape.

    `match` is after ALBEF and `match+similarity` after BLIP, with the log-odds in the place of the matched logit;
    `match+scaled-similarity` is ours: similarity / temperature is
    the logit of SIC's softmax, so that both terms are on the scale of log-odds.
    """
    if config.fusion == "match":
        return match_logit
    scale = temperature if config.fusion == "match+scaled-similarity" else 1.0
    return match_logit + similarity / scale
