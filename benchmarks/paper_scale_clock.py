"""How `paper_scale_step` measures: seconds and FLOP of a step's parts, steps with batches read ahead, rates, memory."""

import resource
import statistics
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

import saysee.training.step
from saysee.config import Config
from saysee.data.collate import Batch
from saysee.data.dataset import PairDataset
from saysee.models.speech_encoder import SpeechLayer
from saysee.training.step import Learner
from saysee.training.trainer import READ_AHEAD


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


def timed_steps(
    read: Callable[[int], Batch], compute: Callable[[Batch, int], None], steps: int, readers: int, device: torch.device
) -> tuple[list[float], list[float]]:
    """Take steps as the trainer does, with batches read ahead; returns seconds of each, and those of waiting for it.

    As many steps as are read ahead come first and do not count: their batches were read while nothing else was done.
    """
    seconds, waited = [], []
    with ThreadPoolExecutor(readers) as reader:
        ahead = deque(reader.submit(read, step) for step in range(READ_AHEAD))
        for step in range(READ_AHEAD + steps):
            begun = time.perf_counter()
            batch = ahead.popleft().result()
            waited.append(time.perf_counter() - begun)
            ahead.append(reader.submit(read, step + READ_AHEAD))
            compute(batch, step)
            wait(device)
            seconds.append(time.perf_counter() - begun)
        reader.shutdown(cancel_futures=True)
    return seconds[READ_AHEAD:], waited[READ_AHEAD:]


def bound_by(shares: dict[str, float], rates: dict[str, float], waiting: float) -> str:
    """Say in words what a step's time goes into. The bounds, a fifth and a half, are ours.

    Args:
        shares: of the time, by part.
        rates: FLOP/s of each part over those of a matrix product.
        waiting: share of a step that it waits for its batch.
    """
    if waiting > 0.2:
        return f"reading: a step waits {waiting:.0%} of its time for its batch"
    longest = max((part for part in shares if part != "reading"), key=lambda part: shares[part])
    if rates[longest] >= 0.5:
        return (
            f"matrix products of {longest}: {shares[longest]:.0%} of the time, at {rates[longest]:.0%} of the rate "
            "of a large one"
        )
    return (
        f"{longest}: {shares[longest]:.0%} of the time, at {rates[longest]:.0%} of the rate of a large matrix product, "
        "so by memory traffic and the starting of kernels"
    )


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


def check_of_the_counter(config: Config, device: torch.device, dtype: torch.dtype) -> float:
    """Return counted over computed FLOP of one Transformer layer, forward, for 4 x 250 frames."""
    batch, frames, sizes = 4, 250, config.model
    layer = SpeechLayer(sizes).to(device)
    mask = torch.ones(batch, frames, dtype=torch.bool, device=device)
    mask[0, 100:] = False
    counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
    with counter, torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype == torch.bfloat16):
        layer(torch.randn(batch, frames, sizes.width, device=device), mask)
    matrices = (4 + 2 * sizes.feedforward_ratio) * 2 * frames * sizes.width**2
    return counter.get_total_flops() / (batch * (matrices + 4 * frames**2 * sizes.width))


def matrix_product_rate(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """Measure FLOP/s of a product of two square matrices, the median of 20."""
    a, b = torch.randn(side, side, device=device).to(dtype), torch.randn(side, side, device=device).to(dtype)
    seconds = []
    for _ in range(25):
        wait(device)
        started = time.perf_counter()
        a @ b
        wait(device)
        seconds.append(time.perf_counter() - started)
    return 2 * side**3 / statistics.median(seconds[5:])


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
