"""CLIP's image encoder (Radford et al. 2021, arXiv 2103.00020), trained on pictures with written captions.

SpeechCLIP compares speech with CLIP's own image embedding: that is the one token of `pooled`. The text half of a
checkpoint is not read.
"""

from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from saysee.config import ImageBackboneConfig
from saysee.models.backbones.base import CLIP_MEAN, CLIP_STD, VisionBackbone, VisionTransformer, square_pixels
from saysee.models.backbones.weights import load_strictly, published

ARCHITECTURE = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
)
"""What of CLIP's `vision_config` decides the tokens."""

# 0, 1, 2, ... by definition; a buffer in older checkpoints, OpenAI's own among them, and made by the module in newer
_POSITION_IDS = "vision_model.embeddings.position_ids"
_LONGEST = 16  # the longer side, in shorter sides, up to which a picture is resized as a whole (ours)


class ClipEncoder(VisionTransformer):
    """The vision transformer and, for `pooled`, the projection into the space shared with text; names as published.

    Args:
        vision: values of the checkpoint's `vision_config`.
        projection_dim: width of CLIP's embeddings, or None for the vision transformer alone.
    """

    def __init__(self, vision: dict[str, Any], projection_dim: int | None) -> None:
        super().__init__()
        config = CLIPVisionConfig(**vision, attn_implementation="sdpa")
        self.vision_model = CLIPVisionModel(config)
        self.identity = {"vision": {name: getattr(config, name) for name in ARCHITECTURE}}
        self.image_size = config.image_size
        self.num_tokens = 1 + (config.image_size // config.patch_size) ** 2
        self.dim = config.hidden_size
        self.visual_projection = None
        if projection_dim is not None:
            self.visual_projection = nn.Linear(self.dim, projection_dim, bias=False)
            self.identity["projection"] = {"dim": projection_dim}
            self.dim, self.num_tokens = projection_dim, 1

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (B, 3, H, W) to the patches with [CLS] first, or to the embedding as one token: (B, P, D)."""
        vision = self.vision_model(pixel_values=pixels)
        patches: Tensor = vision.last_hidden_state
        if self.visual_projection is None:
            return patches
        embedding: Tensor = self.visual_projection(vision.pooler_output)
        return embedding[:, None]


class ClipBackbone(VisionBackbone):
    """CLIP's patches ([CLS] first; L/14: 257 x 1024), or its image embedding (1 x 512 in B/32, 1 x 768 in L/14).

    `grid` is None for the patches too: they cover the square in the middle, and a grid must cover the whole picture.

    Args:
        encoder: the network with its weights.
    """

    def __init__(self, encoder: ClipEncoder) -> None:
        super().__init__(encoder, "clip", pooled_first=True)

    def prepare(self, image: Image.Image) -> Tensor:
        """Resize the shorter side of an RGB picture (bicubic), keep the square in the middle, and normalise it."""
        size, short = self.image_size, min(image.size)
        # a line of 30,000 pixels would become gigabytes as a whole; what is far from the middle is cut off all the same
        image = _middle(image, *(min(side, _LONGEST * short) for side in image.size))
        image = image.resize([int(size * side / short) for side in image.size], Image.Resampling.BICUBIC)
        return square_pixels(_middle(image, size, size), size, CLIP_MEAN, CLIP_STD)


def load(config: ImageBackboneConfig) -> ClipBackbone:
    """Load the image side of a CLIP checkpoint, whole or saved without the text side.

    Raises:
        SayseeError: the checkpoint cannot be had, is not CLIP's, or a tensor is missing or of the wrong shape.
    """
    checkpoint = published(config.checkpoint, config.revision)
    values = checkpoint.architecture("clip", "clip_vision_model")
    vision = values.get("vision_config", {}) if values["model_type"] == "clip" else values
    pooled = config.tokens == "pooled"
    with torch.device("meta"):
        encoder = ClipEncoder(
            {name: value for name, value in vision.items() if name in ARCHITECTURE},
            values.get("projection_dim", 512) if pooled else None,
        )
    needed = ("vision_model.", "visual_projection.") if pooled else ("vision_model.",)
    tensors = checkpoint.tensors(lambda name: name.startswith(needed) and name != _POSITION_IDS, config.precision)
    load_strictly(encoder, tensors, f"the checkpoint {config.checkpoint!r}")
    embeddings = encoder.vision_model.embeddings
    embeddings.position_ids = torch.arange(embeddings.num_positions)[None]  # no part of the weights, so still on meta
    backbone = ClipBackbone(encoder)
    backbone.revision = checkpoint.revision
    return backbone


def _middle(image: Image.Image, width: int, height: int) -> Image.Image:
    left, upper = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, upper, left + width, upper + height))
