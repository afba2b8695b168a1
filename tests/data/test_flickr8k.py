from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from corpora import imprecise, recording, write_flickr8k
from saysee.data.flickr8k import prepare
from saysee.data.manifest import SPLITS, ManifestError, read_manifest, write_manifest
from saysee.data.validate import validate
from saysee.errors import AudioError, SayseeError
from saysee.features.audio import load_waveform

# ids in the published form; the fifth photograph is in no split, the sixth has no recordings, and the seventh is one
# that Flickr8k.token.txt has under a name of no file
IMAGES = ["1000268201_693b08cb0e", "1001773457_577c3a7d70", "1002674143_1b742ab4b8", "1003163366_44323f5815"]
IN_NO_SPLIT, SILENT, MISNAMED = "1007129816_e794419615", "1007320043_627395c3d8", "2258277193_586949ec62"
IMAGES_OF = {"train": [IMAGES[0], IMAGES[1], SILENT], "dev": [IMAGES[2]], "test": [IMAGES[3]]}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """The archives as they unpack: flickr_audio/, Flickr8k_text/ and Flicker8k_Dataset/."""
    audio, text, photographs = (tmp_path / name for name in ("flickr_audio", "Flickr8k_text", "Flicker8k_Dataset"))
    for folder in (audio / "wavs", text, photographs):
        folder.mkdir(parents=True)
    tokens, wav2capt, wav2spk = [], [], []
    for number, image in enumerate([*IMAGES, IN_NO_SPLIT, SILENT, MISNAMED]):
        jpg = f"{image}.jpg" + (".1" if image == MISNAMED else "")
        tokens += [f"{jpg}#{n}\tCaption {n} of {image} ." for n in range(5)]
        if image != MISNAMED:
            Image.new("RGB", (32, 24), (number * 30, 80, 80)).save(photographs / jpg)
        if image not in (SILENT, MISNAMED):
            wav2capt += [f"{image}_{n}.wav {jpg} #{n}" for n in range(5)]
            wav2spk += [f"{image}_{n}.wav {number + n}" for n in range(5)]
            for n in range(5):
                tone = 0.2 * np.sin(np.arange(4_000) * (0.05 + 0.01 * n + 0.001 * number))
                soundfile.write(audio / "wavs" / f"{image}_{n}.wav", tone, 16_000)
    for path, lines in [
        (text / "Flickr8k.token.txt", tokens),
        (audio / "wav2capt.txt", wav2capt),
        (audio / "wav2spk.txt", wav2spk),
        *((text / f"Flickr_8k.{split}Images.txt", [f"{i}.jpg" for i in images]) for split, images in IMAGES_OF.items()),
    ]:
        path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return tmp_path


def faults_of(folder: Path) -> list[str]:
    with pytest.raises(ManifestError) as raised:
        prepare(folder)
    assert all(fault.isprintable() for fault in raised.value.faults)
    return raised.value.faults


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), "utf-8")


def test_the_published_layout_becomes_a_sound_manifest(corpus: Path) -> None:
    prepared = prepare(corpus)
    manifest = prepared.manifest
    assert manifest.split_by == "image"
    assert {split: len(manifest.of(split)) for split in SPLITS} == {"train": 10, "dev": 5, "test": 5}
    caption = next(c for c in manifest.captions if c.id == f"{IMAGES[2]}_3")
    assert caption.audio == corpus / "flickr_audio" / "wavs" / f"{IMAGES[2]}_3.wav"
    assert caption.image == corpus / "Flicker8k_Dataset" / f"{IMAGES[2]}.jpg"
    assert (caption.image_id, caption.text) == (f"{IMAGES[2]}.jpg", f"Caption 3 of {IMAGES[2]} .")
    assert (caption.speaker, caption.language, caption.split) == ("5", "en", "dev")
    assert validate(manifest) == []
    write_manifest(corpus / "manifest.jsonl", manifest)
    assert read_manifest(corpus / "manifest.jsonl") == manifest


def test_what_is_left_out_is_counted(corpus: Path) -> None:
    (corpus / "flickr_audio" / "wavs" / "stray_0.wav").touch()
    assert prepare(corpus).notes == [
        "4 pictures, 20 recordings (train 10, dev 5, test 5), split by image",
        "left out: 1 images in no split",
        "left out: 1 images of the splits without a recording",
        "left out: 5 recordings of images in no split",
        "left out: 1 wav files that wav2capt.txt does not list",
    ]


@pytest.mark.parametrize("images", ["Flicker8k_Dataset", "Flickr8k_Dataset", "images", "Images"])
def test_a_flat_folder_and_each_spelling_of_the_images(corpus: Path, images: str) -> None:
    expected = [(c.id, c.image_id, c.split) for c in prepare(corpus).manifest.captions]
    (corpus / "Flicker8k_Dataset").rename(corpus / images)
    for path in [*(corpus / "flickr_audio").iterdir(), *(corpus / "Flickr8k_text").iterdir()]:
        path.rename(corpus / path.name)
    assert [(c.id, c.image_id, c.split) for c in prepare(corpus).manifest.captions] == expected


def test_an_archive_unpacked_into_a_folder_of_its_own_name(corpus: Path) -> None:
    (corpus / "Flicker8k_Dataset").rename(corpus / "x")
    (corpus / "Flickr8k_Dataset").mkdir()
    (corpus / "x").rename(corpus / "Flickr8k_Dataset" / "Flicker8k_Dataset")
    assert prepare(corpus).manifest.captions[0].image.parent == corpus / "Flickr8k_Dataset" / "Flicker8k_Dataset"


