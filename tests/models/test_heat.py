"""The map of the cross-attention: against loops over heads, in its place on the picture, blind to padding, refused."""

import math
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from saysee.errors import SayseeError
from saysee.models.attention import Attention
from saysee.models.heat import attention_map, supports_attention
from saysee.models.multimodal_encoder import MultimodalEncoder, MultimodalLayer
from saysee.models.retrieval_model import SpeechImageModel
from saysee.models.speech_encoder import SpeechEncoding
from stubs import FRAME, TOKENS, small_config, small_model

WIDTH = 16


def head_weights(attention: Attention, queries_from: Tensor, keys_from: Tensor) -> list[list[list[float]]]:
    """softmax(Q K^T / sqrt(d)) [Vaswani et al. 2017, equation 1] of (T, H) and (S, H), number by number."""
    size = queries_from.shape[1] // attention.heads
    queries = attention.query(queries_from).tolist()
    keys = attention.key_value(keys_from)[:, : queries_from.shape[1]].tolist()
    heads = []
    for head in range(attention.heads):
        part = range(head * size, (head + 1) * size)
        exponentials = [
            [math.exp(sum(query[d] * key[d] for d in part) / math.sqrt(size)) for key in keys] for query in queries
        ]
        heads.append([[value / sum(row) for value in row] for row in exponentials])
    return heads


def take(attention: Attention, weights: list[list[list[float]]], values_from: Tensor) -> Tensor:
    values = attention.key_value(values_from)[:, values_from.shape[1] :].chunk(attention.heads, dim=1)
    taken = [torch.tensor(head, dtype=values_from.dtype) @ value for head, value in zip(weights, values, strict=True)]
    return cast(Tensor, attention.output(torch.cat(taken, dim=1)))


def plain_layers(encoder: MultimodalEncoder, speech: Tensor, image: Tensor) -> list[list[list[list[float]]]]:
    """The cross-attention's weights of each layer and head for all rows of one recording (T, H), [CLS] included."""
    x, of_layers = speech, []
    for layer in encoder.layers:
        assert isinstance(layer, MultimodalLayer)
        normed = layer.self_norm(x)
        x = x + take(layer.self_attention, head_weights(layer.self_attention, normed, normed), normed)
        of_layers.append(head_weights(layer.cross_attention, layer.cross_norm(x), image))
        x = x + take(layer.cross_attention, of_layers[-1], image)
        x = x + layer.feedforward(layer.feedforward_norm(x))
    return of_layers


def sharpened(encoder: MultimodalEncoder) -> MultimodalEncoder:
    """With cross-attention that is far from uniform, as random weights of their usual size do not give it."""
    for layer in encoder.layers:
        assert isinstance(layer, MultimodalLayer)
        nn.init.normal_(layer.cross_attention.query.weight)
        nn.init.normal_(layer.cross_attention.key_value.weight, std=0.3)
    return encoder


@pytest.mark.parametrize("layers", [1, 2, 3])
@torch.no_grad()
def test_frames_weights_are_the_mean_over_heads_and_all_layers_but_the_last(layers: int) -> None:
    torch.manual_seed(0)
    encoder = sharpened(MultimodalEncoder(small_config(multimodal_layers=layers).model).double().eval())
    lengths = [7, 4, 6]  # [CLS] included
    speech = torch.randn(3, 7, WIDTH, dtype=torch.float64)
    mask = torch.arange(7)[None] < torch.tensor(lengths)[:, None]
    images = torch.randn(3, TOKENS, WIDTH, dtype=torch.float64)
    weights = encoder.cross_attention(encoder.prepare_speech(speech, mask), encoder.prepare_images(images))
    assert weights.shape == (3, 6, TOKENS)
    assert weights.max() > 0.4  # of one in five tokens: far from uniform
    for pair, length in enumerate(lengths):
        of_layers = plain_layers(encoder, speech[pair, :length], images[pair])
        for frame in range(1, length):
            for token in range(TOKENS):
                # with one layer, what [CLS] looks at stands for every moment
                asking, row = (of_layers, 0) if layers == 1 else (of_layers[:-1], frame)
                asked = [head[row][token] for heads in asking for head in heads]
                assert abs(weights[pair, frame - 1, token].item() - sum(asked) / len(asked)) < 1e-6


def encode(model: SpeechImageModel, frames: list[int]) -> SpeechEncoding:
    generator = np.random.default_rng(1)
    return model.encode_speech([generator.uniform(-1, 1, FRAME * count).astype(np.float32) for count in frames])


def of_row(speech: SpeechEncoding, row: int) -> SpeechEncoding:
    return SpeechEncoding(*(field[row : row + 1] for field in speech))


def sharp_model(multimodal_layers: int = 2) -> SpeechImageModel:
    model = small_model(multimodal_layers=multimodal_layers).eval()
    assert model.multimodal_encoder is not None
    sharpened(model.multimodal_encoder)
    return model


