"""HuBERT, base and large style, against transformers' own; and the zero-padding trap, measured."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import HubertForCTC, HubertModel, Wav2Vec2FeatureExtractor

from checkpoints import write_hubert
from saysee.config import SpeechBackboneConfig
from saysee.errors import SayseeError
from saysee.models.backbones import SpeechBackbone, load_speech_backbone

LENGTHS = (400, 3_210, 7_999, 8_000, 16_000, 24_321)
STYLES = ("base", "large")


def noise(samples: int, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    envelope = 0.05 + np.abs(np.sin(np.arange(samples) / 2_000 + seed))
    return (0.1 * rng.standard_normal(samples) * envelope + 0.02).astype(np.float32)


@pytest.fixture(scope="module", params=STYLES)
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, HubertModel]:
    """A small random checkpoint in the published layout."""
    folder = tmp_path_factory.mktemp(request.param)
    return folder, write_hubert(folder, request.param)


@pytest.fixture(scope="module")
def backbone(published: tuple[Path, HubertModel]) -> SpeechBackbone:
    return load_speech_backbone(SpeechBackboneConfig(family="hubert", checkpoint=str(published[0])))


def test_every_hidden_state_of_one_clip_equals_transformers(
    published: tuple[Path, HubertModel], backbone: SpeechBackbone
) -> None:
    waveform = noise(20_000)
    values = Wav2Vec2FeatureExtractor()(waveform, sampling_rate=16_000, return_tensors="pt")["input_values"]
    torch.testing.assert_close(backbone.prepare(waveform)[None], values, atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        expected = published[1](values, output_hidden_states=True)
    hidden, mask = backbone([backbone.prepare(waveform)])
    assert hidden.shape == (1, backbone.num_layers, 62, backbone.dim) == (1, 4, 62, 32)
    assert mask.all()
    for layer, states in enumerate(expected.hidden_states[:-1]):
        torch.testing.assert_close(hidden[:, layer], states, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(hidden[:, -1], expected.last_hidden_state, atol=1e-5, rtol=1e-5)


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


def padded_as_usual(model: HubertModel, prepared: list[Tensor]) -> Tensor:
    """What is usually done: zeros behind the short clips, and transformers' attention mask over them."""
    lengths = torch.tensor([len(one) for one in prepared])
    values = pad_sequence(prepared, batch_first=True)
    attention = (torch.arange(values.shape[1]) < lengths[:, None]).long()
    with torch.no_grad():
        output: Tensor = model(values, attention_mask=attention).last_hidden_state
    return output


def test_zero_padding_with_a_mask_would_change_base_but_not_large(
    published: tuple[Path, HubertModel], backbone: SpeechBackbone
) -> None:
    short, long = backbone.prepare(noise(4_000, 1)), backbone.prepare(noise(24_000, 2))
    alone, _ = backbone([short])
    frames = alone.shape[2]
    together = padded_as_usual(published[1], [short, long])[0, :frames]
    difference = (together - alone[0, -1]).abs().max().item()
    if published[1].config.feat_extract_norm == "group":
        assert difference > 0.3  # of values with variance 1: another embedding (1.8 when this was written)
    else:
        assert difference < 1e-5  # each frame is normalised by itself, and nothing reaches over the end


@pytest.mark.parametrize("length", LENGTHS)
def test_frames_are_counted_by_the_models_own_formula(
    length: int, backbone: SpeechBackbone, published: tuple[Path, HubertModel]
) -> None:
    _, mask = backbone([backbone.prepare(noise(length))])
    assert mask.shape[1] == int(published[1]._get_feat_extract_output_lengths(torch.tensor(length)))


@pytest.mark.parametrize("samples", [0, 1, 399])
def test_a_recording_shorter_than_a_frame_gives_one_finite_frame(samples: int, backbone: SpeechBackbone) -> None:
    assert backbone.prepare(noise(samples)).shape == (400,)
    hidden, mask = backbone([backbone.prepare(noise(samples)), backbone.prepare(noise(8_000))])
    assert mask.sum(1).tolist() == [1, 24]
    assert hidden.isfinite().all()


def test_training_mode_cannot_switch_specaugment_or_dropout_on(backbone: SpeechBackbone) -> None:
    prepared = [backbone.prepare(noise(8_000))]
    before, _ = backbone(prepared)
    nn.Sequential(backbone).train()
    after, _ = backbone(prepared)
    assert torch.equal(before, after)


def test_layers_pool_and_cut(published: tuple[Path, HubertModel], backbone: SpeechBackbone) -> None:
    config = SpeechBackboneConfig(family="hubert", checkpoint=str(published[0]), layers=(1, 2), pool=5, max_seconds=1)
    chosen = load_speech_backbone(config)
    assert (chosen.num_layers, chosen.frames_per_second) == (2, 10)
    waveform = noise(30_000)
    whole, _ = backbone([backbone.prepare(waveform[:16_000])])
    hidden, mask = chosen([chosen.prepare(waveform)])
    assert mask.shape == (1, 10)  # 49 frames by fives; the last group has four
    torch.testing.assert_close(hidden[0, :, -1], whole[0, 1:3, 45:49].mean(1), atol=1e-6, rtol=1e-5)


def test_the_checkpoints_own_normalisation_is_followed(published: tuple[Path, HubertModel], tmp_path: Path) -> None:
    published[1].save_pretrained(tmp_path)
    config = SpeechBackboneConfig(family="hubert", checkpoint=str(tmp_path))
    with pytest.raises(SayseeError, match=r"has no preprocessor_config\.json"):
        load_speech_backbone(config)
    prints = set()
    waveform = noise(8_000)
    for do_normalise in (False, True):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_normalize": do_normalise}))
        backbone = load_speech_backbone(config)
        prints.add(backbone.fingerprint)
        prepared = backbone.prepare(waveform).numpy()
        assert np.array_equal(prepared, waveform) is not do_normalise
        if do_normalise:
            assert abs(prepared.mean()) < 1e-5
            assert prepared.std() == pytest.approx(1, abs=1e-4)
    assert len(prints) == 2
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"sampling_rate": 8_000}))
    with pytest.raises(SayseeError, match="wants 8000 samples a second"):
        load_speech_backbone(config)


def test_a_head_on_top_and_the_old_names_of_the_weight_norm_are_read(
    published: tuple[Path, HubertModel], backbone: SpeechBackbone, tmp_path: Path
) -> None:
    model = HubertForCTC(published[1].config)
    model.hubert.load_state_dict(published[1].state_dict())
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_bytes((published[0] / "preprocessor_config.json").read_bytes())
    config = SpeechBackboneConfig(family="hubert", checkpoint=str(tmp_path))
    assert load_speech_backbone(config).fingerprint == backbone.fingerprint

    new = "hubert.encoder.pos_conv_embed.conv.parametrizations.weight.original"
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["hubert.encoder.pos_conv_embed.conv.weight_g"] = tensors.pop(new + "0")
    tensors["hubert.encoder.pos_conv_embed.conv.weight_v"] = tensors.pop(new + "1")
    save_file(tensors, tmp_path / "model.safetensors")
    assert load_speech_backbone(config).fingerprint == backbone.fingerprint

    tensors["hubert.encoder.layers.2.attention.q_proj.bais"] = tensors.pop(
        "hubert.encoder.layers.2.attention.q_proj.bias"
    )
    save_file(tensors, tmp_path / "model.safetensors")
    layer = r"encoder\.layers\.2\.attention\.q_proj"
    with pytest.raises(SayseeError, match=rf"missing: {layer}\.bias; unexpected: {layer}\.bais"):
        load_speech_backbone(config)
