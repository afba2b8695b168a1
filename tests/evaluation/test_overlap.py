"""Zero-shot is refused where the model has heard or seen what it is tested on, under whatever name."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from command_line import write_corpus
from saysee.data.extraction import extract_features
from saysee.data.manifest import Manifest, ManifestError, SpokenCaption, read_manifest
from saysee.errors import SayseeError
from saysee.evaluation.overlap import SEEN_FILE, require_unseen, write_seen
from saysee.features.extract import StoredFeatures
from stubs import StubImageBackbone, StubSpeechBackbone


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return read_manifest(write_corpus(tmp_path / "corpus"))


def features(captions: list[SpokenCaption], folder: Path) -> tuple[StoredFeatures, StoredFeatures]:
    return extract_features(captions, StubSpeechBackbone(), StubImageBackbone(), folder / "cache")


@pytest.fixture
def model(manifest: Manifest, tmp_path: Path) -> Path:
    """A model folder that remembers train and dev."""
    seen = list(manifest.of("train", "dev"))
    write_seen(tmp_path / "model", seen, *features(seen, tmp_path))
    return tmp_path / "model"


def copied(caption: SpokenCaption, folder: Path, **kinds: str) -> SpokenCaption:
    """The caption with files of its own that have the same content."""
    copies = {}
    for kind, name in kinds.items():
        path = folder / name
        path.write_bytes(getattr(caption, kind).read_bytes())
        copies[kind] = path
    return replace(caption, image_id=kinds.get("image", caption.image_id), **copies)  # type: ignore[arg-type]


def test_what_shares_nothing_passes(manifest: Manifest, model: Path, tmp_path: Path) -> None:
    test = list(manifest.of("test"))
    require_unseen(model, test, *features(test, tmp_path))
    assert {name: len(seen) for name, seen in load_file(model / SEEN_FILE).items()} == {
        "recordings": 10,
        "pictures": 10,
    }


@pytest.mark.parametrize("row", [0, 9], ids=["train", "dev"])
def test_a_recording_and_a_picture_are_found_under_another_name(
    manifest: Manifest, model: Path, tmp_path: Path, row: int
) -> None:
    seen, (heard, looked_at) = manifest.captions[row], manifest.of("test")
    heard = replace(heard, audio=copied(seen, tmp_path, audio="other.wav").audio)
    looked_at = replace(looked_at, image=copied(seen, tmp_path, image="other.jpg").image, image_id="another")
    twice = replace(looked_at, id="once more", audio=heard.audio)
    captions = [heard, looked_at, twice]
    with pytest.raises(ManifestError) as caught:
        require_unseen(model, captions, *features(captions, tmp_path))
    assert caught.value.faults == [
        f"{heard.id!r}: its recording 'other.wav' was in the model's train or dev split",
        "the picture 'another' was in the model's train or dev split",
        "'once more': its recording 'other.wav' was in the model's train or dev split",
    ], "a picture once, however many captions it has"
    assert "zero-shot" in str(caught.value)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def of_another_kind(path: Path) -> None:
    save_file({"recordings": load_file(path)["recordings"]}, path)


@pytest.mark.parametrize("damage", [Path.unlink, cut, of_another_kind])
def test_a_record_that_is_missing_or_damaged_is_refused(
    manifest: Manifest, model: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    damage(model / SEEN_FILE)
    test = list(manifest.of("test"))
    with pytest.raises(SayseeError, match=SEEN_FILE) as caught:
        require_unseen(model, test, *features(test, tmp_path))
    assert not isinstance(caught.value, ManifestError)
    assert "\n" not in str(caught.value)
