"""One optimisation step: the parts are switched as configured, and state changes only where the step says so."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from saysee.data.collate import Batch
from saysee.data.sampler import mixed_seed, uniform_draws
from saysee.losses.contrastive import Keys
from saysee.losses.queue import MomentumQueue
from saysee.models.momentum import MomentumEncoder
from saysee.training.distributed import Ranks
from saysee.training.optimizer import build_optimizer
from saysee.training.step import JointLoss, Learner, Losses, Task, draw_pairs, training_step
from stubs import IMAGE_DIM, TOKENS, make_batch, small_model


def make_learner(**changes: Any) -> Learner:
    model = small_model(**changes)
    loss = model.config.loss
    momentum = MomentumEncoder(model.speech_encoder, model.image_encoder) if loss.uses_momentum else None
    queue = MomentumQueue(loss.queue_size, model.config.model.embedding_dim)
    return Learner(model, momentum, queue, build_optimizer(model, model.config.training))


def joint_loss(learner: Learner, batch: Batch, draws: Tensor) -> tuple[Losses, Keys]:
    """The loss of a batch, as a step computes it at alpha 0."""
    assert learner.momentum is not None
    slow = learner.momentum(batch.speech, batch.speech_mask, batch.image_tokens)
    task = Task(batch, batch.image_id, slow, Keys(slow[0], slow[1], batch.image_id), learner.queue, 0.0, True, draws)
    losses: tuple[Losses, Keys] = JointLoss(learner.model)(
        task, learner.model.config.loss, Ranks(), no_tokens, nullcontext
    )
    return losses


def no_tokens(_: Tensor) -> Tensor:
    raise AssertionError("no negative comes from the queue here")


def snapshot(learner: Learner) -> dict[str, Tensor]:
    state = {f"model.{name}": value.clone() for name, value in learner.model.state_dict().items()}
    if learner.momentum is not None:
        state |= {f"momentum.{name}": value.clone() for name, value in learner.momentum.state_dict().items()}
    return state | {f"queue.{name}": value.clone() for name, value in learner.queue.state_dict().items()}


def test_a_forward_pass_changes_no_state() -> None:
    learner = make_learner()
    before = snapshot(learner)
    learner.model.train()
    joint_loss(learner, make_batch([0, 1, 2, 3]), torch.rand(2, 4, dtype=torch.float64))
    after = snapshot(learner)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_step_updates_the_momentum_encoder_and_then_enqueues_its_old_embeddings() -> None:
    """The rows put in are those the step's own loss contrasted with: made before the momentum update."""
    learner = make_learner()
    batch = make_batch([5, 6, 7])
    assert learner.momentum is not None
    slow_speech, slow_image = learner.momentum(batch.speech, batch.speech_mask, batch.image_tokens)
    before = snapshot(learner)
    training_step(learner, [batch], 0, learner.model.config, no_tokens, nullcontext)
    assert len(learner.queue) == 3
    torch.testing.assert_close(learner.queue.speech[:3], slow_speech)
    torch.testing.assert_close(learner.queue.image[:3], slow_image)
    assert learner.queue.image_id[:3].tolist() == [5, 6, 7]
    fast = learner.model.speech_encoder.projection.weight
    expected = torch.lerp(before["momentum.speech_encoder.projection.weight"], fast.detach(), 1 - 0.995)
    torch.testing.assert_close(learner.momentum.speech_encoder.projection.weight, expected)


def test_frozen_backbones_stay_in_eval_mode_and_never_move() -> None:
    learner = make_learner()
    before = snapshot(learner)
    training_step(learner, [make_batch([0, 1])], 0, learner.model.config, no_tokens, nullcontext)
    assert learner.model.training
    assert not any(module.training for module in learner.model.speech_backbone.modules())
    assert not any(module.training for module in learner.model.image_backbone.modules())
    after = snapshot(learner)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not any("backbone" in name for name in changed)


