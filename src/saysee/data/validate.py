"""Whether a manifest holds together: `structural_faults` reads the manifest alone, `file_faults` opens its files.

`saysee validate` runs both. `train` runs the first, which is cheap, and meets the second while it extracts features.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saysee.data.manifest import SPLITS, Manifest, Split, SpokenCaption
from saysee.errors import AudioError, ImageError
from saysee.features.audio import AudioLimits, load_waveform
from saysee.features.image import load_image
from saysee.files import hash64

# ours: a shorter recording holds no word, and the longest known spoken caption (Flickr8k's) takes 323 s
RECORDING_LIMITS = AudioLimits(min_seconds=0.1, max_seconds=600.0)


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        record: id of the caption that shows it first; None where the manifest as a whole is at fault.
        message: one line: what was found, what is allowed, what to do.
    """

    record: str | None
    message: str

    def __str__(self) -> str:
        return self.message if self.record is None else f"{self.record!r}: {self.message}"


@dataclass(frozen=True)
class _Checked:
    """What a file decodes to, as a hash, or what is wrong with it."""

    content: str | None = None
    fault: str | None = None


_Check = tuple[Callable[[Path], _Checked], Path]
_Names = dict[_Check, str]
_Checks = dict[_Check, _Checked]


def validate(manifest: Manifest, *, workers: int = 2, progress: bool = False) -> list[Fault]:
    """Return all faults of a manifest and of the files it names; none means that it can be trained on.

    Args:
        manifest: to be checked.
        workers: threads that decode files.
        progress: whether to show a progress bar on standard error.
    """
    return structural_faults(manifest) + file_faults(manifest, workers=workers, progress=progress)


def structural_faults(manifest: Manifest, needed: Sequence[Split] = SPLITS) -> list[Fault]:
    """Return the faults that can be seen without opening a file.

    They are: an id that stands twice, one image_id with two files or two concepts, a split without captions, one
    recording in two splits, and what `split_by` forbids: an image (by its id, or the same file under two ids) or a
    speaker in two splits, or a caption without a speaker.

    Args:
        manifest: to be checked.
        needed: splits that must not be empty. A corpus that is only tested on may have nothing else.
    """
    captions = _suspects(manifest)
    faults = _repeated_ids(captions)
    faults += _images_with_two(captions, lambda c: str(c.image), "two files,")
    faults += _images_with_two(captions, lambda c: c.concept, "the concepts")
    faults += [
        Fault(None, f"no caption is in {split}; give the manifest all of {', '.join(needed)}")
        for split in needed
        if len(manifest.of(split)) == 0
    ]
    faults += _in_two_splits(captions, lambda c: c.audio, "the recording", "one file belongs to one split")
    if manifest.split_by == "image":
        rule = "split_by image puts an image in one split"
        faults += _in_two_splits(captions, lambda c: c.image_id, "image_id", rule)
        # an id in two splits is listed above; here are the leaks that ids hide
        several = [group for group in _grouped(captions, lambda c: c.image) if len({c.image_id for c in group}) > 1]
        faults += _in_two_splits([c for group in several for c in group], lambda c: c.image, "the picture", rule)
    elif manifest.split_by == "speaker":
        faults += [
            Fault(c.id, "no speaker is given, which split_by speaker needs; fill it in or choose another split_by")
            for c in captions
            if not c.speaker
        ]
        named = [c for c in captions if c.speaker]
        faults += _in_two_splits(named, lambda c: c.speaker, "speaker", "split_by speaker puts a speaker in one split")
    return faults


def _suspects(manifest: Manifest) -> list[SpokenCaption]:
    """Return the captions that a fault can be about, each with all the others of its group, in order.

    The checks compare records with each other, and half a million of them are too many to hold. So each is first
    reduced to 64-bit hashes of its values; only where these show a group that is not as it should be are its records
    looked at. A chance collision of hashes costs a look and makes no fault.
    """
    captions = manifest.captions
    # what must be the same within a group of records that agree in the first
    groups: list[tuple[str, str | None]] = [("id", None), ("audio", "split")]
    groups += [("image_id", "image"), ("image_id", "concept")]
    if manifest.split_by == "image":
        groups += [("image_id", "split"), ("image", "split")]
    elif manifest.split_by == "speaker":
        groups.append(("speaker", "split"))
    names = sorted({name for group in groups for name in group if name is not None} - {"split"})
    columns = {name: np.empty(len(captions), dtype=np.uint64) for name in names}
    columns["split"] = np.empty(len(captions), dtype=np.uint8)
    for row, caption in enumerate(captions):
        for name in names:
            columns[name][row] = hash64(str(getattr(caption, name) or ""))
        columns["split"][row] = SPLITS.index(caption.split)
    suspect = np.zeros(len(captions), dtype=bool)
    for name, same in groups:
        suspect |= _in_mixed_group(columns[name], columns[same] if same else None)
    if manifest.split_by == "speaker":
        suspect |= columns["speaker"] == hash64("")
    return [captions[int(index)] for index in np.flatnonzero(suspect)]


