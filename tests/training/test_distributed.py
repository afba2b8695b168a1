"""Several processes: each with its part of a batch, together they take the step of one process with the whole."""

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from command_line import finish, start
from saysee.data.collate import Batch
from saysee.data.dataset import PairDataset
from saysee.data.manifest import SpokenCaption
from saysee.errors import SayseeError
from saysee.losses.queue import MomentumQueue
from saysee.models.momentum import MomentumEncoder
from saysee.training.distributed import Ranks, process_group
from saysee.training.optimizer import build_optimizer
from saysee.training.step import Learner, in_parallel, training_step
from saysee.training.trainer import CHECKPOINT_FILE, train
from stubs import IMAGE_DIM, LAYERS, SPEECH_DIM, TOKENS, make_batch, small_model

STEPS = 4
KILLED = 9
CASES: dict[str, dict[str, Any]] = {
    "full method": {"negatives_from_all_ranks": True},
    "random negatives": {"negatives_from_all_ranks": True, "negatives": "random", "queue_size": 0},
    "negatives named by the queue": {"negatives_from_all_ranks": True, "image_negatives_from": "queue"},
    "matching as a list": {"negatives_from_all_ranks": True, "matching_loss": "list"},
    "matching as a list, same image excluded": {
        "negatives_from_all_ranks": True,
        "matching_loss": "list",
        "same_image": "excluded",
    },
    "matching later": {"negatives_from_all_ranks": True, "matching_from_step": 2},
    "same image excluded": {"matching": False, "same_image": "excluded"},
    "contrast within the batch": {"matching": False, "queue_size": 0, "distillation_alpha": 0.0},
}


@given(st.integers(1, 50), st.integers(1, 50))
def test_the_parts_are_the_whole_and_near_even(count: int, size: int) -> None:
    parts = [Ranks(rank, size).part(count) for rank in range(size)]
    assert [row for part in parts for row in range(count)[part]] == list(range(count))
    lengths = [len(range(count)[part]) for part in parts]
    assert max(lengths) - min(lengths) <= 1


def test_one_process_is_the_identity_without_a_process_group() -> None:
    rows = torch.randn(3, 2, requires_grad=True)
    ranks = Ranks()
    assert ranks.gather_with_gradient(rows, 3) is rows
    assert torch.equal(ranks.gather(rows, 3), rows)
    assert ranks.broadcast("a") == "a"
    assert ranks.maximum(3, torch.device("cpu")) == 3
    ranks.barrier()
    with process_group("cpu", torch.device) as (alone, device):
        assert (alone, device) == (Ranks(), torch.device("cpu"))


