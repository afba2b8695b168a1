"""Building and updating: what is in an index afterwards, whatever became of the folder meanwhile."""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from media import BAD_PICTURES, write_image, write_wav
from saysee.errors import SayseeError
from saysee.models.retrieval_model import SpeechImageModel
from saysee.search.building import check_index, update_index
from saysee.search.index import Index, open_index
from saysee.search.stores.base import Filter
from small_indexes import COLOURS, build, by_path, indexed, write_pictures
from stubs import small_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "pictures")


class CountingModel:
    """A model that counts the pictures it is asked about."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.model = small_model()
        self.encoded = 0
        original = self.model.encode_pixels

        def counting(pixels: torch.Tensor) -> Any:
            self.encoded += len(pixels)
            return original(pixels)

        monkeypatch.setattr(self.model, "encode_pixels", counting)


def assert_sound(index: Index, model: SpeechImageModel) -> None:
    """Every picture of the folder is there once, with what the model says of the file as it is now."""
    items = by_path(index)
    folder = index.description.folder
    assert set(items) == {os.path.relpath(path, folder) for path in folder.rglob("*.png")}
    for item in items.values():
        path = index.file(item)
        encoding = model.encode_image(path)
        np.testing.assert_allclose(index.store.embeddings([item.id]), encoding.embedding, atol=1e-6)
        stored = index.store.hidden([item.id])
        assert stored is not None
        torch.testing.assert_close(stored[0].float(), encoding.hidden[0], atol=2e-3, rtol=2e-3)
        assert item.content == hashlib.sha256(path.read_bytes()).hexdigest()
        assert (item.size, item.modified) == (path.stat().st_size, path.stat().st_mtime_ns)
    assert check_index(index).damaged == ()


def test_an_index_holds_what_the_model_says_of_each_picture(folder: Path, tmp_path: Path) -> None:
    model = small_model()
    report = build(folder, model, tmp_path / "index")
    assert (report.total, report.encoded, report.skipped) == (9, 9, {})
    index = open_index(tmp_path / "index")
    assert index.description.model_fingerprint == model.fingerprint
    assert_sound(index, model)
    for item in index.store.items():
        thumbnail = index.thumbnail(item.id)
        assert thumbnail is not None
        assert thumbnail.startswith(b"\xff\xd8")
    assert index.thumbnail("0" * 32) is None


def test_an_update_encodes_only_what_is_new_or_changed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = CountingModel(monkeypatch)
    index = indexed(folder, counting.model, tmp_path / "index")
    assert counting.encoded == 9
    write_image(folder / "new.png", colour="teal")
    write_image(folder / "red o'clock 0.png", colour="navy")
    (folder / "white o'clock 3.png").unlink(missing_ok=True)
    (folder / "nested" / "white o'clock 3.png").unlink()
    report = update_index(index, counting.model)
    assert counting.encoded == 11
    assert (report.total, report.encoded, report.unchanged, report.removed, report.moved) == (9, 2, 7, 1, 0)
    assert_sound(index, counting.model)
    assert update_index(index, counting.model).unchanged == 9
    assert counting.encoded == 9 + 2 + 9  # the last nine are `assert_sound`'s own


def test_moved_copied_and_touched_pictures_are_recognised(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = CountingModel(monkeypatch)
    index = indexed(folder, counting.model, tmp_path / "index")
    (folder / "elsewhere").mkdir()
    (folder / "red o'clock 0.png").rename(folder / "elsewhere" / "crimson.png")
    shutil.copy(folder / "blue o'clock 2.png", folder / "azure.png")
    os.utime(folder / "black o'clock 4.png", ns=(1, 1))
    report = update_index(index, counting.model)
    assert (report.encoded, report.moved, report.removed, report.total) == (0, 3, 0, 10)
    assert counting.encoded == 9
    assert_sound(index, counting.model)


def test_pictures_that_trade_places_are_encoded_again(folder: Path, tmp_path: Path) -> None:
    """Neither content is anywhere the index could take it from: both items are just being replaced."""
    model = small_model()
    index = indexed(folder, model, tmp_path / "index")
    one, two = folder / "red o'clock 0.png", folder / "blue o'clock 2.png"
    contents = one.read_bytes(), two.read_bytes()
    one.write_bytes(contents[1])
    two.write_bytes(contents[0])
    for number, path in enumerate((one, two)):
        os.utime(path, ns=(number + 1, number + 1))
    assert update_index(index, model).encoded == 2
    assert_sound(index, model)


ACTIONS = ("add", "delete", "change", "move", "copy", "touch", "swap", "update")


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 99), st.integers(0, 5)), max_size=25))
def test_whatever_is_done_to_a_folder_an_update_follows(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[str, int, int]]
) -> None:
    place = tmp_path_factory.mktemp("followed")
    folder = place / "pictures"
    folder.mkdir()
    write_image(folder / "stays.png", colour="white")
    model = small_model()
    index = indexed(folder, model, place / "index")
    clock = 0
    for action, which, colour in actions:
        files = sorted(folder.glob("[0-9]*.png"))
        chosen = files[which % len(files)] if files else None
        other = folder / f"{which}.png"
        clock += 1
        if action == "update":
            update_index(index, model)
            continue
        if action == "add":
            write_image(other, colour=COLOURS[colour])
            chosen = other
        elif chosen is None:
            continue
        elif action == "delete":
            chosen.unlink()
        elif action == "change":
            write_image(chosen, colour=COLOURS[colour])
        elif action == "move":
            chosen.rename(other)
        elif action == "copy" and chosen != other:
            shutil.copy(chosen, other)
            chosen = other
        elif action == "swap":
            second = files[colour % len(files)]
            contents = chosen.read_bytes(), second.read_bytes()
            chosen.write_bytes(contents[1])
            second.write_bytes(contents[0])
            os.utime(second, ns=(clock * 10**9 + 1,) * 2)
        if chosen.exists() and action != "move":
            os.utime(chosen, ns=(clock * 10**9,) * 2)
    update_index(index, model)
    assert_sound(index, model)
    index.close()


def test_bad_pictures_are_skipped_named_and_counted(folder: Path, tmp_path: Path) -> None:
    for number, make in enumerate(BAD_PICTURES.values()):
        (folder / f"bad {number}.png").write_bytes(make())
    (folder / "notes.txt").write_text("not a picture")
    (folder / ".hidden").mkdir()
    write_image(folder / ".hidden" / "secret.png")
    (folder / "nowhere.png").symlink_to(folder / "gone")
    report = build(folder, small_model(), tmp_path / "index")
    assert (report.total, report.others) == (9, [folder / "notes.txt"])
    bad = {f"bad {number}.png" for number in range(len(BAD_PICTURES))}
    assert {path.name for path in report.skipped} == {*bad, "nowhere.png"}
    assert all(path.name in reason and "\n" not in reason for path, reason in report.skipped.items())


def test_a_picture_that_was_good_and_is_bad_now_goes(folder: Path, tmp_path: Path) -> None:
    model = small_model()
    index = indexed(folder, model, tmp_path / "index")
    (folder / "red o'clock 0.png").write_bytes(b"no picture")
    report = update_index(index, model)
    assert (report.total, report.removed, len(report.skipped)) == (8, 1, 1)
    assert "red o'clock 0.png" not in by_path(index)


def test_what_cannot_be_listed_is_not_taken_for_gone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model()
    index = indexed(folder, model, tmp_path / "index")
    original = os.scandir

    def refusing(path: Any) -> Any:
        if Path(path).name == "nested":
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", refusing)
    report = update_index(index, model)
    assert (report.total, report.removed) == (9, 0)
    assert list(report.skipped) == [folder / "nested"]


def test_an_empty_folder_is_an_unmounted_disk_rather_than_the_users_wish(folder: Path, tmp_path: Path) -> None:
    model = small_model()
    index = indexed(folder, model, tmp_path / "index")
    folder.rename(tmp_path / "away")
    with pytest.raises(SayseeError, match="is not there"):
        update_index(index, model)
    folder.mkdir()
    with pytest.raises(SayseeError, match="is a disk not mounted"):
        update_index(index, model)
    assert len(index) == 9


def test_a_folder_with_nothing_to_index_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SayseeError, match="no picture in"):
        build(tmp_path / "empty", small_model(), tmp_path / "index")
    with pytest.raises(SayseeError, match="is no folder"):
        build(tmp_path / "nowhere", small_model(), tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_what_is_no_index_or_one_of_something_else_is_left_alone(folder: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "thesis.tex").write_text("years of work")
    for other in (folder, site):
        before = sorted(other.rglob("*"))
        with pytest.raises(SayseeError, match="exists and is no index"):
            build(folder, small_model(), other)
        assert sorted(other.rglob("*")) == before
    into = tmp_path / "index"
    build(folder, small_model(), into)
    write_pictures(tmp_path / "others" / "pictures")
    with pytest.raises(SayseeError, match=r"was built with .*m \(fingerprint .* and .* has fingerprint"):
        build(folder, small_model(1), into)
    with pytest.raises(SayseeError, match="is an index whose folder is"):
        build(tmp_path / "others" / "pictures", small_model(), into)
    with pytest.raises(SayseeError, match="is an index whose fine is True, not False"):
        build(folder, small_model(), into, coarse_only=True)
    assert len(open_index(into)) == 9


def test_names_that_are_not_text_and_names_with_line_breaks_are_indexed(folder: Path, tmp_path: Path) -> None:
    odd = [b"caf\xe9.png", b"two\nlines.png", "ñandú.png".encode(), b'it\'s "100%" *?[x].png']
    for name in odd:
        write_image(folder / "plain.png", colour="grey")
        (folder / "plain.png").rename(folder / os.fsdecode(name))
    model = small_model()
    index = indexed(folder, model, tmp_path / "index")
    assert {os.fsencode(path) for path in by_path(index)} >= set(odd)
    assert_sound(index, model)


def test_the_date_is_that_of_the_camera_or_else_of_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = "2019:07:14 23:59:58"
    Image.new("RGB", (32, 32), "red").save(folder / "taken.jpg", exif=exif)
    write_image(folder / "plain.png")
    moment = datetime(2021, 3, 4, 12, 30).timestamp()
    os.utime(folder / "plain.png", (moment, moment))
    items = by_path(indexed(folder, small_model(), tmp_path / "index"))
    shown = {path: datetime.fromtimestamp(item.taken, UTC).replace(tzinfo=None) for path, item in items.items()}
    assert shown == {"taken.jpg": datetime(2019, 7, 14, 23, 59, 58), "plain.png": datetime(2021, 3, 4, 12, 30)}
    store = open_index(tmp_path / "index").store
    day = date(2019, 7, 14)
    (found,) = store.nearest(np.ones((1, 8), np.float32), 9, Filter(since=day, until=day))
    assert found.ids == (items["taken.jpg"].id,)


def test_an_index_without_the_fine_stage_keeps_no_tokens(folder: Path, tmp_path: Path) -> None:
    index = indexed(folder, small_model(), tmp_path / "index", coarse_only=True)
    assert index.store.hidden([next(index.store.items()).id]) is None
    assert not list((tmp_path / "index").glob("hidden-*"))


def test_recordings_are_indexed_too(tmp_path: Path) -> None:
    folder, model = tmp_path / "sounds", small_model()
    folder.mkdir()
    for number in range(5):
        write_wav(folder / f"{number}.wav", 0.3 + 0.1 * number, frequency=300.0 + 50 * number)
    index = indexed(folder, model, tmp_path / "index", kind="recording")
    for item in index.store.items():
        speech = model.encode_speech(index.file(item))
        np.testing.assert_allclose(index.store.embeddings([item.id]), speech.embedding, atol=1e-5)
        stored = index.store.hidden([item.id])
        assert stored is not None
        torch.testing.assert_close(stored[0].float(), speech.hidden[0], atol=2e-3, rtol=2e-3)


def test_stopped_after_any_batch_the_finished_work_stays(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from saysee.search import building

    monkeypatch.setattr(building, "Encoder", lambda *a, **k: Encoder(*a, **k, batch_size=2))
    from saysee.search.encoding import Encoder

    model = small_model()
    original, calls = SpeechImageModel.encode_pixels, 0

    def stopping(self: SpeechImageModel, pixels: torch.Tensor) -> Any:
        nonlocal calls
        calls += 1
        if calls % 2 == 0:
            raise KeyboardInterrupt
        return original(self, pixels)

    monkeypatch.setattr(SpeechImageModel, "encode_pixels", stopping)
    counts = []
    for _ in range(20):
        try:
            build(folder, model, tmp_path / "index")
            break
        except KeyboardInterrupt:
            index = open_index(tmp_path / "index")
            counts.append(len(by_path(index)))
            assert check_index(index).damaged == ()
            index.close()
    assert counts == [2, 4, 6, 8]
    monkeypatch.undo()
    assert_sound(open_index(tmp_path / "index"), model)


def spoil_byte(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0x40
    path.write_bytes(content)


SPOILT: dict[str, tuple[Callable[[Path], None], int]] = {
    "an embedding": (lambda into: spoil_byte(into / "embeddings-0.f32", 3 * 8 * 4 + 2), 1),
    "a token": (lambda into: spoil_byte(into / "hidden-0.f16", 4 * 5 * 16 * 2 + 9), 1),
    "the end of the embeddings": (lambda into: os.truncate(into / "embeddings-0.f32", 7 * 8 * 4 + 5), 2),
    "the end of the tokens": (lambda into: os.truncate(into / "hidden-0.f16", 6 * 5 * 16 * 2), 3),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_damage_is_found_searched_around_and_repaired(folder: Path, tmp_path: Path, kind: str) -> None:
    model, into = small_model(), tmp_path / "index"
    build(folder, model, into)
    spoil, count = SPOILT[kind]
    spoil(into)
    index = open_index(into)
    (found,) = index.store.nearest(np.ones((1, 8), np.float32), 100, Filter())
    assert 9 - count <= len(found.ids) <= 9
    report = check_index(index, repair=True)
    assert (report.total, len(report.damaged)) == (9, count)
    assert check_index(index).damaged == ()
    assert update_index(index, model).encoded == count
    assert_sound(index, model)


@pytest.mark.parametrize("name", ["records.sqlite", "embeddings-0.f32", "index.json"])
def test_a_missing_or_broken_file_is_named(folder: Path, tmp_path: Path, name: str) -> None:
    into = tmp_path / "index"
    build(folder, small_model(), into)
    content = (into / name).read_bytes()
    (into / name).unlink()
    with pytest.raises(SayseeError, match=r"is missing|is no index"):
        open_index(into)
    if name != "embeddings-0.f32":
        (into / name).write_bytes(b"rubbish" + content[7 : len(content) // 2])
        with pytest.raises(SayseeError, match=r"is damaged|cannot be read"):
            open_index(into)


def test_another_format_is_refused(folder: Path, tmp_path: Path) -> None:
    into = tmp_path / "index"
    build(folder, small_model(), into)
    described = json.loads((into / "index.json").read_text())
    (into / "index.json").write_text(json.dumps({**described, "saysee_index": 7}))
    with pytest.raises(SayseeError, match="has index format 7; this saysee reads 2"):
        open_index(into)


def test_another_model_does_not_update(folder: Path, tmp_path: Path) -> None:
    index = indexed(folder, small_model(), tmp_path / "index")
    with pytest.raises(SayseeError, match=r"the index was built with .*, and runs/b has fingerprint"):
        update_index(index, small_model(1), "runs/b")


def test_an_index_that_shrank_much_leaves_what_is_gone_behind(folder: Path, tmp_path: Path) -> None:
    model, into = small_model(), tmp_path / "index"
    index, reader = indexed(folder, model, into), open_index(into)
    for path in sorted(folder.rglob("*.png"))[:5]:
        path.unlink()
    update_index(index, model)
    assert sorted(path.name for path in into.glob("*-*.*") if "sqlite" not in path.name) == [
        "embeddings-1.f32",
        "hidden-1.f16",
    ]
    assert (into / "embeddings-1.f32").stat().st_size == 4 * 8 * 4
    assert_sound(index, model)
    assert Counter(item.path for item in reader.store.items()) == Counter(list(by_path(index)))
    reader.store.refresh()
    assert_sound(reader, model)
