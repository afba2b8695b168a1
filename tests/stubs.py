"""Small stand-ins that tests share: frozen backbones with almost no weights, and a configuration to go with them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from saysee.config import Config, LossConfig, ModelConfig, SearchConfig, SpeechBackboneConfig, TrainingConfig
from saysee.data.collate import Batch
from saysee.models.backbones import ImageBackbone, SpeechBackbone
from saysee.models.retrieval_model import SpeechImageModel

LAYERS, SPEECH_DIM, IMAGE_DIM, TOKENS = 3, 12, 10, 5
FRAME = 320


class StubSpeechBackbone(SpeechBackbone):
    """Frames of 20 ms, each mapped by three fixed matrices; as many hidden states."""

    def __init__(self) -> None:
        torch.manual_seed(11)
        encoder = nn.ModuleList(nn.Linear(FRAME, SPEECH_DIM) for _ in range(LAYERS))
        super().__init__(
            encoder,
            {"family": "stub"},
            SpeechBackboneConfig(),
            dim=SPEECH_DIM,
            depth=LAYERS - 1,
            frames_per_second=50,
            max_seconds=30,
        )

    def prepare(self, waveform: NDArray[np.float32]) -> Tensor:
        frames = len(waveform) // FRAME
        return torch.from_numpy(waveform[: frames * FRAME].reshape(frames, FRAME).copy())

    def forward(self, prepared: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        frames = nn.utils.rnn.pad_sequence(list(prepared), batch_first=True)
        mask = torch.arange(frames.shape[1]) < torch.tensor([len(clip) for clip in prepared])[:, None]
        assert isinstance(self.encoder, nn.ModuleList)
        return self._finish([layer(frames) for layer in self.encoder], mask)


class StubImageBackbone(ImageBackbone):
    """Five tokens, one and 2 x 2: fixed projections of a picture brought to 8 x 8."""

    dim, num_tokens, image_size, pooled_first, grid = IMAGE_DIM, TOKENS, 8, True, (2, 2)

    def __init__(self) -> None:
        torch.manual_seed(12)
        super().__init__(nn.Linear(3 * 64, TOKENS * IMAGE_DIM), {"family": "stub"})

    def prepare(self, image: Image.Image) -> Tensor:
        return torch.from_numpy(np.asarray(image.resize((8, 8)), dtype=np.float32)).permute(2, 0, 1) / 255

    def forward(self, pixels: Tensor) -> Tensor:
        tokens: Tensor = self.encoder(pixels.flatten(1)).view(-1, TOKENS, IMAGE_DIM)
        return tokens


@dataclass(frozen=True)
class MemoryFeatures:
    """Features that are there already, by path; see `saysee.data.extraction.Features`."""

    tensors: Mapping[Path, Tensor]

    def read(self, paths: Sequence[Path]) -> list[Tensor]:
        return [self.tensors[path] for path in paths]

    def frames(self, path: Path) -> int:
        return self.tensors[path].shape[-2]

    def content(self, path: Path) -> bytes:
        return sha256(str(path).encode()).digest()[:16]


def small_config(**changes: object) -> Config:
    """Small sizes; `changes` are keyword arguments of the four sections, by field name."""
    sections = {
        "model": ModelConfig(width=16, embedding_dim=8, heads=2, multimodal_layers=2, dropout=0.0),
        "loss": LossConfig(queue_size=16, distillation_ramp_steps=5),
        "training": TrainingConfig(steps=8, batch_size=4, warmup_steps=2, evaluate_every=4, checkpoint_every=3),
        "search": SearchConfig(rerank=3),
    }
    for name, value in changes.items():
        (section,) = [key for key, values in sections.items() if hasattr(values, name)]
        sections[section] = replace(sections[section], **{name: value})  # type: ignore[type-var]
    return Config(**sections)  # type: ignore[arg-type]


def small_model(seed: int = 0, **changes: object) -> SpeechImageModel:
    """A model on the stub backbones, with random trainable parts."""
    backbones = StubSpeechBackbone(), StubImageBackbone()
    torch.manual_seed(seed)
    return SpeechImageModel(small_config(**changes), *backbones)


def make_batch(ids: list[int], seed: int = 0) -> Batch:
    """Random pairs of the images `ids`, with recordings of two to six frames."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 7, (len(ids),), generator=generator)
    mask = torch.arange(6)[None] < lengths[:, None]
    return Batch(
        tuple(f"caption {seed}-{row}" for row in range(len(ids))),
        torch.randn(len(ids), LAYERS, 6, SPEECH_DIM, generator=generator) * mask[:, None, :, None],
        mask,
        torch.randn(len(ids), TOKENS, IMAGE_DIM, generator=generator),
        torch.tensor(ids),
    )
