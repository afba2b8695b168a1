import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from saysee.data.manifest import SPLITS, Manifest, Split, SplitBy, SpokenCaption
from saysee.data.split import assign_splits
from saysee.data.validate import structural_faults
from saysee.errors import SayseeError


def corpus(images: int, voices: int) -> list[SpokenCaption]:
    return [
        SpokenCaption(f"{v}/{i}", Path(f"/{v}/{i}.ogg"), f"{i}", Path(f"/{i}.jpg"), None, f"voice {v}", None, "train")
        for v in range(voices)
        for i in range(images)
    ]


def splits_of(captions: tuple[SpokenCaption, ...]) -> dict[str, Split]:
    return {caption.id: caption.split for caption in captions}


corpora = st.builds(corpus, st.integers(1, 40), st.integers(1, 4))
shares = st.floats(0.01, 0.45)


@given(corpora, st.sampled_from(("image", "recording")), shares, shares, st.integers(0, 99), st.randoms())
def test_drawn_splits_separate_what_they_say_in_any_order(
    captions: list[SpokenCaption], split_by: SplitBy, dev: float, test: float, seed: int, random: object
) -> None:
    try:
        drawn = assign_splits(captions, split_by, dev, test, seed)
    except SayseeError as error:
        assert "falls in" in str(error)  # allowed only for a split that would be empty
        assume(False)
    assert [c.id for c in drawn] == [c.id for c in captions]
    assert {c.split for c in drawn} == set(SPLITS)
    assert structural_faults(Manifest(split_by, drawn)) == []
    if split_by == "recording":
        assert {c.image_id for c in drawn if c.split == "train"} == {c.image_id for c in captions}
    shuffled = list(captions)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert splits_of(assign_splits(shuffled, split_by, dev, test, seed)) == splits_of(drawn)


def test_the_shares_are_about_those_asked_for() -> None:
    drawn = assign_splits(corpus(4000, 1), "image", 0.1, 0.2, seed=0)
    counts = Counter(caption.split for caption in drawn)
    # binomial: standard deviations of 19 and 25
    assert counts["dev"] == pytest.approx(400, abs=4 * 19)
    assert counts["test"] == pytest.approx(800, abs=4 * 25)


def test_by_recording_only_a_picture_without_a_training_recording_changes_its_draw() -> None:
    captions = corpus(2000, 3)
    drawn = assign_splits(captions, "recording", 0.25, 0.25, seed=1)
    trained = Counter(c.image_id for c in drawn if c.split == "train")
    # of three recordings k are in train with binomial chances 1, 3, 3, 1 of 8; the eighth with none got one back
    expected = {1: 2000 * 4 / 8, 2: 2000 * 3 / 8, 3: 2000 * 1 / 8}
    for kept, images in Counter(trained.values()).items():
        assert images == pytest.approx(expected[kept], abs=4 * 22.4)


def test_a_corpus_that_grows_keeps_its_images_where_they_were() -> None:
    small = assign_splits(corpus(50, 1), "image", 0.2, 0.2, seed=0)
    large = splits_of(assign_splits(corpus(80, 1), "image", 0.2, 0.2, seed=0))
    assert all(large[caption.id] == caption.split for caption in small)


def test_another_seed_draws_others_and_old_draws_stay_for_ever() -> None:
    captions = corpus(12, 1)
    first, second = (assign_splits(captions, "image", 0.2, 0.3, seed) for seed in (3, 1))
    assert splits_of(first) != splits_of(second)
    # by the shell: the first bytes of `(printf '3\000'; printf ID) | sha256sum`, read as a fraction, are 0.067, 0.130
    # and 0.281 for 5, 8 and 9, below 0.3, and 0.359, 0.449 and 0.479 for 0, 1 and 6, below 0.5; the others are above
    assert [caption.image_id for caption in first if caption.split == "test"] == ["5", "8", "9"]
    assert [caption.image_id for caption in first if caption.split == "dev"] == ["0", "1", "6"]


def test_by_speaker_the_named_are_held_out() -> None:
    captions = corpus(3, 4)
    drawn = assign_splits(captions, "speaker", ["voice 1"], {"voice 3"}, seed=0)
    expected = {"voice 0": "train", "voice 1": "dev", "voice 2": "train", "voice 3": "test"}
    assert all(caption.split == expected[str(caption.speaker)] for caption in drawn)
    assert structural_faults(Manifest("speaker", drawn)) == []
    assert assign_splits(captions, "speaker", "voice 1", "voice 3", seed=5) == drawn  # one name, and any seed


@pytest.mark.parametrize(
    ("split_by", "dev", "test", "message"),
    [
        ("image", 0.0, 0.1, r"dev is 0.0; allowed: a share above 0 and below 1"),
        ("image", 0.1, 1.0, r"test is 1.0; allowed"),
        ("image", ["voice 1"], 0.1, r"dev is \['voice 1'\]; allowed: a share .* \(names go with split_by speaker\)"),
        ("recording", 0.5, 0.5, r"dev \(0.5\) and test \(0.5\) leave nothing for train"),
        ("image", 1e-6, 0.1, r"no caption of 40 falls in dev; raise dev \(1e-06\) or test \(0.1\) or give more images"),
        ("speaker", 0.1, 0.1, r"dev is 0.1; split_by speaker takes names of speakers: 'voice 0', 'voice 1'"),
        ("speaker", ["voice 1"], [], r"test is \[\]; split_by speaker takes names"),
        ("speaker", ["voice 1"], ["Ann", "voice 0"], r"test names 'Ann', of whom there is no recording; known: 'voice"),
        ("speaker", ["voice 1"], ["voice 1"], r"'voice 1' would be in dev and in test"),
        ("speaker", ["voice 1"], ["voice 0", "voice 2", "voice 3"], r"no caption of 40 falls in train; name fewer"),
        ("voice", 0.1, 0.1, r"split_by is 'voice'; allowed: image, speaker, recording"),
    ],
)
def test_what_cannot_be_done_says_what_to_change(split_by: SplitBy, dev: float, test: float, message: str) -> None:
    with pytest.raises(SayseeError, match=message) as raised:
        assign_splits(corpus(10, 4), split_by, dev, test, seed=0)
    assert "\n" not in str(raised.value)


def test_a_small_corpus_is_told_the_seed_that_fills_all_splits() -> None:
    captions = corpus(6, 1)
    with pytest.raises(SayseeError, match=r"take seed (\d+) instead of 0") as raised:
        assign_splits(captions, "image", 0.1, 0.1, seed=0)
    named = re.search(r"take seed (\d+)", str(raised.value))
    assert named is not None
    drawn = assign_splits(captions, "image", 0.1, 0.1, seed=int(named[1]))
    assert {caption.split for caption in drawn} == set(SPLITS)


def test_by_speaker_every_caption_needs_one() -> None:
    nobody = SpokenCaption("x", Path("/x.ogg"), "x", Path("/x.jpg"), None, None, None, "train")
    with pytest.raises(SayseeError, match=r"1 of 13 captions, such as 'x', have no speaker"):
        assign_splits([*corpus(3, 4), nobody], "speaker", ["voice 1"], ["voice 2"], seed=0)


def test_by_recording_a_picture_with_one_recording_is_always_in_train() -> None:
    with pytest.raises(SayseeError, match="no caption of 500 falls in dev"):
        assign_splits(corpus(500, 1), "recording", 0.4, 0.4, seed=0)
