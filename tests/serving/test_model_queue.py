"""The queue before the model: together what waits together, and nobody pays for another's question."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from saysee.errors import SayseeError
from saysee.search.question import Question
from saysee.serving.model_queue import ModelQueue


class StubEncoder:
    """Encodes a question as its number, waits at a gate, and fails for a batch with a bad one."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[list[int]] = []
        self.refreshed = 0

    def encode(self, questions: Sequence[Question]) -> list[int]:
        numbers = [number_of(question) for question in questions]
        self.batches.append(numbers)
        assert self.gate.wait(20)
        if -1 in numbers:
            raise SayseeError("a bad question")
        return numbers

    def refresh(self) -> None:
        self.refreshed += 1


def question(number: int, samples: int = 100) -> Question:
    return Question("recording", waveform=np.full(samples, number, dtype=np.float32))


def number_of(asked: Question) -> int:
    assert asked.waveform is not None
    return int(asked.waveform[0])


@pytest.fixture
def encoder() -> StubEncoder:
    return StubEncoder()


@pytest.fixture
def queue(encoder: StubEncoder) -> Iterator[ModelQueue[int]]:
    queue = ModelQueue[int](encoder.encode, 8, encoder.refresh, 0.0)
    queue.start()
    yield queue
    encoder.gate.set()
    queue.close(20)


async def waiting(encoder: StubEncoder) -> None:
    """Wait until the model is at the gate."""
    count = len(encoder.batches)
    while len(encoder.batches) == count:
        await asyncio.sleep(0.005)


async def fill(queue: ModelQueue[int], encoder: StubEncoder, questions: Sequence[Question]) -> list[object]:
    """Ask while the model is held up by a first question, so that all of these wait."""
    encoder.gate.clear()
    first = asyncio.ensure_future(queue.ask(question(0), lambda encoded: encoded))
    await waiting(encoder)
    asked = [asyncio.ensure_future(queue.ask(one, lambda encoded: encoded * 10)) for one in questions]
    await asyncio.sleep(0)  # so that each has begun
    encoder.gate.set()
    await first
    return await asyncio.gather(*asked, return_exceptions=True)


def test_what_waits_together_is_encoded_together_and_each_gets_its_own(
    queue: ModelQueue[int], encoder: StubEncoder
) -> None:
    results = asyncio.run(fill(queue, encoder, [question(number) for number in range(1, 12)]))
    assert [done.result for done in results] == [10 * number for number in range(1, 12)]  # type: ignore[attr-defined]
    assert encoder.batches == [[0], list(range(1, 9)), [9, 10, 11]]
    assert all(done.wait > 0 for done in results)  # type: ignore[attr-defined]


def test_a_bad_question_fails_alone(queue: ModelQueue[int], encoder: StubEncoder) -> None:
    numbers = [1, 2, -1, 3]
    results = asyncio.run(fill(queue, encoder, [question(number) for number in numbers]))
    assert encoder.batches == [[0], [1, 2, -1, 3], [1], [2], [-1], [3]]
    bad = results.pop(2)
    assert isinstance(bad, SayseeError)
    assert [done.result for done in results] == [10, 20, 30]  # type: ignore[attr-defined]


def test_an_error_after_the_encoding_is_the_questions_own(queue: ModelQueue[int]) -> None:
    async def ask() -> list[object]:
        def work(encoded: int) -> float:
            return 1 / encoded

        return await asyncio.gather(*(queue.ask(question(n), work) for n in (2, 0, 4)), return_exceptions=True)

    first, bad, last = asyncio.run(ask())
    assert isinstance(bad, ZeroDivisionError)
    assert (first.result, last.result) == (0.5, 0.25)  # type: ignore[attr-defined]


