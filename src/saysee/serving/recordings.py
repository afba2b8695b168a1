"""What has been recorded for the pictures of a folder: sound files and a manifest, and nothing else.

    captions.jsonl                  the manifest
    captions-recordings/*.flac      16 kHz, one channel, 16 bits; silence at the ends is kept

The manifest is written anew after every recording, so that it can be trained on at any moment: it is divided by image
with `assign_splits`. While no picture with a recording falls in one of the splits, all captions stand in train, which
`saysee validate` and `saysee train` refuse in plain words; `needed` says what is missing.
"""

import hashlib
import io
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from saysee.data.manifest import SPLITS, Manifest, Split, SpokenCaption, read_manifest, write_manifest
from saysee.data.split import assign_splits
from saysee.data.validate import RECORDING_LIMITS
from saysee.errors import ImageError, SayseeError
from saysee.features.audio import SAMPLE_RATE, load_waveform
from saysee.features.image import load_image
from saysee.features.speech_activity import trim
from saysee.files import atomic_path, sha256_of, sole_process
from saysee.search.folder import find_files
from saysee.search.stores.base import path_id

DEV = TEST = 0.1
"""Shares of the pictures (ours, those of `saysee prepare picture-folder`)."""

NAME_LENGTH = 64
_SEEDS = 1000  # that are tried; with three pictures one in 20 fills all splits


@dataclass(frozen=True)
class Kept:
    """A recording that is kept.

    Attributes:
        id: 32 hexadecimal digits that stand for picture, speaker and language.
        seconds: how long it is.
    """

    id: str
    seconds: float


