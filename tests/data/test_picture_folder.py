import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saysee.data.manifest import SPLITS, Manifest, ManifestError, read_manifest, write_manifest
from saysee.data.picture_folder import prepare
from saysee.data.validate import structural_faults
from saysee.errors import SayseeError

SAMPLE: dict[str, Any] = {"dev": 0.2, "test": 0.2, "seed": 1}


WORDS = ["ant", "bee", "cow", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay", "kiwi", "lynx"]


def made(folder: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Make the files that the rows name; `prepare` looks whether they are there and not into them."""
    for row in rows:
        for column in ("image", "audio"):
            path = folder / row[column]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return rows


def words(folder: Path) -> list[dict[str, Any]]:
    """Twelve words by two voices, as in the sample corpus."""
    return made(
        folder,
        [
            {"image": f"images/{w}.jpg", "audio": f"audio/{v}/{w}.ogg", "word": w, "language": v[:2], "speaker": v}
            for v in ("en-ann", "fr-bob")
            for w in WORDS
        ],
    )


def as_csv(path: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    with path.open("w", encoding=options.pop("encoding", "utf-8"), newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), **options)
        table.writeheader()
        table.writerows(rows)
    return path


def as_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", "utf-8")
    return path


def faults_of(folder: Path, recordings: Path | None = None) -> list[str]:
    with pytest.raises(ManifestError) as raised:
        prepare(folder, recordings=recordings, **SAMPLE)
    assert all(fault.isprintable() for fault in raised.value.faults)
    return raised.value.faults


def test_a_folder_of_words_becomes_a_manifest(tmp_path: Path) -> None:
    as_csv(tmp_path / "recordings.csv", words(tmp_path))
    manifest, notes = (prepared := prepare(tmp_path, **SAMPLE)).manifest, prepared.notes
    assert manifest.split_by == "image"
    assert len(manifest.captions) == 24
    first = manifest.captions[0]
    assert (first.id, first.image_id) == ("audio/en-ann/ant", "images/ant.jpg")
    assert (first.audio, first.image) == (tmp_path / "audio/en-ann/ant.ogg", tmp_path / "images/ant.jpg")
    assert (first.text, first.speaker, first.language) == ("ant", "en-ann", "en")
    assert len(manifest.images()) == 12
    assert structural_faults(manifest) == []
    assert notes == [manifest.summary(), "splits drawn with seed 1"]


def test_csv_and_json_lines_say_the_same_in_any_encoding_of_it(tmp_path: Path) -> None:
    rows = words(tmp_path)
    tables = [
        as_csv(tmp_path / "a.csv", rows),
        as_csv(tmp_path / "b.csv", rows, encoding="utf-8-sig", lineterminator="\n", quoting=csv.QUOTE_ALL),
        as_csv(tmp_path / "c.CSV", [dict(reversed(row.items())) for row in rows]),
        as_csv(tmp_path / "t.tsv", rows, delimiter="\t"),
        as_jsonl(tmp_path / "d.jsonl", [{**row, "id": None, "split": ""} for row in rows]),
        as_jsonl(tmp_path / "e.jsonl", [{**row, "image": f"./x/../{row['image']}"} for row in rows]),
    ]
    first, *others = [prepare(tmp_path, recordings=table, **SAMPLE) for table in tables]
    for other in others:
        assert other == first


odd = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda name: name not in {".", ".."}
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.lists(odd, min_size=6, max_size=6, unique=True), st.sampled_from(["csv", "jsonl"]))
def test_odd_names_go_through_table_and_manifest(tmp_path: Path, names: list[str], kind: str) -> None:
    folder = tmp_path / "odd"
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = [
        {"image": f"images/{n}", "audio": f"audio/{i}.ogg", "text": n, "split": SPLITS[i % 3]}
        for i, n in enumerate(names)
    ]
    made(folder, rows)
    table = (as_csv if kind == "csv" else as_jsonl)(folder / f"recordings_of.{kind}", rows)
    manifest = prepare(folder, recordings=table).manifest
    assert [(c.image, c.text) for c in manifest.captions] == [(folder / "images" / name, name) for name in names]
    write_manifest(folder / "manifest.jsonl", manifest)
    assert read_manifest(folder / "manifest.jsonl") == manifest


@pytest.mark.parametrize("name", ['qu"ote', "comma, semi;", "new\nline", "return\r\n", "ñandú 鳥", "'", "#", " edge "])
def test_odd_names_one_by_one(tmp_path: Path, name: str) -> None:
    rows = made(
        tmp_path, [{"image": f"{name}{n}.jpg", "audio": f"{name}{n}.ogg", "split": SPLITS[n]} for n in range(3)]
    )
    as_csv(tmp_path / "recordings.csv", rows)
    captions = prepare(tmp_path).manifest.captions
    assert [c.image.name for c in captions] == [f"{name}{n}.jpg" for n in range(3)]
    assert [c.id for c in captions] == [f"{name}{n}" for n in range(3)]


def test_given_ids_and_splits_are_taken(tmp_path: Path) -> None:
    rows = words(tmp_path)
    for number, row in enumerate(rows):
        row |= {"id": f"r{number}", "image_id": row["word"], "split": SPLITS[number % 3]}
    as_jsonl(tmp_path / "recordings.jsonl", rows)
    prepared = prepare(tmp_path, split_by="recording")
    captions = prepared.manifest.captions
    assert [c.id for c in captions] == [f"r{n}" for n in range(24)]
    assert [c.split for c in captions] == [SPLITS[n % 3] for n in range(24)]
    assert captions[13].image_id == "bee"
    assert prepared.notes[1] == "splits are those of the column `split`"
    assert structural_faults(prepared.manifest) == []


def test_speakers_can_be_held_out(tmp_path: Path) -> None:
    rows = words(tmp_path)
    rows += made(tmp_path, [{**row, "audio": f"c/{row['word']}.ogg", "speaker": "cy"} for row in rows[:12]])
    as_csv(tmp_path / "recordings.csv", rows)
    prepared = prepare(tmp_path, split_by="speaker", dev=["en-ann"], test=["cy"])
    assert {(c.speaker, c.split) for c in prepared.manifest.captions} == {
        ("en-ann", "dev"),
        ("fr-bob", "train"),
        ("cy", "test"),
    }
    assert prepared.notes[1] == "splits made by the speakers named"


LINE_FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"image": ""}, "image is empty"),
    ({"audio": ""}, "audio is empty"),
    ({"image": "images/none.jpg"}, "image 'images/none.jpg' is missing"),
    ({"audio": "audio/none\n.ogg"}, r"audio 'audio/none\n.ogg' is missing"),
    ({"audio": "audio"}, "audio 'audio' is missing"),
    ({"image": "../x.jpg"}, "image '../x.jpg' leaves the folder"),
    ({"image": "images/../../x.jpg"}, "leaves the folder"),
    ({"audio": "/etc/hostname"}, "audio '/etc/hostname' leaves the folder"),
    ({"audio": "audio/en-ann/ant.ogg"}, "id 'audio/en-ann/ant' stands already on line {0}"),
    ({"id": "audio/en-ann/bee"}, "id 'audio/en-ann/bee' stands already on line {1}"),
    ({"image_id": "images/ant.jpg"}, "image_id 'images/ant.jpg' has another image on line {0}"),
]


@pytest.mark.parametrize("write", [as_csv, as_jsonl])
def test_all_faults_are_listed_at_once_with_their_lines(tmp_path: Path, write: Any) -> None:
    rows = [{**row, "id": "", "image_id": ""} for row in words(tmp_path)]
    (tmp_path.parent / "x.jpg").touch()
    good = len(rows) - len(LINE_FAULTS)
    for row, (change, _) in zip(rows[good:], LINE_FAULTS, strict=True):
        row.update(change)
    suffix = "csv" if write is as_csv else "jsonl"
    faults = faults_of(tmp_path, write(tmp_path / f"recordings.{suffix}", rows))
    shift = 1 if write is as_csv else 0  # by the header, and again where a quoted line end makes the file longer
    for number, (change, expected) in enumerate(LINE_FAULTS):
        line = good + 1 + number + shift + (shift if number > 3 else 0)
        found = [fault for fault in faults if fault.startswith(f"line {line}: ")]
        assert any(expected.format(1 + shift, 2 + shift) in fault for fault in found), (change, found)
    assert len(faults) == len(LINE_FAULTS)


def test_faults_of_the_columns(tmp_path: Path) -> None:
    rows = words(tmp_path)
    assert faults_of(tmp_path, as_csv(tmp_path / "a.csv", [{**row, "colour": "red", "text": "x"} for row in rows])) == [
        "line 1: unknown column 'colour'; "
        "allowed: image, audio, text, word, language, speaker, id, image_id, concept, split",
        "line 1: columns 'text' and 'word' mean the same; keep one",
    ]
    missing = faults_of(tmp_path, as_csv(tmp_path / "b.csv", [{"image": row["image"]} for row in rows]))
    assert missing == ["line 1: missing column 'audio'"]  # and not one for every line
    (tmp_path / "c.csv").write_text("image,audio,image\nx,y,z\n", "utf-8")
    assert "line 1: column 'image' stands twice" in faults_of(tmp_path, tmp_path / "c.csv")
    semicolons = faults_of(tmp_path, as_csv(tmp_path / "d.csv", rows, delimiter=";"))
    assert semicolons[0].startswith("line 1: unknown column 'image;audio;word;language;speaker'")


def test_faults_of_the_csv_form(tmp_path: Path) -> None:
    rows = words(tmp_path)
    text = as_csv(tmp_path / "a.csv", rows, lineterminator="\n").read_text("utf-8").splitlines()
    text[3] += ",more"
    text[5] = '"images/elk.jpg'
    (tmp_path / "a.csv").write_text("\n".join(text), "utf-8")
    wide, broken = faults_of(tmp_path, tmp_path / "a.csv")
    assert wide.startswith("line 4: 6 cells, but the header has 5")
    assert broken.startswith("line 6: not CSV from here on")
    (tmp_path / "b.csv").write_text("image,audio\n" + "x" * 200_000 + ",y\n", "utf-8")
    assert faults_of(tmp_path, tmp_path / "b.csv")[0].startswith("line 2: not CSV from here on (field larger")


def test_faults_of_the_json_lines_form(tmp_path: Path) -> None:
    row = words(tmp_path)[0]
    lines = ["{", "[1]", json.dumps({**row, "speaker": 3}), json.dumps({**row, "mood": "x"}), "", json.dumps({})]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), "utf-8")
    assert [fault[:24] for fault in faults_of(tmp_path, tmp_path / "a.jsonl")] == [
        "line 1: invalid JSON (Ex",
        "line 2: it holds [1]; al",
        "line 3: speaker is 3; al",
        "line 4: unknown column '",
        "line 6: image is empty; ",
        "line 6: audio is empty; ",
    ]


def test_a_column_of_splits_must_be_full_and_known(tmp_path: Path) -> None:
    rows = [{**row, "split": "train"} for row in words(tmp_path)]
    rows[1]["split"], rows[2]["split"] = "", "val"
    none, unknown = faults_of(tmp_path, as_csv(tmp_path / "recordings.csv", rows))
    assert none.startswith("line 3: split is None; allowed: train, dev, test")
    assert unknown.startswith("line 4: split is 'val'; allowed: train, dev, test")


@pytest.mark.parametrize("content", ["", "\n\n", "image,audio\n"])
def test_a_table_without_recordings(tmp_path: Path, content: str) -> None:
    (tmp_path / "recordings.csv").write_text(content, "utf-8")
    (fault,) = faults_of(tmp_path)
    assert fault.startswith("it lists no recordings")


def test_a_table_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "recordings.csv").write_bytes("image,audio\na.jpg,ñ.ogg\n".encode("latin-1"))
    assert faults_of(tmp_path) == ["line 2: byte 0xf1 is not UTF-8; save the file as UTF-8"]


def test_what_folder_and_table_may_be(tmp_path: Path) -> None:
    with pytest.raises(SayseeError, match="is not a folder"):
        prepare(tmp_path / "none")
    with pytest.raises(SayseeError, match=r"has neither recordings\.csv nor recordings.jsonl"):
        prepare(tmp_path)
    with pytest.raises(SayseeError, match=r"'list.xlsx'; allowed: a file named \*.csv, \*.tsv, \*.jsonl"):
        prepare(tmp_path, recordings=Path("list.xlsx"))
    for name in ("recordings.csv", "recordings.jsonl"):
        (tmp_path / name).touch()
    with pytest.raises(SayseeError, match=r"has both recordings\.csv and recordings.jsonl"):
        prepare(tmp_path)


def test_a_manifest_of_a_folder_lies_in_it_with_relative_paths(tmp_path: Path) -> None:
    real, alias = tmp_path / "real", tmp_path / "alias"
    as_csv(made_root(real) / "recordings.csv", words(real))
    alias.symlink_to(real)
    manifest: Manifest = prepare(alias, **SAMPLE).manifest
    write_manifest(alias / "manifest.jsonl", manifest)
    assert '"audio": "audio/en-ann/ant.ogg"' in (real / "manifest.jsonl").read_text("utf-8")


def made_root(folder: Path) -> Path:
    folder.mkdir()
    return folder
