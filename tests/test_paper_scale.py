"""The way of the paper's tables at a small size: published layouts of corpora and checkpoints, every command, kill -9.

Generated corpora of 50 images and random checkpoints of the published classes: what is left untested is size. Both
corpora go through every command, and every recipe of theirs is trained.
"""

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from checkpoints import write_blip2, write_clip, write_hubert
from command_line import Outcome, assert_mistake, contents, finish, saysee, start
from corpora import write_flickr8k, write_spoken_coco
from saysee.config import bundled_configs, load_config
from saysee.data.manifest import read_manifest
from saysee.training.trainer import CHECKPOINT_FILE

SAYSEE = ("-m", "saysee")

# the sizes of a recipe made small; all that makes it that recipe stays
SMALL = (
    *("--model.width", "32", "--model.heads", "2", "--model.multimodal_layers", "1", "--model.embedding_dim", "16"),
    *("--training.steps", "6", "--training.batch_size", "16", "--training.warmup_steps", "2"),
    *("--training.evaluate_every", "3", "--training.checkpoint_every", "2", "--search.rerank", "4"),
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
    for size in ("base", "large"):
        write_hubert(folder / f"hubert-{size}", size)
    write_blip2(folder / "blip2")
    write_clip(folder / "clip")
    return folder


@pytest.fixture(scope="module")
def manifests(folder: Path) -> dict[str, Path]:
    """Both corpora, each prepared with a warning that says the published numbers."""
    published = {"flickr8k": ("40,000", "8,000"), "spoken_coco": ("25,031", "5,000")}
    paths = {}
    for corpus, numbers in published.items():
        paths[corpus] = folder / f"{corpus}.jsonl"
        outcome = saysee("prepare", corpus.replace("_", "-"), folder / corpus, "--out", paths[corpus])
        assert outcome.status == 0, outcome.err
        assert all(number in outcome.err for number in numbers)
    return paths


@pytest.fixture(scope="module", params=["flickr8k", "spoken_coco"])
def corpus(request: pytest.FixtureRequest) -> str:
    """Every test that asks for it is made with both."""
    name: str = request.param
    return name


only_flickr8k = pytest.mark.parametrize("corpus", ["flickr8k"], indirect=True)


def other(corpus: str) -> str:
    return {"flickr8k": "spoken_coco", "spoken_coco": "flickr8k"}[corpus]


def fitted(folder: Path, recipe: str) -> list[str]:
    """The overrides that fit a recipe to the small checkpoints: HuBERT's four hidden states, say."""
    config = load_config(recipe)
    size = "base" if "base" in config.model.speech_backbone.checkpoint else "large"
    overrides = [
        *("--model.speech_backbone.checkpoint", str(folder / f"hubert-{size}")),
        *("--model.image_backbone.checkpoint", str(folder / config.model.image_backbone.family)),
        *SMALL,
    ]
    if config.model.speech_backbone.fixed_mix is not None:
        overrides += ["--model.speech_backbone.fixed_mix", "[1, 1, 1, 1]"]
    if config.model.image_projection == "none":  # the embedding is CLIP's own
        dim = json.loads((folder / "clip" / "config.json").read_text())["projection_dim"]
        overrides += ["--model.embedding_dim", str(dim)]
    if config.loss.queue_size > 0:
        overrides += ["--loss.queue_size", "64"]
    return overrides


def common(folder: Path, manifest: Path) -> tuple[object, ...]:
    return ("--data", manifest, "--cache", folder / "cache")


def arguments_of(folder: Path, manifests: dict[str, Path], command: str, corpus: str) -> tuple[object, ...]:
    """What stands in every command with a corpus's recipe, as it is typed."""
    recipe = f"{corpus}_c2f_large"
    return (command, recipe, *common(folder, manifests[corpus]), *fitted(folder, recipe))


@pytest.fixture(scope="module")
def extracted(folder: Path, manifests: dict[str, Path], corpus: str) -> Path:
    outcome = saysee(*arguments_of(folder, manifests, "extract", corpus))
    assert outcome.status == 0, outcome.err
    assert "the features will take about" in outcome.out
    return folder / "cache"


@pytest.fixture(scope="module")
def model(folder: Path, manifests: dict[str, Path], extracted: Path, corpus: str) -> Path:
    before = contents(extracted).keys()
    model = folder / f"model of {corpus}"
    outcome = saysee(*arguments_of(folder, manifests, "train", corpus), "--out", model)
    assert outcome.status == 0, outcome.err
    assert contents(extracted).keys() == before, "training extracted again"
    return model


def ended(*arguments: object) -> Outcome:
    return finish(start(SAYSEE, *arguments))


def test_evaluate_measures_both_stages(folder: Path, manifests: dict[str, Path], model: Path, corpus: str) -> None:
    outcome = saysee("evaluate", model, *common(folder, manifests[corpus]))
    assert outcome.status == 0, outcome.err
    about = json.loads((model / "results.json").read_text())["about"]
    test = read_manifest(manifests[corpus]).of("test")
    assert (about["captions"], about["images"]) == (len(test), len({caption.image_id for caption in test}))
    assert about["rerank"] == 4


def test_zero_shot_measures_another_corpus_and_refuses_its_own(
    folder: Path, manifests: dict[str, Path], model: Path, corpus: str
) -> None:
    elsewhere = other(corpus)
    outcome = saysee("zero-shot", model, *common(folder, manifests[elsewhere]))
    assert outcome.status == 0, outcome.err
    about = json.loads((model / f"zero-shot-{elsewhere}.json").read_text())["about"]
    assert about["zero_shot"] is True
    assert about["captions"] == len(read_manifest(manifests[elsewhere]).of("test"))
    own = saysee("zero-shot", model, *common(folder, manifests[corpus]), "--split", "dev")
    dev = read_manifest(manifests[corpus]).of("dev")
    faults = len(dev) + len({caption.image_id for caption in dev})
    assert_mistake(own, f"{faults} faults", "was in the model's train or dev split", lines=faults + 1)
    # the test split of the corpus it was trained on is unseen too: `evaluate` and `zero-shot` then agree
    assert saysee("zero-shot", model, *common(folder, manifests[corpus])).status == 0


def test_ablate_trains_two_rows_and_skips_them_the_second_time(
    folder: Path, manifests: dict[str, Path], extracted: Path, corpus: str
) -> None:
    out = folder / f"ablation of {corpus}"
    arguments = arguments_of(folder, manifests, "ablate", corpus)
    arguments = (*arguments, "--out", out, "--rows", "contrast,all", "--seeds", "0")
    first = saysee(*arguments)
    assert first.status == 0, first.err
    assert "contrast" in first.out
    before = contents(out)
    assert saysee(*arguments).status == 0
    after = contents(out)
    assert {name for name in before if before[name] != after[name]} <= {"ablation.md"}
    assert after.keys() == before.keys()


def test_every_recipe_trains_and_has_its_row_in_both_tables(
    folder: Path, manifests: dict[str, Path], extracted: Path, corpus: str
) -> None:
    """By the commands of docs/recipes.md, with each recipe fitted to the small checkpoints in a file of its name."""
    recipes = [name for name in bundled_configs() if name.startswith(corpus)]
    for name in recipes:
        steps = ("--training.steps", "2", "--training.batch_size", "8")
        config = load_config(name, [*fitted(folder, name), *steps]).to_dict()
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    stored = {path.name for path in extracted.iterdir()}
    out = folder / f"table of {corpus}"
    outcome = saysee(
        *("table", *(folder / f"{name}.yaml" for name in recipes), *common(folder, manifests[corpus])),
        *("--zero-shot", manifests[other(corpus)], "--out", out, "--seeds", "0"),
    )
    assert outcome.status == 0, outcome.err
    for path in (out / "table.json", out / f"zero-shot-{other(corpus)}.json"):
        assert [row["row"] for row in json.loads(path.read_text())["table"]] == recipes
        for name in recipes:
            about = json.loads((out / f"{name}-seed0" / path.name.replace("table", "results")).read_text())["about"]
            assert ("rerank" in about) is ("speechclip" not in name)  # it has no fine stage
    # HuBERT-base's features are new; those of the live recipes are not kept
    new = {path.name for path in extracted.iterdir()} - stored
    assert len(new) == (1 if f"{corpus}_c2f_base" in recipes else 0)


@only_flickr8k
def test_extraction_that_is_killed_twice_ends_with_the_same_features(
    folder: Path, manifests: dict[str, Path], extracted: Path, tmp_path: Path
) -> None:
    recipe = "flickr8k_c2f_large"
    files = ("--data", manifests["flickr8k"], "--cache", tmp_path / "cache")
    arguments = ("extract", recipe, *files, *fitted(folder, recipe))
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


@only_flickr8k
def test_training_that_is_killed_twice_ends_as_if_it_had_not_been(
    folder: Path, manifests: dict[str, Path], model: Path, tmp_path: Path
) -> None:
    arguments = (*arguments_of(folder, manifests, "train", "flickr8k"), "--out", tmp_path / "model")
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


@only_flickr8k
def test_torchrun_trains_with_two_processes(
    folder: Path, manifests: dict[str, Path], extracted: Path, tmp_path: Path
) -> None:
    """The whole command, as it is typed; that the result is that of one process, `tests/training` shows."""
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *SAYSEE)
    arguments = (*arguments_of(folder, manifests, "train", "flickr8k"), "--out", tmp_path / "model")
    outcome = finish(start(torchrun, *arguments))
    assert outcome.status == 0, outcome.err
    assert outcome.out.count("trained 6 steps") == 1
    assert saysee("evaluate", tmp_path / "model", *common(folder, manifests["flickr8k"])).status == 0
