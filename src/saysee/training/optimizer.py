"""AdamW with the usual parameter groups, and the learning rate as a function of the step."""

import math

import torch
from torch import nn

from saysee.config import TrainingConfig


def build_optimizer(module: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """Make AdamW over everything trainable: matrices decay, vectors and scalars (biases, norms, ...) do not."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas)


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Return the rate of optimisation step `step` (from 0): linear warm-up, then decay to the last step."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    decay_steps = max(1, config.steps - 1 - config.warmup_steps)
    progress = min(1.0, (step - config.warmup_steps) / decay_steps)
    share = (1 + math.cos(math.pi * progress)) / 2 if config.schedule == "cosine" else 1 - progress
    return config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * share
