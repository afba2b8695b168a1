"""The way of the paper's tables at a small size: published layouts of corpora and checkpoints, every command, kill -9.

Generated corpora of 50 images and random checkpoints of the published classes: what is left untested is size.
"""

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from checkpoints import write_blip2, write_clip, write_hubert
from command_line import Outcome, assert_mistake, contents, finish, saysee, start
from corpora import write_flickr8k, write_spoken_coco
from saysee.data.manifest import read_manifest
from saysee.training.trainer import CHECKPOINT_FILE

SAYSEE = ("-m", "saysee")

# the sizes of a recipe made small; all that makes it that recipe stays
SMALL = (
    *("--model.width", "32", "--model.heads", "2", "--model.multimodal_layers", "1", "--model.embedding_dim", "16"),
    *("--training.steps", "6", "--training.batch_size", "16", "--training.warmup_steps", "2"),
    *("--training.evaluate_every", "3", "--training.checkpoint_every", "2", "--loss.queue_size", "64"),
    *("--search.rerank", "4"),
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As in the processes that are started here: the last bits depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two corpora with their manifests, and checkpoints; not to be changed."""
    folder = tmp_path_factory.mktemp("paper scale")
    write_flickr8k(folder / "flickr8k", images=50)
    write_spoken_coco(folder / "spoken_coco", images=50, karpathy="karpathy", seed=1)
    write_hubert(folder / "hubert", "large")
    write_blip2(folder / "blip2")
    write_clip(folder / "clip")
    return folder


@pytest.fixture(scope="module")
def flickr8k(folder: Path) -> Path:
    outcome = saysee("prepare", "flickr8k", folder / "flickr8k", "--out", folder / "flickr8k.jsonl")
    assert outcome.status == 0, outcome.err
    assert "40,000" in outcome.err
    assert "8,000" in outcome.err
    return folder / "flickr8k.jsonl"


@pytest.fixture(scope="module")
def spoken_coco(folder: Path) -> Path:
    outcome = saysee("prepare", "spoken-coco", folder / "spoken_coco", "--out", folder / "spoken_coco.jsonl")
    assert outcome.status == 0, outcome.err
    assert "25,031" in outcome.err
    assert "5,000" in outcome.err
    return folder / "spoken_coco.jsonl"


def encoders(folder: Path, image: str = "blip2") -> tuple[object, ...]:
    return (
        *("--model.speech_backbone.checkpoint", folder / "hubert"),
        *("--model.image_backbone.checkpoint", folder / image),
    )


def c2f(folder: Path) -> tuple[object, ...]:
    """The overrides that fit `flickr8k_c2f_large` to the small checkpoints: HuBERT's four hidden states, say."""
    return (*encoders(folder), "--model.speech_backbone.fixed_mix", "[1, 1, 1, 1]", *SMALL)


def common(folder: Path, manifest: Path) -> tuple[object, ...]:
    return ("--data", manifest, "--cache", folder / "cache")


@pytest.fixture(scope="module")
def extracted(folder: Path, flickr8k: Path) -> Path:
    outcome = saysee("extract", "flickr8k_c2f_large", *common(folder, flickr8k), *c2f(folder))
    assert outcome.status == 0, outcome.err
    assert "the features will take about" in outcome.out
    return folder / "cache"


@pytest.fixture(scope="module")
def model(folder: Path, flickr8k: Path, extracted: Path) -> Path:
    before = contents(extracted).keys()
    outcome = ended("train", "flickr8k_c2f_large", *common(folder, flickr8k), *c2f(folder), "--out", folder / "model")
    assert outcome.status == 0, outcome.err
    assert contents(extracted).keys() == before, "training extracted again"
    return folder / "model"


def ended(*arguments: object) -> Outcome:
    return finish(start(SAYSEE, *arguments))


def test_evaluate_measures_both_stages(folder: Path, flickr8k: Path, model: Path) -> None:
    outcome = saysee("evaluate", model, *common(folder, flickr8k))
    assert outcome.status == 0, outcome.err
    about = json.loads((model / "results.json").read_text())["about"]
    test = read_manifest(flickr8k).of("test")
    assert (about["captions"], about["images"]) == (len(test), len({caption.image_id for caption in test}))
    assert about["rerank"] == 4


def test_zero_shot_measures_another_corpus_and_refuses_its_own(
    folder: Path, flickr8k: Path, spoken_coco: Path, model: Path
) -> None:
    outcome = saysee("zero-shot", model, *common(folder, spoken_coco))
    assert outcome.status == 0, outcome.err
    about = json.loads((model / "zero-shot-spoken_coco.json").read_text())["about"]
    assert about["zero_shot"] is True
    assert about["captions"] == len(read_manifest(spoken_coco).of("test"))
    own = saysee("zero-shot", model, *common(folder, flickr8k), "--split", "dev")
    dev = read_manifest(flickr8k).of("dev")
    faults = len(dev) + len({caption.image_id for caption in dev})
    assert_mistake(own, f"{faults} faults", "was in the model's train or dev split", lines=faults + 1)
    # the test split of the corpus it was trained on is unseen too: `evaluate` and `zero-shot` then agree
    assert saysee("zero-shot", model, *common(folder, flickr8k)).status == 0


def test_ablate_trains_two_rows_and_skips_them_the_second_time(folder: Path, flickr8k: Path, extracted: Path) -> None:
    arguments = ("ablate", "flickr8k_c2f_large", *common(folder, flickr8k), *c2f(folder))
    arguments = (*arguments, "--out", folder / "ablation", "--rows", "contrast,all", "--seeds", "0")
    first = saysee(*arguments)
    assert first.status == 0, first.err
    assert "contrast" in first.out
    before = contents(folder / "ablation")
    assert saysee(*arguments).status == 0
    after = contents(folder / "ablation")
    assert {name for name in before if before[name] != after[name]} <= {"ablation.md"}
    assert after.keys() == before.keys()


def test_the_speechclip_baseline_trains_live_with_clips_own_embedding(folder: Path, flickr8k: Path) -> None:
    recipe = "flickr8k_speechclip_parallel_large"
    sizes = ("--model.width", "32", "--model.heads", "2", "--training.steps", "2", "--training.warmup_steps", "1")
    dim = json.loads((folder / "clip" / "config.json").read_text())["projection_dim"]
    outcome = saysee(
        *("train", recipe, *common(folder, flickr8k), *encoders(folder, "clip"), *sizes),
        *("--model.embedding_dim", dim, "--training.batch_size", "8", "--out", folder / "speechclip"),
    )
    assert outcome.status == 0, outcome.err
    assert saysee("evaluate", folder / "speechclip", *common(folder, flickr8k)).status == 0


def test_extraction_that_is_killed_twice_ends_with_the_same_features(
    folder: Path, flickr8k: Path, extracted: Path, tmp_path: Path
) -> None:
    arguments = ("extract", "flickr8k_c2f_large", "--data", flickr8k, "--cache", tmp_path / "cache", *c2f(folder))
    for shards_there in (0, 1):  # as soon as it is at work, and between recordings and pictures
        process = start(SAYSEE, *arguments)
        while process.poll() is None and (
            not (tmp_path / "cache").exists() or len(shards(tmp_path / "cache")) < shards_there
        ):
            time.sleep(0.001)
        process.kill()
        assert finish(process).status == -signal.SIGKILL, "the run ended before it was killed"
    last = ended(*arguments)
    assert last.status == 0, last.err

    received, expected = shards(tmp_path / "cache"), shards(extracted)
    assert received
    assert received == {name: expected[name] for name in received}


def shards(cache: Path) -> dict[str, bytes]:
    """Return the shards of a cache, without what a killed process left."""
    return {name: content for name, content in contents(cache).items() if name.endswith(".safetensors") and "/" in name}


def test_training_that_is_killed_twice_ends_as_if_it_had_not_been(
    folder: Path, flickr8k: Path, model: Path, tmp_path: Path
) -> None:
    arguments = ("train", "flickr8k_c2f_large", *common(folder, flickr8k), *c2f(folder), "--out", tmp_path / "model")
    log = tmp_path / "model" / "training" / "log.jsonl"
    for lines in (3, 6):
        process = start(SAYSEE, *arguments)
        while process.poll() is None and (not log.exists() or log.read_bytes().count(b"\n") < lines):
            time.sleep(0.001)
        process.kill()
        assert finish(process).status == -signal.SIGKILL, "the run ended before it was killed"
    last = ended(*arguments)
    assert last.status == 0, last.err
    for name in ("model.safetensors", "seen.safetensors", CHECKPOINT_FILE):
        expected, received = load_file(model / name), load_file(tmp_path / "model" / name)
        assert expected.keys() == received.keys()
        for key, tensor in expected.items():
            assert torch.equal(received[key], tensor), (name, key)


def test_torchrun_trains_with_two_processes(folder: Path, flickr8k: Path, extracted: Path, tmp_path: Path) -> None:
    """The whole command, as it is typed; that the result is that of one process, `tests/training` shows."""
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *SAYSEE)
    arguments = ("train", "flickr8k_c2f_large", *common(folder, flickr8k), *c2f(folder), "--out", tmp_path / "model")
    outcome = finish(start(torchrun, *arguments))
    assert outcome.status == 0, outcome.err
    assert outcome.out.count("trained 6 steps") == 1
    assert saysee("evaluate", tmp_path / "model", *common(folder, flickr8k)).status == 0
