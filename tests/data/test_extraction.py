"""All files of a manifest to features: stored once, or live; every bad file listed."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from command_line import contents, write_corpus
from media import BAD_PICTURES, BAD_RECORDINGS, write_wav
from saysee.config import AugmentationConfig
from saysee.data.extraction import (
    LiveAlterations,
    LiveFeatures,
    StoredVariants,
    extract_features,
    extract_variants,
    picture_encoder,
    recording_encoder,
    variant_encoder,
)
from saysee.data.manifest import ManifestError, SpokenCaption, read_manifest
from saysee.errors import SayseeError
from saysee.features.audio import load_waveform
from saysee.features.augmentation import alter, variant_number
from saysee.features.extract import in_process
from saysee.features.hashes import FileHashes, sha256
from saysee.features.image import load_image
from saysee.features.store import FeatureStore
from stubs import IMAGE_DIM, LAYERS, SPEECH_DIM, TOKENS, StubImageBackbone, StubSpeechBackbone


@pytest.fixture
def captions(tmp_path: Path) -> list[SpokenCaption]:
    return list(read_manifest(write_corpus(tmp_path / "corpus")).captions)


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that a test has just written count as old."""
    monkeypatch.setattr("saysee.features.hashes._RACY_NANOSECONDS", -1)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_features_are_those_of_the_backbones_in_float16(
    captions: list[SpokenCaption], tmp_path: Path, batch_size: int
) -> None:
    """Each recording without the padding of its group, whichever recordings are in the group."""
    for number, caption in enumerate(captions):
        write_wav(caption.audio, 0.2 + 0.1 * number, frequency=200.0 + number)
    speech_backbone, image_backbone, cache = StubSpeechBackbone(), StubImageBackbone(), tmp_path / "cache"
    runs = (
        in_process(recording_encoder(speech_backbone, batch_size), cache),
        in_process(picture_encoder(image_backbone, batch_size), cache),
    )
    speech, images = extract_features(captions, speech_backbone, image_backbone, cache, runs=runs)
    for number, caption in enumerate(captions):
        hidden, _ = speech_backbone([speech_backbone.prepare(load_waveform(caption.audio))])
        tokens = image_backbone(image_backbone.prepare(load_image(caption.image))[None])
        assert speech[caption.audio].shape == (LAYERS, 10 + 5 * number, SPEECH_DIM)
        assert images[caption.image].shape == (TOKENS, IMAGE_DIM)
        assert (speech.frames(caption.audio), images.frames(caption.image)) == (10 + 5 * number, TOKENS)
        assert speech[caption.audio].dtype == images[caption.image].dtype == torch.float16
        torch.testing.assert_close(speech[caption.audio].float(), hidden[0], atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(images[caption.image].float(), tokens[0], atol=1e-3, rtol=1e-3)


class Bfloat16Backbone(StubImageBackbone):
    """Computes in bfloat16, as on a GPU."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return super().forward(pixels).bfloat16()


def test_what_was_computed_in_bfloat16_is_stored_in_it(captions: list[SpokenCaption], tmp_path: Path) -> None:
    """Float16 would keep no more digits, and overflow sooner."""
    _, images = extract_features(captions, StubSpeechBackbone(), Bfloat16Backbone(), tmp_path)
    backbone = Bfloat16Backbone()
    for caption in captions:
        tokens = backbone(backbone.prepare(load_image(caption.image))[None])
        assert images[caption.image].dtype == torch.bfloat16
        assert torch.equal(images[caption.image], tokens[0])


@pytest.mark.usefixtures("settled")
def test_what_is_stored_is_not_decoded_again(
    captions: list[SpokenCaption], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = extract_features(captions, StubSpeechBackbone(), StubImageBackbone(), tmp_path / "cache")

    def unexpected(path: Path, *_: object) -> NoReturn:
        raise AssertionError(f"{path} is read again")

    for name in ("load_waveform", "load_image", "read_bytes"):
        monkeypatch.setattr(f"saysee.data.extraction.{name}", unexpected)
    second = extract_features(captions, StubSpeechBackbone(), StubImageBackbone(), tmp_path / "cache")
    for before, after, name in zip(first, second, ("audio", "image"), strict=True):
        for path in (getattr(caption, name) for caption in captions):
            assert before.content(path) == after.content(path)
            assert torch.equal(before[path], after[path])


def test_another_backbone_gets_features_of_its_own(captions: list[SpokenCaption], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    plain, changed = StubSpeechBackbone(), StubSpeechBackbone()
    with torch.no_grad():
        next(changed.parameters()).add_(1)
    before, _ = extract_features(captions, plain, StubImageBackbone(), cache)
    after, _ = extract_features(captions, changed, StubImageBackbone(), cache)
    assert not torch.equal(before[captions[0].audio], after[captions[0].audio])
    again, _ = extract_features(captions, plain, StubImageBackbone(), cache)
    assert torch.equal(again[captions[0].audio], before[captions[0].audio])


def with_bad_files(captions: list[SpokenCaption], folder: Path) -> tuple[list[SpokenCaption], list[Path]]:
    """The captions and one for each kind of bad file; with the paths of those."""
    bad: list[Path] = []
    more: list[SpokenCaption] = []
    for kind, contents_of, ending in (("audio", BAD_RECORDINGS, "wav"), ("image", BAD_PICTURES, "png")):
        for number, make in enumerate(contents_of.values()):
            path = folder / f"bad {number}.{ending}"
            path.write_bytes(make())
            flawed = replace(captions[0], audio=path) if kind == "audio" else replace(captions[0], image=path)
            more.append(replace(flawed, id=path.name))
            bad.append(path)
    missing = folder / "missing.wav"
    return [*captions, *more, replace(captions[0], id="missing", audio=missing)], [*bad, missing]


def test_every_bad_file_is_listed_at_once_and_the_good_ones_are_kept(
    captions: list[SpokenCaption], tmp_path: Path
) -> None:
    flawed, bad = with_bad_files(captions, tmp_path)
    cache = tmp_path / "cache"
    with pytest.raises(ManifestError) as caught:
        extract_features(flawed, StubSpeechBackbone(), StubImageBackbone(), cache)
    faults = caught.value.faults
    assert len(faults) == len(bad)
    for path in bad:
        assert sum(fault.startswith(f"{path}: ") for fault in faults) == 1
    assert not any("\n" in fault for fault in faults)
    for backbone in (StubSpeechBackbone(), StubImageBackbone()):
        assert len(FeatureStore(cache, backbone.fingerprint)) == 12


# ---- live features


@pytest.mark.parametrize("batch_size", [1, 5])
def test_live_features_are_the_stored_ones(captions: list[SpokenCaption], tmp_path: Path, batch_size: int) -> None:
    """Up to rounding; in the order asked for, also where a file stands twice; and nothing is written."""
    speech, images = StubSpeechBackbone(), StubImageBackbone()
    stored = extract_features(captions, speech, images, tmp_path / "cache")
    hashes = FileHashes(tmp_path / "live")
    encoders = recording_encoder(speech, batch_size), picture_encoder(images, batch_size)
    for there, encoder, name in zip(stored, encoders, ("audio", "image"), strict=True):
        live = LiveFeatures(encoder, hashes)
        paths = [getattr(captions[row], name) for row in (3, 0, 3, 7, 1, 11, 2, 0)]
        for received, expected in zip(live.read(paths), there.read(paths), strict=True):
            assert (received.shape, received.dtype) == (expected.shape, expected.dtype)
            torch.testing.assert_close(received, expected, atol=1e-3, rtol=2e-3)
        assert [live.content(path) for path in paths] == [there.content(path) for path in paths]
        assert live.frames(paths[0]) == 0
    assert not (tmp_path / "live").exists()


def test_a_file_that_stands_twice_is_encoded_once(captions: list[SpokenCaption], tmp_path: Path) -> None:
    encoder, seen = picture_encoder(StubImageBackbone(), 2), list[int]()

    def encode(pixels: list[torch.Tensor]) -> list[torch.Tensor]:
        seen.append(len(pixels))
        return list(encoder.encode(pixels))

    live = LiveFeatures(replace(encoder, encode=encode), FileHashes(tmp_path))  # type: ignore[arg-type]
    live.read([captions[row].image for row in (0, 1, 0, 2, 1)])
    assert seen == [2, 1]


def test_bad_files_of_a_live_batch_are_all_listed(captions: list[SpokenCaption], tmp_path: Path) -> None:
    flawed, bad = with_bad_files(captions, tmp_path)
    for encoder, name, ending in (
        (recording_encoder(StubSpeechBackbone(), 4), "audio", ".wav"),
        (picture_encoder(StubImageBackbone(), 4), "image", ".png"),
    ):
        with pytest.raises(ManifestError) as caught:
            LiveFeatures(encoder, FileHashes(tmp_path)).read([getattr(caption, name) for caption in flawed])
        expected = [path for path in bad if path.suffix == ending]
        assert len(caught.value.faults) == len(expected)
        assert all(fault.startswith(f"{path}: ") for fault, path in zip(caught.value.faults, expected, strict=True))


@pytest.mark.usefixtures("settled")
def test_the_content_of_a_live_file_is_hashed_once(captions: list[SpokenCaption], tmp_path: Path) -> None:
    encoder, path = picture_encoder(StubImageBackbone()), captions[0].image
    asked: list[Path] = []

    def read(path: Path) -> bytes:
        asked.append(path)
        return encoder.read(path)

    live = LiveFeatures(replace(encoder, read=read), FileHashes(tmp_path))
    before = live.content(path)
    assert live.content(path) == before
    assert asked == [path]
    path.write_bytes(path.read_bytes() + b"more")
    assert live.content(path) != before
    assert len(asked) == 2
    with pytest.raises(SayseeError, match="missing"):
        live.content(tmp_path / "missing.png")


def test_extraction_leaves_nothing_but_shards_and_hashes(captions: list[SpokenCaption], tmp_path: Path) -> None:
    extract_features(captions, StubSpeechBackbone(), StubImageBackbone(), tmp_path / "cache")
    assert len(contents(tmp_path / "cache")) in (2, 3)  # files that are younger than two seconds are not remembered


# ---- altered recordings

NOISY = AugmentationConfig(probability=1.0, variants=2, snr_db=(0.0, 30.0), speed=(0.8, 1.2))


def prepared(backbone: StubSpeechBackbone, waveform: NDArray[np.float32]) -> torch.Tensor:
    """What the stub encoder makes of a waveform, as it is stored."""
    hidden: torch.Tensor = backbone([backbone.prepare(waveform)])[0]
    return hidden[0].half()


def test_stored_variants_are_altered_copies_beside_the_recordings_themselves(
    captions: list[SpokenCaption], tmp_path: Path
) -> None:
    backbone, cache = StubSpeechBackbone(), tmp_path / "cache"
    speech, _ = extract_features(captions, backbone, StubImageBackbone(), cache)
    variants = extract_variants(captions, backbone, NOISY, cache)
    assert len(variants) == 2
    audio = captions[0].audio
    number = variant_number(sha256(audio.read_bytes()), 2)
    assert variants[1][audio].equal(prepared(backbone, alter(load_waveform(audio), NOISY, number)))
    assert speech[audio].equal(prepared(backbone, load_waveform(audio)))

    altered = StoredVariants([speech, *variants])
    read = altered.read([audio] * 4, [0.0, 0.34, 0.67, 0.999])
    expected = [speech[audio], variants[0][audio], variants[1][audio], variants[1][audio]]
    assert all(one.equal(other) for one, other in zip(read, expected, strict=True))


@pytest.mark.usefixtures("settled")
def test_variants_are_extracted_once_and_more_of_them_keep_the_first(
    captions: list[SpokenCaption], tmp_path: Path
) -> None:
    def never(units: Iterator[Sequence[Path]]) -> Iterator[NoReturn]:
        assert list(units) == []
        yield from ()

    backbone, cache = StubSpeechBackbone(), tmp_path / "cache"
    first = extract_variants(captions, backbone, NOISY, cache)
    encoder = variant_encoder(backbone, NOISY, 3)
    runs = [never, never, in_process(encoder, cache)]
    more = extract_variants(captions, backbone, replace(NOISY, variants=3), cache, runs=runs)
    for one, other in zip(first, more, strict=False):
        assert one[captions[0].audio].equal(other[captions[0].audio])


def test_bad_recordings_of_variants_are_all_listed(captions: list[SpokenCaption], tmp_path: Path) -> None:
    for caption in captions[:2]:
        caption.audio.write_bytes(BAD_RECORDINGS["a text"]())
    with pytest.raises(ManifestError) as caught:
        extract_variants(captions, StubSpeechBackbone(), NOISY, tmp_path / "cache")
    assert len(caught.value.faults) == 2


@pytest.mark.parametrize("batch_size", [1, 3])
def test_live_alterations_are_decided_by_the_draw_and_not_by_the_batch(
    captions: list[SpokenCaption], batch_size: int
) -> None:
    backbone, paths = StubSpeechBackbone(), [caption.audio for caption in captions[:4]]
    live = LiveAlterations(backbone, replace(NOISY, variants=0), batch_size)
    draws = [0.1, 0.2, 0.3, 0.4]
    together = live.read([*paths, paths[0]], [*draws, 0.5])
    for path, draw, features in zip([*paths, paths[0]], [*draws, 0.5], together, strict=True):
        assert features.equal(prepared(backbone, alter(load_waveform(path), NOISY, int(draw * 2**53))))
        assert live.read([path], [draw])[0].equal(features)
    assert not together[0].equal(together[4])
    paths[1].write_bytes(b"")
    with pytest.raises(ManifestError, match=re.escape(f"{paths[1]}: is empty")):
        live.read(paths, draws)
