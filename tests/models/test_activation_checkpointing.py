"""Layers that are computed a second time for the gradient: the same numbers from less memory."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from saysee.models.momentum import MomentumEncoder
from saysee.models.retrieval_model import SpeechImageModel
from stubs import IMAGE_DIM, LAYERS, SPEECH_DIM, TOKENS, small_model


def make(on: bool, dropout: float, layers: int = 3) -> SpeechImageModel:
    model = small_model(dropout=dropout, speech_layers=2, multimodal_layers=layers).train()
    model.use_activation_checkpointing(on)
    return model


def loss_of(model: SpeechImageModel) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    speech = torch.randn(3, LAYERS, 9, SPEECH_DIM, generator=generator)
    mask = torch.arange(9)[None] < torch.tensor([9, 4, 6])[:, None]
    tokens = torch.randn(3, TOKENS, IMAGE_DIM, generator=generator)
    encoding, image = model.speech_encoder(speech, mask), model.image_encoder(tokens)
    pairs = torch.tensor([0, 1, 2, 2, 1]), torch.tensor([0, 1, 2, 0, 0])
    match_logit = model.require_multimodal_encoder().match_pairs(encoding.hidden, encoding.mask, image.hidden, *pairs)
    weights = torch.randn(5, generator=generator)
    similarity = encoding.embedding @ image.embedding.T
    return torch.add((match_logit * weights).sum(), similarity.square().sum())


def value_and_gradients(model: SpeechImageModel) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(7)
    loss = loss_of(model)
    trained = [p for name, p in model.named_parameters() if "backbone" not in name and name != "temperature"]
    gradients = torch.autograd.grad(loss, trained)
    after = torch.rand(3)  # the random numbers go on as if nothing had been computed twice
    return loss.detach(), [*gradients, after]


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_loss_and_gradients_are_the_same_and_so_is_dropout(dropout: float, layers: int) -> None:
    loss, gradients = value_and_gradients(make(False, dropout, layers))
    again_loss, again_gradients = value_and_gradients(make(True, dropout, layers))
    assert torch.equal(loss, again_loss)
    for one, other in zip(gradients, again_gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


def test_dropout_does_matter_here() -> None:
    assert value_and_gradients(make(True, 0.3))[0] != value_and_gradients(make(True, 0.0))[0]


def test_less_is_kept_for_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    def counted(function: Callable[..., Tensor], *arguments: Tensor | bool, **options: bool) -> Tensor:
        for argument in arguments:  # these are kept too
            if isinstance(argument, Tensor):
                keep(argument)
        result: Tensor = checkpoint(function, *arguments, **options)  # type: ignore[arg-type]
        return result

    monkeypatch.setattr("saysee.models.attention.checkpoint", counted)
    totals = []
    for on in (False, True):
        kept = 0
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss_of(make(on, 0.1))
        totals.append(kept)
    assert totals[1] < totals[0] / 2, totals


def test_nothing_is_computed_twice_outside_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("checkpointed")

    model = make(True, 0.1)
    momentum = MomentumEncoder(model.speech_encoder, model.image_encoder).train()
    monkeypatch.setattr("saysee.models.attention.checkpoint", refuse)
    loss_of(model.eval())
    momentum(
        torch.randn(2, LAYERS, 4, SPEECH_DIM), torch.ones(2, 4, dtype=torch.bool), torch.randn(2, TOKENS, IMAGE_DIM)
    )
    with pytest.raises(AssertionError, match="checkpointed"):
        loss_of(model.train())
    model.use_activation_checkpointing(False)
    loss_of(model.train())


def test_a_model_without_matching_has_it_too() -> None:
    model = small_model(matching=False).train()
    model.use_activation_checkpointing(True)
    assert model.speech_encoder.activation_checkpointing
