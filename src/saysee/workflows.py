"""The longer commands as functions: manifest to model, model to results, answers to a contact sheet."""

import hashlib
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from saysee.config import Config, SearchConfig
from saysee.data.dataset import PairDataset
from saysee.data.estimate import bytes_of_features, bytes_of_recordings, gigabytes
from saysee.data.extraction import (
    AlteredSpeech,
    FileContents,
    LiveAlterations,
    LiveFeatures,
    StoredVariants,
    extract_features,
    extract_variants,
    picture_encoder,
    recording_encoder,
    variant_encoder,
)
from saysee.data.manifest import Manifest, Split, SpokenCaption
from saysee.errors import SayseeError
from saysee.evaluation.calibration import CalibrationError, calibrate
from saysee.evaluation.overlap import require_unseen, write_seen
from saysee.evaluation.results import Results
from saysee.evaluation.retrieval import evaluate_retrieval
from saysee.features.audio import load_waveform
from saysee.features.augmentation import altered_fingerprint
from saysee.features.containers import find_format
from saysee.features.extract import FileEncoder, Run, StoredFeatures, in_process, in_processes
from saysee.features.hashes import FileHashes
from saysee.features.image import load_image
from saysee.features.ray_cluster import on_ray
from saysee.features.store import FeatureStore, default_cache_folder
from saysee.files import free_bytes
from saysee.models.backbones import ImageBackbone, SpeechBackbone, load_image_backbone, load_speech_backbone
from saysee.models.calibration import Calibration
from saysee.models.model_folder import read_model_folder
from saysee.models.retrieval_model import SpeechImageModel
from saysee.search.searcher import Answer
from saysee.search.sheet import SheetAnswer, SheetQuestion, make_thumbnail, waveform_peaks
from saysee.training.checkpoint import Progress
from saysee.training.distributed import process_group
from saysee.training.trainer import autocast_for, build_learner, train

LIVE_BATCH = 32
"""Files that a frozen encoder sees at once when features are live; bounds memory (ours)."""


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
    """Train on a manifest's train split, choosing by its dev split; under torchrun, with all its processes.

    What is kept is calibrated on dev in the end, if dev has pictures enough.

    Args:
        config: the recipe.
        manifest: without structural faults.
        out: the model folder.
        cache: where features are kept; None takes the default folder.
        device: see `choose_device`; under torchrun `auto` is each process's own GPU.

    Raises:
        ManifestError: files that do not decode, all listed, before the first step (live features: when they are read).
        SayseeError: see `saysee.training.trainer.train`; or negative images are to come from the queue, which names
            what a picture shows and not which of a concept's pictures it was.
    """
    if config.loss.image_negatives_from == "queue" and any(caption.concept for caption in manifest.of("train")):
        raise SayseeError(
            "loss.image_negatives_from is queue, and the manifest has concepts, of whose pictures the queue does not "
            "know which it saw; give batch, or leave the concepts out"
        )
    cache = cache or default_cache_folder()
    with process_group(device, choose_device) as (ranks, chosen):
        learner = build_learner(config)
        model = learner.model
        for module in (model, learner.momentum, learner.queue):
            if module is not None:
                module.to(chosen)
        seen, dev = manifest.of("train", "dev"), manifest.of("dev")
        if not ranks.main:  # the first process extracts what is missing, the others then find it
            ranks.barrier()
        speech, images, identity = features_of(model, seen, cache, progress=ranks.main)
        altered = altered_speech_of(model, manifest.of("train"), speech, cache, progress=ranks.main)
        if ranks.main:
            ranks.barrier()

        # the fine stage costs many times the coarse one: it is measured during training where it is to choose
        fine = config.training.primary_metric.startswith("fine/")

        def evaluate(model: SpeechImageModel) -> Mapping[str, float]:
            return evaluate_retrieval(model, dev, speech, images, fine=fine).metrics()

        seconds = config.training.crop_seconds
        crop_frames = None if seconds is None else round(seconds * model.speech_backbone.frames_per_second)
        progress = train(
            learner,
            PairDataset(manifest.of("train"), speech, images, crop_frames, altered),
            identity,
            evaluate,
            out,
            progress_bar=ranks.main,
            ranks=ranks,
        )
        if ranks.main:
            write_seen(out, seen, speech, images)
            # the model that was kept may be that of an earlier step
            model.load_trainable_state(read_model_folder(out).state, str(out))
            with suppress(CalibrationError):  # search then does not say whether anything fits
                calibrate(model, dev, speech, images).write(out)
        return progress