def _in_mixed_group(key: NDArray[Any], value: NDArray[Any] | None) -> NDArray[np.bool_]:
    """Say which rows (n,) belong to a group of equal keys whose values differ; without values, to a group of several.

    Takes about 20 bytes a row meanwhile.
    """
    result = np.zeros(len(key), dtype=bool)
    order = np.argsort(key)
    column = key[order]
    goes_on = np.zeros(len(key), dtype=bool)
    goes_on[1:] = column[1:] == column[:-1]
    del column
    mixed = goes_on.copy()
    if value is not None:
        column = value[order]
        mixed[1:] &= column[1:] != column[:-1]
        del column
    if not mixed.any():
        return result
    starts = np.flatnonzero(~goes_on)
    # what is amiss is rare: only its groups are gone through
    for group in np.unique(np.searchsorted(starts, np.flatnonzero(mixed), "right")):
        end = starts[group] if group < len(starts) else len(key)
        result[order[starts[group - 1] : end]] = True
    return result


def file_faults(manifest: Manifest, *, workers: int = 2, progress: bool = False) -> list[Fault]:
    """Decode every recording and picture once and return what is wrong with them.

    That is: what is missing, broken or of an absurd duration, and copies: a recording in two splits under two names
    (as when two collections took it from one source), and with `split_by` image a picture in two splits. Copies are
    told by what they decode to, since the files of one recording may differ in their headers.

    Args:
        manifest: whose files are checked.
        workers: threads.
        progress: whether to show a progress bar on standard error.
    """
    captions = manifest.captions
    first, checked = _check_files(captions, workers, progress)
    faults = [Fault(first[check], result.fault) for check, result in checked.items() if result.fault]
    faults += _copies(captions, lambda c: c.audio, lambda c: checked[_check_audio, c.audio].content, "recording")
    if manifest.split_by == "image":
        faults += _copies(captions, lambda c: c.image, lambda c: checked[_check_image, c.image].content, "picture")
    return faults


def without_faults(manifest: Manifest, *, workers: int = 2, progress: bool = False) -> tuple[Manifest, list[Fault]]:
    """Return a manifest without the records that `file_faults` is about, or that stand in two splits.

    Of copies in two splits, and with `split_by` image of an image in two, the one in train is left out before that in
    dev, and that before the one in test: what is measured stays as it is published.

    Args:
        manifest: whose files are checked.
        workers: threads.
        progress: whether to show a progress bar on standard error.

    Returns:
        The manifest, which may have other structural faults, and one line for each record that was left out, which
        says why and of which split.
    """
    _, checked = _check_files(manifest.captions, workers, progress)
    left_out: list[Fault] = []
    kept: list[SpokenCaption] = []
    for caption in manifest.captions:
        files = checked[_check_audio, caption.audio], checked[_check_image, caption.image]
        if fault := next((file.fault for file in files if file.fault), None):
            left_out.append(Fault(caption.id, f"left out of {caption.split}: {fault}"))
        else:
            kept.append(caption)
    same: list[tuple[str, Callable[[SpokenCaption], str | None]]] = [
        ("recording", lambda c: checked[_check_audio, c.audio].content)
    ]
    if manifest.split_by == "image":
        same += [("image_id", lambda c: c.image_id), ("picture", lambda c: checked[_check_image, c.image].content)]
    for what, key in same:
        # SPLITS begins with train and ends with test
        last = {key(group[0]): max(group, key=_place_of_split) for group in _grouped(kept, key)}
        leaks = [caption for caption in kept if caption.split != last[key(caption)].split]
        for caption in leaks:
            other = last[key(caption)]
            message = f"left out of {caption.split}: its {what} is that of {other.id!r} too, which is in {other.split}"
            left_out.append(Fault(caption.id, message))
        kept = [caption for caption in kept if caption.split == last[key(caption)].split]
    return Manifest(manifest.split_by, tuple(kept)), left_out


