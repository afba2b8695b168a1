"""What all frozen encoders share: staying frozen, fingerprints, pooling, pictures to pixels, and strict loading."""

import hashlib
import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import make_encoder_weights
from saysee.config import ImageBackboneConfig, SpeechBackboneConfig
from saysee.data.collate import Batch, pad_speech
from saysee.errors import SayseeError
from saysee.models.backbones import (
    FrozenBackbone,
    ImageBackbone,
    SpeechBackbone,
    load_image_backbone,
    load_speech_backbone,
    weights,
)
from saysee.models.backbones.base import at_least, pool_frames, real_frames, square_pixels
from saysee.models.backbones.weights import Checkpoint, load_strictly, read_safetensors


@pytest.fixture(scope="module")
def bundled_backbones() -> list[FrozenBackbone]:
    return [load_speech_backbone(SpeechBackboneConfig()), load_image_backbone(ImageBackboneConfig())]


class Noisy(nn.Module):
    """A trainable model around a frozen encoder that has dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = FrozenBackbone(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)), {"family": "test"})
        self.head = nn.Dropout(0.5)


def test_training_the_model_around_it_leaves_every_submodule_in_eval_mode_and_without_gradient() -> None:
    model = Noisy().train()
    assert model.head.training
    assert not any(module.training for module in model.backbone.modules())
    assert not any(parameter.requires_grad for parameter in model.backbone.parameters())
    assert set(model.backbone.state_dict()) == {"encoder.0.weight", "encoder.0.bias"}


def test_what_encoders_give_is_free_of_autograd_and_can_be_trained_on_once_it_is_in_a_batch(
    bundled_backbones: list[FrozenBackbone],
) -> None:
    speech, image = bundled_backbones
    assert isinstance(speech, SpeechBackbone)
    assert isinstance(image, ImageBackbone)
    hidden, _ = speech([speech.prepare(np.zeros(8000, np.float32))])
    tokens = image(image.prepare(Image.new("RGB", (30, 20)))[None])
    assert hidden.is_inference()
    assert tokens.is_inference()
    # as live features reach training: collate copies, and autograd takes no inference tensor
    batch = Batch(("a",), *pad_speech([hidden[0]]), torch.stack([tokens[0]]), torch.zeros(1)).to(torch.device("cpu"))
    for features in (batch.speech, batch.image_tokens):
        weight = nn.Parameter(torch.ones(features.shape[-1]))
        torch.autograd.backward((features * weight).sum())
        assert weight.grad is not None
        assert not features.requires_grad


def test_the_bundled_encoders_are_those_that_saved_models_were_trained_on(
    bundled_backbones: list[FrozenBackbone],
) -> None:
    """Fingerprints as of 0.1.0: they stand in model folders and name the features in people's caches."""
    assert [backbone.fingerprint for backbone in bundled_backbones] == [
        "463228f4782d58180c5667acf16d70e7dcdbb2d3bc67f59e9fca9bef714d3398",
        "150da56590833475e8b36491d973fb5229b09e5ca8b7ceb359e77ab407998b56",
    ]
    assert [backbone.revision for backbone in bundled_backbones] == [None, None]


def test_fingerprint_is_of_settings_and_bytes() -> None:
    def make(value: float = 1.0, **identity: object) -> FrozenBackbone:
        layer = nn.Linear(2, 2)
        with torch.no_grad():
            layer.weight.fill_(value)
            layer.bias.zero_()
        return FrozenBackbone(layer, {"family": "test", **identity})

    assert make().fingerprint == make().fingerprint
    different = {make().fingerprint, make(1.0001).fingerprint, make(pool=2).fingerprint, make(pool=3).fingerprint}
    assert len(different) == 4
    assert all(len(value) == 64 for value in different)

    backbone = make()
    before = backbone.fingerprint
    with torch.no_grad():
        next(backbone.parameters())[0, 0] = 5.0  # written after the fingerprint was first asked for
    assert backbone.fingerprint != before
    assert make().half().fingerprint != before  # another dtype gives other outputs


def test_fingerprint_of_speech_follows_layers_pool_and_cut(bundled_backbones: list[FrozenBackbone]) -> None:
    speech = bundled_backbones[0]
    assert isinstance(speech, SpeechBackbone)
    everything = load_speech_backbone(SpeechBackboneConfig(layers=tuple(range(speech.num_layers))))
    assert everything.fingerprint == speech.fingerprint  # the same as `all`
    others = [SpeechBackboneConfig(layers=(3,)), SpeechBackboneConfig(pool=2), SpeechBackboneConfig(max_seconds=10)]
    assert len({speech.fingerprint, *(load_speech_backbone(config).fingerprint for config in others)}) == 4


