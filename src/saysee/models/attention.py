"""Multi-head attention and the feed-forward part, shared by the speech encoder and the multimodal encoder.

Shapes: B batch, T queries, S keys, H width, N heads, d = H / N.
"""

import math
from collections.abc import Callable
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

T = TypeVar("T")


class Attention(nn.Module):
    """Scaled dot-product attention [Vaswani et al. 2017, arXiv 1706.03762].

    Keys and values are projected by a call of their own, so that who attends to one thing many times projects it
    once. The attention weights have no dropout (the layers' outputs have): with it, torch leaves its fused kernel on
    a CPU and writes the whole matrix of weights.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)

    def project_keys(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Project (B, S, H) to keys and values, each (B, N, S, d)."""
        keys, values = self.key_value(source).chunk(2, dim=-1)
        return self._split(keys), self._split(values)

    def project_queries(self, x: Tensor) -> Tensor:
        """Project (B, T, H) to queries (B, N, T, d)."""
        return self._split(self.query(x))

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Let (B, N, T, d) attend to (B, N, S, d); `mask` (B, S) is True where a key is real. Returns (B, T, H)."""
        attended = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=None if mask is None else mask[:, None, None, :],
        )
        return cast(Tensor, self.output(attended.transpose(1, 2).flatten(2)))

    def weights(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return the weights (B, N, T, S) with which `attend`, which never has them in memory, takes the values.

        For looking at, see `saysee.models.heat`; nothing else needs them. Each query's sum to 1.
        """
        scores = queries @ keys.transpose(2, 3) / math.sqrt(queries.shape[3])
        return scores.softmax(3)

    def _split(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        return x.view(batch, length, self.heads, width // self.heads).transpose(1, 2)


class Dropout(nn.Module):
    """Dropout that draws eight elements with one random number where torch, on a CPU, draws one.

    A CPU draws its random numbers one after the other, and with `nn.Dropout` they take a tenth of a training step
    (`benchmarks/training_step.py`). A byte decides each element here, so the probability is rounded to 1/256.
    """

    def __init__(self, probability: float) -> None:
        """Drop elements with `probability`; `dropped` of a byte's 256 values drop one."""
        super().__init__()
        self.dropped = round(256 * probability)

    def forward(self, x: Tensor) -> Tensor:
        """Zero elements of `x`, of any shape, and scale the others up, in training; else return `x`."""
        if not self.training or self.dropped == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.dropped / 256)
        numbers = torch.empty((x.numel() + 7) // 8, dtype=torch.int64)
        # without a lowest value, the sign bit would always be 0 and every eighth byte below 128
        numbers.random_(torch.iinfo(torch.int64).min, None)
        kept = numbers.view(torch.uint8)[: x.numel()].view(x.shape) >= self.dropped
        return x * (kept.to(x.dtype) * (256 / (256 - self.dropped)))


def compute(module: nn.Module, function: Callable[..., T], *arguments: Tensor | bool, again: bool) -> T:
    """Call a part of `module`; with `again`, in training, keep only its arguments and compute it anew for the gradient.

    Activation checkpointing [Chen et al. 2016, arXiv 1604.06174]. Value and gradient stay the same, those of dropout
    too: the state of torch's random numbers is put back for the second computation.
    """
    if not (again and module.training):
        return function(*arguments)
    return cast(T, checkpoint(function, *arguments, use_reentrant=False))


class FeedForward(nn.Sequential):
    """Two linear maps with a GELU between them."""

    def __init__(self, width: int, ratio: int, dropout: float) -> None:
        super().__init__(nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width), Dropout(dropout))
