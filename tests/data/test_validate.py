import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from saysee.data.manifest import SPLIT_BY, SPLITS, Manifest, Split, SplitBy, SpokenCaption
from saysee.data.validate import Fault, _suspects, file_faults, structural_faults, validate
from saysee.features.audio import load_waveform
from saysee.features.image import load_image


@pytest.fixture
def captions(tmp_path: Path) -> list[SpokenCaption]:
    """Six sound captions: two of each split, each with a picture and a speaker of its own."""
    made = []
    splits: list[Any] = ["train", "train", "dev", "dev", "test", "test"]
    for number, split in enumerate(splits):
        audio, image = tmp_path / f"{number}.wav", tmp_path / f"{number}.png"
        tone = 0.3 * np.sin(np.arange(8_000) * (0.1 + 0.01 * number))
        soundfile.write(audio, tone, 16_000)
        Image.new("RGB", (40, 40), (10 * number, 90, 200)).save(image)
        made.append(SpokenCaption(f"c{number}", audio, f"i{number}", image, None, f"s{number}", "en", split))
    return made


def found(captions: list[SpokenCaption], split_by: SplitBy = "image") -> list[str]:
    faults = structural_faults(Manifest(split_by, tuple(captions)))
    assert all(str(fault).isprintable() for fault in faults)
    return [str(fault) for fault in faults]


@pytest.mark.parametrize("split_by", ["image", "speaker", "recording"])
def test_a_sound_manifest_has_no_faults(captions: list[SpokenCaption], split_by: SplitBy) -> None:
    assert validate(Manifest(split_by, tuple(captions))) == []


def test_an_id_that_stands_three_times_is_one_fault(captions: list[SpokenCaption]) -> None:
    captions[1] = replace(captions[1], id="c0")
    captions[5] = replace(captions[5], id="c0")
    assert found(captions) == ["'c0': this id stands 3 times; every record needs an id of its own"]


def test_an_image_id_with_two_files(captions: list[SpokenCaption]) -> None:
    captions[1] = replace(captions[1], image_id="i0")
    (fault,) = found(captions)
    assert fault.startswith("'c0': image_id 'i0' has two files")
    assert f"{str(captions[1].image)!r}" in fault
    assert "'c1'" in fault


def test_a_picture_of_two_concepts(captions: list[SpokenCaption]) -> None:
    captions[0] = replace(captions[0], concept="dog")
    captions[1] = replace(captions[1], image_id="i0", image=captions[0].image)
    (fault,) = found(captions)
    assert fault == "'c0': image_id 'i0' has the concepts 'dog' and, in 'c1', None; give one"


def test_a_concept_may_have_pictures_in_all_splits(captions: list[SpokenCaption]) -> None:
    assert found([replace(caption, concept="dog") for caption in captions]) == []


@pytest.mark.parametrize("empty", ["train", "dev", "test"])
def test_a_split_without_captions(captions: list[SpokenCaption], empty: str) -> None:
    (fault,) = structural_faults(Manifest("image", tuple(c for c in captions if c.split != empty)))
    assert fault.record is None
    assert fault.message.startswith(f"no caption is in {empty};")


@pytest.mark.parametrize("split_by", ["image", "speaker", "recording"])
def test_a_recording_in_two_splits_is_a_fault_however_they_were_made(
    captions: list[SpokenCaption], split_by: SplitBy
) -> None:
    captions[4] = replace(captions[4], audio=captions[0].audio)
    (fault,) = found(captions, split_by)
    assert fault.startswith(f"'c0': the recording {str(captions[0].audio)!r} is in train and in test ('c4')")


def test_an_image_in_all_splits_is_one_fault_that_names_each(captions: list[SpokenCaption]) -> None:
    for number in (2, 4):
        captions[number] = replace(captions[number], image_id="i0", image=captions[0].image)
    assert found(captions) == [
        "'c0': image_id 'i0' is in train and in dev ('c2') and test ('c4'); split_by image puts an image in one split"
    ]
    assert found(captions, "recording") == found(captions, "speaker") == []


def test_the_same_picture_under_two_ids_does_not_hide(captions: list[SpokenCaption]) -> None:
    captions[2] = replace(captions[2], image=captions[5].image)
    (fault,) = found(captions)
    assert fault.startswith(f"'c2': the picture {str(captions[5].image)!r} is in dev and in test ('c5')")
    assert found(captions, "recording") == []