def test_windows_line_ends_are_read(corpus: Path) -> None:
    expected = prepare(corpus)
    for path in corpus.glob("*/*.txt"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert prepare(corpus) == expected


def test_all_missing_parts_are_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "wavs").mkdir()  # there, but empty
    faults = faults_of(tmp_path)
    parts = [
        "wav2capt.txt",
        "wav2spk.txt",
        "Flickr8k.token.txt",
        "Flickr_8k.trainImages.txt",
        "Flickr_8k.devImages.txt",
    ]
    parts += ["Flickr_8k.testImages.txt", "a folder wavs with *.wav", "a folder with *.jpg"]
    assert len(faults) == len(parts)
    for part, fault in zip(parts, faults, strict=True):
        assert fault.startswith(part)
        assert "in the folder itself and one level below" in fault
    assert "Flicker8k_Dataset or Flickr8k_Dataset or images" in faults[-1]
    with pytest.raises(SayseeError, match="is not a folder"):
        prepare(tmp_path / "none")


def test_all_faults_are_listed_at_once(corpus: Path) -> None:
    audio, text = corpus / "flickr_audio", corpus / "Flickr8k_text"
    first, second, third, fourth = IMAGES
    (audio / "wavs" / f"{first}_0.wav").unlink()
    edit(audio / "wav2spk.txt", f"{first}_1.wav 1\n", "")
    edit(audio / "wav2spk.txt", f"{first}_2.wav 2\n", f"{first}_2.wav\n")
    edit(text / "Flickr8k.token.txt", f"{second}.jpg#4\t", f"{second}.jpg#4 ")
    edit(audio / "wav2capt.txt", f"{second}_1.wav {second}.jpg #1\n", f"{second}_0.wav {second}.jpg #0\n")
    (corpus / "Flicker8k_Dataset" / f"{third}.jpg").unlink()
    edit(text / "Flickr_8k.testImages.txt", f"{fourth}.jpg\n", f"{fourth}.jpg\n{first}.jpg\ntwo words.jpg\n")
    assert sorted(faults_of(corpus)) == sorted(
        [
            f"'{first}_0.wav' is not in wavs; put it there or remove its line from wav2capt.txt",
            f"'{first}_1.wav' has no speaker in wav2spk.txt; add a line for it",
            f"wav2spk.txt line 2: '{first}_2.wav' is not of the form <wav> <speaker>",
            f"'{first}_2.wav' has no speaker in wav2spk.txt; add a line for it",
            f"Flickr8k.token.txt line 10: '{second}.jpg#4 Caption 4 of {second} .' is not of the form "
            "<image.jpg>#<n>, a tab, <caption>",
            f"'{second}_4.wav' has no written caption {second}.jpg#4 in Flickr8k.token.txt",
            f"'{second}_0.wav' is listed twice in wav2capt.txt; remove one line",
            f"'{third}.jpg' is not in Flicker8k_Dataset; put it there or remove it from its split",
            f"Flickr_8k.testImages.txt: '{first}.jpg' is in train as well; keep it in one list",
            "Flickr_8k.testImages.txt line 3: 'two words.jpg' is not of the form <image.jpg>",
        ]
    )


def test_counts_that_differ_from_the_published_are_a_warning_with_both(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prepare(corpus).warnings == [
        "Flickr8k Audio has 40,000 recordings of 8,000 images (train 30,000, dev 5,000, test 5,000); here are 20 of 4 "
        "(train 10, dev 5, test 5)"
    ]
    monkeypatch.setattr("saysee.data.flickr8k.PUBLISHED", {"train": 10, "dev": 5, "test": 5})
    assert len(prepare(corpus).warnings) == 1
    monkeypatch.setattr("saysee.data.flickr8k.PUBLISHED_IMAGES", 4)
    assert prepare(corpus).warnings == []


def test_every_irregularity_of_the_published_corpus_at_once(tmp_path: Path) -> None:
    write_flickr8k(
        tmp_path,
        images=8,
        captions=3,
        image_folder="Flickr8k_Dataset/Flicker8k_Dataset",
        imprecise_headers=True,
        long_clip=True,
        without_audio=2,
        in_no_split=1,
    )
    prepared = prepare(tmp_path)
    assert prepared.notes == [
        "8 pictures, 24 recordings (train 18, dev 3, test 3), split by image",
        "left out: 1 images in no split",
        "left out: 2 images of the splits without a recording",
        "left out: 3 recordings of images in no split",
    ]
    assert len(load_waveform(prepared.manifest.captions[0].audio)) == 323 * 16_000
    assert validate(prepared.manifest) == []


def test_an_imprecise_header_loses_no_sample_and_adds_none(tmp_path: Path) -> None:
    for number in range(3):
        exact = recording(number)
        np.testing.assert_array_equal(load_waveform(imprecise(exact)), load_waveform(exact))


@pytest.mark.parametrize("samples", [-200, -1, 0, 1, 200])
def test_a_data_chunk_that_states_some_samples_too_few_or_too_many(samples: int) -> None:
    """libsndfile plays what the header states and is there: with too few the rest is not sound, with too many none."""
    exact = recording(0)
    held = (len(exact) - 44) // 2
    wav = exact[:40] + (2 * (held + samples)).to_bytes(4, "little") + exact[44:]
    assert len(load_waveform(wav)) == held + min(samples, 0)


def test_a_recording_of_which_more_than_a_tenth_is_missing_is_a_fault_that_names_it(tmp_path: Path) -> None:
    write_flickr8k(tmp_path, images=8, captions=1)
    manifest = prepare(tmp_path).manifest
    caption = manifest.captions[2]
    content = caption.audio.read_bytes()
    caption.audio.write_bytes(imprecise(content)[: len(content) * 8 // 10])  # behind an odd chunk too
    [fault] = validate(manifest)
    assert fault.record == caption.id
    assert "bytes of samples" in fault.message
    with pytest.raises(AudioError, match="is truncated"):
        load_waveform(caption.audio)
