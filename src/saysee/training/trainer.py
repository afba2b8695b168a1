"""The training run: data order, steps, evaluations on dev, checkpoints; killed and started again it ends the same.

A run's folder is the model folder itself, holding the best model so far by the primary metric on dev, with the run's
own files below `training/`: `last.safetensors` (from which it goes on), `log.jsonl`, `tensorboard/`.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from saysee.config import Config
from saysee.data.collate import Batch
from saysee.data.dataset import PairDataset
from saysee.data.sampler import BatchOrder, mixed_seed, uniform_draws
from saysee.errors import SayseeError
from saysee.files import sole_process
from saysee.losses.queue import MomentumQueue
from saysee.models.model_folder import WEIGHTS_FILE
from saysee.models.momentum import MomentumEncoder
from saysee.models.retrieval_model import SpeechImageModel
from saysee.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from saysee.training.distributed import Ranks
from saysee.training.logging import RunLog
from saysee.training.optimizer import build_optimizer
from saysee.training.step import Learner, in_parallel, training_step

CHECKPOINT_FILE = "training/last.safetensors"
READ_AHEAD = 3
"""Steps whose batches are read before they are needed (ours)."""
READERS = 4
"""Threads that read them (ours); with live features one, for it runs the frozen encoders."""

# name the random numbers of these three among all that a seed gives
_CROPS, _DROPOUT, _ALTERATIONS = 1 << 41, 1 << 42, 1 << 43

Evaluate = Callable[[SpeechImageModel], Mapping[str, float]]
"""Measures a model on dev; returns metrics by name, the primary one among them."""


class TrainingError(SayseeError):
    """Training cannot go on; what was saved is kept."""


def build_learner(config: Config) -> Learner:
    """Make an untrained model with its momentum encoder, queue and optimiser, all decided by the seed."""
    torch.manual_seed(config.training.seed)
    model = SpeechImageModel.from_config(config)
    model.use_activation_checkpointing(config.training.activation_checkpointing)
    momentum = None
    if config.loss.uses_momentum:
        momentum = MomentumEncoder(model.speech_encoder, model.image_encoder)
    queue = MomentumQueue(config.loss.queue_size, config.model.embedding_dim)
    return Learner(model, momentum, queue, build_optimizer(model, config.training))


def train(
    learner: Learner,
    dataset: PairDataset,
    data_fingerprint: str,
    evaluate: Evaluate,
    out: Path,
    *,
    progress_bar: bool = False,
    ranks: Ranks = Ranks(),  # noqa: B008 - frozen
) -> Progress:
    """Train to the configured number of steps, going on from the checkpoint in `out` if there is one.

    Args:
        learner: from `build_learner`.
        dataset: the training captions with their features.
        data_fingerprint: identity of the data; a checkpoint of other data is refused.
        evaluate: measures dev, to choose the model that is kept.
        out: the model folder.
        progress_bar: whether to show loss parts, temperature and throughput on the terminal.
        ranks: the processes that share the run. The first one measures dev and writes; all must see the same `out`.

    Returns:
        The steps done, and which step's model is kept.

    Raises:
        TrainingError: a loss, gradient or weight that is not finite; names step, captions and the last checkpoint.
        SayseeError: `out` holds another run, or a model without a checkpoint, or another process trains into it; or an
            epoch has a batch with fewer captions than there are processes.
    """
    settings = learner.model.config.training
    order = BatchOrder(
        dataset.image_numbers,
        dataset.lengths if settings.bucket_batches > 1 else None,
        settings.batch_size,
        settings.seed,
        bucket_batches=settings.bucket_batches,
        one_caption_per_image=settings.one_caption_per_image,
    )
    if order.smallest_batch < ranks.size:
        raise SayseeError(
            f"an epoch has a batch of {order.smallest_batch} captions, and {ranks.size} processes are to share it; "
            f"change training.batch_size ({settings.batch_size}) or start fewer processes"
        )
    with ExitStack() as held:
        lock = sole_process(out / "training" / "lock", f"training into {out}")
        ranks.from_main(lambda: held.enter_context(lock))
        return _train(learner, dataset, order, data_fingerprint, evaluate, out, progress_bar, ranks)


def _train(
    learner: Learner,
    dataset: PairDataset,
    order: BatchOrder,
    data_fingerprint: str,
    evaluate: Evaluate,
    out: Path,
    progress_bar: bool,
    ranks: Ranks,
) -> Progress:
    config, model = learner.model.config, learner.model
    settings = config.training
    checkpoint = out / CHECKPOINT_FILE
    progress = Progress()
    resumed, taken = ranks.from_main(lambda: (checkpoint.exists(), (out / WEIGHTS_FILE).exists()))
    if resumed:
        progress = load_checkpoint(checkpoint, learner, config, data_fingerprint)
    elif taken:
        raise SayseeError(f"{out} already holds a model and no checkpoint to go on from; give another folder (--out)")
    ranks.barrier()  # all have read what the first is about to replace

    saved = progress.step
    autocast = autocast_for(settings.precision, model.device)
    log = RunLog(checkpoint.parent, progress.step if resumed else -1) if ranks.main else None
    measure = partial(_evaluate, evaluate, model, settings.primary_metric, log)
    save = partial(save_checkpoint, checkpoint, learner, config=config, data_fingerprint=data_fingerprint)
    if not resumed:
        # chance level, for the log; and a primary metric that does not exist is found before the first step
        ranks.from_main(partial(measure, 0))
        # from here on there is a checkpoint wherever there is a model
        ranks.from_main(partial(save, progress))
    parallel = None
    if ranks.size > 1:
        parallel = in_parallel(model)

    with ExitStack() as open_things:
        reader = ThreadPoolExecutor(1 if settings.live_features else READERS)
        open_things.callback(reader.shutdown, cancel_futures=True)
        bar = open_things.enter_context(
            tqdm(total=settings.steps, initial=progress.step, unit="step", disable=None if progress_bar else True)
        )

        def start_reading(step: int) -> list[tuple[list[int], Future[Batch]]]:
            # the order is asked in this thread alone: it keeps one epoch at a time
            positions = range(step * settings.accumulate, (step + 1) * settings.accumulate)
            whole = [(position, order[position]) for position in positions]
            return [
                (indices, reader.submit(_read_part, dataset, indices, settings.seed, position, ranks))
                for position, indices in whole
            ]

        # the batches of the next steps are read while a step is computed
        ahead = range(progress.step, min(progress.step + READ_AHEAD, settings.steps))
        upcoming = deque(start_reading(step) for step in ahead)
        for step in range(progress.step, settings.steps):
            started = time.perf_counter()
            wholes, parts = zip(*upcoming.popleft(), strict=True)
            indices = [index for whole in wholes for index in whole]
            batches = [part.result().to(model.device) for part in parts]
            if step + READ_AHEAD < settings.steps:
                upcoming.append(start_reading(step + READ_AHEAD))
            # what is left to torch's own random state is dropout, which no two processes share
            torch.manual_seed(mixed_seed(mixed_seed(settings.seed, _DROPOUT + ranks.rank), step))
            done = step + 1
            last = done == settings.steps
            evaluate_now = done % settings.evaluate_every == 0 or last
            save_now = done % settings.checkpoint_every == 0 or last
            try:
                report = training_step(learner, batches, step, config, dataset.image_tokens, autocast, ranks, parallel)
                if evaluate_now or save_now:
                    _require_finite_weights(model)
            except FloatingPointError as error:
                if log is not None:
                    log.close()
                ids = [dataset.captions[index].id for index in indices]
                raise TrainingError(_not_finite(error, done, ids, checkpoint, saved)) from None
            pairs_per_second = len(indices) / (time.perf_counter() - started)
            if log is not None:
                log.write(done, "train", {**report._asdict(), "pairs_per_second": pairs_per_second})
            bar.set_postfix_str(
                f"loss {report.loss:.3f} = sic {report.sic:.3f}"
                + (f" + sim {report.sim:.3f}" if report.sim is not None else "")
                + f", temperature {report.temperature:.3f}, {pairs_per_second:.0f} pairs/s",
                refresh=False,
            )
            bar.update()

            if evaluate_now:
                metric = ranks.from_main(partial(measure, done))
                if metric > progress.best_metric:
                    progress = Progress(done, done, metric)
                    ranks.from_main(partial(model.save_pretrained, out))
            progress = Progress(done, progress.best_step, progress.best_metric)
            if save_now:
                ranks.from_main(partial(save, progress))
                saved = done
    if log is not None:
        log.close()
    ranks.barrier()
    return progress


def _read_part(dataset: PairDataset, indices: Sequence[int], seed: int, position: int, ranks: Ranks) -> Batch:
    """Read this process's part of the batch at a position of the order."""
    part = ranks.part(len(indices))
    crops, alterations = (
        uniform_draws(mixed_seed(seed, what), position, len(indices))[part] for what in (_CROPS, _ALTERATIONS)
    )
    return dataset.batch(indices[part], crops, alterations)


