import json
from pathlib import Path
from typing import Literal

import pytest

from corpora import write_places
from saysee.data.manifest import SPLITS, ManifestError, read_manifest, write_manifest
from saysee.data.places import prepare
from saysee.data.validate import validate
from saysee.errors import SayseeError

OF_2020 = ("train_2020", "dev_seen_2020", "dev_unseen_2020", "test_seen_2020", "test_unseen_2020")


def entries(folder: Path, name: str) -> list[dict[str, str]]:
    data: list[dict[str, str]] = json.loads((folder / "metadata" / f"{name}.json").read_text())["data"]
    return data


def test_the_first_splits_become_a_sound_manifest(tmp_path: Path) -> None:
    corpus = write_places(tmp_path)
    prepared = prepare(corpus, dev=0.2)
    manifest = prepared.manifest
    entry = entries(corpus, "val")[3]
    caption = next(c for c in manifest.captions if c.id == entry["uttid"])
    assert (caption.audio, caption.image) == (corpus / entry["wav"], corpus / "images" / entry["image"])
    assert (caption.image_id, caption.text, caption.speaker) == (entry["image"], entry["asr_text"], entry["speaker"])
    assert (caption.language, caption.split) == ("en", "test")
    assert set(manifest.images("test")) == {e["image"] for e in entries(corpus, "val")}
    assert set(manifest.images("train")) | set(manifest.images("dev")) == {e["image"] for e in entries(corpus, "train")}
    assert prepared.notes[1] == "splits: val is test, dev drawn from train by image with seed 0 (ours)"
    assert prepared.warnings == []
    assert validate(manifest) == []
    write_manifest(corpus / "manifest.jsonl", manifest)
    assert read_manifest(corpus / "manifest.jsonl") == manifest


@pytest.mark.parametrize("held_out", ["seen", "unseen"])
def test_the_splits_of_2020_are_preferred_and_their_pairs_kept_apart(
    tmp_path: Path, held_out: Literal["seen", "unseen"]
) -> None:
    write_places(tmp_path)
    corpus = write_places(tmp_path, splits=OF_2020)
    prepared = prepare(corpus, held_out=held_out)
    expected = dict(zip(SPLITS, ("train_2020", f"dev_{held_out}_2020", f"test_{held_out}_2020"), strict=True))
    for split, name in expected.items():
        assert {c.id for c in prepared.manifest.of(split)} == {e["uttid"] for e in entries(corpus, name)}
    assert prepared.notes[1] == f"splits are those of 2020, dev and test {held_out}"


@pytest.mark.parametrize("home", ["places205", "Places205", "imagesPlaces205_resize", "."])
def test_photographs_in_a_folder_of_the_corpus(tmp_path: Path, home: str) -> None:
    corpus = write_places(tmp_path, image_home=home)
    assert all(c.image == corpus / home / c.image_id for c in prepare(corpus, dev=0.2).manifest.captions)


def test_photographs_elsewhere_are_given_or_found_where_the_files_say(tmp_path: Path) -> None:
    corpus = write_places(tmp_path / "corpus", image_home="../others/images", base_path=str(tmp_path / "others"))
    images = tmp_path / "others" / "images"
    assert prepare(corpus, dev=0.2) == prepare(corpus, dev=0.2, images=images)
    assert prepare(corpus, dev=0.2).manifest.captions[0].image.is_relative_to(images)


def test_base_paths_of_a_machine_that_is_not_here_or_has_other_files_are_passed_over(tmp_path: Path) -> None:
    corpus = write_places(tmp_path / "corpus", base_path=str(tmp_path / "others"))
    expected = prepare(corpus, dev=0.2)
    (tmp_path / "others" / "images").mkdir(parents=True)
    (tmp_path / "others" / "PlacesAudio_400k_distro").mkdir()
    assert prepare(corpus, dev=0.2) == expected
    assert expected.manifest.captions[0].audio.is_relative_to(corpus)


def test_a_base_path_that_is_relative_does_not_start_at_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write_places(tmp_path / "corpus", base_path="others")
    write_places(tmp_path, image_home="others/images")
    monkeypatch.chdir(tmp_path)
    assert prepare(corpus, dev=0.2).manifest.captions[0].image.is_relative_to(corpus)


def test_all_faults_are_listed_at_once(tmp_path: Path) -> None:
    corpus = write_places(tmp_path)
    first = entries(corpus, "train")[0]
    (corpus / first["wav"]).unlink()
    path = corpus / "metadata" / "val.json"
    content = json.loads(path.read_text())
    content["data"] += [5, {"wav": "wavs/0/x.wav", "image": first["image"]}, {"image": "x.jpg"}]
    path.write_text(json.dumps(content))
    (corpus / "images").rename(corpus / "photographs")
    with pytest.raises(ManifestError) as raised:
        prepare(corpus)
    assert raised.value.faults == [
        "val.json data[20]: it is 5; an object with `wav` and `image` is needed",
        f"val.json data[21]: image {first['image']!r} is in train as well; keep it in one of the files",
        "val.json data[22]: wav is None; the name of a file is needed",
        f"{first['wav']!r} is not in {str(corpus)!r}; put it there",
        *(
            f"{count} pictures are to be in {str(corpus / letter)!r}, which has none of them; put the pictures there "
            "or say where they are"
            for letter, count in (("a", 14), ("b", 13), ("c", 13))
        ),
    ]


def test_what_is_not_there_or_not_allowed_is_said(tmp_path: Path) -> None:
    with pytest.raises(SayseeError, match=r"neither train.json, val.json nor train_2020.json, dev_seen_2020.json"):
        prepare(tmp_path)
    with pytest.raises(SayseeError, match="is not a folder"):
        prepare(tmp_path / "none")
    with pytest.raises(SayseeError, match="held_out is 'both'; allowed: seen, unseen"):
        prepare(tmp_path, held_out="both")  # type: ignore[arg-type]
    with pytest.raises(SayseeError, match=r"dev is 2; allowed"):
        prepare(tmp_path, dev=2)
