"""The longer commands as functions: devices, the identity of the data, training and measuring a manifest, a sheet."""

import json
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch
import yaml

from command_line import RECIPE, contents, stub_encoders, write_corpus
from media import AUDIO_KINDS, AudioKind, encode_audio, sine, write_image
from saysee import SpeechImageModel
from saysee.config import Config, SearchConfig
from saysee.data.manifest import Manifest, ManifestError, SpokenCaption, read_manifest
from saysee.errors import SayseeError
from saysee.evaluation.calibration import CalibrationError
from saysee.features.image import load_image
from saysee.features.store import FeatureStore
from saysee.models.calibration import CALIBRATION_FILE, read_calibration
from saysee.search.searcher import Answer
from saysee.search.sheet import make_thumbnail
from saysee.workflows import (
    calibrate_on_manifest,
    choose_device,
    data_fingerprint,
    evaluate_on_manifest,
    extract_on_manifest,
    features_of,
    precision_warning,
    remove_damaged,
    sheet_question,
    train_on_manifest,
)
from stubs import small_model


@pytest.fixture(autouse=True)
def stand_ins() -> Iterator[None]:
    with stub_encoders():
        yield


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return read_manifest(write_corpus(tmp_path / "corpus"))


def recipe(*overrides: str) -> Config:
    return Config.from_dict(yaml.safe_load(RECIPE), overrides)


# ---- devices


def test_auto_takes_the_gpu_that_is_there_and_else_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda")
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["tpu", "gpu", "", "cuda:99", "cpu:x", "meta"])
def test_a_device_that_cannot_be_used_is_one_line(name: str) -> None:
    # fails for `meta`, on which torch makes tensors that hold no numbers
    with pytest.raises(SayseeError, match=f"^device '{name}' cannot be used") as caught:
        choose_device(name)
    assert str(caught.value).endswith("; allowed: auto, cpu, cuda, cuda:1")
    assert "\n" not in str(caught.value)


# ---- the identity of the data


def fingerprint(captions: list[SpokenCaption]) -> str:
    """Return the fingerprint of captions whose files lie on disk."""
    return data_fingerprint(captions, OnDisk(), OnDisk())


class OnDisk:
    """What stands for the content of files, by reading them."""

    def content(self, path: Path) -> bytes:
        return sha256(path.read_bytes()).digest()[:16]


def entries(cache: Path) -> int:
    """Return how many files have their features in a cache."""
    return sum(len(FeatureStore(cache, folder.name)) for folder in cache.iterdir() if folder.is_dir())


def test_data_is_known_by_ids_splits_and_content(manifest: Manifest, tmp_path: Path) -> None:
    captions = list(manifest.captions)
    whole = fingerprint(captions)
    first, second, *rest = captions
    others = {
        "another id": [replace(first, id="other"), second, *rest],
        "another image_id": [replace(first, image_id="other"), second, *rest],
        "a concept": [replace(first, concept="other"), second, *rest],
        "another split": [replace(first, split="dev"), second, *rest],
        "another recording": [replace(first, audio=second.audio), second, *rest],
        "another picture": [replace(first, image=second.image), second, *rest],
        "another order": [second, first, *rest],
        "one less": captions[1:],
        "one twice": [first, *captions],
    }
    found = {name: fingerprint(changed) for name, changed in others.items()}
    assert len({whole, *found.values()}) == 1 + len(others), found

    second.audio.write_bytes(first.audio.read_bytes())
    changed = fingerprint(captions)
    assert changed not in (whole, *found.values())


def test_data_that_was_moved_is_the_same(manifest: Manifest, tmp_path: Path) -> None:
    captions = list(manifest.captions)
    before = fingerprint(captions)
    (tmp_path / "corpus").rename(tmp_path / "elsewhere")
    moved = read_manifest(tmp_path / "elsewhere" / "manifest.jsonl").captions
    assert moved[0].audio != captions[0].audio
    assert fingerprint(list(moved)) == before
    # what is written about a recording and not learnt from may be filled in later
    assert fingerprint([replace(caption, text="a word", speaker="omar") for caption in moved]) == before


