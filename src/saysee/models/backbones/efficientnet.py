"""EfficientNet-Lite (Tan and Le 2019, arXiv 1905.11946; the Lite variant is Google's of 2020), as an image encoder.

Lite drops the squeeze-and-excite blocks and swish of EfficientNet for ReLU6, and does not scale stem and head. Batch
norms are folded into the convolutions when the weight file is made; the classifier is left out.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from saysee.config import ImageBackboneConfig
from saysee.errors import SayseeError
from saysee.models.backbones.base import ImageBackbone, square_pixels
from saysee.models.backbones.weights import bundled, describe, load_strictly, read_safetensors

DEFAULT_BUNDLED = "efficientnet-lite0"


@dataclass(frozen=True)
class Scale:
    """How a member of the family differs from Lite0: width and depth multipliers, and the picture's side in pixels."""

    width: float
    depth: float
    image_size: int


SCALES = {"efficientnet-lite0": Scale(1.0, 1.0, 224), "efficientnet-lite2": Scale(1.1, 1.2, 260)}

# kernel size, stride of the first block, expansion, output channels, blocks: Table 1 of the paper
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
_STEM, _HEAD = 32, 1280


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's `same`: where the padding is odd, the one pixel more is right and below."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (B, C, H, W) to (B, C', ceil(H / stride), ceil(W / stride))."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        pads = [max((math.ceil(side / stride) - 1) * stride + kernel - side, 0) for side in input.shape[-2:]]
        if pads[0] == pads[1] and pads[0] % 2 == 0:
            return F.conv2d(input, self.weight, self.bias, stride, pads[0] // 2, 1, self.groups)
        (top, left) = (pad // 2 for pad in pads)
        padded = F.pad(input, (left, pads[1] - left, top, pads[0] - top))
        return F.conv2d(padded, self.weight, self.bias, stride, 0, 1, self.groups)


class Block(nn.Module):
    """An inverted residual: expand, convolve each channel by itself, project; added to its input where shapes allow."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.expand = SameConv(channels, inner, 1) if expansion != 1 else None
        self.depthwise = SameConv(inner, inner, kernel, stride, groups=inner)
        self.project = SameConv(inner, out, 1)
        self.residual = stride == 1 and channels == out

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H / stride, W / stride)."""
        inner = features if self.expand is None else F.relu6(self.expand(features))
        projected: Tensor = self.project(F.relu6(self.depthwise(inner)))
        return features + projected if self.residual else projected


class EfficientNetLite(nn.Module):
    """The convolutions of an EfficientNet-Lite up to the 1280-wide head; no pooling, no classifier."""

    def __init__(self, scale: Scale) -> None:
        super().__init__()
        self.stem = SameConv(3, _STEM, 3, 2)
        blocks: list[Block] = []
        channels = _STEM
        for stage, (kernel, stride, expansion, base, repeats) in enumerate(_STAGES):
            out = _round_channels(base * scale.width)
            # the first and the last stage belong to stem and head, whose depth Lite does not scale
            scaled = repeats if stage in (0, len(_STAGES) - 1) else math.ceil(repeats * scale.depth)
            for index in range(scaled):
                blocks.append(Block(channels, out, kernel, stride if index == 0 else 1, expansion))
                channels = out
        self.blocks = nn.Sequential(*blocks)
        self.head = SameConv(channels, _HEAD, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (B, 3, H, W) to features (B, 1280, ceil(H / 32), ceil(W / 32))."""
        return F.relu6(self.head(self.blocks(F.relu6(self.stem(pixels)))))


class EfficientNetBackbone(ImageBackbone):
    """EfficientNet-Lite's last features: their mean over the grid, then the grid's cells row by row (Lite0: 1 + 49).

    Args:
        encoder: the network with its weights.
        architecture: `efficientnet-lite0`, say.
    """

    def __init__(self, encoder: EfficientNetLite, architecture: str) -> None:
        super().__init__(encoder, {"family": "efficientnet", "architecture": architecture})
        self.image_size = SCALES[architecture].image_size
        self.dim = _HEAD
        side = math.ceil(self.image_size / 32)
        self.num_tokens = 1 + side**2
        self.grid = side, side
        self.pooled_first = True

    def prepare(self, image: Image.Image) -> Tensor:
        """Resize the whole RGB picture, without cropping, and normalise to (x - 127) / 128."""
        return square_pixels(image, self.image_size, mean=[127.0] * 3, std=[128.0] * 3)

    @torch.inference_mode()
    def forward(self, pixels: Tensor) -> Tensor:
        """Encode pixels (B, 3, H, W) to `image_tokens` (B, P, 1280), the mean first."""
        cells = self.encoder(pixels.to(self.device, self.dtype)).flatten(2).transpose(1, 2)
        return torch.cat([cells.mean(1, keepdim=True), cells], dim=1)


def load(config: ImageBackboneConfig) -> EfficientNetBackbone:
    """Load an EfficientNet-Lite: the bundled one, or a folder with one `efficientnet-lite*.safetensors`.

    Raises:
        SayseeError: no such file, or a tensor is missing or of the wrong shape.
    """
    if config.checkpoint == "bundled":
        description, tensors = bundled(f"{DEFAULT_BUNDLED}.safetensors", config.precision)
    else:
        files = sorted(Path(config.checkpoint).glob("efficientnet-lite*.safetensors"))
        if len(files) != 1:
            raise SayseeError(
                f"ImageBackboneConfig.checkpoint is {config.checkpoint!r}, which holds {len(files)} files "
                "efficientnet-lite*.safetensors; give `bundled` or a folder with one, made by make_encoder_weights.py"
            )
        tensors, description = read_safetensors(files[0], precision=config.precision), describe(files[0])
    architecture = str(description["architecture"])
    if architecture not in SCALES:
        raise SayseeError(f"the weights are of {architecture!r}; known are {', '.join(SCALES)}: give one of these")
    with torch.device("meta"):
        encoder = EfficientNetLite(SCALES[architecture])
    load_strictly(encoder, tensors, f"the checkpoint {config.checkpoint!r}")
    return EfficientNetBackbone(encoder, architecture)


def _round_channels(channels: float) -> int:
    """Round to a multiple of 8, never down by more than a tenth, as the published models do."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
