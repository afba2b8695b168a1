"""Layers mixed with fixed weights: the formula, padding, neighbours, and what stays as it was without a mix."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoints import write_hubert
from saysee.config import SpeechBackboneConfig
from saysee.errors import SayseeError
from saysee.models.backbones import SpeechBackbone, load_speech_backbone
from saysee.models.backbones.base import mix_layers
from saysee.models.speech_encoder import LayerMix


@pytest.fixture(scope="module", params=["base", "large"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    style: Literal["base", "large"] = request.param
    folder = tmp_path_factory.mktemp(style)
    write_hubert(folder, style)
    return folder


def load(
    folder: Path,
    fixed_mix: tuple[float, ...] | None = None,
    layers: Literal["all"] | tuple[int, ...] = "all",
    pool: int = 1,
) -> SpeechBackbone:
    return load_speech_backbone(SpeechBackboneConfig("hubert", str(folder), None, layers, pool, 30.0, fixed_mix))


def noise(samples: int) -> np.ndarray:
    values: np.ndarray = (0.1 * np.random.default_rng(samples).standard_normal(samples)).astype(np.float32)
    return values


@settings(max_examples=60, deadline=None)
@given(
    weights=st.lists(st.floats(0, 10), min_size=1, max_size=5).filter(lambda weights: sum(weights) > 0.01),
    frames=st.integers(1, 4),
    width=st.integers(2, 6),
    seed=st.integers(0, 1000),
)
def test_the_mix_is_the_weighted_mean_of_normalised_layers(
    weights: list[float], frames: int, width: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    states = [3 * torch.randn(2, frames, width, generator=generator) + 1 for _ in weights]
    mixed = mix_layers(states, [weight / sum(weights) for weight in weights])
    for row in range(2):
        for frame in range(frames):
            expected = [0.0] * width
            for state, weight in zip(states, weights, strict=True):
                values = state[row, frame].double()
                mean = values.mean()
                deviation = ((values - mean).square().mean() + 1e-5).sqrt()
                for place in range(width):
                    expected[place] += weight / sum(weights) * ((values[place] - mean) / deviation).item()
            assert mixed[row, frame].tolist() == pytest.approx(expected, abs=2e-5)


def test_it_is_the_learnable_mix_at_its_start(folder: Path) -> None:
    """Uniform weights give what SpeechCLIP's mix of all layers gives before it has learnt anything."""
    everything, mixed = load(folder), load(folder, (1.0, 1.0, 1.0, 1.0))
    assert (everything.num_layers, mixed.num_layers) == (4, 1)
    prepared = [mixed.prepare(noise(samples)) for samples in (9_000, 16_000)]
    hidden, mask = mixed(prepared)
    expected = LayerMix(4, normalize=True)(everything(prepared)[0].clone())
    torch.testing.assert_close(hidden[:, 0], expected.detach() * mask[:, :, None], atol=1e-5, rtol=1e-5)


def test_only_the_kept_layers_are_mixed_in_their_order_and_then_pooled(folder: Path) -> None:
    mixed = load(folder, (1.0, 3.0), layers=(3, 1), pool=4)
    prepared = [mixed.prepare(noise(8_000))]
    states = load(folder)(prepared)[0]
    expected = mix_layers([states[:, 3], states[:, 1]], [0.25, 0.75])
    hidden, mask = mixed(prepared)
    assert hidden.shape == (1, 1, 6, 32)
    assert mask.shape == (1, 6)
    torch.testing.assert_close(hidden[0, 0, 0], expected[0, :4].mean(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(hidden[0, 0, 5], expected[0, 20:24].mean(0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pool", [1, 3])
def test_padding_is_exactly_zero_and_neighbours_change_nothing(pool: int, folder: Path) -> None:
    mixed = load(folder, (0.0, 1.0, 2.0, 1.0), pool=pool)
    prepared = [mixed.prepare(noise(samples)) for samples in (400, 8_000, 21_000, 3_333)]
    together, mask = mixed(prepared)
    for row, one in enumerate(prepared):
        alone, _ = mixed([one])
        frames = alone.shape[2]
        assert int(mask[row].sum()) == frames
        assert (together[row, :, :frames] - alone[0]).abs().max() < 1e-5
        assert (together[row, :, frames:] == 0).all()


def test_the_fingerprint_follows_the_proportions_of_the_weights(folder: Path) -> None:
    uniform = load(folder, (1.0, 1.0, 1.0, 1.0)).fingerprint
    assert load(folder, (2.0, 2.0, 2.0, 2.0)).fingerprint == uniform  # the same output
    assert len({uniform, load(folder).fingerprint, load(folder, (1.0, 1.0, 1.0, 2.0)).fingerprint}) == 3


def test_another_number_of_weights_than_layers_is_refused(folder: Path) -> None:
    with pytest.raises(SayseeError, match=r"fixed_mix has 3 weights, and 4 layers of .* are kept"):
        load(folder, (1.0, 1.0, 1.0))
    with pytest.raises(SayseeError, match=r"fixed_mix has 4 weights, and 2 layers of .* are kept"):
        load(folder, (1.0, 1.0, 1.0, 1.0), layers=(0, 1))
