"""Files -> features in the store: read, decoded and encoded once each, with every bad file named.

The files that have no features yet are cut into units of `UNIT` files, and a unit becomes one shard (or a few, where
its features are large). Units are encoded by this process, by several on this machine, or by a Ray cluster
(`ray_cluster`): all of them call `encode_unit`. What is finished stays when the rest is killed.

Reader, decoder and encoder are handed in, so this module knows no model.
"""

import os
import signal
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm

from saysee.errors import SayseeError
from saysee.features.hashes import FileHashes, file_key, is_settled, sha256
from saysee.features.sources import one_line
from saysee.features.store import FeatureStore
from saysee.files import hash64

K = TypeVar("K")
T = TypeVar("T")

UNIT = 64
"""Files of a unit: what is lost of the work when a process is killed, for each process."""
_SHARD_BYTES = 256 * 1024 * 1024  # a unit's features are cut into shards of about this size, to bound memory
_SAVE_EVERY = 64  # units between two times that the hashes of files are saved
_LOOKED_UP = 4096  # files that are looked up together
_CONTENT = 16  # bytes of a file's SHA-256 by which the store knows it
_NO_ENTRY = -2  # of a file that has no features: it is still to be encoded, or it is a bad one


@dataclass(frozen=True)
class FileEncoder:
    """How a file becomes features.

    Attributes:
        fingerprint: of the backbone; names the part of the cache.
        read: gives a file's content; called in threads.
        decode: makes of the content what `encode` takes; called in threads. The path is for messages.
        encode: turns what was decoded into one tensor each, on the CPU.
        batch_size: files that are encoded together. In a group the last bits of a result depend on the neighbours, so
            that a run which was killed while it extracted ends with other tensors; 1 avoids it.
    """

    fingerprint: str
    read: Callable[[Path], bytes]
    decode: Callable[[bytes, Path], Any]
    encode: Callable[[Sequence[Any]], Sequence[Tensor]]
    batch_size: int = 1


@dataclass(frozen=True)
class UnitResult:
    """What became of the files of a unit.

    Attributes:
        paths: of the unit.
        content: SHA-256 of each good file, None for a bad one.
        keys: what each good file is known by (see `FileHashes`), None for one that has just been changed.
        faults: one line for each bad file.
    """

    paths: tuple[Path, ...]
    content: tuple[bytes | None, ...]
    keys: tuple[bytes | None, ...]
    faults: dict[Path, str]


Run = Callable[[Iterator[Sequence[Path]]], Iterator[UnitResult]]
"""Encodes units, in whatever order they are finished."""


class StoredFeatures:
    """The features of a set of files, read from the store by path; 12 bytes of memory a file besides the store's.

    Args:
        store: where they are.
        files: `hash64` of the paths (n,), sorted.
        entries: of the store (n,).
    """

    def __init__(self, store: FeatureStore, files: NDArray[np.uint64], entries: NDArray[np.int32]) -> None:
        self.store = store
        self._files = files
        self._entries = entries

    def __getitem__(self, path: Path) -> Tensor:
        """Return a file's features, (L, T, D) or (P, D), as they were stored; not to be written to.

        Raises:
            KeyError: it is none of the good files.
            SayseeError: they have been deleted or damaged since; they are made again when the command is.
        """
        try:
            return self.store.read(self._entry(path))
        except (OSError, SafetensorError):
            raise _lost(path) from None

    def read(self, paths: Sequence[Path]) -> list[Tensor]:
        """Return the features of several files."""
        return [self[path] for path in paths]

    def frames(self, path: Path) -> int:
        """Return T of a recording, P of a picture."""
        return self.store.frames(self._entry(path))

    def content(self, path: Path) -> bytes:
        """Return what stands for a file's content: 16 bytes of its SHA-256."""
        return self.store.key(self._entry(path))

    def _entry(self, path: Path) -> int:
        file = np.uint64(hash64(str(path)))
        place = int(np.searchsorted(self._files, file))
        if place == len(self._files) or self._files[place] != file:
            raise KeyError(path)
        entry = int(self._entries[place])
        if entry < 0:  # its shard was gone when the index was read
            raise _lost(path)
        return entry


def _lost(path: Path) -> SayseeError:
    return SayseeError(
        f"the cached features of {one_line(str(path))} have been deleted or damaged; run the same command again to "
        "make them"
    )


