"""SpokenCOCO, as published [1]: recordings of the written captions of COCO's photographs, and Karpathy's division [2].

[1] Hsu, Harwath, Miller, Song and Glass, Text-Free Image-to-Speech Synthesis Using Learned Segmental Units, ACL 2021:
    `SpokenCOCO_{train,val}.json`, {"data": [{"image": ..., "captions": [{"text", "speaker", "uttid", "wav"}]}]}, with
    `wavs/` beside them. COCO's `train2014` and `val2014` are fetched apart.
[2] Karpathy and Fei-Fei, Deep Visual-Semantic Alignments for Generating Image Descriptions, CVPR 2015. As files: those
    that come with FaST-VGS (`SpokenCOCO_{train,val,test}_karpathy.json`), its `_unrolled_karpathy.json` with one
    caption an entry ({"image": ..., "caption": {...}}), and SpeechCLIP's (`SpokenCOCO_ksplit_{train,val,test}.json`).
"""

import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from saysee.data.manifest import Manifest, ManifestError, Prepared, Split
from saysee.data.published import PairReader, check_share, read_data
from saysee.errors import SayseeError

KARPATHY_TEST = (25_031, 5_000)
"""Recordings and images of Karpathy's test part, as published."""

_KARPATHY_NAMES = ("SpokenCOCO_{}_karpathy.json", "SpokenCOCO_{}_unrolled_karpathy.json", "SpokenCOCO_ksplit_{}.json")
_KARPATHY_SPLITS: dict[str, Split] = {"train": "train", "val": "dev", "test": "test"}
_RAW_NAME = "SpokenCOCO_{}.json"
_RAW_SPLITS: dict[str, Split] = {"train": "train", "val": "test"}
_IMAGE_FOLDERS = ("train2014", "val2014")


def prepare(
    folder: Path, *, images: Path | None = None, dev: float = 0.05, seed: int = 0, require_files: bool = True
) -> Prepared:
    """Make a manifest of SpokenCOCO with Karpathy's splits, or with ours where his files are not there.

    Without a whole set of Karpathy's files the published val is test, and dev is drawn from train by image (ours).
    `image_id` is the image's path as the files give it, `id` the recording's `uttid`; other keys are not read.

    The largest file is held in memory while it is read: about 0.8 GB in all for the 600,000 recordings (1.3 kB each,
    measured on 120,000 generated ones).

    Args:
        folder: has the JSON files and `wavs`, in itself or in a sub-folder `SpokenCOCO`.
        images: has `train2014` and `val2014`; by default the folder itself or a sub-folder that has one of them.
        dev: share of the images of train that make dev, about; only without Karpathy's files.
        seed: draws another dev.
        require_files: see `saysee.data.published.PairReader.prepared`.

    Raises:
        ManifestError: all faults: JSON files that are not there or of another form, an image in two splits, an uttid
            with two recordings, recordings and images that lack their files.
        SayseeError: the folder is not there, or dev cannot be drawn as asked.
    """
    for given in (folder, images):
        if given is not None and not given.is_dir():
            raise SayseeError(f"{str(given)!r} is not a folder; give the one with SpokenCOCO_train.json, or its images")
    check_share(dev)
    folder = folder.resolve()
    pattern, home = _find_files(folder)
    karpathy = pattern != _RAW_NAME
    reader = PairReader(folder, _audio_base(folder, home), _image_base(folder, images), "text")
    for name, split in (_KARPATHY_SPLITS if karpathy else _RAW_SPLITS).items():
        path = home / pattern.format(name)
        for where, image, caption in _pairs(path, reader.faults):
            reader.add(split, where, image, caption)
    if karpathy:
        note = f"splits are Karpathy's ({pattern.format('*')}; val is dev)"
        return reader.prepared([note], _karpathy_warnings, require_files=require_files)
    notes = [
        f"splits: the published val is test, dev drawn from train by image with seed {seed} (ours); published figures "
        f"are on Karpathy's test: put {_KARPATHY_NAMES[0].format('{train,val,test}')} there to compare with them"
    ]
    partial = [name for name in _names(folder, _KARPATHY_NAMES) if name]
    if partial:
        notes.append(f"not used: {', '.join(partial)}, as train, val and test are not all there")
    return reader.prepared(notes, dev=(dev, seed), require_files=require_files)


def _find_files(folder: Path) -> tuple[str, Path]:
    """Return the form of the names of the files to read, and where they lie."""
    for pattern in (*_KARPATHY_NAMES, _RAW_NAME):
        splits = _RAW_SPLITS if pattern == _RAW_NAME else _KARPATHY_SPLITS
        for home in (folder, folder / "SpokenCOCO"):
            if all((home / pattern.format(split)).is_file() for split in splits):
                return pattern, home
    there = _names(folder, (*_KARPATHY_NAMES, _RAW_NAME))
    raise ManifestError(
        str(folder),
        [
            f"{_RAW_NAME.format('{train,val}')} are not there, nor is a whole set of Karpathy's files, "
            f"{' or '.join(name.format('{train,val,test}') for name in _KARPATHY_NAMES)} (there: "
            f"{', '.join(there) or 'none of them'}); looked for in the folder itself and in SpokenCOCO below it"
        ],
    )


def _names(folder: Path, patterns: tuple[str, ...]) -> list[str]:
    names = [pattern.format(split) for pattern in patterns for split in _KARPATHY_SPLITS]
    return [name for name in names if any((home / name).is_file() for home in (folder, folder / "SpokenCOCO"))]


def _audio_base(folder: Path, home: Path) -> Path:
    # Karpathy's files come by themselves, and may lie beside the folder that was unpacked
    return next((place for place in (home, folder, folder / "SpokenCOCO") if (place / "wavs").is_dir()), home)


def _image_base(folder: Path, images: Path | None) -> Path:
    if images is not None:
        return images.resolve()
    places = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
    return next((place for place in places if any((place / name).is_dir() for name in _IMAGE_FOLDERS)), folder)


def _pairs(path: Path, faults: list[str]) -> Iterator[tuple[str, object, Any]]:
    """Give each image's name with each of its captions, and where they stand."""
    entries = read_data(path)["data"]
    for number in range(len(entries)):
        # each entry is let go when its captions are made, or file and captions would be in memory at once
        entry, entries[number] = entries[number], None
        where = f"{path.name} data[{number}]"
        captions = [entry["caption"]] if isinstance(entry, dict) and "caption" in entry else None
        if isinstance(entry, dict) and isinstance(entry.get("captions"), list):
            captions = entry["captions"]
        if captions is None:
            faults.append(f"{where}: it is {reprlib.repr(entry)}; an object with `image` and `captions` is needed")
            continue
        for caption in captions:
            yield where, entry.get("image"), caption


def _karpathy_warnings(manifest: Manifest) -> list[str]:
    here = (len(manifest.of("test")), len(manifest.images("test")))
    if here == KARPATHY_TEST:
        return []
    published = "{:,} recordings of {:,} images".format(*KARPATHY_TEST)
    return [f"Karpathy's test part of SpokenCOCO has {published}; here are {here[0]:,} of {here[1]:,}"]