@pytest.fixture(scope="module", params=["even", "uneven", "accumulated"])
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What one process makes of each case, and what two make of it."""
    folder = tmp_path_factory.mktemp(request.param)
    for case in CASES:
        run_steps(case, request.param, Ranks(), folder)
    together(["steps", request.param, folder], 2)
    return folder, request.param


@pytest.mark.parametrize("case", CASES)
def test_two_processes_take_the_steps_of_one(outcomes: tuple[Path, str], case: str) -> None:
    """Losses, gradients, weights, momentum weights and queue after several steps, in both processes."""
    folder, _ = outcomes
    alone = load_file(folder / f"{case}-0-of-1.safetensors")
    assert float(alone["report"][0, 0]) > 0.1
    for rank in range(2):
        shared = load_file(folder / f"{case}-{rank}-of-2.safetensors")
        assert shared.keys() == alone.keys()
        for name, expected in alone.items():
            if is_undecided(name, case) and not name.startswith("gradient"):
                continue
            torch.testing.assert_close(shared[name], expected, atol=1e-5, rtol=1e-5, msg=partial("{}: {}".format, name))


def is_undecided(name: str, case: str) -> bool:
    """Say whether a weight follows rounding alone.

    Attention's softmax does not feel a bias of its keys, nor that of a list what is added to all of its scores. Its
    gradient is 0 but for rounding, and AdamW brings every gradient to the size of the learning rate.
    """
    added_to_all = ("multimodal_encoder.output_norm.bias", "multimodal_encoder.head.bias")
    return name.endswith(("key_value.bias", *(added_to_all if "as a list" in case else ())))


def test_gathering_gives_the_rows_in_order_and_each_row_the_gradient_of_all_losses(tmp_path: Path) -> None:
    """Against one process that has everything: the loss of process r is the sum of w_r times the square of all rows."""
    together(["gather", "", tmp_path], 3)
    whole = torch.arange(14.0).view(7, 2).requires_grad_()
    weights = torch.tensor([1.0, 10.0, 100.0])
    (weights[:, None, None] * whole.square()[None]).sum().backward()  # type: ignore[no-untyped-call]
    for rank in range(3):
        result = load_file(tmp_path / f"gather-{rank}.safetensors")
        assert torch.equal(result["rows"], whole.detach())
        assert whole.grad is not None
        torch.testing.assert_close(result["gradient"], whole.grad[Ranks(rank, 3).part(7)])


def test_a_loss_that_is_not_finite_in_one_process_ends_both(tmp_path: Path) -> None:
    together(["broken", "", tmp_path], 2)
    assert sorted(path.name for path in tmp_path.glob("raised-*")) == ["raised-0", "raised-1"]


def test_what_fails_in_the_first_process_is_said_in_both(tmp_path: Path) -> None:
    """Only the first one measures, so only there is it found; the other is not left waiting."""
    together(["refused", "", tmp_path], 2)
    for rank in range(2):
        assert "training.primary_metric is 'nothing'; allowed here: " in (tmp_path / f"refused-{rank}").read_text()


def test_a_run_of_two_processes_is_the_run_of_one_with_one_writer(tmp_path: Path) -> None:
    """Also when it is killed and gone on with by another number of processes."""
    run_training(tmp_path / "alone", Ranks())
    together(["train", "whole", tmp_path / "shared"], 2)
    together(["train", "killed", tmp_path / "changed"], 2, status=KILLED)
    assert load_file(tmp_path / "changed" / CHECKPOINT_FILE).keys()  # of the third step
    run_training(tmp_path / "changed", Ranks())
    expected = load_file(tmp_path / "alone" / CHECKPOINT_FILE)
    for path in (tmp_path / "shared", tmp_path / "changed"):
        files = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
        assert {file for file in files if "tensorboard" not in file and "meeting" not in file} == {
            "config.json",
            "model.safetensors",
            "training/last.safetensors",
            "training/lock",
            "training/log.jsonl",
        }
        received = load_file(path / CHECKPOINT_FILE)
        for name, tensor in expected.items():
            if name.startswith(("model.", "momentum.", "queue.")) and not is_undecided(name, "full method"):
                torch.testing.assert_close(received[name], tensor, atol=2e-5, rtol=1e-4)
    assert sum("tensorboard" in file.as_posix() for file in (tmp_path / "shared").rglob("events*")) == 1


def test_more_processes_than_captions_of_a_batch_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SayseeError, match="a batch of 3 captions, and 4 processes"):
        run_training(tmp_path, Ranks(0, 4))


def test_one_gpu_cannot_be_named_for_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SayseeError, match="one GPU for all processes"), process_group("cuda:0", torch.device):
        pass


# ---- what the processes do


def together(arguments: list[object], size: int, status: int = 0) -> None:
    """Run this file as a program in `size` processes, which all end with `status`."""
    folder = Path(str(arguments[-1]))
    folder.mkdir(parents=True, exist_ok=True)
    meeting = folder / f"meeting-{len(list(folder.glob('meeting-*')))}"
    with mock.patch.dict(os.environ, PYTHONPATH=str(Path(__file__).parents[1])):
        processes = [start([__file__, meeting, rank, size], *arguments) for rank in range(size)]
    for process in processes:
        outcome = finish(process)
        assert outcome.status == status, outcome.err


def part_of(batch: Batch, ranks: Ranks) -> Batch:
    """Cut a batch as a process would have read it: its own rows, padded to its own longest recording."""
    part = ranks.part(len(batch.image_id))
    longest = int(batch.speech_mask[part].sum(1).max())
    return Batch(
        batch.caption_ids[part],
        batch.speech[part, :, :longest],
        batch.speech_mask[part, :longest],
        batch.image_tokens[part],
        batch.image_id[part],
    )


def read_tokens(ids: Tensor) -> Tensor:
    return torch.stack(
        [torch.randn(TOKENS, IMAGE_DIM, generator=torch.Generator().manual_seed(n)) for n in ids.tolist()]
    )


def make_learner(**changes: Any) -> Learner:
    model = small_model(precision="fp32", **{"queue_size": 12, **changes})
    loss = model.config.loss
    momentum = MomentumEncoder(model.speech_encoder, model.image_encoder) if loss.uses_momentum else None
    queue = MomentumQueue(loss.queue_size, model.config.model.embedding_dim)
    return Learner(model, momentum, queue, build_optimizer(model, model.config.training))


def run_steps(case: str, kind: str, ranks: Ranks, folder: Path) -> None:
    """Take some steps and write down all that came of them."""
    learner = make_learner(**CASES[case], distillation_ramp_steps=2, learning_rate=1e-3)
    model = learner.model
    parallel = in_parallel(model) if ranks.size > 1 else None
    result: dict[str, Tensor] = {}
    reports = []
    for step in range(STEPS):
        # pairs of one image are in one part and in two
        ids = [0, 1, 1, 2, 0, 3, 4] if kind == "uneven" else [0, 1, 1, 2, 0, 3, 4, 5]
        whole = [
            make_batch([n + step for n in ids], 10 * step + number) for number in range(1 + (kind == "accumulated"))
        ]
        batches = [part_of(batch, ranks) for batch in whole]
        report = training_step(learner, batches, step, model.config, read_tokens, nullcontext, ranks, parallel)
        reports.append([float("nan") if value is None else value for value in report])
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                result[f"gradient {step} {name}"] = parameter.grad.clone()
    result["report"] = torch.tensor(reports).nan_to_num(-1.0)
    result |= {f"weight {name}": tensor.clone() for name, tensor in model.trainable_state().items()}
    result |= {f"queue {name}": tensor.clone() for name, tensor in learner.queue.state_dict().items()}
    if learner.momentum is not None:
        result |= {f"momentum {name}": tensor.clone() for name, tensor in learner.momentum.state_dict().items()}
    save_file(result, folder / f"{case}-{ranks.rank}-of-{ranks.size}.safetensors")


class Features:
    """Random features by path; recordings of different lengths."""

    def __init__(self, *shape: int) -> None:
        self.shape = shape

    def read(self, paths: list[Path]) -> list[Tensor]:
        return [
            torch.randn(
                *self.shape[:-2],
                self.frames(path),
                self.shape[-1],
                generator=torch.Generator().manual_seed(sum(path.name.encode())),
            )
            for path in paths
        ]

    def frames(self, path: Path) -> int:
        return self.shape[-2] + (sum(path.name.encode()) % 3 if len(self.shape) == 3 else 0)


class KilledDataset(PairDataset):
    """Ends the process when the eighth batch is read, which is at the fifth step."""

    def batch(self, indices: Sequence[int], draws: Tensor, alterations: Tensor | None = None) -> Batch:
        self.read = getattr(self, "read", 0) + 1
        if self.read == 8:
            os._exit(KILLED)
        return super().batch(indices, draws, alterations)


def run_training(out: Path, ranks: Ranks, dataset_class: type[PairDataset] = PairDataset, **changes: Any) -> None:
    """Train on 11 captions of 5 images: an epoch has batches of 4, 4 and 3."""
    records = [
        SpokenCaption(f"c{n}", Path(f"/a{n}.wav"), f"i{n % 5}", Path(f"/i{n % 5}.jpg"), None, None, None, "train")
        for n in range(11)
    ]
    speech, images = Features(LAYERS, 4, SPEECH_DIM), Features(TOKENS, IMAGE_DIM)
    dataset = dataset_class(records, speech, images, crop_frames=5)  # type: ignore[arg-type]
    learner = make_learner(steps=8, negatives_from_all_ranks=True, bucket_batches=2, **changes)
    train(learner, dataset, "data", lambda _: {"coarse/mean/R@1": 0.5}, out, ranks=ranks)


def gather(ranks: Ranks, folder: Path) -> None:
    whole = torch.arange(14.0).view(7, 2)
    own = whole[ranks.part(7)].clone().requires_grad_()
    gathered = ranks.gather_with_gradient(own, 7)
    (10.0**ranks.rank * gathered.square()).sum().backward()  # type: ignore[no-untyped-call]
    assert own.grad is not None
    save_file({"rows": gathered.detach(), "gradient": own.grad}, folder / f"gather-{ranks.rank}.safetensors")


def refused(ranks: Ranks, folder: Path) -> None:
    try:
        run_training(folder / "model", ranks, primary_metric="nothing")
    except SayseeError as error:
        (folder / f"refused-{ranks.rank}").write_text(str(error))


def broken(ranks: Ranks, folder: Path) -> None:
    learner = make_learner(negatives_from_all_ranks=True)
    parallel = in_parallel(learner.model)
    batch = part_of(make_batch([0, 1, 2, 3], 0), ranks)
    if ranks.rank == 1:
        batch = batch._replace(speech=batch.speech * torch.nan)
    try:
        training_step(learner, [batch], 0, learner.model.config, read_tokens, nullcontext, ranks, parallel)
    except FloatingPointError:
        (folder / f"raised-{ranks.rank}").touch()


def main(meeting: str, rank: str, size: str, what: str, which: str, folder: str) -> None:
    torch.manual_seed(int(rank))  # nothing may depend on it
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=int(rank), world_size=int(size))
    ranks = Ranks(int(rank), int(size))
    if what == "steps":
        for case in CASES:
            run_steps(case, which, ranks, Path(folder))
    elif what == "train":
        run_training(Path(folder), ranks, KilledDataset if which == "killed" else PairDataset)
    else:
        {"gather": gather, "broken": broken, "refused": refused}[what](ranks, Path(folder))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
