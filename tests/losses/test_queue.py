"""The queue against a plain list that keeps the newest M rows."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saysee.losses.contrastive import Keys
from saysee.losses.queue import MomentumQueue


def rows(first: int, count: int) -> Keys:
    """Rows that can be told apart: row r holds r in the speech, -r in the image, r as its id."""
    number = torch.arange(first, first + count)
    return Keys(number[:, None].float().expand(-1, 2), -number[:, None].float().expand(-1, 2), number)


@settings(deadline=None)
@given(capacity=st.integers(0, 12), batches=st.lists(st.integers(0, 20), max_size=12))
def test_holds_the_newest_rows_wherever_it_wraps(capacity: int, batches: list[int]) -> None:
    queue = MomentumQueue(capacity, 2)
    count = 0
    for size in batches:
        queue.enqueue(rows(count, size))
        count += size
    expected = set(range(count)[-capacity:]) if capacity else set()
    behind = queue.behind(rows(1000, 3))
    assert len(queue) == len(expected)
    assert behind.image_id[:3].tolist() == [1000, 1001, 1002]
    assert set(behind.image_id[3:].tolist()) == expected
    # the three parts of a row stay together
    assert torch.equal(behind.speech[:, 0].long(), behind.image_id)
    assert torch.equal(-behind.image[:, 0].long(), behind.image_id)


def test_its_state_goes_through_a_checkpoint() -> None:
    queue = MomentumQueue(5, 2)
    queue.enqueue(rows(0, 7))
    again = MomentumQueue(5, 2)
    again.load_state_dict(queue.state_dict())
    for one in (queue, again):
        one.enqueue(rows(50, 2))
    assert all(torch.equal(a, b) for a, b in zip(queue.buffers(), again.buffers(), strict=True))
    assert set(again.image_id.tolist()) == {4, 5, 6, 50, 51}


def test_what_was_put_in_is_a_copy() -> None:
    queue = MomentumQueue(2, 2)
    source = Keys(torch.ones(2, 2), torch.ones(2, 2), torch.zeros(2, dtype=torch.int64))
    queue.enqueue(source)
    source.speech.zero_()
    assert queue.speech.sum() == 4
