"""The configuration: read, checked, overridden, written; every mistake is named."""

import json
from pathlib import Path

import pytest

from saysee.config import Config, bundled_configs, load_config
from saysee.errors import SayseeError


@pytest.mark.parametrize("name", bundled_configs())
def test_a_bundled_recipe_is_valid_and_survives_json(name: str) -> None:
    config = load_config(name)
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_overrides_win_over_the_file_and_keep_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("training: {steps: 7, seed: 3}\nmodel: {speech_backbone: {layers: [1, 2]}}\n")
    config = load_config(str(path), ["--training.steps", "9", "--loss.same_image", "excluded"])
    assert (config.training.steps, config.training.seed) == (9, 3)
    assert config.loss.same_image == "excluded"
    assert config.model.speech_backbone.layers == (1, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modle: {width: 8}", "modle"),
        ("model: {widht: 8}", "widht"),
        ("model: {width: wide}", "model.width"),
        ("model: {width: 10, heads: 4}", "ModelConfig.width is 10; allowed: a multiple of heads"),
        ("model: {initial_temperature: 0.9}", "initial_temperature is 0.9; allowed: from 0.001 to 0.5"),
        ("model: {speech_backbone: {layers: []}}", "layers"),
        ("model: {speech_backbone: {max_seconds: 31}}", "at most 30 for Whisper"),
        ("model: {image_backbone: {tokens: queries}}", "tokens"),
        ("model: {image_backbone: {family: blip2, tokens: pooled}}", "allowed: patches or queries for blip2"),
        ("model: {image_backbone: {family: clip, tokens: queries}}", "allowed: patches or pooled for clip"),
        ("model: {image_backbone: {precision: int8}}", "precision"),
        ("model: {image_projection: some}", "image_projection"),
        ("model: {speech_backbone: {fixed_mix: [1, -1]}}", "fixed_mix is (1.0, -1.0); allowed: weights of 0 or more"),
        ("model: {speech_backbone: {fixed_mix: [0, 0]}}", "not all 0"),
        ("model: {speech_backbone: {fixed_mix: []}}", "fixed_mix is (); allowed"),
        ("loss: {same_image: ignored}", "same_image"),
        ("loss: {queue_size: -1}", "LossConfig.queue_size is -1; allowed: 0 or more"),
        ("loss: {queue_size: 0, image_negatives_from: queue}", "`batch` when queue_size is 0"),
        ("loss: {image_negatives_from: queue, matching_loss: list}", "`batch` when matching_loss is list"),
        ("loss: {matching_loss: pairs}", "matching_loss"),
        ("loss: {distillation_alpha: 1.5}", "distillation_alpha is 1.5; allowed: from 0 to 1"),
        ("training: {learning_rate: 0}", "learning_rate is 0"),
        ("training: {betas: [0.9, 1.0]}", "betas"),
        ("training: {crop_seconds: 0}", "crop_seconds is 0.0; allowed: more than 0, or null"),
        ("training: {bucket_batches: 0}", "bucket_batches is 0; allowed: 1 or more"),
        ("training: {live_features: true, bucket_batches: 32}", "bucket_batches is 32; allowed: 1 with live_features"),
        ("search: {rerank: 0}", "rerank is 0"),
        ("augmentation: {noise: [5, 20]}", "noise"),
        ("augmentation: {variants: 2}", "variants is 2; allowed: 0 where no kind is on"),
        ("augmentation: {snr_db: [5, 20]}", "variants is 0; allowed: 1 or more with stored features"),
        ("augmentation: {variants: 1, snr_db: [20, 5]}", "two numbers from -20 to 60, the lower first, or null"),
        ("augmentation: {variants: 1, speed: [0.1, 1]}", "speed is (0.1, 1.0); allowed: two numbers from 0.5 to 2"),
        ("augmentation: {variants: 1, rt60_seconds: [0, 1]}", "rt60_seconds"),
        (
            "augmentation: {variants: 1, gain_db: [0, 1], probability: 0}",
            "probability is 0.0; allowed: above 0",
        ),
        ("augmentation: {variants: 1, codecs: [flac]}", "codecs"),
        ("augmentation: {variants: 1, codecs: [opus, opus]}", "allowed: each codec once"),
        (
            "{augmentation: {variants: 1, gain_db: [0, 1]}, training: {live_features: true}}",
            "variants is 1; allowed: 0 with live_features",
        ),
        ("model: {dropout: 0.999}", "dropout is 0.999; allowed: from 0 to 0.9"),
        ("training: {seed: 18446744073709551616}", "below 2^63"),
        ("training: 3", "training is 3; it is a section"),
        ("model: [1]", "model is [1]; it is a section"),
        ("model: {speech_backbone: whisper}", "model.speech_backbone is 'whisper'; it is a section, with keys such as"),
        ("- a list", "holds list"),
        ("model: [", "not valid YAML"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(SayseeError) as caught:
        load_config(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_folder_is_written_out_so_that_it_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hubert").mkdir()
    (tmp_path / "mine.yaml").write_text("model: {speech_backbone: {family: hubert, checkpoint: hubert}}")
    monkeypatch.chdir(tmp_path)
    assert load_config("mine.yaml").model.speech_backbone.checkpoint == str(tmp_path / "hubert")


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(SayseeError, match=r"bundled recipes:.*tiny"):
        load_config("no-such-recipe")
    with pytest.raises(SayseeError, match="unrecognized"):
        load_config("tiny", ["--training.stepz", "3"])
