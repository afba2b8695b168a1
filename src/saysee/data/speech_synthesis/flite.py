"""Flite (Black and Lenzo 2001), a small synthesiser in C with five English voices; Debian's package `flite`."""

import re

from saysee.data.speech_synthesis.base import Samples, Voice, at_pitch, find_program, one_of, output_of, recorded

_LICENCE = "free use with attribution (Carnegie Mellon University's licence of flite, like BSD)"

# `awb_time`, Debian's sixth, can only tell the time.
_LANGUAGES = {"kal": "en-us", "kal16": "en-us", "awb": "en-gb-scotland", "rms": "en-us", "slt": "en-us"}
_DEAF_TO_PITCH = ("rms",)


class FliteEngine:
    """Speed by `duration_stretch`, pitch by `f0_shift`, which `rms` passes over; a process a caption, about 0.1 s.

    Raises:
        SayseeError: the program is not installed.
    """

    def __init__(self) -> None:
        self._program = find_program("flite", "flite")
        version = re.search(r"flite-\S+", output_of([self._program, "--version"]))
        self.version = version.group() if version else "flite"
        # an unknown name would be passed over in silence, and the voice be another
        there = output_of([self._program, "-lv"]).split()
        self._voices = {name: Voice(language, _LICENCE) for name, language in _LANGUAGES.items() if name in there}

    def voice(self, name: str) -> Voice:
        """See `Engine.voice`."""
        return one_of("flite", name, self._voices)

    def speak(self, text: str, voice: str, speed: float, pitch: float) -> tuple[Samples, int]:
        """See `Engine.speak`; the samples have 16 kHz, those of `kal` 8, and those of `rms` so many at pitch 0."""
        if voice not in _DEAF_TO_PITCH:
            return self._say(text, voice, speed, 2 ** (pitch / 12))
        return at_pitch(lambda speed: self._say(text, voice, speed, 1.0), speed, pitch)

    def _say(self, text: str, voice: str, speed: float, shift: float) -> tuple[Samples, int]:
        settings = ["--setf", f"duration_stretch={1 / speed:.4f}", "--setf", f"f0_shift={shift:.4f}"]
        return recorded([self._program, "-voice", voice, *settings, "-f", "-", "-o"], f"{text}\n")
