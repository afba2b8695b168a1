"""Kokoro-82M (hexgrad, 2025), a neural synthesiser with 28 English voices, at about the speed of speech on a CPU core.

No package holds all of it, so a folder that `$SAYSEE_KOKORO` names holds its files: `model.onnx`, an export with the
inputs `tokens`, `style` and `speed`, and `voices/NAME.bin`, each voice's style vectors (float32, 256 numbers for each
length of a text). The phonemes are made by the phonemiser of `hibari-tts` (extra `speak`), a port of Kokoro's own with
the same alphabet; it knows English alone.
"""

import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from saysee.data.speech_synthesis.base import Samples, SynthesisError, Voice, at_pitch, import_hibari, one_of, reporting
from saysee.errors import SayseeError
from saysee.files import sha256_of

FOLDER_VARIABLE = "SAYSEE_KOKORO"
"""Names the folder of the model and its voices."""

_LICENCE = "Apache-2.0 for the model and its voices; its makers trained it in part on what other synthesisers said"
_RATE = 24_000
_STYLE_BYTES = 256 * 4  # float32
# What comes of the model's own knob, as in `hibari`: each sound takes a whole number of 25 ms.
_SPEED, _KNOB = (0.64, 0.80, 0.92, 1.00, 1.07, 1.19, 1.53), (0.65, 0.80, 0.90, 1.00, 1.10, 1.25, 1.50)
# Of the voices' names the first letter says the language.
_LANGUAGES = {"a": "en-us", "b": "en-gb"}


class KokoroEngine:
    """Speed by the model's own knob, which is coarse; pitch by `at_pitch`.

    Raises:
        SayseeError: its files or a package that it needs are not there, or a file is damaged.
    """

    def __init__(self) -> None:
        hibari = import_hibari()  # which has onnxruntime with it
        import onnxruntime
        from hibari.g2p import G2P

        folder = Path(os.environ.get(FOLDER_VARIABLE, ""))
        model = folder / "model.onnx"
        if FOLDER_VARIABLE not in os.environ or not model.is_file():
            raise SayseeError(
                f"${FOLDER_VARIABLE} is {os.environ.get(FOLDER_VARIABLE)!r}; it must name a folder with Kokoro's "
                "model.onnx and voices/*.bin (docs/data.md says where they are had)"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # workers share the cores
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has a class of its own for each fault
            reason = " ".join(str(error).split())
            raise SayseeError(f"onnxruntime cannot read {model} ({reason}); fetch it again") from None
        self._folder = folder
        self._phonemisers: dict[str, Any] = {
            language: hibari.Hibari(g2p=G2P(british=language == "en-gb")) for language in _LANGUAGES.values()
        }
        self.version = f"kokoro {sha256_of(model)[:12]}, hibari-tts {version('hibari-tts')}"
        names = [path.stem for path in (folder / "voices").glob("*.bin")]
        self._voices = {name: Voice(_LANGUAGES[name[0]], _LICENCE) for name in names if name[0] in _LANGUAGES}

    def voice(self, name: str) -> Voice:
        """See `Engine.voice`."""
        voice = one_of("kokoro", name, self._voices)
        self._styles(name)
        return voice

    def speak(self, text: str, voice: str, speed: float, pitch: float) -> tuple[Samples, int]:
        """See `Engine.speak`; the samples have 24 kHz, at pitch 0."""
        phonemiser = self._phonemisers[self._voices[voice].language]
        with reporting("kokoro"):
            sentences = [phonemiser.ids(phonemes) for phonemes in phonemiser.phonemize(text)]
        if not sentences:
            raise SynthesisError("kokoro found nothing to say in it")
        styles = self._styles(voice)

        def say(speed: float) -> tuple[Samples, int]:
            knob = float(np.interp(speed, _SPEED, _KNOB))
            return np.concatenate([self._say(ids, styles, knob) for ids in sentences]), _RATE

        with reporting("kokoro"):
            return at_pitch(say, speed, pitch)

    def _styles(self, voice: str) -> Samples:
        """Return a voice's style vectors (n, 1, 256), that of the longest text last."""
        path = self._folder / "voices" / f"{voice}.bin"
        size = path.stat().st_size
        if size == 0 or size % _STYLE_BYTES:
            raise SayseeError(f"{path} has {size} bytes, and a voice has a multiple of {_STYLE_BYTES}; fetch it again")
        return np.fromfile(path, np.float32).reshape(-1, 1, _STYLE_BYTES // 4)

    def _say(self, ids: list[int], styles: Samples, speed: float) -> Samples:
        """Say one sentence, of phonemes with a 0 at both ends."""
        style = styles[min(len(ids) - 2, len(styles) - 1)]
        inputs = {"tokens": np.array([ids]), "style": style, "speed": np.array([speed], np.float32)}
        samples: Samples = self._session.run(None, inputs)[0]
        return samples.ravel()
