"""What every frozen encoder has in common: it never trains, it can be told apart by a fingerprint, it gives tokens."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from saysee.config import SpeechBackboneConfig
from saysee.errors import SayseeError

SAMPLE_RATE = 16_000
# CLIP's mean and standard deviation of red, green and blue, with which BLIP-2 was trained too; on the scale 0 to 255
CLIP_MEAN = tuple(255 * value for value in (0.48145466, 0.4578275, 0.40821073))
CLIP_STD = tuple(255 * value for value in (0.26862954, 0.26130258, 0.27577711))
# Part of every fingerprint: raise it when a change of this package gives other outputs from the same weights.
_OUTPUT_VERSION = 1


class FrozenBackbone(nn.Module):
    """An encoder whose weights are never trained and which is always in eval mode.

    `model.train()` of a model that contains it leaves every submodule in eval mode: dropout, layer drop and SpecAugment
    of a frozen HuBERT must never come back on. `forward` runs under inference mode: what comes out must be copied
    (padded, stacked, stored) before anything that is trained takes it.

    Attributes:
        revision: the commit of the Hugging Face hub that the weights are of; None for a folder or a bundled file.

    Args:
        encoder: the published network; its parameters are frozen here.
        identity: the family, the architecture, and every setting that changes the output; JSON values.
    """

    revision: str | None = None

    def __init__(self, encoder: nn.Module, identity: Mapping[str, Any]) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self.train(False)
        self._identity = {**identity, "version": _OUTPUT_VERSION}
        self._fingerprint: tuple[tuple[tuple[int, int], ...], str] | None = None

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, whatever `mode` says."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """Where the weights are; `forward` moves its inputs there."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are and the encoder computes in; `forward` converts its inputs, and its outputs have it."""
        return next(self.parameters()).dtype

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) of everything that decides the output: settings, and names and bytes of all tensors.

        The same on every machine and device for the same checkpoint and settings. It is computed at the first use, at
        the speed of SHA-256, and again only if a tensor has been replaced or written to since.
        """
        tensors = sorted(self.state_dict().items())
        state = tuple((tensor.data_ptr(), tensor._version) for _, tensor in tensors)
        if self._fingerprint is None or self._fingerprint[0] != state:
            digest = hashlib.sha256(json.dumps(self._identity, sort_keys=True).encode())
            for name, tensor in tensors:
                digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
            self._fingerprint = state, digest.hexdigest()
        return self._fingerprint[1]


class SpeechBackbone(FrozenBackbone, ABC):
    """A frozen speech encoder: recordings to the hidden states of some of its layers.

    Attributes:
        dim: D, the width of a hidden state.
        layers: which hidden states are used, 0 being the input of the first layer.
        num_layers: L, how many come out: all that are used, or one, their fixed mix.
        frames_per_second: the rate of the output, after pooling.
        max_samples: a longer recording is cut here.

    Args:
        encoder: the published network.
        identity: its family and architecture; what `config` adds is added here.
        config: which layers are kept or mixed, how many frames are pooled, where a recording is cut.
        dim: D.
        depth: how many layers the network has; it has one hidden state more.
        frames_per_second: the network's own rate, before pooling.
        max_seconds: the longest recording the network can take.

    Raises:
        SayseeError: `config.layers` names a layer that the network does not have, or `config.fixed_mix` has another
            number of weights than there are layers.
    """

    def __init__(
        self,
        encoder: nn.Module,
        identity: Mapping[str, Any],
        config: SpeechBackboneConfig,
        *,
        dim: int,
        depth: int,
        frames_per_second: float,
        max_seconds: float,
    ) -> None:
        layers = tuple(range(depth + 1)) if config.layers == "all" else config.layers
        for layer in layers:
            if not 0 <= layer <= depth:
                raise SayseeError(
                    f"SpeechBackboneConfig.layers has {layer}; {config.checkpoint!r} has hidden states 0 to {depth}. "
                    "Change it in the config."
                )
        max_seconds = min(max_seconds, config.max_seconds)
        settings: dict[str, Any] = {"layers": layers, "pool": config.pool, "max_seconds": max_seconds}
        mix = None
        if config.fixed_mix is not None:
            if len(config.fixed_mix) != len(layers):
                raise SayseeError(
                    f"SpeechBackboneConfig.fixed_mix has {len(config.fixed_mix)} weights, and {len(layers)} layers of "
                    f"{config.checkpoint!r} are kept; give one weight for each in the config"
                )
            mix = tuple(weight / sum(config.fixed_mix) for weight in config.fixed_mix)
            settings["fixed_mix"] = mix  # not named without one: its fingerprint is older than the setting
        super().__init__(encoder, {**identity, **settings})
        self.dim = dim
        self.layers = layers
        self.num_layers = len(layers) if mix is None else 1
        self.frames_per_second = frames_per_second / config.pool
        self.max_samples = int(max_seconds * SAMPLE_RATE)
        self._pool = config.pool
        self._mix = mix

    @abstractmethod
    def prepare(self, waveform: NDArray[np.float32]) -> Tensor:
        """Turn one recording into what `forward` takes. Safe to call from several threads.

        Args:
            waveform: (S,) mono at 16 kHz, nominally in [-1, 1]; beyond `max_samples` it is cut.
        """

    @abstractmethod
    def forward(self, prepared: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Encode a batch of prepared recordings; none of them changes the result of another.

        Args:
            prepared: B results of `prepare`, of any lengths.

        Returns:
            Hidden states (B, L, T, D) of type `dtype`, exactly zero where there is only padding; `speech_mask` (B, T),
            True where a frame is real.
        """

    def _finish(self, states: Sequence[Tensor], mask: Tensor) -> tuple[Tensor, Tensor]:
        """Keep or mix the chosen ones of all hidden states (B, T, D), blank their padding, pool neighbouring frames."""
        kept = [states[layer] for layer in self.layers]
        hidden = torch.stack(kept, dim=1) if self._mix is None else mix_layers(kept, self._mix)[:, None]
        return pool_frames(hidden.masked_fill(~mask[:, None, :, None], 0), mask, self._pool)


