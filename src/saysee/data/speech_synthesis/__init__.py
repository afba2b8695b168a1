"""Written words to sound: the engines by name. Each is optional, and says what to install where it is not there."""

from collections.abc import Callable
from functools import cache

from saysee.data.speech_synthesis.base import Engine
from saysee.data.speech_synthesis.espeak import EspeakEngine
from saysee.data.speech_synthesis.flite import FliteEngine
from saysee.data.speech_synthesis.hibari import HibariEngine
from saysee.data.speech_synthesis.kokoro import KokoroEngine
from saysee.errors import SayseeError

_ENGINES: dict[str, Callable[[], Engine]] = {
    "flite": FliteEngine,
    "espeak-ng": EspeakEngine,
    "hibari": HibariEngine,
    "kokoro": KokoroEngine,
}

ENGINES = tuple(_ENGINES)
"""The names of all engines."""


@cache
def load_engine(name: str) -> Engine:
    """Return an engine, made once in a process.

    Raises:
        SayseeError: no such engine, or what it needs is not installed.
    """
    if name not in _ENGINES:
        raise SayseeError(f"there is no engine {name!r}; allowed: {', '.join(ENGINES)}")
    return _ENGINES[name]()