def test_the_map_is_of_the_real_frames_and_the_cells_after_the_pooled_token() -> None:
    model = sharp_model()
    assert supports_attention(model)
    assert model.multimodal_encoder is not None
    (waveform,) = np.random.default_rng(2).uniform(-1, 1, (1, FRAME * 9 + 50)).astype(np.float32)
    speech, image = model.encode_speech(waveform), torch.randn(TOKENS, WIDTH)
    heat = attention_map(model, speech, image)
    assert heat.weights.shape == (9, 2, 2)
    assert heat.weights.dtype == np.float32
    assert heat.step == 1 / 50
    with torch.no_grad():
        (heads,) = plain_layers(model.multimodal_encoder, speech.hidden[0], image)[:-1]
    expected = np.mean(heads, axis=0)
    np.testing.assert_allclose(expected.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(heat.weights.reshape(9, 4), expected[1:, 1:], atol=1e-5)
    np.testing.assert_allclose(heat.weights.sum((1, 2)), 1 - expected[1:, 0], atol=1e-5)
    assert expected[1:, 0].max() > 0.3  # so what the pooled token gets is left out, and not shared out


def test_rows_come_before_columns_and_pooling_makes_a_frame_longer() -> None:
    model = sharp_model()
    speech, image = encode(model, [5]), torch.randn(TOKENS, WIDTH)
    square = attention_map(model, speech, image).weights
    model.image_backbone.grid = (1, 4)
    model.speech_backbone.frames_per_second = 12.5
    flat = attention_map(model, speech, image)
    assert flat.weights.shape == (5, 1, 4)
    assert np.array_equal(flat.weights[:, 0, 2], square[:, 1, 0])
    assert flat.step == 0.08


@pytest.mark.parametrize("layers", [1, 3])
def test_neighbours_padding_and_what_stands_in_it_change_nothing(layers: int) -> None:
    model = sharp_model(multimodal_layers=layers)
    image = torch.randn(TOKENS, WIDTH)
    lengths = [4, 11, 3]
    together = encode(model, lengths)
    together = together._replace(hidden=together.hidden.masked_fill(~together.mask[:, :, None], 100.0))
    for row, frames in enumerate(lengths):
        hidden, mask = together.hidden[row : row + 1, : 1 + frames], together.mask[row : row + 1, : 1 + frames]
        alone = attention_map(model, SpeechEncoding(together.embedding[row : row + 1], hidden, mask), image)
        padded = attention_map(model, of_row(together, row), image)
        assert padded.weights.shape == alone.weights.shape == (frames, 2, 2)
        np.testing.assert_allclose(padded.weights, alone.weights, atol=1e-5)


def test_tokens_kept_in_half_precision_give_nearly_the_same() -> None:
    model = sharp_model()
    speech, image = encode(model, [6]), torch.randn(TOKENS, WIDTH)
    half = attention_map(model, speech, image.half())
    assert half.weights.dtype == np.float32
    np.testing.assert_allclose(half.weights, attention_map(model, speech, image).weights, atol=0.02)


def test_a_frame_looks_at_the_cell_that_matches_it_at_its_moment() -> None:
    model = small_model(heads=1, multimodal_layers=2).eval()
    assert model.multimodal_encoder is not None
    first, last = model.multimodal_encoder.layers
    assert isinstance(first, MultimodalLayer)
    assert isinstance(last, MultimodalLayer)
    identity = torch.eye(WIDTH)
    with torch.no_grad():
        first.self_attention.output.weight.zero_()
        first.self_attention.output.bias.zero_()
        first.cross_attention.query.weight.copy_(3 * identity)
        first.cross_attention.key_value.weight.copy_(torch.cat([identity, identity]))
        for linear in (first.cross_attention.query, first.cross_attention.key_value):
            linear.bias.zero_()
        # what frames would ask in the last layer was never trained, and may be anything
        last.cross_attention.query.weight.fill_(math.nan)
    # the picture's cells are the axes 0 to 3, with a pooled token that is none of them; the recording names them so:
    named = [2, 0, 3, 3, 1]
    image = torch.cat([torch.zeros(1, WIDTH), 5 * identity[:4]])
    hidden = torch.cat([identity[9:10], identity[named]])[None]
    heat = attention_map(model, SpeechEncoding(torch.ones(1, 8), hidden, torch.ones(1, 6, dtype=torch.bool)), image)
    assert [divmod(int(frame.argmax()), 2) for frame in heat.weights] == [divmod(cell, 2) for cell in named]
    assert heat.weights.max((1, 2)).min() > 0.99


def test_with_a_single_layer_every_moment_is_the_same() -> None:
    model = sharp_model(multimodal_layers=1)
    heat = attention_map(model, encode(model, [5]), torch.randn(TOKENS, WIDTH))
    assert heat.weights.shape == (5, 2, 2)
    assert (heat.weights == heat.weights[0]).all()
    assert heat.weights[0].std() > 0


def test_a_model_without_a_fine_stage_or_a_grid_says_so() -> None:
    coarse, unplaced = small_model(matching=False).eval(), small_model().eval()
    unplaced.image_backbone.grid = None
    for model, message in ((coarse, "loss.matching off.*; use a model"), (unplaced, "on a grid.*; use a model")):
        assert not supports_attention(model)
        with pytest.raises(SayseeError, match=message) as caught:
            attention_map(model, encode(model, [3]), torch.randn(TOKENS, WIDTH))
        assert "\n" not in str(caught.value)


def test_it_takes_one_recording_and_one_picture() -> None:
    model = small_model().eval()
    one, two, image = encode(model, [3]), encode(model, [3, 3]), torch.randn(TOKENS, WIDTH)
    for speech, tokens in ((two, image), (one, image[None]), (one, image[1:]), (one, image[:, 1:])):
        with pytest.raises(SayseeError, match=r"give one recording and one picture's \(5, 16\)"):
            attention_map(model, speech, tokens)
