"""Learner and data of `paper_scale_step`: the paper's encoders at their size with random weights, and random inputs."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from saysee.config import Config, load_config
from saysee.data.dataset import PairDataset
from saysee.data.extraction import picture_encoder, recording_encoder
from saysee.data.manifest import SpokenCaption
from saysee.data.sampler import BatchOrder, Integers
from saysee.features.extract import FileEncoder
from saysee.losses.contrastive import Keys
from saysee.losses.queue import MomentumQueue
from saysee.models.backbones.base import SAMPLE_RATE
from saysee.models.backbones.blip2 import Blip2Backbone, Blip2Encoder
from saysee.models.backbones.hubert import HubertBackbone
from saysee.models.backbones.hubert import build as build_hubert
from saysee.models.momentum import MomentumEncoder
from saysee.models.retrieval_model import SpeechImageModel
from saysee.training.optimizer import build_optimizer
from saysee.training.step import Learner
from saysee.workflows import LIVE_BATCH

M = TypeVar("M", bound=nn.Module)

CAPTIONS = 30_000
"""Flickr8k's captions for training."""
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}

# facebook/hubert-large-ll60k
HUBERT_LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "do_stable_layer_norm": True,
    "feat_extract_norm": "layer",
    "conv_bias": True,
}
# the vision_config of Salesforce/blip2-itm-vit-g
VIT_G: dict[str, Any] = {
    "hidden_size": 1408,
    "intermediate_size": 6144,
    "num_hidden_layers": 39,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 224,
    "qkv_bias": True,
}


# what makes the same benchmark a matter of seconds
SMALL_HUBERT = HUBERT_LARGE | {
    **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48},
    **{"conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4},
}
SMALL_VIT = VIT_G | {
    **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 56},
}
SMALL = [
    *("--model.width", "32", "--model.heads", "2", "--model.multimodal_layers", "1", "--model.embedding_dim", "16"),
    *("--model.speech_backbone.fixed_mix", "[1, 1, 1]", "--loss.queue_size", "64"),
]


def recipe(name: str, batch: int, seed: int, precision: str, small: bool) -> Config:
    """Return the recipe with this batch, all in one precision, and no ramps, so that the first step is any step."""
    changed = ["--training.batch_size", str(batch), "--training.seed", str(seed), "--training.precision", precision]
    changed += ["--model.speech_backbone.precision", precision, "--model.image_backbone.precision", precision]
    config = load_config(name, [*changed, "--loss.distillation_ramp_steps", "0", *(SMALL if small else [])])
    assert config.model.image_backbone.tokens == "patches", "the Q-Former is not built here"
    return config


def build(config: Config, device: torch.device, small: bool) -> Learner:
    """Build everything that a step needs, at full size or small; only the checkpoints' values are missing."""
    dtype = DTYPES[config.model.speech_backbone.precision]
    hubert = with_random_weights(build_hubert(SMALL_HUBERT if small else HUBERT_LARGE), device, dtype)
    with torch.device("meta"):
        vision = Blip2Encoder(SMALL_VIT if small else VIT_G, None, 0)
    model = SpeechImageModel(
        config,
        HubertBackbone(hubert, config.model.speech_backbone, normalise=True),
        Blip2Backbone(with_random_weights(vision, device, dtype)),
    ).to(device)
    momentum = MomentumEncoder(model.speech_encoder, model.image_encoder).to(device)
    queue = MomentumQueue(config.loss.queue_size, config.model.embedding_dim).to(device)
    rows = nn.functional.normalize(torch.randn(config.loss.queue_size, config.model.embedding_dim, device=device))
    queue.enqueue(Keys(rows, rows.flip(0), torch.arange(len(rows), device=device) % CAPTIONS))
    return Learner(model, momentum, queue, build_optimizer(model, config.training))


def with_random_weights(module: M, device: torch.device, dtype: torch.dtype) -> M:
    """Bring a module from the meta device to `device` in `dtype`: norms as they start, matrices of unit gain."""
    assert not list(module.buffers()), "a buffer would stay uninitialised"
    module = module.to(dtype).to_empty(device=device)
    with torch.no_grad():
        for part in module.modules():
            for name, parameter in part.named_parameters(recurse=False):
                if isinstance(part, nn.LayerNorm):
                    parameter.fill_(1.0 if name == "weight" else 0.0)
                elif parameter.ndim > 1:
                    parameter.normal_(0, 1 / math.sqrt(parameter[0].numel()))
                else:
                    parameter.zero_()
    return module