def extract(
    paths: Iterable[Path], fingerprint: str, cache: Path, run: Run, *, progress: str | None = None
) -> tuple[StoredFeatures, dict[Path, str]]:
    """Bring the features of files into the store.

    Args:
        paths: the files; a repeated one counts once.
        fingerprint: of the backbone.
        cache: its folder.
        run: encodes units: `in_process(encoder, cache)`, `in_processes(...)`.
        progress: what the progress bar is called; None shows none.

    Returns:
        The features of all good files, and for each bad file what is wrong with it. The caller decides whether a bad
        file is passed over or stops the run.
    """
    store, hashes = FeatureStore(cache, fingerprint), FileHashes(cache)
    met = _Files()
    # of the files that are encoded now: `hash64` of the path, and 16 bytes for the content; as numbers and not as
    # objects, which would take ten times the memory
    encoded, contents = array("Q"), bytearray()
    faults: dict[Path, str] = {}

    def missing() -> Iterator[Path]:
        rest = iter(paths)
        while some := tuple(islice(rest, _LOOKED_UP)):
            files = np.fromiter((hash64(str(path)) for path in some), np.uint64, len(some))
            new = met.unmet(files)
            digests = (hashes.get(some[place]) for place in new)
            entries = [_NO_ENTRY if digest is None else store.find(digest) for digest in digests]
            met.add(files[new], np.array([entry if entry >= 0 else _NO_ENTRY for entry in entries], np.int32))
            yield from (some[place] for place, entry in zip(new, entries, strict=True) if entry < 0)

    todo = missing()
    units = iter(lambda: tuple(islice(todo, UNIT)), ())
    try:
        with tqdm(desc=progress, unit="file", disable=None if progress else True, delay=2, leave=False) as bar:
            for number, result in enumerate(run(units), start=1):
                for path, content, file in zip(result.paths, result.content, result.keys, strict=True):
                    if content is not None:
                        encoded.append(hash64(str(path)))
                        contents += content[:_CONTENT]
                        if file is not None:
                            hashes.put(file, content)
                faults |= result.faults
                bar.update(len(result.paths))
                if number % _SAVE_EVERY == 0:
                    hashes.save()
    finally:
        hashes.save()
    if encoded:
        known = np.flatnonzero(met.entries >= 0)
        keys = np.fromiter((store.key(entry) for entry in met.entries[known]), f"S{_CONTENT}", len(known))
        store.refresh()  # which gives all entries other numbers
        found = (store.find(bytes(key).ljust(_CONTENT, b"\0")) for key in keys)
        met.entries[known] = np.fromiter(found, np.int32, len(known))
        found = (store.find(bytes(contents[at : at + _CONTENT])) for at in range(0, len(contents), _CONTENT))
        met.entries[np.searchsorted(met.files, np.frombuffer(encoded, np.uint64))] = np.fromiter(found, np.int32)
    good = met.entries != _NO_ENTRY
    return StoredFeatures(store, met.files[good], met.entries[good]), faults


class _Files:
    """The files that extraction has met, each once; 12 bytes a file.

    Attributes:
        files: `hash64` of their paths (n,), sorted.
        entries: of the store (n,); _NO_ENTRY where there is none yet.
    """

    def __init__(self) -> None:
        self.files = np.empty(0, np.uint64)
        self.entries = np.empty(0, np.int32)

    def unmet(self, files: NDArray[np.uint64]) -> list[int]:
        """Return where in `files` (m,) those stand that have not been met, each once, in order."""
        different, first = np.unique(files, return_index=True)
        place = np.searchsorted(self.files, different)
        there = place < len(self.files)
        there[there] = self.files[place[there]] == different[there]
        return sorted(first[~there].tolist())

    def add(self, files: NDArray[np.uint64], entries: NDArray[np.int32]) -> None:
        """Take files (m,) that have not been met."""
        order = np.argsort(files)
        place = np.searchsorted(self.files, files[order])
        self.files = np.insert(self.files, place, files[order])
        self.entries = np.insert(self.entries, place, entries[order])


def in_process(encoder: FileEncoder, cache: Path, *, threads: int = 2) -> Run:
    """Encode in this process, while `threads` threads read and decode ahead."""

    def run(units: Iterator[Sequence[Path]]) -> Iterator[UnitResult]:
        store: FeatureStore | None = None
        for unit in units:
            if store is None:  # where nothing is missing, its index is not read a second time
                store = FeatureStore(cache, encoder.fingerprint)
            yield encode_unit(encoder, store, unit, threads)

    return run


def in_processes(make_encoder: Callable[[], FileEncoder], cache: Path, workers: int) -> Run:
    """Encode in several processes on this machine, one thread of computing each.

    Args:
        make_encoder: called once in every process; can be pickled.
        cache: the store's folder.
        workers: how many.
    """

    def run(units: Iterator[Sequence[Path]]) -> Iterator[UnitResult]:
        with worker_pool(workers, "shards", _start_worker, make_encoder, cache) as pool:
            # two units a worker are waiting, so that none is idle and the list of files is read as it is needed
            pending = {pool.submit(_encode_in_worker, unit) for unit in islice(units, 2 * workers)}
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
                    pending |= {pool.submit(_encode_in_worker, unit) for unit in islice(units, 1)}

    return run


