import json
import os
import pickle
import tracemalloc
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saysee.data.manifest import (
    SPLIT_BY,
    SPLITS,
    Manifest,
    ManifestError,
    Split,
    SpokenCaption,
    read_manifest,
    write_manifest,
)

RECORD: dict[str, Any] = {
    "id": "a",
    "audio": "a.ogg",
    "image_id": "i",
    "image": "i.jpg",
    "text": None,
    "speaker": None,
    "language": None,
    "split": "train",
}
HEADER = {"saysee_manifest": 1, "split_by": "image"}

# what a file may be called on Linux: any bytes but / and NUL; those that are not UTF-8 come as lone low surrogates
name_characters = st.characters(exclude_characters="/\0", exclude_categories=["Cs"]) | st.sampled_from("\udc80\udcff")
names = st.text(name_characters, min_size=1, max_size=12).filter(lambda name: name not in {".", ".."})
texts = st.text(st.characters(exclude_categories=["Cs"]))
some_text = st.none() | texts


def paths_from(folder: Path) -> st.SearchStrategy[Path]:
    parts = st.lists(names, min_size=1, max_size=3)
    return st.builds(lambda start, rest: Path(start, *rest), st.sampled_from([folder, Path("/else where")]), parts)


def captions_from(folder: Path) -> st.SearchStrategy[SpokenCaption]:
    name, path = texts.filter(lambda text: text and "\0" not in text), paths_from(folder)
    facts = (some_text, some_text, some_text, st.sampled_from(SPLITS), st.none() | name)
    return st.builds(SpokenCaption, name, path, name, path, *facts)


@given(st.data())
def test_any_manifest_comes_back_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp().resolve()
    captions = data.draw(st.lists(captions_from(folder), max_size=5))
    manifest = Manifest(data.draw(st.sampled_from(SPLIT_BY)), tuple(captions))
    path = folder / "round_trip.jsonl"
    write_manifest(path, manifest)
    assert read_manifest(path) == manifest
    assert path.read_bytes().count(b"\n") == 1 + len(captions)  # whatever stands in the text: one line a record


def caption(id_: str = "a", split: str = "train", **changes: Any) -> SpokenCaption:
    values: dict[str, Any] = {**RECORD, "id": id_, "audio": Path("/a.ogg"), "image": Path("/i.jpg"), "split": split}
    return SpokenCaption(**{**values, **changes})


def test_the_file_is_as_documented(tmp_path: Path) -> None:
    inside = tmp_path / "sub" / "niña.ogg"
    write_manifest(tmp_path / "m.jsonl", Manifest("speaker", (caption(audio=inside, text="una niña"),)))
    header, record = (tmp_path / "m.jsonl").read_text("utf-8").splitlines()
    assert json.loads(header) == {"saysee_manifest": 1, "split_by": "speaker"}
    assert json.loads(record) == {**RECORD, "audio": "sub/niña.ogg", "image": "/i.jpg", "text": "una niña"}
    assert "una niña" in record  # a person can read it
    *columns, last = (field.name for field in fields(SpokenCaption))
    assert (list(json.loads(record)), last) == (columns, "concept")  # which is written where there is one


def test_captions_of_one_concept_show_one_thing_and_others_their_picture() -> None:
    drawn, painted = caption(image_id="a", concept="dog"), caption(image_id="b", concept="dog")
    named = caption(image_id="dog")  # a picture that is called as the concept is
    assert drawn.shown == painted.shown != named.shown
    assert caption(image_id="a").shown != caption(image_id="b").shown


def test_a_name_that_is_not_utf8_is_kept(tmp_path: Path) -> None:
    manifest = Manifest("image", (caption(audio=tmp_path / os.fsdecode(b"ni\xf1a.ogg")),))
    write_manifest(tmp_path / "m.jsonl", manifest)
    assert read_manifest(tmp_path / "m.jsonl") == manifest


