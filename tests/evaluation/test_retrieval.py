"""Retrieval as a whole: against a ranking made one question at a time, and properties that a metric must have."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from saysee.data.manifest import SpokenCaption
from saysee.errors import SayseeError
from saysee.evaluation.metrics import count_ranks, recall_at
from saysee.evaluation.retrieval import evaluate_retrieval, reordered
from saysee.models.retrieval_model import SpeechImageModel
from saysee.search.reranker import best_candidates
from stubs import IMAGE_DIM, LAYERS, SPEECH_DIM, TOKENS, MemoryFeatures, small_model


@dataclass
class Split:
    """A made-up split: captions whose features lie near those of their image, so that ranks differ."""

    captions: list[SpokenCaption]
    speech: MemoryFeatures
    images: MemoryFeatures


def make_split(images: int = 7, per_image: int = 3) -> Split:
    generator = torch.Generator().manual_seed(3)
    captions: list[SpokenCaption] = []
    speech: dict[Path, Tensor] = {}
    pictures: dict[Path, Tensor] = {}
    for i in range(images):
        image = Path(f"/images/{i}.jpg")
        pictures[image] = torch.randn(TOKENS, IMAGE_DIM, generator=generator).half()
        for c in range(per_image):
            audio = Path(f"/audio/{i}-{c}.wav")
            frames = 2 + (i + c) % 4
            speech[audio] = torch.randn(LAYERS, frames, SPEECH_DIM, generator=generator).half()
            language, speaker = ("en", "anna") if c else ("fr", "omar")
            captions.append(SpokenCaption(f"{i}-{c}", audio, f"image {i}", image, None, speaker, language, "test"))
    return Split(captions, MemoryFeatures(speech), MemoryFeatures(pictures))


def one_at_a_time(model: SpeechImageModel, split: Split, k: int) -> dict[str, float]:
    """R@1 speech to image with nothing batched: cosine, the best k by the multimodal encoder, the rest behind."""
    model.eval()
    search = model.config.search
    images = list(dict.fromkeys(caption.image for caption in split.captions))
    hits = {"coarse": 0, "fine": 0}
    with torch.inference_mode():
        pictures = [model.image_encoder(split.images.tensors[path][None].float()) for path in images]
        for caption in split.captions:
            clip = split.speech.tensors[caption.audio][None].float()
            speech = model.speech_encoder(clip, torch.ones(1, clip.shape[2], dtype=torch.bool))
            cosine = [(speech.embedding @ picture.embedding.T).item() for picture in pictures]
            order = sorted(range(len(images)), key=lambda row: -cosine[row])
            hits["coarse"] += images[order[0]] == caption.image
            assert model.multimodal_encoder is not None
            fused = {
                row: model.multimodal_encoder.match_pairs(
                    speech.hidden, speech.mask, pictures[row].hidden, torch.tensor([0]), torch.tensor([0])
                ).item()
                + (0 if search.fusion == "match" else cosine[row] / model.temperature.item())
                for row in order[:k]
            }
            hits["fine"] += images[max(fused, key=lambda row: fused[row])] == caption.image
    return {f"{stage}/speech_to_image/R@1": count / len(split.captions) for stage, count in hits.items()}


def test_every_picture_of_a_concept_is_right_for_it() -> None:
    """The picture of a concept that ranks best counts: as if it were the only one that the caption is about."""
    model, split = small_model(0), make_split()
    alike = [replace(c, concept="dog") if c.image_id in ("image 0", "image 1") else c for c in split.captions]
    results = evaluate_retrieval(model, alike, split.speech, split.images, fine=False)
    with torch.inference_mode():
        tokens = torch.stack([split.images.tensors[Path(f"/images/{i}.jpg")] for i in range(7)]).float()
        pictures = model.image_encoder(tokens).embedding
        expected = 0
        for caption in alike:
            clip = split.speech.tensors[caption.audio][None].float()
            spoken = model.speech_encoder(clip, torch.ones(1, clip.shape[2], dtype=torch.bool)).embedding
            best = int((spoken @ pictures.T).argmax())
            own = int(caption.image_id.removeprefix("image "))
            expected += best in (0, 1) if own < 2 else best == own
    assert results.metrics()["coarse/speech_to_image/R@1"] == pytest.approx(expected / len(alike))


@pytest.mark.parametrize("fusion", ["match", "match+scaled-similarity"])
@pytest.mark.parametrize("seed", range(4))
def test_equals_ranking_one_question_at_a_time(seed: int, fusion: str) -> None:
    model, split = small_model(seed, fusion=fusion, rerank=4), make_split()
    metrics = evaluate_retrieval(model, split.captions, split.speech, split.images).metrics()
    for name, value in one_at_a_time(model, split, 4).items():
        assert metrics[name] == pytest.approx(value), name


def test_batch_size_changes_no_metric() -> None:
    model, split = small_model(), make_split(images=11)
    expected = evaluate_retrieval(model, split.captions, split.speech, split.images)
    for batch_size in (1, 4, 1000):
        received = evaluate_retrieval(model, split.captions, split.speech, split.images, batch_size=batch_size)
        assert received.metrics() == expected.metrics()


def test_the_order_of_the_manifest_changes_no_metric() -> None:
    model, split = small_model(), make_split()
    forward = evaluate_retrieval(model, split.captions, split.speech, split.images)
    backward = evaluate_retrieval(model, split.captions[::-1], split.speech, split.images)
    assert forward.metrics() == backward.metrics()


def test_a_model_that_says_the_same_of_everything_scores_at_chance() -> None:
    """Coarse exactly 1/N; fine, whose best k are drawn among equals, 1/N on average over the queries."""
    model, split = small_model(rerank=10), make_split(images=100, per_image=2)
    for projection in (model.speech_encoder.projection, model.image_encoder.projection):
        assert projection is not None
        torch.nn.init.zeros_(projection.weight)
        torch.nn.init.ones_(projection.bias)
    assert model.multimodal_encoder is not None
    torch.nn.init.zeros_(model.multimodal_encoder.head.weight)
    metrics = evaluate_retrieval(model, split.captions, split.speech, split.images).metrics()
    assert metrics["coarse/speech_to_image/R@1"] == pytest.approx(1 / 100, abs=1e-12)
    # 200 queries, each with its image among the 10 candidates or not: 0.1 +- 4 deviations of 0.021, times 1/10
    assert metrics["fine/speech_to_image/R@1"] == pytest.approx(0.01, abs=0.009)


def test_the_fine_stage_only_reorders_the_best_k() -> None:
    generator = torch.Generator().manual_seed(0)
    similarity = torch.rand(20, 12, generator=generator) * 2 - 1
    candidates = best_candidates(similarity, 5)
    scores = reordered(similarity, candidates, torch.randn(20, 5, generator=generator) * 100)
    for row in range(20):
        before, after = similarity[row].argsort(descending=True), scores[row].argsort(descending=True)
        assert set(before[:5].tolist()) == set(after[:5].tolist())
        assert torch.equal(before[5:], after[5:])


def test_ties_between_candidates_stay_ties() -> None:
    similarity = torch.tensor([[0.9, 0.8, 0.7, 0.1]])
    scores = reordered(similarity, torch.tensor([[0, 1, 2]]), torch.tensor([[5.0, 5.0, 5.0]]))
    counts = count_ranks(scores, torch.tensor([[False, True, False, False]]))
    np.testing.assert_allclose(recall_at(counts, 1), [1 / 3])


def test_k_is_clamped_and_bounds_the_fine_stage() -> None:
    model, split = small_model(), make_split()
    search = replace(model.config.search, rerank=10_000)
    whole = evaluate_retrieval(model, split.captions, split.speech, split.images, search=search)
    assert whole.coarse_recall_at_k == {"speech_to_image": 1.0, "image_to_speech": 1.0}
    search = replace(search, rerank=2)
    narrow = evaluate_retrieval(model, split.captions, split.speech, split.images, search=search)
    for direction, bound in narrow.coarse_recall_at_k.items():
        assert narrow.metric(f"fine/{direction}/R@1") <= bound + 1e-12


def test_contrast_only_has_a_coarse_stage_alone_and_groups_are_kept() -> None:
    model, split = small_model(matching=False), make_split()
    results = evaluate_retrieval(model, split.captions, split.speech, split.images)
    assert {stage.stage for stage in results.stages} == {"coarse"}
    assert {name: len(rows) for name, rows in results.groups["language"].items()} == {"en": 14, "fr": 7}
    spoken = results.ranking("coarse", "speech_to_image")
    assert spoken is not None
    assert all(spoken.query_ids[row].endswith("-0") for row in results.groups["speaker"]["omar"])


def test_without_the_fine_stage_the_coarse_one_is_the_same() -> None:
    model, split = small_model(), make_split()
    whole = evaluate_retrieval(model, split.captions, split.speech, split.images)
    coarse = evaluate_retrieval(model, split.captions, split.speech, split.images, fine=False)
    assert {stage.stage for stage in coarse.stages} == {"coarse"}
    assert coarse.metrics().items() <= whole.metrics().items()


def test_an_empty_split_is_a_clear_error() -> None:
    with pytest.raises(SayseeError, match="no caption to evaluate on"):
        evaluate_retrieval(small_model(), [], MemoryFeatures({}), MemoryFeatures({}))
