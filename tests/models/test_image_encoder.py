"""The image side of the coarse stage: a learnt map or the backbone's own embedding; nothing trainable is idle."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from saysee.config import ModelConfig
from saysee.errors import SayseeError
from saysee.models.image_encoder import ImageEncoder
from saysee.models.retrieval_model import SpeechImageModel
from stubs import IMAGE_DIM, LAYERS, SPEECH_DIM, TOKENS, small_model


def features() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    speech = torch.randn(4, LAYERS, 6, SPEECH_DIM, generator=generator)
    return speech, torch.ones(4, 6, dtype=torch.bool), torch.randn(4, TOKENS, IMAGE_DIM, generator=generator)


def loss_of(model: SpeechImageModel) -> Tensor:
    """SIC within the batch, and SIM of each recording with its own and the next picture where the model has it."""
    hidden_states, mask, tokens = features()
    speech, image = model.speech_encoder(hidden_states, mask), model.image_encoder(tokens)
    own = torch.arange(4)
    logits = speech.embedding @ image.embedding.T / model.temperature
    loss = F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)
    if model.multimodal_encoder is not None:
        pairs = torch.cat([own, own]), torch.cat([own, own.roll(1)])
        match_logit = model.multimodal_encoder.match_pairs(speech.hidden, speech.mask, image.hidden, *pairs)
        loss = loss + F.softplus(-match_logit[:4]).mean() + F.softplus(match_logit[4:]).mean()
    return loss


@pytest.mark.parametrize("projection", ["learned", "none"])
@pytest.mark.parametrize("matching", [True, False])
@pytest.mark.parametrize("learn_temperature", [True, False])
def test_every_parameter_that_can_be_trained_gets_a_gradient(
    projection: str, matching: bool, learn_temperature: bool
) -> None:
    """DistributedDataParallel fails in the second step where one does not."""
    model = small_model(
        image_projection=projection,
        embedding_dim=IMAGE_DIM,
        matching=matching,
        learn_temperature=learn_temperature,
        speech_layers=2,
    ).train()
    torch.autograd.backward(loss_of(model))
    parameters = [(name, parameter) for name, parameter in model.named_parameters() if "backbone" not in name]
    assert [name for name, parameter in parameters if parameter.requires_grad and parameter.grad is None] == []
    frozen = {name for name, parameter in parameters if not parameter.requires_grad}
    expected = set() if learn_temperature else {"temperature"}
    if not matching:
        expected |= {"image_encoder.token_projection.weight", "image_encoder.token_projection.bias"}
        if projection == "none":
            expected |= {"image_encoder.input_norm.weight", "image_encoder.input_norm.bias"}
    assert frozen == expected


def test_the_mix_of_one_layer_gets_a_gradient_of_zero() -> None:
    model = small_model(matching=False)
    model.speech_encoder.mix.weights = torch.nn.Parameter(torch.zeros(1))
    hidden_states, mask, _ = features()
    model.speech_encoder(hidden_states[:, :1], mask).embedding[:, 0].sum().backward()
    assert model.speech_encoder.mix.weights.grad is not None
    assert model.speech_encoder.mix.weights.grad.tolist() == [0]


def test_the_tensors_have_the_names_that_they_always_had() -> None:
    names = {"input_norm.weight", "input_norm.bias", "token_projection.weight", "token_projection.bias"}
    for matching in (True, False):
        assert set(ImageEncoder(ModelConfig(), 10, True, matching).state_dict()) == {
            *names,
            "projection.weight",
            "projection.bias",
        }
    none = ModelConfig(image_projection="none", embedding_dim=10)
    assert set(ImageEncoder(none, 10, True, True).state_dict()) == names


@pytest.mark.parametrize("pooled_first", [True, False])
def test_without_a_projection_the_embedding_is_the_pooled_token_itself(pooled_first: bool) -> None:
    encoder = ImageEncoder(ModelConfig(image_projection="none", embedding_dim=IMAGE_DIM), IMAGE_DIM, pooled_first, True)
    torch.nn.init.normal_(encoder.input_norm.weight)
    tokens = features()[2]
    pooled = tokens[:, 0] if pooled_first else tokens.mean(1)
    expected = pooled / pooled.square().sum(1, keepdim=True).sqrt()
    torch.testing.assert_close(encoder.embed(tokens), expected)
    torch.testing.assert_close(encoder(tokens).embedding, expected)
    assert encoder.embed(tokens.bfloat16()).dtype == torch.float32


def test_a_token_of_another_width_cannot_be_the_embedding() -> None:
    with pytest.raises(SayseeError, match=r"embedding_dim is 8, .*token of 10 numbers; set embedding_dim to 10"):
        small_model(image_projection="none", embedding_dim=8)