@contextmanager
def worker_pool(
    workers: int, finished: str, start: Callable[..., None], *arguments: object
) -> Iterator[ProcessPoolExecutor]:
    """Give a pool of processes on this machine; on Ctrl-C the units at work are finished, which keeps them.

    Args:
        workers: how many.
        finished: what the command goes on from if a worker is lost, in the plural.
        start: called once in every process, with the arguments; see `become_worker`.
        arguments: can be pickled.

    Raises:
        SayseeError: a worker was ended from outside.
    """
    pool = ProcessPoolExecutor(workers, get_context("spawn"), start, arguments)
    try:
        yield pool
    except BrokenProcessPool:
        raise SayseeError(
            "a worker was ended from outside (by the system, for lack of memory?); the same command goes on from the "
            f"finished {finished}, with fewer --workers it needs less"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_worker: tuple[FileEncoder, FeatureStore] | None = None


def _start_worker(make_encoder: Callable[[], FileEncoder], cache: Path) -> None:
    global _worker  # noqa: PLW0603 - a process of a pool has no other place
    become_worker()
    encoder = make_encoder()
    _worker = encoder, FeatureStore(cache, encoder.fingerprint)


def become_worker() -> None:
    """Make this process of a pool one that computes in one thread, leaves Ctrl-C to its parent and ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)


def _end_with_parent() -> None:
    """Wait for the end of the process that started this one: if it is killed, nobody else tells a worker to end."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode_in_worker(unit: Sequence[Path]) -> UnitResult:
    assert _worker is not None
    return encode_unit(*_worker, unit, threads=1)


def encode_unit(encoder: FileEncoder, store: FeatureStore, unit: Sequence[Path], threads: int) -> UnitResult:
    """Encode the files of a unit that the store does not have, and write them as shards.

    Args:
        encoder: how.
        store: where to; another process may write to it too.
        unit: the files.
        threads: that read and decode ahead.
    """
    content: dict[Path, bytes] = {}
    keys: dict[Path, bytes | None] = {}
    faults: dict[Path, str] = {}
    broken: set[bytes] = set()
    encoded: dict[bytes, Tensor] = {}
    waiting: dict[bytes, Any] = {}
    begun: set[bytes] = set()

    def read_one(path: Path) -> tuple[bytes | None, bytes, Any]:
        # asked before the file is read: one that changes right behind it must not count as settled when it is encoded
        status = path.stat()
        key = file_key(path, status) if is_settled(status) else None
        data = encoder.read(path)
        digest = sha256(data)
        return key, digest, None if store.find(digest) >= 0 else encoder.decode(data, path)

    def encode_waiting() -> None:
        for digest, features in zip(waiting, encoder.encode(list(waiting.values())), strict=True):
            if features.isfinite().all():
                encoded[digest] = features
            else:
                broken.add(digest)
        waiting.clear()

    def write() -> None:
        if encoded:
            store.write(list(encoded), list(encoded.values()))
            encoded.clear()

    try:
        for path, result in read_ahead(unit, read_one, workers=threads, ahead=2 * threads + encoder.batch_size):
            if isinstance(result, str):
                faults[path] = result
                continue
            keys[path], content[path], item = result
            if item is not None and content[path] not in begun:
                begun.add(content[path])
                waiting[content[path]] = item
            if len(waiting) == encoder.batch_size:
                encode_waiting()
            if sum(features.nbytes for features in encoded.values()) >= _SHARD_BYTES:
                write()
        if waiting:
            encode_waiting()
    finally:  # what is encoded when somebody presses Ctrl-C is not lost
        write()
    for path in [path for path, digest in content.items() if digest in broken]:
        faults[path] = f"{path}: its features are not finite (too large for the type that they are stored in)"
        del content[path]
    return UnitResult(
        tuple(unit), tuple(content.get(path) for path in unit), tuple(keys.get(path) for path in unit), faults
    )


def read_ahead(paths: Iterable[K], read: Callable[[K], T], *, workers: int, ahead: int) -> Iterator[tuple[K, T | str]]:
    """Read files in threads, a bounded number ahead, and give them in their order.

    Args:
        paths: the files; or what stands for a reading of one, if `read` names the file in its errors.
        read: one of them.
        workers: threads.
        ahead: how many are read before they are asked for.

    Yields:
        Each path with what `read` made of it, or with one line that says what is wrong with the file.
    """

    def read_one(path: K) -> tuple[K, T | str]:
        try:
            return path, read(path)
        except SayseeError as error:
            return path, str(error)
        except OSError as error:
            return path, f"{one_line(str(path))}: {error.strerror or error}"
        except UnicodeEncodeError:  # a manifest may name what no file can be called
            return path, f"{one_line(str(path))}: there is no such file"

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