def autocast_for(precision: str, device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """Return the context in which encoders run: bfloat16 autocast, or nothing.

    `auto` takes bfloat16 where it is multiplied natively: GPUs that say so, and CPUs with AVX-512-BF16 or AMX.
    """
    if precision == "auto":
        native = (
            torch.cuda.is_bf16_supported(including_emulation=False)
            if device.type == "cuda"
            else torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        )
        precision = "bf16" if native else "fp32"
    if precision == "fp32":
        return nullcontext
    return partial(torch.autocast, device.type, dtype=torch.bfloat16)


def _evaluate(evaluate: Evaluate, model: SpeechImageModel, name: str, log: RunLog | None, step: int) -> float:
    model.eval()
    metrics = evaluate(model)
    if name not in metrics or name.endswith("median_rank"):
        allowed = ", ".join(sorted(metric for metric in metrics if not metric.endswith("median_rank")))
        raise SayseeError(f"training.primary_metric is {name!r}; allowed here: {allowed}. Change the config.")
    if log is not None:
        log.write(step, "dev", metrics)
    return metrics[name]


def _require_finite_weights(model: SpeechImageModel) -> None:
    """Raise FloatingPointError where a step has broken the weights, before they are measured or saved."""
    for name, tensor in model.trainable_state().items():
        if not tensor.isfinite().all():
            raise FloatingPointError(f"{name} is no longer finite")


def _not_finite(error: FloatingPointError, step: int, ids: list[str], checkpoint: Path, saved: int) -> str:
    return (
        f"{error} at step {step}; lower training.learning_rate or look at the captions of this step. The last good "
        f"checkpoint is {checkpoint}, after step {saved}. The captions: {', '.join(ids)}"
    )
