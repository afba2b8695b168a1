"""`saysee prepare` and `saysee validate`: a manifest of a folder, or every fault of its files and no manifest."""

import csv
from pathlib import Path

import pytest

from command_line import assert_mistake, contents, saysee, write_corpus
from media import BAD_PICTURES, BAD_RECORDINGS, write_image, write_wav
from saysee.data.manifest import read_manifest


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """30 pictures with a recording each by one of three speakers, two of whom have numbers for names."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rows = []
    for number in range(30):
        write_image(folder / f"{number}.png", colour=f"hsl({12 * number}, 90%, 50%)")
        write_wav(folder / f"{number}.wav", 0.3, frequency=200.0 + 20 * number)
        rows.append([f"{number}.png", f"{number}.wav", ("anna", "7", "0.5")[number % 3]])
    write_table(folder, rows)
    return folder


def write_table(folder: Path, rows: list[list[str]]) -> None:
    with (folder / "recordings.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["image", "audio", "speaker"], *rows])


def test_a_folder_becomes_a_manifest_that_is_valid(pictures: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "new" / "manifest.jsonl"
    prepared = saysee("prepare", "picture-folder", pictures, "--out", manifest, "--dev", "0.2", "--test", "0.3")
    assert prepared.status == 0
    summary = read_manifest(manifest).summary()
    assert prepared.out.splitlines() == [summary, "splits drawn with seed 0", f"wrote {manifest}"]
    validated = saysee("validate", manifest)
    assert (validated.status, validated.out) == (0, f"{manifest}: no faults; {summary}\n")


def test_flickr8k_becomes_a_manifest_that_is_valid(tmp_path: Path) -> None:
    corpus, manifest = tmp_path / "flickr8k", tmp_path / "manifest.jsonl"
    (corpus / "wavs").mkdir(parents=True)
    (corpus / "images").mkdir()
    names = ("train", "dev", "test")
    for number, name in enumerate(names):
        write_image(corpus / "images" / f"{name}.jpg", size=(50 + number, 40))
        write_wav(corpus / "wavs" / f"{name}_0.wav", 0.3 + number / 10)
        (corpus / f"Flickr_8k.{name}Images.txt").write_text(f"{name}.jpg\n")
    (corpus / "wav2capt.txt").write_text("".join(f"{name}_0.wav {name}.jpg #0\n" for name in names))
    (corpus / "wav2spk.txt").write_text("".join(f"{name}_0.wav 42\n" for name in names))
    (corpus / "Flickr8k.token.txt").write_text("".join(f"{name}.jpg#0\tA dog .\n" for name in names))
    assert saysee("prepare", "flickr8k", corpus, "--out", manifest).status == 0
    assert [caption.split for caption in read_manifest(manifest).captions] == list(names)
    assert saysee("validate", manifest).status == 0


def test_speakers_are_named_also_those_with_a_number_for_a_name(pictures: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.jsonl"
    options = ("--split-by", "speaker", "--dev", "7", "--test", "anna, 0.5")
    assert_mistake(saysee("prepare", "picture-folder", pictures, "--out", manifest, *options), "falls in train")
    options = ("--split-by", "speaker", "--dev", "7", "--test", "0.5")
    assert saysee("prepare", "picture-folder", pictures, "--out", manifest, *options).status == 0
    captions = read_manifest(manifest)
    speakers = {split: {caption.speaker for caption in captions.of(split)} for split in ("train", "dev", "test")}
    assert speakers == {"train": {"anna"}, "dev": {"7"}, "test": {"0.5"}}


def test_no_manifest_is_written_of_files_that_do_not_decode(pictures: Path, tmp_path: Path) -> None:
    """All of them are listed at once."""
    kinds = [*BAD_RECORDINGS.values(), *BAD_PICTURES.values()]
    names = [f"{number}.wav" for number in range(len(BAD_RECORDINGS))]
    names += [f"{number}.png" for number in range(len(BAD_PICTURES))]
    for name, make in zip(names, kinds, strict=True):
        (pictures / name).write_bytes(make())
    before = contents(tmp_path)
    outcome = saysee("prepare", "picture-folder", pictures, "--out", tmp_path / "manifest.jsonl", "--seed", "1")
    assert_mistake(outcome, f"{pictures}: {len(names)} faults\n", lines=1 + len(names))
    assert all(outcome.err.count(f"{pictures / name}: ") == 1 for name in names)
    assert contents(tmp_path) == before


def test_a_table_with_mistakes_is_refused_with_their_lines(pictures: Path, tmp_path: Path) -> None:
    write_table(pictures, [["0.png", "0.wav", "anna"], ["no.png", "1.wav", "anna"], ["2.png", "../2.wav", "anna"]])
    outcome = saysee("prepare", "picture-folder", pictures, "--out", tmp_path / "manifest.jsonl")
    assert_mistake(outcome, "line 3: image 'no.png' is missing", "line 4: audio '../2.wav' leaves", lines=3)
    assert not (tmp_path / "manifest.jsonl").exists()


def test_an_earlier_manifest_is_kept_when_the_new_one_has_faults(pictures: Path, tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path / "corpus")
    before = manifest.read_bytes()
    (pictures / "0.wav").write_text("no recording")
    outcome = saysee("prepare", "picture-folder", pictures, "--out", manifest, "--seed", "1")
    assert_mistake(outcome, "0.wav: ", lines=2)
    assert manifest.read_bytes() == before
