"""SIM, speech-image matching: the fine task, matched or not matched.

Shapes: B pairs in the batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def sim_loss(positive: Tensor, negative: Tensor) -> Tensor:
    """Cross-entropy of matched against not matched, the mean over all pairs.

    ALBEF (arXiv 2107.07651), equation 4. The two-way softmax over the head's logits depends on their difference
    alone, the `match_logit` x: -log p(matched) = softplus(-x), -log p(not matched) = softplus(x).

    Args:
        positive: `match_logit` (B,) of the matched pairs.
        negative: `match_logit` (K,) of the drawn negatives; K is 2 B less those that had no valid negative.

    Returns:
        The loss, a scalar.
    """
    return torch.cat([F.softplus(-positive), F.softplus(negative)]).mean()
