"""Written captions from tables and from Flickr8k's file: what is read, in which split, and every fault by its line."""

import json
from pathlib import Path

import pytest

from media import write_image
from saysee.data.manifest import ManifestError
from saysee.data.written_captions import WrittenCaption, read_captions
from saysee.errors import SayseeError


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name in ("a", "b", "c"):
        write_image(tmp_path / f"{name}.jpg")
    return tmp_path


def written(path: Path, text: str) -> Path:
    path.write_text(text, "utf-8")
    return path


def faults_of(path: Path) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        read_captions(path)
    assert caught.value.source == str(path)
    return caught.value.faults


def test_a_table_says_the_same_as_csv_tsv_and_json_lines(pictures: Path) -> None:
    rows = [
        {"image": "a.jpg", "text": "un perro, feliz", "language": "es", "split": "train"},
        {"image": "./a.jpg", "text": "a dog", "language": "", "split": "train"},
        {"image": "b.jpg", "text": "犬", "language": "ja", "split": "test"},
    ]
    header = list(rows[0])
    tables = [
        written(
            pictures / "a.csv", "\n".join([",".join(header), *(",".join(f'"{r[n]}"' for n in header) for r in rows)])
        ),
        written(pictures / "b.tsv", "\n".join(["\t".join(header), *("\t".join(r[n] for n in header) for r in rows)])),
        written(pictures / "c.jsonl", "\n".join(json.dumps({**r, "language": r["language"] or None}) for r in rows)),
    ]
    for table in tables:
        captions, notes = read_captions(table)
        assert captions == [
            WrittenCaption("a.jpg#0", "a.jpg", pictures / "a.jpg", "un perro, feliz", "es", "train"),
            WrittenCaption("a.jpg#1", "a.jpg", pictures / "a.jpg", "a dog", None, "train"),
            WrittenCaption("b.jpg#0", "b.jpg", pictures / "b.jpg", "犬", "ja", "test"),
        ]
        assert notes == []


def test_ids_are_taken_where_they_are_given_and_images_lie_where_they_are_said_to(pictures: Path) -> None:
    (pictures / "tables").mkdir()
    table = written(
        pictures / "tables" / "t.csv", "id,image_id,image,word,split\nx,one,a.jpg,dog,train\ny,one,a.jpg,cat,dev\n"
    )
    captions, _ = read_captions(table, images=pictures)
    assert [(caption.id, caption.image_id, caption.text) for caption in captions] == [
        ("x", "one", "dog"),
        ("y", "one", "cat"),
    ]


def test_the_first_captions_of_each_image_are_those_that_stand_first(pictures: Path) -> None:
    lines = [f"{image}.jpg,{text},train" for text in ("one", "two", "three") for image in "ab"]
    table = written(pictures / "t.csv", "\n".join(["image,text,split", *lines]))
    captions, notes = read_captions(table, first=2)
    assert [(caption.id, caption.text) for caption in captions] == [
        *(("a.jpg#0", "one"), ("b.jpg#0", "one"), ("a.jpg#1", "two"), ("b.jpg#1", "two")),
    ]
    assert notes == ["left out: 2 captions after the first 2 of their image"]
    with pytest.raises(SayseeError, match="first 0 captions of an image are asked for; give 1 or more"):
        read_captions(table, first=0)


def test_splits_that_are_not_given_are_drawn_by_image(tmp_path: Path) -> None:
    for number in range(60):
        write_image(tmp_path / f"{number}.jpg", (8, 8))
    lines = [f"{number}.jpg,{word}" for number in range(60) for word in ("one", "two")]
    table = written(tmp_path / "t.csv", "\n".join(["image,text", *lines]))
    captions, notes = read_captions(table, seed=3)
    assert notes == ["splits drawn with seed 3"]
    split_of = {caption.image_id: caption.split for caption in captions}
    assert set(split_of.values()) == {"train", "dev", "test"}
    assert all(split_of[caption.image_id] == caption.split for caption in captions)
    again, _ = read_captions(written(tmp_path / "u.csv", "\n".join(["image,text", *reversed(lines)])), seed=3)
    assert {caption.image_id: caption.split for caption in again} == split_of


