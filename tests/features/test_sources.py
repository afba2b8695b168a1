import os
from pathlib import Path

import pytest

from saysee.errors import AudioError, ImageError
from saysee.features.sources import open_source


def read(source: Path | bytes, name: str | None = None, max_bytes: int = 100) -> bytes:
    with open_source(source, name, max_bytes, AudioError) as file:
        return file.read()


def test_gives_the_bytes_of_a_path_or_the_bytes_themselves(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    assert read(path) == b"content"
    assert read(b"content") == b"content"


def test_size_is_limited_inclusively() -> None:
    assert len(read(bytes(100), max_bytes=100)) == 100
    with pytest.raises(AudioError, match="has 101 bytes; at most 100 are allowed"):
        read(bytes(101), max_bytes=100)


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        (Path("no/such.wav"), None, "no/such.wav: there is no such file"),
        (Path("no/such.wav"), "question 7", "question 7: there is no such file"),
        (Path("/"), None, "/: is a folder or a device, not a file"),
        (Path("two\nlines"), None, "'two\\nlines': there is no such file"),
        (Path("x" * 5000), "long", "long: cannot be read (File name too long)"),
        (b"", None, "0 bytes: is empty (0 bytes)"),
    ],
)
def test_error_is_one_line_with_the_name_in_front(source: Path | bytes, name: str | None, message: str) -> None:
    with pytest.raises(AudioError) as caught:
        read(source, name)
    assert str(caught.value) == message


def test_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(AudioError, match="not a file"):
        read(tmp_path / "pipe")


def test_errors_inside_the_block_are_named_and_others_pass() -> None:
    with pytest.raises(AudioError, match=r"^sound: is odd$"), open_source(b"1", "sound", 9, AudioError):
        raise AudioError("is odd")
    with pytest.raises(AudioError, match=r"^sound: cannot be read \(disk on fire\)$"):  # noqa: SIM117
        with open_source(b"1", "sound", 9, AudioError):
            raise OSError(5, "disk on fire")
    with pytest.raises(ImageError, match=r"^other$"), open_source(b"1", "sound", 9, AudioError):
        raise ImageError("other")


def test_file_is_closed_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"1")
    with pytest.raises(AudioError), open_source(path, None, 9, AudioError) as file:
        raise AudioError("is odd")
    assert file.closed
