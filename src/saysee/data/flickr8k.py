"""Flickr8k Audio Captions, as published: 40,000 recordings [1] of the written captions of 8,000 photographs [2].

[1] Harwath and Glass, Deep Multimodal Semantic Embeddings for Speech and Images, ASRU 2015:
    `wavs/<image>_<0-4>.wav`, `wav2capt.txt` (`<wav> <image.jpg> #<n>`), `wav2spk.txt` (`<wav> <speaker>`).
[2] Hodosh, Young and Hockenmaier, Framing Image Description as a Ranking Task, JAIR 2013: `Flickr8k.token.txt`
    (`<image.jpg>#<n>`, a tab, the caption), `Flickr_8k.{train,dev,test}Images.txt`, and the folder of photographs.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from saysee.data.manifest import SPLITS, Manifest, ManifestError, Prepared, Split, SpokenCaption, read_utf8
from saysee.errors import SayseeError

# the first is the published spelling, the last two are those of copies
IMAGE_FOLDERS = ("Flicker8k_Dataset", "Flickr8k_Dataset", "images", "Images")

PUBLISHED: dict[Split, int] = {"train": 30_000, "dev": 5_000, "test": 5_000}
"""Recordings in each split, as published."""
PUBLISHED_IMAGES = 8_000
"""Images in all splits, as published: 6,000, 1,000 and 1,000."""

SPLIT_LISTS: dict[Split, str] = {split: f"Flickr_8k.{split}Images.txt" for split in SPLITS}
"""The files that say which images are in a split."""
_TEXT_FILES = ("wav2capt.txt", "wav2spk.txt", "Flickr8k.token.txt", *SPLIT_LISTS.values())


def prepare(folder: Path, *, require_files: bool = True) -> Prepared:
    """Make a manifest of Flickr8k Audio Captions with the published splits.

    The files may lie in the folder itself or one level below, as in the archives' own folders `flickr_audio` and
    `Flickr8k_text`. What is in no split or has no recording is left out and counted in the notes; numbers of recordings
    or images other than the published ones are a warning.

    Args:
        folder: of the corpus.
        require_files: whether a recording or image that lacks its file is a fault already here.

    Raises:
        ManifestError: all faults: parts of the corpus that are not there, lines of another form, a recording that is
            listed twice or lacks its file, speaker or written caption, an image that lacks its file or is in two
            splits.
        SayseeError: the folder is not there.
    """
    if not folder.is_dir():
        raise SayseeError(f"{str(folder)!r} is not a folder; give the one with wavs, wav2capt.txt and the images")
    folder = folder.resolve()
    texts, wavs, images = _find_parts(folder)

    faults: list[str] = []
    split_of = listed_splits({split: texts[name] for split, name in SPLIT_LISTS.items()}, faults)
    voices = _matching_lines(texts["wav2spk.txt"], r"(\S+)\s+(\S+)", "<wav> <speaker>", faults)
    speaker_of = {row[0]: row[1] for row in voices}
    text_of = {image + number: text for image, number, text in token_lines(texts["Flickr8k.token.txt"], faults)}
    listed = _matching_lines(texts["wav2capt.txt"], r"(\S+)\s+(\S+)\s+(#\d+)", "<wav> <image.jpg> #<n>", faults)

    wav_files = {path.name for path in wavs.glob("*.wav")}
    image_files = {path.name for path in images.glob("*.jpg")}
    captions: dict[str, SpokenCaption] = {}
    for wav, image, number in listed:
        if image not in split_of:
            continue
        faults += [
            f"{wav!r} {fault}"
            for fails, fault in (
                (wav in captions, "is listed twice in wav2capt.txt; remove one line"),
                (
                    require_files and wav not in wav_files,
                    f"is not in {wavs.name}; put it there or remove its line from wav2capt.txt",
                ),
                (wav not in speaker_of, "has no speaker in wav2spk.txt; add a line for it"),
                (image + number not in text_of, f"has no written caption {image + number} in Flickr8k.token.txt"),
            )
            if fails
        ]
        captions[wav] = SpokenCaption(
            id=wav.removesuffix(".wav"),
            audio=wavs / wav,
            image_id=image,
            image=images / image,
            text=text_of.get(image + number),
            speaker=speaker_of.get(wav),
            language="en",
            split=split_of[image],
        )
    manifest = Manifest("image", tuple(captions.values()))
    spoken_of = manifest.images()
    faults += [
        f"{image!r} is not in {images.name}; put it there or remove it from its split"
        for image in spoken_of
        if require_files and image not in image_files
    ]
    if faults:
        raise ManifestError(str(folder), faults)
    left_out = {
        "images in no split": len(image_files - split_of.keys()),
        "images of the splits without a recording": len(split_of.keys() - spoken_of.keys()),
        "recordings of images in no split": sum(image not in split_of for _, image, _ in listed),
        "wav files that wav2capt.txt does not list": len(wav_files - {wav for wav, _, _ in listed}),
    }
    notes = [manifest.summary(), *(f"left out: {count:,} {what}" for what, count in left_out.items() if count)]
    return Prepared(manifest, notes, _count_warnings(manifest), _count_warnings)


def listed_splits(lists: Mapping[Split, Path], faults: list[str]) -> dict[str, Split]:
    """Return the split of each image that the lists name; an image in two of them becomes a fault."""
    split_of: dict[str, Split] = {}
    for split, path in lists.items():
        for (image,) in _matching_lines(path, r"(\S+)", "<image.jpg>", faults):
            if split_of.setdefault(image, split) != split:
                faults.append(f"{path.name}: {image!r} is in {split_of[image]} as well; keep it in one list")
    return split_of


def token_lines(path: Path, faults: list[str]) -> list[tuple[str, ...]]:
    """Return image, `#<n>` and text of each written caption; lines of another form become faults."""
    return _matching_lines(path, r"(\S+)(#\d+)\t\s*(.+)", "<image.jpg>#<n>, a tab, <caption>", faults)


def _count_warnings(manifest: Manifest) -> list[str]:
    here, images = {split: len(manifest.of(split)) for split in SPLITS}, len(manifest.images())
    if (here, images) == (PUBLISHED, PUBLISHED_IMAGES):
        return []
    published = f"{sum(PUBLISHED.values()):,} recordings of {PUBLISHED_IMAGES:,} images ({_listed(PUBLISHED)})"
    return [f"Flickr8k Audio has {published}; here are {sum(here.values()):,} of {images:,} ({_listed(here)})"]


def _listed(counts: Mapping[Split, int]) -> str:
    return ", ".join(f"{split} {counts[split]:,}" for split in SPLITS)


def _find_parts(folder: Path) -> tuple[dict[str, Path], Path, Path]:
    places = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]

    def first(names: Sequence[str], pattern: str = "") -> Path | None:
        found = (path for place in places for name in names if (path := place / name).exists())
        # the archives of the images hold a folder of the same name: the one that counts is the one with the files
        return next((path for path in found if not pattern or any(path.glob(pattern))), None)

    texts = {name: first([name]) for name in _TEXT_FILES}
    wavs, images = first(["wavs"], "*.wav"), first(IMAGE_FOLDERS, "*.jpg")
    faults = [f"{name} is missing" for name, path in texts.items() if path is None]
    if wavs is None:
        faults.append("a folder wavs with *.wav in it is missing")
    if images is None:
        faults.append(f"a folder with *.jpg in it is missing; it is named {' or '.join(IMAGE_FOLDERS)}")
    if faults or wavs is None or images is None:
        where = "; looked for in the folder itself and one level below"
        raise ManifestError(str(folder), [fault + where for fault in faults])
    return {name: path for name, path in texts.items() if path is not None}, wavs, images


def _matching_lines(path: Path, pattern: str, form: str, faults: list[str]) -> list[tuple[str, ...]]:
    """Return what the pattern's groups match in each line that is not blank; other lines become faults."""
    rows = []
    for number, line in enumerate(read_utf8(path).split("\n"), start=1):
        content = line.strip()
        match = re.fullmatch(pattern, content)
        if match:
            rows.append(match.groups())
        elif content:
            faults.append(f"{path.name} line {number}: {content!r} is not of the form {form}")
    return rows
