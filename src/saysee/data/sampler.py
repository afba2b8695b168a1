"""The order of the data, as a pure function of seed and position: a resumed run needs to know nothing else."""

import torch


class BatchOrder:
    """Endless shuffled epochs, cut into batches; the last batch of an epoch may be short.

    Args:
        count: samples.
        batch_size: samples in a batch.
        seed: decides the order of every epoch.
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.count = count
        self.batch_size = batch_size
        self.seed = seed
        self.batches_per_epoch = -(-count // batch_size)
        self._epoch = -1
        self._order: list[int] = []

    def __getitem__(self, position: int) -> list[int]:
        """Return the samples of batch `position`, counted from 0 over all epochs."""
        epoch, batch = divmod(position, self.batches_per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(mixed_seed(self.seed, epoch))
            self._order = torch.randperm(self.count, generator=generator).tolist()
            self._epoch = epoch
        return self._order[batch * self.batch_size : (batch + 1) * self.batch_size]


def mixed_seed(seed: int, counter: int) -> int:
    """Return a 63-bit seed for one place in a run; nearby arguments give unrelated seeds.

    The mixing is SplitMix64's (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators").
    """
    state = (seed * 0x9E3779B97F4A7C15 + counter + 1) * 0x9E3779B97F4A7C15 % 2**64
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
    return (state ^ (state >> 31)) >> 1
