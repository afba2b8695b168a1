"""The whole state of a run in one safetensors file, replaced by one rename.

Weights, momentum encoder, queue with its pointer, and AdamW's moments are tensors; step, best metric, format version,
configuration and data fingerprint are JSON in the file's header. Learning rate, data order and every random draw are
pure functions of seed and step (`optimizer.learning_rate`, `sampler.BatchOrder`, `sampler.mixed_seed`), so the step is
the whole state of schedule, sampler and chance. The state of torch's generator is kept and restored all the same, for
code between steps that draws from it.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from saysee.config import Config, differences
from saysee.errors import SayseeError
from saysee.files import atomic_path
from saysee.models.model_folder import hash_tensors
from saysee.training.step import Learner

FORMAT_VERSION = 1
HEADER = ("progress", "config", "data_fingerprint", "backbones", "tensors_sha256")


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        step: optimisation steps done.
        best_step: the step whose model is kept; 0 before the first evaluation.
        best_metric: its primary metric on dev.
    """

    step: int = 0
    best_step: int = 0
    best_metric: float = -1.0


def save_checkpoint(path: Path, learner: Learner, progress: Progress, config: Config, data_fingerprint: str) -> None:
    """Write the state after `progress.step` steps."""
    tensors = {f"model.{name}": tensor for name, tensor in learner.model.trainable_state().items()}
    if learner.momentum is not None:
        tensors |= {f"momentum.{name}": tensor for name, tensor in learner.momentum.state_dict().items()}
    tensors |= {f"queue.{name}": tensor for name, tensor in learner.queue.state_dict().items()}
    for number, moments in learner.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in moments.items()}
    tensors["random.torch"] = torch.get_rng_state()
    header = {
        "format_version": FORMAT_VERSION,
        "progress": asdict(progress),
        "config": config.to_dict(),
        "data_fingerprint": data_fingerprint,
        "backbones": _backbones(learner),
        "tensors_sha256": hash_tensors(tensors),
    }
    with atomic_path(path) as temporary:
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            temporary,
            {"saysee_checkpoint": json.dumps(header)},
        )


def load_checkpoint(path: Path, learner: Learner, config: Config, data_fingerprint: str) -> Progress:
    """Bring a learner to the saved state.

    Raises:
        SayseeError: a damaged file, another format, or a run with another configuration, other data or encoders.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            written = json.loads((file.metadata() or {})["saysee_checkpoint"])
        tensors = load_file(path)
        version = written["format_version"]
        header = {name: written[name] for name in HEADER}
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError, OSError) as error:
        raise SayseeError(f"{path} is damaged or no checkpoint ({error}); remove it to train from the start") from None
    if version != FORMAT_VERSION:
        raise SayseeError(
            f"{path} has checkpoint format {version}; this saysee reads {FORMAT_VERSION}: go on with "
            "the saysee that wrote it, or train into another folder"
        )
    if header["tensors_sha256"] != hash_tensors(tensors):
        raise SayseeError(f"{path} was altered or damaged after it was written; remove it to train from the start")
    if header["data_fingerprint"] != data_fingerprint:
        raise SayseeError(f"{path} belongs to a run on other data; train into another folder (--out)")
    if header["backbones"] != _backbones(learner):
        raise SayseeError(f"{path} belongs to a run on other frozen encoders; train into another folder (--out)")
    if header["config"] != config.to_dict():
        changed = ", ".join(differences(header["config"], config.to_dict()))
        raise SayseeError(f"{path} belongs to a run with another {changed}; train into another folder (--out)")

    learner.model.load_trainable_state(_below(tensors, "model."), str(path))
    if learner.momentum is not None:
        learner.momentum.load_state_dict(_below(tensors, "momentum."))
    learner.queue.load_state_dict(_below(tensors, "queue."))
    state = learner.optimizer.state_dict()
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _below(tensors, "optimizer.").items():
        number, moment = name.split(".")
        moments.setdefault(int(number), {})[moment] = tensor
    learner.optimizer.load_state_dict({"state": moments, "param_groups": state["param_groups"]})
    torch.set_rng_state(tensors["random.torch"])
    return Progress(**header["progress"])


def _backbones(learner: Learner) -> list[str]:
    return [learner.model.speech_backbone.fingerprint, learner.model.image_backbone.fingerprint]


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