def test_a_speaker_in_two_splits_or_missing(captions: list[SpokenCaption]) -> None:
    captions[3] = replace(captions[3], speaker="s1")
    captions[4] = replace(captions[4], speaker=None)
    captions[2] = replace(captions[2], speaker=None)
    captions[5] = replace(captions[5], speaker="")
    *missing, empty, both = found(captions, "speaker")  # and nobody is not a speaker in two splits
    assert [fault[:26] for fault in missing] == ["'c2': no speaker is given,", "'c4': no speaker is given,"]
    assert empty.startswith("'c5': no speaker is given")
    assert both.startswith("'c1': speaker 's1' is in train and in dev ('c3')")
    assert found(captions, "image") == []


def test_all_structural_faults_are_listed_at_once(captions: list[SpokenCaption]) -> None:
    captions[1] = replace(captions[1], id="c0", image_id="i0")
    captions[2] = replace(captions[2], image_id="i0", audio=captions[0].audio)
    captions[3] = replace(captions[3], image=captions[0].image)
    faults = found([c for c in captions if c.split != "test"])
    kinds = ["stands 2 times", "has two files", "no caption is in test", "the recording", "image_id 'i0' is in train"]
    assert [sum(kind in fault for fault in faults) for kind in kinds] == [1] * len(kinds)
    # i0 in train and the same file as i3 in dev
    assert sum("the picture" in fault for fault in faults) == 1
    assert len(faults) == len(kinds) + 1


@pytest.mark.parametrize("needed", [("test",), ("dev", "test"), ()])
def test_a_corpus_that_is_only_tested_on_needs_no_other_split(
    captions: list[SpokenCaption], needed: tuple[Split, ...]
) -> None:
    tested = Manifest("image", tuple(c for c in captions if c.split == "test"))
    faults = structural_faults(tested, needed)
    assert [fault.message for fault in faults] == [
        f"no caption is in {split}; give the manifest all of {', '.join(needed)}" for split in needed if split != "test"
    ]


# few values, so that they clash; None and "" are both no speaker
clashing = st.builds(
    SpokenCaption,
    id=st.sampled_from("abcdefgh"),
    audio=st.sampled_from([Path(f"/{n}.wav") for n in range(5)]),
    image_id=st.sampled_from("ijkl"),
    image=st.sampled_from([Path(f"/{n}.png") for n in range(5)]),
    text=st.none(),
    speaker=st.sampled_from([None, "", "x", "y", "z"]),
    language=st.none(),
    split=st.sampled_from(SPLITS),
)


@settings(max_examples=300)
@given(st.sampled_from(SPLIT_BY), st.lists(clashing, max_size=12), st.integers(0, 12))
def test_the_records_that_are_looked_at_have_all_the_faults(
    split_by: SplitBy, captions: list[SpokenCaption], distinct: int
) -> None:
    """The faults are those of the same checks over all records; and of sound ones none is looked at."""
    captions = [
        replace(c, id=f"c{n}", audio=Path(f"/c{n}.wav"), image_id=f"i{n}", image=Path(f"/i{n}.png"), speaker=f"s{n}")
        if n < distinct
        else c
        for n, c in enumerate(captions)
    ]
    manifest = Manifest(split_by, tuple(captions))
    suspects = _suspects(manifest)
    assert not {f"c{n}" for n in range(distinct)} & {c.id for c in suspects}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("saysee.data.validate._suspects", lambda manifest: manifest.captions)
        expected = structural_faults(manifest)
    assert structural_faults(manifest) == expected


@pytest.mark.parametrize("split_by", SPLIT_BY)
def test_captions_that_share_an_image_as_they_may_are_not_looked_at(
    captions: list[SpokenCaption], split_by: SplitBy
) -> None:
    """Else the half million records of a sound corpus, five to an image, would all be held."""
    second = [replace(c, id=f"{c.id} again", audio=c.audio.with_suffix(".flac")) for c in captions]
    assert _suspects(Manifest(split_by, (*captions, *second))) == []


def test_hashes_that_agree_by_chance_make_no_fault(
    captions: list[SpokenCaption], monkeypatch: pytest.MonkeyPatch
) -> None:
    for split_by in SPLIT_BY:
        monkeypatch.setattr("saysee.data.validate.hash64", lambda text: len(text) % 2)
        assert len(_suspects(Manifest(split_by, tuple(captions)))) == len(captions)
        assert found(captions, split_by) == []


