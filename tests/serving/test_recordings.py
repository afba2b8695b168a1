"""What is kept of recorded captions: sound files and a manifest that can be trained on, whatever happens on the way."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from command_line import RECIPE, contents, litter, saysee, stub_encoders
from media import BAD_PICTURES
from saysee.data.manifest import SPLITS, Manifest, SpokenCaption, read_manifest, write_manifest
from saysee.data.validate import validate
from saysee.errors import AudioError, ImageError, SayseeError
from saysee.features.audio import load_waveform
from saysee.search.stores.base import path_id
from saysee.serving import recordings as module
from saysee.serving.recordings import Recordings, caption_id, checked_name, opened
from serving.gallery import recordings as spoken

SPOKEN = [load_waveform(recording) for recording in spoken(12)]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twelve pictures, a copy of one of them, one that is broken, and what is no picture."""
    folder = tmp_path / "pictures"
    (folder / "nested").mkdir(parents=True)
    for number in range(12):
        name = f"nested/{number:02}.png" if number % 4 == 3 else f"{number:02} o'clock.png"
        write_picture(folder / name, number)
    (folder / "copy.png").write_bytes((folder / "00 o'clock.png").read_bytes())
    (folder / "broken.jpg").write_bytes(BAD_PICTURES["half a JPEG"]())
    (folder / "notes.txt").write_text("no picture")
    return folder


def write_picture(path: Path, seed: int) -> None:
    noise = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((40, 30)).save(path)


def record_all(recordings: Recordings, speaker: str = "anna", count: int = 100) -> list[str]:
    """Speak of one picture after the other, as the page does."""
    done: list[str] = []
    while len(done) < count and (picture := recordings.next(done[-1] if done else "", speaker, "en")) is not None:
        recordings.add(picture, speaker, "en", SPOKEN[len(done) % len(SPOKEN)])
        done.append(picture)
    return done


def test_pictures_come_in_the_order_of_their_names(pictures: Path, tmp_path: Path) -> None:
    recordings = Recordings(pictures, tmp_path / "captions.jsonl")
    assert recordings.copies == 1
    assert len(recordings.pictures) == 13  # with the broken one, which nobody is shown
    shown = [recordings.pictures[recordings.position(picture) - 1] for picture in record_all(recordings)]
    assert shown == sorted(shown, key=lambda path: (path.count("/"), path))
    assert len(shown) == 12
    assert "broken.jpg" not in shown
    assert recordings.next("", "anna", "en") is None
    # another voice and another language have all of them before them
    assert recordings.next("", "omar", "en") == recordings.next("", "anna", "fr") == path_id(shown[0])
    assert recordings.next(path_id(shown[-1]), "omar", "en") is None
    assert recordings.next("no id", None, None) == path_id(shown[0])


def test_what_was_skipped_comes_again_from_the_beginning(pictures: Path, tmp_path: Path) -> None:
    recordings = Recordings(pictures, tmp_path / "captions.jsonl")
    first = recordings.next("", "anna", "en")
    assert first is not None
    second = recordings.next(first, "anna", "en")
    assert second is not None
    recordings.add(second, "anna", "en", SPOKEN[0])
    assert recordings.next("", "anna", "en") == first
    assert recordings.next(first, "anna", "en") not in (first, second)


def test_a_recording_is_kept_as_it_was_said(pictures: Path, tmp_path: Path) -> None:
    """Silence at the ends included; 16 kHz, one channel, 16 bits."""
    recordings = Recordings(pictures, tmp_path / "captions.jsonl")
    silence = np.zeros(16_000, np.float32)
    said = np.concatenate([silence, SPOKEN[0] * 1.5 / np.abs(SPOKEN[0]).max(), silence])
    kept = recordings.add(path_id("00 o'clock.png"), "anna", "en", said)
    (caption,) = read_manifest(tmp_path / "captions.jsonl").captions
    info = soundfile.info(caption.audio)
    assert (info.format, info.subtype, info.samplerate, info.channels) == ("FLAC", "PCM_16", 16_000, 1)
    np.testing.assert_allclose(load_waveform(caption.audio), said.clip(-1, 1), atol=1e-4)
    assert kept.seconds == len(said) / 16_000
    assert (caption.speaker, caption.language, caption.text) == ("anna", "en", None)
    assert (caption.image_id, caption.image) == ("00 o'clock.png", pictures / "00 o'clock.png")
    assert caption.audio.parent == tmp_path / "captions-recordings"
    assert litter(tmp_path) == []


