"""One training step at the paper's scale, live and cached: time by part, memory, FLOP/s beside a matrix product's.

    python benchmarks/paper_scale_step.py                                         # CPU: 4 pairs, clips of 5 s
    python benchmarks/paper_scale_step.py --lengths flickr8k                      # CPU: Flickr8k-like lengths
    python benchmarks/paper_scale_step.py --device cuda --batch 256 --steps 10    # GPU: Flickr8k-like lengths
    python benchmarks/paper_scale_step.py --small                                 # seconds: whether it runs at all

HuBERT-large and BLIP-2's ViT-g/14 at full size with random weights, between them what the recipe trains, and a full
queue. `live` runs both encoders in every step; `cached` is given their outputs, as the store would give them. Inputs
are random numbers: decoding files and reading the disk are not in the times. What is timed is what training runs:
`PairDataset.batch` on generated features, `Batch.to`, `training_step`. All of it is in bfloat16 where the processor or
GPU multiplies that natively, else in float32 (`--precision`).

Flickr8k-like lengths are lognormal with a mean of 4.13 s (45.9 hours over 40,000 clips) and a sigma of 0.35, which is
ours: the published counts give no spread. They are batched by the trainer's own `BatchOrder` with the recipe's
buckets, and the timed batches are evenly spaced from the shortest to the longest. (`live` is batched in the same way;
training with live features does not know the lengths beforehand and pads more.)

Whole steps are timed first, with batches read ahead by as many threads as in training, from when what was read before
the clock ran is used up: what a step then waits for its batch is said apart. (With live features the encoders run in
the thread that reads.) Then, over other steps, the parts are timed in one thread, between which a GPU is waited for.
FLOP are those of matrix products and attention, counted by torch's FlopCounterMode beforehand (its count of one layer
is checked against a formula). The rival of `cached` is `live`; `cached, checkpointed` is the same with activation
checkpointing. The record is named after the device, so that one of a GPU stands beside that of the CPU.
"""

import argparse
import math
import re
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from paper_scale_clock import (
    CPU_ATTENTION,
    Clock,
    bound_by,
    check_of_the_counter,
    matrix_product_rate,
    peak_gigabytes,
    reset_peak,
    timed_steps,
)
from paper_scale_inputs import CAPTIONS, DTYPES, build, clip_seconds, generated_dataset, recipe, spread_batches
from record import keep
from saysee.data.collate import Batch
from saysee.data.dataset import PairDataset
from saysee.training.step import Learner, training_step
from saysee.training.trainer import READERS, autocast_for

