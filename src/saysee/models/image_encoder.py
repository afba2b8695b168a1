"""Image encoder: tokens of the frozen image backbone -> `image_hidden` and `image_embedding`.

Shapes: B batch, P tokens, D backbone width, H width, E embedding length.
"""

from typing import NamedTuple, cast

import torch.nn.functional as F
from torch import Tensor, nn

from saysee.config import ModelConfig


class ImageEncoding(NamedTuple):
    """What the model knows of a picture.

    Attributes:
        embedding: `image_embedding` (B, E), unit length: the coarse side.
        hidden: projected tokens (B, P, H): what the multimodal encoder attends to.
    """

    embedding: Tensor
    hidden: Tensor


class ImageEncoder(nn.Module):
    """Two linear maps on the frozen tokens: the pooled one to the embedding, all of them to the model's width.

    Projecting the tokens once is what lets an index keep them in 2 P H bytes a picture.

    Args:
        config: sizes.
        backbone_dim: D.
        pooled_first: whether the first token stands for the picture ([CLS] or a mean); else the mean of all does.
    """

    def __init__(self, config: ModelConfig, backbone_dim: int, pooled_first: bool) -> None:
        super().__init__()
        self.pooled_first = pooled_first
        self.input_norm = nn.LayerNorm(backbone_dim)
        self.token_projection = nn.Linear(backbone_dim, config.width)
        self.projection = nn.Linear(backbone_dim, config.embedding_dim)

    def embed(self, image_tokens: Tensor) -> Tensor:
        """Return `image_embedding` (B, E) alone, for image tokens (B, P, D)."""
        pooled = image_tokens[:, 0] if self.pooled_first else image_tokens.mean(1)
        return F.normalize(self.projection(self.input_norm(pooled)).float(), dim=-1)

    def project(self, image_tokens: Tensor) -> Tensor:
        """Return `image_hidden` (B, P, H) alone, for image tokens (B, P, D)."""
        return cast(Tensor, self.token_projection(self.input_norm(image_tokens)))

    def forward(self, image_tokens: Tensor) -> ImageEncoding:
        """Encode image tokens (B, P, D)."""
        return ImageEncoding(self.embed(image_tokens), self.project(image_tokens))