def test_a_corpus_can_be_moved_as_a_whole(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    write_manifest(old / "m.jsonl", Manifest("image", (caption(audio=old / "x" / "a.ogg", image=old / "i.jpg"),)))
    old.rename(new)
    (moved,) = read_manifest(new / "m.jsonl").captions
    assert (moved.audio, moved.image) == (new / "x" / "a.ogg", new / "i.jpg")


def test_one_file_is_one_path_however_it_is_written(tmp_path: Path) -> None:
    lines = [HEADER, {**RECORD, "image": "x/../i.jpg"}, {**RECORD, "image": "./i.jpg"}]
    first, second = read_manifest(written(tmp_path, lines)).captions
    assert first.image == second.image == tmp_path / "i.jpg"


def test_a_byte_order_mark_windows_line_ends_and_blank_lines_are_no_faults(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join([json.dumps(HEADER), "", json.dumps(RECORD), ""]).encode())
    assert [c.id for c in read_manifest(path).captions] == ["a"]


def test_parts_of_a_manifest() -> None:
    captions = (
        caption("a", "test", image_id="cow", image=Path("/cow.jpg")),
        caption("b", "train", image_id="ant", image=Path("/ant.jpg")),
        caption("c", "test", image_id="cow", image=Path("/not the first.jpg")),
    )
    manifest = Manifest("recording", captions)
    assert [c.id for c in manifest.of("test")] == ["a", "c"]
    assert manifest.of("dev") == ()
    assert list(manifest.images().items()) == [("cow", Path("/cow.jpg")), ("ant", Path("/ant.jpg"))]
    assert manifest.images("train") == {"ant": Path("/ant.jpg")}
    assert manifest.summary() == "2 pictures, 3 recordings (train 1, dev 0, test 2), split by recording"


def written(folder: Path, lines: Sequence[object]) -> Path:
    path = folder / "m.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), "utf-8")
    return path


def faults_of(path: Path) -> list[str]:
    with pytest.raises(ManifestError) as raised:
        read_manifest(path)
    assert all(fault.isprintable() for fault in raised.value.faults)
    return raised.value.faults


HEADER_FAULTS: list[tuple[object, str]] = [
    ("", "it is no header"),
    ("{", "it is no header"),
    (RECORD, "it is no header"),
    ([1], "it is no header"),
    ({"saysee_manifest": 0, "split_by": "image"}, "format version 0 does not exist"),
    ({"saysee_manifest": True, "split_by": "image"}, "format version True does not exist"),
    ({"saysee_manifest": "1", "split_by": "image"}, "format version '1' does not exist"),
    ({"saysee_manifest": 1}, "split_by is None; allowed: image, speaker, recording"),
    ({"saysee_manifest": 1, "split_by": "voice"}, "split_by is 'voice'; allowed: image, speaker, recording"),
    ({**HEADER, "name": "x"}, "unknown key 'name'; allowed: saysee_manifest, split_by"),
]


@pytest.mark.parametrize(("header", "fault"), HEADER_FAULTS)
def test_a_bad_header_is_named_and_the_records_are_read_all_the_same(
    tmp_path: Path, header: object, fault: str
) -> None:
    faults = faults_of(written(tmp_path, [header, RECORD, {**RECORD, "split": "val"}]))
    assert len(faults) == 2
    assert faults[0].startswith(f"line 1: {fault}")
    assert faults[1] == "line 3 ('a'): unknown split 'val'; allowed: train, dev, test"


def test_a_newer_format_is_the_only_fault_that_is_listed(tmp_path: Path) -> None:
    (fault,) = faults_of(written(tmp_path, [{**HEADER, "saysee_manifest": 2}, {"other": "columns"}]))
    assert fault.startswith("line 1: format version 2 is newer than 1")
    assert "update saysee" in fault


def without(column: str) -> dict[str, Any]:
    return {name: value for name, value in RECORD.items() if name != column}


RECORD_FAULTS: list[tuple[object, str]] = [
    ("{'id': 1}", "invalid JSON (Expecting property name enclosed in double quotes, column 2)"),
    ("[" * 100_000, "invalid JSON (maximum recursion depth exceeded"),
    ("9" * 10_000, "invalid JSON (Exceeds the limit"),
    ([1, 2], "it holds [1, 2]; a record is an object"),
    ({**RECORD, "colour": "red"}, "('a'): unknown column 'colour'"),
    (without("id"), "missing column 'id'"),
    (without("speaker"), "('a'): missing column 'speaker'; write null if unknown"),
    ({**RECORD, "id": 7}, "id is 7; allowed: a string that is not empty"),
    ({**RECORD, "image_id": ""}, "('a'): image_id is ''; allowed"),
    ({**RECORD, "audio": None}, "('a'): audio is None; allowed"),
    ({**RECORD, "image": "a\0b"}, "('a'): image is 'a\\x00b'; allowed"),
    ({**RECORD, "text": 3.5}, "('a'): text is 3.5; allowed: a string or null"),
    ({**RECORD, "split": "valid"}, "('a'): unknown split 'valid'; allowed: train, dev, test"),
    ({**RECORD, "split": None}, "('a'): split is None; allowed"),
]


@pytest.mark.parametrize(("record", "fault"), RECORD_FAULTS)
def test_a_bad_record_is_named_with_its_line(tmp_path: Path, record: object, fault: str) -> None:
    (found,) = faults_of(written(tmp_path, [HEADER, *[RECORD] * 5, record, RECORD]))
    assert found.startswith("line 7")
    assert fault in found


def test_all_faults_are_listed_at_once(tmp_path: Path) -> None:
    several = {"id": "b\nc", "audio": 1, "image_id": "i", "image": "i.jpg", "split": "x", "extra": 1}
    faults = faults_of(written(tmp_path, [{"saysee_manifest": 1}, *(record for record, _ in RECORD_FAULTS), several]))
    for number, (_, fault) in enumerate(RECORD_FAULTS, start=2):
        (found,) = [f for f in faults if f.startswith((f"line {number}:", f"line {number} "))]
        assert fault in found
    # split_by; one each; extra, audio, text, speaker, language, split
    assert len(faults) == 1 + len(RECORD_FAULTS) + 6
    assert all(f.startswith(f"line {len(RECORD_FAULTS) + 2} ('b\\nc'): ") for f in faults[-6:])


def test_the_error_is_a_summary_and_a_line_for_each_fault(tmp_path: Path) -> None:
    path = written(tmp_path, [HEADER, {**RECORD, "split": "x", "text": 1}])
    with pytest.raises(ManifestError) as raised:
        read_manifest(path)
    summary, *lines = str(raised.value).split("\n")
    assert summary == f"{path}: 2 faults"
    assert [line.strip() for line in lines] == raised.value.faults
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)  # from a worker process


