import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpora import write_spoken_coco
from saysee.data.manifest import SPLITS, Manifest, ManifestError, read_manifest, write_manifest
from saysee.data.published import missing_files
from saysee.data.spoken_coco import prepare
from saysee.data.validate import structural_faults, validate
from saysee.errors import SayseeError


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_spoken_coco(tmp_path / "coco", images=20, captions=2)


def records(manifest: Manifest) -> set[tuple[object, ...]]:
    return {(c.id, c.image_id, c.text, c.speaker, c.split) for c in manifest.captions}


def images_by_split(manifest: Manifest) -> dict[str, set[str]]:
    return {split: set(manifest.images(split)) for split in SPLITS}


def faults_of(folder: Path, **options: Any) -> list[str]:
    with pytest.raises(ManifestError) as raised:
        prepare(folder, **options)
    assert all(fault.isprintable() for fault in raised.value.faults)
    return raised.value.faults


def change(path: Path, edit: Callable[[list[Any]], object]) -> None:
    content = json.loads(path.read_text())
    edit(content["data"])
    path.write_text(json.dumps(content))


def test_karpathys_splits_become_a_sound_manifest(tmp_path: Path) -> None:
    corpus = write_spoken_coco(tmp_path / "coco", karpathy="karpathy", images=25, captions=2, extra_keys=True)
    prepared = prepare(corpus)
    manifest = prepared.manifest
    assert manifest.split_by == "image"
    # of 25 images 10 are val2014: 2 of them his train, 4 dev, 4 test
    assert {split: len(images) for split, images in images_by_split(manifest).items()} == {
        "train": 17,
        "dev": 4,
        "test": 4,
    }
    entry = json.loads((corpus / "SpokenCOCO_test_karpathy.json").read_text())["data"][0]
    spoken = entry["captions"][1]
    caption = next(c for c in manifest.captions if c.id == spoken["uttid"])
    assert (caption.audio, caption.image) == (corpus / spoken["wav"], corpus / entry["image"])
    assert (caption.image_id, caption.text, caption.speaker) == (entry["image"], spoken["text"], spoken["speaker"])
    assert (caption.language, caption.split) == ("en", "test")
    assert prepared.notes == [manifest.summary(), "splits are Karpathy's (SpokenCOCO_*_karpathy.json; val is dev)"]
    assert validate(manifest) == []
    write_manifest(corpus / "manifest.jsonl", manifest)
    assert read_manifest(corpus / "manifest.jsonl") == manifest


@pytest.mark.parametrize("spelling", ["unrolled_karpathy", "ksplit"])
def test_each_spelling_of_karpathys_files_gives_the_same(
    tmp_path: Path, spelling: Literal["unrolled_karpathy", "ksplit"]
) -> None:
    rolled = write_spoken_coco(tmp_path / "rolled", karpathy="karpathy", images=10, captions=2)
    other = write_spoken_coco(tmp_path / "other", karpathy=spelling, raw=False, images=10, captions=2)
    assert records(prepare(other).manifest) == records(prepare(rolled).manifest)


def test_layout_of_speechclip_with_sub_folders(tmp_path: Path) -> None:
    plain = write_spoken_coco(tmp_path / "plain", karpathy="ksplit", images=10)
    nested = write_spoken_coco(
        tmp_path / "nested", karpathy="ksplit", images=10, home="SpokenCOCO", image_home="mscoco_img"
    )
    prepared = prepare(nested)
    assert records(prepared.manifest) == records(prepare(plain).manifest)
    assert prepared.manifest.captions[0].audio.is_relative_to(nested / "SpokenCOCO" / "wavs")
    assert prepared.manifest.captions[0].image.is_relative_to(nested / "mscoco_img")


def test_karpathys_files_beside_the_unpacked_archive(tmp_path: Path) -> None:
    corpus = write_spoken_coco(tmp_path, karpathy="karpathy", images=10, home="SpokenCOCO")
    for path in (corpus / "SpokenCOCO").glob("*_karpathy.json"):
        path.rename(corpus / path.name)
    assert "Karpathy" in prepare(corpus).notes[1]


