"""Which caption goes to train, dev or test: decided by hashes, so by no order and no random state.

A caption's split depends on its own id (or its image's) and the seed alone. A corpus that grows keeps every image
where it was: what has been tested on never slips into training.
"""

import dataclasses
import hashlib
from collections.abc import Collection, Iterable

from saysee.data.manifest import SPLIT_BY, SPLITS, Split, SplitBy, SpokenCaption
from saysee.errors import SayseeError


def assign_splits(
    captions: Iterable[SpokenCaption],
    split_by: SplitBy,
    dev: float | Collection[str],
    test: float | Collection[str],
    seed: int,
) -> tuple[SpokenCaption, ...]:
    """Return the captions, in their order, with `split` set; what stood there before is not looked at.

    By `image`, whole images are drawn; by `recording`, single captions are, but every image keeps at least one in
    train; by `speaker`, all that named speakers said is dev or test, and the rest is train.

    Args:
        captions: of one corpus; their ids must differ.
        split_by: what no two splits may share.
        dev: for `image` and `recording` the share that is drawn, about; for `speaker` the names of the speakers.
        test: the same for test.
        seed: draws others; not used for `speaker`.

    Raises:
        SayseeError: a share or a name that is not allowed, or a split that stays empty.
    """
    captions = tuple(captions)
    if split_by not in SPLIT_BY:
        raise SayseeError(f"split_by is {split_by!r}; allowed: {', '.join(SPLIT_BY)}")
    if split_by == "speaker":
        splits = _by_speaker(captions, _names(dev, "dev", captions), _names(test, "test", captions))
        remedy = "name fewer speakers for dev and test"
    else:
        shares = {"test": _share(test, "test"), "dev": _share(dev, "dev")}
        if sum(shares.values()) >= 1:
            raise SayseeError(f"dev ({dev}) and test ({test}) leave nothing for train; their sum must be below 1")
        draw = _by_image if split_by == "image" else _by_recording
        splits = draw(captions, shares, seed)
        remedy = f"raise dev ({dev}) or test ({test}) or give more {split_by}s"
        if len(set(splits)) < len(SPLITS):  # a small corpus: another draw may do
            fills = (other for other in range(20) if len(set(draw(captions, shares, other))) == len(SPLITS))
            if (other := next(fills, None)) is not None:
                remedy = f"take seed {other} instead of {seed}, which fills all three, or {remedy}"
    for split in SPLITS:
        if split not in splits:
            raise SayseeError(f"no caption of {len(captions)} falls in {split}; {remedy}")
    return tuple(dataclasses.replace(caption, split=split) for caption, split in zip(captions, splits, strict=True))


def _by_image(captions: tuple[SpokenCaption, ...], shares: dict[str, float], seed: int) -> list[Split]:
    return [_split_at(hashed_position(seed, caption.image_id), shares) for caption in captions]


def _by_recording(captions: tuple[SpokenCaption, ...], shares: dict[str, float], seed: int) -> list[Split]:
    positions = [hashed_position(seed, caption.id) for caption in captions]
    # train lies at the top of the line, so the highest of an image's captions is in train if any is: it is always kept
    highest: dict[str, float] = {}
    for caption, position in zip(captions, positions, strict=True):
        highest[caption.image_id] = max(position, highest.get(caption.image_id, 0.0))
    return [
        "train" if position == highest[caption.image_id] else _split_at(position, shares)
        for caption, position in zip(captions, positions, strict=True)
    ]


def _by_speaker(captions: tuple[SpokenCaption, ...], dev: set[str], test: set[str]) -> list[Split]:
    if dev & test:
        raise SayseeError(f"{_listed(dev & test)} would be in dev and in test; name a speaker for one of them")
    without = [caption.id for caption in captions if not caption.speaker]
    if without:
        raise SayseeError(
            f"{len(without)} of {len(captions)} captions, such as {without[0]!r}, have no speaker, which split_by "
            "speaker needs; fill the speakers in or choose another split_by"
        )
    return ["dev" if c.speaker in dev else "test" if c.speaker in test else "train" for c in captions]


def hashed_position(seed: int, name: str) -> float:
    """Return a place in [0, 1] that looks drawn at random and is the same for ever, for each seed and name."""
    digest = hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _split_at(position: float, shares: dict[str, float]) -> Split:
    if position < shares["test"]:
        return "test"
    return "dev" if position < shares["test"] + shares["dev"] else "train"


def _share(value: float | Collection[str], name: str) -> float:
    if not isinstance(value, float | int) or not 0 < value < 1:
        raise SayseeError(f"{name} is {value!r}; allowed: a share above 0 and below 1 (names go with split_by speaker)")
    return float(value)


def _names(value: float | Collection[str], name: str, captions: tuple[SpokenCaption, ...]) -> set[str]:
    known = {caption.speaker for caption in captions if caption.speaker}
    if isinstance(value, float | int) or not value:
        raise SayseeError(f"{name} is {value!r}; split_by speaker takes names of speakers: {_listed(known)}")
    named = {value} if isinstance(value, str) else set(value)
    if unknown := named - known:
        raise SayseeError(f"{name} names {_listed(unknown)}, of whom there is no recording; known: {_listed(known)}")
    return named


def _listed(names: set[str]) -> str:
    return ", ".join(repr(name) for name in sorted(names)) or "none is given"