SPOKEN_COCO = 567_000
"""SpokenCOCO's captions for training."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=4, help="pairs (default: 4)")
    lengths = parser.add_mutually_exclusive_group()
    lengths.add_argument("--seconds", type=float, help="of every clip (default: 5 on a CPU)")
    lengths.add_argument("--lengths", choices=["flickr8k"], help="of the clips, after a corpus (default: on a GPU)")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each kind (default: 3)")
    parser.add_argument("--recipe", default="flickr8k_c2f_large")
    parser.add_argument("--precision", choices=["auto", *DTYPES], default="auto", help="(default: auto, see above)")
    parser.add_argument("--small", action="store_true", help="small encoders: a trial, whose figures say nothing")
    parser.add_argument("--name", help="of the record (default: paper_scale_step, on a GPU with its name behind it)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    device = torch.device(options.device)
    native = autocast_for("auto", device) is not nullcontext
    precision = ("bf16" if native else "fp32") if options.precision == "auto" else options.precision
    dtype = DTYPES[precision]
    # on a CPU small enough for one that only imitates bfloat16, where a product takes fifty times as long
    side = 256 if options.small else 1024 if device.type == "cpu" else 8192
    fixed = device.type == "cpu" and options.lengths is None
    seconds = options.seconds or (5.0 if fixed else None)
    torch.manual_seed(options.seed)
    config = recipe(options.recipe, options.batch, options.seed, precision, options.small)
    learner = build(config, device, options.small)
    clips = clip_seconds(seconds, options.seed, CAPTIONS // 10 if options.small else CAPTIONS)
    kinds: dict[str, dict[str, Any]] = {}
    for kind in ("cached", "cached, checkpointed", "live"):
        learner.model.use_activation_checkpointing(kind == "cached, checkpointed")
        dataset = generated_dataset(learner.model, clips, live=kind == "live")
        kinds[kind] = measure(learner, dataset, options.steps, lambda: matrix_product_rate(device, dtype, side))
        report(kind, kinds[kind])
    sizes = config.model
    figures = {
        "recipe": options.recipe,
        "shape": {
            "pairs": options.batch,
            "precision": precision,
            "width": sizes.width,
            "multimodal_layers": sizes.multimodal_layers,
            "embedding": sizes.embedding_dim,
            "queue": config.loss.queue_size,
            "speech_features": f"{learner.model.speech_backbone.num_layers} x {learner.model.speech_backbone.dim}",
            "image_tokens": f"{learner.model.image_backbone.num_tokens} x {learner.model.image_backbone.dim}",
        },
        "frozen_parameters": count(learner.model.speech_backbone) + count(learner.model.image_backbone),
        "trained_parameters": count(learner.model, trained=True),
        "fp32_matrix_product_gflop_per_second": round(matrix_product_rate(device, torch.float32, side) / 1e9, 1),
        "flop_counter_over_formula": round(check_of_the_counter(config, device, dtype), 4),
        "kinds": kinds,
        "live_over_cached": round(kinds["live"]["seconds_per_step"] / kinds["cached"]["seconds_per_step"], 2),
        "checkpointed_over_cached": round(
            kinds["cached, checkpointed"]["seconds_per_step"] / kinds["cached"]["seconds_per_step"], 2
        ),
    }
    what = f"clips of {seconds} s" if seconds else "Flickr8k-like lengths (lognormal, mean 4.13 s, sigma 0.35)"
    name = options.name or record_name(device, options.small)
    keep(name, data=f"random numbers, {what}; random weights", seed=options.seed, figures=figures)


def record_name(device: torch.device, small: bool) -> str:
    """Return `paper_scale_step`, and behind it what tells a GPU (h200) or a trial (small)."""
    parts = ["paper_scale_step"]
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device).lower()
        model = re.search(r"[a-z]*\d+\w*", name)  # of "NVIDIA H100 80GB HBM3" h100
        parts.append(model[0] if model else re.sub(r"\W+", "_", name))
    return "_".join([*parts, *(["small"] if small else [])])


def measure(learner: Learner, dataset: PairDataset, steps: int, product_rate: Callable[[], float]) -> dict[str, Any]:
    """Count FLOP, time whole steps, then time their parts; returns the figures, beside the rate of a matrix product."""
    config, device = learner.model.config, learner.model.device
    autocast = autocast_for(config.training.precision, device)
    batches = spread_batches(dataset, config, steps)
    frames = [[dataset.speech.frames(Path(str(caption))) for caption in batch] for batch in batches]
    losses = []

    def read(step: int) -> Batch:
        batch = batches[step % steps]
        return dataset.batch(batch, torch.full((len(batch),), 0.5))

    def compute(batch: Batch, step: int) -> None:
        torch.manual_seed(step)
        moved = [batch.to(device)]
        losses.append(training_step(learner, moved, step, config, dataset.image_tokens, autocast).loss)

    def take(step: int, clock: Clock) -> None:
        with clock.part("reading"):
            batch = read(step)
        with clock.part("other"):
            compute(batch, step)

    # every length once before anything is timed: a GPU chooses its kernels and takes its memory
    different = range(1 if len({max(lengths) for lengths in frames}) == 1 else steps)
    counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
    counted = Clock(device, counter)
    with counter, counted.watching(learner, dataset):
        for step in different:
            take(step, counted)
    flop = {part: value / len(different) for part, value in counted.flop.items()}

    rate = product_rate()
    reset_peak(device)
    live = getattr(dataset.images, "encode", None) is not None
    seconds, waited = timed_steps(read, compute, steps, 1 if live else READERS, device)
    peak = peak_gigabytes(device)

    clock = Clock(device)
    with clock.watching(learner, dataset):
        for step in range(steps):
            take(step, clock)
    rate = max(rate, product_rate())  # before and after, the machine may have had other work
    assert all(math.isfinite(loss) for loss in losses), losses

    pairs, whole = config.training.batch_size, statistics.mean(seconds)
    waiting, parted = statistics.mean(waited), sum(clock.seconds.values())
    shares = {part: value / parted for part, value in clock.seconds.items()}
    rates = {part: flop.get(part, 0) * steps / value / rate for part, value in clock.seconds.items()}
    return {
        "seconds_per_step": round(whole, 4),
        "seconds_of_steps": [round(value, 4) for value in seconds],
        "seconds_waiting_for_the_batch": round(waiting, 4),
        "pairs_per_second": round(pairs / whole, 2),
        "pairs_per_second_without_waiting": round(pairs / (whole - waiting), 2),
        "minutes_per_spoken_coco_epoch_computed": round(SPOKEN_COCO / (pairs / whole) / 60, 1),
        "tflop_per_step": round(sum(flop.values()) / 1e12, 6),
        "achieved_gflop_per_second": round(sum(flop.values()) / whole / 1e9, 1),
        "matrix_product_gflop_per_second": round(rate / 1e9, 1),
        "share_of_matrix_product_rate": round(sum(flop.values()) / whole / rate, 3),
        "peak_gigabytes": round(peak, 2),
        "padding": round(1 - sum(map(sum, frames)) / sum(len(one) * max(one) for one in frames), 4),
        "bound_by": bound_by(shares, rates, 0.0 if live else waiting / whole),
        "parts": {
            part: {
                "seconds": round(clock.seconds[part] / steps, 4),
                "share_of_time": round(shares[part], 3),
                "tflop": round(flop.get(part, 0) / 1e12, 6),
                "share_of_matrix_product_rate": round(rates[part], 3),
            }
            for part in sorted(shares, key=lambda part: -shares[part])
        },
    }


def count(module: nn.Module, trained: bool = False) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad or not trained)


def report(kind: str, figures: dict[str, Any]) -> None:
    """Print one kind of step as it was measured."""
    print(
        f"\n{kind}: {figures['seconds_per_step']:.3f} s a step, {figures['pairs_per_second']:,} pairs/s, "
        f"{figures['achieved_gflop_per_second']:,} GFLOP/s ({figures['share_of_matrix_product_rate']:.0%} of a matrix "
        f"product's), {figures['peak_gigabytes']:.1f} GB at most; a SpokenCOCO epoch would take "
        f"{figures['minutes_per_spoken_coco_epoch_computed']:,} minutes (computed, where 10 are the aim of cached "
        f"features); {figures['seconds_waiting_for_the_batch']:.4f} s of it waiting; bound by {figures['bound_by']}"
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
