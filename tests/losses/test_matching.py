"""SIM against the two-way cross-entropy that it stands for."""

import math

import torch
import torch.nn.functional as F

from saysee.losses.matching import sim_loss


def test_equals_cross_entropy_over_the_heads_two_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(15, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    match_logit = logits[:, 1] - logits[:, 0]
    ours = sim_loss(match_logit[:5], match_logit[5:])
    reference = F.cross_entropy(logits, torch.tensor([1] * 5 + [0] * 10))
    torch.testing.assert_close(ours, reference, atol=1e-12, rtol=0)
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (ours, reference)), atol=1e-12, rtol=0
    )


def test_knowing_nothing_costs_log_two() -> None:
    assert sim_loss(torch.zeros(3), torch.zeros(6)).item() == torch.tensor(math.log(2)).item()


def test_no_negatives_leaves_the_positive_term_alone() -> None:
    positive = torch.tensor([2.0])
    torch.testing.assert_close(sim_loss(positive, torch.zeros(0)), F.softplus(-positive).mean())


def test_extreme_logits_stay_finite() -> None:
    assert torch.isfinite(sim_loss(torch.tensor([-1e4]), torch.tensor([1e4])))
