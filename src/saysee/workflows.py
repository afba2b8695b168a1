"""The longer commands as functions: manifest to model, model to results, answers to a contact sheet."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from saysee.config import Config, SearchConfig
from saysee.data.dataset import PairDataset, extract_features
from saysee.data.manifest import Manifest, Split, SpokenCaption
from saysee.errors import SayseeError
from saysee.evaluation.results import Results
from saysee.evaluation.retrieval import evaluate_retrieval
from saysee.features.audio import load_waveform
from saysee.features.cache import default_cache_folder
from saysee.features.extract import CachedFeatures
from saysee.features.image import load_image
from saysee.models.retrieval_model import SpeechImageModel
from saysee.search.searcher import Answer
from saysee.search.sheet import SheetAnswer, SheetQuestion, make_thumbnail, waveform_peaks
from saysee.training.checkpoint import Progress
from saysee.training.trainer import build_learner, train


def choose_device(name: str) -> torch.device:
    """Return the device that `name` means: `auto` is the GPU if torch has one, else the CPU.

    Raises:
        SayseeError: torch does not know it, or it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SayseeError(f"device {name!r} cannot be used ({reason}); allowed: auto, cpu, cuda, cuda:1") from None
    return device


def train_on_manifest(
    config: Config, manifest: Manifest, out: Path, *, cache: Path | None = None, device: str = "auto"
) -> Progress:
    """Train on a manifest's train split, choosing by its dev split.

    Args:
        config: the recipe.
        manifest: without structural faults.
        out: the model folder.
        cache: where features are kept; None takes the default folder.
        device: see `choose_device`.

    Raises:
        ManifestError: files that do not decode, all listed, before the first step.
        SayseeError: see `saysee.training.trainer.train`.
    """
    learner = build_learner(config)
    chosen = choose_device(device)
    for module in (learner.model, learner.momentum, learner.queue):
        if module is not None:
            module.to(chosen)
    training, dev = manifest.of("train"), manifest.of("dev")
    speech, images = extract_features(
        [*training, *dev],
        learner.model.speech_backbone,
        learner.model.image_backbone,
        cache or default_cache_folder(),
        progress=True,
    )

    # the fine stage costs many times the coarse one: it is measured during training where it is to choose
    fine = config.training.primary_metric.startswith("fine/")

    def evaluate(model: SpeechImageModel) -> Mapping[str, float]:
        return evaluate_retrieval(model, dev, speech, images, fine=fine).metrics()

    return train(
        learner,
        PairDataset(training, speech, images),
        data_fingerprint([*training, *dev], speech, images),
        evaluate,
        out,
        progress_bar=True,
    )


def evaluate_on_manifest(
    model: SpeechImageModel,
    manifest: Manifest,
    split: Split,
    *,
    search: SearchConfig | None = None,
    fine: bool = True,
    about: dict[str, Any] | None = None,
    cache: Path | None = None,
) -> Results:
    """Measure a model on one split of a manifest.

    Args:
        model: see `SpeechImageModel.from_pretrained`.
        manifest: without structural faults.
        split: which of its splits.
        search: k and fusion rule; None takes the model's own.
        fine: whether to measure the fine stage too, if the model has one.
        about: what else the record says of this evaluation.
        cache: where features are kept; None takes the default folder.

    Raises:
        ManifestError: files that do not decode, all listed.
        SayseeError: the split is empty.
    """
    captions = manifest.of(split)
    speech, images = extract_features(
        captions, model.speech_backbone, model.image_backbone, cache or default_cache_folder(), progress=True
    )
    return evaluate_retrieval(
        model,
        captions,
        speech,
        images,
        search=search,
        fine=fine,
        progress=True,
        about={"split": split, "split_by": manifest.split_by, "seed": model.config.training.seed, **(about or {})},
    )


def data_fingerprint(captions: Sequence[SpokenCaption], speech: CachedFeatures, images: CachedFeatures) -> str:
    """Return the SHA-256 over ids, splits and the content of every file: where the files lie does not matter."""
    digest = hashlib.sha256()
    for caption in captions:
        parts = (
            caption.id,
            caption.image_id,
            caption.split,
            speech.content[caption.audio],
            images.content[caption.image],
        )
        digest.update("\0".join(parts).encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()


def sheet_question(
    title: str, recording: Path, answers: Sequence[Answer], *, note: str = "", correct: frozenset[Path] | None = None
) -> SheetQuestion:
    """Make one question of a contact sheet, with the recording itself and thumbnails of the answers.

    Args:
        title: what stands above it.
        recording: the question.
        answers: best first.
        note: what else is to be said of it.
        correct: the right pictures, if they are known.
    """
    kinds = {
        ".wav": "audio/wav",
        ".mp3": "audio/mpeg",
        ".m4a": "audio/mp4",
        ".mp4": "audio/mp4",
        ".aac": "audio/aac",
        ".webm": "audio/webm",
        ".flac": "audio/flac",
    }
    return SheetQuestion(
        title=title,
        audio=recording.read_bytes(),
        audio_type=kinds.get(recording.suffix.lower(), "audio/ogg"),
        note=note,
        answers=[
            SheetAnswer(
                image=make_thumbnail(load_image(answer.path)),
                caption=answer.path.stem.replace("_", " "),
                coarse=answer.coarse,
                fine=answer.fine,
                correct=None if correct is None else answer.path in correct,
            )
            for answer in answers
        ],
        peaks=waveform_peaks(load_waveform(recording)),
    )
