"""One optimisation step, in reading order: L = L_SIC + L_SIM, backward, AdamW, momentum update, enqueue.

No state changes inside a forward pass: the momentum update and the enqueue are the last two lines of `training_step`.
With several processes each has its part of the batch's rows, and all contrast with the whole batch and one queue.

Shapes: B pairs of the whole batch, b of this process's part, N = B + filled queue, E embedding length, T frames with
[CLS], P image tokens, H width, M pairs that are matched.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from saysee.config import Config, LossConfig
from saysee.data.collate import Batch
from saysee.data.sampler import mixed_seed, uniform_draws
from saysee.losses.contrastive import Keys, contrastive_targets, distillation_alpha, list_cross_entropy, sic_loss
from saysee.losses.hard_negatives import draw_negatives
from saysee.losses.matching import sim_loss
from saysee.losses.queue import MomentumQueue
from saysee.models.image_encoder import ImageEncoding
from saysee.models.momentum import MomentumEncoder
from saysee.models.multimodal_encoder import MultimodalEncoder
from saysee.models.retrieval_model import SpeechImageModel
from saysee.models.speech_encoder import SpeechEncoding
from saysee.training.distributed import Ranks
from saysee.training.optimizer import learning_rate

ReadTokens = Callable[[Tensor], Tensor]
"""Image numbers (n,) -> their image tokens (n, P, D), for negatives that only the queue names."""

Autocast = Callable[[], AbstractContextManager[object]]

_NEGATIVES = 1 << 40  # names the random numbers of the negatives among all that a seed gives


@dataclass(frozen=True)
class Learner:
    """All that a step changes."""

    model: SpeechImageModel
    momentum: MomentumEncoder | None
    queue: MomentumQueue
    optimizer: torch.optim.Optimizer


class Losses(NamedTuple):
    """What a batch cost.

    Attributes:
        total: a scalar with gradient: this process's share, such that the mean over all processes is L.
        sic: of the whole batch, a scalar without gradient.
        sim: the same; None where SIM is not trained, or not yet.
        matching_accuracy: share of the whole batch's pairs on the right side of 0, or of its lists of which the right
            one is first; None with `sim`.
    """

    total: Tensor
    sic: Tensor
    sim: Tensor | None
    matching_accuracy: Tensor | None


class StepReport(NamedTuple):
    """What a step did, averaged over its accumulated batches; equal in all processes."""

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
    autocast: Autocast,
    ranks: Ranks = Ranks(),  # noqa: B008 - frozen
    parallel: DistributedDataParallel | None = None,
) -> StepReport:
    """Take optimisation step `step` (from 0) on one or more accumulated batches.

    Negatives are drawn by numbers that belong to seed, step and row. Dropout takes torch's random state, which is the
    caller's: seed it by the step, and a resumed run draws what an undisturbed one draws.

    Args:
        learner: what is changed.
        batches: this process's parts.
        step: decides learning rate, alpha and every draw.
        config: of the run.
        read_tokens: of pictures that only the queue names.
        autocast: the context in which encoders run.
        ranks: the processes that share the step.
        parallel: `JointLoss(learner.model)` wrapped, where there are several.

    Raises:
        FloatingPointError: the loss or the gradient is not finite, in any process; nothing has been changed then.
    """
    model, momentum, queue, optimizer = learner.model, learner.momentum, learner.queue, learner.optimizer
    objective = parallel or JointLoss(model)
    alpha = distillation_alpha(config.loss.distillation_alpha, step, config.loss.distillation_ramp_steps)
    matching = config.loss.matching and step >= config.loss.matching_from_step
    model.train()
    optimizer.zero_grad(set_to_none=True)

    seen: list[Keys] = []
    parts: list[Losses] = []
    for number, batch in enumerate(batches):
        count = int(ranks.total(torch.tensor(len(batch.image_id), device=model.device)))
        draws = uniform_draws(
            mixed_seed(config.training.seed, _NEGATIVES), step * len(batches) + number, 2 * count
        ).view(2, count)[:, ranks.part(count)]
        slow = None
        if momentum is not None:
            with autocast():
                slow = momentum(batch.speech, batch.speech_mask, batch.image_tokens)
        image_id = ranks.gather(batch.image_id, count)
        slow_keys = None if slow is None else Keys(ranks.gather(slow[0], count), ranks.gather(slow[1], count), image_id)
        last = number == len(batches) - 1
        # gradients are added up here, and exchanged once
        with parallel.no_sync() if parallel is not None and not last else nullcontext():
            losses, own_keys = objective(
                Task(batch, image_id, slow, slow_keys, queue, alpha, matching, draws.to(model.device)),
                config.loss,
                ranks,
                read_tokens,
                autocast,
            )
            (losses.total / len(batches)).backward()
        seen.append(own_keys)
        parts.append(losses)

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
    sic, sim = _mean([part.sic for part in parts]), _mean([part.sim for part in parts])
    assert sic is not None
    return StepReport(
        loss=sic + (sim or 0.0),
        sic=sic,
        sim=sim,
        matching_accuracy=_mean([part.matching_accuracy for part in parts]),
        temperature=model.temperature.item(),
        alpha=alpha,
        learning_rate=rate,
        gradient_norm=gradient_norm.item(),
    )


class Task(NamedTuple):
    """What the loss of a batch is computed of.

    Attributes:
        batch: this process's part, b pairs.
        image_id: of the whole batch (B,).
        slow: momentum embeddings of the part, speech and image (b, E); None without a momentum encoder.
        slow_keys: those of the whole batch (B, E).
        queue: of earlier batches.
        alpha: share of the momentum model's own softmax in the targets.
        matching: whether SIM has begun.
        draws: numbers in [0, 1) that decide each row's negative image and negative recording (2, b).
    """

    batch: Batch
    image_id: Tensor
    slow: tuple[Tensor, Tensor] | None
    slow_keys: Keys | None
    queue: MomentumQueue
    alpha: float
    matching: bool
    draws: Tensor


class JointLoss(nn.Module):
    """L = L_SIC + L_SIM as a module over the trainable parts, which is what DistributedDataParallel wraps.

    The frozen backbones are no part of it: they would be sent from process to process for nothing.
    """

    def __init__(self, model: SpeechImageModel) -> None:
        super().__init__()
        self.speech_encoder = model.speech_encoder
        self.image_encoder = model.image_encoder
        self.multimodal_encoder = model.multimodal_encoder
        self.temperature = model.temperature

    def forward(
        self, task: Task, config: LossConfig, ranks: Ranks, read_tokens: ReadTokens, autocast: Autocast
    ) -> tuple[Losses, Keys]:
        """Compute the losses, and the rows that the batch will put into the queue (B, detached).

        Without a momentum encoder the keys are the batch's own embeddings, and gradient flows into both sides of the
        contrast, as in SpeechCLIP.

        Raises:
            FloatingPointError: a loss is not finite, in any process.
        """
        batch, count = task.batch, len(task.image_id)
        with autocast():
            speech = self.speech_encoder(batch.speech, batch.speech_mask)
            image = self.image_encoder(batch.image_tokens)
        own_keys = task.slow_keys or Keys(
            ranks.gather_with_gradient(speech.embedding, count),
            ranks.gather_with_gradient(image.embedding, count),
            task.image_id,
        )
        keys = task.queue.behind(own_keys)
        sic = sic_loss(
            speech.embedding,
            image.embedding,
            batch.image_id,
            keys,
            self.temperature,
            first=ranks.part(count).start,
            same_image=config.same_image,
            alpha=task.alpha,
            momentum_speech=None if task.slow is None else task.slow[0],
            momentum_image=None if task.slow is None else task.slow[1],
        )
        share, whole_sic, _ = _over_ranks(sic, len(batch.image_id), ranks)
        _require_finite(whole_sic, "loss of SIC")  # before negatives are drawn from its similarities
        detached = Keys(*(part.detach() for part in own_keys))
        if not task.matching:
            return Losses(share, whole_sic, None, None), detached

        assert self.multimodal_encoder is not None, "a model that is trained with matching has one"
        if config.matching_loss == "list":
            sim, correct = match_lists(self.multimodal_encoder, speech, image, task, config, ranks, autocast)
            terms = len(batch.image_id)
        else:
            pairs = draw_pairs(self, speech, image, keys, task, config, ranks, read_tokens, autocast)
            with autocast():
                match_logit = self.multimodal_encoder.match_pairs(*pairs)
            positive, negative = match_logit[: len(batch.image_id)], match_logit[len(batch.image_id) :]
            sim, correct = sim_loss(positive, negative), torch.cat([positive > 0, negative < 0]).float().mean()
            terms = len(match_logit)
        sim_share, whole_sim, accuracy = _over_ranks(sim, terms, ranks, correct)
        _require_finite(whole_sim, "loss of SIM")
        return Losses(share + sim_share, whole_sic, whole_sim, accuracy), detached


def in_parallel(model: SpeechImageModel) -> DistributedDataParallel:
    """Wrap the joint loss of a model so that its gradients are those of all processes."""
    loss = model.config.loss
    # before SIM begins the multimodal encoder has no gradient, for which the others would wait
    late = loss.matching and loss.matching_from_step > 0
    return DistributedDataParallel(JointLoss(model), find_unused_parameters=late)


class Pairs(NamedTuple):
    """The M pairs of SIM, the b matched ones first, as `MultimodalEncoder.match_pairs` takes them.

    Attributes:
        speech_hidden: recordings (S, T, H).
        speech_mask: (S, T).
        image_hidden: projected tokens (I, P, H): the batch's pictures, then those that only the queue names.
        speech: which recording each pair has (M,).
        image: which row of `image_hidden` each pair has (M,).
    """

    speech_hidden: Tensor
    speech_mask: Tensor
    image_hidden: Tensor
    speech: Tensor
    image: Tensor


class Pool(NamedTuple):
    """What SIM joins a process's own pairs with: its part of the batch, or the whole of it. C candidates.

    Attributes:
        speech_hidden: (C, T, H), with gradient also into other processes.
        speech_mask: (C, T).
        image_hidden: (C, P, H), with gradient also into other processes.
        rows: which rows of the whole batch they are.
        first: which of them is the process's own first pair; its others follow.
    """

    speech_hidden: Tensor
    speech_mask: Tensor
    image_hidden: Tensor
    rows: slice
    first: int


def matching_pool(speech: SpeechEncoding, image: ImageEncoding, count: int, config: LossConfig, ranks: Ranks) -> Pool:
    """Return a process's part, or with `negatives_from_all_ranks` the whole batch of `count` pairs."""
    part = ranks.part(count)
    if not config.negatives_from_all_ranks or ranks.size == 1:
        return Pool(speech.hidden, speech.mask, image.hidden, part, 0)
    longest = ranks.maximum(speech.mask.shape[1], speech.mask.device)
    missing = longest - speech.mask.shape[1]
    return Pool(
        ranks.gather_with_gradient(F.pad(speech.hidden, (0, 0, 0, missing)), count),
        ranks.gather(F.pad(speech.mask, (0, missing)).to(torch.uint8), count).bool(),
        ranks.gather_with_gradient(image.hidden, count),
        slice(0, count),
        part.start,
    )