def calibrate_on_manifest(
    model_folder: Path, manifest: Manifest, *, cache: Path | None = None, device: str = "auto"
) -> Calibration:
    """Calibrate a trained model on a manifest's dev split, and write that into its folder; training does so itself.

    Args:
        model_folder: what `train_on_manifest` or `SpeechImageModel.save_pretrained` wrote.
        manifest: without structural faults; its dev split must not have been in the model's training.
        cache: where features are kept; None takes the default folder.
        device: see `choose_device`.

    Raises:
        ManifestError: files that do not decode, all listed.
        CalibrationError: the dev split is too small, or the model gives all pairs one score.
        SayseeError: see `SpeechImageModel.from_pretrained`.
    """
    model = SpeechImageModel.from_pretrained(model_folder, choose_device(device))
    dev = manifest.of("dev")
    speech, images = extract_features(
        dev, model.speech_backbone, model.image_backbone, cache or default_cache_folder(), progress=True
    )
    calibration = calibrate(model, dev, speech, images)
    calibration.write(model_folder)
    return calibration


def features_of(
    model: SpeechImageModel, captions: Sequence[SpokenCaption], cache: Path, *, progress: bool = False
) -> tuple[StoredFeatures | LiveFeatures, StoredFeatures | LiveFeatures, str]:
    """Give the features that a model trains on, stored or live as its configuration says, and the data's identity.

    Args:
        model: its backbones make the features.
        captions: whose files are meant.
        cache: where features, or the hashes of files, are kept.
        progress: whether to show bars.

    Returns:
        Speech features, image features, and `data_fingerprint` of the captions.

    Raises:
        ManifestError: files that do not decode, all listed.
        SayseeError: with live features, the first file that cannot be read.
    """
    speech: StoredFeatures | LiveFeatures
    images: StoredFeatures | LiveFeatures
    if not model.config.training.live_features:
        speech, images = extract_features(
            captions, model.speech_backbone, model.image_backbone, cache, progress=progress
        )
        return speech, images, data_fingerprint(captions, speech, images)
    hashes = FileHashes(cache)
    speech = LiveFeatures(recording_encoder(model.speech_backbone, LIVE_BATCH), hashes)
    images = LiveFeatures(picture_encoder(model.image_backbone, LIVE_BATCH), hashes)
    identity = data_fingerprint(captions, speech, images)
    hashes.save()
    return speech, images, identity


def altered_speech_of(
    model: SpeechImageModel,
    captions: Sequence[SpokenCaption],
    speech: StoredFeatures | LiveFeatures,
    cache: Path,
    *,
    progress: bool = False,
) -> AlteredSpeech | None:
    """Give the recordings as a model hears them in training; None if its configuration leaves them as they are.

    Args:
        model: its backbone makes the features.
        captions: of train.
        speech: features of the same recordings as they are.
        cache: where features are kept.
        progress: whether to show bars.

    Raises:
        ManifestError: files that do not decode, all listed.
    """
    augmentation, backbone = model.config.augmentation, model.speech_backbone
    if not augmentation.kinds:
        return None
    if model.config.training.live_features:
        return LiveAlterations(backbone, augmentation, LIVE_BATCH)
    return StoredVariants([speech, *extract_variants(captions, backbone, augmentation, cache, progress=progress)])


