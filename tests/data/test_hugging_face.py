import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

pytest.importorskip("datasets", reason="needs the extra saysee[hub]")

from datasets import Audio, ClassLabel, Features, Value
from datasets import Image as ImageFeature

from corpora import picture, recording, write_hugging_face, write_parquet
from saysee.data.hugging_face import prepare
from saysee.data.manifest import SPLITS, ManifestError, Split, read_manifest, write_manifest
from saysee.data.validate import structural_faults, validate
from saysee.errors import SayseeError

SHARES: dict[str, Any] = {"dev": 0.3, "test": 0.3}
PAIR_FEATURES = {
    "audio": Features(id=Value("string"), audio=Audio()),
    "images": Features(id=Value("string"), image=ImageFeature(), text=Value("string")),
    "qrels": Features(image_id=Value("string"), audio_id=Value("string")),
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hugging_face(tmp_path_factory.mktemp("hub") / "pairs")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hugging_face(tmp_path_factory.mktemp("hub") / "rows", "rows", splits=("train", "validation", "test"))


def media(content: bytes) -> dict[str, Any]:
    return {"bytes": content, "path": None}


def write_pairs(folder: Path, audio: list[str], images: list[str], qrels: list[tuple[str, str]]) -> str:
    """A set of the layout of pairs, with these ids and pairs (image, recording)."""
    columns: dict[str, dict[str, list[Any]]] = {
        "audio": {"id": audio, "audio": [media(recording(n)) for n in range(len(audio))]},
        "images": {"id": images, "image": [media(picture(n)) for n in range(len(images))], "text": [""] * len(images)},
        "qrels": {"image_id": [pair[0] for pair in qrels], "audio_id": [pair[1] for pair in qrels]},
    }
    write_parquet(folder, {(name, "train"): (table, PAIR_FEATURES[name]) for name, table in columns.items()})
    return str(folder)


def test_the_layout_of_pairs_becomes_a_sound_manifest_and_files(pairs: Path, tmp_path: Path) -> None:
    prepared = prepare(str(pairs), tmp_path / "files", **SHARES)
    manifest = prepared.manifest
    assert len(manifest.captions) == 40
    assert prepared.notes == [manifest.summary(), "splits drawn by image with seed 0 (ours)"]
    assert prepared.warnings == []
    for number, caption in enumerate(manifest.captions):
        assert caption.id == f"{caption.image_id}_{number % 2}"
        assert caption.audio.read_bytes() == recording(number)
        assert caption.image.read_bytes() == picture(number // 2)
        # the text of `images` is another recording's, or nobody's
        assert (caption.text, caption.speaker, caption.language) == (None, None, None)
        assert (caption.audio.suffix, caption.image.suffix) == (".wav", ".jpg")
    assert validate(manifest) == []
    write_manifest(tmp_path / "manifest.jsonl", manifest)
    assert read_manifest(tmp_path / "manifest.jsonl") == manifest


def test_rows_become_a_sound_manifest_in_the_splits_they_have(rows: Path, tmp_path: Path) -> None:
    prepared = prepare(str(rows), tmp_path / "files")
    manifest = prepared.manifest
    assert prepared.notes[1] == "splits are those of the data set"
    expected: dict[Split, str] = {"train": "train", "dev": "validation", "test": "test"}
    for part, (split, name) in enumerate(expected.items()):
        captions = manifest.of(split)
        assert [c.id for c in captions] == [f"{name}/{n}" for n in range(len(captions))]
        numbers = [n for n in range(40) if n // 2 % 3 == part]
        assert [c.audio.read_bytes() for c in captions] == [recording(n) for n in numbers]
        assert [c.image_id for c in captions] == [hashlib.sha256(picture(n // 2)).hexdigest()[:32] for n in numbers]
        assert [c.text for c in captions] == [f"a picture described once more {n}" for n in numbers]
        assert [(c.speaker, c.language) for c in captions] == [(f"voice {n % 4}", "cy") for n in numbers]
    assert len(manifest.images()) == 20
    assert validate(manifest) == []


@pytest.mark.parametrize("layout", ["pairs", "rows"])
def test_what_was_written_is_kept_and_what_is_missing_or_damaged_is_written_again(
    layout: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = str(request.getfixturevalue(layout))
    first = prepare(folder, tmp_path, **SHARES)
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert len(files) == 60  # nothing else is left, no cache
    inodes = {path: path.stat().st_ino for path in files}
    files[3].unlink()
    files[5].write_bytes(b"x" * files[5].stat().st_size)
    assert prepare(folder, tmp_path, **SHARES) == first
    changed = {path for path in files if path.stat().st_ino != inodes[path]}
    assert changed <= {files[3], files[5]}
    assert validate(first.manifest) == []


def test_a_single_split_is_divided_by_image(rows: Path, tmp_path: Path) -> None:
    prepared = prepare(str(rows), tmp_path, split="train", **SHARES)
    assert {c.id.split("/")[0] for c in prepared.manifest.captions} == {"train"}
    assert structural_faults(prepared.manifest) == []
    assert prepared.notes[1] == "splits drawn by image with seed 0 (ours)"


@pytest.mark.parametrize("second", ["test", "val"])
def test_with_train_and_one_more_dev_is_drawn_from_train(second: str, tmp_path: Path) -> None:
    folder = write_hugging_face(tmp_path / "set", "rows", splits=("train", second))
    prepared = prepare(str(folder), tmp_path / "files", **SHARES)
    drawn = {c.id.split("/")[0]: {o.split for o in prepared.manifest.captions if o.id.startswith(c.id.split("/")[0])}
             for c in prepared.manifest.captions}  # fmt: skip
    assert drawn == {"train": {"train", "dev"}, second: {"test"}}
    assert structural_faults(prepared.manifest) == []
    assert "is test, dev drawn from train by image with seed 0 (ours)" in prepared.notes[1]


@pytest.mark.parametrize("splits", [("train", "extra"), ("validation", "test"), ("train", "val", "dev")])
def test_splits_that_cannot_be_told_apart_are_refused(splits: tuple[str, ...], tmp_path: Path) -> None:
    folder = write_hugging_face(tmp_path / "set", "rows", splits=splits)
    with pytest.raises(SayseeError, match=f"has splits {', '.join(splits)}.*give split to read one"):
        prepare(str(folder), tmp_path / "files")


def test_several_columns_ask_for_the_one_that_is_meant(tmp_path: Path) -> None:
    folder = write_hugging_face(
        tmp_path / "set",
        "rows",
        columns={"noisy": Audio(), "thumb": ImageFeature(), "gender": ClassLabel(names=["f", "m"])},
    )
    with pytest.raises(SayseeError, match=r"needs one audio column; there: 'audio', 'noisy'; say which"):
        prepare(str(folder), tmp_path / "files")
    with pytest.raises(SayseeError, match=r"needs one image column; there: 'image', 'thumb'; say which"):
        prepare(str(folder), tmp_path / "files", columns={"audio": "noisy"})
    given_columns = {"audio": "noisy", "image": "thumb", "speaker": "text", "text": "gender"}
    prepared = prepare(str(folder), tmp_path / "files", columns=given_columns, **SHARES)
    assert {(c.text, c.speaker) for c in prepared.manifest.captions} == {
        (None, f"a picture described once more {n}") for n in range(40)
    }
    with pytest.raises(
        SayseeError, match=r"'words' is no text column of .*; there: 'text', 'speaker', 'language', 'gen"
    ):
        prepare(str(folder), tmp_path / "files", columns=given_columns | {"text": "words"})
    with pytest.raises(SayseeError, match="columns names voice; allowed: audio, image, text, speaker, language"):
        prepare(str(folder), tmp_path / "files", columns={"voice": "speaker"})


def test_labels_and_numbers_become_texts(tmp_path: Path) -> None:
    features = Features(
        audio=Audio(), image=ImageFeature(), language=ClassLabel(names=["cy", "eu"]), speaker=Value("int64")
    )
    table: dict[str, list[Any]] = {
        "audio": [media(recording(n)) for n in range(12)],
        "image": [media(picture(n)) for n in range(12)],
        "language": [(0, 1, None, -1)[n % 4] for n in range(12)],
        "speaker": list(range(12)),
    }
    write_parquet(tmp_path / "set", {("default", "train"): (table, features)})
    captions = prepare(str(tmp_path / "set"), tmp_path / "files", **SHARES).manifest.captions
    assert [c.language for c in captions] == ["cy", "eu", None, None] * 3
    assert [c.speaker for c in captions] == [str(n) for n in range(12)]


def test_rows_without_media_are_left_out_and_named(tmp_path: Path) -> None:
    """Also those that name a file of this machine in place of their bytes."""
    secret = tmp_path / "secret.wav"
    secret.write_bytes(recording(99))
    sounds: list[dict[str, Any] | None] = [media(recording(n)) for n in range(20)]
    sounds[3] = None
    sounds[5] = {"bytes": None, "path": str(secret)}
    sounds[6] = {"bytes": None, "path": str(tmp_path / "set" / ".." / "secret.wav")}
    sounds[7] = {"bytes": None, "path": str(tmp_path / "set" / "beside.wav")}
    table: dict[str, list[Any]] = {"audio": list(sounds), "image": [media(picture(n)) for n in range(20)]}
    write_parquet(tmp_path / "set", {("default", "train"): (table, Features(audio=Audio(), image=ImageFeature()))})
    shutil.copy(secret, tmp_path / "set" / "beside.wav")
    prepared = prepare(str(tmp_path / "set"), tmp_path / "files", **SHARES)
    assert prepared.warnings == [
        "left out: 3 rows without a recording or a picture, such as 'train/3', 'train/5', 'train/6'"
    ]
    assert len(prepared.manifest.captions) == 17
    beside = next(c for c in prepared.manifest.captions if c.id == "train/7")
    assert beside.audio.read_bytes() == recording(99)


def test_pairs_that_contradict_each_other_are_listed_at_once(tmp_path: Path) -> None:
    name = write_pairs(
        tmp_path / "set", ["a", "b", "b"], ["x", "y", "x"], [("x", "a"), ("y", "a"), ("y", "b"), ("y", "b")]
    )
    with pytest.raises(ManifestError) as raised:
        prepare(name, tmp_path / "files")
    assert raised.value.faults == [
        "qrels: recording 'a' belongs to 'x' and to 'y'; keep one",
        "images: id 'x' stands twice; keep one",
        "audio: id 'b' stands twice; keep one",
    ]


def test_pairs_of_which_a_part_is_not_there_are_left_out_and_named(tmp_path: Path) -> None:
    audio, images = [f"a{n}" for n in range(12)], [f"i{n}" for n in range(12)]
    qrels = list(zip(images, audio, strict=True))[2:]  # i0, i1, a0, a1 are in no pair
    name = write_pairs(tmp_path / "set", [*audio[:8], audio[10]], images[:11], [*qrels, ("i12", "a12")])
    prepared = prepare(name, tmp_path / "files", seed=1, **SHARES)
    kept = [2, 3, 4, 5, 6, 7, 10]
    assert [(c.id, c.image_id) for c in prepared.manifest.captions] == [(f"a{n}", f"i{n}") for n in kept]
    assert [c.audio.read_bytes() for c in prepared.manifest.captions][:6] == [recording(n) for n in kept[:6]]
    assert prepared.warnings == [
        "left out: 4 pairs of qrels without a recording or a picture, such as 'a8', 'a9', 'a11'"
    ]
    assert prepared.notes[2:] == [
        "left out: 2 rows of images that qrels does not name",
        "left out: 2 rows of audio that qrels does not name",
    ]
    with pytest.raises(ManifestError, match="it holds no recording with its picture"):
        prepare(write_pairs(tmp_path / "none", ["a"], ["i"], [("i", "b")]), tmp_path / "files")


def test_a_folder_without_a_readme_is_read_by_its_parquet_files(rows: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(rows, tmp_path / "copy")
    (copy / "README.md").unlink()
    expected = prepare(str(rows), tmp_path / "files").manifest
    assert prepare(str(copy), tmp_path / "files").manifest == expected


def break_parquet(folder: Path) -> None:
    path = folder / "data" / "train-00000-of-00001.parquet"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def remove_parquet(folder: Path) -> None:
    shutil.rmtree(folder / "data")


@pytest.mark.parametrize("damage", [break_parquet, remove_parquet])
def test_a_set_that_cannot_be_read_is_the_users_error_in_one_line(
    damage: Callable[[Path], None], rows: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(rows, tmp_path / "copy")
    damage(copy)
    with pytest.raises(SayseeError, match="cannot be read: ") as raised:
        prepare(str(copy), tmp_path / "files")
    assert str(raised.value).isprintable()


def test_what_is_asked_for_and_not_there_is_said(rows: Path, pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(SayseeError, match="is no folder and no name on the hub"):
        prepare("my_pictures", tmp_path)
    with pytest.raises(SayseeError, match=r"'plain' is no config of .*; there: 'default'"):
        prepare(str(rows), tmp_path, config="plain")
    with pytest.raises(SayseeError, match=r"'dev' is no split of .*; there: 'train', 'validation', 'test'"):
        prepare(str(rows), tmp_path, split="dev")
    with pytest.raises(SayseeError, match=r"needs one image column; there: none"):
        prepare(str(pairs), tmp_path, config="audio")
    with pytest.raises(SayseeError, match=r"test is 1.0; allowed"):
        prepare(str(rows), tmp_path, test=1.0)
    (tmp_path / "file").touch()
    with pytest.raises(SayseeError, match="cannot be made"):
        prepare(str(rows), tmp_path / "file")


def test_a_name_on_the_hub_is_streamed_at_its_revision_and_runs_no_code(rows: Path, tmp_path: Path) -> None:
    import datasets

    streams = datasets.load_dataset(str(rows), streaming=True, cache_dir=str(tmp_path / "cache"))
    with (
        mock.patch("datasets.get_dataset_config_names", return_value=["default"]) as configs,
        mock.patch("datasets.load_dataset", return_value=streams) as load,
    ):
        manifest = prepare("owner/name", tmp_path / "files", revision="abc").manifest
    assert {split: len(manifest.of(split)) > 0 for split in SPLITS} == dict.fromkeys(SPLITS, True)
    configs.assert_called_once_with("owner/name", revision="abc")
    assert load.call_args.args == ("owner/name", "default")
    options = dict(load.call_args.kwargs)
    assert Path(options.pop("cache_dir")).parent == tmp_path / "files"
    assert options == {"revision": "abc", "streaming": True}


def test_without_the_package_the_line_that_installs_it_is_named(rows: Path, tmp_path: Path) -> None:
    with mock.patch.dict("sys.modules", {"datasets": None}), pytest.raises(SayseeError, match=r"'saysee\[hub\]'"):
        prepare(str(rows), tmp_path)
