"""Whisper's encoder on short recordings, against transformers' own on its full window."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperModel

from saysee.config import SpeechBackboneConfig
from saysee.errors import SayseeError
from saysee.models.backbones import SpeechBackbone, load_speech_backbone
from saysee.models.backbones.whisper import sinusoids

LENGTHS = (400, 4_000, 5_759, 5_760, 5_919, 20_800, 33_333)


def noise(samples: int, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    envelope = np.abs(np.sin(np.arange(samples) / 2_000 + seed))
    return (0.1 * rng.standard_normal(samples) * envelope).astype(np.float32)


def randomise(module: nn.Module) -> None:
    """Weights as large as trained ones, so that every layer matters."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "embed_positions" not in name:
                values = torch.randn(parameter.shape, generator=generator)
                if parameter.dim() > 1:
                    parameter.copy_(1.5 / parameter[0].numel() ** 0.5 * values)
                else:  # ones of a norm, zeros of a bias
                    parameter.add_(0.3 * values)


def small(positions: int = 1500) -> WhisperConfig:
    return WhisperConfig(
        d_model=32,
        encoder_layers=3,
        encoder_attention_heads=4,
        encoder_ffn_dim=48,
        num_mel_bins=80,
        max_source_positions=positions,
        decoder_layers=1,
        decoder_attention_heads=4,
        decoder_ffn_dim=16,
        vocab_size=50_300,
    )


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, WhisperForConditionalGeneration]:
    """A small random checkpoint in the published layout, decoder and all."""
    folder = tmp_path_factory.mktemp("whisper")
    model = WhisperForConditionalGeneration(small()).eval()
    randomise(model)
    model.save_pretrained(folder)
    return folder, model


@pytest.fixture(scope="module")
def backbone(published: tuple[Path, WhisperForConditionalGeneration]) -> SpeechBackbone:
    return load_speech_backbone(SpeechBackboneConfig(checkpoint=str(published[0])))


def test_every_hidden_state_of_thirty_seconds_equals_transformers(
    published: tuple[Path, WhisperForConditionalGeneration], backbone: SpeechBackbone
) -> None:
    waveform = noise(480_000)
    mel = WhisperFeatureExtractor()(waveform, sampling_rate=16_000, return_tensors="pt")["input_features"]
    with torch.no_grad():
        expected = published[1].model.encoder(mel, output_hidden_states=True).hidden_states
    hidden, mask = backbone([backbone.prepare(waveform)])
    assert hidden.shape == (1, backbone.num_layers, 1500, backbone.dim) == (1, 4, 1500, 32)
    assert mask.all()
    for layer, states in enumerate(expected):
        torch.testing.assert_close(hidden[:, layer], states, atol=1e-5, rtol=1e-5)


def test_a_short_window_is_the_encoder_with_its_table_of_positions_cut(
    published: tuple[Path, WhisperForConditionalGeneration],
) -> None:
    # transformers' own code run on two seconds: the same weights in a model whose window is two seconds long
    window = WhisperModel(small(positions=100)).eval().encoder
    state = dict(published[1].model.encoder.state_dict())
    state["embed_positions.weight"] = state["embed_positions.weight"][:100]
    window.load_state_dict(state)
    backbone = load_speech_backbone(SpeechBackboneConfig(checkpoint=str(published[0])))
    prepared = backbone.prepare(noise(32_000))
    with torch.no_grad():
        expected = window(prepared[None], output_hidden_states=True).hidden_states
    hidden, _ = backbone([prepared])
    torch.testing.assert_close(hidden[0], torch.stack(expected, dim=1)[0], atol=1e-5, rtol=1e-5)


def test_neighbours_and_padding_change_nothing(backbone: SpeechBackbone) -> None:
    prepared = [backbone.prepare(noise(length, seed)) for seed, length in enumerate(LENGTHS)]
    together, mask = backbone(prepared)
    for row, one in enumerate(prepared):
        alone, alone_mask = backbone([one])
        frames = alone.shape[2]
        assert alone_mask.all()
        assert mask[row].tolist() == [True] * frames + [False] * (mask.shape[1] - frames)
        assert (together[row, :, :frames] - alone[0]).abs().max() < 1e-5
        assert (together[row, :, frames:] == 0).all()


