"""A question from this machine's microphone."""

import io
import select
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import soundfile

from saysee.errors import SayseeError
from saysee.features.audio import SAMPLE_RATE

_MOST_SECONDS = 30  # ours: nobody asks for a picture for longer


def record(tell: Callable[[str], None]) -> bytes:
    """Record until Enter is pressed, at most half a minute, and return a WAV file.

    Args:
        tell: is given what the user is to do.

    Raises:
        SayseeError: the library that reads microphones is not installed, or there is none.
    """
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # OSError: PortAudio itself is missing
        raise SayseeError(
            f"no microphone can be read ({error}); install `pip install 'saysee[microphone]'` and PortAudio "
            "(Debian: libportaudio2), or give a recording"
        ) from None
    blocks: list[Any] = []
    try:
        with sounddevice.InputStream(
            SAMPLE_RATE, channels=1, dtype="float32", callback=lambda block, *_: blocks.append(block.copy())
        ):
            tell("speak now; press Enter to end")
            select.select([sys.stdin], [], [], _MOST_SECONDS)
    except sounddevice.PortAudioError as error:
        raise SayseeError(f"the microphone cannot be used ({error}); plug one in, or give a recording") from None
    if not blocks:
        raise SayseeError("the microphone gave no sound; choose another in the system's settings, or give a recording")
    file = io.BytesIO()
    soundfile.write(file, np.concatenate(blocks), SAMPLE_RATE, format="WAV")
    return file.getvalue()
