"""Whisper's encoder (Radford et al. 2022, arXiv 2212.04356), run on as much sound as there is and not on 30 seconds.

The published model pads every recording with silence to 30 s. Here the positional table is cut instead, which makes a
spoken word about twenty times cheaper; the states differ from those with the silence, and the trainable parts learn on
these. Whisper was itself trained on transcripts; a result with it is not one "without text" in the strict sense.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from saysee.config import Precision, SpeechBackboneConfig
from saysee.models.backbones.base import SAMPLE_RATE, SpeechBackbone, at_least, real_frames
from saysee.models.backbones.weights import DTYPES, Checkpoint, bundled, load_strictly

DEFAULT_BUNDLED = "whisper-base"
ARCHITECTURE = (
    "d_model",
    "encoder_layers",
    "encoder_attention_heads",
    "encoder_ffn_dim",
    "num_mel_bins",
    "max_source_positions",
    "activation_function",
)
"""What of Whisper's configuration decides the encoder's output."""

POSITIONS = "embed_positions.weight"
_MEL_FRAMES_PER_SECOND = 100
_SHORTEST = 400  # samples: one window of the spectrogram, which gives two mel frames and so one output frame


class WhisperBackbone(SpeechBackbone):
    """The encoder of a Whisper checkpoint.

    Args:
        encoder: transformers' module with its weights.
        config: layers, pooling and cut.
    """

    encoder: WhisperEncoder

    def __init__(self, encoder: WhisperEncoder, config: SpeechBackboneConfig) -> None:
        whisper = encoder.config
        super().__init__(
            encoder,
            {"family": "whisper", **{name: getattr(whisper, name) for name in ARCHITECTURE}},
            config,
            dim=whisper.d_model,
            depth=whisper.encoder_layers,
            frames_per_second=_MEL_FRAMES_PER_SECOND / 2,
            max_seconds=whisper.max_source_positions * 2 / _MEL_FRAMES_PER_SECOND,
        )
        self._log_mel = WhisperFeatureExtractor(feature_size=whisper.num_mel_bins)

    def prepare(self, waveform: NDArray[np.float32]) -> Tensor:
        """Return the log-mel spectrogram (mel bins, F) of a waveform (S,): 100 frames a second, none for padding."""
        samples = at_least(waveform[: self.max_samples], _SHORTEST)
        # `truncation=False` and no padding: the window over the recording is all that is transformed
        features = self._log_mel(
            samples, sampling_rate=SAMPLE_RATE, padding="do_not_pad", truncation=False, return_tensors="pt"
        )
        mel: Tensor = features["input_features"][0]
        return mel

    @torch.inference_mode()
    def forward(self, prepared: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Encode log-mel spectrograms; see `SpeechBackbone.forward`."""
        encoder, device = self.encoder, self.device
        mel_lengths = [mel.shape[1] for mel in prepared]
        longest = max(mel_lengths)
        mel = torch.stack([F.pad(one.to(device, self.dtype), (0, longest - one.shape[1])) for one in prepared])
        hidden = F.gelu(encoder.conv1(mel))
        # the first convolution's bias makes padding non-zero, and the second would carry it into the last real frame
        hidden = hidden.masked_fill(~real_frames(mel_lengths, device)[:, None], 0)
        hidden = F.gelu(encoder.conv2(hidden)).transpose(1, 2)
        mask = real_frames([(length - 1) // 2 + 1 for length in mel_lengths], device)
        hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
        attention = None if bool(mask.all()) else mask[:, None, None, :]
        states = [hidden]
        for layer in encoder.layers[: max(self.layers)]:
            states.append(layer(states[-1], attention))
        if len(states) > len(encoder.layers):
            states[-1] = encoder.layer_norm(states[-1])
        return self._finish(states, mask)


def load(config: SpeechBackboneConfig) -> WhisperBackbone:
    """Load the encoder of a Whisper checkpoint; its decoder is not read.

    Raises:
        SayseeError: the checkpoint cannot be had, or a tensor of the encoder is missing or of the wrong shape.
    """
    if config.checkpoint == "bundled" or config.checkpoint.startswith("bundled:"):
        name = config.checkpoint.partition(":")[2] or DEFAULT_BUNDLED
        description, tensors = bundled(f"{name}.safetensors", config.precision)
        architecture = description["architecture"]
        positions = sinusoids(architecture["max_source_positions"], architecture["d_model"])
        tensors[POSITIONS] = positions.to(DTYPES[config.precision])
        revision = None
    else:
        checkpoint = Checkpoint(config.checkpoint, config.revision).pinned()
        architecture, revision = checkpoint.architecture("whisper"), checkpoint.revision
        tensors = encoder_tensors(checkpoint, config.precision)
    encoder = build(architecture)
    load_strictly(encoder, tensors, f"the checkpoint {config.checkpoint!r}")
    backbone = WhisperBackbone(encoder, config)
    backbone.revision = revision
    return backbone


def build(architecture: dict[str, Any]) -> WhisperEncoder:
    """Make transformers' encoder without weights (on the meta device) from the values of a Whisper `config.json`."""
    values = {name: architecture[name] for name in ARCHITECTURE if name in architecture}
    with torch.device("meta"):
        return WhisperEncoder(WhisperConfig(**values, attn_implementation="sdpa"))


def encoder_tensors(checkpoint: Checkpoint, precision: Precision = "fp32") -> dict[str, Tensor]:
    """Read the encoder of a whole Whisper checkpoint, by the names that it has in transformers' `WhisperEncoder`."""
    # `model.encoder.` with a language-model head on top (as published), `encoder.` without
    tensors = checkpoint.tensors(lambda name: name.removeprefix("model.").startswith("encoder."), precision)
    return {name.removeprefix("model.").removeprefix("encoder."): tensor for name, tensor in tensors.items()}


def sinusoids(length: int, channels: int) -> Tensor:
    """Return Whisper's table of positions (length, channels), which is a formula and so need not be stored.

    Computed in float64 and rounded once, so that every machine has the same bits. The published checkpoints hold it as
    computed in float32: up to 4e-4 away at the far end of the table.
    """
    half = channels // 2
    rates = np.exp(-np.log(10_000) / (half - 1) * np.arange(half))
    angles = np.arange(length)[:, None] * rates
    return torch.from_numpy(np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32))