def test_every_kind_of_bad_file_is_listed_with_its_record(captions: list[SpokenCaption]) -> None:
    captions[0].audio.unlink()
    captions[1].audio.write_text("not a recording")
    soundfile.write(captions[2].audio, np.full(800, 0.3), 16_000)  # 0.05 s
    captions[3].image.write_bytes(captions[3].image.read_bytes()[:60])
    captions[4].image.unlink()
    faults = file_faults(Manifest("image", tuple(captions)))
    assert [fault.record for fault in faults] == ["c0", "c1", "c2", "c3", "c4"]
    expected = ["0.wav", "1.wav", "2.wav: lasts 0.050 s; at least 0.1 s", "3.png", "4.png"]
    for fault, text in zip(faults, expected, strict=True):
        assert text in fault.message
        assert "\n" not in str(fault)
    assert structural_faults(Manifest("image", tuple(captions))) == []
    assert validate(Manifest("image", tuple(captions))) == faults


def test_copies_in_two_splits_are_found_by_what_they_decode_to(captions: list[SpokenCaption], tmp_path: Path) -> None:
    """The files differ (FLAC and WAV, PNG and TIFF), what is heard and seen does not."""
    first, *_ = captions
    other = next(c for c in captions if c.split != first.split)
    samples, rate = soundfile.read(first.audio, dtype="int16")
    soundfile.write(tmp_path / "copy.flac", samples, rate)
    with Image.open(first.image) as image:
        image.convert("RGB").save(tmp_path / "copy.tiff")
    place = captions.index(other)
    captions[place] = replace(other, audio=tmp_path / "copy.flac", image=tmp_path / "copy.tiff")
    faults = file_faults(Manifest("image", tuple(captions)))
    assert [fault.record for fault in faults] == [other.id, other.id]
    assert f"its recording is a copy of that of {first.id!r}" in str(faults[0])
    assert f"its picture is a copy of that of {first.id!r}" in str(faults[1])
    (only,) = file_faults(Manifest("recording", tuple(captions)))
    assert "recording" in str(only)


def test_ten_minutes_are_allowed_and_a_second_more_is_not(captions: list[SpokenCaption]) -> None:
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, 601 * 4_000)
    for number, seconds in ((0, 600), (1, 601)):
        soundfile.write(captions[number].audio, noise[: seconds * 4_000], 4_000)
    (fault,) = file_faults(Manifest("image", tuple(captions)))
    assert fault.record == "c1"
    assert "601" in fault.message


def test_each_file_is_opened_once_and_the_order_is_that_of_the_manifest(
    captions: list[SpokenCaption], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []

    def counted(load):  # type: ignore[no-untyped-def]
        def wrapper(path: Path, *limits: object) -> object:
            opened.append(path)
            return load(path, *limits)

        return wrapper

    monkeypatch.setattr("saysee.data.validate.load_waveform", counted(load_waveform))  # type: ignore[no-untyped-call]
    monkeypatch.setattr("saysee.data.validate.load_image", counted(load_image))  # type: ignore[no-untyped-call]
    again = [replace(caption, id=f"{caption.id} again") for caption in captions]
    assert file_faults(Manifest("image", (*captions, *again)), workers=3) == []
    assert sorted(opened) == sorted(path for caption in captions for path in (caption.audio, caption.image))


def test_ctrl_c_does_not_wait_for_the_files_that_are_queued(
    captions: list[SpokenCaption], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []

    def load(path: Path, _: object) -> np.ndarray:
        time.sleep(0.001)
        opened.append(path)
        return np.zeros(1)

    def interrupted_bar(messages: Iterator[None], *_: object, **__: object) -> Iterator[None]:
        yield next(messages)
        raise KeyboardInterrupt

    monkeypatch.setattr("saysee.data.validate.load_waveform", load)
    monkeypatch.setattr("tqdm.tqdm", interrupted_bar)
    many = [replace(caption, audio=Path(f"/{n}.wav")) for n, caption in enumerate(captions * 200)]
    with pytest.raises(KeyboardInterrupt):
        file_faults(Manifest("image", tuple(many)), workers=1)
    assert len(opened) < 600  # of 1,200


def test_progress_is_shown_only_when_asked_for(
    captions: list[SpokenCaption], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = Manifest("image", tuple(captions))
    file_faults(manifest, progress=True)
    assert capsys.readouterr().err == "", "standard error is no terminal here"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    file_faults(manifest)
    assert capsys.readouterr().err == ""
    file_faults(manifest, progress=True)
    assert "12/12" in capsys.readouterr().err


def test_a_fault_reads_as_one_line() -> None:
    assert str(Fault("a\nb", "is wrong")) == "'a\\nb': is wrong"
    assert str(Fault(None, "is wrong")) == "is wrong"
