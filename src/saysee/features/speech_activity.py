"""Where in a recording somebody speaks: silence and noise at its ends are cut off, and one without speech is refused.

Silero's voice activity detector (the bundled file, MIT) says of every 32 ms how probable speech is. It is computed
here and not by the package `silero-vad`, which on import sets torch to one thread for the whole process.

To refuse a question that somebody has spoken is worse than to answer noise, so the thresholds are low. What they do to
voices in eight languages, to noise, hum and tones is measured beside a threshold on energy by
`benchmarks/speech_activity.py`.
"""

from functools import cache
from importlib import resources

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from saysee.errors import AudioError, SayseeError
from saysee.features.audio import SAMPLE_RATE
from saysee.features.sources import naming
from saysee.files import sha256_of

CHUNK = 512
"""Samples of which the detector says how probable speech is, 32 ms."""

# Ours. Silero's own threshold is 0.5, for sentences in long recordings.
_HEARD, _KEPT = 0.2, 0.1
_MARGIN_SECONDS = 0.5
# Ours: quiet voices are missed, so they are brought to this mean amplitude, of the tenth loudest chunk: a click is over
# in fewer chunks, and a word is not.
_LEVEL, _LEVEL_RANK = 0.05, 10

_SHA256 = "c59271c284ae9c8335d795d60e0bfdb71aaaceec578d9bd9ffc1b8153c319ea1"
_CONTEXT, _PADDING, _HOP = 64, 64, 128  # samples before each chunk, reflected ones behind it, between two spectra
_STRIDES = (1, 2, 2, 1)
_BLOCK = 1024  # chunks computed at once, 33 s: bounds memory and changes nothing


def find_speech(waveform: NDArray[np.float32]) -> tuple[int, int]:
    """Return the first sample that is to be kept, and the one after the last.

    Kept is all from the first speech to the last, and half a second before and after: consonants are missed more
    easily than vowels, and so is the very beginning of a recording, of which the detector has heard nothing yet.

    Args:
        waveform: (S,), mono at 16 kHz.

    Raises:
        AudioError: nowhere is there speech.
    """
    probability = speech_probability(waveform)
    highest = float(probability.max())
    if highest < _HEARD:
        raise AudioError(
            f"no speech was heard in it: the highest probability of speech is {highest:.2f}, {_HEARD} is needed; speak "
            "closer to the microphone, or choose another one"
        )
    spoken = np.flatnonzero(probability >= _KEPT)
    margin = round(_MARGIN_SECONDS * SAMPLE_RATE)
    start = max(0, int(spoken[0]) * CHUNK - margin)
    stop = min(len(waveform), (int(spoken[-1]) + 1) * CHUNK + margin)
    return start, stop


def trim(waveform: NDArray[np.float32], name: str = "the recording") -> tuple[NDArray[np.float32], tuple[float, float]]:
    """Cut off what is before and after speech; what is in the middle stays, whatever it is.

    Args:
        waveform: (S,), mono at 16 kHz.
        name: what an error calls the recording.

    Returns:
        The waveform that is kept (S',), and from where to where it was, in seconds.

    Raises:
        AudioError: one line that names the recording: nowhere is there speech.
    """
    with naming(name, AudioError):
        start, stop = find_speech(waveform)
    return waveform[start:stop], (start / SAMPLE_RATE, stop / SAMPLE_RATE)


@torch.inference_mode()
def speech_probability(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return how probable speech is in every `CHUNK` samples, (ceil(S / 512),); silence is put behind the last.

    Any number of threads may call it at once.
    """
    samples = torch.from_numpy(_at_speaking_level(waveform))
    chunks = -(-len(samples) // CHUNK)
    filled = F.pad(samples, (_CONTEXT, chunks * CHUNK - len(samples)))
    weights, lstm = _detector()
    state = None
    parts = []
    for block in torch.split(filled.unfold(0, _CONTEXT + CHUNK, CHUNK), _BLOCK):
        padded = F.pad(block[:, None], (0, _PADDING), "reflect")
        real, imaginary = F.conv1d(padded, weights["stft_conv.weight"], stride=_HOP).chunk(2, dim=1)
        features = (real.square() + imaginary.square()).sqrt()
        for layer, stride in enumerate(_STRIDES, start=1):
            weight, bias = weights[f"conv{layer}.weight"], weights[f"conv{layer}.bias"]
            features = F.conv1d(features, weight, bias, stride=stride, padding=1).relu()
        hidden, state = lstm(features[..., 0], state)
        logits = F.linear(hidden.relu(), weights["final_conv.weight"][..., 0], weights["final_conv.bias"])
        parts.append(logits[:, 0].sigmoid())
    return torch.cat(parts).numpy()


def _at_speaking_level(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """Make a quiet recording louder; others stay as they are."""
    whole = waveform[: max(len(waveform) // CHUNK, 1) * CHUNK]
    loudness = np.sqrt(np.square(whole.reshape(-1, min(CHUNK, len(whole)))).mean(axis=1))
    level = float(np.sort(loudness)[-min(_LEVEL_RANK, len(loudness))])
    if not 0 < level < _LEVEL:
        return waveform
    louder: NDArray[np.float32] = np.clip(waveform * np.float32(_LEVEL / level), -1, 1)
    return louder


@cache
def _detector() -> tuple[dict[str, Tensor], nn.LSTM]:
    """Return the detector's tensors, and its recurrent layer, which holds some of them."""
    with resources.as_file(resources.files("saysee") / "assets" / "silero-vad" / "silero_vad_16k.safetensors") as path:
        if not path.is_file() or sha256_of(path) != _SHA256:
            raise SayseeError(f"{path} is missing or has been altered; install saysee again")
        weights = load_file(path)
    # on `meta` it is made without random values: torch's random numbers are not ours to use up
    lstm = nn.LSTM(128, 128, device="meta")
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    lstm.load_state_dict({f"{name}_l0": weights.pop(f"lstm_cell.{name}") for name in names}, assign=True)
    return weights, lstm
