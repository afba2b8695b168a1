"""The order of the data, as a pure function of seed and position: a resumed run needs to know nothing else."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Integers = NDArray[np.integer[Any]]


class BatchOrder:
    """Endless shuffled epochs, cut into batches. An epoch has every sample once; some of its batches are short.

    Args:
        image_numbers: (n,), the image, or the concept, of each sample.
        lengths: (n,), frames of each sample; needed where `bucket_batches` is more than 1.
        batch_size: samples in a batch, over all processes.
        seed: decides the order of every epoch.
        bucket_batches: of how many batches the samples are sorted by length together and cut, so that a batch holds
            samples of like length and little padding; the batches are shuffled again behind that. 1 sorts nothing.
        one_caption_per_image: whether no image stands twice in a batch. An epoch is then as many rounds as the image
            with most samples has; each round has at most one sample of an image and ends with a short batch.

    Attributes:
        batches_per_epoch: how many batches an epoch has.
        smallest_batch: samples of the smallest of them.
    """

    def __init__(
        self,
        image_numbers: Integers,
        lengths: Integers | None,
        batch_size: int,
        seed: int,
        *,
        bucket_batches: int = 1,
        one_caption_per_image: bool = False,
    ) -> None:
        self.image_numbers = image_numbers
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.bucket_batches = bucket_batches
        self.one_caption_per_image = one_caption_per_image
        rounds = np.bincount(_occurrence(image_numbers)) if one_caption_per_image else np.array([len(image_numbers)])
        self.batches_per_epoch = int((-(-rounds // batch_size)).sum())
        # every bucket but a round's last is full, so what is short is the end of a round
        self.smallest_batch = int(np.where(rounds % batch_size, rounds % batch_size, batch_size).min())
        self._epoch = -1
        self._batches: list[Integers] = []

    def __getitem__(self, position: int) -> list[int]:
        """Return the samples of batch `position`, counted from 0 over all epochs."""
        epoch, batch = divmod(position, self.batches_per_epoch)
        if epoch != self._epoch:
            self._batches = []  # one epoch in memory at a time
            self._batches = self._cut(epoch)
            self._epoch = epoch
        return self._batches[batch].tolist()  # type: ignore[no-any-return]

    def _cut(self, epoch: int) -> list[Integers]:
        """Return the batches of an epoch, in order."""
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, epoch))
        shuffled = torch.randperm(len(self.image_numbers), generator=generator).int().numpy()
        rounds = [shuffled]
        if self.one_caption_per_image:
            turn = _occurrence(self.image_numbers[shuffled])
            rounds = [shuffled[turn == number] for number in range(int(turn.max()) + 1)]
        batches = [batch for samples in rounds for batch in self._cut_round(samples)]
        if self.bucket_batches > 1:  # sorted buckets would show the short recordings first
            order = torch.randperm(len(batches), generator=generator).tolist()
            batches = [batches[number] for number in order]
        return batches

    def _cut_round(self, samples: Integers) -> list[Integers]:
        bucket = self.bucket_batches * self.batch_size
        batches = []
        for start in range(0, len(samples), bucket):
            part = samples[start : start + bucket]
            if self.bucket_batches > 1:
                assert self.lengths is not None, "buckets are sorted by length"
                part = part[np.argsort(self.lengths[part], kind="stable")]
            batches += [part[at : at + self.batch_size] for at in range(0, len(part), self.batch_size)]
        return batches


def _occurrence(values: Integers) -> Integers:
    """Return, for each element, how many equal ones stand before it; takes some 16 bytes an element meanwhile."""
    order = np.argsort(values, kind="stable").astype(np.int32)
    sorted_values = values[order]
    start = np.arange(len(values), dtype=np.int32)  # of the stretch of equal ones that an element is in
    start[1:][sorted_values[1:] == sorted_values[:-1]] = 0
    del sorted_values
    np.maximum.accumulate(start, out=start)
    np.subtract(np.arange(len(values), dtype=np.int32), start, out=start)
    occurrence = np.empty(len(values), dtype=np.int32)
    occurrence[order] = start
    return occurrence


def uniform_draws(seed: int, counter: int, count: int) -> Tensor:
    """Return (count,) float64 numbers in [0, 1) that belong to one place in a run, on whichever device it runs."""
    generator = torch.Generator().manual_seed(mixed_seed(seed, counter))
    return torch.rand(count, generator=generator, dtype=torch.float64)


def mixed_seed(seed: int, counter: int) -> int:
    """Return a 63-bit seed for one place in a run; nearby arguments give unrelated seeds.

    The mixing is SplitMix64's (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators").
    """
    state = (seed * 0x9E3779B97F4A7C15 + counter + 1) * 0x9E3779B97F4A7C15 % 2**64
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
    return (state ^ (state >> 31)) >> 1
