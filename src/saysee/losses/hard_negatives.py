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
def draw_negatives(logits: Tensor, same_image: Tensor, how: Literal["hard", "random"], draws: Tensor) -> Negatives:
    """Draw one candidate of another image for each row.

    The draw inverts the cumulative distribution, so that it follows from the row's own number: a batch that is shared
    by several processes is drawn as one process draws it.

    Args:
        logits: similarity / temperature (R, C), finite.
        same_image: (R, C), True where candidate and row have the same image: never drawn.
        how: `hard` draws with the probability of the row's softmax over its valid candidates (ALBEF), `random` draws
            each valid candidate alike.
        draws: numbers in [0, 1) (R,), float64.

    Returns:
        The drawn columns, and which rows have one.
    """
    valid = ~same_image.all(1)
    scores = logits.double() if how == "hard" else torch.zeros_like(logits, dtype=torch.float64)
    # rows with no valid candidate would be all -inf; they draw among everything and are marked not valid
    probability = scores.masked_fill(same_image & valid[:, None], -torch.inf).softmax(1)
    # A candidate of probability 0 must add nothing, or a number could fall on it. A GPU adds up each column in an order
    # of its own, so that rounding could make a step there; the largest sum before, of the others, makes none.
    cumulative = probability.cumsum(1).masked_fill(probability == 0, 0).cummax(1).values
    # the product must stay below the last sum, which is 1 but for rounding
    last = cumulative[:, -1]
    target = torch.minimum(draws * last, last.nextafter(torch.zeros_like(last)))
    column = torch.searchsorted(cumulative, target[:, None], right=True).squeeze(1)
    return Negatives(torch.where(valid, column, 0), valid)
