"""Hibari, a small neural synthesiser of English, distilled from Kokoro; PyPI's `hibari-tts`, extra `speak`.

The voice `heart` lies in the package; the package fetches the others over the network when they are first asked for.
"""

from importlib.metadata import version
from typing import Any

import numpy as np

from saysee.data.speech_synthesis.base import Samples, SynthesisError, Voice, at_pitch, import_hibari, one_of, reporting
from saysee.errors import SayseeError

_LICENCE = "Apache-2.0 for the model, which was distilled from Kokoro-82M (Apache-2.0)"
# What comes of the model's own knob, measured on twelve captions: each sound takes a whole number of 12.5 ms, so that
# the knob moves in steps, and between 1.16 and 1.5 times the speed there is nothing.
_SPEED = (0.50, 0.61, 0.71, 0.81, 0.90, 0.95, 1.00, 1.04, 1.11, 1.16, 1.50, 1.61, 1.84)
_KNOB = (0.50, 0.60, 0.70, 0.80, 0.85, 0.90, 1.00, 1.10, 1.20, 1.30, 1.35, 1.60, 2.00)


class HibariEngine:
    """Speed by the model's own knob, which is coarse; pitch by `at_pitch`.

    Raises:
        SayseeError: the package is not installed.
    """

    def __init__(self) -> None:
        self._hibari = import_hibari()
        self.version = f"hibari-tts {version('hibari-tts')}"
        known = self._hibari.voices.VOICES
        self._voices = {name: Voice(about["language"].lower(), _LICENCE) for name, about in known.items()}
        self._loaded: dict[str, Any] = {}

    def voice(self, name: str) -> Voice:
        """See `Engine.voice`; fetches the voice, if it is not there."""
        voice = one_of("hibari", name, self._voices)
        self._load(name)
        return voice

    def speak(self, text: str, voice: str, speed: float, pitch: float) -> tuple[Samples, int]:
        """See `Engine.speak`; the samples have 24 kHz, at pitch 0."""
        model = self._load(voice)

        def say(speed: float) -> tuple[Samples, int]:
            # its noise is drawn: by the same seed every time
            return model(text, speed=float(np.interp(speed, _SPEED, _KNOB)), seed=0), model.sample_rate

        with reporting("hibari"):
            samples, rate = at_pitch(say, speed, pitch)
        if len(samples) == 0:
            raise SynthesisError("hibari found nothing to say in it")
        return samples, rate

    def _load(self, voice: str) -> Any:
        if voice not in self._loaded:
            try:
                self._loaded[voice] = self._hibari.Hibari(voice=voice)
            except RuntimeError as error:
                raise SayseeError(f"{error}; the voice `heart` needs no network") from None
        return self._loaded[voice]