def precision_warning(config: Config, device: str) -> str | None:
    """Return a warning if frozen encoders are to compute in bfloat16 on a processor that only imitates it, else None.

    Raises:
        SayseeError: see `choose_device`.
    """
    chosen = choose_device(device)
    precisions = config.model.speech_backbone.precision, config.model.image_backbone.precision
    if chosen.type != "cpu" or "bf16" not in precisions or autocast_for("auto", chosen) is not nullcontext:
        return None
    return (
        "warning: an encoder's precision is bf16, which this processor only imitates, tens of times as slowly as fp32; "
        "use a GPU, or give --model.speech_backbone.precision fp32 --model.image_backbone.precision fp32"
    )


def extract_on_manifest(
    config: Config,
    manifest: Manifest,
    *,
    cache: Path | None = None,
    workers: int = 1,
    batch_size: int = 1,
    ray: str | None = None,
    device: str = "auto",
    tell: Callable[[str], None] = print,
) -> None:
    """Bring the features of all files of a manifest into the store, altered copies too, before training needs them.

    Args:
        config: the recipe whose frozen encoders are meant.
        manifest: without structural faults.
        cache: where features are kept; None takes the default folder.
        workers: processes on this machine; with 1, this one.
        batch_size: files that are encoded together; see `saysee.features.extract.FileEncoder`.
        ray: address of a Ray cluster that does it instead.
        device: see `choose_device`; of every worker.
        tell: is given what the features will take, before the work begins.

    Raises:
        ManifestError: files that do not decode, all listed, when all others are done.
        SayseeError: the recipe's features are live, or the disk has too little room for what is expected.
    """
    if config.training.live_features:
        raise SayseeError(
            "training.live_features is true: this recipe runs its encoders in every step and reads nothing of what is "
            "extracted; leave extract out, or give --training.live_features false here and to train"
        )
    cache = cache or default_cache_folder()
    chosen = str(choose_device(device))
    speech = load_speech_backbone(config.model.speech_backbone)
    images = load_image_backbone(config.model.image_backbone)
    augmentation, train = config.augmentation, manifest.of("train")
    need = bytes_of_features(manifest.captions, speech, images)
    if augmentation.variants:
        need += augmentation.variants * bytes_of_recordings(train, speech)
    there = sum(FeatureStore(cache, fingerprint).nbytes for fingerprint in _fingerprints(config, speech, images))
    free = free_bytes(cache)
    tell(
        f"the features will take about {gigabytes(need)}; at {cache} there are {gigabytes(there)} of these encoders "
        f"and {gigabytes(free)} of room"
    )
    if need > free + there:
        raise SayseeError(
            f"the features will take about {gigabytes(need)} and {gigabytes(free)} are free at {cache}; give another "
            "--cache, or keep less of them: fewer layers, `fixed_mix`, `pool`, or the Q-Former's queries"
        )

    def run_of(make: Callable[[], FileEncoder], loaded: Callable[[], FileEncoder]) -> Run:
        """Say where files are encoded; in this process by the encoders that are loaded already."""
        if ray is not None:
            return on_ray(make, cache, ray, gpus=1 if chosen.startswith("cuda") else 0)
        if workers > 1:
            return in_processes(make, cache, workers)
        return in_process(loaded(), cache)

    runs = (
        run_of(
            partial(_make_recording_encoder, config, chosen, batch_size),
            lambda: recording_encoder(speech.to(chosen), batch_size),
        ),
        run_of(
            partial(_make_picture_encoder, config, chosen, batch_size),
            lambda: picture_encoder(images.to(chosen), batch_size),
        ),
    )
    variant_runs = [
        run_of(
            partial(_make_variant_encoder, config, chosen, batch_size, variant),
            partial(variant_encoder, speech, augmentation, variant, batch_size),
        )
        for variant in range(1, augmentation.variants + 1)
    ]
    extract_features(manifest.captions, speech, images, cache, runs=runs, progress=True)
    extract_variants(train, speech, augmentation, cache, runs=variant_runs, progress=True)


def remove_damaged(config: Config, cache: Path | None = None) -> int:
    """Read all stored features of a recipe's encoders, remove the shards that are damaged, and return how many."""
    removed = 0
    speech = load_speech_backbone(config.model.speech_backbone)
    images = load_image_backbone(config.model.image_backbone)
    for fingerprint in _fingerprints(config, speech, images):
        for path in FeatureStore(cache or default_cache_folder(), fingerprint).damaged():
            path.unlink(missing_ok=True)
            removed += 1
    return removed


