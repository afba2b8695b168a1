"""What matching shares between pairs must change nothing: against the plain form, one pair at a time."""

import math

import pytest
import torch
from torch import Tensor

from saysee.models.attention import Attention
from saysee.models.multimodal_encoder import MultimodalEncoder, MultimodalLayer
from stubs import small_config

LENGTHS = [7, 3, 5]


def plain_attention(attention: Attention, queries_from: Tensor, keys_from: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V [Vaswani et al. 2017, equation 1], head by head, for (T, H) and (S, H)."""
    width = queries_from.shape[1]
    size = width // attention.heads
    queries = attention.query(queries_from)
    keys, values = attention.key_value(keys_from).split(width, dim=1)
    heads = []
    for head in range(attention.heads):
        part = slice(head * size, (head + 1) * size)
        weights = (queries[:, part] @ keys[:, part].T / math.sqrt(size)).softmax(1)
        heads.append(weights @ values[:, part])
    output: Tensor = attention.output(torch.cat(heads, dim=1))
    return output


def plain_match_logit(encoder: MultimodalEncoder, speech: Tensor, image: Tensor) -> Tensor:
    """ALBEF's layers over all rows of one recording (T, H), nothing shared and nothing left out."""
    x = speech
    for layer in encoder.layers:
        assert isinstance(layer, MultimodalLayer)
        normed = layer.self_norm(x)
        x = x + plain_attention(layer.self_attention, normed, normed)
        x = x + plain_attention(layer.cross_attention, layer.cross_norm(x), image)
        x = x + layer.feedforward(layer.feedforward_norm(x))
    logits = encoder.head(encoder.output_norm(x[0]))
    matched: Tensor = logits[1] - logits[0]
    return matched


def setting(layers: int) -> tuple[MultimodalEncoder, Tensor, Tensor, Tensor]:
    """An encoder, three recordings (3, 7, 16) with their mask (3, 7), and four pictures (4, 5, 16)."""
    torch.manual_seed(0)
    encoder = MultimodalEncoder(small_config(multimodal_layers=layers).model).double()
    speech = torch.randn(3, 7, 16, dtype=torch.float64, requires_grad=True)
    mask = torch.arange(7)[None] < torch.tensor(LENGTHS)[:, None]
    image = torch.randn(4, 5, 16, dtype=torch.float64, requires_grad=True)
    return encoder, speech, mask, image


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_shared_work_equals_the_plain_form_in_value_and_gradient(layers: int) -> None:
    encoder, speech, mask, image = setting(layers)
    speech_index = torch.tensor([0, 1, 2, 2, 0, 1])
    image_index = torch.tensor([0, 1, 2, 3, 3, 0])

    shared = encoder.match_pairs(speech, mask, image, speech_index, image_index)
    plain = torch.stack(
        [
            plain_match_logit(encoder, speech[s, : LENGTHS[s]], image[i])
            for s, i in zip(speech_index.tolist(), image_index.tolist(), strict=True)
        ]
    )
    assert_same_value_and_gradient(shared, plain, [speech, image, *encoder.parameters()])


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_all_pairs_together_equal_the_plain_form_in_value_and_gradient(layers: int, again: bool) -> None:
    encoder, speech, mask, image = setting(layers)
    encoder.activation_checkpointing = again

    together = encoder.match_all(speech, mask, image)
    plain = torch.stack(
        [
            torch.stack([plain_match_logit(encoder, one[:length], picture) for picture in image])
            for one, length in zip(speech, LENGTHS, strict=True)
        ]
    )
    assert together.shape == (3, 4)
    assert_same_value_and_gradient(together, plain, [speech, image, *encoder.parameters()])


def assert_same_value_and_gradient(ours: Tensor, reference: Tensor, leaves: list[Tensor]) -> None:
    torch.testing.assert_close(ours, reference.float(), atol=1e-6, rtol=0)
    weights = torch.randn(ours.shape, dtype=torch.float64)
    for mine, wanted in zip(
        torch.autograd.grad((ours * weights).sum(), leaves, allow_unused=True),
        torch.autograd.grad((reference * weights).sum(), leaves, allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(
            torch.zeros(()) if mine is None else mine,
            torch.zeros(()) if wanted is None else wanted,
            atol=1e-5,
            rtol=1e-5,
            check_dtype=False,
        )


def test_a_score_does_not_depend_on_padding_or_on_the_other_pairs() -> None:
    torch.manual_seed(0)
    encoder = MultimodalEncoder(small_config().model).eval()
    speech, image = torch.randn(2, 9, 16), torch.randn(2, 5, 16)
    mask = torch.arange(9)[None] < torch.tensor([9, 4])[:, None]
    together = encoder.match_pairs(speech, mask, image, torch.tensor([0, 1]), torch.tensor([1, 0]))
    alone = encoder.match_pairs(speech[1:, :4], mask[1:, :4], image[:1], torch.tensor([0]), torch.tensor([0]))
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=0)
