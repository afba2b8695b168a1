"""The whole way on real drawings and recordings, with the encoders that come with the package."""

import csv
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch

from command_line import finish, litter, saysee, start
from saysee import SpeechImageModel
from saysee.config import Config, LossConfig, ModelConfig, SearchConfig, TrainingConfig
from saysee.data.dataset import PairDataset
from saysee.data.extraction import extract_features
from saysee.data.manifest import SpokenCaption, read_manifest
from saysee.data.sample import sample_manifest_path
from saysee.evaluation.retrieval import evaluate_retrieval
from saysee.features.audio import SAMPLE_RATE, load_waveform
from saysee.features.store import FeatureStore
from saysee.models.backbones import ImageBackbone, SpeechBackbone, load_image_backbone, load_speech_backbone
from saysee.training.trainer import build_learner, train

SAYSEE = ("-m", "saysee")

# the smallest run with everything: momentum, queue, distillation, matching, dropout, evaluations between checkpoints
RECIPE = """\
model: {width: 32, embedding_dim: 16, heads: 2, multimodal_layers: 1}
loss: {queue_size: 32, distillation_ramp_steps: 10}
training: {steps: 30, batch_size: 8, learning_rate: 1.0e-3, warmup_steps: 5, evaluate_every: 6, checkpoint_every: 8}
"""

# Extracts the features of a manifest, when it is told that the other process is ready too.
EXTRACT = """
import sys
from pathlib import Path
from saysee.config import Config
from saysee.data.extraction import extract_features
from saysee.data.manifest import read_manifest
from saysee.models.backbones import load_image_backbone, load_speech_backbone
model = Config().model
encoders = load_speech_backbone(model.speech_backbone), load_image_backbone(model.image_backbone)
print("ready", flush=True)
sys.stdin.readline()
extract_features(read_manifest(Path(sys.argv[1])).captions, *encoders, Path(sys.argv[2]))
"""


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """As in the processes that are started here: the last bits depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture folder with a table, a manifest, a feature cache and a trained model; not to be changed."""
    folder = tmp_path_factory.mktemp("end to end")
    (folder / "recipe.yaml").write_text(RECIPE)
    rows = [caption for caption in read_manifest(sample_manifest_path()).captions if caption.language != "fr"][:24]
    pictures = folder / "pictures"
    pictures.mkdir()
    with (pictures / "recordings.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", "audio", "word", "language", "speaker"])
        for row in rows:
            audio = f"{row.language}-{row.audio.name}"
            shutil.copy(row.audio, pictures / audio)
            shutil.copy(row.image, pictures / row.image.name)
            table.writerow([row.image.name, audio, row.text, row.language, row.speaker])
    splits = ("--dev", "0.2", "--test", "0.25", "--seed", "1")
    outcome = saysee("prepare", "picture-folder", pictures, "--out", folder / "manifest.jsonl", *splits)
    assert outcome.status == 0, outcome.err
    assert "12 pictures, 24 recordings" in outcome.out
    trained = finish(start(SAYSEE, *training(folder, folder / "model")))
    assert trained.status == 0, trained.err
    assert re.fullmatch(r"trained 30 steps; the model of step \d+ \(dev coarse/mean/R@1 .* %\) is in .*\n", trained.out)
    assert trained.err == ""
    return folder


def training(folder: Path, out: Path) -> list[object]:
    manifest = folder / "manifest.jsonl"
    return ["train", folder / "recipe.yaml", "--data", manifest, "--out", out, "--cache", folder / "cache"]


def eight_pairs() -> list[SpokenCaption]:
    """The English recordings of the first eight drawings."""
    captions = read_manifest(sample_manifest_path()).captions
    return [replace(caption, split="train") for caption in captions if caption.language == "en"][:8]


# ---- learning