class Recordings:
    """The recordings of one folder's pictures. Used by one thread at a time, and by one process (see `opened`).

    Args:
        folder: of the pictures.
        manifest: file to write; one that is there is gone on with.

    Attributes:
        pictures: paths below the folder, in the order of their names; of files that are equal the first, or the one
            that has a recording.
        copies: how many were left out because they equal another.

    Raises:
        SayseeError: no such folder, no picture in it; the manifest there is not of such recordings.
    """

    def __init__(self, folder: Path, manifest: Path) -> None:
        if not folder.is_dir():
            raise SayseeError(f"{folder} is no folder; give the folder that holds your pictures")
        self.folder = folder.resolve()
        self.manifest = manifest.resolve()
        self.sounds = sounds_folder(self.manifest)
        self._captions: dict[str, SpokenCaption] = {}
        if self.manifest.exists():
            self._read()
        found = [os.path.relpath(path, self.folder) for path in find_files(self.folder, "picture")]
        self.pictures, self.copies = self._without_copies(found)
        if not self.pictures:
            raise SayseeError(f"{folder} holds no pictures; give the folder that holds them")
        self._by_id = {path_id(path): number for number, path in enumerate(self.pictures)}
        self._split_of = self._choose_splits()
        self._readable: dict[str, bool] = {}

    # ---- pictures

    def picture(self, picture_id: str) -> Path | None:
        """Return the file of a picture, None for an id that is none's."""
        number = self._by_id.get(picture_id)
        return None if number is None else self.folder / self.pictures[number]

    def position(self, picture_id: str) -> int:
        """Return a picture's position among all, from 1."""
        return self._by_id[picture_id] + 1

    def next(self, after: str, speaker: str | None, language: str | None) -> str | None:
        """Return the id of the first picture after one that this voice has not spoken of in this language.

        Pictures that cannot be read are passed over.

        Args:
            after: id of a picture; one that is not there stands for the beginning.
            speaker: None if it is not known.
            language: None if it is not known.
        """
        start = self._by_id.get(after, -1) + 1
        for path in self.pictures[start:]:
            if caption_id(path, speaker, language) not in self._captions and self.is_readable(path):
                return path_id(path)
        return None

    def is_readable(self, path: str) -> bool:
        """Say whether a picture decodes; it is looked at once."""
        if path not in self._readable:
            try:
                load_image(self.folder / path)
            except ImageError:
                self._readable[path] = False
            else:
                self._readable[path] = True
        return self._readable[path]

    # ---- recordings

    def __len__(self) -> int:
        return len(self._captions)

    def add(self, picture_id: str, speaker: str | None, language: str | None, waveform: NDArray[np.float32]) -> Kept:
        """Keep a recording (S,) at 16 kHz; an earlier one of this picture, voice and language is replaced.

        Raises:
            KeyError: there is no such picture.
            AudioError: it is silent, no speech is heard in it, or it is too short to be trained on.
            ImageError: the picture cannot be read (any more), so nothing could be trained on it.
        """
        path = self.pictures[self._by_id[picture_id]]
        if not self.is_readable(path):
            raise ImageError(f"{path} cannot be read; go on with the next picture")
        sound = io.BytesIO()
        soundfile.write(sound, np.clip(waveform, -1, 1), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        # what is kept is what will be trained on: 16 bits may have made silence of it
        trim(load_waveform(sound.getvalue(), RECORDING_LIMITS, name="the recording"))
        recording_id = caption_id(path, speaker, language)
        name = "-".join(filter(None, [_slug(Path(path).stem), _slug(speaker or ""), recording_id[:12]]))
        file = self.sounds / f"{name}.flac"
        with atomic_path(file) as temporary:
            temporary.write_bytes(sound.getvalue())
        # what the manifest says of a picture, it says of all its recordings
        concept = next((caption.concept for caption in self._captions.values() if caption.image_id == path), None)
        caption = SpokenCaption(name, file, path, self.folder / path, None, speaker, language, "train", concept)
        self._write({**self._captions, recording_id: caption})
        return Kept(recording_id, len(waveform) / SAMPLE_RATE)

    def read(self, recording_id: str) -> bytes:
        """Return the FLAC file of a recording.

        Raises:
            KeyError: there is none of this id, or its file is gone.
        """
        try:
            return self._captions[recording_id].audio.read_bytes()
        except FileNotFoundError:
            raise KeyError(recording_id) from None

    def remove(self, recording_id: str) -> None:
        """Forget a recording.

        Raises:
            KeyError: there is none of this id.
        """
        captions = dict(self._captions)
        caption = captions.pop(recording_id)
        self._write(captions)
        caption.audio.unlink(missing_ok=True)

    def speakers(self) -> list[str]:
        """Return the names of those who have spoken."""
        return sorted({caption.speaker for caption in self._captions.values() if caption.speaker})

    def languages(self) -> list[str]:
        """Return the languages in which something has been said."""
        return sorted({caption.language for caption in self._captions.values() if caption.language})

    # ---- the manifest

    def needed(self) -> str | None:
        """Say what is missing before the manifest can be trained on; None: nothing."""
        if len(self.pictures) < len(SPLITS):
            return f"there are {len(self.pictures)} pictures; train, dev and test need at least one each"
        filled = {self._split_of[caption.image_id] for caption in self._captions.values()}
        parts = []
        for split in SPLITS:
            if split not in filled:
                first = next((n for n, path in enumerate(self.pictures, 1) if self._split_of[path] == split), None)
                parts.append(split if first is None else f"{split} (picture {first} would be the first)")
        return f"no picture with a recording is in {' or '.join(parts)} yet; record more pictures" if parts else None

    def summary(self) -> str:
        """Return one line on what has been made, for a person to read."""
        needed = self.needed()
        return self._divided(self._captions).summary() + (f"; not divided yet: {needed}" if needed else "")

    def _write(self, captions: dict[str, SpokenCaption]) -> None:
        write_manifest(self.manifest, self._divided(captions))
        self._captions = captions

    def _divided(self, captions: dict[str, SpokenCaption]) -> Manifest:
        splits = {caption.image_id: self._split_of[caption.image_id] for caption in captions.values()}
        if set(splits.values()) != set(SPLITS):  # see `needed`
            splits = dict.fromkeys(splits, "train")
        return Manifest("image", tuple(replace(c, split=splits[c.image_id]) for c in captions.values()))

    def _read(self) -> None:
        for caption in read_manifest(self.manifest).captions:
            if caption.audio.parent != self.sounds or not caption.image.is_relative_to(self.folder):
                raise SayseeError(
                    f"{self.manifest} has recordings that were not made here ({caption.id!r}, say), or of pictures "
                    f"outside {self.folder}; give another --out"
                )
            key = caption_id(caption.image_id, caption.speaker, caption.language)
            self._captions[key] = caption

    def _choose_splits(self) -> dict[str, Split]:
        """Return each picture's split: by the first seed that fills all three and leaves what is divided as it is.

        The seed is kept nowhere: the splits in the manifest say it.
        """
        known = {caption.image_id: caption.split for caption in self._captions.values()}
        images = tuple(dict.fromkeys([*self.pictures, *known]))
        if set(known.values()) != set(SPLITS):
            known = {}
        nowhere = Path()
        captions = [SpokenCaption(image, nowhere, image, nowhere, None, None, None, "train") for image in images]
        for seed in range(_SEEDS if len(images) >= len(SPLITS) else 0):
            try:
                drawn = {
                    caption.image_id: caption.split for caption in assign_splits(captions, "image", DEV, TEST, seed)
                }
            except SayseeError:  # a split stays empty
                continue
            if all(drawn[image] == split for image, split in known.items()):
                return drawn
        if known:
            raise SayseeError(f"{self.manifest} is not divided as this command divides; give another --out")
        return dict.fromkeys(images, "train")

    def _without_copies(self, paths: Sequence[str]) -> tuple[tuple[str, ...], int]:
        """Leave out files that equal another byte for byte: in two splits they would be a fault of the manifest."""
        recorded = {caption.image_id for caption in self._captions.values()}
        sizes: dict[int, list[str]] = {}
        for path in paths:
            try:
                sizes.setdefault((self.folder / path).stat().st_size, []).append(path)
            except OSError:  # a link that leads nowhere
                continue
        kept: set[str] = set()
        for same_size in sizes.values():
            contents: dict[str, str] = {}
            for path in sorted(same_size, key=lambda path: path not in recorded):
                contents.setdefault(path if len(same_size) == 1 else sha256_of(self.folder / path), path)
            kept.update(contents.values())
        return tuple(path for path in paths if path in kept), len(paths) - len(kept)


@contextmanager
def opened(folder: Path, manifest: Path) -> Iterator[Recordings]:
    """Give the recordings of a folder to this process alone.

    Raises:
        SayseeError: another process records into this manifest; see `Recordings` too.
    """
    with sole_process(sounds_folder(manifest.resolve()) / ".lock", f"recording into {manifest}"):
        yield Recordings(folder, manifest)


def sounds_folder(manifest: Path) -> Path:
    """Return where the sound files of a manifest lie."""
    return manifest.with_name(f"{manifest.stem}-recordings")


def caption_id(path: str, speaker: str | None, language: str | None) -> str:
    """Return the 32 hexadecimal digits that stand for a picture, a voice and a language."""
    parts = (os.fsencode(path), (speaker or "").encode(), (language or "").encode())
    return hashlib.blake2b(b"".join(len(part).to_bytes(4, "big") + part for part in parts), digest_size=16).hexdigest()


def checked_name(text: str, what: str) -> str | None:
    """Return the name of a speaker or a language in one form (Unicode NFC, no spaces at the ends), None for none.

    Raises:
        SayseeError: it is too long or cannot be printed.
    """
    name = unicodedata.normalize("NFC", text).strip()
    if len(name) > NAME_LENGTH or not name.isprintable():
        raise SayseeError(f"the {what} is {name[:80]!a}; allowed: up to {NAME_LENGTH} characters that can be printed")
    return name or None


def _slug(text: str) -> str:
    """Return what ASCII letters and digits a name has, for a file's name that a person recognises."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii").lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:24].strip("-")
