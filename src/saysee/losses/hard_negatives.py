"""Negatives for SIM, drawn by the similarities that SIC contrasts [ALBEF, section 3.2].

Shapes: R rows that need a negative, C candidates.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor


class Negatives(NamedTuple):
    """One drawn candidate a row.

    Attributes:
        column: (R,), the candidate's; 0 where there is none.
        valid: (R,), False where every candidate shows the row's own image: such a row has no negative.
    """

    column: Tensor
    valid: Tensor


@torch.no_grad()
def draw_negatives(
    logits: Tensor, same_image: Tensor, how: Literal["hard", "random"], generator: torch.Generator | None = None
) -> Negatives:
    """Draw one candidate of another image for each row.

    Args:
        logits: similarity / temperature (R, C), finite.
        same_image: (R, C), True where candidate and row have the same image: never drawn.
        how: `hard` draws with the probability of the row's softmax over its valid candidates (ALBEF), `random` draws
            each valid candidate alike.
        generator: the source of chance, on the logits' device.

    Returns:
        The drawn columns, and which rows have one.
    """
    valid = ~same_image.all(1)
    scores = logits.float() if how == "hard" else torch.zeros_like(logits, dtype=torch.float32)
    # rows with no valid candidate would be all -inf; they draw among everything and are marked not valid
    masked = scores.masked_fill(same_image & valid[:, None], -torch.inf)
    column = torch.multinomial(masked.softmax(1), 1, generator=generator).squeeze(1)
    return Negatives(torch.where(valid, column, 0), valid)