def test_a_long_recording_is_not_padded_onto_short_ones(queue: ModelQueue[int], encoder: StubEncoder) -> None:
    lengths = [100, 150, 6000, 120, 130, 200]
    asyncio.run(fill(queue, encoder, [question(n, length) for n, length in enumerate(lengths, 1)]))
    assert encoder.batches == [[0], [1, 2], [3], [4, 5, 6]]


def test_who_goes_away_is_not_waited_for(queue: ModelQueue[int], encoder: StubEncoder) -> None:
    done: list[int] = []

    async def ask() -> None:
        encoder.gate.clear()
        first = asyncio.ensure_future(queue.ask(question(1), done.append))
        await waiting(encoder)
        gone, stays = (asyncio.ensure_future(queue.ask(question(n), done.append)) for n in (2, 3))
        await asyncio.sleep(0)
        gone.cancel()
        first.cancel()  # its encoding has begun; what would follow is left out
        await asyncio.wait([gone, first])
        encoder.gate.set()
        await stays

    asyncio.run(ask())
    assert encoder.batches == [[1], [3]]
    assert done == [3]


def test_what_is_not_waited_for_is_not_kept(queue: ModelQueue[int], encoder: StubEncoder) -> None:
    """While the model is busy, clients that come and go would fill the memory otherwise."""

    async def ask() -> None:
        encoder.gate.clear()
        first = asyncio.ensure_future(queue.ask(question(1), lambda encoded: encoded))
        await waiting(encoder)
        heard = question(2)
        kept = weakref.ref(heard.waveform)
        gone = asyncio.ensure_future(queue.ask(heard, lambda encoded: encoded))
        del heard
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.wait([gone])
        del gone
        gc.collect()
        assert kept() is None
        encoder.gate.set()
        await first

    asyncio.run(ask())


def test_work_without_a_question_runs_in_the_same_thread(queue: ModelQueue[int], encoder: StubEncoder) -> None:
    async def ask() -> set[str]:
        names = await asyncio.gather(
            queue.run(lambda: threading.current_thread().name),
            queue.ask(question(1), lambda _: threading.current_thread().name),
        )
        return {done.result for done in names}

    assert asyncio.run(ask()) == {"saysee-model"}
    assert encoder.batches == [[1]]


def test_the_index_is_read_anew_before_the_model_works(encoder: StubEncoder) -> None:
    for seconds, expected in ((0.0, 3), (1000.0, 0)):
        encoder.refreshed = 0
        queue = ModelQueue[int](encoder.encode, 8, encoder.refresh, seconds)
        queue.start()

        async def ask(queue: ModelQueue[int] = queue) -> None:
            for number in range(3):
                await queue.ask(question(number), lambda encoded: encoded)

        asyncio.run(ask())
        queue.close(20)
        assert encoder.refreshed == expected


def test_what_the_refresh_raises_reaches_those_who_wait_and_the_next_are_served(encoder: StubEncoder) -> None:
    faults = [OSError("the disk is gone")]

    def refresh() -> None:
        if faults:
            raise faults.pop()

    queue = ModelQueue[int](encoder.encode, 8, refresh, 0.0)
    queue.start()

    async def ask() -> int:
        with pytest.raises(OSError, match="the disk is gone"):
            await queue.ask(question(1), lambda encoded: encoded)
        return (await queue.ask(question(2), lambda encoded: encoded)).result

    assert asyncio.run(ask()) == 2
    queue.close(20)


def test_closing_answers_what_is_there(encoder: StubEncoder) -> None:
    queue = ModelQueue[int](encoder.encode, 2, encoder.refresh, 0.0)
    encoder.gate.clear()
    queue.start()

    async def ask() -> list[int]:
        asked = [asyncio.ensure_future(queue.ask(question(n), lambda encoded: encoded)) for n in range(5)]
        await waiting(encoder)
        queue.close(0.01)  # returns, though the model is not done
        encoder.gate.set()
        return [done.result for done in await asyncio.gather(*asked)]

    assert asyncio.run(ask()) == list(range(5))
