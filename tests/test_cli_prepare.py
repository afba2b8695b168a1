"""`saysee prepare` and `saysee validate`: a manifest of a folder, or every fault of its files and no manifest."""

import csv
from pathlib import Path

import pytest

from command_line import assert_mistake, contents, saysee, write_corpus
from corpora import recording, write_flickr8k, write_places, write_spoken_coco
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


# ---- published corpora with a flaw in some file


@pytest.fixture
def flawed(tmp_path: Path) -> Path:
    """Flickr8k with a recording that is broken and one that is not there, and a picture that is cut off."""
    corpus = write_flickr8k(tmp_path / "flickr8k", images=16, captions=2)
    wavs = sorted((corpus / "flickr_audio" / "wavs").glob("*.wav"))
    wavs[0].write_text("no recording")
    wavs[3].unlink()
    picture = sorted((corpus / "Flicker8k_Dataset").glob("*.jpg"))[4]
    picture.write_bytes(picture.read_bytes()[:200])
    return corpus


def test_a_flaw_in_a_file_is_told_with_the_way_on(flawed: Path, tmp_path: Path) -> None:
    missing = saysee("prepare", "flickr8k", flawed, "--out", tmp_path / "manifest.jsonl")
    assert_mistake(missing, "1 fault\n", "_1.wav' is not in wavs; put it there", lines=2)
    (flawed / "flickr_audio" / "wavs" / missing.err.split("'")[1]).write_bytes(recording(99))
    broken = saysee("prepare", "flickr8k", flawed, "--out", tmp_path / "manifest.jsonl")
    assert (broken.status, broken.out) == (2, "")
    assert f"saysee: {flawed} (--leave-out-faults goes on without them): 2 faults\n" in broken.err
    assert not (tmp_path / "manifest.jsonl").exists()


def test_what_is_faulty_is_left_out_named_and_counted(flawed: Path, tmp_path: Path) -> None:
    outcome = saysee("prepare", "flickr8k", flawed, "--out", tmp_path / "flickr.jsonl", "--leave-out-faults")
    assert outcome.status == 0, outcome.err
    manifest = read_manifest(tmp_path / "flickr.jsonl")
    assert len(manifest.captions) == 32 - 4
    assert outcome.out.splitlines()[0] == manifest.summary()
    assert "has 40,000 recordings of 8,000 images" in outcome.err
    assert "here are 28 of 15" in outcome.err
    assert "here are 32" not in outcome.err
    left_out = (tmp_path / "flickr.left-out.txt").read_text().splitlines()
    assert f"left out 4 of 32 records, all named with the reason in {tmp_path / 'flickr.left-out.txt'}" in outcome.err
    assert outcome.err.splitlines()[-4:] == [f"saysee: warning: {line}" for line in left_out]
    kept = {caption.id for caption in manifest.captions}
    for line, reason in zip(left_out, ("is not", "there is no such file", "truncated", "truncated"), strict=True):
        id_, _, said = line.partition(": left out of train: ")
        assert id_.strip("'") not in kept
        assert reason in said, line
    assert saysee("validate", tmp_path / "flickr.jsonl").status == 0


def test_of_copies_in_two_splits_the_one_in_training_is_left_out_and_said(tmp_path: Path) -> None:
    corpus = write_flickr8k(tmp_path / "flickr8k", images=16, captions=2)
    assert saysee("prepare", "flickr8k", corpus, "--out", tmp_path / "sound.jsonl").status == 0
    sound = read_manifest(tmp_path / "sound.jsonl")
    train, dev, test = (sound.of(split) for split in ("train", "dev", "test"))
    train[2].audio.write_bytes(test[0].audio.read_bytes())
    train[6].image.write_bytes(dev[0].image.read_bytes())
    assert saysee("prepare", "flickr8k", corpus, "--out", tmp_path / "flickr.jsonl").status == 2
    outcome = saysee("prepare", "flickr8k", corpus, "--out", tmp_path / "flickr.jsonl", "--leave-out-faults")
    assert outcome.status == 0, outcome.err
    expected = [
        f"{train[2].id!r}: left out of train: its recording is that of {test[0].id!r} too, which is in test",
        *(
            f"{caption.id!r}: left out of train: its picture is that of {dev[0].id!r} too, which is in dev"
            for caption in train[6:8]
        ),
    ]
    assert (tmp_path / "flickr.left-out.txt").read_text().splitlines() == expected
    manifest = read_manifest(tmp_path / "flickr.jsonl")
    assert len(manifest.captions) == 32 - 3
    assert manifest.of("test") == test
    assert manifest.of("dev") == dev


def test_a_split_that_is_left_with_nothing_is_a_fault(flawed: Path, tmp_path: Path) -> None:
    for name in (flawed / "Flickr8k_text" / "Flickr_8k.testImages.txt").read_text().split():
        (flawed / "Flicker8k_Dataset" / name).write_text("no picture")
    outcome = saysee("prepare", "flickr8k", flawed, "--out", tmp_path / "flickr.jsonl", "--leave-out-faults")
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err.endswith("1 fault\n  no caption is in test; give the manifest all of train, dev, test\n")
    assert not list(tmp_path.glob("flickr.*"))


def test_nothing_is_left_out_of_a_sound_corpus_or_of_a_table_of_ones_own(pictures: Path, tmp_path: Path) -> None:
    corpus = write_flickr8k(tmp_path / "flickr8k", images=16, captions=1)
    outcome = saysee("prepare", "flickr8k", corpus, "--out", tmp_path / "flickr.jsonl", "--leave-out-faults")
    assert (outcome.status, "left out" in outcome.err) == (0, False)
    assert not (tmp_path / "flickr.left-out.txt").exists()
    own = saysee("prepare", "picture-folder", pictures, "--out", tmp_path / "own.jsonl", "--leave-out-faults")
    assert_mistake(own, "--leave-out-faults is for published corpora; take what is wrong out of your table")


@pytest.mark.parametrize("corpus", ["spoken-coco", "places"])
def test_a_single_missing_file_is_left_out_and_a_folder_that_lacks_all_is_not(tmp_path: Path, corpus: str) -> None:
    folder, out = tmp_path / "corpus", tmp_path / "manifest.jsonl"
    if corpus == "spoken-coco":
        write_spoken_coco(folder, karpathy="karpathy", images=20, captions=2)
    else:
        write_places(folder, splits=("train_2020", "dev_seen_2020", "test_seen_2020"))
    wav = sorted(folder.rglob("*.wav"))[0]
    wav.unlink()
    assert saysee("prepare", corpus, folder, "--out", out).status == 2
    outcome = saysee("prepare", corpus, folder, "--out", out, "--leave-out-faults")
    assert outcome.status == 0, outcome.err
    assert "left out 1 of 40 records" in outcome.err
    assert len(read_manifest(out).captions) == 39
    for other in wav.parent.glob("*.wav"):
        other.unlink()
    outcome = saysee("prepare", corpus, folder, "--out", out, "--leave-out-faults")
    assert_mistake(outcome, "recordings are to be in", "which has none of them; unpack the recordings there", lines=2)
