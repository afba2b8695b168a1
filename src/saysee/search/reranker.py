"""The fine stage: the multimodal encoder scores the best k of the coarse ranking and reorders them, and only them.

Evaluation ranks through these functions too: the ranking that is measured is the ranking that is served.

Shapes: Q questions, N gallery items, k candidates, M pairs, P tokens of a picture, H width.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from saysee.config import SearchConfig
from saysee.errors import SayseeError
from saysee.models.multimodal_encoder import MultimodalEncoder, PreparedImages
from saysee.models.retrieval_model import SpeechImageModel
from saysee.models.speech_encoder import SpeechEncoding

PAIRS_AT_ONCE = 512
"""Pairs in one pass of the multimodal encoder; bounds memory and changes no score."""


def best_candidates(similarity: Tensor, k: int) -> Tensor:
    """Return the columns (Q, min(k, N)) of the highest similarities (Q, N), best first."""
    return similarity.topk(min(k, similarity.shape[1]), dim=1).indices


@torch.inference_mode()
def match_logits(
    model: SpeechImageModel, speech: SpeechEncoding, image_hidden: Tensor, speech_index: Tensor, image_index: Tensor
) -> Tensor:
    """Score M pairs of recordings and pictures.

    Args:
        model: in eval mode.
        speech: the recordings.
        image_hidden: projected tokens of the pictures (N, P, H), of any floating type and on any device.
        speech_index: the recording of each pair (M,).
        image_index: the picture of each pair (M,).

    Returns:
        `match_logit` (M,), float32, on the device of `speech_index`.

    Raises:
        SayseeError: the model has no multimodal encoder, or gives scores that are not finite.
    """
    encoder = model.require_multimodal_encoder()
    device = model.device
    scores = speech_index.new_empty(len(speech_index), dtype=torch.float32)
    for start in range(0, len(speech_index), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        recordings, speech_row = speech_index[part].unique(return_inverse=True)  # type: ignore[no-untyped-call]
        pictures, image_row = image_index[part].unique(return_inverse=True)  # type: ignore[no-untyped-call]
        scores[part] = encoder.match_pairs(
            speech.hidden[recordings.to(device)],
            speech.mask[recordings.to(device)],
            image_hidden[pictures.to(image_hidden.device)].to(device, speech.hidden.dtype),
            speech_row.to(device),
            image_row.to(device),
        ).to(scores.device)
    return _finite(scores)


class PreparedPictures:
    """The pictures' side of matching, computed once a picture and kept for later questions.

    Keys and values of every cross-attention lie in one tensor a layer, and each picture has a row in it; the one that
    has not been asked for longest gives its row to the next.

    Args:
        encoder: whose keys and values they are.
        max_bytes: of all rows together; at least the pictures of one question have room.
    """

    def __init__(self, encoder: MultimodalEncoder, max_bytes: int = 1 << 30) -> None:
        self._encoder = encoder
        self._max_bytes = max_bytes
        self._rows: OrderedDict[str, int] = OrderedDict()
        self._keys_values: list[tuple[Tensor, Tensor]] = []

    def __contains__(self, content: str) -> bool:
        return content in self._rows

    def missing(self, contents: Sequence[str]) -> list[int]:
        """Return the positions of the pictures that are not prepared, each content once; the others stay longest.

        Args:
            contents: what stands for each picture's content.
        """
        for content in contents:
            if content in self._rows:
                self._rows.move_to_end(content)
        return list({content: n for n, content in enumerate(contents) if content not in self._rows}.values())

    @torch.inference_mode()
    def prepare(self, tokens: Mapping[str, Tensor], together: int) -> None:
        """Prepare pictures.

        Args:
            tokens: projected tokens (P, H) by what stands for a picture's content, on the model's device.
            together: of how many pictures, these included, none may go for another.
        """
        if not tokens:
            return
        images = self._encoder.prepare_images(torch.stack(list(tokens.values())))
        room = self._make_room(images, together)
        for content in tokens:
            self._rows[content] = len(self._rows) if len(self._rows) < room else self._rows.popitem(last=False)[1]
        rows = self._rows_of(list(tokens))
        for (kept_keys, kept_values), (keys, values) in zip(self._keys_values, images.keys_values, strict=True):
            kept_keys[rows], kept_values[rows] = keys, values

    def select(self, contents: Sequence[str]) -> PreparedImages:
        """Return keys and values of k pictures that are prepared."""
        rows = self._rows_of(contents)
        return PreparedImages(tuple((keys[rows], values[rows]) for keys, values in self._keys_values))

    def _make_room(self, images: PreparedImages, least: int) -> int:
        """Return how many rows there are, at least `least`; rows that are never written to take no memory."""
        room = len(self._keys_values[0][0]) if self._keys_values else 0
        if room >= least:
            return room
        bytes_each = sum(tensor[0].nbytes for pair in images.keys_values for tensor in pair)
        room = max(least, self._max_bytes // bytes_each)
        larger = [
            (keys.new_empty(room, *keys.shape[1:]), values.new_empty(room, *values.shape[1:]))
            for keys, values in images.keys_values
        ]
        for new, old in zip(larger, self._keys_values, strict=False):  # the first time there is nothing to copy
            for there, here in zip(new, old, strict=True):
                there[: len(here)] = here
        self._keys_values = larger
        return room

    def _rows_of(self, contents: Sequence[str]) -> Tensor:
        return torch.tensor([self._rows[content] for content in contents], dtype=torch.int64)


@torch.inference_mode()
def match_prepared(model: SpeechImageModel, speech: SpeechEncoding, images: PreparedImages) -> Tensor:
    """Score one recording with k pictures that are prepared.

    Returns:
        `match_logit` (k,), float32, on the CPU.

    Raises:
        SayseeError: as `match_logits`.
    """
    encoder = model.require_multimodal_encoder()
    prepared = encoder.prepare_speech(speech.hidden, speech.mask)
    count = len(images.keys_values[0][0])
    scores = []
    for start in range(0, count, PAIRS_AT_ONCE):
        part = torch.arange(start, min(start + PAIRS_AT_ONCE, count))
        scores.append(encoder(prepared.select(torch.zeros_like(part)), images.select(part)).float().cpu())
    return _finite(torch.cat(scores))


def fuse(match_logit: Tensor, similarity: Tensor, temperature: Tensor, config: SearchConfig) -> Tensor:
    """Return the fused scores by which candidates are ranked; all three have one shape.

    `match` is after ALBEF and `match+similarity` after BLIP, with the log-odds in the place of the matched logit;
    `match+scaled-similarity` is ours: similarity / temperature is
    the logit of SIC's softmax, so that both terms are on the scale of log-odds.
    """
    if config.fusion == "match":
        return match_logit
    scale = temperature if config.fusion == "match+scaled-similarity" else 1.0
    return match_logit + similarity / scale


def _finite(scores: Tensor) -> Tensor:
    if not scores.isfinite().all():
        raise SayseeError(
            "the fine stage gives scores that are not finite; train the model again, or rank coarse alone"
        )
    return scores