def clip_seconds(seconds: float | None, seed: int, count: int = CAPTIONS) -> NDArray[np.float64]:
    """Return the lengths of so many clips: one for all, or Flickr8k-like ones."""
    if seconds is not None:
        return np.full(count, seconds)
    sigma, mean = 0.35, 45.9 * 3600 / 40_000
    return np.random.default_rng(seed).lognormal(math.log(mean) - sigma**2 / 2, sigma, count)


class Generated:
    """Features of files that there are not: the file `17` is the caption of that number.

    Args:
        encoder: makes them anew whenever they are asked for, as `LiveFeatures` does; None cuts them out of `values`.
        values: for `encoder`, a long waveform (S,) or some pictures (n, 3, H, W); without it, hidden states (L, T, D)
            or image tokens (n, P, D') as they are stored.
        lengths: of each file, in samples or frames; None for pictures.
        frames: of each file; for the order of the data.
    """

    def __init__(
        self,
        encoder: FileEncoder | None,
        values: Tensor,
        lengths: Integers | None,
        frames: Integers,
    ) -> None:
        self.encode = encoder.encode if encoder else None
        self.values = values
        self.lengths = lengths
        self._frames = frames

    def read(self, paths: Sequence[Path]) -> list[Tensor]:
        """Return the features of each file, on the CPU."""
        given = [self._given(int(path.name)) for path in paths]
        if self.encode is None:
            return given
        parts = [self.encode(given[at : at + LIVE_BATCH]) for at in range(0, len(given), LIVE_BATCH)]
        return [features for part in parts for features in part]

    def frames(self, path: Path) -> int:
        """Return T of a recording."""
        return int(self._frames[int(path.name)])

    def _given(self, number: int) -> Tensor:
        if self.lengths is None:
            return self.values[number % len(self.values)]
        # every recording starts elsewhere
        length = int(self.lengths[number])
        spare = self.values.shape[-1 if self.encode else 1] - length
        start = number % max(1, spare)
        return self.values[start : start + length] if self.encode else self.values[:, start : start + length]


def generated_dataset(model: SpeechImageModel, seconds: NDArray[np.float64], *, live: bool) -> PairDataset:
    """Return pairs of clips of so many seconds, each with its own picture."""
    speech, image = model.speech_backbone, model.image_backbone
    assert isinstance(speech, HubertBackbone)
    samples = np.minimum((seconds * SAMPLE_RATE).astype(np.int64), speech.max_samples)
    frames = -(-_frames(speech, samples) // max(1, round(50 / speech.frames_per_second)))
    recordings = pictures = None
    if live:
        recordings, pictures = recording_encoder(speech, LIVE_BATCH), picture_encoder(image, LIVE_BATCH)
        heard, seen = torch.randn(2 * int(samples.max())), torch.randn(64, 3, image.image_size, image.image_size)
    else:
        stored = torch.bfloat16 if speech.dtype == torch.bfloat16 else torch.float16
        heard = torch.randn(speech.num_layers, 2 * int(frames.max()), speech.dim).to(stored)
        seen = torch.randn(64, image.num_tokens, image.dim).to(stored)
    captions = [
        SpokenCaption(str(n), Path(str(n)), str(n), Path(str(n)), None, None, None, "train")
        for n in range(len(seconds))
    ]
    crop = model.config.training.crop_seconds
    return PairDataset(
        captions,
        Generated(recordings, heard, samples if live else frames, frames),
        Generated(pictures, seen, None, frames),
        None if crop is None else round(crop * speech.frames_per_second),
    )


def _frames(backbone: HubertBackbone, samples: Integers) -> Integers:
    """Return how many frames the convolutions make of so many samples."""
    hubert = backbone.encoder.config
    for kernel, stride in zip(hubert.conv_kernel, hubert.conv_stride, strict=True):
        samples = (samples - kernel) // stride + 1
    return samples


def spread_batches(dataset: PairDataset, config: Config, count: int) -> list[list[int]]:
    """Return whole batches of the first epoch, evenly spaced from the shortest to the longest."""
    settings = config.training
    order = BatchOrder(
        dataset.image_numbers,
        dataset.lengths,
        settings.batch_size,
        settings.seed,
        bucket_batches=settings.bucket_batches,
    )
    batches = [order[position] for position in range(order.batches_per_epoch)]
    whole = [batch for batch in batches if len(batch) == settings.batch_size]
    whole.sort(key=lambda batch: int(dataset.lengths[batch].max()))
    return [whole[int((number + 0.5) / count * len(whole))] for number in range(count)]