def test_accumulated_gradients_are_the_mean_over_batches_and_all_rows_are_enqueued() -> None:
    """Accumulating two batches is one step on the mean of their losses, each with its own contrast."""
    accumulated, reference = make_learner(clip_norm=1e9), make_learner()
    batches = [make_batch([0, 1, 2, 3], seed=1), make_batch([4, 5, 6, 7], seed=2)]
    training_step(accumulated, batches, 0, accumulated.model.config, no_tokens, nullcontext)

    seed = mixed_seed(reference.model.config.training.seed, 1 << 40)
    total = torch.zeros(())
    for number, batch in enumerate(batches):
        draws = uniform_draws(seed, number, 8).view(2, 4)
        losses, _ = joint_loss(reference, batch, draws)
        total = total + losses.total / 2
    gradients = torch.autograd.grad(total, [reference.model.temperature, reference.model.speech_encoder.cls])
    torch.testing.assert_close(accumulated.model.temperature.grad, gradients[0])
    torch.testing.assert_close(accumulated.model.speech_encoder.cls.grad, gradients[1])
    assert len(accumulated.queue) == 8


def test_the_temperature_is_clamped() -> None:
    learner = make_learner(temperature_range=(0.0699, 0.0701), learning_rate=1.0, warmup_steps=0)
    training_step(learner, [make_batch([0, 1, 2])], 0, learner.model.config, no_tokens, nullcontext)
    assert learner.model.temperature.item() in (pytest.approx(0.0699), pytest.approx(0.0701))


def test_contrast_only_has_no_matching_no_momentum_and_no_queue() -> None:
    learner = make_learner(matching=False, queue_size=0, distillation_alpha=0.0, same_image="excluded")
    assert learner.momentum is None
    assert learner.model.multimodal_encoder is None
    report = training_step(learner, [make_batch([0, 1])], 0, learner.model.config, no_tokens, nullcontext)
    assert report.sim is None
    assert report.loss == report.sic
    assert len(learner.queue) == 0


def test_before_matching_begins_a_step_is_that_of_contrast_alone() -> None:
    """Then SIM is there, and the multimodal encoder moves; before, nothing of it does, not even by weight decay."""
    learner = make_learner(matching_from_step=1, weight_decay=0.1, warmup_steps=0)
    batch, encoder = make_batch([0, 1, 2, 3]), learner.model.require_multimodal_encoder()
    before = [parameter.detach().clone() for parameter in encoder.parameters()]
    alone = make_learner(matching=False, weight_decay=0.1, warmup_steps=0)
    state = {k: v for k, v in learner.model.trainable_state().items() if k in alone.model.trainable_state()}
    alone.model.load_trainable_state(state, "the same beginning")
    assert alone.momentum is not None
    alone.momentum.load_state_dict(learner.momentum.state_dict())  # type: ignore[union-attr]

    torch.manual_seed(0)
    report = training_step(learner, [batch], 0, learner.model.config, no_tokens, nullcontext)
    torch.manual_seed(0)
    expected = training_step(alone, [batch], 0, alone.model.config, no_tokens, nullcontext)
    assert report.sim is None
    assert report.loss == expected.loss
    assert all(torch.equal(old, new) for old, new in zip(before, encoder.parameters(), strict=True))
    for name, tensor in alone.model.trainable_state().items():
        assert torch.equal(learner.model.trainable_state()[name], tensor), name

    second = training_step(learner, [batch], 1, learner.model.config, no_tokens, nullcontext)
    assert second.sim is not None
    assert second.loss == pytest.approx(second.sic + second.sim)
    assert not all(torch.equal(old, new) for old, new in zip(before, encoder.parameters(), strict=True))


def test_a_batch_of_one_image_trains_on_positives_alone() -> None:
    """No negative exists: SIM is the mean of -log p(matched) of the three pairs, and nothing crashes."""
    learner = make_learner()
    model, batch = learner.model, make_batch([3, 3, 3])
    own = torch.arange(3)
    speech = model.speech_encoder(batch.speech, batch.speech_mask)
    hidden = model.image_encoder(batch.image_tokens).hidden
    logits = model.require_multimodal_encoder().match_pairs(speech.hidden, speech.mask, hidden, own, own)
    expected = -torch.sigmoid(logits).log().mean().item()
    report = training_step(learner, [batch], 0, model.config, no_tokens, nullcontext)
    assert report.sim == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("layers", [1, 2])