def match_lists(
    encoder: MultimodalEncoder,
    speech: SpeechEncoding,
    image: ImageEncoding,
    task: Task,
    config: LossConfig,
    ranks: Ranks,
    autocast: Autocast,
) -> tuple[Tensor, Tensor]:
    """Score each recording with all pictures of the pool, and each picture with all its recordings.

    Returns:
        The mean over both of the cross-entropy with SIC's targets, with gradient; and the share of lists of which what
        shows the own image is first.
    """
    pool = matching_pool(speech, image, len(task.image_id), config, ranks)
    own_id, pool_id = task.batch.image_id, task.image_id[pool.rows]
    with autocast():
        to_images = encoder.match_all(speech.hidden, speech.mask, pool.image_hidden)
        if len(own_id) == len(pool_id):
            to_speech = to_images.T
        else:
            to_speech = encoder.match_all(pool.speech_hidden, pool.speech_mask, image.hidden).T
    targets, excluded = contrastive_targets(own_id, pool_id, config.same_image, to_images.dtype, pool.first)
    lists = torch.cat([to_images, to_speech])
    best = pool_id[lists.detach().argmax(1)] == torch.cat([own_id, own_id])
    return list_cross_entropy(lists, targets.repeat(2, 1), excluded.repeat(2, 1)), best.float().mean()