class ImageBackbone(FrozenBackbone, ABC):
    """A frozen image encoder: pictures to tokens.

    Attributes:
        dim: D, the width of a token.
        num_tokens: P, tokens of a picture.
        image_size: side of the square, in pixels, that every picture is resized to.
        pooled_first: whether the first token stands for the whole picture ([CLS], or a mean).
        grid: rows and columns of the grid in which the last rows x columns tokens lie, row by row from the upper left
            corner, and which covers the whole picture; None where they lie on no such grid.
    """

    dim: int
    num_tokens: int
    image_size: int
    pooled_first: bool
    grid: tuple[int, int] | None = None

    @abstractmethod
    def prepare(self, image: Image.Image) -> Tensor:
        """Turn one RGB picture into pixels (3, H, W). Safe to call from several threads."""

    @abstractmethod
    def forward(self, pixels: Tensor) -> Tensor:
        """Encode pixels (B, 3, H, W) to `image_tokens` (B, P, D) of type `dtype`."""


class VisionTransformer(nn.Module):
    """A published vision transformer that says of itself what `VisionBackbone` needs, and maps pixels to tokens.

    Attributes:
        identity: every value of its architecture that decides the tokens.
        dim: D, the width of a token.
        num_tokens: P, tokens of a picture.
        image_size: side of the square that it takes, in pixels.
        grid: see `ImageBackbone`.
    """

    identity: dict[str, dict[str, Any]]
    dim: int
    num_tokens: int
    image_size: int
    grid: tuple[int, int] | None = None


class VisionBackbone(ImageBackbone):
    """A frozen vision transformer, whose tokens are kept as they come.

    Args:
        encoder: the network with its weights.
        family: whose architecture it has.
        pooled_first: see `ImageBackbone`.
    """

    def __init__(self, encoder: VisionTransformer, family: str, *, pooled_first: bool) -> None:
        super().__init__(encoder, {"family": family, **encoder.identity})
        self.dim = encoder.dim
        self.num_tokens = encoder.num_tokens
        self.image_size = encoder.image_size
        self.grid = encoder.grid
        self.pooled_first = pooled_first

    @torch.inference_mode()
    def forward(self, pixels: Tensor) -> Tensor:
        """Encode pixels (B, 3, H, W) to `image_tokens` (B, P, D)."""
        tokens: Tensor = self.encoder(pixels.to(self.device, self.dtype))
        return tokens


def mix_layers(states: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Layer-norm each of L hidden states (B, T, D), without scale or bias, and take their weighted mean (B, T, D).

    The mix of SpeechCLIP large (arXiv 2210.00705) with weights that are not learnt. The sum is taken in float32, and
    comes back in the type of the states.
    """
    mixed = torch.zeros_like(states[0], dtype=torch.float32)
    for state, weight in zip(states, weights, strict=True):
        mixed += weight * F.layer_norm(state.float(), state.shape[-1:])
    return mixed.to(states[0].dtype)


def pool_frames(hidden: Tensor, mask: Tensor, pool: int) -> tuple[Tensor, Tensor]:
    """Average each `pool` neighbouring frames; the last group of a recording is the mean of its real frames only.

    Args:
        hidden: (B, L, T, D), zero where there is only padding.
        mask: (B, T), True where a frame is real; real frames come first.
        pool: frames in a group; 1 changes nothing.

    Returns:
        (B, L, ceil(T / pool), D) and its mask.
    """
    if pool == 1:
        return hidden, mask
    short = -mask.shape[1] % pool
    batch, layers, frames, dim = hidden.shape
    groups = (frames + short) // pool
    counts = F.pad(mask, (0, short)).reshape(batch, groups, pool).sum(2)
    sums = F.pad(hidden, (0, 0, 0, short)).reshape(batch, layers, groups, pool, dim).sum(3)
    return sums / counts.clamp(min=1)[:, None, :, None], counts > 0


def real_frames(lengths: Sequence[int], device: torch.device) -> Tensor:
    """Return the mask (B, max length), True at the first `lengths[b]` frames of row b."""
    ends = torch.tensor(lengths, device=device)
    return torch.arange(max(lengths), device=device) < ends[:, None]


def at_least(waveform: NDArray[np.float32], samples: int) -> NDArray[np.float32]:
    """Append zeros to a waveform (S,) that is shorter than `samples`, the shortest that a network can take."""
    return np.pad(waveform, (0, max(0, samples - len(waveform))))


def square_pixels(image: Image.Image, size: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Resize a whole RGB picture to a square (bicubic, nothing is cropped) and normalise its channels.

    Args:
        image: mode RGB.
        size: side of the square, in pixels.
        mean: subtracted from each channel, on the scale 0 to 255.
        std: each channel is then divided by this.

    Returns:
        (3, size, size), float32.
    """
    assert image.mode == "RGB", image.mode
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)
    normalised = (pixels - np.asarray(mean, dtype=np.float32)) / np.asarray(std, dtype=np.float32)
    return torch.from_numpy(np.ascontiguousarray(normalised.transpose(2, 0, 1)))
