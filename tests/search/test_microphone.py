"""The microphone of this machine, with a stand-in for the library that reads it."""

import io
import os
import sys
import types
from typing import Any

import numpy as np
import pytest
import soundfile

from saysee.errors import SayseeError
from saysee.search.microphone import record

BLOCKS = [np.full((1_600, 1), level, np.float32) for level in (0.1, 0.2, 0.3)]


class Stream:
    """Gives three blocks as soon as it is opened, always in the same memory, as the real one does."""

    def __init__(self, rate: int, *, channels: int, dtype: str, callback: Any) -> None:
        assert (rate, channels, dtype) == (16_000, 1, "float32")
        memory = np.zeros((1_600, 1), np.float32)
        for block in BLOCKS:
            memory[:] = block
            callback(memory, len(block), None, None)

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        return None


def stand_in(stream: Any) -> types.ModuleType:
    module: Any = types.ModuleType("sounddevice")
    module.InputStream = stream
    module.PortAudioError = type("PortAudioError", (Exception,), {})
    return module  # type: ignore[no-any-return]


@pytest.fixture
def enter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody has pressed Enter."""
    reading, writing = os.pipe()
    os.write(writing, b"\n")
    monkeypatch.setattr(sys, "stdin", os.fdopen(reading))
    os.close(writing)


@pytest.mark.usefixtures("enter")
def test_what_was_said_until_enter_is_a_wav_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", stand_in(Stream))
    told: list[str] = []
    samples, rate = soundfile.read(io.BytesIO(record(told.append)))
    assert rate == 16_000
    np.testing.assert_allclose(samples, np.concatenate(BLOCKS)[:, 0], atol=1e-4)
    assert told == ["speak now; press Enter to end"]


def test_a_machine_without_one_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise module.PortAudioError("Error querying device -1")

    module: Any = stand_in(failing)
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    with pytest.raises(SayseeError, match=r"the microphone cannot be used \(Error querying device -1\)"):
        record(print)
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(SayseeError, match=r"install `pip install 'saysee\[microphone\]'`"):
        record(print)
