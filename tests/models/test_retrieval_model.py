"""The model as a user sees it: one way to encode whatever comes in, and a folder that is trusted only when whole."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from media import sine, write_image
from saysee.config import Config
from saysee.errors import AudioError, SayseeError
from saysee.models.backbones import load_speech_backbone
from saysee.models.model_folder import hash_tensors
from saysee.models.retrieval_model import SpeechImageModel
from saysee.models.speech_encoder import SpeechEncoding
from stubs import LAYERS, small_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder on the bundled encoders."""
    torch.manual_seed(0)
    sizes = {"width": 16, "embedding_dim": 8, "heads": 2}
    model = SpeechImageModel.from_config(Config.from_dict({"model": sizes}))
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    return path


def noise(seconds: float, seed: int) -> np.ndarray:
    values: np.ndarray = np.random.default_rng(seed).normal(0, 0.1, int(16_000 * seconds)).astype(np.float32)
    return values


def test_paths_arrays_and_dictionaries_are_the_same_recording(tmp_path: Path) -> None:
    model = small_model()
    samples = noise(0.7, 0)
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    from_path = model.encode_speech(tmp_path / "a.wav")
    from_text = model.encode_speech(str(tmp_path / "a.wav"))
    from_array = model.encode_speech(samples)
    from_dictionary = model.encode_speech({"array": samples, "sampling_rate": 16_000})
    for other in (from_text, from_array, from_dictionary):
        torch.testing.assert_close(from_path.embedding, other.embedding, atol=1e-3, rtol=0)


def test_a_recording_at_another_rate_is_resampled() -> None:
    model = small_model()
    at_16, at_48 = sine(0.5, 16_000), sine(0.5, 48_000)
    one = model.encode_speech({"array": at_16, "sampling_rate": 16_000})
    other = model.encode_speech({"array": at_48, "sampling_rate": 48_000})
    assert (one.embedding @ other.embedding.T).item() > 0.99


@pytest.mark.parametrize("kind", ["stub", "bundled"])
def test_an_embedding_does_not_depend_on_its_neighbours_or_the_batch_size(kind: str, folder: Path) -> None:
    model = small_model() if kind == "stub" else SpeechImageModel.from_pretrained(folder)
    recordings = [noise(seconds, seed) for seed, seconds in enumerate((0.3, 1.9, 0.8, 0.5))]
    together = model.encode_speech(recordings)
    for batch_size in (1, 3):
        parts = model.encode_speech(recordings, batch_size=batch_size)
        cosine = (together.embedding * parts.embedding).sum(1)
        assert cosine.min().item() > 1 - 1e-4
        assert torch.equal(together.mask, parts.mask)


def test_similarity_and_match_agree_with_their_parts(tmp_path: Path) -> None:
    model = small_model()
    write_image(tmp_path / "red.png")
    speech = model.encode_speech([noise(0.5, 1), noise(0.5, 2)])
    images = model.encode_image([tmp_path / "red.png", Image.new("RGB", (30, 30), "blue")])
    torch.testing.assert_close(model.similarity(speech, images), speech.embedding @ images.embedding.T)
    both = model.match(speech, images)
    swapped = model.match(SpeechEncoding(*(field.flip(0) for field in speech)), images)
    assert both.shape == (2,)
    assert not torch.allclose(both, swapped)


def test_a_picture_is_the_same_by_path_and_in_memory(tmp_path: Path) -> None:
    """Alpha over white, 16 bits and EXIF orientation count for an image in memory too."""
    picture = Image.new("RGBA", (40, 30), (255, 0, 0, 60))
    picture.save(tmp_path / "clear.png")
    model = small_model()
    by_path = model.encode_image(tmp_path / "clear.png")
    in_memory = model.encode_image(Image.open(tmp_path / "clear.png"))
    assert torch.equal(by_path.embedding, in_memory.embedding)


def test_nothing_to_encode_is_said() -> None:
    with pytest.raises(SayseeError, match="nothing to encode"):
        small_model().encode_speech([])
    with pytest.raises(SayseeError, match="nothing to encode"):
        small_model().encode_image([])


def test_encoding_leaves_the_mode_as_it_was() -> None:
    model = small_model(dropout=0.5).train()
    first, second = model.encode_speech(noise(0.5, 0)), model.encode_speech(noise(0.5, 0))
    assert torch.equal(first.embedding, second.embedding)
    assert model.training


def test_mistakes_are_named() -> None:
    model = small_model()
    speech, images = model.encode_speech([noise(0.5, 0)]), model.encode_image([Image.new("RGB", (20, 20))] * 2)
    with pytest.raises(SayseeError, match="1 recordings and 2 pictures"):
        model.match(speech, images)
    with pytest.raises(SayseeError, match="no fine stage"):
        small_model(matching=False).match(speech, images)
    with pytest.raises(AudioError, match="silent"):
        model.encode_speech(np.zeros(16_000, dtype=np.float32))