def test_as_a_list_each_side_is_to_find_its_own_among_the_whole_batch(layers: int) -> None:
    """Rows 0 and 2 show one image, so each has two right answers; scored pair by pair here."""
    learner = make_learner(matching_loss="list", multimodal_layers=layers)
    model, ids = learner.model, [4, 5, 4, 6]
    batch = make_batch(ids)
    speech = model.speech_encoder(batch.speech, batch.speech_mask)
    hidden = model.image_encoder(batch.image_tokens).hidden
    speech_row, image_row = torch.arange(4).repeat_interleave(4), torch.arange(4).repeat(4)
    logits = (
        model.require_multimodal_encoder()
        .match_pairs(speech.hidden, speech.mask, hidden, speech_row, image_row)
        .view(4, 4)
    )
    costs, hits = [], []
    for table in (logits, logits.T):
        for row, own in enumerate(ids):
            right = [column for column, other in enumerate(ids) if other == own]
            costs.append(-table[row].log_softmax(0)[right].mean())
            hits.append(int(table[row].argmax()) in right)
    losses, _ = joint_loss(learner, batch, torch.rand(2, 4, dtype=torch.float64))
    assert losses.sim is not None
    assert losses.matching_accuracy is not None
    expected = torch.stack(costs).mean()
    torch.testing.assert_close(losses.sim, expected.detach(), atol=1e-6, rtol=0)
    assert losses.matching_accuracy.item() == pytest.approx(sum(hits) / 8)
    weight = model.require_multimodal_encoder().head.weight
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, weight)[0] for loss in (losses.total, expected)), atol=1e-6, rtol=0
    )


def test_a_loss_that_is_not_finite_changes_nothing() -> None:
    learner = make_learner()
    before = snapshot(learner)
    batch = make_batch([0, 1])
    broken = batch._replace(speech=batch.speech * torch.nan)
    with pytest.raises(FloatingPointError, match="nan"):
        training_step(learner, [broken], 0, learner.model.config, no_tokens, nullcontext)
    after = snapshot(learner)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("source", ["batch", "queue"])
@pytest.mark.parametrize("how", ["hard", "random"])
def test_drawn_pairs_are_never_false_negatives(source: str, how: str) -> None:
    """Pairs behind the positives join different images, also where the picture's tokens are read again by id."""
    learner = make_learner(image_negatives_from=source, negatives=how, queue_size=12)
    model = learner.model
    asked: list[int] = []

    def tokens_of(number: int) -> Tensor:
        return torch.randn(TOKENS, IMAGE_DIM, generator=torch.Generator().manual_seed(number))

    def read_tokens(ids: Tensor) -> Tensor:
        asked.extend(ids.tolist())
        return torch.stack([tokens_of(number) for number in ids.tolist()])

    rows = torch.nn.functional.normalize(torch.randn(12, 8), dim=1)
    queue_ids = torch.tensor([0, 1, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29])
    learner.queue.enqueue(Keys(rows, rows, queue_ids))
    batch = make_batch([0, 0, 1, 2])
    for seed in range(20):
        torch.manual_seed(seed)
        speech = model.speech_encoder(batch.speech, batch.speech_mask)
        image = model.image_encoder(batch.image_tokens)
        keys = learner.queue.behind(Keys(speech.embedding, image.embedding, batch.image_id))
        draws = torch.rand(2, 4, dtype=torch.float64)
        task = Task(batch, batch.image_id, None, None, learner.queue, 0.0, True, draws)
        pairs = draw_pairs(
            JointLoss(model), speech, image, keys, task, model.config.loss, Ranks(), read_tokens, nullcontext
        )
        assert len(pairs.speech) == 12
        own = torch.arange(4)
        assert torch.equal(pairs.speech[:4], own)
        assert torch.equal(pairs.image[:4], own)
        for speech_row, image_row in zip(pairs.speech[4:].tolist(), pairs.image[4:].tolist(), strict=True):
            if image_row < 4:
                assert batch.image_id[speech_row] != batch.image_id[image_row]
            else:
                projected = pairs.image_hidden[image_row]
                drawn = [
                    number
                    for number in set(asked)
                    if torch.allclose(projected, model.image_encoder.project(tokens_of(number)), atol=1e-6)
                ]
                assert len(drawn) == 1
                assert drawn[0] != batch.image_id[speech_row]
    assert bool(asked) == (source == "queue")
    assert not set(asked) - set(queue_ids.tolist())
