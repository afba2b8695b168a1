"""Runs: killed anywhere and started again they end with the same bits; faults are named; only the best is kept."""

import json
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from saysee.data.dataset import PairDataset
from saysee.data.manifest import SpokenCaption
from saysee.data.sampler import BatchOrder
from saysee.errors import SayseeError
from saysee.losses.queue import MomentumQueue
from saysee.models.momentum import MomentumEncoder
from saysee.models.retrieval_model import SpeechImageModel
from saysee.training import step, trainer
from saysee.training.optimizer import build_optimizer
from saysee.training.step import Learner, StepReport
from saysee.training.trainer import CHECKPOINT_FILE, TrainingError, train
from stubs import IMAGE_DIM, LAYERS, SPEECH_DIM, TOKENS, small_model

CHANGES: dict[str, Any] = {
    "dropout": 0.1,
    "steps": 12,
    "evaluate_every": 4,
    "checkpoint_every": 3,
    "accumulate": 2,
    "queue_size": 10,
    "precision": "fp32",
}


class Features:
    """Random features by path; the same for the same path."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def read(self, paths: Sequence[Path]) -> list[Tensor]:
        return [self.of(path) for path in paths]

    def frames(self, path: Path) -> int:
        return self.shape[-2]

    def of(self, path: Path) -> Tensor:
        generator = torch.Generator().manual_seed(sum(path.name.encode()))
        return torch.randn(*self.shape, generator=generator).half()


def make_dataset(captions: int = 11) -> PairDataset:
    records = [
        SpokenCaption(f"c{n}", Path(f"/a{n}.wav"), f"i{n % 5}", Path(f"/i{n % 5}.jpg"), None, None, None, "train")
        for n in range(captions)
    ]
    return PairDataset(records, Features((LAYERS, 4, SPEECH_DIM)), Features((TOKENS, IMAGE_DIM)))


def make_learner(**changes: Any) -> Learner:
    model = small_model(**{**CHANGES, **changes})
    loss = model.config.loss
    momentum = MomentumEncoder(model.speech_encoder, model.image_encoder) if loss.uses_momentum else None
    return Learner(model, momentum, MomentumQueue(loss.queue_size, 8), build_optimizer(model, model.config.training))


def measure(model: SpeechImageModel) -> Mapping[str, float]:
    """A dev metric that depends on the weights and rises and falls."""
    return {"coarse/mean/R@1": torch.sin(1e4 * model.speech_encoder.cls.sum()).abs().item()}


def run(out: Path, **changes: object) -> None:
    train(make_learner(**changes), make_dataset(), "data", measure, out)


def final_state(out: Path) -> dict[str, Tensor]:
    state = {f"last.{name}": tensor for name, tensor in load_file(out / CHECKPOINT_FILE).items()}
    return state | {f"best.{name}": tensor for name, tensor in load_file(out / "model.safetensors").items()}


def log_of(out: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (out / "training" / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "pairs_per_second"} for line in lines]


class Killed(BaseException):
    """Stands for a kill: nothing in the trainer catches it."""


@pytest.mark.parametrize(
    ("where", "at"),
    [
        ("step", 1),
        ("step", 5),
        ("step", 12),
        ("evaluation", 2),
        ("evaluation", 4),
        ("checkpoint", 1),
        ("checkpoint", 5),
    ],
)
@pytest.mark.parametrize("checkpoint_every", [3, 100])
def test_a_killed_run_started_again_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, at: int, checkpoint_every: int
) -> None:
    if checkpoint_every == 100 and at == 5:
        at = 2  # the last
    run(tmp_path / "undisturbed", checkpoint_every=checkpoint_every)
    calls = 0

    def killing(original):  # type: ignore[no-untyped-def]
        def wrapper(*arguments, **options):  # type: ignore[no-untyped-def]
            nonlocal calls
            calls += 1
            if calls == at:
                raise Killed
            return original(*arguments, **options)

        return wrapper

    name = {"step": "training_step", "evaluation": "_evaluate", "checkpoint": "save_checkpoint"}[where]
    with monkeypatch.context() as patch:
        patch.setattr(trainer, name, killing(getattr(trainer, name)))  # type: ignore[no-untyped-call]
        with pytest.raises(Killed):
            run(tmp_path / "killed", checkpoint_every=checkpoint_every)
    torch.manual_seed(12345)  # a new process has another random state
    run(tmp_path / "killed", checkpoint_every=checkpoint_every)

    expected, received = final_state(tmp_path / "undisturbed"), final_state(tmp_path / "killed")
    assert expected.keys() == received.keys()
    for key in expected:
        assert torch.equal(expected[key], received[key]), key
    assert log_of(tmp_path / "undisturbed") == log_of(tmp_path / "killed")


def test_the_checkpoint_holds_the_whole_state(tmp_path: Path) -> None:
    run(tmp_path)
    names = load_file(tmp_path / CHECKPOINT_FILE).keys()
    assert {name.split(".")[0] for name in names} == {"model", "momentum", "queue", "optimizer", "random"}
    assert {"queue.pointer", "queue.filled", "optimizer.0.exp_avg_sq", "model.temperature"} <= names


def test_the_best_model_by_the_primary_metric_is_kept(tmp_path: Path) -> None:
    scores = iter([0.0, 0.2, 0.9, 0.5])
    seen: list[Tensor] = []

    def scripted(model: SpeechImageModel) -> Mapping[str, float]:
        seen.append(model.speech_encoder.cls.detach().clone())
        return {"coarse/mean/R@1": next(scores)}

    progress = train(make_learner(), make_dataset(), "data", scripted, tmp_path)
    assert (progress.step, progress.best_step, progress.best_metric) == (12, 8, 0.9)
    assert torch.equal(load_file(tmp_path / "model.safetensors")["speech_encoder.cls"], seen[2])


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    run(tmp_path)
    before = final_state(tmp_path)
    run(tmp_path)
    after = final_state(tmp_path)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_another_configuration_or_other_data_are_refused(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(SayseeError, match=r"another training.learning_rate \(0.0003 there, 0.1 here\)"):
        run(tmp_path, learning_rate=0.1)
    with pytest.raises(SayseeError, match="other data"):
        train(make_learner(), make_dataset(), "other", measure, tmp_path)


def test_a_model_without_a_checkpoint_is_not_overwritten(tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / CHECKPOINT_FILE).unlink()
    with pytest.raises(SayseeError, match="already holds a model"):
        run(tmp_path)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    run(tmp_path)
    path = tmp_path / CHECKPOINT_FILE
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SayseeError, match=r"last\.safetensors is damaged"):
        run(tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run_with_step_captions_and_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = make_learner()
    steps = 0
    original = step.training_step

    def poisoned(*arguments: object) -> object:
        nonlocal steps
        steps += 1
        if steps == 7:
            with torch.no_grad():
                learner.model.speech_encoder.cls.fill_(torch.nan)
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(trainer, "training_step", poisoned)
    with pytest.raises(
        TrainingError, match=r"loss of SIC is nan at step 7.*last\.safetensors, after step 6\. The captions: c\d+, c\d+"
    ):
        train(learner, make_dataset(), "data", measure, tmp_path)
    assert all(torch.isfinite(tensor).all() for tensor in load_file(tmp_path / CHECKPOINT_FILE).values())


def test_broken_weights_are_neither_measured_nor_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step may break the weights after its own loss was still finite."""
    original = step.training_step

    def breaking(learner: Learner, *arguments: object) -> object:
        report = original(learner, *arguments)  # type: ignore[arg-type]
        if arguments[1] == 5:
            with torch.no_grad():
                learner.model.speech_encoder.cls.fill_(torch.inf)
        return report

    monkeypatch.setattr(trainer, "training_step", breaking)
    with pytest.raises(TrainingError, match=r"speech_encoder\.cls is no longer finite at step 6.*after step 3"):
        run(tmp_path)
    assert all(torch.isfinite(tensor).all() for tensor in load_file(tmp_path / CHECKPOINT_FILE).values())


