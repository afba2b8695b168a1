"""Speech encoder: hidden states of the frozen speech backbone -> `speech_hidden` and `speech_embedding`.

Shapes: B batch, L backbone layers, T frames, D backbone width, H width, E embedding length.
"""

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saysee.config import ModelConfig
from saysee.models.attention import Attention, Dropout, FeedForward, compute


class SpeechEncoding(NamedTuple):
    """What the model knows of a recording.

    Attributes:
        embedding: `speech_embedding` (B, E), unit length: the coarse side.
        hidden: `speech_hidden` (B, 1 + T, H), [CLS] first: what the multimodal encoder reads.
        mask: `speech_mask` (B, 1 + T), True where a frame is real.
    """

    embedding: Tensor
    hidden: Tensor
    mask: Tensor


class LayerMix(nn.Module):
    """Learnable softmax-weighted sum over the backbone's layers [SpeechCLIP, arXiv 2210.00705, section 2.2]."""

    def __init__(self, layers: int, normalize: bool) -> None:
        super().__init__()
        self.normalize = normalize
        self.weights = nn.Parameter(torch.zeros(layers))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Mix (B, L, T, D) to (B, T, D)."""
        if self.normalize:
            hidden_states = F.layer_norm(hidden_states, hidden_states.shape[-1:])
        # as one matrix product, (1, L) times (L, T D) for each recording: no weighted copy of the layers is made
        batch, layers, frames, dim = hidden_states.shape
        weights = self.weights.softmax(0).to(hidden_states.dtype).expand(batch, 1, layers)
        return torch.bmm(weights, hidden_states.reshape(batch, layers, frames * dim)).view(batch, frames, dim)


class SpeechLayer(nn.Module):
    """A Transformer encoder layer, normalised before each part (the choice of the order is ours)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = Attention(config.width, config.heads)
        self.feedforward_norm = nn.LayerNorm(config.width)
        self.feedforward = FeedForward(config.width, config.feedforward_ratio, config.dropout)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map (B, T, H) to (B, T, H); `mask` (B, T) is True where a frame is real."""
        normed = self.attention_norm(x)
        attended = self.attention.attend(
            self.attention.project_queries(normed), *self.attention.project_keys(normed), mask
        )
        x = x + self.dropout(attended)
        return cast(Tensor, x + self.feedforward(self.feedforward_norm(x)))


class SpeechEncoder(nn.Module):
    """A learnable [CLS] in front of the mixed layers, a small Transformer, and the projection of its [CLS].

    No positions are added: the hidden states of HuBERT (convolutional) and Whisper (sinusoidal) carry their own.

    Attributes:
        activation_checkpointing: whether the layers are computed again in the backward pass, see `compute`.
    """

    activation_checkpointing = False

    def __init__(self, config: ModelConfig, backbone_dim: int, backbone_layers: int) -> None:
        super().__init__()
        self.mix = LayerMix(backbone_layers, config.normalize_speech_layers)
        self.input_norm = nn.LayerNorm(backbone_dim)
        self.input_projection = nn.Linear(backbone_dim, config.width)
        self.cls = nn.Parameter(torch.randn(config.width) * 0.02)
        self.layers = nn.ModuleList(SpeechLayer(config) for _ in range(config.speech_layers))
        self.output_norm = nn.LayerNorm(config.width)
        self.projection = nn.Linear(config.width, config.embedding_dim)

    def forward(self, hidden_states: Tensor, mask: Tensor) -> SpeechEncoding:
        """Encode hidden states (B, L, T, D) with `mask` (B, T), True where a frame is real."""
        x = self.input_projection(self.input_norm(self.mix(hidden_states)))
        batch = x.shape[0]
        x = torch.cat([self.cls.to(x.dtype).expand(batch, 1, -1), x], dim=1)
        mask = torch.cat([mask.new_ones(batch, 1), mask], dim=1)
        for layer in self.layers:
            x = compute(layer, layer, x, mask, again=self.activation_checkpointing)
        hidden = self.output_norm(x)
        return SpeechEncoding(F.normalize(self.projection(hidden[:, 0]).float(), dim=-1), hidden, mask)
