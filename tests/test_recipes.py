"""The recipes of the paper's scale: whose every value is, that they can be compared, and that each builds a model."""

import re
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from checkpoints import write_blip2, write_clip, write_hubert
from saysee.config import Config, bundled_configs, load_config
from saysee.models.retrieval_model import SpeechImageModel

RECIPES = [name for name in bundled_configs() if name.startswith(("flickr8k_", "spoken_coco_"))]
CORPORA = ("flickr8k", "spoken_coco")
CAPTIONS = {"flickr8k": 30_000, "spoken_coco": 567_000}
ORIGINS = r"\bours\b|\[(ALBEF|BLIP|SpeechCLIP|figure)\b[^\]]*\]"


def lines(name: str) -> list[str]:
    return (resources.files("saysee") / "configs" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()


def flat(config: Config) -> dict[str, Any]:
    """Every value by its dotted name."""

    def below(values: dict[str, Any], prefix: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in values.items():
            found |= below(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        return found

    return below(config.to_dict(), "")


def differences(one: str, other: str) -> set[str]:
    first, second = flat(load_config(one)), flat(load_config(other))
    return {name for name in first if first[name] != second[name]}


def test_the_recipes_are_those_of_the_tables() -> None:
    expected = {f"{corpus}_speechclip_parallel_{size}" for corpus in CORPORA for size in ("base", "large")}
    expected |= {f"{corpus}_coarse_to_fine_no_queue" for corpus in CORPORA}
    assert set(RECIPES) == expected | {"flickr8k_c2f_large", "flickr8k_c2f_base", "spoken_coco_c2f_large"}


@pytest.mark.parametrize("name", RECIPES)
def test_every_value_says_whose_it_is(name: str) -> None:
    valued = [line for line in lines(name) if re.match(r"\s*\w+: *[^#\s]", line)]
    assert len(valued) > 25
    assert [line for line in valued if not re.search(ORIGINS, line.partition("#")[2])] == []


@pytest.mark.parametrize("name", RECIPES)
def test_the_paper_is_credited_with_nothing_but_what_its_figure_shows(name: str) -> None:
    credited = {line.split(":")[0].strip() for line in lines(name) if re.search(r": .*#.*\[figure\]", line)}
    assert credited <= {"family", "tokens", "matching", "negatives"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_revision_is_pinned_or_it_is_said_that_none_is(name: str) -> None:
    model = load_config(name).model
    pinned = model.speech_backbone.revision is not None and model.image_backbone.revision is not None
    said = "# No revision of the two checkpoints is pinned here" in "\n".join(lines(name))
    assert pinned is not said


@pytest.mark.parametrize("corpus", CORPORA)
def test_without_the_queue_exactly_the_switched_parts_differ(corpus: str) -> None:
    """Then a difference in the table is one of the parts."""
    without = f"{corpus}_coarse_to_fine_no_queue"
    assert differences(f"{corpus}_c2f_large", without) == {"loss.queue_size", "loss.distillation_alpha"}
    assert not load_config(without).loss.uses_momentum


def test_base_and_large_differ_in_the_speech_encoder_alone() -> None:
    speech = "model.speech_backbone"
    assert differences("flickr8k_c2f_base", "flickr8k_c2f_large") == {f"{speech}.checkpoint", f"{speech}.fixed_mix"}


@pytest.mark.parametrize("size", ["base", "large"])
def test_speechclip_is_the_same_on_both_corpora(size: str) -> None:
    assert differences(*(f"{corpus}_speechclip_parallel_{size}" for corpus in CORPORA)) == set()


@pytest.mark.parametrize("name", [name for name in RECIPES if "speechclip" not in name])
def test_steps_are_whole_epochs_and_the_ramp_is_one(name: str) -> None:
    config = load_config(name)
    (captions,) = (count for corpus, count in CAPTIONS.items() if name.startswith(corpus))
    epoch = -(-captions // config.training.batch_size)
    assert config.loss.distillation_ramp_steps == epoch
    assert config.training.steps % epoch == 0
    assert config.training.warmup_steps % epoch == 0
    assert f"{config.training.steps // epoch} epochs" in "".join(line for line in lines(name) if " steps: " in line)
    assert config.loss.queue_size < captions / 2  # or it holds captions that are still in the same epoch's batches


@pytest.mark.parametrize("name", RECIPES)
def test_a_fixed_mix_has_a_weight_for_each_hidden_state_of_the_published_encoder(name: str) -> None:
    speech = load_config(name).model.speech_backbone
    states = {"facebook/hubert-base-ls960": 13, "facebook/hubert-large-ll60k": 25}[speech.checkpoint]
    if speech.fixed_mix is None:
        assert "speechclip" in name
    else:
        assert speech.fixed_mix == (1,) * states


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    write_hubert(folder / "base", "base")
    write_hubert(folder / "large", "large")
    write_blip2(folder / "blip2")
    write_clip(folder / "clip")
    return folder


@pytest.mark.parametrize("name", RECIPES)
def test_each_builds_its_model_on_small_checkpoints(name: str, folder: Path) -> None:
    recipe = load_config(name)
    size = "base" if "base" in recipe.model.speech_backbone.checkpoint else "large"
    overrides = [f"--model.speech_backbone.checkpoint={folder / size}"]
    overrides += [f"--model.image_backbone.checkpoint={folder / recipe.model.image_backbone.family}"]
    overrides += ["--model.width=48", f"--model.embedding_dim={20 if 'speechclip' in name else 16}"]
    if recipe.model.speech_backbone.fixed_mix is not None:
        overrides.append("--model.speech_backbone.fixed_mix=[1, 1, 1, 1]")
    config = load_config(name, overrides)
    model = SpeechImageModel.from_config(config)
    assert model.speech_backbone.dtype == model.image_backbone.dtype == torch.bfloat16
    generator = torch.Generator().manual_seed(0)
    recording = (0.1 * torch.randn(12_000, generator=generator)).numpy()
    speech, images = model.encode_speech(recording), model.encode_image(gradient())
    assert speech.embedding.shape == images.embedding.shape == (1, config.model.embedding_dim)
    assert speech.embedding.dtype == torch.float32
    if "speechclip" in name:
        assert (model.speech_backbone.num_layers, model.image_backbone.num_tokens) == (4, 1)
        assert model.multimodal_encoder is None
        assert model.temperature.requires_grad is (size == "large")
        own = model.image_backbone(model.image_backbone.prepare(gradient())[None])[:, 0].float()
        torch.testing.assert_close(images.embedding, F.normalize(own, dim=-1))
    else:
        assert (model.speech_backbone.num_layers, model.image_backbone.num_tokens) == (1, 17)
        assert model.match(speech, images).isfinite().all()


def gradient() -> Image.Image:
    return Image.linear_gradient("L").convert("RGB").resize((90, 64))
