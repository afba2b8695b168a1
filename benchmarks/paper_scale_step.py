"""One training step at the paper's scale, live and cached: time by part, memory, FLOP/s beside a matrix product's.

    python benchmarks/paper_scale_step.py                                         # CPU: 4 pairs, clips of 5 s
    python benchmarks/paper_scale_step.py --device cuda --batch 256 --steps 10    # GPU: Flickr8k-like lengths

HuBERT-large and BLIP-2's ViT-g/14 at full size with random weights in bfloat16, between them what the recipe trains,
and a full queue. `live` runs both encoders in every step; `cached` is given their outputs, as the store would give
them. Inputs are random numbers: decoding files and reading the store are not in the times (training does both in
another thread). What is timed is what training runs: `PairDataset.batch` on generated features, `Batch.to`,
`training_step`.

Flickr8k-like lengths are lognormal with a mean of 4.13 s (45.9 hours over 40,000 clips) and a sigma of 0.35, which is
ours: the published counts give no spread. They are batched by the trainer's own `BatchOrder` with the recipe's
buckets, and the timed batches are evenly spaced from the shortest to the longest. (`live` is batched in the same way;
training with live features does not know the lengths beforehand and pads more.)

Whole steps are timed first; then, over other steps, the parts, between which a GPU is waited for. FLOP are those of
matrix products and attention, counted by torch's FlopCounterMode beforehand (its count of one layer is checked against
a formula). The rival of `cached` is `live`; `cached, checkpointed` is the same with activation checkpointing.
"""

import argparse
import math
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

import saysee.training.step
from paper_scale_inputs import DTYPE, build, clip_seconds, generated_dataset, recipe, spread_batches
from record import keep
from saysee.config import Config
from saysee.data.dataset import PairDataset
from saysee.models.speech_encoder import SpeechLayer
from saysee.training.step import Learner, training_step
from saysee.training.trainer import autocast_for