@pytest.mark.parametrize(
    "loss",
    [LossConfig(queue_size=16), LossConfig(queue_size=0, distillation_alpha=0.0)],
    ids=["momentum, queue and distillation", "contrast within the batch"],
)
def test_eight_real_pairs_are_learnt_by_heart(folder: Path, tmp_path: Path, loss: LossConfig) -> None:
    """R@1 is 100 % in both directions, coarse and fine, and the matching task has been learnt for itself."""
    sizes = ModelConfig(width=64, embedding_dim=64, heads=4, multimodal_layers=1, dropout=0.0)
    steps = TrainingConfig(steps=150, batch_size=8, learning_rate=1e-3, warmup_steps=5, evaluate_every=150)
    learner = build_learner(Config(sizes, loss, steps))
    pairs = eight_pairs()
    encoders = learner.model.speech_backbone, learner.model.image_backbone
    speech, images = extract_features(pairs, *encoders, folder / "cache")

    def recalls(model: SpeechImageModel, search: SearchConfig) -> dict[str, float]:
        metrics = evaluate_retrieval(model, pairs, speech, images, search=search).metrics()
        return {name: value for name, value in metrics.items() if name.endswith("R@1") and "mean" not in name}

    untrained = recalls(learner.model, SearchConfig())
    assert max(untrained.values()) < 0.7

    # measured once, behind the last step: that is the model that is kept
    train(learner, PairDataset(pairs, speech, images), "eight pairs", lambda _: {"coarse/mean/R@1": 0.0}, tmp_path)
    for search in (SearchConfig(), SearchConfig(fusion="match")):
        assert recalls(learner.model, search) == dict.fromkeys(untrained, 1.0), search.fusion

    # the same as a user asks it: from the folder, and from the files themselves
    model = SpeechImageModel.from_pretrained(tmp_path)
    heard = model.encode_speech([pair.audio for pair in pairs])
    seen = model.encode_image([pair.image for pair in pairs])
    assert model.similarity(heard, seen).argmax(1).tolist() == list(range(8))
    row, column = torch.cartesian_prod(torch.arange(8), torch.arange(8)).T
    log_odds = model.match(type(heard)(*(part[row] for part in heard)), type(seen)(*(part[column] for part in seen)))
    said = log_odds.view(8, 8) > 0
    assert said.diagonal().all()
    assert said.sum() <= 10  # two false alarms in 56


# ---- the five commands


