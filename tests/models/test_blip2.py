"""BLIP-2's image side, read out of whole checkpoints, against transformers' own."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Blip2ForConditionalGeneration, Blip2ForImageTextRetrieval
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from checkpoints import write_blip2
from saysee.config import ImageBackboneConfig
from saysee.errors import SayseeError
from saysee.models.backbones import load_image_backbone

Published = tuple[Path, Blip2ForConditionalGeneration | Blip2ForImageTextRetrieval]


@pytest.fixture(scope="module", params=["generation, one file", "retrieval, shards"])
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Published:
    """A small random checkpoint in each of the two published layouts."""
    folder = tmp_path_factory.mktemp("blip2")
    retrieval = request.param.startswith("retrieval")
    model = write_blip2(folder, "retrieval" if retrieval else "generation")
    assert (folder / "model.safetensors.index.json").exists() is retrieval
    return folder, model


def pixels() -> Tensor:
    return torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(3))


def test_patches_equal_transformers_vision_model(published: Published) -> None:
    backbone = load_image_backbone(ImageBackboneConfig(family="blip2", checkpoint=str(published[0])))
    with torch.no_grad():
        expected = published[1].vision_model(pixel_values=pixels()).last_hidden_state
    tokens = backbone(pixels())
    assert tokens.shape == (2, backbone.num_tokens, backbone.dim) == (2, 17, 32)
    assert backbone.pooled_first
    assert not any(name.startswith(("encoder.qformer", "encoder.query")) for name in backbone.state_dict())
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=1e-5)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_patches_lie_on_the_grid_row_by_row_after_cls(published: Published) -> None:
    backbone = load_image_backbone(ImageBackboneConfig(family="blip2", checkpoint=str(published[0])))
    assert backbone.grid == (4, 4)
    picture = Image.new("RGB", (120, 60))
    other = picture.copy()
    other.paste((255, 0, 0), (98, 18, 112, 27))  # inside the second row's last cell, 30 x 15 pixels of this picture
    before, after = (published[1].vision_model.embeddings(backbone.prepare(image)[None]) for image in (picture, other))
    changed = (before - after).abs().amax(2)[0] > 1e-4
    assert changed.nonzero().flatten().tolist() == [1 + 4 * 1 + 3]


def test_queries_equal_transformers_qformer(published: Published) -> None:
    config = ImageBackboneConfig(family="blip2", checkpoint=str(published[0]), tokens="queries")
    backbone = load_image_backbone(config)
    model = published[1]
    with torch.no_grad():
        patches = model.vision_model(pixel_values=pixels()).last_hidden_state
        expected = model.qformer(
            query_embeds=model.query_tokens.expand(2, -1, -1),
            encoder_hidden_states=patches,
            encoder_attention_mask=torch.ones(patches.shape[:2], dtype=torch.long),
        ).last_hidden_state
    tokens = backbone(pixels())
    assert tokens.shape == (2, backbone.num_tokens, backbone.dim) == (2, 5, 24)
    assert not backbone.pooled_first
    assert backbone.grid is None
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=1e-5)
    assert (tokens[:, 0] - tokens[:, 1]).abs().max() > 0.1  # the queries were read, and not left at zero


def test_a_picture_is_prepared_as_transformers_does(published: Published) -> None:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (40, 91, 3), dtype=np.uint8))
    backbone = load_image_backbone(ImageBackboneConfig(family="blip2", checkpoint=str(published[0])))
    processor = BlipImageProcessorPil(size={"height": 56, "width": 56})
    expected = processor(picture, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(backbone.prepare(picture), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tokens", ["patches", "queries"])
@pytest.mark.parametrize(
    ("name", "for_queries"),
    [
        ("vision_model.encoder.layers.1.mlp.fc1.weight", False),
        ("qformer.encoder.layer.2.crossattention.attention.key.bias", True),
        ("query_tokens", True),
    ],
)
def test_one_renamed_tensor_is_refused_by_name_if_it_is_needed(
    name: str, for_queries: bool, tokens: str, published: Published, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes((published[0] / "config.json").read_bytes())
    tensors: dict[str, Tensor] = {}
    for file in published[0].glob("*.safetensors"):
        tensors |= load_file(file)
    tensors[name + "s"] = tensors.pop(name)
    save_file(tensors, tmp_path / "model.safetensors")
    config = ImageBackboneConfig(
        family="blip2", checkpoint=str(tmp_path), tokens="queries" if tokens == "queries" else "patches"
    )
    if for_queries and tokens == "patches":
        assert load_image_backbone(config).num_tokens == 17
        return
    with pytest.raises(SayseeError, match=f"missing: {name}; unexpected: {name}s"):
        load_image_backbone(config)


def test_the_fingerprint_tells_patches_from_queries_and_architectures_apart(
    published: Published, tmp_path: Path
) -> None:
    patches = load_image_backbone(ImageBackboneConfig(family="blip2", checkpoint=str(published[0])))
    queries = load_image_backbone(ImageBackboneConfig("blip2", str(published[0]), tokens="queries"))
    for file in published[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    values = json.loads((tmp_path / "config.json").read_text())
    values["vision_config"]["num_attention_heads"] = 2  # the same tensors, another function
    (tmp_path / "config.json").write_text(json.dumps(values))
    heads = load_image_backbone(ImageBackboneConfig(family="blip2", checkpoint=str(tmp_path)))
    assert len({patches.fingerprint, queries.fingerprint, heads.fingerprint}) == 3
