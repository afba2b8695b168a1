"""Coarse and fine retrieval of one split, in both directions, through the re-ranker that search uses.

Every recording is encoded once for the coarse stage and, when there is a fine stage, once more for all the pairs it
has a part in, in either direction: a caption's best k images and the images that have it among their best k captions.

Shapes: Q captions, N images, k candidates, E embedding length, P tokens, H width, M pairs.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from saysee.config import SearchConfig
from saysee.data.collate import pad_speech
from saysee.data.extraction import Features
from saysee.data.manifest import SpokenCaption
from saysee.errors import SayseeError
from saysee.evaluation.metrics import RankCounts, count_ranks
from saysee.evaluation.results import GROUPINGS, Direction, Results, StageResult
from saysee.models.retrieval_model import SpeechImageModel
from saysee.models.speech_encoder import SpeechEncoding
from saysee.search.reranker import best_candidates, fuse, match_logits


@torch.inference_mode()
def evaluate_retrieval(
    model: SpeechImageModel,
    captions: Sequence[SpokenCaption],
    speech: Features,
    images: Features,
    *,
    search: SearchConfig | None = None,
    fine: bool = True,
    about: dict[str, Any] | None = None,
    batch_size: int = 32,
    progress: bool = False,
) -> Results:
    """Rank all images of `captions` for each caption, and all captions for each image.

    Args:
        model: it is put into eval mode.
        captions: a split; its images are the gallery. Right for a caption is its image, and every image of its concept.
        speech: features (L, T, D) of each recording.
        images: features (P, D') of each picture.
        search: k and fusion rule of the fine stage; None takes the model's own.
        fine: whether to measure the fine stage too, if the model has one.
        about: what else the record says of this evaluation.
        batch_size: recordings or pictures encoded together; changes no metric.
        progress: whether to show a bar while pairs are matched.

    Returns:
        Coarse results, and fine ones if the model has a multimodal encoder.

    Raises:
        SayseeError: there is no caption to evaluate on.
    """
    if not captions:
        raise SayseeError("there is no caption to evaluate on; choose a split that the manifest has")
    model.eval()
    search = search or model.config.search
    paths: dict[str, Path] = {}
    shown: dict[str, str] = {}
    for caption in captions:
        paths.setdefault(caption.image_id, caption.image)
        shown.setdefault(caption.image_id, caption.shown)
    image_ids = tuple(paths)
    # Which of several items with one score are among the best k depends on their order. In a random order it is left
    # to chance, so that the fine stage too is at chance on average when all scores are equal; in the manifest's order a
    # caption may stand just beside its image.
    shuffled = torch.Generator().manual_seed(0)
    gallery = torch.randperm(len(image_ids), generator=shuffled).tolist()
    spoken = torch.randperm(len(captions), generator=shuffled).tolist()
    image_ids = tuple(image_ids[row] for row in gallery)
    ordered = [captions[row] for row in spoken]
    # captions and pictures of one concept have their right answers in common, and are no independent evidence
    image_clusters = tuple(shown[image_id] for image_id in image_ids)
    caption_clusters = tuple(caption.shown for caption in ordered)

    image_embedding, image_hidden = encode_images(
        model, [paths[image_id] for image_id in image_ids], images, batch_size
    )
    speech_embedding = torch.cat([encoding.embedding for encoding in encode_speech(model, ordered, speech, batch_size)])
    number = {name: row for row, name in enumerate(dict.fromkeys(shown.values()))}
    asked_for = torch.tensor([number[caption.shown] for caption in ordered])
    relevant = asked_for[:, None] == torch.tensor([number[shown[image_id]] for image_id in image_ids])[None]
    similarity = (speech_embedding @ image_embedding.T).cpu()

    directions: tuple[tuple[Direction, Tensor, Tensor, tuple[str, ...], tuple[str, ...]], ...] = (
        ("speech_to_image", similarity, relevant, tuple(caption.id for caption in ordered), caption_clusters),
        ("image_to_speech", similarity.T, relevant.T, image_ids, image_clusters),
    )
    stages = [_stage("coarse", name, scores, right, *ids) for name, scores, right, *ids in directions]
    recall_at_k: dict[Direction, float] = {}
    if fine and model.multimodal_encoder is not None:
        candidates = [best_candidates(scores, search.rerank) for _, scores, *_ in directions]
        logits = _match_candidates(
            model, ordered, speech, image_hidden, candidates[0], candidates[1], batch_size, progress
        )
        for (name, scores, right, *ids), chosen, logit in zip(directions, candidates, logits, strict=True):
            recall_at_k[name] = right.gather(1, chosen).any(1).double().mean().item()
            fused = fuse(logit, scores.gather(1, chosen), model.temperature.cpu(), search)
            stages.append(_stage("fine", name, reordered(scores, chosen, fused), right, *ids))
    described = {
        "model_fingerprint": model.fingerprint,
        "images": len(image_ids),
        "captions": len(captions),
        **({"concepts": len(number)} if len(number) < len(image_ids) else {}),
        **({"rerank": search.rerank, "fusion": search.fusion} if recall_at_k else {}),
        **(about or {}),
    }
    return Results(described, tuple(stages), recall_at_k, _groups(ordered))


def reordered(similarity: Tensor, candidates: Tensor, fused: Tensor) -> Tensor:
    """Return scores (Q, N) that rank the candidates by `fused`, before everything else in its coarse order.

    Args:
        similarity: (Q, N), in [-1, 1].
        candidates: columns of the best k (Q, k).
        fused: their scores (Q, k); equal ones stay equal.
    """
    # how many candidates are beaten: whole numbers, so ties stay ties and 2 + 0 is above every cosine
    beaten = torch.stack([(row[:, None] > row[None, :]).sum(1) for row in fused])
    return similarity.scatter(1, candidates, 2 + beaten.to(similarity.dtype))


def _stage(
    stage: Literal["coarse", "fine"],
    direction: Direction,
    scores: Tensor,
    relevant: Tensor,
    query_ids: tuple[str, ...],
    clusters: tuple[str, ...],
) -> StageResult:
    rows = range(0, len(scores), 1024)
    counts = RankCounts.concatenate([count_ranks(scores[at : at + 1024], relevant[at : at + 1024]) for at in rows])
    return StageResult(stage, direction, counts, query_ids, clusters, scores.shape[1])


def encode_images(
    model: SpeechImageModel, paths: Sequence[Path], images: Features, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Return embeddings (N, E) and projected tokens (N, P, H); the tokens in float16, as an index keeps them."""
    embeddings, hiddens = [], []
    for start in range(0, len(paths), batch_size):
        tokens = torch.stack(images.read(paths[start : start + batch_size])).float()
        encoding = model.image_encoder(tokens.to(model.device))
        embeddings.append(encoding.embedding)
        hiddens.append(encoding.hidden.half())
    return torch.cat(embeddings), torch.cat(hiddens)


def encode_speech(
    model: SpeechImageModel, captions: Sequence[SpokenCaption], speech: Features, batch_size: int
) -> Iterator[SpeechEncoding]:
    """Yield the encodings of the recordings, so many together, in the order of the captions."""
    for start in range(0, len(captions), batch_size):
        clips = speech.read([caption.audio for caption in captions[start : start + batch_size]])
        hidden, mask = pad_speech(clips)
        yield model.speech_encoder(hidden.to(model.device).float(), mask.to(model.device))


def _match_candidates(
    model: SpeechImageModel,
    captions: Sequence[SpokenCaption],
    speech: Features,
    image_hidden: Tensor,
    images_of_speech: Tensor,
    speech_of_images: Tensor,
    batch_size: int,
    progress: bool,
) -> tuple[Tensor, Tensor]:
    """Score the candidates of both directions, visiting the recordings in batches.

    Args:
        model: with a multimodal encoder.
        captions: Q.
        speech: their features.
        image_hidden: (N, P, H).
        images_of_speech: (Q, k), the images to score for each recording.
        speech_of_images: (N, k'), the recordings to score for each image.
        batch_size: recordings encoded together.
        progress: whether to show a bar.

    Returns:
        `match_logit` (Q, k) and (N, k').
    """
    images, candidates = speech_of_images.shape
    asking = torch.arange(len(captions)).repeat_interleave(images_of_speech.shape[1])
    asked = torch.arange(images).repeat_interleave(candidates)
    recording = torch.cat([asking, speech_of_images.flatten()])
    image = torch.cat([images_of_speech.flatten(), asked])
    # sorted by recording, and a pair that both directions ask for is scored once
    pairs, row_of = (recording * images + image).unique(return_inverse=True)  # type: ignore[no-untyped-call]
    recording, image = pairs // images, pairs % images
    scored = torch.empty(len(pairs))
    bounds = torch.searchsorted(recording, torch.arange(0, len(captions) + batch_size, batch_size)).tolist()
    batches = tqdm(
        encode_speech(model, captions, speech, batch_size),
        "matching",
        total=len(bounds) - 1,
        unit="batch",
        disable=None if progress else True,
        delay=2,
        leave=False,
    )
    for number, encoding in enumerate(batches):
        part = slice(bounds[number], bounds[number + 1])
        scored[part] = match_logits(
            model,
            encoding,
            image_hidden,
            recording[part] - number * batch_size,
            image[part],
        )
    logits = scored[row_of]
    split = images_of_speech.numel()
    return logits[:split].view_as(images_of_speech), logits[split:].view_as(speech_of_images)


def _groups(captions: Sequence[SpokenCaption]) -> dict[str, dict[str, tuple[int, ...]]]:
    groups: dict[str, dict[str, tuple[int, ...]]] = {}
    for grouping in GROUPINGS:
        rows: dict[str, list[int]] = {}
        for row, caption in enumerate(captions):
            if name := getattr(caption, grouping):
                rows.setdefault(name, []).append(row)
        groups[grouping] = {name: tuple(members) for name, members in sorted(rows.items())}
    return groups
