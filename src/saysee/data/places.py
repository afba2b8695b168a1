"""Places Audio Captions (English, 400K), as published [1]: spoken descriptions of photographs of Places205 [2].

[1] Harwath, Torralba and Glass, Unsupervised Learning of Spoken Language with Visual Context, NeurIPS 2016:
    `metadata/{train,val}.json`, {"image_base_path", "audio_base_path", "data": [{"wav", "image", "uttid", "speaker",
    "asr_text"}]}, and `wavs/`. The splits of 2020 are `metadata/{train,dev_seen,dev_unseen,test_seen,test_unseen}_2020
    .json` of the same form.
[2] Zhou, Lapedriza, Xiao, Torralba and Oliva, Learning Deep Features for Scene Recognition, NeurIPS 2014.
"""

import itertools
import os
import reprlib
from pathlib import Path
from typing import Any, Literal

from saysee.data.manifest import ManifestError, Prepared, Split
from saysee.data.published import PairReader, check_share, read_data
from saysee.errors import SayseeError

IMAGE_FOLDERS = ("images", "places205", "Places205", "imagesPlaces205_resize", ".")
"""Where the photographs are looked for within the folder."""

_FIRST_SPLITS: dict[str, Split] = {"train": "train", "val": "test"}
# the published paths are of a machine that the user does not have; these many names tell which folder they start in
_SAMPLE = 50


def prepare(
    folder: Path,
    *,
    images: Path | None = None,
    held_out: Literal["seen", "unseen"] = "seen",
    dev: float = 0.01,
    seed: int = 0,
    require_files: bool = True,
) -> Prepared:
    """Make a manifest of Places Audio with the splits of 2020, or, where they are not there, with the first ones.

    With the first ones val is test, and dev is drawn from train by image (ours). `image_id` is the image's path as the
    files give it, `id` the recording's `uttid`. `text` is what a speech recogniser heard (`asr_text`).

    Args:
        folder: has `metadata` and `wavs`.
        images: has the photographs; by default `image_base_path` of the files if it is there, or one of IMAGE_FOLDERS.
        held_out: which of the two pairs of dev and test of 2020 is taken; each is a gallery of its own.
        dev: share of the images of train that make dev, about; only with the first splits.
        seed: draws another dev.
        require_files: see `saysee.data.published.PairReader.prepared`.

    Raises:
        ManifestError: all faults: JSON files that are not there or of another form, an image in two splits, an uttid
            with two recordings, recordings and images that lack their files.
        SayseeError: the folder is not there, held_out is neither, or dev cannot be drawn as asked.
    """
    for given in (folder, images):
        if given is not None and not given.is_dir():
            raise SayseeError(f"{str(given)!r} is not a folder; give the one with metadata and wavs, or its images")
    if held_out not in ("seen", "unseen"):
        raise SayseeError(f"held_out is {held_out!r}; allowed: seen, unseen")
    check_share(dev)
    folder = folder.resolve()
    of_2020: dict[str, Split] = {"train_2020": "train", f"dev_{held_out}_2020": "dev", f"test_{held_out}_2020": "test"}
    metadata, splits = _find_files(folder, of_2020)
    reader: PairReader | None = None
    for name, split in splits.items():
        path = metadata / f"{name}.json"
        content = read_data(path)
        entries = content["data"]
        if reader is None:
            audio_base = _base(entries, "wav", [content.get("audio_base_path"), folder])
            places = (
                [images] if images else [content.get("image_base_path"), *(folder / name for name in IMAGE_FOLDERS)]
            )
            reader = PairReader(folder, audio_base, _base(entries, "image", places), "asr_text")
        for number in range(len(entries)):
            # each entry is let go when its caption is made, or file and captions would be in memory at once
            entry, entries[number] = entries[number], None
            where = f"{path.name} data[{number}]"
            if isinstance(entry, dict):
                reader.add(split, where, entry.get("image"), entry)
            else:
                reader.faults.append(
                    f"{where}: it is {reprlib.repr(entry)}; an object with `wav` and `image` is needed"
                )
    assert reader is not None
    if splits is of_2020:
        return reader.prepared([f"splits are those of 2020, dev and test {held_out}"], require_files=require_files)
    note = f"splits: val is test, dev drawn from train by image with seed {seed} (ours)"
    return reader.prepared([note], dev=(dev, seed), require_files=require_files)


def _find_files(folder: Path, of_2020: dict[str, Split]) -> tuple[Path, dict[str, Split]]:
    """Return the folder of the JSON files, and those to read with their splits."""
    for splits in (of_2020, _FIRST_SPLITS):
        for metadata in (folder / "metadata", folder):
            if all((metadata / f"{name}.json").is_file() for name in splits):
                return metadata, splits
    first, second = (", ".join(f"{name}.json" for name in splits) for splits in (_FIRST_SPLITS, of_2020))
    raise ManifestError(str(folder), [f"metadata has neither {first} nor {second}; put one of these sets there"])


def _base(entries: list[Any], key: str, places: list[Any]) -> Path:
    """Return the first place that has one of the first files; if none has, the last, which the faults then name."""
    names = [entry.get(key) for entry in itertools.islice(entries, _SAMPLE) if isinstance(entry, dict)]
    paths = [Path(place) for place in places if isinstance(place, str | Path) and Path(place).is_absolute()]
    found = (path for path in paths if any((path / name).is_file() for name in names if isinstance(name, str)))
    return Path(os.path.normpath(next(found, paths[-1])))
