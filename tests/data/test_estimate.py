"""The bytes that features will take, against those that they then take."""

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest

from media import write_image, write_wav
from saysee.data import estimate
from saysee.data.estimate import bytes_of_features, gigabytes
from saysee.data.extraction import extract_features
from saysee.data.manifest import ManifestError, SpokenCaption
from saysee.features.store import FeatureStore
from stubs import StubImageBackbone, StubSpeechBackbone


@pytest.fixture
def captions(tmp_path: Path) -> list[SpokenCaption]:
    """Twelve recordings of 0.5 to 6 s and four pictures."""
    captions = []
    for number in range(12):
        audio = write_wav(tmp_path / f"{number}.wav", 0.5 + 0.5 * number, frequency=200.0 + number)
        image = tmp_path / f"{number // 3}.png"
        if not image.exists():
            write_image(image, colour=f"hsl({50 * number}, 90%, 50%)")
        captions.append(SpokenCaption(f"c{number}", audio, image.name, image, None, None, None, "train"))
    return captions


def real(captions: list[SpokenCaption], cache: Path) -> int:
    """Bytes of the shards, once they are there; bad files have none."""
    backbones = StubSpeechBackbone(), StubImageBackbone()
    with contextlib.suppress(ManifestError):
        extract_features(captions, *backbones, cache)
    return sum(FeatureStore(cache, backbone.fingerprint).nbytes for backbone in backbones)


def expected(captions: list[SpokenCaption]) -> int:
    return bytes_of_features(captions, StubSpeechBackbone(), StubImageBackbone())


def test_the_estimate_is_what_they_take(captions: list[SpokenCaption], tmp_path: Path) -> None:
    """The shards' names and hashes are a few kilobytes more."""
    size = real(captions, tmp_path / "cache")
    assert expected(captions) == pytest.approx(size, rel=0.01)
    assert expected(captions) == 50 * 39 * 3 * 12 * 2 + 4 * 5 * 10 * 2  # frames, layers, width, bytes; pictures


def test_a_file_that_several_captions_share_counts_once(captions: list[SpokenCaption], tmp_path: Path) -> None:
    longest = captions[-1]
    again = [*captions, *(replace(longest, id=f"again {n}") for n in range(20))]
    assert expected(again) == expected(captions)
    assert real(again, tmp_path / "cache") == pytest.approx(expected(again), rel=0.01)


def test_a_bad_recording_counts_for_nothing(captions: list[SpokenCaption], tmp_path: Path) -> None:
    bad = tmp_path / "bad.wav"
    bad.write_text("this is no recording")
    more = [replace(captions[0], id="bad", audio=bad), replace(captions[0], id="none", audio=tmp_path / "none.wav")]
    assert expected([*captions, *more]) == pytest.approx(expected(captions), abs=1)
    assert real([*captions, *more], tmp_path / "cache") == pytest.approx(expected(captions), rel=0.01)


def test_a_recording_counts_as_long_as_the_backbone_hears_it(captions: list[SpokenCaption]) -> None:
    backbone = StubSpeechBackbone()
    backbone.max_samples = 16_000
    # half a second once, one second eleven times
    assert bytes_of_features(captions, backbone, StubImageBackbone()) == round(11.5 * 50 * 3 * 12 * 2) + 400


def test_a_large_corpus_is_judged_by_a_sample(captions: list[SpokenCaption], monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is drawn from the whole corpus, and the same each time."""
    decoded: list[str] = []

    def seconds(path: Path, _: int) -> float:
        decoded.append(path.name)
        return float(path.stem)

    monkeypatch.setattr(estimate, "_seconds", seconds)
    many = [replace(captions[0], id=f"{n}", audio=Path(f"/{n / 1_000}.wav")) for n in range(10_000)]
    first = expected(many)
    assert len(decoded) == len(set(decoded)) == estimate.SAMPLE
    assert first == expected(many)
    assert decoded[: estimate.SAMPLE] == decoded[estimate.SAMPLE :]
    # uniform lengths of 5 s on average: a standard deviation of 2.9 / sqrt(200) s
    assert first / (10_000 * 50 * 3 * 12 * 2) == pytest.approx(5, abs=4 * 2.9 / 200**0.5)


def test_nothing_takes_nothing() -> None:
    assert expected([]) == 0


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0.0 kB"), (1_234, "1.2 kB"), (5_600_000, "5.6 MB"), (205 * 10**9, "205.0 GB"), (6_800 * 10**9, "6.8 TB")],
)
def test_a_size_as_a_person_reads_it(count: int, text: str) -> None:
    assert gigabytes(count) == text
