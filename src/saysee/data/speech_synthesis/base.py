"""What a speech synthesiser is here, and what its engines share.

Every engine speaks at a `speed` (1.0 is the voice's own, 1.1 a tenth faster) and a `pitch` in semitones from the
voice's own. An engine that has a knob for one of them turns it; pitch without a knob is made by `at_pitch`.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import soundfile
from numpy.typing import NDArray

from saysee.errors import SayseeError

Samples = NDArray[np.float32]

TIMEOUT_SECONDS = 60.0
"""How long a program may take for one caption (ours); those here take a tenth of a second."""


class SynthesisError(SayseeError):
    """A text that an engine cannot say, or did not."""


@dataclass(frozen=True)
class Voice:
    """What is known of a voice.

    Attributes:
        language: its tag, as `en-us`.
        licence: of the voice, and so far as known of what it says.
    """

    language: str
    licence: str


class Engine(Protocol):
    """A speech synthesiser. An engine is made in every process that speaks; making one may take a second."""

    @property
    def version(self) -> str:
        """Of the program or package; a voice of another version may say the same text otherwise."""
        ...

    def voice(self, name: str) -> Voice:
        """Return what is known of a voice.

        Raises:
            SayseeError: there is no such voice; the message lists those there are.
        """
        ...

    def speak(self, text: str, voice: str, speed: float, pitch: float) -> tuple[Samples, int]:
        """Say a text: the same arguments give the same samples.

        Args:
            text: one line, as `speakable` gives it.
            voice: a name that `voice` knows.
            speed: a factor on the voice's own.
            pitch: semitones from the voice's own.

        Returns:
            Samples (frames,) in about [-1, 1], and their rate in Hz.

        Raises:
            SynthesisError: nothing came of it.
        """
        ...


def speakable(text: str) -> str:
    """Return a caption as an engine is to read it: one line, and no space before its punctuation marks.

    Corpora separate words and marks (`in an entry way .`), and some engines then read the mark.
    """
    words = "".join(character if character.isprintable() else " " for character in text).split()
    line = " ".join(words)
    for mark in ".,;:!?":
        line = line.replace(f" {mark}", mark)
    return line


def at_pitch(speak: Callable[[float], tuple[Samples, int]], speed: float, pitch: float) -> tuple[Samples, int]:
    """Shift the pitch of an engine that has no knob for it, as a tape that runs faster does.

    What is said slower by 2^(pitch/12) and played faster by as much has the speed that is asked for, and all its
    frequencies are shifted: the formants as well, which sounds like another speaker of the same manner.

    Args:
        speak: says the text at a speed, and gives samples and their rate.
        speed: that is asked for.
        pitch: the same, in semitones.

    Returns:
        Samples (frames,), and the rate at which they are to be played.
    """
    factor = 2 ** (pitch / 12)
    samples, rate = speak(speed / factor)
    return samples, round(rate * factor)


def find_program(name: str, package: str) -> str:
    """Return the path of a program.

    Raises:
        SayseeError: it is not installed.
    """
    path = shutil.which(name)
    if path is None:
        raise SayseeError(
            f"the program {name!r} is not installed; install the package {package} of your system "
            f"(Debian, Ubuntu: apt-get install {package}), or choose voices of another engine"
        )
    return path


def output_of(command: Sequence[str]) -> str:
    """Return what a program prints, on either stream; for its version and its list of voices."""
    finished = subprocess.run(command, capture_output=True, timeout=TIMEOUT_SECONDS, check=False)  # noqa: S603
    return (finished.stdout + finished.stderr).decode("utf-8", "replace")


def recorded(command: Sequence[str], text: str) -> tuple[Samples, int]:
    """Run a program that reads a text from standard input and writes a WAV file, whose path is its last argument.

    No shell is between, and the text is no argument: nothing in it can be taken for a command or an option.

    Returns:
        Samples (frames,) and their rate in Hz.

    Raises:
        SynthesisError: the program failed, took too long, or wrote nothing that can be read.
    """
    with tempfile.TemporaryDirectory(prefix="saysee-") as folder:
        path = Path(folder) / "speech.wav"
        try:
            finished = subprocess.run(  # noqa: S603
                [*command, str(path)], input=text.encode(), capture_output=True, timeout=TIMEOUT_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            raise SynthesisError(f"{Path(command[0]).name} took over {TIMEOUT_SECONDS:g} s") from None
        if finished.returncode != 0:
            said = " ".join(finished.stderr.decode("utf-8", "replace").split())
            raise SynthesisError(f"{Path(command[0]).name} ended with status {finished.returncode}: {said}")
        try:
            samples, rate = soundfile.read(path, dtype="float32")
        except (OSError, soundfile.LibsndfileError):
            raise SynthesisError(f"{Path(command[0]).name} wrote no sound") from None
    return samples, rate


@contextmanager
def reporting(engine: str) -> Iterator[None]:
    """Turn whatever another's package raises on a text into an error that leaves out one recording, not all.

    Raises:
        SynthesisError: something was raised inside the block.
    """
    try:
        yield
    except Exception as error:
        raise SynthesisError(f"{engine} failed on it ({type(error).__name__}: {error})") from error


def one_of(engine: str, name: str, voices: dict[str, Voice]) -> Voice:
    """Return the voice of a name.

    Raises:
        SayseeError: there is none.
    """
    if name not in voices:
        raise SayseeError(f"{engine} has no voice {name!r}; it has: {', '.join(sorted(voices))}")
    return voices[name]


def import_hibari() -> Any:
    """Import the package whose phonemiser two engines share.

    Raises:
        SayseeError: it is not installed.
    """
    try:
        import hibari
    except ImportError as error:
        raise SayseeError(
            f"the package hibari-tts cannot be used ({error}); pip install 'saysee[speak]', or choose voices of "
            "another engine"
        ) from None
    return hibari
