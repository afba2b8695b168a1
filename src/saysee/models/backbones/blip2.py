"""BLIP-2's image encoder (Li et al. 2023, arXiv 2301.12597): EVA-CLIP's ViT-g/14, and the Q-Former on top as an option.

The tensors are taken by name out of a whole BLIP-2 checkpoint: transformers' `Blip2VisionModel.from_pretrained` of such
a checkpoint matches none of them and leaves random weights.
"""

from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel, Blip2VisionConfig, Blip2VisionModel

from saysee.config import ImageBackboneConfig
from saysee.models.backbones.base import CLIP_MEAN, CLIP_STD, VisionBackbone, VisionTransformer, square_pixels
from saysee.models.backbones.weights import load_strictly, published

VISION = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
    "qkv_bias",
)
QFORMER = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
    "cross_attention_frequency",
)
"""What of BLIP-2's configuration decides the tokens."""


class Blip2Encoder(VisionTransformer):
    """The vision transformer and, for `queries`, the Q-Former with its learnt queries; names as in a checkpoint.

    Args:
        vision: values of the checkpoint's `vision_config`.
        qformer: values of its `qformer_config`, or None for the vision transformer alone.
        num_queries: how many query tokens the Q-Former has.
    """

    def __init__(self, vision: dict[str, Any], qformer: dict[str, Any] | None, num_queries: int) -> None:
        super().__init__()
        vision_config = Blip2VisionConfig(**vision, attn_implementation="sdpa")
        self.vision_model = Blip2VisionModel(vision_config)
        self.identity = {"vision": {name: getattr(vision_config, name) for name in VISION}}
        self.dim = vision_config.hidden_size
        side = vision_config.image_size // vision_config.patch_size
        self.num_tokens = 1 + side**2
        self.grid = side, side
        self.image_size = vision_config.image_size
        self.qformer = None
        if qformer is not None:
            # the feed-forward parts for text are left out: a picture's queries never pass through them
            qformer_config = Blip2QFormerConfig(
                **qformer, encoder_hidden_size=self.dim, use_qformer_text_input=False, attn_implementation="sdpa"
            )
            self.qformer = Blip2QFormerModel(qformer_config)
            self.query_tokens = nn.Parameter(torch.zeros(1, num_queries, qformer_config.hidden_size))
            self.identity["qformer"] = {name: getattr(qformer_config, name) for name in QFORMER}
            self.dim, self.num_tokens = qformer_config.hidden_size, num_queries
            self.grid = None  # every query sees all of the picture

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (B, 3, H, W) to the patches with [CLS] first, or to the queries: (B, P, D)."""
        patches: Tensor = self.vision_model(pixel_values=pixels).last_hidden_state
        if self.qformer is None:
            return patches
        queries = self.query_tokens.expand(len(patches), -1, -1)
        tokens: Tensor = self.qformer(query_embeds=queries, encoder_hidden_states=patches).last_hidden_state
        return tokens


class Blip2Backbone(VisionBackbone):
    """BLIP-2's patches (257 x 1408 in the published models, [CLS] first) or its queries (32 x 768).

    Args:
        encoder: the networks with their weights.
    """

    def __init__(self, encoder: Blip2Encoder) -> None:
        super().__init__(encoder, "blip2", pooled_first=encoder.qformer is None)

    def prepare(self, image: Image.Image) -> Tensor:
        """Resize the whole RGB picture (bicubic, not cropped) and normalise it as CLIP does."""
        return square_pixels(image, self.image_size, CLIP_MEAN, CLIP_STD)


def load(config: ImageBackboneConfig) -> Blip2Backbone:
    """Load the image side of a whole BLIP-2 checkpoint, in one file or in shards; nothing else of it is read.

    Raises:
        SayseeError: the checkpoint cannot be had, is not BLIP-2's, or a tensor is missing or of the wrong shape.
    """
    checkpoint = published(config.checkpoint, config.revision)
    values = checkpoint.architecture("blip-2")
    with_queries = config.tokens == "queries"
    vision = {name: value for name, value in values.get("vision_config", {}).items() if name in VISION}
    qformer = {name: value for name, value in values.get("qformer_config", {}).items() if name in QFORMER}
    with torch.device("meta"):
        encoder = Blip2Encoder(vision, qformer if with_queries else None, values.get("num_query_tokens", 32))
    needed = ("vision_model.", "qformer.", "query_tokens") if with_queries else ("vision_model.",)
    tensors = checkpoint.tensors(lambda name: name.startswith(needed) and not _is_for_text(name), config.precision)
    load_strictly(encoder, tensors, f"the checkpoint {config.checkpoint!r}")
    backbone = Blip2Backbone(encoder)
    backbone.revision = checkpoint.revision
    return backbone


def _is_for_text(name: str) -> bool:
    # qformer.encoder.layer.N.intermediate.* and .output.*; the queries' own are intermediate_query and output_query
    parts = name.split(".")
    return parts[0] == "qformer" and len(parts) > 4 and parts[4] in ("intermediate", "output")
