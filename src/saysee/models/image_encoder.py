"""Image encoder: tokens of the frozen image backbone -> `image_hidden` and `image_embedding`.

Shapes: B batch, P tokens, D backbone width, H width, E embedding length.
"""

from typing import NamedTuple, cast

import torch.nn.functional as F
from torch import Tensor, nn

from saysee.config import ModelConfig
from saysee.errors import SayseeError


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

    Projecting the tokens once is what lets an index keep them in 2 P H bytes a picture. Without matching nothing reads
    them and no gradient reaches their map; it is there, untrained, so that a model folder has the same tensors either
    way, and is frozen, because DistributedDataParallel waits for a gradient of all that is not.

    Args:
        config: sizes, and whether the pooled token is mapped or is the embedding itself.
        backbone_dim: D.
        pooled_first: whether the first token stands for the picture ([CLS] or a mean); else the mean of all does.
        matching: whether the multimodal encoder is trained on the projected tokens.

    Raises:
        SayseeError: the token is to be the embedding, and their widths differ.
    """

    def __init__(self, config: ModelConfig, backbone_dim: int, pooled_first: bool, matching: bool) -> None:
        super().__init__()
        learned = config.image_projection == "learned"
        if not learned and backbone_dim != config.embedding_dim:
            raise SayseeError(
                f"ModelConfig.embedding_dim is {config.embedding_dim}, and with image_projection `none` the embedding "
                f"is the image backbone's token of {backbone_dim} numbers; set embedding_dim to {backbone_dim}, or "
                "image_projection to `learned`"
            )
        self.pooled_first = pooled_first
        self.input_norm = nn.LayerNorm(backbone_dim).requires_grad_(learned or matching)
        self.token_projection = nn.Linear(backbone_dim, config.width).requires_grad_(matching)
        self.projection = nn.Linear(backbone_dim, config.embedding_dim) if learned else None

    def embed(self, image_tokens: Tensor) -> Tensor:
        """Return `image_embedding` (B, E) alone, for image tokens (B, P, D)."""
        pooled = image_tokens[:, 0] if self.pooled_first else image_tokens.mean(1)
        embedding = pooled if self.projection is None else self.projection(self.input_norm(pooled))
        return F.normalize(embedding.float(), dim=-1)

    def project(self, image_tokens: Tensor) -> Tensor:
        """Return `image_hidden` (B, P, H) alone, for image tokens (B, P, D)."""
        return cast(Tensor, self.token_projection(self.input_norm(image_tokens)))

    def forward(self, image_tokens: Tensor) -> ImageEncoding:
        """Encode image tokens (B, P, D)."""
        return ImageEncoding(self.embed(image_tokens), self.project(image_tokens))
