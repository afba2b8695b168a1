"""SIC, speech-image contrastive: the coarse task, with momentum keys, a queue and soft targets.

Shapes: B pairs in the batch, N keys (the batch's own B first, then the queue's), E embedding length.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

SameImage = Literal["positives", "excluded"]


class Keys(NamedTuple):
    """What a batch is contrasted with. Row i < B belongs to pair i of the batch itself.

    Attributes:
        speech: speech embeddings (N, E).
        image: image embeddings (N, E).
        image_id: identity of each key's image (N,).
    """

    speech: Tensor
    image: Tensor
    image_id: Tensor


def contrastive_targets(
    image_id: Tensor, key_id: Tensor, same_image: SameImage, dtype: torch.dtype, first: int = 0
) -> tuple[Tensor, Tensor]:
    """Say what is right for each query and which columns do not count.

    Args:
        image_id: (B,) of the queries.
        key_id: (N,) of the keys.
        same_image: `positives`: every key of the same image is right, and the row is normalised over them (ALBEF);
            `excluded`: the pair itself is right and other keys of the same image are left out (SpeechCLIP).
        dtype: floating type of the targets.
        first: which key belongs to the first query; the others follow.

    Returns:
        targets (B, N), whose rows sum to 1, and excluded (B, N), True where a column is
        left out of the denominator.
    """
    same = image_id[:, None] == key_id[None, :]
    if same_image == "positives":
        weights = same.to(dtype)
        return weights / weights.sum(1, keepdim=True), torch.zeros_like(same)
    own = torch.zeros_like(same)
    own[:, first:].fill_diagonal_(True)
    return own.to(dtype), same & ~own


def list_cross_entropy(logits: Tensor, targets: Tensor, excluded: Tensor) -> Tensor:
    """Mean over rows of the cross-entropy between softmax(logits) and the targets.

    Args:
        logits: (B, N).
        targets: (B, N), of which each row sums to 1.
        excluded: (B, N), True where a column is left out of the denominator; its target is 0.

    Returns:
        A scalar.
    """
    log_probability = logits.masked_fill(excluded, -torch.inf).log_softmax(1)
    # an excluded column has target 0 and log-probability -inf, whose product would be NaN
    return -(targets * log_probability.masked_fill(excluded, 0)).sum(1).mean()


def sic_loss(
    speech_embedding: Tensor,
    image_embedding: Tensor,
    image_id: Tensor,
    keys: Keys,
    temperature: Tensor,
    *,
    first: int = 0,
    same_image: SameImage = "positives",
    alpha: float = 0.0,
    momentum_speech: Tensor | None = None,
    momentum_image: Tensor | None = None,
) -> Tensor:
    """Mean of both directions' cross-entropy between softmax(similarity / temperature) and the targets.

    ALBEF (arXiv 2107.07651), equations 1, 2 and 6, for speech in the place of text. The arithmetic stays in the
    floating type of the embeddings.

    Args:
        speech_embedding: (B, E), unit length.
        image_embedding: (B, E), unit length.
        image_id: (B,), identity of each pair's image.
        keys: what each side is contrasted with; without a momentum encoder, the batch's own embeddings.
        temperature: scalar.
        first: which key is the first query's own; the other queries' follow it.
        same_image: see `contrastive_targets`.
        alpha: share of the momentum model's own softmax in the targets; 0 leaves the ground truth.
        momentum_speech: (B, E), needed when alpha > 0.
        momentum_image: (B, E), needed when alpha > 0.

    Returns:
        The loss, a scalar.
    """
    truth, excluded = contrastive_targets(image_id, keys.image_id, same_image, speech_embedding.dtype, first)
    total = speech_embedding.new_zeros(())
    for query, slow_query, key in (
        (speech_embedding, momentum_speech, keys.image),
        (image_embedding, momentum_image, keys.speech),
    ):
        targets = truth
        if alpha > 0:
            assert slow_query is not None, "distillation needs the momentum embeddings"
            with torch.no_grad():
                pseudo = (slow_query @ key.T / temperature).masked_fill(excluded, -torch.inf).softmax(1)
                targets = (1 - alpha) * truth + alpha * pseudo
        total = total + list_cross_entropy(query @ key.T / temperature, targets, excluded)
    return total / 2


def distillation_alpha(alpha: float, step: int, ramp_steps: int) -> float:
    """Return alpha at optimisation step `step` (from 0), rising linearly from 0 over `ramp_steps` [ALBEF]."""
    return alpha * min(1.0, step / ramp_steps) if ramp_steps > 0 else alpha
