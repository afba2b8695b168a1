"""The queue: the newest M momentum embeddings of both modalities with the id of their image.

Shapes: M capacity, E embedding length, B rows put in.
"""

import torch
from torch import Tensor, nn

from saysee.losses.contrastive import Keys


class MomentumQueue(nn.Module):
    """A ring of embeddings [MoCo, arXiv 1911.05722]. Its whole state is in buffers, so a checkpoint holds it."""

    speech: Tensor
    image: Tensor
    image_id: Tensor
    pointer: Tensor
    filled: Tensor

    def __init__(self, capacity: int, embedding_dim: int) -> None:
        """Make an empty queue; `capacity` 0 makes one that stays empty."""
        super().__init__()
        self.capacity = capacity
        self.register_buffer("speech", torch.zeros(capacity, embedding_dim))
        self.register_buffer("image", torch.zeros(capacity, embedding_dim))
        self.register_buffer("image_id", torch.zeros(capacity, dtype=torch.int64))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        """Return how many rows are filled."""
        return int(self.filled)

    def behind(self, batch: Keys) -> Keys:
        """Return the batch's own keys with the filled part of the queue behind them: (B + len(self)) rows."""
        filled = len(self)
        return Keys(
            torch.cat([batch.speech, self.speech[:filled].to(batch.speech.dtype)]),
            torch.cat([batch.image, self.image[:filled].to(batch.image.dtype)]),
            torch.cat([batch.image_id, self.image_id[:filled]]),
        )

    @torch.no_grad()
    def enqueue(self, rows: Keys) -> None:
        """Put B rows in, in the place of the oldest; of more than M rows the last M stay. Wraps anywhere."""
        if self.capacity == 0:
            return
        count = min(len(rows.image_id), self.capacity)
        slots = (int(self.pointer) + torch.arange(count, device=self.pointer.device)) % self.capacity
        self.speech[slots] = rows.speech[-count:].to(self.speech.dtype)
        self.image[slots] = rows.image[-count:].to(self.image.dtype)
        self.image_id[slots] = rows.image_id[-count:]
        self.pointer.add_(count).remainder_(self.capacity)
        self.filled.add_(count).clamp_(max=self.capacity)
