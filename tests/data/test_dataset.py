"""Captions with their features: what a sample is, and how all files of a manifest become features."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from command_line import contents, write_corpus
from media import BAD_PICTURES, BAD_RECORDINGS
from saysee.data.dataset import PairDataset, extract_features
from saysee.data.manifest import ManifestError, SpokenCaption, read_manifest
from saysee.features.audio import load_waveform
from saysee.features.image import load_image
from stubs import IMAGE_DIM, LAYERS, SPEECH_DIM, TOKENS, StubImageBackbone, StubSpeechBackbone


@pytest.fixture
def captions(tmp_path: Path) -> list[SpokenCaption]:
    return list(read_manifest(write_corpus(tmp_path / "corpus")).captions)


class Numbered:
    """Features that tell which file they are of."""

    def __getitem__(self, path: Path) -> Tensor:
        return torch.full((2, 3), int(path.stem), dtype=torch.float16)


def test_a_sample_is_a_caption_with_the_features_of_both_its_files() -> None:
    names = ["b", "a", "c", "a"]  # the same picture has one number, in whatever order it comes
    captions = [
        SpokenCaption(f"c{row}", Path(f"/{row}.wav"), name, Path(f"/{10 + ord(name)}.png"), None, None, None, "train")
        for row, name in enumerate(names)
    ]
    for order in (captions, captions[::-1]):
        dataset = PairDataset(order, Numbered(), Numbered())
        samples = {sample.caption_id: sample for sample in (dataset[row] for row in range(len(dataset)))}
        assert [samples[f"c{row}"].image_id for row in range(4)] == [1, 0, 2, 0]
        assert [int(samples[f"c{row}"].speech[0, 0]) for row in range(4)] == [0, 1, 2, 3]
        assert [int(samples[f"c{row}"].image_tokens[0, 0]) for row in range(4)] == [10 + ord(name) for name in names]


def test_image_tokens_are_read_again_by_number() -> None:
    captions = [
        SpokenCaption(f"c{row}", Path("/0.wav"), name, Path(f"/{ord(name)}.png"), None, None, None, "train")
        for row, name in enumerate("bac")
    ]
    tokens = PairDataset(captions, Numbered(), Numbered()).image_tokens(torch.tensor([2, 0, 2]))
    assert tokens.dtype == torch.float32
    assert tokens[:, 0, 0].tolist() == [ord("c"), ord("a"), ord("c")]


def test_features_are_those_of_the_backbones_in_float16(captions: list[SpokenCaption], tmp_path: Path) -> None:
    """Each recording without the padding of its group, whichever recordings are in the group."""
    speech_backbone, image_backbone = StubSpeechBackbone(), StubImageBackbone()
    speech, images = extract_features(captions, speech_backbone, image_backbone, tmp_path / "cache")
    for caption in captions:
        hidden, _ = speech_backbone([speech_backbone.prepare(load_waveform(caption.audio))])
        tokens = image_backbone(image_backbone.prepare(load_image(caption.image))[None])
        assert speech[caption.audio].shape == (LAYERS, 25, SPEECH_DIM)
        assert images[caption.image].shape == (TOKENS, IMAGE_DIM)
        assert speech[caption.audio].dtype == images[caption.image].dtype == torch.float16
        torch.testing.assert_close(speech[caption.audio].float(), hidden[0], atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(images[caption.image].float(), tokens[0], atol=1e-3, rtol=1e-3)


def test_what_is_cached_is_not_decoded_again(
    captions: list[SpokenCaption], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = extract_features(captions, StubSpeechBackbone(), StubImageBackbone(), tmp_path / "cache")

    def unexpected(path: Path) -> None:
        raise AssertionError(f"{path} is decoded again")

    monkeypatch.setattr("saysee.data.dataset.load_waveform", unexpected)
    monkeypatch.setattr("saysee.data.dataset.load_image", unexpected)
    second = extract_features(captions, StubSpeechBackbone(), StubImageBackbone(), tmp_path / "cache")
    for before, after in zip(first, second, strict=True):
        assert before.content == after.content
        assert all(torch.equal(before[path], after[path]) for path in before.content)


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


def test_every_bad_file_is_listed_at_once_and_the_good_ones_are_kept(
    captions: list[SpokenCaption], tmp_path: Path
) -> None:
    bad: list[str] = []
    for number, make in enumerate(BAD_RECORDINGS.values()):
        path = tmp_path / f"bad {number}.wav"
        path.write_bytes(make())
        captions.append(replace(captions[0], id=path.name, audio=path))
        bad.append(str(path))
    for number, make in enumerate(BAD_PICTURES.values()):
        path = tmp_path / f"bad {number}.png"
        path.write_bytes(make())
        captions.append(replace(captions[0], id=path.name, image=path))
        bad.append(str(path))
    captions.append(replace(captions[0], id="missing", audio=tmp_path / "missing.wav"))
    with pytest.raises(ManifestError) as caught:
        extract_features(captions, StubSpeechBackbone(), StubImageBackbone(), tmp_path / "cache")
    faults = caught.value.faults
    assert len(faults) == len(bad) + 1
    for name in [*bad, str(tmp_path / "missing.wav")]:
        assert sum(fault.startswith(f"{name}: ") for fault in faults) == 1
    assert not any("\n" in fault for fault in faults)
    assert len(contents(tmp_path / "cache")) == 24  # 12 recordings and 12 pictures