def test_images_elsewhere_are_named(tmp_path: Path) -> None:
    corpus = write_spoken_coco(tmp_path / "coco", karpathy="karpathy", images=10, image_home="../photographs")
    images = tmp_path / "photographs"
    prepared = prepare(corpus, images=images)
    assert all(c.image == images / c.image_id for c in prepared.manifest.captions)
    faults = faults_of(corpus)
    assert len(faults) == 2  # one for each of train2014 and val2014, whatever they should hold
    assert faults[0] == (
        f"6 pictures are to be in {str(corpus / 'train2014')!r}, which has none of them; put the pictures there or say "
        "where they are"
    )
    with pytest.raises(SayseeError, match="is not a folder"):
        prepare(corpus, images=tmp_path / "none")


def test_without_karpathys_files_val_is_test_and_dev_is_drawn_by_image(corpus: Path) -> None:
    prepared = prepare(corpus, dev=0.3)
    images = images_by_split(prepared.manifest)
    assert images["test"] == {e["image"] for e in json.loads((corpus / "SpokenCOCO_val.json").read_text())["data"]}
    assert images["train"] | images["dev"] == {image for image in prepared.manifest.images() if "train2014" in image}
    assert structural_faults(prepared.manifest) == []
    assert "val is test, dev drawn from train by image with seed 0 (ours)" in prepared.notes[1]
    assert prepared.warnings == []  # the published numbers are of Karpathy's test
    assert images_by_split(prepare(corpus, dev=0.3, seed=1).manifest)["dev"] != images["dev"]


def test_a_part_of_karpathys_files_is_not_used_and_named(tmp_path: Path) -> None:
    corpus = write_spoken_coco(tmp_path, karpathy="karpathy", images=20, captions=1)
    (corpus / "SpokenCOCO_train_karpathy.json").unlink()
    prepared = prepare(corpus, dev=0.3)
    assert prepared.notes[2] == (
        "not used: SpokenCOCO_val_karpathy.json, SpokenCOCO_test_karpathy.json, "
        "as train, val and test are not all there"
    )
    assert set(prepared.manifest.images("test")) == {i for i in prepared.manifest.images() if "val2014" in i}


def test_counts_that_differ_from_the_published_are_a_warning_with_both(tmp_path: Path) -> None:
    corpus = write_spoken_coco(tmp_path, karpathy="karpathy", images=20, captions=3)
    assert prepare(corpus).warnings == [
        "Karpathy's test part of SpokenCOCO has 25,031 recordings of 5,000 images; here are 6 of 2"
    ]
    with mock.patch("saysee.data.spoken_coco.KARPATHY_TEST", (6, 2)):
        assert prepare(corpus).warnings == []


@pytest.mark.parametrize(
    ("dev", "message"),
    [
        (0.0, "dev is 0.0; allowed"),
        (["anna"], r"dev is \['anna'\]; allowed: a share"),  # as the command line gives names of speakers
        (1e-9, "none falls in dev; take another"),
    ],
)
def test_a_dev_part_that_cannot_be_drawn(corpus: Path, dev: Any, message: str) -> None:
    with pytest.raises(SayseeError, match=message):
        prepare(corpus, dev=dev)


def test_no_files_at_all_is_one_fault_that_names_them(tmp_path: Path) -> None:
    (tmp_path / "SpokenCOCO_test_karpathy.json").write_text("{}")
    [fault] = faults_of(tmp_path)
    for name in (
        "SpokenCOCO_{train,val}.json",
        "SpokenCOCO_ksplit_{train,val,test}.json",
        "SpokenCOCO_{train,val,test}_",
    ):
        assert name in fault
    assert "(there: SpokenCOCO_test_karpathy.json)" in fault
    with pytest.raises(SayseeError, match="is not a folder"):
        prepare(tmp_path / "none")


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "invalid JSON"), ("[]", 'it holds []; {"data": [...]} is needed'), ('{"data": {}}', "is needed")],
)
def test_a_file_of_another_form(corpus: Path, content: str, message: str) -> None:
    (corpus / "SpokenCOCO_val.json").write_text(content)
    [fault] = faults_of(corpus)
    assert message in fault


