"""Extraction in processes that are killed: what is finished stays, and the features are the same bit for bit."""

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from torch import Tensor

from saysee.errors import AudioError, SayseeError
from saysee.features import extract as extraction
from saysee.features.extract import FileEncoder, Run, StoredFeatures, extract, in_process, in_processes
from saysee.features.store import FeatureStore

BACKBONE = "ab" * 32


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def write(folder: Path, *texts: str) -> list[Path]:
    folder.mkdir()
    paths = [folder / f"{number}.txt" for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    return paths


def noted_encoder(notes: Path, processes: int = 1) -> FileEncoder:
    """An encoder that takes a few milliseconds a file and notes process and text; `die` ends its process.

    It is there when so many processes have one: else the first to start may have done all before the second.
    """
    (notes.parent / f"started.{os.getpid()}").touch()
    while len(list(notes.parent.glob("started.*"))) < processes:
        time.sleep(0.001)

    def decode(content: bytes, path: Path) -> str:
        text = content.decode()
        if text.startswith("bad"):
            raise AudioError(f"{path.name}: is {text}")
        return text

    def encode(texts: Sequence[str]) -> list[Tensor]:
        with notes.open("a") as file:  # one line is one write
            file.writelines(f"{os.getpid()} {text}\n" for text in texts)
        if "die" in texts:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.003)
        generators = [torch.Generator().manual_seed(int(sha256(text.encode()).hexdigest()[:8], 16)) for text in texts]
        return [torch.randn(2, 5, 3, generator=generator).half() for generator in generators]

    return FileEncoder(BACKBONE, Path.read_bytes, decode, encode)


def noted(notes: Path) -> list[tuple[int, str]]:
    lines = notes.read_text().splitlines() if notes.exists() else []
    return [(int(process), text) for process, _, text in (line.partition(" ") for line in lines)]


def how(notes: Path, cache: Path, workers: int) -> Run:
    return (
        in_processes(partial(noted_encoder, notes, workers), cache, workers)
        if workers
        else in_process(noted_encoder(notes), cache)
    )


def _extract_in_units_of_four(paths: list[Path], cache: Path, notes: Path, workers: int) -> None:
    extraction.UNIT = 4
    extract(paths, BACKBONE, cache, how(notes, cache, workers))


def equal(one: StoredFeatures, other: StoredFeatures, paths: Sequence[Path]) -> bool:
    return all(torch.equal(one[path], other[path]) for path in paths)


def test_killed_at_random_moments_it_goes_on_and_ends_with_the_same_features(tmp_path: Path, cache: Path) -> None:
    """Kill -9 of a real process, twice alone and once with two workers, which end with it."""
    paths, notes = write(tmp_path / "texts", *(f"text {n}" for n in range(60))), tmp_path / "notes"
    draws = random.Random(0)
    killed: set[int] = set()
    for workers in (0, 2, 0):
        done_before = _contents(cache)
        already = len(noted(notes))
        process = multiprocessing.get_context("spawn").Process(
            target=_extract_in_units_of_four, args=(paths, cache, notes, workers)
        )
        process.start()
        moment = already + draws.randint(5, 14)
        while len(noted(notes)) < moment:
            assert process.is_alive()
            time.sleep(0.0005)
        process.kill()
        process.join()
        killed |= {worker for worker, _ in noted(notes)[already:]}
        for worker in killed:
            _wait_for_end(worker)
        texts = [text for _, text in noted(notes)[already:]]
        assert not {sha256(text.encode()).digest()[:16] for text in texts} & done_before, "a finished unit again"
        assert len(_contents(cache)) > len(done_before), "a unit was finished"
    assert len(_contents(cache)) < 60
    done_before, already = _contents(cache), len(noted(notes))
    resumed, _ = extract(paths, BACKBONE, cache, how(notes, cache, 0))
    assert len(noted(notes)) - already == 60 - len(done_before)
    undisturbed, _ = extract(paths, BACKBONE, tmp_path / "other", how(tmp_path / "others", tmp_path / "other", 0))
    assert equal(resumed, undisturbed, paths)
    assert list(resumed.store.damaged()) == []


def _contents(cache: Path) -> set[bytes]:
    store = FeatureStore(cache, BACKBONE)
    return {store.key(entry) for entry in range(len(store))}


def _wait_for_end(process: int) -> None:
    for _ in range(20_000):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state == "Z":  # its parent is gone and nobody has asked how it ended
            return
        time.sleep(0.001)
    raise AssertionError(f"worker {process} outlives the process that started it")


def test_two_workers_give_what_one_process_gives(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, and name the same bad files."""
    monkeypatch.setattr(extraction, "UNIT", 3)
    texts = [f"bad {n}" if n % 7 == 3 else f"text {n}" for n in range(40)]
    paths, notes = [*write(tmp_path / "texts", *texts), tmp_path / "missing"], tmp_path / "notes"
    several, faults = extract(paths, BACKBONE, cache, how(notes, cache, 2))
    assert len({process for process, _ in noted(notes)} - {os.getpid()}) == 2
    one, expected = extract(paths, BACKBONE, tmp_path / "other", how(notes, tmp_path / "other", 0))
    assert faults == expected
    assert set(faults) == {path for path, text in zip(paths, [*texts, "bad"], strict=True) if text.startswith("bad")}
    assert equal(several, one, [path for path in paths if path not in faults])


def test_a_worker_that_is_killed_is_a_clear_error_and_finished_units_stay(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extraction, "UNIT", 2)
    paths, notes = write(tmp_path / "texts", "one", "two", "three", "die", "five"), tmp_path / "notes"
    with pytest.raises(SayseeError, match="a worker was ended from outside") as caught:
        extract(paths, BACKBONE, cache, how(notes, cache, 1))
    assert "\n" not in str(caught.value)
    assert {sha256(text).digest()[:16] for text in (b"one", b"two")} <= _contents(cache)
    paths[3].write_text("live")
    features, faults = extract(paths, BACKBONE, cache, how(notes, cache, 0))
    assert faults == {}
    assert [text for _, text in noted(notes)].count("one") == 1
    assert all(features[path].shape == (2, 5, 3) for path in paths)
