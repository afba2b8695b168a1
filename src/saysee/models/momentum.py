"""Momentum encoder: a slow copy of the trainable parts that make embeddings [MoCo, arXiv 1911.05722; ALBEF]."""

import copy

import torch
from torch import Tensor, nn

from saysee.models.image_encoder import ImageEncoder
from saysee.models.speech_encoder import SpeechEncoder


class MomentumEncoder(nn.Module):
    """theta_m <- m theta_m + (1 - m) theta, over the speech and image encoder: what the queue and distillation need.

    The frozen backbones are shared (their features are the input here); the multimodal encoder, its head and the
    temperature have no momentum copy. The copy takes no gradient and is always in eval mode: no dropout noise.
    """

    def __init__(self, speech_encoder: SpeechEncoder, image_encoder: ImageEncoder) -> None:
        super().__init__()
        self.speech_encoder = copy.deepcopy(speech_encoder)
        self.image_encoder = copy.deepcopy(image_encoder)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "MomentumEncoder":
        """Stay in eval mode, whatever the trainer asks of the whole."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, hidden_states: Tensor, mask: Tensor, image_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return momentum `speech_embedding` and `image_embedding`, each (B, E), of the backbones' outputs."""
        return self.speech_encoder(hidden_states, mask).embedding, self.image_encoder.embed(image_tokens)

    @torch.no_grad()
    def update(self, speech_encoder: SpeechEncoder, image_encoder: ImageEncoder, momentum: float) -> None:
        """Move one step towards the trained encoders; called once after each optimiser step."""
        for slow, fast in ((self.speech_encoder, speech_encoder), (self.image_encoder, image_encoder)):
            torch._foreach_lerp_(list(slow.parameters()), list(fast.parameters()), 1 - momentum)
            for slow_buffer, fast_buffer in zip(slow.buffers(), fast.buffers(), strict=True):
                slow_buffer.copy_(fast_buffer)
