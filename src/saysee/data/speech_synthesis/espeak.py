"""eSpeak NG, a formant synthesiser of over a hundred languages, with variants of each voice; Debian's `espeak-ng`.

A voice is a language with or without a variant, as `espeak-ng` writes them: `en-us`, `en-gb+f3`, `de+Andy`.
"""

import re

import numpy as np

from saysee.data.speech_synthesis.base import Samples, Voice, find_program, one_of, output_of, recorded
from saysee.errors import SayseeError

_LICENCE = "GPL-3.0-or-later for the program and its voices, which makes no claim on what they say"
_WORDS_A_MINUTE = 175
# Semitones that `-p` shifts the pitch by, as measured here with en-us: its scale is linear in neither Hz nor semitones.
_SHIFT, _KNOB = (-6.2, -3.5, 0.0, 4.2, 8.6), (0, 25, 50, 75, 99)


class EspeakEngine:
    """Speed by `-s`, in words a minute; pitch by `-p`, from -6 to 8 semitones; a process for each caption, about 10 ms.

    Raises:
        SayseeError: the program is not installed.
    """

    def __init__(self) -> None:
        self._program = find_program("espeak-ng", "espeak-ng")
        version = re.search(r"text-to-speech: (\S+)", output_of([self._program, "--version"]))
        self.version = f"espeak-ng {version.group(1)}" if version else "espeak-ng"
        listed = re.findall(r"^ *\d+ +(\S+) +\S+ +\S+ +(\S+)", output_of([self._program, "--voices"]), re.MULTILINE)
        # what lies below mb/ needs another program, MBROLA, and its data; a language's first file is its own
        self._files = {language: file for language, file in reversed(listed) if not file.startswith(("mb/", "!v/"))}
        self._languages = {language: Voice(language, _LICENCE) for language in self._files}
        variants = output_of([self._program, "--voices=variant"])
        self._variants = set(re.findall(r"!v/(.+?) *(?:\(.*)?$", variants, re.MULTILINE))

    def voice(self, name: str) -> Voice:
        """See `Engine.voice`."""
        language, plus, variant = name.partition("+")
        # an unknown variant would be passed over in silence, and the voice be another
        if plus and variant not in self._variants:
            raise SayseeError(f"espeak-ng has no variant {variant!r}; it has: {', '.join(sorted(self._variants))}")
        return one_of("espeak-ng", language, self._languages)

    def speak(self, text: str, voice: str, speed: float, pitch: float) -> tuple[Samples, int]:
        """See `Engine.speak`; the samples have 22.05 kHz."""
        rate, knob = round(_WORDS_A_MINUTE * speed), round(float(np.interp(pitch, _SHIFT, _KNOB)))
        # between double brackets it would read phonemes
        text = text.replace("[[", "[")
        # version 1.51 passes over the variant where the file has another name than the language: en-gb is gmw/en
        language, plus, variant = voice.partition("+")
        voice = self._files[language] + plus + variant if plus else voice
        return recorded([self._program, "-v", voice, "-s", str(rate), "-p", str(knob), "--stdin", "-w"], text)