def test_all_faults_are_listed_at_once(corpus: Path) -> None:
    train, val = (json.loads((corpus / f"SpokenCOCO_{split}.json").read_text())["data"] for split in ("train", "val"))
    first, second, third = train[:3]
    (corpus / first["captions"][0]["wav"]).unlink()
    (corpus / second["image"]).unlink()

    def damage(data: list[Any]) -> None:
        data.append({"image": "a.jpg"})
        data.append({"image": None, "captions": [{"wav": "../x.wav", "speaker": 7}, "text"]})
        data.append(val[0])
        data.append({"image": third["image"], "captions": [third["captions"][0] | {"wav": "wavs/train/0/other.wav"}]})
        data.append({"image": third["image"], "captions": [first["captions"][1]]})

    change(corpus / "SpokenCOCO_train.json", damage)
    uttid = third["captions"][0]["uttid"]
    val_image = val[0]["image"]
    assert sorted(faults_of(corpus)) == sorted(
        [
            "SpokenCOCO_train.json data[12]: it is {'image': 'a.jpg'}; an object with `image` and `captions` is needed",
            "SpokenCOCO_train.json data[13]: image is None; the name of a file is needed",
            "SpokenCOCO_train.json data[13]: wav '../x.wav' is no path within the folder; give one",
            "SpokenCOCO_train.json data[13]: speaker is 7; a string is needed, or none",
            "SpokenCOCO_train.json data[13]: a caption is 'text'; an object with `wav` is needed",
            f"SpokenCOCO_val.json data[0]: image {val_image!r} is in train as well; keep it in one of the files",
            f"SpokenCOCO_train.json data[15]: uttid {uttid!r} has another wav already; keep one of the two",
            f"SpokenCOCO_train.json data[16]: wav {first['captions'][1]['wav']!r} speaks about {first['image']!r} "
            "already; keep one",
            f"{first['captions'][0]['wav']!r} is not in {str(corpus)!r}; put it there",
            f"'wavs/train/0/other.wav' is not in {str(corpus)!r}; put it there",
            f"{second['image']!r} is not in {str(corpus)!r}; put it there",
        ]
    )


def test_a_pair_that_is_listed_twice_is_left_out_and_counted(corpus: Path) -> None:
    expected = records(prepare(corpus, dev=0.3).manifest)
    change(corpus / "SpokenCOCO_val.json", lambda data: data.append(data[0]))
    prepared = prepare(corpus, dev=0.3)
    assert records(prepared.manifest) == expected
    assert prepared.notes[-1] == "left out: 2 pairs that are listed twice"


def test_recordings_that_are_not_there_at_all_are_one_fault(corpus: Path) -> None:
    (corpus / "wavs").rename(corpus / "elsewhere")
    assert faults_of(corpus) == [
        f"40 recordings are to be in {str(corpus / 'wavs')!r}, which has none of them; unpack the recordings there"
    ]


def test_a_folder_that_is_there_and_has_none_of_its_files_is_one_fault_too(corpus: Path) -> None:
    for path in (corpus / "wavs" / "train" / "1").iterdir():
        path.unlink()
    [fault] = faults_of(corpus)
    assert fault.startswith(f"8 recordings are to be in {str(corpus / 'wavs/train/1')!r}, which has none of them")


names = st.lists(st.from_regex(r"([ab]/){0,2}[a-d]", fullmatch=True), unique=True, max_size=12)


@settings(max_examples=60, deadline=None)
@given(names, names)
def test_missing_files_are_those_that_the_disk_does_not_have(wanted: list[str], there: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        for name in there:
            path = base / name
            if not path.exists() and not any(parent.is_file() for parent in path.parents):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
        missing = [name for name in wanted if not (base / name).exists()]
        faults = missing_files(base, wanted, "files", "put them there")
        counts = [int(fault.split()[0]) for fault in faults if "which has none of them" in fault]
        singles = [fault for fault in faults if "which has none of them" not in fault]
        assert sum(counts) + len(singles) == len(missing)
        assert all(any(repr(name) in fault for name in missing) for fault in singles)


def test_a_folder_is_listed_once_however_many_files_it_has(corpus: Path) -> None:
    with mock.patch("os.scandir", wraps=os.scandir) as listed:
        prepare(corpus, dev=0.3)
    folders = [call.args[0] for call in listed.call_args_list]
    assert sorted(map(str, folders)) == sorted({str(path.parent) for path in corpus.glob("*/**/*.*")})