def test_every_fault_of_a_table_is_named_with_its_line(pictures: Path) -> None:
    rows = [
        "id,image,text,split",
        "x,a.jpg,...,train",
        "y,z.jpg,a dog,train",
        "v,../a.jpg,a dog,train",
        "w,b.jpg,,nowhere",
        "x,b.jpg,a cat,train",
        "x,c.jpg,a bird,train",
    ]
    assert faults_of(written(pictures / "t.csv", "\n".join(rows))) == [
        "line 2: text is '...'; give at least one letter or digit to say",
        "line 3: image 'z.jpg' is missing; put the file there or remove the line",
        "line 4: image '../a.jpg' leaves the folder; give a path within it",
        "line 5: text is None; give at least one letter or digit to say",
        "line 5: split is 'nowhere'; allowed: train, dev, test, or leave all lines without",
        "line 7: id 'x' stands already on line 6; give every line an own `id`",
    ]
    (unknown,) = faults_of(written(pictures / "u.csv", "image,text,audio\na.jpg,a dog,a.wav"))
    assert unknown.startswith("line 1: unknown column 'audio'; allowed: image, text, word, language")
    assert faults_of(written(pictures / "v.csv", "image,text\n")) == [
        "it lists no captions; give each a line with its image and its text"
    ]


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    allowed = r"captions.xlsx'; allowed: \*.csv, \*.tsv, \*.jsonl, or Flickr8k.token.txt"
    with pytest.raises(SayseeError, match=allowed):
        read_captions(tmp_path / "captions.xlsx")


# ---- Flickr8k's own files


@pytest.fixture
def flickr8k(pictures: Path) -> Path:
    """Two images in splits, and one in none, as the published archives lie beside each other."""
    (pictures / "Flicker8k_Dataset").mkdir()
    for name in ("a", "b", "c"):
        (pictures / f"{name}.jpg").rename(pictures / "Flicker8k_Dataset" / f"{name}.jpg")
    text = pictures / "Flickr8k_text"
    text.mkdir()
    for split, image in (("train", "a"), ("dev", "b"), ("test", "")):
        written(text / f"Flickr_8k.{split}Images.txt", f"{image}.jpg\n" if image else "")
    lines = ["a.jpg#0\tA dog runs .", "a.jpg#1\tTwo dogs", "b.jpg#0\tA cat .", "c.jpg#0\tA bird", "c.jpg.1#0\tA bird"]
    return written(text / "Flickr8k.token.txt", "\n".join(lines) + "\n")


def test_flickr8k_has_its_published_splits(flickr8k: Path) -> None:
    captions, notes = read_captions(flickr8k)
    photographs = flickr8k.parent.parent / "Flicker8k_Dataset"
    assert captions == [
        WrittenCaption("a.jpg#0", "a.jpg", photographs / "a.jpg", "A dog runs .", "en", "train"),
        WrittenCaption("a.jpg#1", "a.jpg", photographs / "a.jpg", "Two dogs", "en", "train"),
        WrittenCaption("b.jpg#0", "b.jpg", photographs / "b.jpg", "A cat .", "en", "dev"),
    ]
    assert notes == ["left out: 2 captions of images in no split"]


def test_faults_of_flickr8k(flickr8k: Path) -> None:
    flickr8k.write_text("a.jpg#0\tA dog\na.jpg#0\tA cat\nb.jpg#0\t...\nnonsense\n", "utf-8")
    assert faults_of(flickr8k) == [
        "Flickr8k.token.txt line 4: 'nonsense' is not of the form <image.jpg>#<n>, a tab, <caption>"
    ]
    flickr8k.write_text("a.jpg#0\tA dog\na.jpg#0\tA cat\nb.jpg#0\t...\n", "utf-8")
    (flickr8k.parent.parent / "Flicker8k_Dataset" / "b.jpg").unlink()
    says_nothing, missing, twice = faults_of(flickr8k)
    assert says_nothing.startswith("b.jpg#0 says '...'")
    assert missing.startswith("'b.jpg' is not in")
    assert twice.startswith("line 2: id 'a.jpg#0' stands already on line 1")
    (flickr8k.parent / "Flickr_8k.devImages.txt").unlink()
    assert faults_of(flickr8k) == ["Flickr_8k.devImages.txt must lie beside it, or no list of a split"]


def test_the_folder_of_the_photographs_must_be_found(flickr8k: Path) -> None:
    photographs = flickr8k.parent.parent / "Flicker8k_Dataset"
    photographs.rename(flickr8k.parent.parent / "elsewhere")
    with pytest.raises(SayseeError, match=r"no folder Flicker8k_Dataset, .* say where images lie"):
        read_captions(flickr8k)
    assert len(read_captions(flickr8k, images=flickr8k.parent.parent / "elsewhere")[0]) == 3
