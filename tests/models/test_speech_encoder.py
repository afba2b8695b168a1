"""The speech encoder: the learnable layer mix, and independence of padding and neighbours."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from saysee.models.speech_encoder import LayerMix, SpeechEncoder
from stubs import LAYERS, SPEECH_DIM, small_config


@pytest.mark.parametrize("normalize", [False, True])
def test_the_mix_is_a_softmax_weighted_sum(normalize: bool) -> None:
    mix = LayerMix(3, normalize)
    with torch.no_grad():
        mix.weights.copy_(torch.tensor([0.1, -0.4, 1.2]))
    hidden = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    layers = F.layer_norm(hidden, (4,)) if normalize else hidden
    expected = sum(weight * layers[:, number] for number, weight in enumerate(mix.weights.softmax(0)))
    assert isinstance(expected, torch.Tensor)
    torch.testing.assert_close(mix(hidden), expected)


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5), extra=st.integers(0, 6))
def test_an_embedding_does_not_depend_on_neighbours_or_padding(lengths: list[int], extra: int) -> None:
    torch.manual_seed(0)
    encoder = SpeechEncoder(small_config(speech_layers=2).model, SPEECH_DIM, LAYERS).eval()
    clips = [torch.randn(LAYERS, length, SPEECH_DIM) for length in lengths]
    longest = max(lengths) + extra
    # what stands in the padding must not matter, so it is noise here
    padded = torch.randn(len(clips), LAYERS, longest, SPEECH_DIM)
    for row, clip in zip(padded, clips, strict=True):
        row[:, : clip.shape[1]] = clip
    mask = torch.arange(longest)[None] < torch.tensor(lengths)[:, None]
    together = encoder(padded, mask)
    for row, clip in enumerate(clips):
        alone = encoder(clip[None], torch.ones(1, clip.shape[1], dtype=torch.bool))
        cosine = (together.embedding[row] @ alone.embedding[0]).item()
        assert cosine > 1 - 1e-4
        torch.testing.assert_close(together.hidden[row, : clip.shape[1] + 1], alone.hidden[0], atol=1e-4, rtol=0)


def test_embeddings_have_unit_length_and_cls_stands_in_front() -> None:
    encoder = SpeechEncoder(small_config().model, SPEECH_DIM, LAYERS)
    out = encoder(torch.randn(2, LAYERS, 6, SPEECH_DIM), torch.ones(2, 6, dtype=torch.bool))
    torch.testing.assert_close(out.embedding.norm(dim=1), torch.ones(2))
    assert out.hidden.shape == (2, 7, 16)
    assert out.mask.all()