def test_saved_and_read_again_it_gives_the_same_bits(folder: Path, tmp_path: Path) -> None:
    model = SpeechImageModel.from_pretrained(folder)
    model.save_pretrained(tmp_path / "copy")
    copy = SpeechImageModel.from_pretrained(tmp_path / "copy")
    assert copy.fingerprint == model.fingerprint
    assert (tmp_path / "copy" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    recording, picture = noise(1, 0), Image.new("RGB", (50, 50), "green")
    assert torch.equal(model.encode_speech(recording).embedding, copy.encode_speech(recording).embedding)
    assert torch.equal(model.encode_image(picture).hidden, copy.encode_image(picture).hidden)


def test_the_fingerprint_is_the_one_of_before_where_nothing_that_is_new_is_switched_on() -> None:
    """Or every index that was made with 0.1.0 would be of another model."""
    model = small_model()
    section = {
        "speech_backbone": {
            "family": "whisper",
            "checkpoint": "bundled",
            "revision": None,
            "layers": "all",
            "pool": 1,
            "max_seconds": 30.0,
        },
        "image_backbone": {"family": "efficientnet", "checkpoint": "bundled", "revision": None, "tokens": "patches"},
        "width": 16,
        "embedding_dim": 8,
        "heads": 2,
        "speech_layers": 1,
        "multimodal_layers": 2,
        "feedforward_ratio": 4,
        "dropout": 0.0,
        "normalize_speech_layers": False,
        "initial_temperature": 0.07,
        "learn_temperature": True,
        "temperature_range": [0.001, 0.5],
    }
    parts = (
        hash_tensors(model.trainable_state()),
        model.speech_backbone.fingerprint,
        model.image_backbone.fingerprint,
        json.dumps(section, sort_keys=True),
    )
    assert model.fingerprint == hashlib.sha256("".join(parts).encode()).hexdigest()
    speech = replace(model.config.model.speech_backbone, fixed_mix=(1.0,) * LAYERS)
    model.config = replace(model.config, model=replace(model.config.model, speech_backbone=speech))
    assert model.fingerprint != hashlib.sha256("".join(parts).encode()).hexdigest()


def test_the_folder_holds_the_trainable_parts_alone(folder: Path) -> None:
    names = load_file(folder / "model.safetensors").keys()
    assert not any("backbone" in name for name in names)
    assert {name.split(".")[0] for name in names} == {
        "speech_encoder",
        "image_encoder",
        "multimodal_encoder",
        "temperature",
    }


def copy_of(folder: Path, to: Path) -> Path:
    to.mkdir()
    for name in ("config.json", "model.safetensors"):
        (to / name).write_bytes((folder / name).read_bytes())
    return to


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, tmp_path: Path, name: str) -> None:
    copy = copy_of(folder, tmp_path / "m")
    (copy / name).unlink()
    with pytest.raises(SayseeError, match=f"{name} is missing"):
        SpeechImageModel.from_pretrained(copy)


def test_an_altered_byte_is_found_wherever_it_is(folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        original = (folder / name).read_bytes()
        for at in (len(original) // 2, len(original) - 3):
            copy = copy_of(folder, tmp_path / f"{name}-{at}")
            altered = bytearray(original)
            altered[at] ^= 1
            (copy / name).write_bytes(altered)
            with pytest.raises(SayseeError, match="altered or damaged"):
                SpeechImageModel.from_pretrained(copy)


def test_a_newer_format_says_so(folder: Path, tmp_path: Path) -> None:
    copy = copy_of(folder, tmp_path / "m")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "format_version": 99}))
    with pytest.raises(SayseeError, match="model format 99; this saysee reads format 1"):
        SpeechImageModel.from_pretrained(copy)


def test_a_renamed_tensor_is_named_even_with_hashes_that_fit(folder: Path, tmp_path: Path) -> None:
    copy = copy_of(folder, tmp_path / "m")
    state = load_file(copy / "model.safetensors")
    state["speech_encoder.clz"] = state.pop("speech_encoder.cls")
    config_hash = hashlib.sha256((copy / "config.json").read_bytes()).hexdigest()
    hashes = {"tensors_sha256": hash_tensors(state), "config_sha256": config_hash}
    save_file(state, copy / "model.safetensors", {"saysee": json.dumps(hashes)})
    with pytest.raises(SayseeError, match=r"speech_encoder\.cls is missing; speech_encoder\.clz is unexpected"):
        SpeechImageModel.from_pretrained(copy)


def test_a_backbone_that_is_another_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from saysee.models import retrieval_model

    original = load_speech_backbone

    def other(config):  # type: ignore[no-untyped-def]
        backbone = original(config)
        next(backbone.parameters()).data.add_(0.5)
        return backbone

    monkeypatch.setattr(retrieval_model, "load_speech_backbone", other)
    with pytest.raises(SayseeError, match="the speech backbone found has fingerprint"):
        SpeechImageModel.from_pretrained(folder)


def test_the_fingerprint_follows_every_trainable_tensor() -> None:
    seen = {small_model().fingerprint}
    names = list(small_model().trainable_state())
    for name in names:
        model = small_model()
        model.trainable_state()[name].view(-1)[0] += 1
        seen.add(model.fingerprint)
    assert len(seen) == len(names) + 1