SPOKEN_COCO = 567_000
"""SpokenCOCO's captions for training."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=4, help="pairs (default: 4)")
    parser.add_argument(
        "--seconds", type=float, help="of every clip (default: 5 on a CPU; on a GPU Flickr8k-like lengths)"
    )
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each kind (default: 3)")
    parser.add_argument("--recipe", default="flickr8k_c2f_large")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    device = torch.device(options.device)
    seconds = options.seconds or (5.0 if device.type == "cpu" else None)
    torch.manual_seed(options.seed)
    config = recipe(options.recipe, options.batch, options.seed)
    learner = build(config, device)
    lengths = clip_seconds(seconds, options.seed)
    kinds: dict[str, dict[str, Any]] = {}
    for kind in ("cached", "cached, checkpointed", "live"):
        learner.model.use_activation_checkpointing(kind == "cached, checkpointed")
        dataset = generated_dataset(learner.model, lengths, live=kind == "live")
        kinds[kind] = measure(learner, dataset, options.steps)
        report(kind, kinds[kind])
    sizes = config.model
    figures = {
        "recipe": options.recipe,
        "shape": {
            "pairs": options.batch,
            "width": sizes.width,
            "multimodal_layers": sizes.multimodal_layers,
            "embedding": sizes.embedding_dim,
            "queue": config.loss.queue_size,
            "speech_features": f"{learner.model.speech_backbone.num_layers} x {learner.model.speech_backbone.dim}",
            "image_tokens": f"{learner.model.image_backbone.num_tokens} x {learner.model.image_backbone.dim}",
        },
        "frozen_parameters": count(learner.model.speech_backbone) + count(learner.model.image_backbone),
        "trained_parameters": count(learner.model, trained=True),
        "fp32_matrix_product_gflop_per_second": round(matrix_product_rate(device, torch.float32) / 1e9, 1),
        "flop_counter_over_formula": round(check_of_the_counter(config, device), 4),
        "kinds": kinds,
        "live_over_cached": round(kinds["live"]["seconds_per_step"] / kinds["cached"]["seconds_per_step"], 2),
        "checkpointed_over_cached": round(
            kinds["cached, checkpointed"]["seconds_per_step"] / kinds["cached"]["seconds_per_step"], 2
        ),
    }
    what = f"clips of {seconds} s" if seconds else "Flickr8k-like lengths (lognormal, mean 4.13 s, sigma 0.35)"
    keep("paper_scale_step", data=f"random numbers, {what}; random weights", seed=options.seed, figures=figures)


class Clock:
    """Seconds and FLOP of the parts of a step, taken where training calls them.

    Args:
        device: waited for at the begin and end of each part.
        counter: of FLOP, if they are counted.
    """

    def __init__(self, device: torch.device, counter: FlopCounterMode | None = None) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.flop: dict[str, int] = defaultdict(int)
        self._device = device
        self._counter = counter
        self._inside = [(0.0, 0)]

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add what the block takes to a part, without the parts inside it."""
        before_seconds, before_flop = self._now()
        self._inside.append((0.0, 0))
        yield
        after_seconds, after_flop = self._now()
        seconds, flop = after_seconds - before_seconds, after_flop - before_flop
        inner_seconds, inner_flop = self._inside.pop()
        self.seconds[name] += seconds - inner_seconds
        self.flop[name] += flop - inner_flop
        outer_seconds, outer_flop = self._inside[-1]
        self._inside[-1] = outer_seconds + seconds, outer_flop + flop

    def _now(self) -> tuple[float, int]:
        wait(self._device)
        return time.perf_counter(), self._counter.get_total_flops() if self._counter else 0

    @contextmanager
    def watching(self, learner: Learner, dataset: PairDataset) -> Iterator[None]:
        """Watch all that is called in the block."""
        model, momentum, step = learner.model, learner.momentum, saysee.training.step
        places: list[tuple[Any, str, str]] = [
            (dataset.speech, "encode", "speech backbone"),
            (dataset.images, "encode", "image backbone"),
            (model.speech_encoder, "forward", "encoders"),
            (model.image_encoder, "forward", "encoders"),
            (momentum, "forward", "momentum forward"),
            (step, "sic_loss", "SIC"),
            (step, "draw_pairs", "SIM forward"),
            (model.multimodal_encoder, "match_pairs", "SIM forward"),
            (step, "sim_loss", "SIM forward"),
            (Tensor, "backward", "backward"),
            (torch.nn.utils, "clip_grad_norm_", "optimiser"),
            (learner.optimizer, "step", "optimiser"),
            (momentum, "update", "momentum update, enqueue"),
            (learner.queue, "enqueue", "momentum update, enqueue"),
        ]
        with ExitStack() as stack:
            for owner, name, part in places:
                if (original := getattr(owner, name, None)) is not None:
                    stack.enter_context(mock.patch.object(owner, name, self._watched(original, part)))
            yield

    def _watched(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def watched(*arguments: Any, **options: Any) -> Any:
            with self.part(part):
                return function(*arguments, **options)

        return watched


def measure(learner: Learner, dataset: PairDataset, steps: int) -> dict[str, Any]:
    """Count FLOP, time whole steps, then time their parts; returns the figures."""
    config, device = learner.model.config, learner.model.device
    autocast = autocast_for(config.training.precision, device)
    batches = spread_batches(dataset, config, steps)
    frames = [[dataset.speech.frames(Path(str(caption))) for caption in batch] for batch in batches]
    losses = []

    def take(step: int, clock: Clock | None = None) -> None:
        torch.manual_seed(step)
        with clock.part("batch") if clock else nullcontext():
            batch = dataset.batch(batches[step], torch.full((len(batches[step]),), 0.5)).to(device)
        with clock.part("other") if clock else nullcontext():
            losses.append(training_step(learner, [batch], step, config, dataset.image_tokens, autocast).loss)

    # every length once before anything is timed: a GPU chooses its kernels and takes its memory
    different = range(1 if len({max(lengths) for lengths in frames}) == 1 else steps)
    counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
    counted = Clock(device, counter)
    with counter, counted.watching(learner, dataset):
        for step in different:
            take(step, counted)
    flop = {part: value / len(different) for part, value in counted.flop.items()}

    rate = matrix_product_rate(device)
    reset_peak(device)
    seconds = []
    for step in range(steps):
        wait(device)
        started = time.perf_counter()
        take(step)
        wait(device)
        seconds.append(time.perf_counter() - started)
    peak = peak_gigabytes(device)

    clock = Clock(device)
    with clock.watching(learner, dataset):
        for step in range(steps):
            take(step, clock)
    rate = max(rate, matrix_product_rate(device))  # before and after, the machine may have had other work
    assert all(math.isfinite(loss) for loss in losses), losses

    pairs, whole = config.training.batch_size, statistics.mean(seconds)
    parted = sum(clock.seconds.values())
    longest = max(clock.seconds, key=lambda part: clock.seconds[part])
    return {
        "seconds_per_step": round(whole, 4),
        "seconds_of_steps": [round(value, 4) for value in seconds],
        "pairs_per_second": round(pairs / whole, 2),
        "minutes_per_spoken_coco_epoch_computed": round(SPOKEN_COCO / (pairs / whole) / 60, 1),
        "tflop_per_step": round(sum(flop.values()) / 1e12, 3),
        "achieved_gflop_per_second": round(sum(flop.values()) / whole / 1e9, 1),
        "matrix_product_gflop_per_second": round(rate / 1e9, 1),
        "share_of_matrix_product_rate": round(sum(flop.values()) / whole / rate, 3),
        "peak_gigabytes": round(peak, 2),
        "padding": round(1 - sum(map(sum, frames)) / sum(len(one) * max(one) for one in frames), 4),
        "longest_part": f"{longest}, {clock.seconds[longest] / parted:.0%} of the time",
        "parts": {
            part: {
                "seconds": round(clock.seconds[part] / steps, 4),
                "share_of_time": round(clock.seconds[part] / parted, 3),
                "tflop": round(flop.get(part, 0) / 1e12, 3),
                "share_of_matrix_product_rate": round(flop.get(part, 0) * steps / clock.seconds[part] / rate, 3),
            }
            for part in sorted(clock.seconds, key=lambda part: -clock.seconds[part])
        },
    }


def cpu_attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Count a CPU's fused attention, which torch's counter does not know."""
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def cpu_attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Count its gradient."""
    return int(sdpa_backward_flop_count(gradient, query, key, value))  # type: ignore[no-untyped-call]


CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: cpu_attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: cpu_attention_backward,
}