def _place_of_split(caption: SpokenCaption) -> int:
    return SPLITS.index(caption.split)


def _check_files(captions: Sequence[SpokenCaption], workers: int, progress: bool) -> tuple[_Names, _Checks]:
    """Open all files of captions; returns the first caption of each file, and what became of it."""
    from tqdm import tqdm

    # each file is opened once however many captions share it
    first: _Names = {}
    for caption in captions:
        first.setdefault((_check_audio, caption.audio), caption.id)
        first.setdefault((_check_image, caption.image), caption.id)
    with ThreadPoolExecutor(workers) as pool:
        try:
            results = pool.map(lambda check: check[0](check[1]), first)
            bar = tqdm(results, "checking files", total=len(first), unit="file", disable=None if progress else True)
            return first, dict(zip(first, bar, strict=True))
        except BaseException:  # Ctrl-C must not wait for the thousands of files that are still queued
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _check_audio(path: Path) -> _Checked:
    try:
        return _Checked(hashlib.sha256(load_waveform(path, RECORDING_LIMITS).data).hexdigest())
    except AudioError as error:
        return _Checked(fault=str(error))


def _check_image(path: Path) -> _Checked:
    try:
        image = load_image(path)
    except ImageError as error:
        return _Checked(fault=str(error))
    return _Checked(hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest())


def _copies(
    captions: Iterable[SpokenCaption],
    file_of: Callable[[SpokenCaption], Path],
    content_of: Callable[[SpokenCaption], str | None],
    what: str,
) -> list[Fault]:
    """Find files that decode alike in two splits; one file in two splits is a structural fault."""
    faults = []
    for group in _grouped([c for c in captions if content_of(c) is not None], content_of):
        for other in group[1:]:
            if other.split != group[0].split and file_of(other) != file_of(group[0]):
                message = (
                    f"its {what} is a copy of that of {group[0].id!r}, which is in {group[0].split} and this in "
                    f"{other.split}; leave one of them out"
                )
                faults.append(Fault(other.id, message))
    return faults


def _grouped(
    captions: Iterable[SpokenCaption], key: Callable[[SpokenCaption], Hashable]
) -> Iterable[list[SpokenCaption]]:
    groups: dict[Hashable, list[SpokenCaption]] = defaultdict(list)
    for caption in captions:
        groups[key(caption)].append(caption)
    return groups.values()


def _repeated_ids(captions: Iterable[SpokenCaption]) -> list[Fault]:
    return [
        Fault(group[0].id, f"this id stands {len(group)} times; every record needs an id of its own")
        for group in _grouped(captions, lambda c: c.id)
        if len(group) > 1
    ]


def _images_with_two(
    captions: Iterable[SpokenCaption], value_of: Callable[[SpokenCaption], str | None], what: str
) -> list[Fault]:
    """Find images whose captions do not agree in a value; `what` leads to the two in the fault."""
    faults = []
    for group in _grouped(captions, lambda c: c.image_id):
        first = group[0]
        other = next((c for c in group if value_of(c) != value_of(first)), None)
        if other is not None:
            values = f"{value_of(first)!r} and, in {other.id!r}, {value_of(other)!r}"
            faults.append(Fault(first.id, f"image_id {first.image_id!r} has {what} {values}; give one"))
    return faults


def _in_two_splits(
    captions: Iterable[SpokenCaption], key: Callable[[SpokenCaption], str | Path | None], what: str, rule: str
) -> list[Fault]:
    faults = []
    for group in _grouped(captions, key):
        first_in: dict[Split, SpokenCaption] = {}
        for caption in group:
            first_in.setdefault(caption.split, caption)
        if len(first_in) > 1:
            first, *others = first_in.values()
            where = " and ".join(f"{other.split} ({other.id!r})" for other in others)
            message = f"{what} {str(key(first))!r} is in {first.split} and in {where}; {rule}"
            faults.append(Fault(first.id, message))
    return faults