@given(
    lengths=st.lists(st.integers(1, 11), min_size=1, max_size=4),
    pool=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_pooling_is_the_mean_of_each_group_of_real_frames(lengths: list[int], pool: int, seed: int) -> None:
    mask = real_frames(lengths, torch.device("cpu"))
    assert mask.sum(1).tolist() == lengths
    hidden = torch.randn(
        len(lengths), 2, max(lengths), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    hidden = hidden * mask[:, None, :, None]
    pooled, pooled_mask = pool_frames(hidden, mask, pool)
    for row, length in enumerate(lengths):
        groups = [hidden[row, :, start : min(start + pool, length)].mean(1) for start in range(0, length, pool)]
        assert int(pooled_mask[row].sum()) == len(groups)
        assert pooled_mask[row, : len(groups)].all()
        torch.testing.assert_close(pooled[row, :, : len(groups)], torch.stack(groups, dim=1))
        assert (pooled[row, :, len(groups) :] == 0).all()


def test_a_short_waveform_is_followed_by_zeros_and_a_long_one_is_left_alone() -> None:
    assert at_least(np.ones(2, np.float32), 5).tolist() == [1, 1, 0, 0, 0]
    assert at_least(np.ones(7, np.float32), 5).tolist() == [1] * 7


def test_the_whole_picture_is_kept_and_channels_are_in_order() -> None:
    picture = Image.new("RGB", (400, 100), (10, 20, 30))
    picture.paste((200, 20, 30), (200, 0, 400, 100))
    pixels = square_pixels(picture, 32, mean=[10.0, 10.0, 10.0], std=[2.0, 5.0, 10.0])
    assert pixels.shape == (3, 32, 32)
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(pixels[:, 0, 0], torch.tensor([0.0, 2.0, 2.0]))
    torch.testing.assert_close(pixels[:, -1, -1], torch.tensor([95.0, 2.0, 2.0]))


@pytest.mark.parametrize(
    ("family", "checkpoint", "message"),
    [
        ("whisper", "bundled:whisper-huge", "whisper-huge.safetensors is not among"),
        ("hubert", "bundled", "only Whisper and EfficientNet are bundled"),
    ],
)
def test_what_is_not_bundled_is_refused(family: Literal["whisper", "hubert"], checkpoint: str, message: str) -> None:
    config = SpeechBackboneConfig(family=family, checkpoint=checkpoint)
    with pytest.raises(SayseeError, match=message):
        load_speech_backbone(config)


def test_a_layer_that_does_not_exist_is_refused() -> None:
    with pytest.raises(SayseeError, match=r"layers has 70; 'bundled' has hidden states 0 to \d\. "):
        load_speech_backbone(SpeechBackboneConfig(layers=(0, 70)))


def test_an_altered_bundled_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "assets" / "weights"
    folder.mkdir(parents=True)
    save_file({"a": torch.ones(2)}, folder / "x.safetensors", metadata={"saysee": '{"family": "test"}'})
    content = (folder / "x.safetensors").read_bytes()
    (folder / "SHA256SUMS").write_text(f"{hashlib.sha256(content).hexdigest()}  x.safetensors\n")
    monkeypatch.setattr("importlib.resources.files", lambda package: tmp_path)

    description, tensors = weights.bundled("x.safetensors")
    assert description == {"family": "test"}
    assert tensors["a"].tolist() == [1, 1]
    (folder / "x.safetensors").write_bytes(content[:-1] + b"\x00")
    with pytest.raises(SayseeError, match="has been altered"):
        weights.bundled("x.safetensors")


def test_int8_weights_come_back_within_half_a_step_of_each_channel(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    published = {
        "matrix": torch.randn(5, 40, generator=generator) * torch.tensor([1e-4, 1.0, 0.0, 7.0, 100.0])[:, None],
        "convolution": torch.randn(3, 4, 3, generator=generator),
        "vector": torch.randn(6, generator=generator).half(),
    }
    save_file(make_encoder_weights.quantise(published), tmp_path / "q.safetensors")
    loaded = read_safetensors(tmp_path / "q.safetensors")
    assert loaded.keys() == published.keys()
    assert all(tensor.dtype == torch.float32 for tensor in loaded.values())
    assert torch.equal(loaded["vector"], published["vector"].float())
    for name in ("matrix", "convolution"):
        error = (loaded[name] - published[name]).abs().flatten(1).amax(1)
        step = published[name].abs().flatten(1).amax(1) / 127
        assert (error <= step * 0.501).all()


def test_the_same_source_gives_the_same_bytes_and_one_line_in_the_list(tmp_path: Path) -> None:
    description = {letter: letter for letter in "abcdefgh"}
    checksums = []
    for folder in ("one", "two"):
        path = tmp_path / folder / "x.safetensors"
        path.parent.mkdir()
        for _ in range(2):
            make_encoder_weights.write(path, {"a": torch.ones(3), "b": torch.zeros(2, dtype=torch.int8)}, description)
        (line,) = (path.parent / "SHA256SUMS").read_text().splitlines()
        assert line == f"{hashlib.sha256(path.read_bytes()).hexdigest()}  x.safetensors"
        checksums.append(line)
    assert checksums[0] == checksums[1]


def test_loading_names_what_is_missing_left_over_or_misshapen() -> None:
    def meta() -> nn.Module:
        with torch.device("meta"):
            return nn.Linear(2, 3)

    good = {"weight": torch.ones(3, 2), "bias": torch.ones(3)}
    cases: dict[str, dict[str, Tensor]] = {
        "missing: bias and 1 more": {},
        "missing: bias; unexpected: biased": {"weight": good["weight"], "biased": good["bias"]},
        "of another shape: weight": {**good, "weight": torch.ones(2, 3)},
    }
    for message, tensors in cases.items():
        with pytest.raises(SayseeError, match=message):
            load_strictly(meta(), tensors, "a test")
    module = meta()
    load_strictly(module, good, "a test")
    assert torch.equal(module(torch.ones(1, 2)), torch.full((1, 3), 3.0))


class FakeHub:
    """Serves a folder as the hub would, and remembers what was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[tuple[str, str, str | None]] = []

    def download(self, repo: str, filename: str, *, revision: str | None) -> str:
        from huggingface_hub.errors import RemoteEntryNotFoundError

        self.asked.append((repo, filename, revision))
        if not (self.folder / filename).exists():
            raise RemoteEntryNotFoundError.__new__(RemoteEntryNotFoundError)
        return str(self.folder / filename)


def test_only_the_shards_with_wanted_tensors_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"eye.a": torch.ones(1), "mouth.b": torch.ones(1)}, tmp_path / "one.safetensors")
    save_file({"mouth.c": torch.ones(1)}, tmp_path / "two.safetensors")
    weight_map = {"eye.a": "one.safetensors", "mouth.b": "one.safetensors", "mouth.c": "two.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    hub = FakeHub(tmp_path)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", hub.download)

    tensors = Checkpoint("someone/model", "abc").tensors(lambda name: name.startswith("eye."))
    assert list(tensors) == ["eye.a"]
    assert ("someone/model", "one.safetensors", "abc") in hub.asked
    assert "two.safetensors" not in {filename for _, filename, _ in hub.asked}


@pytest.mark.parametrize("error", [OSError("no route\nto host"), ValueError("Repo id must be"), RuntimeError("odd")])
def test_a_hub_that_cannot_be_reached_is_one_line_with_advice(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    families: tuple[Literal["whisper", "hubert"], ...] = ("whisper", "hubert")
    for family in families:
        config = SpeechBackboneConfig(family=family, checkpoint="openai/whisper-base")
        with pytest.raises(SayseeError, match=r"give a folder that exists, or .*hf download NAME") as caught:
            load_speech_backbone(config)
        assert "\n" not in str(caught.value)
        assert "'openai/whisper-base'" in str(caught.value)


def test_a_folder_without_usable_weights_says_what_is_wrong(tmp_path: Path) -> None:
    checkpoint = Checkpoint(str(tmp_path))
    with pytest.raises(SayseeError, match=r"has no config\.json"):
        checkpoint.architecture("whisper")
    (tmp_path / "config.json").write_text("{not json")
    with pytest.raises(SayseeError, match="cannot be read"):
        checkpoint.architecture("whisper")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(SayseeError, match="holds list and not an object"):
        checkpoint.architecture("whisper")
    (tmp_path / "config.json").write_text('{"model_type": "wav2vec2"}')
    with pytest.raises(SayseeError, match="of the type 'wav2vec2', not 'hubert'"):
        checkpoint.architecture("hubert")
    with pytest.raises(SayseeError, match=r"has no model\.safetensors"):
        checkpoint.tensors(lambda name: True)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}')
    with pytest.raises(SayseeError, match=r"has no gone\.safetensors"):
        checkpoint.tensors(lambda name: True)
    (tmp_path / "model.safetensors").write_bytes(b"half a file")
    with pytest.raises(SayseeError, match="not a whole safetensors file"):
        checkpoint.tensors(lambda name: True)


class Bomb:
    """What a pickle can do: reading it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


def test_an_old_checkpoint_is_read_but_nothing_in_it_is_run(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2).half(), "head": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    tensors = Checkpoint(str(tmp_path)).tensors(lambda name: name == "a")
    assert list(tensors) == ["a"]
    assert tensors["a"].dtype == torch.float32
    # torch's format of before 2020, which cannot be mapped
    old = {"a": torch.full((2,), 3.0), "head": torch.ones(1)}
    torch.save(old, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert Checkpoint(str(tmp_path)).tensors(lambda name: name == "a")["a"].tolist() == [3, 3]
    torch.save({"a": Bomb(tmp_path / "exploded")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(SayseeError, match=r"give model\.safetensors"):
        Checkpoint(str(tmp_path)).tensors(lambda name: True)
    assert not (tmp_path / "exploded").exists()