def test_a_metric_of_which_less_is_better_cannot_choose(tmp_path: Path) -> None:
    def ranks(_: SpeechImageModel) -> Mapping[str, float]:
        return {"coarse/speech_to_image/median_rank": 3.0, "coarse/speech_to_image/MRR": 0.5}

    learner = make_learner(primary_metric="coarse/speech_to_image/median_rank")
    with pytest.raises(SayseeError, match=r"allowed here: coarse/speech_to_image/MRR\."):
        train(learner, make_dataset(), "data", ranks, tmp_path)


def test_two_processes_do_not_train_into_one_folder(tmp_path: Path) -> None:
    holding = (
        "import sys, pathlib; from saysee.files import sole_process\n"
        "with sole_process(pathlib.Path(sys.argv[1]), 'x'): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holding, str(tmp_path / "training" / "lock")], stdin=PIPE, stdout=PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(SayseeError, match="another process is training into"):
            run(tmp_path)
        other.kill()
    run(tmp_path)


def test_a_run_on_other_frozen_encoders_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    learner = make_learner()
    with torch.no_grad():
        next(learner.model.speech_backbone.parameters()).add_(1)
    with pytest.raises(SayseeError, match="other frozen encoders"):
        train(learner, make_dataset(), "data", measure, tmp_path)


def test_an_altered_checkpoint_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    path = tmp_path / CHECKPOINT_FILE
    altered = bytearray(path.read_bytes())
    altered[-5] ^= 1
    path.write_bytes(altered)
    with pytest.raises(SayseeError, match="altered or damaged"):
        run(tmp_path)


def test_an_unknown_primary_metric_is_found_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(SayseeError, match=r"'fine/mean/R@7'; allowed here: coarse/mean/R@1"):
        run(tmp_path, primary_metric="fine/mean/R@7")
    assert not (tmp_path / CHECKPOINT_FILE).exists()


def test_the_batches_are_those_of_the_order_which_one_thread_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order keeps one epoch at a time: were it asked by two threads, one could get a batch of the other's epoch."""
    learner, dataset = make_learner(steps=30, accumulate=1, evaluate_every=30, checkpoint_every=30), make_dataset()
    trained: list[tuple[str, ...]] = []
    asking: set[int] = set()

    class WatchedOrder(BatchOrder):
        def __getitem__(self, position: int) -> list[int]:
            asking.add(threading.get_ident())
            return super().__getitem__(position)

    def record(*arguments: Any) -> StepReport:
        trained.extend(batch.caption_ids for batch in arguments[1])
        return StepReport(1, 1, 1, 1, 1, 1, 1, 1)

    monkeypatch.setattr(trainer, "BatchOrder", WatchedOrder)
    monkeypatch.setattr(trainer, "training_step", record)
    train(learner, dataset, "data", measure, tmp_path)
    assert len(asking) == 1
    order = BatchOrder(dataset.image_numbers, dataset.lengths, 4, learner.model.config.training.seed)
    assert trained == [tuple(f"c{index}" for index in order[position]) for position in range(30)]