def test_the_manifest_can_be_trained_on_as_soon_as_it_is_said_to_be(pictures: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "captions.jsonl"
    recordings = Recordings(pictures, manifest)
    done = ""
    for said in range(12):
        needed = recordings.needed()
        picture = recordings.next(done, "anna", "en")
        assert picture is not None
        recordings.add(picture, "anna", "en", SPOKEN[said])
        done = picture
        faults = [str(fault) for fault in validate(read_manifest(manifest))]
        captions = read_manifest(manifest).captions
        if recordings.needed() is None:
            assert faults == []
            assert {caption.split for caption in captions} == set(SPLITS)
        else:
            assert faults
            assert all(fault.startswith("no caption is in") for fault in faults)
            assert {caption.split for caption in captions} == {"train"}
    assert recordings.needed() is None
    assert needed is None or "record more pictures" in needed
    assert "12 pictures, 12 recordings" in recordings.summary()


def test_what_is_needed_names_the_pictures_that_would_do(pictures: Path, tmp_path: Path) -> None:
    recordings = Recordings(pictures, tmp_path / "captions.jsonl")
    steps = 0
    while (needed := recordings.needed()) is not None:
        assert "not divided yet" in recordings.summary()
        number = int(needed.split("(picture ")[1].split(" ")[0])
        recordings.add(path_id(recordings.pictures[number - 1]), None, None, SPOKEN[steps])
        steps += 1
    assert steps == 3
    assert validate(read_manifest(tmp_path / "captions.jsonl")) == []
    assert "not divided" not in recordings.summary()


def test_two_pictures_are_too_few(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for number in range(2):
        write_picture(tmp_path / "pictures" / f"{number}.png", number)
    recordings = Recordings(tmp_path / "pictures", tmp_path / "captions.jsonl")
    record_all(recordings)
    assert recordings.needed() == "there are 2 pictures; train, dev and test need at least one each"
    assert len(read_manifest(tmp_path / "captions.jsonl").captions) == 2


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(count=st.integers(3, 40))
def test_any_folder_of_three_pictures_or_more_can_be_divided(
    tmp_path_factory: pytest.TempPathFactory, count: int
) -> None:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(count):
        (folder / f"{count} {number}.png").write_bytes(bytes(number))  # looked at when it is shown, not before
    recordings = Recordings(folder, folder / "captions.jsonl")
    needed = recordings.needed()
    assert needed is not None
    assert needed.count("would be the first") == 3


def test_it_goes_on_where_it_stopped(pictures: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "captions.jsonl"
    first = Recordings(pictures, manifest)
    record_all(first, count=8)
    again = Recordings(pictures, manifest)
    assert len(again) == 8
    assert again.next("", "anna", "en") == first.next("", "anna", "en")
    assert (again.speakers(), again.languages()) == (["anna"], ["en"])
    record_all(again)
    straight = Recordings(pictures, tmp_path / "straight.jsonl")
    record_all(straight)
    for one, other in zip(
        read_manifest(manifest).captions, read_manifest(tmp_path / "straight.jsonl").captions, strict=True
    ):
        assert (one.id, one.image_id, one.split) == (other.id, other.image_id, other.split)


def test_pictures_that_are_added_or_removed_move_no_other_to_another_split(pictures: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "captions.jsonl"
    record_all(Recordings(pictures, manifest))
    before = {caption.image_id: caption.split for caption in read_manifest(manifest).captions}
    assert set(before.values()) == set(SPLITS)
    for number in range(100, 130):
        write_picture(pictures / f"{number}.png", number)
    (pictures / "01 o'clock.png").unlink()
    record_all(Recordings(pictures, manifest))
    after = {caption.image_id: caption.split for caption in read_manifest(manifest).captions}
    assert len(after) == 42
    assert {image: after[image] for image in before} == before


def test_what_the_manifest_says_of_a_picture_is_said_of_its_next_recording(pictures: Path, tmp_path: Path) -> None:
    """Somebody wrote a concept into it; without one the next recording would make the manifest a faulty one."""
    manifest = tmp_path / "captions.jsonl"
    with opened(pictures, manifest) as recordings:
        record_all(recordings)
    named = tuple(replace(caption, concept=caption.image_id) for caption in read_manifest(manifest).captions)
    write_manifest(manifest, Manifest("image", named))
    with opened(pictures, manifest) as recordings:
        record_all(recordings, speaker="bo", count=3)
    captions = read_manifest(manifest).captions
    assert len(captions) == len(named) + 3
    assert all(caption.concept == caption.image_id for caption in captions)


def test_a_second_recording_replaces_the_first_of_that_voice_alone(pictures: Path, tmp_path: Path) -> None:
    recordings = Recordings(pictures, tmp_path / "captions.jsonl")
    picture = path_id("nested/03.png")
    first = recordings.add(picture, "anna", "en", SPOKEN[0])
    other = recordings.add(picture, "omar", "en", SPOKEN[1])
    again = recordings.add(picture, "anna", "en", SPOKEN[2])
    assert first.id == again.id != other.id
    captions = read_manifest(tmp_path / "captions.jsonl").captions
    assert [caption.speaker for caption in captions] == ["anna", "omar"]
    np.testing.assert_allclose(load_waveform(captions[0].audio), SPOKEN[2], atol=1e-4)
    assert load_waveform(captions[1].audio).shape == SPOKEN[1].shape
    assert len(list((tmp_path / "captions-recordings").iterdir())) == 2


def test_a_recording_can_be_removed(pictures: Path, tmp_path: Path) -> None:
    recordings = Recordings(pictures, tmp_path / "captions.jsonl")
    picture = path_id("nested/03.png")
    kept = recordings.add(picture, "anna", "en", SPOKEN[0])
    assert recordings.read(kept.id)[:4] == b"fLaC"
    recordings.remove(kept.id)
    assert len(recordings) == len(read_manifest(tmp_path / "captions.jsonl").captions) == 0
    assert list((tmp_path / "captions-recordings").iterdir()) == []
    for missing in (recordings.read, recordings.remove):
        with pytest.raises(KeyError):
            missing(kept.id)
    assert len(Recordings(pictures, tmp_path / "captions.jsonl")) == 0


@pytest.mark.parametrize(
    ("waveform", "reason"),
    [
        (np.zeros(16_000, np.float32), "is silent throughout"),
        (np.full(16_000, 1.2e-5, np.float32), "is silent throughout"),  # 16 bits make zeros of it
        (np.random.default_rng(0).normal(0, 0.01, 32_000).astype(np.float32), "no speech was heard"),
        (SPOKEN[0][:800], "lasts 0.050 s"),
    ],
)
def test_what_nobody_said_is_not_kept(pictures: Path, tmp_path: Path, waveform: np.ndarray, reason: str) -> None:
    recordings = Recordings(pictures, tmp_path / "captions.jsonl")
    before = contents(tmp_path)
    with pytest.raises(AudioError, match=reason):
        recordings.add(path_id("nested/03.png"), "anna", "en", waveform)
    assert contents(tmp_path) == before
    assert len(recordings) == 0


def test_a_picture_that_cannot_be_read_gets_no_recording(pictures: Path, tmp_path: Path) -> None:
    recordings = Recordings(pictures, tmp_path / "captions.jsonl")
    with pytest.raises(ImageError, match=r"broken.jpg cannot be read"):
        recordings.add(path_id("broken.jpg"), "anna", "en", SPOKEN[0])
    with pytest.raises(KeyError):
        recordings.add(path_id("copy.png"), "anna", "en", SPOKEN[0])


def test_names_play_no_part_in_paths(pictures: Path, tmp_path: Path) -> None:
    odd = os.fsdecode(b"../caf\xe9\n'.png")
    write_picture(pictures / odd[3:], 99)
    recordings = Recordings(pictures, tmp_path / "captions.jsonl")
    speakers = ["../../etc/passwd", "अनिता", "a" * 64, "Ñandú", "ñandú", None]
    for number, speaker in enumerate(speakers):
        recordings.add(path_id(odd[3:]), speaker, "ಕನ್ನಡ", SPOKEN[number])
    captions = read_manifest(tmp_path / "captions.jsonl").captions
    assert [caption.speaker for caption in captions] == speakers
    assert {caption.image_id for caption in captions} == {odd[3:]}
    assert {caption.language for caption in captions} == {"ಕನ್ನಡ"}
    files = [caption.audio for caption in captions]
    assert len(set(files)) == len({caption.id for caption in captions}) == 6
    assert all(file.parent == tmp_path / "captions-recordings" and file.is_file() for file in files)
    assert all(file.name.isascii() and file.name.isprintable() for file in files)
    assert len(Recordings(pictures, tmp_path / "captions.jsonl")) == 6


@given(st.lists(st.tuples(st.text(), st.text(max_size=5), st.text(max_size=5)), unique=True, max_size=20))
def test_ids_of_captions_differ(keys: list[tuple[str, str, str]]) -> None:
    keys = [key for key in keys if all(part.isascii() for part in key)]
    ids = {caption_id(path, speaker or None, language or None) for path, speaker, language in keys}
    assert len(ids) == len(set(keys))


def test_names_are_checked() -> None:
    assert checked_name("  Ana\u0303 ", "speaker") == "An\u00e3"
    assert checked_name("   ", "speaker") is None
    for bad in ("x" * 65, "two\nlines", "a\x00", "\u202eright to left"):
        with pytest.raises(SayseeError, match="the language is"):
            checked_name(bad, "language")


def test_a_manifest_of_somebody_elses_is_left_alone(pictures: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "captions.jsonl"
    image = pictures / "00 o'clock.png"
    caption = SpokenCaption("c", tmp_path / "other.wav", "i", image, None, None, None, "train")
    write_manifest(manifest, Manifest("image", (caption,)))
    before = contents(tmp_path)
    with pytest.raises(SayseeError, match="were not made here"):
        Recordings(pictures, manifest)
    manifest.write_text("years of work")
    with pytest.raises(SayseeError, match="it is no header"):
        Recordings(pictures, manifest)
    manifest.unlink()
    for folder, reason in ((tmp_path / "nowhere", "is no folder"), (pictures / "nested" / "03.png", "is no folder")):
        with pytest.raises(SayseeError, match=reason):
            Recordings(folder, manifest)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SayseeError, match="holds no pictures"):
        Recordings(tmp_path / "empty", manifest)
    assert contents(tmp_path).keys() == before.keys() - {"captions.jsonl"}


def test_splits_that_were_made_by_hand_are_not_made_anew(pictures: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "captions.jsonl"
    for number in range(100, 140):
        write_picture(pictures / f"{number}.png", number)
    record_all(Recordings(pictures, manifest))
    text = manifest.read_text()
    manifest.write_text(text.replace('"train"}', '"?"}').replace('"dev"}', '"train"}').replace('"?"}', '"dev"}'))
    with pytest.raises(SayseeError, match="is not divided as this command divides"):
        Recordings(pictures, manifest)


def test_one_process_records_at_a_time(pictures: Path, tmp_path: Path) -> None:
    with opened(pictures, tmp_path / "captions.jsonl"):
        with (
            pytest.raises(SayseeError, match="another process is recording into"),
            opened(pictures, tmp_path / "captions.jsonl"),
        ):
            pass
        with opened(pictures, tmp_path / "others.jsonl"):
            pass
    with opened(pictures, tmp_path / "captions.jsonl"):
        pass


def test_a_manifest_that_cannot_be_written_changes_nothing(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = tmp_path / "captions.jsonl"
    recordings = Recordings(pictures, manifest)
    first = recordings.add(path_id("nested/03.png"), "anna", "en", SPOKEN[0])
    written = manifest.read_bytes()
    with monkeypatch.context() as patch:

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(module, "write_manifest", full)
        for attempt in (
            lambda: recordings.add(path_id("nested/07.png"), "anna", "en", SPOKEN[1]),
            lambda: recordings.remove(first.id),
        ):
            with pytest.raises(OSError, match="No space"):
                attempt()
    assert manifest.read_bytes() == written
    assert len(recordings) == len(Recordings(pictures, manifest)) == 1
    recordings.add(path_id("nested/07.png"), "anna", "en", SPOKEN[1])
    assert len(Recordings(pictures, manifest)) == 2


def test_what_was_recorded_trains(pictures: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "captions.jsonl"
    recordings = Recordings(pictures, manifest)
    for speaker in ("anna", "omar"):
        record_all(recordings, speaker)
    assert saysee("validate", manifest).status == 0
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    with stub_encoders():
        outcome = saysee(
            "train",
            tmp_path / "recipe.yaml",
            "--data",
            manifest,
            "--out",
            tmp_path / "model",
            "--cache",
            tmp_path / "c",
        )
    assert (outcome.status, outcome.err) == (0, "")
    assert "trained 12 steps" in outcome.out
