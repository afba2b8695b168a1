"""The order of the data: a function of seed and position, and nothing else."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saysee.data.sampler import BatchOrder, Integers, mixed_seed, uniform_draws

batch_sizes = st.integers(1, 25)
seeds = st.integers(0, 2**31)
images = st.lists(st.integers(0, 12), min_size=1, max_size=60)
bucket_sizes = st.integers(1, 4)


def make(
    images: list[int], batch_size: int, seed: int, buckets: int = 1, one_caption_per_image: bool = False
) -> BatchOrder:
    """Samples of these images; lengths that follow from the place, in no order."""
    lengths = np.array([(place * 7919) % 101 for place in range(len(images))])
    numbers = np.array(images, dtype=np.int64)
    return BatchOrder(
        numbers, lengths, batch_size, seed, bucket_batches=buckets, one_caption_per_image=one_caption_per_image
    )


def plain(count: int, batch_size: int, seed: int) -> BatchOrder:
    return make(list(range(count)), batch_size, seed)


def epoch_of(order: BatchOrder, epoch: int) -> list[list[int]]:
    return [order[epoch * order.batches_per_epoch + batch] for batch in range(order.batches_per_epoch)]


@given(images, batch_sizes, seeds, st.integers(0, 5), bucket_sizes, st.booleans())
def test_an_epoch_has_every_sample_once(
    images: list[int], batch_size: int, seed: int, epoch: int, buckets: int, one_caption_per_image: bool
) -> None:
    order = make(images, batch_size, seed, buckets, one_caption_per_image)
    batches = epoch_of(order, epoch)
    assert sorted(itertools.chain(*batches)) == list(range(len(images)))
    sizes = sorted(map(len, batches), reverse=True)
    assert order.smallest_batch == sizes[-1] >= 1
    assert sizes[0] <= batch_size
    if not one_caption_per_image:
        assert sizes == [batch_size] * (len(images) // batch_size) + [len(images) % batch_size] * (
            len(images) % batch_size > 0
        )


@given(images, batch_sizes, seeds, st.integers(0, 5), bucket_sizes)
def test_no_image_stands_twice_in_a_batch(
    images: list[int], batch_size: int, seed: int, epoch: int, buckets: int
) -> None:
    for batch in epoch_of(make(images, batch_size, seed, buckets, True), epoch):
        shown = [images[sample] for sample in batch]
        assert len(set(shown)) == len(shown)


def test_one_caption_per_image_costs_few_short_batches() -> None:
    """Five captions an image are five rounds, of which each ends with one short batch."""
    order = make([n // 5 for n in range(5 * 103)], 10, seed=0, one_caption_per_image=True)
    sizes = [len(batch) for batch in epoch_of(order, 0)]
    assert sizes == ([10] * 10 + [3]) * 5


@given(
    images,
    batch_sizes,
    seeds,
    st.lists(st.integers(0, 200), min_size=1, max_size=30),
    bucket_sizes,
    st.booleans(),
)
def test_a_batch_does_not_depend_on_what_was_asked_before(
    images: list[int], batch_size: int, seed: int, positions: list[int], buckets: int, one_caption_per_image: bool
) -> None:
    order = make(images, batch_size, seed, buckets, one_caption_per_image)
    for position in positions:
        assert order[position] == make(images, batch_size, seed, buckets, one_caption_per_image)[position]


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    for buckets in (1, 2):
        orders = [
            tuple(itertools.chain(*epoch_of(make(list(range(100)), 10, seed, buckets), epoch)))
            for seed in range(5)
            for epoch in range(5)
        ]
        assert len(set(orders)) == 25  # of 100! possible ones
        assert tuple(range(100)) not in orders


def test_an_epoch_is_shuffled_without_preference() -> None:
    """Over many epochs every sample is as often first as any other: 600 draws of 6, within 4 standard deviations."""
    order = plain(6, 6, seed=0)
    first = [order[epoch][0] for epoch in range(600)]
    assert all(abs(first.count(sample) - 100) < 4 * (600 * 1 / 6 * 5 / 6) ** 0.5 for sample in range(6))


# ---- lengths


def flickr8k_like(count: int = 30_000) -> Integers:
    """Frames of as many clips as Flickr8k trains on, at HuBERT's 50 a second.

    45.9 h in 40,000 clips are 4.13 s each. That the lengths are log-normal, and the width of 0.35 (nine clips in ten
    between 2.2 and 6.9 s), is our guess; one clip lasts 323 s, of which 30 are kept (`max_seconds`).
    """
    generator = np.random.default_rng(0)
    mean, width = 45.9 * 3600 / 40_000, 0.35
    seconds = generator.lognormal(np.log(mean) - width**2 / 2, width, count)
    seconds[count // 3] = 30
    return np.floor(50 * seconds).astype(np.int64)


def padding(batches: list[list[int]], lengths: Integers) -> float:
    """The part of a padded epoch that is padding."""
    padded = sum(len(batch) * int(lengths[batch].max()) for batch in batches)
    return 1 - int(lengths.sum()) / padded


@pytest.mark.parametrize(
    ("crop", "one_caption_per_image", "without", "most"),
    [(None, False, 0.55, 0.05), (320, False, 0.3, 0.05), (320, True, 0.3, 0.05), (None, True, 0.55, 0.07)],
    ids=["whole", "cut to 6.4 s", "one caption an image, cut to 6.4 s", "one caption an image, whole"],
)
def test_batches_of_like_length_hold_little_padding(
    crop: int | None, one_caption_per_image: bool, without: float, most: float
) -> None:
    """At most 5 % of an epoch's frames, where a plain order has more than half (cut: a third).

    Whole recordings with one caption an image have 7 %: each of the five rounds of an epoch has a longest batch.
    """
    lengths = flickr8k_like() if crop is None else np.minimum(flickr8k_like(), crop)
    numbers = np.arange(30_000) // 5
    orders = [
        BatchOrder(numbers, lengths, 256, 0, bucket_batches=buckets, one_caption_per_image=one_caption_per_image)
        for buckets in (1, 64)
    ]
    plain, bucketed = (padding(epoch_of(order, 0), lengths) for order in orders)
    assert plain > without
    assert bucketed <= most


def test_the_shortest_recordings_do_not_come_first() -> None:
    """Batches of like length are in random order: their place in an epoch says nothing of their length."""
    lengths = flickr8k_like()
    order = BatchOrder(np.arange(len(lengths)), lengths, 256, 0, bucket_batches=64)
    correlations = []
    for epoch in range(12):
        means = [lengths[batch].mean() for batch in epoch_of(order, epoch)]
        correlations.append(np.corrcoef(np.arange(len(means)), np.argsort(np.argsort(means)))[0, 1])
    # 118 batches: a standard deviation of 1 / sqrt(117) each, and of that over sqrt(12) their mean
    assert abs(np.mean(correlations)) < 4 / (117 * 12) ** 0.5
    assert max(map(abs, correlations)) < 4 / 117**0.5


def test_a_bucket_is_a_random_part_of_the_corpus() -> None:
    """Two samples of like length are neighbours in one epoch and not in the next."""
    lengths = np.arange(1_000)
    order = BatchOrder(np.arange(1_000), lengths, 10, 0, bucket_batches=10)
    together = [{frozenset(batch) for batch in epoch_of(order, epoch)} for epoch in range(2)]
    assert not together[0] & together[1]


# ---- seeds


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


@given(seeds, st.integers(0, 10**9), st.integers(0, 50), st.integers(0, 2**31))
def test_uniform_draws_follow_from_their_place_alone(seed: int, counter: int, count: int, elsewhere: int) -> None:
    torch.manual_seed(elsewhere)
    draws = uniform_draws(seed, counter, count)
    assert (draws.shape, draws.dtype) == ((count,), torch.float64)
    assert bool(((draws >= 0) & (draws < 1)).all())
    torch.rand(3)
    assert torch.equal(draws, uniform_draws(seed, counter, count))
    state = torch.get_rng_state()
    uniform_draws(seed, counter, count)
    assert torch.equal(state, torch.get_rng_state()), "nobody else's draws are touched"


def test_uniform_draws_are_uniform_and_differ_from_place_to_place() -> None:
    draws = torch.stack([uniform_draws(seed, counter, 50) for seed in range(10) for counter in range(20)]).flatten()
    assert len(set(draws.tolist())) == len(draws)
    # 10,000 numbers in ten parts: a standard deviation of 30 each
    assert all(abs(int(part) - 1_000) < 4 * 30 for part in torch.histc(draws, 10, 0, 1))