def test_evaluate_prints_the_table_and_keeps_the_record(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    common = ("--data", folder / "manifest.jsonl", "--cache", folder / "cache", "--out", out)
    outcome = saysee("evaluate", folder / "model", *common)
    assert outcome.status == 0
    assert outcome.err == ""
    for stage in ("coarse", "fine"):
        for direction in ("speech to image", "image to speech", "mean of both"):
            assert re.search(rf"^{stage} +{direction} +\d+\.\d", outcome.out, re.MULTILINE)
    record = json.loads(out.read_text(encoding="utf-8"))
    captions = read_manifest(folder / "manifest.jsonl").of("test")
    assert record["about"]["captions"] == len(captions)
    assert record["about"]["images"] == len({caption.image_id for caption in captions})
    assert {"coarse/speech_to_image/R@1", "fine/image_to_speech/MRR"} <= record["metrics"].keys()
    assert "| coarse" in out.with_suffix(".md").read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.json", "results.md"]

    compared = saysee("compare", out, out, "--json")
    assert compared.status == 0
    assert json.loads(compared.out)


def test_index_and_search_answer_with_pictures(folder: Path, tmp_path: Path) -> None:
    index, question = tmp_path / "index", next((folder / "pictures").glob("es-*.ogg"))
    built = saysee("index", "build", folder / "pictures", "--model", folder / "model", "--into", index)
    assert (built.status, built.out, built.err) == (
        0,
        f"{index}: 12 pictures (12 new or changed, 25 of other kinds)\n",
        "",
    )

    table = saysee("search", index, question)
    assert (table.status, table.err) == (0, "")
    head, *rows = table.out.splitlines()
    assert head.split() == ["rank", "coarse", "fine", "picture"]
    assert [int(row.split()[0]) for row in rows] == list(range(1, 11))

    listed = json.loads(saysee("search", index, question, "--json", "--top", "12").out)["answers"]
    pictures = {str(path) for path in (folder / "pictures").glob("*.jpg")}
    assert {answer["path"] for answer in listed} == pictures
    for row, answer in zip(rows, listed, strict=False):
        assert row.endswith(answer["path"])
        assert row.split()[1:3] == [f"{answer['coarse']:.3f}", f"{answer['fine']:+.2f}"]

    sheet = tmp_path / "answers.html"
    shown = saysee("search", index, question, "--sheet", sheet, "--top", "3")
    assert (shown.status, shown.err) == (0, f"wrote {sheet}\n")
    page = sheet.read_text(encoding="utf-8")
    assert (page.count("<figure"), page.count("<audio")) == (3, 1)
    for answer in listed[:3]:
        assert Path(answer["path"]).stem.replace("_", " ") in page


# ---- features


@pytest.fixture(scope="session")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A feature cache of all files of the manifest, made at one go."""
    cache = tmp_path_factory.mktemp("alone")
    extract_features(read_manifest(folder / "manifest.jsonl").captions, *backbones(), cache)
    return cache


def same_features(a: Path, b: Path) -> bool:
    """Say whether two caches hold the same features of the same files, however they are cut into shards."""
    folders = [sorted(path.name for path in cache.iterdir() if path.is_dir()) for cache in (a, b)]
    if folders[0] != folders[1]:
        return False
    for name in folders[0]:
        first, second = FeatureStore(a, name), FeatureStore(b, name)
        rows = range(max(len(first), len(second)))
        if not all(first.key(n) == second.key(n) and torch.equal(first.read(n), second.read(n)) for n in rows):
            return False
    return True


def backbones() -> tuple[SpeechBackbone, ImageBackbone]:
    model = Config().model
    return load_speech_backbone(model.speech_backbone), load_image_backbone(model.image_backbone)


def test_two_processes_that_extract_at_once_make_the_entries_of_one(folder: Path, alone: Path, tmp_path: Path) -> None:
    command = (["-c", EXTRACT], folder / "manifest.jsonl", tmp_path)
    processes = [start(*command, stdin=subprocess.PIPE) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [finish(process).status for process in processes] == [0, 0]
    assert litter(tmp_path) == []
    assert same_features(tmp_path, alone)


def test_an_extraction_that_was_cut_short_goes_on_to_the_same_bytes(folder: Path, alone: Path, tmp_path: Path) -> None:
    """Else a run that is killed before its first step ends with other tensors than an undisturbed one."""
    captions = read_manifest(folder / "manifest.jsonl").captions
    for part in (captions[:5], captions):
        extract_features(part, *backbones(), tmp_path)
    assert same_features(tmp_path, alone)


def test_a_recording_that_was_changed_is_not_answered_from_the_cache(folder: Path, tmp_path: Path) -> None:
    """The same path, size and time, and other sound."""
    first, second, *_ = eight_pairs()
    waveforms = [load_waveform(caption.audio)[: SAMPLE_RATE // 2] for caption in (first, second)]
    caption = replace(first, audio=tmp_path / "recording.wav")
    encoders = backbones()
    entries, stats = [], []
    for waveform in waveforms:
        soundfile.write(caption.audio, waveform, SAMPLE_RATE)
        os.utime(caption.audio, (1_700_000_000, 1_700_000_000))
        stats.append((caption.audio.stat().st_size, caption.audio.stat().st_mtime))
        speech, _ = extract_features([caption], *encoders, tmp_path / "cache")
        entries.append(speech[caption.audio])
        hidden, _ = encoders[0]([encoders[0].prepare(load_waveform(caption.audio))])
        assert torch.equal(entries[-1], hidden[0].half())
    assert stats[0] == stats[1]
    assert entries[0].shape == entries[1].shape
    assert not torch.allclose(entries[0], entries[1], atol=0.1)
