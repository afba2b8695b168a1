"""One optimisation step, in reading order: L = L_SIC + L_SIM, backward, AdamW, momentum update, enqueue.

No state changes inside a forward pass: the momentum update and the enqueue are the last two lines of `training_step`.

Shapes: B pairs, N = B + filled queue, E embedding length, M pairs that are matched.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from saysee.config import Config, LossConfig
from saysee.data.collate import Batch
from saysee.losses.contrastive import Keys, distillation_alpha, sic_loss
from saysee.losses.hard_negatives import draw_negatives
from saysee.losses.matching import sim_loss
from saysee.losses.queue import MomentumQueue
from saysee.models.image_encoder import ImageEncoding
from saysee.models.momentum import MomentumEncoder
from saysee.models.retrieval_model import SpeechImageModel
from saysee.models.speech_encoder import SpeechEncoding
from saysee.training.optimizer import learning_rate

ReadTokens = Callable[[Tensor], Tensor]
"""Image numbers (n,) -> their image tokens (n, P, D), for negatives that only the queue names."""


@dataclass(frozen=True)
class Learner:
    """All that a step changes."""

    model: SpeechImageModel
    momentum: MomentumEncoder | None
    queue: MomentumQueue
    optimizer: torch.optim.Optimizer


class Losses(NamedTuple):
    """What a batch cost; scalars. `sim` and `matching_accuracy` are None without the matching task."""

    total: Tensor
    sic: Tensor
    sim: Tensor | None
    matching_accuracy: Tensor | None


class StepReport(NamedTuple):
    """What a step did, averaged over its accumulated batches."""

    loss: float
    sic: float
    sim: float | None
    matching_accuracy: float | None
    temperature: float
    alpha: float
    learning_rate: float
    gradient_norm: float


def training_step(
    learner: Learner,
    batches: Sequence[Batch],
    step: int,
    config: Config,
    read_tokens: ReadTokens,
    autocast: Callable[[], AbstractContextManager[object]],
) -> StepReport:
    """Take optimisation step `step` (from 0) on one or more accumulated batches.

    The random state is the caller's: seed it by the step, and a resumed run draws what an undisturbed one draws.

    Raises:
        FloatingPointError: the loss or the gradient is not finite; nothing has been changed then.
    """
    model, momentum, queue, optimizer = learner.model, learner.momentum, learner.queue, learner.optimizer
    alpha = distillation_alpha(config.loss.distillation_alpha, step, config.loss.distillation_ramp_steps)
    model.train()
    optimizer.zero_grad(set_to_none=True)

    seen: list[Keys] = []
    parts: list[Losses] = []
    for batch in batches:
        losses, own_keys = joint_loss(model, momentum, queue, batch, config.loss, alpha, read_tokens, autocast)
        (losses.total / len(batches)).backward()  # type: ignore[no-untyped-call]
        seen.append(own_keys)
        parts.append(Losses(*(None if part is None else part.detach() for part in losses)))  # type: ignore[arg-type]

    gradient_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.training.clip_norm)
    _require_finite(gradient_norm, "norm of the gradient")
    rate = learning_rate(config.training, step)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()

    with torch.no_grad():
        model.temperature.clamp_(*config.model.temperature_range)
    if momentum is not None:
        momentum.update(model.speech_encoder, model.image_encoder, config.loss.momentum)
    for own_keys in seen:
        queue.enqueue(own_keys)
    return StepReport(
        loss=_mean([part.total for part in parts]),
        sic=_mean([part.sic for part in parts]),
        sim=_mean([part.sim for part in parts]) if config.loss.matching else None,
        matching_accuracy=_mean([part.matching_accuracy for part in parts]) if config.loss.matching else None,
        temperature=model.temperature.item(),
        alpha=alpha,
        learning_rate=rate,
        gradient_norm=gradient_norm.item(),
    )


def joint_loss(
    model: SpeechImageModel,
    momentum: MomentumEncoder | None,
    queue: MomentumQueue,
    batch: Batch,
    config: LossConfig,
    alpha: float,
    read_tokens: ReadTokens,
    autocast: Callable[[], AbstractContextManager[object]],
) -> tuple[Losses, Keys]:
    """Compute L = L_SIC + L_SIM of one batch, and the rows that it will put into the queue.

    Without a momentum encoder the keys are the batch's own embeddings, and gradient flows into both sides of the
    contrast, as in SpeechCLIP.

    Raises:
        FloatingPointError: a loss is not finite.
    """
    with autocast():
        speech = model.speech_encoder(batch.speech, batch.speech_mask)
        image = model.image_encoder(batch.image_tokens)
        slow_speech = slow_image = None
        if momentum is not None:
            slow_speech, slow_image = momentum(batch.speech, batch.speech_mask, batch.image_tokens)
    if slow_speech is None or slow_image is None:
        own_keys = Keys(speech.embedding, image.embedding, batch.image_id)
    else:
        own_keys = Keys(slow_speech, slow_image, batch.image_id)
    keys = queue.behind(own_keys)

    sic = sic_loss(
        speech.embedding,
        image.embedding,
        batch.image_id,
        keys,
        model.temperature,
        same_image=config.same_image,
        alpha=alpha,
        momentum_speech=slow_speech,
        momentum_image=slow_image,
    )
    _require_finite(sic, "loss of SIC")  # before negatives are drawn from its similarities
    if not config.matching:
        return Losses(sic, sic, None, None), own_keys

    encoder = model.require_multimodal_encoder()
    pairs = draw_pairs(model, speech, image, keys, batch, config, read_tokens, autocast)
    with autocast():
        match_logit = encoder.match_pairs(speech.hidden, speech.mask, pairs.image_hidden, pairs.speech, pairs.image)
    count = len(batch.image_id)
    sim = sim_loss(match_logit[:count], match_logit[count:])
    _require_finite(sim, "loss of SIM")
    accuracy = torch.cat([match_logit[:count] > 0, match_logit[count:] < 0]).float().mean()
    return Losses(sic + sim, sic, sim, accuracy), own_keys


class Pairs(NamedTuple):
    """The M pairs of SIM, the B matched ones first.

    Attributes:
        image_hidden: projected tokens (I, P, H): the batch's own pictures, then those that only the queue names.
        speech: which recording each pair has (M,).
        image: which row of `image_hidden` each pair has (M,).
    """

    image_hidden: Tensor
    speech: Tensor
    image: Tensor


def draw_pairs(
    model: SpeechImageModel,
    speech: SpeechEncoding,
    image: ImageEncoding,
    keys: Keys,
    batch: Batch,
    config: LossConfig,
    read_tokens: ReadTokens,
    autocast: Callable[[], AbstractContextManager[object]],
) -> Pairs:
    """Take each pair, one negative image for its recording and one negative recording for its image.

    Negative recordings come from the batch (the queue holds no frames). Negative images come from the batch, or from
    batch and queue: then the drawn entries' tokens are read again and projected with gradient.
    """
    count = len(batch.image_id)
    candidates = len(keys.image_id) if config.image_negatives_from == "queue" else count
    with torch.no_grad():
        same = batch.image_id[:, None] == keys.image_id[None, :candidates]
        to_image = speech.embedding @ keys.image[:candidates].T / model.temperature
        to_speech = image.embedding @ keys.speech[:count].T / model.temperature
    negative_image = draw_negatives(to_image, same, config.negatives)
    negative_speech = draw_negatives(to_speech, same[:, :count], config.negatives)

    image_hidden, image_row = image.hidden, negative_image.column
    from_queue = negative_image.valid & (image_row >= count)
    if from_queue.any():
        ids, row_of = keys.image_id[image_row[from_queue]].unique(return_inverse=True)  # type: ignore[no-untyped-call]
        tokens = read_tokens(ids.cpu()).to(image_hidden.device)
        with autocast():
            image_hidden = torch.cat([image_hidden, model.image_encoder.project(tokens).to(image_hidden.dtype)])
        image_row = image_row.clone()
        image_row[from_queue] = count + row_of

    own = torch.arange(count, device=image_row.device)
    return Pairs(
        image_hidden,
        torch.cat([own, own[negative_image.valid], negative_speech.column[negative_speech.valid]]),
        torch.cat([own, image_row[negative_image.valid], own[negative_speech.valid]]),
    )


def _require_finite(value: Tensor, name: str) -> None:
    if not torch.isfinite(value):
        raise FloatingPointError(f"the {name} is {value.item()}")


def _mean(values: Sequence[Tensor | None]) -> float:
    return float(torch.stack([value for value in values if value is not None]).mean())
