"""Which commit of a hub checkpoint was read: pinned, recorded with the model, and asked for again. No network."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from checkpoints import write_blip2, write_clip, write_hubert
from saysee.config import Config, ImageBackboneConfig, SpeechBackboneConfig
from saysee.errors import SayseeError
from saysee.models.backbones import load_image_backbone, load_speech_backbone
from saysee.models.backbones.weights import Checkpoint
from saysee.models.retrieval_model import SpeechImageModel

OLD, NEW = "0123456789" * 4, "abcdef0123" * 4
SIZES = {"width": 16, "embedding_dim": 8, "heads": 2}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The cache of the hub's client, laid out by hand: two commits of a HuBERT, one of a CLIP and a BLIP-2."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hubert = tmp_path / "models--someone--hubert"
    write_hubert(hubert / "snapshots" / OLD, "base")
    write_hubert(hubert / "snapshots" / NEW, "large")
    write_clip(tmp_path / "models--openai--clip" / "snapshots" / NEW)
    write_blip2(tmp_path / "models--someone--blip2" / "snapshots" / NEW)
    for repository in tmp_path.iterdir():
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(NEW)
    yield tmp_path


def test_the_commit_is_known_whether_or_not_the_configuration_names_one(cache: Path) -> None:
    newest = load_speech_backbone(SpeechBackboneConfig("hubert", "someone/hubert"))
    assert newest.revision == NEW
    pinned = load_speech_backbone(SpeechBackboneConfig("hubert", "someone/hubert", OLD))
    assert pinned.revision == OLD
    assert pinned.fingerprint != newest.fingerprint
    assert load_image_backbone(ImageBackboneConfig("clip", "openai/clip")).revision == NEW


def test_a_checkpoint_in_shards_is_found_in_the_cache_without_a_network(cache: Path) -> None:
    assert (cache / "models--someone--blip2" / "snapshots" / NEW / "model.safetensors.index.json").exists()
    assert load_image_backbone(ImageBackboneConfig("blip2", "someone/blip2")).revision == NEW


def test_what_is_not_in_the_cache_is_one_line_with_advice(cache: Path) -> None:
    for config in (
        SpeechBackboneConfig("hubert", "someone/else"),
        SpeechBackboneConfig("hubert", "someone/hubert", "1" * 40),
    ):
        with pytest.raises(SayseeError, match=r"cannot be had from the Hugging Face hub .*hf download NAME") as caught:
            load_speech_backbone(config)
        assert "\n" not in str(caught.value)


def test_all_files_are_of_one_commit_even_if_another_is_pushed_meanwhile(cache: Path) -> None:
    checkpoint = Checkpoint("someone/hubert").pinned()
    (cache / "models--someone--hubert" / "refs" / "main").write_text(OLD)
    path = checkpoint.find("model.safetensors")
    assert path is not None
    assert path.parent.name == NEW


def test_a_folder_has_no_revision(cache: Path) -> None:
    folder = cache / "models--openai--clip" / "snapshots" / NEW  # not even one that lies where the hub's client put it
    assert load_image_backbone(ImageBackboneConfig("clip", str(folder), "main")).revision is None


def test_a_model_folder_records_the_commits_and_is_read_with_them(cache: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = {"family": "hubert", "checkpoint": "someone/hubert"}
    model = SpeechImageModel.from_config(Config.from_dict({"model": {**SIZES, "speech_backbone": backbone}}))
    model.save_pretrained(tmp_path / "model")
    described = json.loads((tmp_path / "model" / "config.json").read_text())
    assert described["speech_backbone_revision"] == NEW
    assert described["image_backbone_revision"] is None
    assert described["model"]["speech_backbone"]["revision"] is None  # the configuration stays what the user wrote

    # another commit has become the newest since
    (cache / "models--someone--hubert" / "refs" / "main").write_text(OLD)
    again = SpeechImageModel.from_pretrained(tmp_path / "model")
    assert again.speech_backbone.revision == NEW
    assert again.fingerprint == model.fingerprint