def test_a_manifest_that_was_read_is_a_sequence_of_its_captions(tmp_path: Path) -> None:
    """Records are parsed when they are asked for: by index, slice, split and iteration they are those of the file."""
    splits: list[Split] = ["train", "test", "train", "dev", "train"]
    captions = tuple(
        SpokenCaption(f"c{n}", tmp_path / f"{n}.wav", f"i{n // 2}", tmp_path / f"{n // 2}.png", None, "ñ", None, split)
        for n, split in enumerate(splits)
    )
    path = tmp_path / "manifest.jsonl"
    write_manifest(path, Manifest("image", captions))
    read = read_manifest(path)
    assert read == Manifest("image", captions)
    assert read != Manifest("image", captions[:-1])
    assert read.captions[-1] == captions[-1]
    assert read.captions[1:4] == captions[1:4]
    assert [read.captions[index] for index in (4, 0, 2)] == [captions[index] for index in (4, 0, 2)]
    for split in SPLITS:
        assert read.of(split) == tuple(caption for caption in captions if caption.split == split)
    with pytest.raises(IndexError):
        read.captions[5]


def test_a_manifest_that_was_read_stays_when_its_file_is_replaced(tmp_path: Path) -> None:
    caption = SpokenCaption("a", tmp_path / "a.wav", "i", tmp_path / "a.png", None, None, None, "train")
    path = tmp_path / "manifest.jsonl"
    write_manifest(path, Manifest("image", (caption,)))
    read = read_manifest(path)
    write_manifest(path, Manifest("image", (replace(caption, id="b"),)))
    assert read.captions[0] == caption


def test_while_it_is_read_a_manifest_takes_less_than_a_hundred_bytes_a_caption(tmp_path: Path) -> None:
    """And a tenth behind that; tracemalloc counts what Python and numpy hold and held at most.

    What 600,000 of them take in training is seen in test_dataset.
    """
    record = '{"id": "%d", "audio": "%d.wav", "image_id": "%d", "image": "%d.jpg", "text": "a man on a horse", '
    record += '"speaker": null, "language": "en", "split": "train"}\n'
    path = tmp_path / "manifest.jsonl"
    count = 20_000
    with path.open("w") as file:
        file.write('{"saysee_manifest": 1, "split_by": "image"}\n')
        file.writelines(record % (n, n, n // 5, n // 5) for n in range(count))
    tracemalloc.start()
    try:
        manifest = read_manifest(path)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (len(manifest.captions), manifest.captions[-1].image_id) == (count, str((count - 1) // 5))
    assert held / count < 15
    assert peak / count < 100


def test_what_is_not_a_readable_text_file(tmp_path: Path) -> None:
    assert "No such file" in faults_of(tmp_path / "none.jsonl")[0]
    assert "Is a directory" in faults_of(tmp_path)[0]
    path = tmp_path / "latin1.jsonl"
    path.write_bytes(b"\xef\xbb\xbf{}\n\n" + "ñ".encode("latin-1"))
    assert faults_of(path)[1:] == ["line 3: byte 0xf1 is not UTF-8; save the file as UTF-8"]