def check_of_the_counter(config: Config, device: torch.device) -> float:
    """Return counted over computed FLOP of one Transformer layer, forward, for 4 x 250 frames."""
    batch, frames, sizes = 4, 250, config.model
    layer = SpeechLayer(sizes).to(device)
    mask = torch.ones(batch, frames, dtype=torch.bool, device=device)
    mask[0, 100:] = False
    counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
    with counter, torch.no_grad(), torch.autocast(device.type, DTYPE):
        layer(torch.randn(batch, frames, sizes.width, device=device), mask)
    matrices = (4 + 2 * sizes.feedforward_ratio) * 2 * frames * sizes.width**2
    return counter.get_total_flops() / (batch * (matrices + 4 * frames**2 * sizes.width))


def matrix_product_rate(device: torch.device, dtype: torch.dtype = DTYPE) -> float:
    """Measure FLOP/s of a product of two matrices, the median of 20."""
    m, k, n = (4096, 1024, 4096) if device.type == "cpu" else (8192, 8192, 8192)
    a, b = torch.randn(m, k, device=device).to(dtype), torch.randn(k, n, device=device).to(dtype)
    seconds = []
    for _ in range(25):
        wait(device)
        started = time.perf_counter()
        a @ b
        wait(device)
        seconds.append(time.perf_counter() - started)
    return 2 * m * k * n / statistics.median(seconds[5:])


def wait(device: torch.device) -> None:
    """Wait until the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def reset_peak(device: torch.device) -> None:
    """Forget the peak of a GPU's memory; a process cannot forget its own."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_gigabytes(device: torch.device) -> float:
    """Return the peak of a GPU's memory, or of this process's since it began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def count(module: nn.Module, trained: bool = False) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad or not trained)


def report(kind: str, figures: dict[str, Any]) -> None:
    """Print one kind of step as it was measured."""
    print(
        f"\n{kind}: {figures['seconds_per_step']:.3f} s a step, {figures['pairs_per_second']:,} pairs/s, "
        f"{figures['achieved_gflop_per_second']:,} GFLOP/s ({figures['share_of_matrix_product_rate']:.0%} of a matrix "
        f"product's), {figures['peak_gigabytes']:.1f} GB at most; a SpokenCOCO epoch would take "
        f"{figures['minutes_per_spoken_coco_epoch_computed']:,} minutes (computed); longest: {figures['longest_part']}"
    )
    print(f"{'part':<26}{'seconds':>10}{'of time':>9}{'TFLOP':>9}{'of rate':>9}")
    for part, values in figures["parts"].items():
        print(
            f"{part:<26}{values['seconds']:>10.4f}{values['share_of_time']:>9.1%}{values['tflop']:>9.3f}"
            f"{values['share_of_matrix_product_rate']:>9.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
