"""Threads for what would hold up the event loop: decoding, and reading from the disk."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


class Workers:
    """A few threads. What waits for one of them waits in the event loop, where it can still be called off.

    Args:
        count: of the threads.
        name: of them.
    """

    def __init__(self, count: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=name)
        self._free = asyncio.Semaphore(count)

    async def run(self, work: Callable[[], Result]) -> Result:
        """Do something in a thread. Called off meanwhile, it comes back when the thread is done with it.

        So what the work holds is never held by somebody who is not counted any more.

        Raises:
            Exception: what the work raises.
        """
        async with self._free:
            future = asyncio.get_running_loop().run_in_executor(self._pool, work)
            try:
                return await asyncio.shield(future)
            except asyncio.CancelledError:
                await asyncio.wait({future})
                if not future.cancelled():
                    future.exception()
                raise

    def close(self) -> None:
        """Take no more work."""
        self._pool.shutdown(wait=False, cancel_futures=True)
