"""The queue before the model: one thread runs it, and encodes together the questions that wait together.

Nothing waits for company: the thread takes what is there. A question whose client goes away leaves the queue. How many
may wait is counted by `saysee.serving.counting.Places`, which a question holds from its decoding on.
"""

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from saysee.search.question import Question

_PADDING = 1.5  # times the samples of a batch may be encoded, so that nobody waits for a far longer recording (ours)

Encoded = TypeVar("Encoded")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Done(Generic[Result]):
    """What was asked for, and the seconds that the question waited and that its batch took to encode."""

    result: Result
    wait: float
    encode: float


@dataclass(eq=False)
class _Job:
    """Something for the model to do, and whom to tell."""

    question: Question | None
    work: Callable[..., Any]
    future: "asyncio.Future[Done[Any]]"
    begun: float = field(default_factory=time.perf_counter)

    @property
    def dropped(self) -> bool:
        return self.future.cancelled()

    def finish(self, done: Done[Any] | None, error: Exception | None) -> None:
        def tell() -> None:
            if self.future.done():
                return
            if error is not None:
                self.future.set_exception(error)
            elif done is not None:
                self.future.set_result(done)

        with contextlib.suppress(RuntimeError):  # the loop is gone: the server was made to stop at once
            self.future.get_loop().call_soon_threadsafe(tell)


class ModelQueue(Generic[Encoded]):
    """Runs a model in a thread of its own.

    Args:
        encode: encodes questions together, in their order.
        batch: how many at most.
        refresh: is called in the same thread before the model works, at most every `refresh_seconds`.
        refresh_seconds: see `refresh`.
    """

    def __init__(
        self,
        encode: Callable[[Sequence[Question]], Sequence[Encoded]],
        batch: int,
        refresh: Callable[[], None],
        refresh_seconds: float,
    ) -> None:
        self._encode = encode
        self._batch = batch
        self._refresh = refresh
        self._refresh_seconds = refresh_seconds
        self._refreshed = time.monotonic()
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="saysee-model", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self, seconds: float) -> None:
        """Let the thread end when the queue is empty, and wait for that, but not longer than `seconds`."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(seconds)

    async def ask(self, question: Question, work: Callable[[Encoded], Result]) -> Done[Result]:
        """Encode a question, maybe with others, and do with it what is to be done, in the model's thread.

        Raises:
            Exception: what encoding this question, or `work`, raises; what other questions raise is not seen here.
        """
        return await self._wait(question, work)

    async def run(self, work: Callable[[], Result]) -> Done[Result]:
        """Do something in the model's thread that needs no question."""
        return await self._wait(None, work)

    async def _wait(self, question: Question | None, work: Callable[..., Result]) -> Done[Result]:
        job = _Job(question, work, asyncio.get_running_loop().create_future())
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()
        try:
            return await job.future
        except asyncio.CancelledError:
            with self._changed:
                if job in self._jobs:
                    self._jobs.remove(job)
            raise

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._jobs and not self._closing:
                    self._changed.wait()
                if not self._jobs:
                    return
                jobs = _take(self._jobs, self._batch)
            try:
                self._answer(jobs)
            except Exception as error:
                for job in jobs:
                    job.finish(None, error)

    def _answer(self, jobs: Sequence[_Job]) -> None:
        if time.monotonic() - self._refreshed >= self._refresh_seconds:
            self._refresh()
            self._refreshed = time.monotonic()
        asked = [job for job in jobs if job.question is not None and not job.dropped]
        started = time.perf_counter()
        encoded = dict(zip(map(id, asked), self._encoded(asked), strict=True))
        encode = time.perf_counter() - started
        for job in jobs:
            if job.dropped:
                continue
            made = encoded.get(id(job))
            if isinstance(made, Exception):
                job.finish(None, made)
                continue
            try:
                result = job.work() if job.question is None else job.work(made)
            except Exception as error:
                job.finish(None, error)
            else:
                job.finish(Done(result, started - job.begun, 0.0 if job.question is None else encode), None)

    def _encoded(self, jobs: Sequence[_Job]) -> list[Encoded | Exception]:
        """Encode together; if that fails, one by one, so that the question at fault is the only one to fail."""
        questions = [job.question for job in jobs if job.question is not None]
        if not questions:
            return []
        try:
            return list(self._encode(questions))
        except Exception as error:
            if len(questions) == 1:
                return [error]
        return [self._encoded([job])[0] for job in jobs]


def _take(jobs: "deque[_Job]", batch: int) -> list[_Job]:
    """Take the first jobs, as long as padding their recordings to the longest does not cost too much."""
    taken: list[_Job] = []
    lengths: list[int] = []
    while jobs and len(taken) < batch:
        waveform = None if jobs[0].question is None else jobs[0].question.waveform
        if waveform is not None:
            lengths.append(len(waveform))
            if taken and max(lengths) * len(lengths) > _PADDING * sum(lengths):
                break
        taken.append(jobs.popleft())
    return taken
