"""HuBERT (Hsu et al. 2021, arXiv 2106.07447), base and large, trained on speech alone without transcripts.

HuBERT-base normalises the first convolution over the whole recording (a group norm), so zeros appended to a short clip
change all its features, mask or no mask. Here the convolutional front end runs clip by clip; what it gives is padded,
and everything after it runs as a batch with a mask. An embedding then does not depend on its neighbours.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import HubertConfig
from transformers.models.hubert.modeling_hubert import HubertModel

from saysee.config import SpeechBackboneConfig
from saysee.errors import SayseeError
from saysee.models.backbones.base import SAMPLE_RATE, SpeechBackbone, at_least, real_frames
from saysee.models.backbones.weights import load_strictly, published

ARCHITECTURE = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "layer_norm_eps",
    "do_stable_layer_norm",
    "feat_proj_layer_norm",
    "feat_extract_norm",
    "feat_extract_activation",
    "conv_dim",
    "conv_kernel",
    "conv_stride",
    "conv_bias",
    "conv_pos_batch_norm",
    "num_conv_pos_embeddings",
    "num_conv_pos_embedding_groups",
)
"""What of HuBERT's configuration decides the encoder's output."""

_NEEDED = ("feature_extractor.", "feature_projection.", "encoder.")
# the weight norm of the positional convolution: as published, and as torch names it now
_RENAMED = {".weight_g": ".parametrizations.weight.original0", ".weight_v": ".parametrizations.weight.original1"}


class HubertBackbone(SpeechBackbone):
    """A HuBERT checkpoint.

    Hidden state 0 is the input of the first layer, the last one the network's output: in the large models that is after
    the final layer norm (`last_hidden_state` in transformers, whose `hidden_states[-1]` is before it since version 5).

    Args:
        encoder: transformers' module with its weights.
        config: layers, pooling and cut.
        normalise: whether each recording is brought to zero mean and unit variance, as the checkpoint was trained.
    """

    encoder: HubertModel

    def __init__(self, encoder: HubertModel, config: SpeechBackboneConfig, *, normalise: bool) -> None:
        hubert = encoder.config
        identity = {name: getattr(hubert, name) for name in ARCHITECTURE}
        super().__init__(
            encoder,
            {"family": "hubert", **identity, "normalise": normalise},
            config,
            dim=hubert.hidden_size,
            depth=hubert.num_hidden_layers,
            frames_per_second=SAMPLE_RATE / prod(hubert.conv_stride),
            max_seconds=config.max_seconds,
        )
        self._normalise = normalise
        self._shortest = 1  # what one frame of the front end sees: 400 samples in the published models
        for kernel, stride in zip(reversed(hubert.conv_kernel), reversed(hubert.conv_stride), strict=True):
            self._shortest = (self._shortest - 1) * stride + kernel

    def prepare(self, waveform: NDArray[np.float32]) -> Tensor:
        """Return a waveform (S,), cut, normalised if the checkpoint wants it, and at least one frame long."""
        samples = waveform[: self.max_samples]
        if self._normalise and len(samples):
            samples = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
        return torch.from_numpy(at_least(samples, self._shortest))

    @torch.inference_mode()
    def forward(self, prepared: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Encode waveforms; see `SpeechBackbone.forward`."""
        encoder, device = self.encoder.encoder, self.device
        features = [self.encoder.feature_extractor(one.to(device, self.dtype)[None])[0].T for one in prepared]
        mask = real_frames([len(one) for one in features], device)
        hidden = self.encoder.feature_projection(pad_sequence(features, batch_first=True))
        # the projection's bias makes padding non-zero, and the positional convolution would carry it into real frames
        hidden = hidden.masked_fill(~mask[..., None], 0)
        hidden = hidden + encoder.pos_conv_embed(hidden)
        stable = self.encoder.config.do_stable_layer_norm
        states = [hidden if stable else encoder.layer_norm(hidden)]
        attention = None if bool(mask.all()) else mask[:, None, None, :]
        for layer in encoder.layers[: max(self.layers)]:
            states.append(layer(states[-1], attention_mask=attention))
        if stable and len(states) > len(encoder.layers):
            states[-1] = encoder.layer_norm(states[-1])
        return self._finish(states, mask)


def load(config: SpeechBackboneConfig) -> HubertBackbone:
    """Load a HuBERT checkpoint, with or without a head on top; the head is not read.

    Raises:
        SayseeError: the checkpoint cannot be had, is not HuBERT's, or a tensor is missing or of the wrong shape.
    """
    checkpoint = published(config.checkpoint, config.revision)
    architecture = checkpoint.architecture("hubert")
    preprocessing = checkpoint.json("preprocessor_config.json")
    if preprocessing.get("sampling_rate", SAMPLE_RATE) != SAMPLE_RATE:
        raise SayseeError(
            f"the checkpoint {config.checkpoint!r} wants {preprocessing['sampling_rate']} samples a second; "
            f"saysee has {SAMPLE_RATE}: give another checkpoint"
        )
    encoder = build(architecture)
    tensors = checkpoint.tensors(_is_needed, config.precision)
    tensors = {_our_name(name): tensor for name, tensor in tensors.items()}
    load_strictly(encoder, tensors, f"the checkpoint {config.checkpoint!r}")
    backbone = HubertBackbone(encoder, config, normalise=bool(preprocessing.get("do_normalize", True)))
    backbone.revision = checkpoint.revision
    return backbone


def build(architecture: dict[str, Any]) -> HubertModel:
    """Make transformers' model without weights (on the meta device) from the values of a HuBERT `config.json`."""
    values = {name: architecture[name] for name in ARCHITECTURE if name in architecture}
    # without SpecAugment there is no `masked_spec_embed`, which only training uses
    with torch.device("meta"):
        return HubertModel(
            HubertConfig(**values, mask_time_prob=0.0, mask_feature_prob=0.0, attn_implementation="sdpa")
        )


def _is_needed(name: str) -> bool:
    return name.removeprefix("hubert.").startswith(_NEEDED)


def _our_name(name: str) -> str:
    name = name.removeprefix("hubert.")
    for old, new in _RENAMED.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name
