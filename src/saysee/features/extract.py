"""Files -> cached features: read, decoded and encoded once each, with every bad file named.

Reader, decoder and encoder are handed in, so this module knows no model.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

from torch import Tensor
from tqdm import tqdm

from saysee.errors import SayseeError
from saysee.features.cache import FeatureCache
from saysee.features.sources import one_line

T = TypeVar("T")


@dataclass(frozen=True)
class CachedFeatures:
    """The features of a set of files, read from the cache by path.

    Attributes:
        cache: where they are.
        content: the content hash of each file, taken when the features were extracted.
    """

    cache: FeatureCache
    content: dict[Path, str]

    def __getitem__(self, path: Path) -> Tensor:
        """Return a file's features as they were cached.

        Raises:
            SayseeError: the entry has been deleted or damaged since; it is made again when the command is.
        """
        try:
            return self.cache.get(self.content[path])
        except KeyError:
            raise SayseeError(
                f"the cached features of {path} have been deleted or damaged; run the same command again to make them"
            ) from None


def extract(
    paths: Iterable[Path],
    read: Callable[[Path], bytes],
    decode: Callable[[bytes, Path], T],
    encode: Callable[[Sequence[T]], Sequence[Tensor]],
    cache: FeatureCache,
    *,
    batch_size: int,
    workers: int = 2,
    progress: str | None = None,
) -> tuple[CachedFeatures, dict[Path, str]]:
    """Bring the features of files into the cache.

    Args:
        paths: the files; a repeated one counts once.
        read: gives a file's content; called in threads.
        decode: makes of the content what `encode` takes; called in threads. The path is for messages.
        encode: turns what was read into one tensor each; what it returns must not depend on the grouping.
        cache: where features are looked up and kept.
        batch_size: files that are encoded together.
        workers: threads that read ahead.
        progress: what the progress bar is called; None shows none.

    Returns:
        The features of all good files, and for each bad file what is wrong with it. The caller decides whether a bad
        file is passed over or stops the run.
    """
    unique = list(dict.fromkeys(paths))
    content: dict[Path, str] = {}
    faults: dict[Path, str] = {}

    def read_one(path: Path) -> tuple[str, T | None]:
        content = read(path)
        digest = hashlib.sha256(content).hexdigest()
        return digest, None if digest in cache else decode(content, path)

    waiting: list[tuple[Path, T]] = []

    def encode_waiting() -> None:
        for (path, _), features in zip(waiting, encode([item for _, item in waiting]), strict=True):
            if features.isfinite().all():
                cache.put(content[path], features)
            else:
                faults[path] = f"{path}: its features are not finite (beyond the range of {features.dtype})"
        waiting.clear()

    files = read_ahead(unique, read_one, workers=workers, ahead=batch_size)
    for path, result in tqdm(
        files, total=len(unique), desc=progress, unit="file", disable=None if progress else True, delay=2, leave=False
    ):
        if isinstance(result, str):
            faults[path] = result
            continue
        digest, item = result
        content[path] = digest
        if item is not None:
            waiting.append((path, item))
        if len(waiting) == batch_size:
            encode_waiting()
    if waiting:
        encode_waiting()
    return CachedFeatures(cache, content), faults


def read_ahead(
    paths: Iterable[Path], read: Callable[[Path], T], *, workers: int, ahead: int
) -> Iterator[tuple[Path, T | str]]:
    """Read files in threads, a bounded number ahead, and give them in their order.

    Yields:
        Each path with what `read` made of it, or with one line that says what is wrong with the file.
    """

    def read_one(path: Path) -> tuple[Path, T | str]:
        try:
            return path, read(path)
        except SayseeError as error:
            return path, str(error)
        except OSError as error:
            return path, f"{one_line(str(path))}: {error.strerror or error}"

    todo = iter(paths)
    with ThreadPoolExecutor(workers) as pool:
        pending = deque(pool.submit(read_one, path) for path in islice(todo, ahead))
        try:
            while pending:
                yield pending.popleft().result()
                pending.extend(pool.submit(read_one, path) for path in islice(todo, 1))
        finally:
            for future in pending:
                future.cancel()
