"""SIC against values from theory and against a naive reference written from the equations, in value and gradient."""

import math
from typing import Literal

import pytest
import torch
from torch import Tensor

from saysee.losses.contrastive import Keys, contrastive_targets, distillation_alpha, sic_loss
from saysee.losses.queue import MomentumQueue

SameImage = Literal["positives", "excluded"]
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}


def unit(rows: int, dim: int, dtype: torch.dtype, seed: int) -> Tensor:
    values = torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    unit_rows: Tensor = values / values.norm(dim=1, keepdim=True)
    return unit_rows.to(dtype)


def naive_direction(
    query: Tensor,
    key: Tensor,
    ids: list[int],
    key_ids: list[int],
    temperature: Tensor,
    same_image: SameImage,
    alpha: float,
    slow_query: Tensor | None,
) -> Tensor:
    """ALBEF, equations 1, 2 and 6, one query at a time: cross-entropy H(y, p) with y = (1 - alpha) truth + alpha q."""
    total = torch.zeros((), dtype=query.dtype)
    for i in range(len(query)):
        if same_image == "positives":
            columns = list(range(len(key)))
            right = [j for j in columns if key_ids[j] == ids[i]]
        else:
            columns = [j for j in range(len(key)) if j == i or key_ids[j] != ids[i]]
            right = [i]
        exponentials = {j: torch.exp(query[i] @ key[j] / temperature) for j in columns}
        denominator = sum(exponentials.values(), start=torch.zeros((), dtype=query.dtype))
        slow = {}
        if alpha > 0:
            assert slow_query is not None
            slow = {j: torch.exp(slow_query[i] @ key[j] / temperature).detach() for j in columns}
        for j in columns:
            target: Tensor | float = (1 - alpha) / len(right) if j in right else 0.0
            if alpha > 0:
                target = target + alpha * slow[j] / sum(slow.values())
            total = total - target * torch.log(exponentials[j] / denominator)
    return total / len(query)


class Case:
    """A batch with its keys; leaves that take gradient, the momentum sides that do not."""

    def __init__(self, ids: list[int], queued: list[int], dtype: torch.dtype) -> None:
        self.speech = unit(len(ids), 6, dtype, 1).requires_grad_()
        self.image = unit(len(ids), 6, dtype, 2).requires_grad_()
        self.temperature = torch.tensor(0.2, dtype=dtype, requires_grad=True)
        self.ids = ids
        self.key_ids = ids + queued
        self.slow_speech = unit(len(ids), 6, dtype, 3)
        self.slow_image = unit(len(ids), 6, dtype, 4)
        self.keys = Keys(
            torch.cat([self.slow_speech, unit(len(queued), 6, dtype, 5)]),
            torch.cat([self.slow_image, unit(len(queued), 6, dtype, 6)]),
            torch.tensor(self.key_ids),
        )

    def ours(self, same_image: SameImage, alpha: float) -> Tensor:
        return sic_loss(
            self.speech,
            self.image,
            torch.tensor(self.ids),
            self.keys,
            self.temperature,
            same_image=same_image,
            alpha=alpha,
            momentum_speech=self.slow_speech,
            momentum_image=self.slow_image,
        )

    def naive(self, same_image: SameImage, alpha: float) -> Tensor:
        common = (self.ids, self.key_ids, self.temperature, same_image, alpha)
        to_image = naive_direction(self.speech, self.keys.image, *common, self.slow_speech)
        to_speech = naive_direction(self.image, self.keys.speech, *common, self.slow_image)
        return (to_image + to_speech) / 2

    def gradients(self, loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, [self.speech, self.image, self.temperature]))


