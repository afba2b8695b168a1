"""Several processes that train one model: who has which part of a batch, and what they tell each other.

The batch of a step is the same however many processes share it: each takes a stretch of its rows, and what must be
seen whole (embeddings for contrast and queue, tokens for negatives) is gathered in the order of the rows. Every process
then holds the same queue, draws the same numbers and takes the same step. With one process, and with no process group
at all, all of this is the identity.

The model is replicated (DistributedDataParallel) and not sharded: the trainable parts are about 0.1 billion parameters,
a gigabyte with gradients and AdamW's moments, so sharding them would save nothing that is needed.

Shapes: B rows of the whole batch, b rows of this process's part.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from saysee.errors import SayseeError

T = TypeVar("T")

# Ours: while the first process extracts features or measures dev, the others wait.
_PATIENCE = timedelta(hours=12)


@dataclass(frozen=True)
class Ranks:
    """The processes that share a run.

    Attributes:
        rank: which of them this is.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes, measures and talks."""
        return self.rank == 0

    def part(self, count: int, rank: int | None = None) -> slice:
        """Return which of B = `count` rows a process has (this one by default): near-even stretches, in order."""
        rank = self.rank if rank is None else rank
        return slice(count * rank // self.size, count * (rank + 1) // self.size)

    def barrier(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            dist.barrier()

    def broadcast(self, value: T) -> T:
        """Return the first process's value of a small object."""
        if self.size == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0)
        received: T = box[0]
        return received

    def from_main(self, do: Callable[[], T]) -> T:
        """Let the first process do something, and give its small result to all.

        Raises:
            SayseeError: in all processes, where it fails in the first: none of them waits for one that has ended.
        """
        if self.size == 1:
            return do()
        result: T | None = None
        fault: Exception | None = None
        if self.main:
            try:
                result = do()
            except Exception as error:
                fault = error
        result, message = self.broadcast((result, None if fault is None else str(fault)))
        if fault is not None:
            raise fault
        if message is not None:
            raise SayseeError(f"the first process has ended: {message}")
        return result  # type: ignore[return-value]

    def maximum(self, value: int, device: torch.device) -> int:
        """Return the largest of all processes' values."""
        if self.size == 1:
            return value
        largest = torch.tensor(value, device=device)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def total(self, values: Tensor) -> Tensor:
        """Return the sum of all processes' values, without gradient."""
        if self.size == 1:
            return values.detach()
        total = values.detach().clone()
        dist.all_reduce(total)
        return total

    def gather(self, rows: Tensor, count: int) -> Tensor:
        """Return all B = `count` rows (B, ...) of which this process has its part (b, ...), without gradient."""
        if self.size == 1:
            return rows.detach()
        lengths = [_length(self.part(count, rank)) for rank in range(self.size)]
        # a collective wants one shape everywhere
        padded = rows.new_zeros(max(lengths), *rows.shape[1:])
        padded[: len(rows)] = rows.detach()
        parts = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(parts, padded)
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])

    def gather_with_gradient(self, rows: Tensor, count: int) -> Tensor:
        """Do as `gather`, and let gradient flow back: each row gets the sum of what all processes' losses owe it."""
        if self.size == 1:
            return rows
        gathered: Tensor = _Gather.apply(rows, self, count)  # type: ignore[no-untyped-call]
        return gathered


class _Gather(torch.autograd.Function):
    """torch's own differentiable `all_gather` is deprecated, and wants parts of one size."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, ranks: Ranks, count: int) -> Tensor:
        ctx.part = ranks.part(count)
        return ranks.gather(rows, count)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.part], None, None


@contextmanager
def process_group(device: str, choose: Callable[[str], torch.device]) -> Iterator[tuple[Ranks, torch.device]]:
    """Join the processes that torchrun started, for the block; without torchrun there is one.

    Args:
        device: as a user gave it; `auto` is each process's own GPU if torch has one, else the CPU.
        choose: turns such a name into a device, or refuses it.

    Raises:
        SayseeError: the device cannot be used, or is one GPU for several processes.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield Ranks(), choose(device)
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device.startswith("cuda:"):
        raise SayseeError(f"device is {device!r}, one GPU for all processes; give auto, cuda or cpu under torchrun")
    chosen = choose(device)
    if chosen.type == "cuda":
        chosen = choose(f"cuda:{local}")
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size()), chosen
    finally:
        dist.destroy_process_group()


def _length(part: slice) -> int:
    return int(part.stop) - int(part.start)
