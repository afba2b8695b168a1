"""What the readers of corpora published as JSON share: pairs to captions with every fault, and a dev part of train."""

import dataclasses
import os
import reprlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from saysee.data.manifest import Manifest, ManifestError, Prepared, Split, SpokenCaption, parse_json, read_utf8
from saysee.errors import SayseeError
from saysee.files import hash64


def read_data(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file whose `data` is a list.

    Raises:
        ManifestError: it cannot be read, is not UTF-8 or JSON, or holds something else.
    """
    try:
        content = parse_json(read_utf8(path))
    except ValueError as error:
        raise ManifestError(str(path), [f"{error}; fetch the file again"]) from None
    if not isinstance(content, dict) or not isinstance(content.get("data"), list):
        message = f'it holds {reprlib.repr(content)}; {{"data": [...]}} is needed: give the file as it is published'
        raise ManifestError(str(path), [message])
    return content


class PairReader:
    """Makes captions of the pairs of a corpus, and keeps everything that is wrong with them.

    Args:
        folder: of the corpus, to be named in front of its faults.
        audio_base: where the recordings' names start.
        image_base: where the pictures' names start.
        text_key: of what is said; the other keys are `wav`, `uttid` and `speaker`.
    """

    def __init__(self, folder: Path, audio_base: Path, image_base: Path, text_key: str) -> None:
        self.folder = folder
        self.audio_base = audio_base
        self.image_base = image_base
        self.text_key = text_key
        self.faults: list[str] = []
        self.repeated = 0
        self._captions: dict[str, SpokenCaption] = {}
        self._image_of: dict[str, str] = {}
        # the path of a picture is one object however many captions it has
        self._images: dict[str, tuple[Path, Split]] = {}
        self._told: set[tuple[str, Split]] = set()

    def add(self, split: Split, where: str, image: object, pair: object) -> None:
        """Take one pair.

        Args:
            split: it belongs to.
            where: file and entry, for faults.
            image: name of the picture, as it stands in the file: its `image_id`.
            pair: the object with the recording's name and what is known of it.
        """
        if not isinstance(pair, dict):
            self.faults.append(f"{where}: a caption is {reprlib.repr(pair)}; an object with `wav` is needed")
            return
        wav, id_ = pair.get("wav"), pair.get("uttid")
        text, speaker = pair.get(self.text_key), pair.get("speaker")
        faults = [f"{key} {fault}" for key, name in (("image", image), ("wav", wav)) if (fault := _name_fault(name))]
        faults += [
            f"{key} is {reprlib.repr(value)}; a string is needed, or none"
            for key, value in (("uttid", id_), (self.text_key, text), ("speaker", speaker))
            if not isinstance(value, str | None)
        ]
        self.faults += [f"{where}: {fault}" for fault in faults]
        if faults or not isinstance(image, str) or not isinstance(wav, str):
            return
        path, first_split = self._images.setdefault(image, (self.image_base / image, split))
        if first_split != split:
            if (image, split) not in self._told:
                self.faults.append(f"{where}: image {image!r} is in {first_split} as well; keep it in one of the files")
                self._told.add((image, split))
            return
        if wav in self._image_of:
            if self._image_of[wav] == image:
                self.repeated += 1
            else:
                self.faults.append(f"{where}: wav {wav!r} speaks about {self._image_of[wav]!r} already; keep one")
            return
        self._image_of[wav] = image
        id_ = id_ or wav.removesuffix(".wav")
        if id_ in self._captions:
            self.faults.append(f"{where}: uttid {id_!r} has another wav already; keep one of the two")
            return
        audio = self.audio_base / wav
        self._captions[id_] = SpokenCaption(id_, audio, image, path, text, speaker, "en", split)

    def prepared(
        self,
        notes: list[str],
        compare: Callable[[Manifest], list[str]] = lambda manifest: [],
        dev: tuple[float, int] | None = None,
        require_files: bool = True,
    ) -> Prepared:
        """Return the manifest of all pairs; now the disk is asked for their files.

        Args:
            notes: on how it was made, after its summary.
            compare: warns of numbers that are not the published ones.
            dev: draws dev from train with this share of its images and this seed; none if the corpus has a dev part.
            require_files: whether a single file that is missing is a fault; a folder that lacks all of its files is.

        Raises:
            ManifestError: all faults of the pairs and all missing files.
            SayseeError: the share leaves dev or train empty.
        """
        missing = missing_files(
            self.audio_base, self._image_of, "recordings", "unpack the recordings there", single=require_files
        )
        missing += missing_files(
            self.image_base,
            self._images,
            "pictures",
            "put the pictures there or say where they are",
            single=require_files,
        )
        if self.faults or missing:
            raise ManifestError(str(self.folder), self.faults + missing)
        if not self._captions:
            raise ManifestError(str(self.folder), ["its files list no recordings; give them as they are published"])
        captions = list(self._captions.values())
        self._captions.clear()
        manifest = Manifest("image", tuple(captions if dev is None else draw_dev(captions, *dev)))
        left_out = [f"left out: {self.repeated:,} pairs that are listed twice"] if self.repeated else []
        return Prepared(manifest, [manifest.summary(), *notes, *left_out], compare(manifest), compare)


def draw_dev(captions: list[SpokenCaption], share: float, seed: int) -> list[SpokenCaption]:
    """Return the captions with about `share` of the images of train in dev, drawn by a hash of their `image_id` (ours).

    Args:
        captions: of which some are in train; the others stay as they are.
        share: above 0 and below 1.
        seed: draws others.

    Raises:
        SayseeError: a share that is not allowed, or nothing is left in dev or in train.
    """
    check_share(share)
    drawn = [
        dataclasses.replace(caption, split="dev")
        if caption.split == "train" and hash64(f"{seed}\0{caption.image_id}") < share * 2**64
        else caption
        for caption in captions
    ]
    for split in ("train", "dev"):
        if not any(caption.split == split for caption in drawn):
            images = len({caption.image_id for caption in captions if caption.split == "train"})
            raise SayseeError(f"of {images} images in train none falls in {split}; take another dev ({share}) or seed")
    return drawn


def check_share(share: object, name: str = "dev") -> None:
    """Refuse a share of the images that is none, before anything large is read.

    Raises:
        SayseeError: it is not above 0 and below 1.
    """
    if not isinstance(share, float | int) or not 0 < share < 1:
        raise SayseeError(f"{name} is {share!r}; allowed: a share of the images, above 0 and below 1")


def missing_files(base: Path, names: Iterable[str], what: str, remedy: str, *, single: bool = True) -> list[str]:
    """Return one line for each file that is not there, and one for a folder that has none of its files.

    A folder is listed once, where 600,000 single questions would take minutes on a network disk.

    Args:
        base: where the names start.
        names: of the files, with `/`.
        what: they are, in the plural.
        remedy: what to do about a folder that is missing.
        single: whether files of a folder that has others are meant too.
    """
    files_of: dict[str, list[str]] = defaultdict(list)
    for name in names:
        folder, _, file = name.rpartition("/")
        files_of[folder].append(file)
    faults: list[str] = []
    absent: Counter[str] = Counter()
    for folder, files in files_of.items():
        try:
            with os.scandir(base / folder) as entries:
                there = {entry.name for entry in entries}
        except (FileNotFoundError, NotADirectoryError):
            absent[_first_absent(base, folder)] += len(files)
            continue
        except OSError as error:
            faults.append(f"{str(base / folder)!r} cannot be read ({error.strerror}); allow it")
            continue
        lost = [file for file in files if file not in there]
        if len(lost) == len(files) > 1:
            absent[folder] += len(files)
        elif single:
            faults += [f"{f'{folder}/{file}'.lstrip('/')!r} is not in {str(base)!r}; put it there" for file in lost]
    wholly = [
        f"{count:,} {what} are to be in {str(base / folder)!r}, which has none of them; {remedy}"
        for folder, count in absent.items()
    ]
    return wholly + faults


def _first_absent(base: Path, folder: str) -> str:
    """Return the highest folder on the way that is not there: a missing `wavs` is one fault, not one for each part."""
    parts = folder.split("/")
    paths = ("/".join(parts[:length]) for length in range(len(parts) + 1))
    return next((path for path in paths if not (base / path).is_dir()), folder)


def _name_fault(name: object) -> str | None:
    if not isinstance(name, str) or not name:
        return f"is {reprlib.repr(name)}; the name of a file is needed"
    if name.startswith("/") or ".." in name.split("/") or "\0" in name:
        return f"{name!r} is no path within the folder; give one"
    return None