def _fingerprints(config: Config, speech: SpeechBackbone, images: ImageBackbone) -> list[str]:
    """Return what the store calls the features of a recipe's encoders, and of its altered recordings."""
    variants = range(1, config.augmentation.variants + 1)
    altered = [altered_fingerprint(speech.fingerprint, config.augmentation, variant) for variant in variants]
    return [speech.fingerprint, images.fingerprint, *altered]


def _make_recording_encoder(config: Config, device: str, batch_size: int) -> FileEncoder:
    return recording_encoder(load_speech_backbone(config.model.speech_backbone).to(device), batch_size)


def _make_variant_encoder(config: Config, device: str, batch_size: int, variant: int) -> FileEncoder:
    backbone = load_speech_backbone(config.model.speech_backbone).to(device)
    return variant_encoder(backbone, config.augmentation, variant, batch_size)


def _make_picture_encoder(config: Config, device: str, batch_size: int) -> FileEncoder:
    return picture_encoder(load_image_backbone(config.model.image_backbone).to(device), batch_size)


def evaluate_on_manifest(
    model: SpeechImageModel,
    manifest: Manifest,
    split: Split,
    *,
    search: SearchConfig | None = None,
    fine: bool = True,
    about: dict[str, Any] | None = None,
    cache: Path | None = None,
    unseen_by: Path | None = None,
) -> Results:
    """Measure a model on one split of a manifest.

    Args:
        model: see `SpeechImageModel.from_pretrained`.
        manifest: without structural faults.
        split: which of its splits.
        search: k and fusion rule; None takes the model's own.
        fine: whether to measure the fine stage too, if the model has one.
        about: what else the record says of this evaluation.
        cache: where features are kept, or the hashes of files if the model's are live; None takes the default folder.
        unseen_by: the model's folder, for a zero-shot evaluation: nothing of the split may have been in its training.

    Raises:
        ManifestError: files that do not decode, all listed; with `unseen_by`, files that were in training or dev.
        SayseeError: the split is empty; `unseen_by` does not say what the model has seen.
    """
    captions = manifest.of(split)
    speech, images, _ = features_of(model, captions, cache or default_cache_folder(), progress=True)
    if unseen_by is not None:
        require_unseen(unseen_by, captions, speech, images)
    described = {"split": split, "split_by": manifest.split_by, "seed": model.config.training.seed, **(about or {})}
    return evaluate_retrieval(model, captions, speech, images, search=search, fine=fine, progress=True, about=described)


def data_fingerprint(captions: Iterable[SpokenCaption], speech: FileContents, images: FileContents) -> str:
    """Return the SHA-256 over ids, splits and the content of every file: where the files lie does not matter."""
    digest = hashlib.sha256()
    for caption in captions:
        concept = () if caption.concept is None else (caption.concept,)
        names = "\0".join((caption.id, caption.image_id, caption.split, *concept)).encode("utf-8", "surrogateescape")
        digest.update(names + b"\0" + speech.content(caption.audio) + images.content(caption.image) + b"\n")
    return digest.hexdigest()


def sheet_question(
    title: str, recording: bytes, answers: Sequence[Answer], *, note: str = "", correct: frozenset[Path] | None = None
) -> SheetQuestion:
    """Make one question of a contact sheet, with the recording itself and thumbnails of the answers.

    Args:
        title: what stands above it.
        recording: the question, the content of its file.
        answers: best first.
        note: what else is to be said of it.
        correct: the right pictures, if they are known.
    """
    kinds = {"wav": "audio/wav", "mp3": "audio/mpeg", "mp4": "audio/mp4", "webm": "audio/webm"}
    kind = find_format(io.BytesIO(recording)) or ""
    return SheetQuestion(
        title=title,
        audio=recording,
        audio_type=kinds.get(kind, f"audio/{kind}"),
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
