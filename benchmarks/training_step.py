"""One optimisation step of the full method on cached features, beside the same mathematics with nothing shared.

    python benchmarks/training_step.py

64 pairs of 90 speech frames and 50 image tokens at width 256: a speech encoder of one layer, two multimodal layers, a
full queue of 1,024, distillation, hard negatives. Features are random numbers in the bundled encoders' shapes (7 x 512
a frame, 1280 a token). The rival, `nothing shared`, runs the same layers on 192 separate pairs: every pair projects its
own picture, repeats its recording's first self-attention, and computes every row of the last layer, of which only
[CLS] is read; its dropout is torch's. Both are timed in turn, A B A B, and the ratio is taken pair by pair.
"""

import argparse
import statistics
import time
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import Tensor, nn

from record import keep, matrix_product_rate
from saysee.config import Config, LossConfig, ModelConfig, TrainingConfig
from saysee.data.collate import Batch
from saysee.losses.contrastive import Keys
from saysee.losses.queue import MomentumQueue
from saysee.models.attention import Dropout
from saysee.models.momentum import MomentumEncoder
from saysee.models.multimodal_encoder import MultimodalEncoder, MultimodalLayer
from saysee.models.retrieval_model import SpeechImageModel
from saysee.training.optimizer import build_optimizer
from saysee.training.step import Learner, training_step
from saysee.training.trainer import autocast_for

PAIRS, FRAMES, TOKENS = 64, 90, 50


class NothingShared(MultimodalEncoder):
    """Scores every pair by itself."""

    def match_pairs(
        self,
        speech_hidden: Tensor,
        speech_mask: Tensor,
        image_hidden: Tensor,
        speech_index: Tensor,
        image_index: Tensor,
    ) -> Tensor:
        """Score M pairs, each from its own copies of both sides."""
        x, mask, image = speech_hidden[speech_index], speech_mask[speech_index], image_hidden[image_index]
        for layer in self.layers:
            assert isinstance(layer, MultimodalLayer)
            x = layer.attend_to_speech(x, mask, only_cls=False)
            x = layer.attend_to_image(x, layer.ask(x), *layer.cross_attention.project_keys(image))
        not_matched, matched = self.head(self.output_norm(x[:, 0])).float().unbind(-1)
        return torch.sub(matched, not_matched)


def build(config: Config, seed: int, shared: bool) -> Learner:
    torch.manual_seed(seed)
    model = SpeechImageModel.from_config(config)
    if not shared:
        rival = NothingShared(config.model)
        rival.load_state_dict(model.require_multimodal_encoder().state_dict())
        model.multimodal_encoder = rival
        replace_dropout(model)
    momentum = MomentumEncoder(model.speech_encoder, model.image_encoder)
    queue = MomentumQueue(config.loss.queue_size, config.model.embedding_dim)
    rows = torch.nn.functional.normalize(torch.randn(config.loss.queue_size, config.model.embedding_dim), dim=1)
    queue.enqueue(Keys(rows, rows.flip(0), torch.arange(1_000, 1_000 + len(rows))))
    return Learner(model, momentum, queue, build_optimizer(model, config.training))


def replace_dropout(module: nn.Module) -> None:
    """Put torch's dropout in the place of ours."""
    for name, child in module.named_children():
        if isinstance(child, Dropout):
            setattr(module, name, nn.Dropout(child.dropped / 256))
        else:
            replace_dropout(child)