BATCHES = {
    "no queue": ([0, 1, 2, 3], []),
    "queue": ([0, 1, 2, 3], [7, 8, 9]),
    "captions of an image in the batch": ([0, 0, 1, 2, 1], []),
    "captions of an image in batch and queue": ([0, 0, 1, 2], [2, 0, 5, 5, 0]),
    "a batch of one": ([4], []),
    "a batch of one with a queue": ([4], [4, 1]),
    "all rows share one image": ([3, 3, 3], []),
    "all rows and the queue share one image": ([3, 3, 3], [3, 3]),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("same_image", ["positives", "excluded"])
@pytest.mark.parametrize("batch", BATCHES)
def test_equals_the_equations_in_value_and_gradient(
    batch: str, same_image: SameImage, alpha: float, dtype: torch.dtype
) -> None:
    case = Case(*BATCHES[batch], dtype)
    ours, naive = case.ours(same_image, alpha), case.naive(same_image, alpha)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, naive, atol=TOLERANCE[dtype], rtol=0)
    for mine, reference in zip(case.gradients(ours), case.gradients(naive), strict=True):
        torch.testing.assert_close(mine, reference, atol=TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize("rounds", [0, 1, 3, 4, 7], ids=["empty", "part-filled", "full", "wrapped", "wrapped twice"])
def test_a_queue_contrasts_with_its_newest_rows_and_nothing_else(rounds: int) -> None:
    """M = 9 rows filled three at a time: the keys are the batch and the last min(3 * rounds, 9) rows, never a zero."""
    queue = MomentumQueue(9, 6).double()
    history: list[Keys] = []
    for round_ in range(rounds):
        rows = Keys(
            unit(3, 6, torch.float64, 100 + round_),
            unit(3, 6, torch.float64, 200 + round_),
            torch.tensor([0, 10 + round_, 20 + round_]),
        )
        queue.enqueue(rows)
        history.append(rows)
    case = Case([0, 1], [], torch.float64)
    keys = queue.behind(case.keys)
    newest = history[-3:]
    expected = Case([0, 1], [], torch.float64)
    expected.keys = Keys(*(torch.cat([own, *past]) for own, *past in zip(expected.keys, *newest, strict=True)))
    expected.key_ids = expected.keys.image_id.tolist()
    for same_image in ("positives", "excluded"):
        ours = sic_loss(
            case.speech,
            case.image,
            torch.tensor([0, 1]),
            keys,
            case.temperature,
            same_image=same_image,
            alpha=0.3,
            momentum_speech=case.slow_speech,
            momentum_image=case.slow_image,
        )
        naive = expected.naive(same_image, 0.3)
        torch.testing.assert_close(ours, naive, atol=1e-9, rtol=0)


@pytest.mark.parametrize("queued", [0, 5])
@pytest.mark.parametrize("ids", [[0, 1, 2, 3], [0, 0, 1, 1]])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_equal_similarities_cost_the_logarithm_of_the_columns(ids: list[int], queued: int, alpha: float) -> None:
    """Whatever the targets are, cross-entropy with a uniform softmax over N columns is log N."""
    same = unit(1, 6, torch.float64, 0)
    columns = len(ids) + queued
    keys = Keys(same.expand(columns, -1), same.expand(columns, -1), torch.tensor(ids + list(range(50, 50 + queued))))
    batch = same.expand(len(ids), -1)
    loss = sic_loss(
        batch,
        batch,
        torch.tensor(ids),
        keys,
        torch.tensor(0.07, dtype=torch.float64),
        alpha=alpha,
        momentum_speech=batch,
        momentum_image=batch,
    )
    assert loss.item() == pytest.approx(math.log(columns), abs=1e-12)


def test_without_momentum_gradient_reaches_both_sides_of_the_contrast() -> None:
    """The in-batch loss is then the symmetric InfoNCE of SpeechCLIP: cross-entropy of one matrix and its transpose."""
    case = Case([0, 1, 2], [], torch.float64)
    keys = Keys(case.speech, case.image, torch.tensor(case.ids))
    ours = sic_loss(case.speech, case.image, torch.tensor(case.ids), keys, case.temperature, same_image="excluded")
    logits = case.speech @ case.image.T / case.temperature
    rows = torch.arange(3)
    reference = (
        torch.nn.functional.cross_entropy(logits, rows) + torch.nn.functional.cross_entropy(logits.T, rows)
    ) / 2
    torch.testing.assert_close(ours, reference)
    for mine, theirs in zip(case.gradients(ours), case.gradients(reference), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_targets_take_no_gradient() -> None:
    """Distillation's softmax depends on the temperature; were it differentiated, the temperature would chase it."""
    case = Case([0, 1], [2], torch.float64)
    case.slow_speech.requires_grad_()
    (gradient,) = torch.autograd.grad(case.ours("positives", 1.0), [case.slow_speech], allow_unused=True)
    assert gradient is None


@pytest.mark.parametrize("same_image", ["positives", "excluded"])
def test_target_rows_sum_to_one_and_never_fall_on_an_excluded_column(same_image: SameImage) -> None:
    targets, excluded = contrastive_targets(
        torch.tensor([0, 0, 1]), torch.tensor([0, 0, 1, 1, 9]), same_image, torch.float64
    )
    torch.testing.assert_close(targets.sum(1), torch.ones(3, dtype=torch.float64))
    assert not (targets * excluded).any()
    assert not excluded.all(1).any()


def test_alpha_ramps_linearly_from_zero() -> None:
    assert [distillation_alpha(0.4, step, 4) for step in range(6)] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.4])
    assert distillation_alpha(0.4, 0, 0) == 0.4


@pytest.mark.parametrize("same_image", ["positives", "excluded"])
def test_a_part_of_the_queries_costs_what_it_costs_within_the_whole(same_image: SameImage) -> None:
    """As a process has it that holds the rows from 2 on: `first` says where its own keys begin."""
    speech, image = (unit(5, 4, torch.float32, seed) for seed in (0, 1))
    key_id = torch.tensor([0, 1, 0, 2, 2, 9, 1])
    keys = Keys(unit(7, 4, torch.float32, 2), unit(7, 4, torch.float32, 3), key_id)
    ids = keys.image_id[:5]
    temperature = torch.tensor(0.1)
    whole = sic_loss(speech, image, ids, keys, temperature, same_image=same_image)
    parts = [
        sic_loss(speech[a:b], image[a:b], ids[a:b], keys, temperature, first=a, same_image=same_image) * (b - a)
        for a, b in ((0, 2), (2, 5))
    ]
    torch.testing.assert_close(torch.stack(parts).sum() / 5, whole)
