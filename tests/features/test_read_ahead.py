"""Reading ahead: in order, a bounded number of files, and a bad one is no end."""

import threading
from concurrent.futures import Future
from pathlib import Path

import pytest

from saysee.errors import AudioError
from saysee.features.extract import read_ahead


def test_files_come_in_their_order_whichever_is_ready_first() -> None:
    """The first file is read only when the last of those ahead has been."""
    paths = [Path(f"{number}") for number in range(4)]
    last_is_read = threading.Event()

    def read(path: Path) -> str:
        if path == paths[0]:
            assert last_is_read.wait(60)
        elif path == paths[3]:
            last_is_read.set()
        return path.name

    assert list(read_ahead(paths, read, workers=2, ahead=4)) == [(path, path.name) for path in paths]


@pytest.mark.parametrize(("workers", "ahead"), [(1, 1), (2, 3), (4, 16)])
def test_no_more_than_a_bounded_number_is_read_ahead(workers: int, ahead: int) -> None:
    paths = [Path(f"{number}") for number in range(40)]
    begun: list[Path] = []

    def read(path: Path) -> int:
        begun.append(path)
        return 0

    taken = 0
    for _ in read_ahead(paths, read, workers=workers, ahead=ahead):
        taken += 1
        assert taken <= len(begun) <= taken - 1 + ahead
    assert taken == len(paths)


def test_a_fault_of_a_file_is_one_line_in_its_place() -> None:
    def read(path: Path) -> str:
        if path.name == "1":
            raise AudioError("1: is silent")
        if path.name == "2":
            raise PermissionError(13, "Permission denied")
        if path.name == "3":
            raise OSError("no number")
        return "read"

    results = list(read_ahead([Path(f"{number}") for number in range(5)], read, workers=2, ahead=2))
    assert [result for _, result in results] == ["read", "1: is silent", "2: Permission denied", "3: no number", "read"]


def test_what_is_no_fault_of_a_file_comes_through() -> None:
    def read(path: Path) -> str:
        if path.name == "2":
            raise ZeroDivisionError
        return path.name

    files = read_ahead([Path(f"{number}") for number in range(5)], read, workers=2, ahead=3)
    assert [next(files)[1], next(files)[1]] == ["0", "1"]
    with pytest.raises(ZeroDivisionError):
        next(files)


def test_leaving_early_does_not_read_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C: what has not begun is not begun, also of the files that were asked for already."""
    begun: list[str] = []
    cancelled: list[bool] = []
    all_cancelled = threading.Event()
    cancel = Future.cancel

    def counted(future: Future[object]) -> bool:
        cancelled.append(cancel(future))
        if len(cancelled) == 49:
            all_cancelled.set()
        return cancelled[-1]

    def read(path: Path) -> str:
        begun.append(path.name)
        if path.name == "1":
            assert all_cancelled.wait(5)
        return path.name

    monkeypatch.setattr(Future, "cancel", counted)
    files = read_ahead([Path(f"{number}") for number in range(100)], read, workers=1, ahead=50)
    assert next(files)[1] == "0"
    files.close()  # type: ignore[attr-defined]
    assert begun in (["0"], ["0", "1"])