def make_batch(model: SpeechImageModel, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    backbone = model.speech_backbone
    return Batch(
        tuple(str(pair) for pair in range(PAIRS)),
        torch.randn(PAIRS, backbone.num_layers, FRAMES, backbone.dim, generator=generator),
        torch.ones(PAIRS, FRAMES, dtype=torch.bool),
        torch.randn(PAIRS, TOKENS, model.image_backbone.dim, generator=generator),
        torch.arange(PAIRS),
    )


def no_tokens(_: Tensor) -> Tensor:
    raise AssertionError("all negatives are in the batch")


def seconds_of_a_step(
    learner: Learner, batch: Batch, config: Config, step: int, autocast: partial[AbstractContextManager[object]]
) -> float:
    torch.manual_seed(step)
    started = time.perf_counter()
    training_step(learner, [batch], step, config, no_tokens, autocast)
    return time.perf_counter() - started


def flop_of_a_step(model: SpeechImageModel, shared: bool) -> float:
    """Count the multiplications and additions of all matrix products of a step, from the shapes.

    Backward costs twice forward; the momentum encoder runs forward alone. Norms, softmax and the loss are left out.
    """
    sizes = model.config.model
    width, rows, pairs = sizes.width, FRAMES + 1, 3 * PAIRS
    square = 2 * width * width
    ratio = 2 * sizes.feedforward_ratio
    speech = 2 * PAIRS * FRAMES * model.speech_backbone.dim * width
    speech += sizes.speech_layers * PAIRS * (rows * (4 + ratio) * square + 4 * rows * rows * width)
    image = 2 * PAIRS * TOKENS * model.image_backbone.dim * width
    layers = sizes.multimodal_layers
    if shared:
        matching = PAIRS * (rows * 5 * square + 4 * rows * rows * width) + layers * PAIRS * TOKENS * 2 * square
        matching += pairs * rows * ((1 + ratio) * square + 4 * TOKENS * width)
        whole = (8 + ratio - 2) * square + 4 * (rows + TOKENS) * width
        matching += (layers - 2) * pairs * rows * whole
        matching += pairs * (rows * (2 * square + 4 * width) + (4 + ratio) * square + 4 * TOKENS * width)
    else:
        whole = (6 + ratio) * square + 4 * (rows + TOKENS) * width
        matching = layers * (pairs * rows * whole + pairs * TOKENS * 2 * square)
    return 3 * (speech + image + matching) + speech + image / TOKENS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each (default: 10)")
    parser.add_argument("--multimodal-layers", type=int, default=2, help="2 or more (default: 2)")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    config = Config(
        model=ModelConfig(width=256, multimodal_layers=options.multimodal_layers),
        loss=LossConfig(queue_size=1024, distillation_ramp_steps=0),
        training=TrainingConfig(steps=1000, batch_size=PAIRS),
    )
    autocast = autocast_for(options.precision, torch.device("cpu"))
    learners = [build(config, options.seed, shared) for shared in (True, False)]
    batch = make_batch(learners[0].model, options.seed)
    times: list[list[float]] = [[], []]
    for step in range(options.steps + 2):
        for learner, measured in zip(learners, times, strict=True):
            seconds = seconds_of_a_step(learner, batch, config, step, autocast)  # type: ignore[arg-type]
            if step >= 2:  # the first two warm up
                measured.append(seconds)
    ours, rival = (statistics.median(measured) for measured in times)
    rate = matrix_product_rate(torch.bfloat16 if options.precision == "bf16" else torch.float32)
    achieved = flop_of_a_step(learners[0].model, True) / ours
    figures = {
        "precision": options.precision,
        "shape": {"pairs": PAIRS, "frames": FRAMES, "tokens": TOKENS, "width": 256, "queue": 1024},
        "multimodal_layers": options.multimodal_layers,
        "seconds_per_step": round(ours, 3),
        "pairs_per_second": round(PAIRS / ours, 1),
        "nothing_shared_seconds_per_step": round(rival, 3),
        "nothing_shared_over_ours": round(statistics.median(b / a for a, b in zip(*times, strict=True)), 2),
        "gflop_per_step": round(flop_of_a_step(learners[0].model, True) / 1e9, 1),
        "nothing_shared_gflop_per_step": round(flop_of_a_step(learners[0].model, False) / 1e9, 1),
        "achieved_gflop_per_second": round(achieved / 1e9, 1),
        "matrix_product_gflop_per_second": round(rate / 1e9, 1),
        "share_of_matrix_product_rate": round(achieved / rate, 3),
    }
    keep("training_step", data="random features in the bundled encoders' shapes", seed=options.seed, figures=figures)


if __name__ == "__main__":
    main()
