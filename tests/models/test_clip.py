"""CLIP's image side, read out of whole checkpoints, against transformers' own."""

import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPModel, CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from checkpoints import randomise, write_clip
from saysee.config import ImageBackboneConfig
from saysee.errors import SayseeError
from saysee.models.backbones import ImageBackbone, load_image_backbone

Tokens = Literal["patches", "pooled"]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CLIPModel]:
    folder = tmp_path_factory.mktemp("clip")
    return folder, write_clip(folder)


def load(folder: Path, tokens: Tokens = "patches") -> ImageBackbone:
    return load_image_backbone(ImageBackboneConfig(family="clip", checkpoint=str(folder), tokens=tokens))


def pixels() -> Tensor:
    return torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(3))


def test_patches_equal_transformers_last_hidden_state(published: tuple[Path, CLIPModel]) -> None:
    backbone = load(published[0])
    with torch.no_grad():
        expected = published[1].vision_model(pixel_values=pixels()).last_hidden_state
    tokens = backbone(pixels())
    assert tokens.shape == (3, backbone.num_tokens, backbone.dim) == (3, 17, 32)
    assert backbone.pooled_first
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=1e-5)
    assert not any("projection" in name for name in backbone.state_dict())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_the_pooled_token_equals_transformers_image_features(published: tuple[Path, CLIPModel]) -> None:
    backbone = load(published[0], "pooled")
    with torch.no_grad():
        expected = published[1].get_image_features(pixels()).pooler_output
    tokens = backbone(pixels())
    assert tokens.shape == (3, backbone.num_tokens, backbone.dim) == (3, 1, 20)
    assert backbone.pooled_first
    torch.testing.assert_close(tokens[:, 0], expected, atol=1e-5, rtol=1e-5)


def test_a_checkpoint_without_the_text_side_gives_the_same(published: tuple[Path, CLIPModel], tmp_path: Path) -> None:
    vision = published[1].config.vision_config
    vision.projection_dim = 20
    alone = CLIPVisionModelWithProjection(vision).eval()
    randomise(alone)
    alone.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "clip_vision_model"
    with torch.no_grad():
        expected = alone(pixels())
    torch.testing.assert_close(load(tmp_path, "pooled")(pixels())[:, 0], expected.image_embeds, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(load(tmp_path)(pixels()), expected.last_hidden_state, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tokens", ["patches", "pooled"])
def test_no_grid_is_claimed_over_a_picture_of_which_the_ends_are_cut_off(
    tokens: Tokens, published: tuple[Path, CLIPModel]
) -> None:
    backbone = load(published[0], tokens)
    picture = Image.new("RGB", (160, 56))
    other = picture.copy()
    other.paste((255, 255, 255), (0, 0, 40, 56))
    assert torch.equal(backbone.prepare(picture), backbone.prepare(other))
    assert backbone.grid is None


@pytest.mark.parametrize("size", [(91, 40), (40, 91), (57, 56), (56, 56), (301, 200), (56, 301), (20, 33)])
def test_a_picture_is_prepared_as_transformers_does(size: tuple[int, int], published: tuple[Path, CLIPModel]) -> None:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    processor = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    expected = processor(picture, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(load(published[0]).prepare(picture), expected, atol=1e-5, rtol=1e-5)


def test_a_very_long_picture_is_not_enlarged_as_a_whole(
    published: tuple[Path, CLIPModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def resize(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
        sizes.append(tuple(size))
        return original(image, size, resample)

    original = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", resize)
    # one line of 30,000 pixels: with its height brought to 56 it would be 1.7 million wide, 280 MB
    columns = np.arange(30_000) % 251
    picture = Image.fromarray(np.broadcast_to(columns[None, :, None].astype(np.uint8), (1, 30_000, 3)).copy())
    prepared = load(published[0]).prepare(picture)
    assert prepared.shape == (3, 56, 56)
    assert sizes[0] == (16 * 56, 56)
    middle = columns[15_000] / 255
    assert abs(prepared[0, 0, 28].item() - (middle - 0.48145466) / 0.26862954) < 0.05


def test_a_picture_does_not_depend_on_its_batch(published: tuple[Path, CLIPModel]) -> None:
    backbone = load(published[0], "pooled")
    torch.testing.assert_close(backbone(pixels())[1:2], backbone(pixels()[1:2]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tokens", ["patches", "pooled"])
@pytest.mark.parametrize("name", ["vision_model.encoder.layers.1.mlp.fc1.weight", "visual_projection.weight"])
def test_one_renamed_tensor_is_refused_by_name_if_it_is_needed(
    name: str, tokens: Tokens, published: tuple[Path, CLIPModel], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes((published[0] / "config.json").read_bytes())
    tensors = load_file(published[0] / "model.safetensors")
    tensors[name + "s"] = tensors.pop(name)
    save_file(tensors, tmp_path / "model.safetensors")
    if name.startswith("visual_projection") and tokens == "patches":
        assert load(tmp_path).num_tokens == 17
        return
    with pytest.raises(SayseeError, match=f"missing: {name}; unexpected: {name}s"):
        load(tmp_path, tokens)


def test_the_old_buffer_of_position_ids_may_be_there_and_nothing_else_may(
    published: tuple[Path, CLIPModel], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes((published[0] / "config.json").read_bytes())
    tensors = load_file(published[0] / "model.safetensors")
    del tensors["vision_model.embeddings.position_ids"]
    save_file(tensors, tmp_path / "model.safetensors")
    assert load(tmp_path).fingerprint == load(published[0]).fingerprint
    save_file({**tensors, "vision_model.embeddings.other_ids": torch.arange(17)}, tmp_path / "model.safetensors")
    with pytest.raises(SayseeError, match=r"unexpected: vision_model\.embeddings\.other_ids"):
        load(tmp_path)


def test_the_fingerprint_tells_tokens_and_architectures_apart(
    published: tuple[Path, CLIPModel], tmp_path: Path
) -> None:
    for file in published[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    values = json.loads((tmp_path / "config.json").read_text())
    values["vision_config"]["num_attention_heads"] = 2  # the same tensors, another function
    (tmp_path / "config.json").write_text(json.dumps(values))
    prints = {load(published[0]).fingerprint, load(published[0], "pooled").fingerprint, load(tmp_path).fingerprint}
    assert len(prints) == 3