def draw_pairs(
    parts: JointLoss,
    speech: SpeechEncoding,
    image: ImageEncoding,
    keys: Keys,
    task: Task,
    config: LossConfig,
    ranks: Ranks,
    read_tokens: ReadTokens,
    autocast: Autocast,
) -> Pairs:
    """Take each pair, one negative image for its recording and one negative recording for its image.

    Negative recordings come from the batch (the queue holds no frames). Negative images come from the batch, or from
    batch and queue: then the drawn entries' tokens are read again and projected with gradient. The batch is this
    process's part, or with `negatives_from_all_ranks` the whole of it.
    """
    batch, count = task.batch, len(task.image_id)
    speech_hidden, speech_mask, image_hidden, part, first = matching_pool(speech, image, count, config, ranks)
    own = first + torch.arange(len(batch.image_id), device=batch.image_id.device)
    pool = len(image_hidden)
    behind = count if config.image_negatives_from == "queue" else len(keys.image_id)

    with torch.no_grad():
        candidate_id = torch.cat([keys.image_id[part], keys.image_id[behind:]])
        candidate = torch.cat([keys.image[part], keys.image[behind:]])
        same = batch.image_id[:, None] == candidate_id[None, :]
        to_image = speech.embedding @ candidate.T / parts.temperature
        to_speech = image.embedding @ keys.speech[part].T / parts.temperature
    negative_image = draw_negatives(to_image, same, config.negatives, task.draws[0])
    negative_speech = draw_negatives(to_speech, same[:, :pool], config.negatives, task.draws[1])

    image_row = negative_image.column
    if config.image_negatives_from == "queue":
        # also where none is drawn: the processes' backward passes must exchange in one order, so their graphs are alike
        from_queue = negative_image.valid & (image_row >= pool)
        ids, row_of = candidate_id[image_row[from_queue]].unique(return_inverse=True)  # type: ignore[no-untyped-call]
        tokens = read_tokens(ids.cpu()).to(image_hidden.device) if len(ids) > 0 else batch.image_tokens[:0]
        with autocast():
            image_hidden = torch.cat([image_hidden, parts.image_encoder.project(tokens).to(image_hidden.dtype)])
        image_row = image_row.clone()
        image_row[from_queue] = pool + row_of

    speech_index = torch.cat([own, own[negative_image.valid], negative_speech.column[negative_speech.valid]])
    image_index = torch.cat([own, image_row[negative_image.valid], own[negative_speech.valid]])
    if len(own) < pool:  # of the whole batch, only what this process matches is computed further
        recordings, speech_index = speech_index.unique(return_inverse=True)  # type: ignore[no-untyped-call]
        pictures, image_index = image_index.unique(return_inverse=True)  # type: ignore[no-untyped-call]
        speech_hidden, speech_mask = speech_hidden[recordings], speech_mask[recordings]
        image_hidden = image_hidden[pictures]
    return Pairs(speech_hidden, speech_mask, image_hidden, speech_index, image_index)


def _over_ranks(
    mean: Tensor, terms: int, ranks: Ranks, besides: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Weigh this process's mean of some terms so that the mean over processes is the mean of all terms.

    Args:
        mean: of this process's terms, with gradient.
        terms: how many they are; processes may have different numbers.
        ranks: the processes.
        besides: another mean of the same terms, to be reported.

    Returns:
        The weighted mean, with gradient; the mean of all terms; that of `besides`.
    """
    values = [mean.new_tensor(1.0), mean, *([] if besides is None else [besides])]
    total = ranks.total(torch.stack([value.detach().float() * terms for value in values]))
    share = mean * (terms * ranks.size / total[0])
    return share, total[1] / total[0], None if besides is None else total[2] / total[0]


def _require_finite(value: Tensor, name: str) -> None:
    if not torch.isfinite(value):
        raise FloatingPointError(f"the {name} is {value.item()}")


def _mean(values: Sequence[Tensor | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(torch.stack(known).mean()) if known else None
