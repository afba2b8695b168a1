"""Calibration: probabilities against theory, measured scores against a loop over pairs, and the file between them."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist, mean, stdev
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from saysee.data.manifest import SpokenCaption
from saysee.errors import SayseeError
from saysee.evaluation import calibration as measuring
from saysee.evaluation.calibration import CalibrationError, calibrate
from saysee.models.calibration import CALIBRATION_FILE, Calibration, read_calibration, standardised
from saysee.models.retrieval_model import SpeechImageModel
from stubs import IMAGE_DIM, LAYERS, SPEECH_DIM, TOKENS, MemoryFeatures, small_model

PERCENTILES = [level / 100 for level in range(100)]


def exponential() -> Calibration:
    """The calibration of scores with P(score >= s) = exp(-s), whose mean excess over any threshold is 1."""
    return Calibration("a model", 100, 100, 9900, tuple(-math.log(1 - level) for level in PERCENTILES), 1.0)


def normal() -> Calibration:
    """The calibration of standard normal scores; the mean excess over u is density(u) / P(score > u) - u."""
    scores = NormalDist()
    quantiles = [-5.0, *(scores.inv_cdf(level) for level in PERCENTILES[1:])]
    return Calibration("a model", 100, 100, 9900, tuple(quantiles), scores.pdf(quantiles[-1]) / 0.01 - quantiles[-1])


# ---- probabilities


@pytest.mark.parametrize("pictures", [1, 7, 1000, 10**6])
@pytest.mark.parametrize("level", [0.01, 0.5, 0.98, 0.99])
def test_the_chance_of_exponential_scores_is_what_theory_says(level: float, pictures: int) -> None:
    best = -math.log(1 - level)
    assert exponential().chance(best, pictures) == pytest.approx(1 - level**pictures, abs=1e-9)
    # beyond the threshold too, where the probability is too small for 1 - P
    assert exponential().chance(45.0, pictures) == pytest.approx(pictures * math.exp(-45), rel=1e-6, abs=0)


@pytest.mark.parametrize("pictures", [10, 100, 1000])
def test_galleries_in_which_nothing_fits_are_told_so(pictures: int) -> None:
    """The chance of the best of N mismatched is uniform: below p in p of the galleries."""
    generator = np.random.default_rng(0)
    drawn = {
        "exponential": (exponential(), generator.standard_exponential((4000, pictures))),
        "normal": (normal(), generator.standard_normal((4000, pictures))),
    }
    for name, (calibration, scores) in drawn.items():
        chances = np.array([calibration.chance(float(best), pictures) for best in scores.max(1)])
        for p in (0.1, 0.5, 0.9):
            # of 4,000 galleries 4 deviations are 0.03; a normal tail is thinner than an exponential one, so that far
            # out a fitting picture is missed rather than one that does not fit praised
            slack = 0.06 if name == "normal" and pictures == 1000 else 0.03
            assert p - slack < (chances < p).mean() < p + 0.03, (name, p)


def test_a_fitting_picture_is_told_from_a_hundred_mismatched() -> None:
    assert normal().chance(6.0, 100) < 0.01
    assert normal().chance(2.0, 100) > 0.8


@given(st.floats(-10, 60), st.floats(0, 10), st.integers(1, 10**7), st.integers(0, 10**7))
def test_the_chance_falls_with_the_score_and_rises_with_the_gallery(
    best: float, better: float, pictures: int, more: int
) -> None:
    for calibration in (normal(), exponential()):
        chance = calibration.chance(best, pictures)
        assert 0 <= chance <= 1
        assert calibration.chance(best + better, pictures) <= chance
        assert calibration.chance(best, pictures + more) >= chance


def test_bulk_and_tail_meet_at_the_threshold() -> None:
    for calibration in (normal(), exponential()):
        threshold = calibration.quantiles[-1]
        assert calibration.tail(threshold) == pytest.approx(0.01)
        assert calibration.tail(threshold - 1e-9) == pytest.approx(0.01)
        assert calibration.tail(calibration.quantiles[0] - 1) == 1


def test_a_score_counts_deviations_from_the_background() -> None:
    background = torch.tensor([[0.0, 2.0, 4.0], [1.0, 1.0, 1.0]])
    scores = standardised(torch.tensor([[4.0, 6.0], [1.0, 1.0]]), background)
    assert scores.tolist() == [[1.0, 2.0], [0.0, 0.0]]


# ---- measuring


class Split:
    """A made-up split with two captions for every picture, whose features have something in common."""

    def __init__(self, images: int) -> None:
        generator = torch.Generator().manual_seed(5)
        self.captions: list[SpokenCaption] = []
        speech: dict[Path, Tensor] = {}
        pictures: dict[Path, Tensor] = {}
        for i in range(images):
            image = Path(f"/images/{i}.jpg")
            pictures[image] = torch.randn(TOKENS, IMAGE_DIM, generator=generator)
            for c in range(2):
                audio = Path(f"/audio/{i}-{c}.wav")
                speech[audio] = torch.randn(LAYERS, 2 + i % 3, SPEECH_DIM, generator=generator)
                self.captions.append(SpokenCaption(f"{i}-{c}", audio, f"image {i}", image, None, None, None, "dev"))
        self.speech, self.images = MemoryFeatures(speech), MemoryFeatures(pictures)

    def calibrated(self, model: SpeechImageModel, **options: int) -> Calibration:
        return calibrate(model, self.captions, self.speech, self.images, **options)


def pair_by_pair(model: SpeechImageModel, split: Split) -> list[float]:
    """The scores of all mismatched pairs, each from two embeddings and plain Python."""
    model.eval()
    scores = []
    with torch.inference_mode():
        pictures = {
            path: model.image_encoder(tokens[None]).embedding[0] for path, tokens in split.images.tensors.items()
        }
        for caption in split.captions:
            clip = split.speech.tensors[caption.audio][None]
            spoken = model.speech_encoder(clip, torch.ones(1, clip.shape[2], dtype=torch.bool)).embedding[0]
            others = [float(spoken @ picture) for path, picture in pictures.items() if path != caption.image]
            scores += [(value - mean(others)) / stdev(others) for value in others]
    return scores


def test_pictures_of_one_concept_are_no_mismatch() -> None:
    """With each picture's concept that of another, what is compared with are all pictures but the two."""
    model, split = small_model(0), Split(80)
    pairs = split.calibrated(model).pairs
    split.captions = [replace(c, concept=str(int(c.image_id.split()[1]) // 2)) for c in split.captions]
    assert split.calibrated(model).pairs == pairs - len(split.captions)


def test_scores_are_those_of_a_loop_over_mismatched_pairs() -> None:
    model, split = small_model(), Split(40)
    calibration = split.calibrated(model, batch_size=7)
    scores = pair_by_pair(model, split)
    assert (calibration.recordings, calibration.pictures, calibration.pairs) == (80, 40, 80 * 39)
    assert calibration.pairs == len(scores)
    assert calibration.model_fingerprint == model.fingerprint
    np.testing.assert_allclose(calibration.quantiles, np.quantile(scores, PERCENTILES), atol=1e-4)
    beyond = [score - calibration.quantiles[-1] for score in scores if score > calibration.quantiles[-1]]
    assert calibration.mean_excess == pytest.approx(mean(beyond), abs=1e-4)
    assert calibration.tail(float(np.quantile(scores, 0.7))) == pytest.approx(0.3, abs=0.001)


def test_how_many_are_encoded_together_changes_nothing() -> None:
    model, split = small_model(), Split(33)
    for one, other in zip(
        split.calibrated(model).quantiles, split.calibrated(model, batch_size=1).quantiles, strict=True
    ):
        assert one == pytest.approx(other, abs=1e-4)


def test_of_a_large_split_a_part_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    model, split = small_model(), Split(60)
    whole = split.calibrated(model)
    monkeypatch.setattr(measuring, "BACKGROUND", 40)
    monkeypatch.setattr(measuring, "MOST_RECORDINGS", 50)
    part = split.calibrated(model)
    assert (part.recordings, part.pictures) == (50, 40)
    assert 50 * 39 <= part.pairs < 50 * 40, "a recording whose own picture is not among those that were taken has 40"
    assert part.quantiles[50] == pytest.approx(whole.quantiles[50], abs=0.2)


def test_what_is_too_little_is_refused() -> None:
    with pytest.raises(CalibrationError, match="32 pictures of different things, this one has 31; give a manifest"):
        Split(31).calibrated(small_model())
    model = small_model()
    for projection in (model.speech_encoder.projection, model.image_encoder.projection):
        assert projection is not None
        torch.nn.init.zeros_(projection.weight)
        torch.nn.init.ones_(projection.bias)
    with pytest.raises(CalibrationError, match="all mismatched pairs one score"):
        Split(32).calibrated(model)


# ---- the file


def test_a_calibration_is_read_as_it_was_written_and_for_its_own_model_alone(tmp_path: Path) -> None:
    assert read_calibration(tmp_path, "a model") is None
    exponential().write(tmp_path)
    assert read_calibration(tmp_path, "a model") == exponential()
    assert read_calibration(tmp_path, "other weights") is None
    replace(exponential(), model_fingerprint="other weights").write(tmp_path)
    assert read_calibration(tmp_path, "a model") is None


DAMAGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no object": lambda record: [record],
    "no format": lambda record: {name: value for name, value in record.items() if name != "saysee_calibration"},
    "another format": lambda record: {**record, "saysee_calibration": 2},
    "no quantiles": lambda record: {name: value for name, value in record.items() if name != "quantiles"},
    "a quantile less": lambda record: {**record, "quantiles": record["quantiles"][1:]},
    "descending": lambda record: {**record, "quantiles": record["quantiles"][::-1]},
    "words": lambda record: {**record, "quantiles": "ascending"},
    "infinite": lambda record: {**record, "quantiles": [*record["quantiles"][:-1], math.inf]},
    "NaN": lambda record: {**record, "mean_excess": math.nan},
    "no tail": lambda record: {**record, "mean_excess": 0},
    "half a pair": lambda record: {**record, "pairs": 0.5},
    "a number for a name": lambda record: {**record, "model_fingerprint": 7},
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_one_line(tmp_path: Path, name: str) -> None:
    exponential().write(tmp_path)
    path = tmp_path / CALIBRATION_FILE
    path.write_text(json.dumps(DAMAGE[name](json.loads(path.read_text()))))
    with pytest.raises(SayseeError, match=r"saysee calibrate .* --data MANIFEST") as caught:
        read_calibration(tmp_path, "a model")
    assert str(caught.value).startswith(f"{path} ")
    assert "\n" not in str(caught.value)


def test_half_a_file_is_one_line(tmp_path: Path) -> None:
    exponential().write(tmp_path)
    path = tmp_path / CALIBRATION_FILE
    path.write_text(path.read_text()[:-40])
    with pytest.raises(SayseeError, match="is damaged"):
        read_calibration(tmp_path, "a model")
