"""The momentum encoder: the recurrence in closed form, buffers, gradients and modes."""

import torch

from saysee.models.momentum import MomentumEncoder
from stubs import IMAGE_DIM, LAYERS, SPEECH_DIM, TOKENS, small_model


def test_after_n_updates_it_is_the_geometric_mean_of_theory() -> None:
    """With theta fixed at 1 and theta_m starting at 0, theta_m = 1 - m^n after n updates."""
    model = small_model()
    momentum = MomentumEncoder(model.speech_encoder, model.image_encoder)
    for parameter in momentum.parameters():
        parameter.zero_()
    for parameter in (*model.speech_encoder.parameters(), *model.image_encoder.parameters()):
        parameter.data.fill_(1)
    for _ in range(7):
        momentum.update(model.speech_encoder, model.image_encoder, 0.9)
    for parameter in momentum.parameters():
        torch.testing.assert_close(parameter, torch.full_like(parameter, 1 - 0.9**7))


def test_it_covers_buffers() -> None:
    model = small_model()
    model.speech_encoder.register_buffer("count", torch.zeros(2))
    momentum = MomentumEncoder(model.speech_encoder, model.image_encoder)
    model.speech_encoder.get_buffer("count").fill_(3)
    momentum.update(model.speech_encoder, model.image_encoder, 0.995)
    assert momentum.speech_encoder.get_buffer("count").tolist() == [3, 3]


def test_it_has_no_dropout_noise_takes_no_gradient_and_shares_nothing() -> None:
    model = small_model(dropout=0.5).train()
    momentum = MomentumEncoder(model.speech_encoder, model.image_encoder)
    momentum.train()
    assert not any(module.training for module in momentum.modules())
    inputs = (
        torch.randn(3, LAYERS, 6, SPEECH_DIM),
        torch.ones(3, 6, dtype=torch.bool),
        torch.randn(3, TOKENS, IMAGE_DIM),
    )
    first, second = momentum(*inputs), momentum(*inputs)
    assert torch.equal(first[0], second[0])
    assert not first[0].requires_grad
    assert not first[1].requires_grad
    assert not any(parameter.requires_grad for parameter in momentum.parameters())
    trained = {parameter.data_ptr() for parameter in model.parameters()}
    assert not trained & {parameter.data_ptr() for parameter in momentum.parameters()}


def test_only_the_trainable_embedding_parts_are_copied() -> None:
    model = small_model()
    momentum = MomentumEncoder(model.speech_encoder, model.image_encoder)
    names = {name.split(".")[0] for name, _ in momentum.named_parameters()}
    assert names == {"speech_encoder", "image_encoder"}
