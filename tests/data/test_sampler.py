"""The order of the data: a function of seed and position, and nothing else."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saysee.data.sampler import BatchOrder, mixed_seed

counts = st.integers(1, 60)
batch_sizes = st.integers(1, 25)
seeds = st.integers(0, 2**31)


@given(counts, batch_sizes, seeds, st.integers(0, 5))
def test_an_epoch_has_every_sample_once(count: int, batch_size: int, seed: int, epoch: int) -> None:
    order = BatchOrder(count, batch_size, seed)
    batches = [order[epoch * order.batches_per_epoch + batch] for batch in range(order.batches_per_epoch)]
    assert sorted(itertools.chain(*batches)) == list(range(count))
    *full, last = map(len, batches)
    assert full == [batch_size] * (len(batches) - 1)
    assert last == (count % batch_size or batch_size)


@given(counts, batch_sizes, seeds, st.lists(st.integers(0, 200), min_size=1, max_size=30))
def test_a_batch_does_not_depend_on_what_was_asked_before(
    count: int, batch_size: int, seed: int, positions: list[int]
) -> None:
    order = BatchOrder(count, batch_size, seed)
    for position in positions:
        assert order[position] == BatchOrder(count, batch_size, seed)[position]


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    orders = [tuple(BatchOrder(100, 100, seed)[epoch]) for seed in range(5) for epoch in range(5)]
    assert len(set(orders)) == 25  # of 100! possible ones
    assert tuple(range(100)) not in orders


def test_an_epoch_is_shuffled_without_preference() -> None:
    """Over many epochs every sample is as often first as any other: 600 draws of 6, within 4 standard deviations."""
    order = BatchOrder(6, 6, seed=0)
    first = [order[epoch][0] for epoch in range(600)]
    assert all(abs(first.count(sample) - 100) < 4 * (600 * 1 / 6 * 5 / 6) ** 0.5 for sample in range(6))


def test_mixed_seeds_are_those_of_splitmix64() -> None:
    """The first outputs for the state 0, as in the reference implementation (prng.di.unimi.it/splitmix64.c)."""
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [mixed_seed(0, counter) for counter in range(3)] == [value >> 1 for value in published]


def test_near_arguments_give_seeds_that_are_far_apart() -> None:
    """No two of 40,000 places agree, and a step in seed or counter flips half of the 63 bits."""
    assert len({mixed_seed(seed, counter) for seed in range(200) for counter in range(200)}) == 40_000
    for step in ((1, 0), (0, 1)):
        flipped = [
            (mixed_seed(seed, counter) ^ mixed_seed(seed + step[0], counter + step[1])).bit_count()
            for seed in range(50)
            for counter in range(50)
        ]
        # a mean of 2,500 numbers of 63 fair bits: 31.5, standard deviation 3.97 / 50
        assert sum(flipped) / len(flipped) == pytest.approx(31.5, abs=0.4)


@given(seeds, st.integers(0, 10**9))
def test_a_mixed_seed_is_one_that_torch_takes(seed: int, counter: int) -> None:
    assert 0 <= mixed_seed(seed, counter) < 2**63