@pytest.mark.parametrize("length", LENGTHS)
def test_frames_are_counted_by_the_models_own_formula(
    length: int, backbone: SpeechBackbone, published: tuple[Path, WhisperForConditionalGeneration]
) -> None:
    prepared = backbone.prepare(noise(length))
    assert prepared.shape == (80, length // 160)
    _, mask = backbone([prepared])
    assert mask.shape[1] == published[1]._get_feat_extract_output_lengths(torch.tensor(length // 160))
    assert mask.shape[1] == -(-(length // 160) // 2)


@pytest.mark.parametrize("samples", [0, 1, 200, 399])
def test_a_recording_shorter_than_a_window_gives_one_finite_frame(samples: int, backbone: SpeechBackbone) -> None:
    hidden, mask = backbone([backbone.prepare(noise(samples)), backbone.prepare(noise(8_000))])
    assert mask.sum(1).tolist() == [1, 25]
    assert hidden.isfinite().all()


def test_layers_pool_and_cut(published: tuple[Path, WhisperForConditionalGeneration], backbone: SpeechBackbone) -> None:
    config = SpeechBackboneConfig(checkpoint=str(published[0]), layers=(3, 1), pool=4, max_seconds=0.5)
    chosen = load_speech_backbone(config)
    assert (chosen.num_layers, chosen.dim, chosen.frames_per_second) == (2, 32, 12.5)
    waveform = noise(20_000)
    whole, _ = backbone([backbone.prepare(waveform[:8_000])])
    hidden, mask = chosen([chosen.prepare(waveform)])
    assert mask.shape == (1, 7)  # 25 frames by fours; the last group has one
    expected = [whole[0, [3, 1], start : start + 4].mean(1) for start in range(0, 25, 4)]
    torch.testing.assert_close(hidden[0], torch.stack(expected, dim=1), atol=1e-6, rtol=1e-5)

    first = load_speech_backbone(SpeechBackboneConfig(checkpoint=str(published[0]), layers=(0,)))
    hidden, _ = first([first.prepare(waveform[:8_000])])
    torch.testing.assert_close(hidden[:, 0], whole[:, 0])


def test_a_recording_is_cut_where_the_table_of_positions_ends(tmp_path: Path) -> None:
    WhisperModel(small(positions=50)).save_pretrained(tmp_path)
    backbone = load_speech_backbone(SpeechBackboneConfig(checkpoint=str(tmp_path)))
    hidden, _ = backbone([backbone.prepare(noise(40_000))])
    assert hidden.shape[2] == 50
    assert backbone.max_samples == 16_000


def test_names_with_and_without_a_head_are_read_and_a_renamed_tensor_is_refused(
    published: tuple[Path, WhisperForConditionalGeneration], backbone: SpeechBackbone, tmp_path: Path
) -> None:
    published[1].model.save_pretrained(tmp_path)
    headless = load_speech_backbone(SpeechBackboneConfig(checkpoint=str(tmp_path)))
    assert headless.fingerprint == backbone.fingerprint

    tensors = load_file(tmp_path / "model.safetensors")
    assert "encoder.layers.1.fc1.weight" in tensors
    tensors["encoder.layers.1.fc9.weight"] = tensors.pop("encoder.layers.1.fc1.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(SayseeError, match=r"missing: layers\.1\.fc1\.weight; unexpected: layers\.1\.fc9\.weight"):
        load_speech_backbone(SpeechBackboneConfig(checkpoint=str(tmp_path)))

    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "d_model": 64}))
    with pytest.raises(SayseeError, match=r"of another shape: conv1\.bias"):
        load_speech_backbone(SpeechBackboneConfig(checkpoint=str(tmp_path)))


@pytest.mark.parametrize(("length", "channels"), [(1500, 384), (1500, 512), (10, 4)])
def test_positions_are_transformers_sinusoids(length: int, channels: int) -> None:
    from transformers.models.whisper.modeling_whisper import sinusoids as published_sinusoids

    ours = sinusoids(length, channels)
    assert ours.dtype == torch.float32
    # float32 angles of up to 1,500 radians are that coarse; the float64 formula is the better of the two
    torch.testing.assert_close(ours, published_sinusoids(length, channels), atol=5e-4, rtol=0)
    assert torch.equal(ours[0], torch.cat([torch.zeros(channels // 2), torch.ones(channels // 2)]))


def test_the_bundled_encoder_hears_that_a_sound_is_not_another() -> None:
    backbone = load_speech_backbone(SpeechBackboneConfig(layers=(4,)))
    time = np.arange(16_000) / 16_000
    low, high = (np.sin(2 * np.pi * pitch * time).astype(np.float32) * 0.3 for pitch in (200, 2_000))
    hidden, mask = backbone([backbone.prepare(sound) for sound in (low, 0.5 * low, high)])
    assert mask.all()
    quiet, other = (F.cosine_similarity(hidden[0].flatten(), hidden[row].flatten(), dim=0).item() for row in (1, 2))
    assert quiet > 0.95  # loudness alone says little
    assert other < quiet - 0.1