# ---- training and measuring


def test_a_manifest_is_trained_on_train_and_chosen_by_dev(manifest: Manifest, tmp_path: Path) -> None:
    """What is in test is not even opened."""
    for caption in manifest.of("test"):
        caption.audio.unlink()
        caption.image.unlink()
    out = tmp_path / "model"
    progress = train_on_manifest(recipe(), manifest, out, cache=tmp_path / "cache", device="cpu")
    assert progress.step == 12
    lines = [json.loads(line) for line in (out / "training" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    by_step = {line["step"]: line["coarse/mean/R@1"] for line in lines if line["kind"] == "dev"}
    assert list(by_step) == [0, 4, 8, 12]
    best = max(by_step[step] for step in (4, 8, 12))
    assert progress.best_metric == best
    assert progress.best_step == next(step for step in (4, 8, 12) if by_step[step] == best)
    assert entries(tmp_path / "cache") == 20  # 10 recordings and pictures

    model = SpeechImageModel.from_pretrained(out)
    results = evaluate_on_manifest(model, manifest, "dev", cache=tmp_path / "cache")
    assert results.metric("coarse/mean/R@1") == best


def test_the_default_cache_is_the_users(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAYSEE_CACHE", str(tmp_path / "mine"))
    train_on_manifest(recipe("--training.steps", "1"), manifest, tmp_path / "model")
    assert entries(tmp_path / "mine") == 20
    evaluate_on_manifest(SpeechImageModel.from_pretrained(tmp_path / "model"), manifest, "test")
    assert entries(tmp_path / "mine") == 24


def test_contrast_alone_is_trained_without_momentum_and_matching(manifest: Manifest, tmp_path: Path) -> None:
    config = recipe("--loss.matching", "false", "--loss.queue_size", "0", "--loss.distillation_alpha", "0")
    train_on_manifest(config, manifest, tmp_path / "model", cache=tmp_path / "cache")
    names = {name.split(".")[0] for name in SpeechImageModel.from_pretrained(tmp_path / "model").trainable_state()}
    assert names == {"speech_encoder", "image_encoder", "temperature"}


def test_the_queue_gives_no_negative_images_where_pictures_have_concepts(manifest: Manifest, tmp_path: Path) -> None:
    """It says what a picture showed, and not which of a concept's pictures it was."""
    first, *rest = manifest.captions
    with_concept = Manifest("image", (replace(first, concept="dog"), *rest))
    with pytest.raises(SayseeError, match=r"image_negatives_from is queue, and the manifest has concepts"):
        train_on_manifest(
            recipe("--loss.image_negatives_from", "queue"), with_concept, tmp_path / "model", cache=tmp_path / "cache"
        )
    assert not (tmp_path / "model").exists()


def test_altered_copies_of_train_alone_are_stored_and_trained_on(manifest: Manifest, tmp_path: Path) -> None:
    out, plain, cache = tmp_path / "model", tmp_path / "plain", tmp_path / "cache"
    # certain: what befalls a copy follows from its bytes, and a WAV of floats holds the second it was written in
    kinds = ("--augmentation.snr_db", "[0, 10]", "--augmentation.probability", "1")
    altered = recipe("--augmentation.variants", "2", *kinds)
    extract_on_manifest(altered, manifest, cache=cache, device="cpu", tell=lambda line: None)
    assert entries(cache) == 24 + 2 * 8  # 8 of the 12 recordings are in train
    train_on_manifest(altered, manifest, out, cache=cache, device="cpu")
    assert entries(cache) == 24 + 2 * 8
    train_on_manifest(recipe(), manifest, plain, cache=cache, device="cpu")
    first, second = (SpeechImageModel.from_pretrained(folder).trainable_state() for folder in (out, plain))
    assert not all(first[name].equal(second[name]) for name in first)

    # on dev both hear the same
    model = SpeechImageModel.from_pretrained(out)
    _, _, seen = features_of(model, manifest.of("dev"), cache)
    assert seen == features_of(SpeechImageModel.from_pretrained(plain), manifest.of("dev"), cache)[2]
    shards = [path for folder in cache.iterdir() if folder.is_dir() for path in folder.glob("*.safetensors")]
    for path in shards:
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert remove_damaged(altered, cache) == len(shards)


def test_live_recordings_are_altered_by_the_seed(manifest: Manifest, tmp_path: Path) -> None:
    live = ("--training.live_features", "true", "--training.steps", "2", "--augmentation.gain_db", "[-20, 20]")
    states = []
    for number, seed in enumerate(["0", "0", "1"]):
        config = recipe(*live, "--training.seed", seed)
        train_on_manifest(config, manifest, tmp_path / str(number), cache=tmp_path / "cache", device="cpu")
        states.append(SpeechImageModel.from_pretrained(tmp_path / str(number)).trainable_state())
    plain = recipe(*live[:4])
    train_on_manifest(plain, manifest, tmp_path / "plain", cache=tmp_path / "cache", device="cpu")
    states.append(SpeechImageModel.from_pretrained(tmp_path / "plain").trainable_state())
    assert [all(states[0][name].equal(state[name]) for name in state) for state in states] == [True, True, False, False]


def test_nothing_is_trained_on_files_that_do_not_decode(manifest: Manifest, tmp_path: Path) -> None:
    manifest.captions[0].audio.write_text("no recording")
    manifest.captions[8].image.write_text("no picture")  # in dev
    with pytest.raises(ManifestError) as caught:
        train_on_manifest(recipe(), manifest, tmp_path / "model", cache=tmp_path / "cache")
    assert [fault.split(": ")[0] for fault in caught.value.faults] == [
        str(manifest.captions[0].audio),
        str(manifest.captions[8].image),
    ]
    assert not (tmp_path / "model").exists()


def test_a_record_says_what_was_measured(manifest: Manifest, tmp_path: Path) -> None:
    model = small_model()
    search = SearchConfig(rerank=1, fusion="match")
    results = evaluate_on_manifest(
        model, manifest, "test", search=search, about={"model": "runs/tiny", "split": "of my own"}, cache=tmp_path
    )
    told = results.about
    assert (told["captions"], told["images"], told["rerank"], told["fusion"]) == (2, 2, 1, "match")
    assert (told["split_by"], told["seed"], told["model"]) == ("image", 0, "runs/tiny")
    assert told["model_fingerprint"] == model.fingerprint
    assert told["split"] == "of my own"  # the caller's word is the last


# ---- calibration


@pytest.fixture
def many(tmp_path: Path, manifest: Manifest) -> Manifest:
    """The manifest with 36 pictures and recordings in dev, made of those that it has."""
    captions = list(manifest.captions)
    for number in range(34):
        image = write_image(tmp_path / f"dev-{number}.png", colour=f"hsl({10 * number + 5}, 50%, 40%)")
        audio = captions[number % 12].audio
        captions.append(SpokenCaption(f"dev-{number}", audio, image.name, image, None, "anna", "en", "dev"))
    return Manifest("image", tuple(captions))


def test_the_model_that_is_kept_is_calibrated_on_dev(
    many: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = iter([0.0, 0.3, 0.2, 0.1])  # by steps 0, 4, 8 and 12: the last model is not the best

    class Measured:
        def metrics(self) -> dict[str, float]:
            return {"coarse/mean/R@1": next(measured)}

    monkeypatch.setattr("saysee.workflows.evaluate_retrieval", lambda *_, **__: Measured())
    out, cache = tmp_path / "model", tmp_path / "cache"
    assert train_on_manifest(recipe(), many, out, cache=cache, device="cpu").best_step == 4
    model = SpeechImageModel.from_pretrained(out)
    calibration = read_calibration(out, model.fingerprint)
    assert calibration is not None
    assert (calibration.recordings, calibration.pictures, calibration.pairs) == (36, 36, 36 * 35)

    # a folder without it, as training left it before, gets the same
    written = (out / CALIBRATION_FILE).read_bytes()
    (out / CALIBRATION_FILE).unlink()
    assert calibrate_on_manifest(out, many, cache=cache, device="cpu") == calibration
    assert (out / CALIBRATION_FILE).read_bytes() == written


def test_a_dev_split_that_is_too_small_leaves_a_model_without_calibration(manifest: Manifest, tmp_path: Path) -> None:
    out, cache = tmp_path / "model", tmp_path / "cache"
    train_on_manifest(recipe("--training.steps", "1"), manifest, out, cache=cache)
    assert not (out / CALIBRATION_FILE).exists()
    with pytest.raises(CalibrationError, match="this one has 2; give a manifest with a larger dev split"):
        calibrate_on_manifest(out, manifest, cache=cache)


# ---- features beforehand, live, and of another corpus


def test_extraction_beforehand_leaves_training_nothing_to_do(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    cache = tmp_path / "cache"
    extract_on_manifest(recipe(), manifest, cache=cache, device="cpu", tell=told.append)
    assert entries(cache) == 24
    (line,) = told
    expected = sum(path.stat().st_size for path in cache.rglob("*.safetensors"))
    assert line.startswith("the features will take about ")
    assert expected < 100_000
    before = shards(cache)
    train_on_manifest(recipe("--training.steps", "1"), manifest, tmp_path / "model", cache=cache)
    assert shards(cache) == before


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saysee.workflows.free_bytes", lambda folder: 1000)
    with pytest.raises(SayseeError, match=r"will take about .* kB and 1\.0 kB are free"):
        extract_on_manifest(recipe(), manifest, cache=tmp_path / "cache", tell=lambda line: None)
    assert not (tmp_path / "cache").exists()


def shards(cache: Path) -> dict[str, bytes]:
    """The stored features; the remembered hashes of files come a moment after the files, sooner or later."""
    return {name: content for name, content in contents(cache).items() if name != "files.safetensors"}


def test_damaged_features_are_found_and_made_again(manifest: Manifest, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    extract_on_manifest(recipe(), manifest, cache=cache, tell=lambda line: None)
    before = shards(cache)
    shard = max(cache.glob("*/*.safetensors"), key=lambda path: path.stat().st_size)
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    shard.write_bytes(damaged)
    assert remove_damaged(recipe(), cache) == 1
    assert remove_damaged(recipe(), cache) == 0
    extract_on_manifest(recipe(), manifest, cache=cache, tell=lambda line: None)
    assert shards(cache) == before


def test_live_features_train_as_stored_ones_do_and_leave_no_features(manifest: Manifest, tmp_path: Path) -> None:
    """Up to the rounding to float16 that storing is."""
    losses = []
    for live in ("false", "true"):
        out = tmp_path / live
        config = recipe("--training.live_features", live, "--training.steps", "3", "--training.precision", "fp32")
        train_on_manifest(config, manifest, out, cache=tmp_path / f"cache-{live}", device="cpu")
        lines = [json.loads(line) for line in (out / "training" / "log.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines if line["kind"] == "train"])
        model = SpeechImageModel.from_pretrained(out)
        results = evaluate_on_manifest(model, manifest, "test", cache=tmp_path / f"cache-{live}", unseen_by=out)
        assert results.about["captions"] == 2
    assert losses[1] == pytest.approx(losses[0], abs=2e-3)
    assert entries(tmp_path / "cache-false") == 24
    assert not list((tmp_path / "cache-true").glob("*/*.safetensors"))


@pytest.mark.parametrize("native", [False, True])
def test_bfloat16_is_warned_of_where_it_is_only_imitated(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    slow = recipe("--model.image_backbone.precision", "bf16")
    assert (precision_warning(slow, "cpu") is None) is native
    assert precision_warning(recipe(), "cpu") is None
    assert native or "this processor only imitates" in str(precision_warning(slow, "auto"))


def test_what_would_never_be_read_is_not_extracted(manifest: Manifest, tmp_path: Path) -> None:
    live = recipe("--training.live_features", "true")
    with pytest.raises(SayseeError, match=r"live_features is true: .* leave extract out, or give --training\.live"):
        extract_on_manifest(live, manifest, cache=tmp_path / "cache", tell=lambda line: None)
    assert not (tmp_path / "cache").exists()


def test_zero_shot_wants_a_corpus_that_the_model_has_not_seen(manifest: Manifest, tmp_path: Path) -> None:
    out, cache = tmp_path / "model", tmp_path / "cache"
    train_on_manifest(recipe("--training.steps", "1"), manifest, out, cache=cache)
    model = SpeechImageModel.from_pretrained(out)
    evaluate_on_manifest(model, manifest, "test", cache=cache, unseen_by=out)
    for split, seen in (("train", 8), ("dev", 2)):
        with pytest.raises(ManifestError, match="not zero-shot") as caught:
            evaluate_on_manifest(model, manifest, split, cache=cache, unseen_by=out)  # type: ignore[arg-type]
        assert len(caught.value.faults) == 2 * seen
    # the same picture under another name, with a recording that is new
    test, first = manifest.of("test")[0], manifest.captions[0]
    copy = tmp_path / "copy.png"
    copy.write_bytes(first.image.read_bytes())
    other = Manifest("image", (replace(test, image=copy, image_id="copy"),))
    with pytest.raises(ManifestError, match="the picture 'copy' was in the model's train or dev split"):
        evaluate_on_manifest(model, other, "test", cache=cache, unseen_by=out)
    (out / "seen.safetensors").unlink()
    with pytest.raises(SayseeError, match=r"seen\.safetensors is missing"):
        evaluate_on_manifest(model, manifest, "test", cache=cache, unseen_by=out)


# ---- the sheet


def test_a_question_of_a_sheet_holds_recording_pictures_and_scores(tmp_path: Path) -> None:
    recording = encode_audio(sine(0.5), 16_000, "wav")
    cat, dog = write_image(tmp_path / "a_black_cat.png", colour="black"), write_image(tmp_path / "dog.jpg")
    answers = [Answer(1, "a", cat, 0.5, 2.0, 0), Answer(2, "b", dog, 0.25, None, 0)]
    question = sheet_question("What?", recording, answers, note="New.", correct=frozenset({dog}))
    assert (question.title, question.note, question.audio) == ("What?", "New.", recording)
    shown = [(answer.caption, answer.coarse, answer.fine, answer.correct) for answer in question.answers]
    assert shown == [("a black cat", 0.5, 2.0, False), ("dog", 0.25, None, True)]
    assert [answer.image for answer in question.answers] == [make_thumbnail(load_image(path)) for path in (cat, dog)]
    assert max(question.peaks) == 1
    assert [answer.correct for answer in sheet_question("What?", recording, answers).answers] == [None, None]


@pytest.mark.parametrize("kind", AUDIO_KINDS)
def test_a_browser_is_told_the_right_type_of_every_recording_that_is_read(kind: AudioKind) -> None:
    # the types as registered at IANA
    expected = {"ogg": "ogg", "opus": "ogg", "mp3": "mpeg", "m4a": "mp4"}.get(kind, kind)
    recording = encode_audio(sine(0.5, 48_000), 48_000, kind)
    assert sheet_question("What?", recording, []).audio_type == f"audio/{expected}"
