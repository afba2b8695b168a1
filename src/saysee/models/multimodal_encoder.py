"""Multimodal encoder: a recording's hidden states attend to a picture's tokens -> `match_logit`.

The layers are ALBEF's (arXiv 2107.07651, section 3.1): self-attention, cross-attention to the picture, feed-forward.

One recording is matched with several pictures and one picture with several recordings, in training (the pair and its
hard negatives) as in search (the best k). What belongs to one side alone is therefore computed once for each side: the
first layer's self-attention, which no picture has touched yet, and the queries that follow it, once a recording; keys
and values of every cross-attention once a picture. And since only [CLS] is read in the end, the last layer computes
nothing else. None of this changes the result; `tests/models/test_multimodal_encoder.py` compares it with the plain
form.

Shapes: S recordings, I pictures, M pairs, T = 1 + frames, P tokens, H width, N heads, d = H / N.
"""

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from saysee.config import ModelConfig
from saysee.models.attention import Attention, Dropout, FeedForward, compute


class PreparedSpeech(NamedTuple):
    """The recordings' side of matching.

    Attributes:
        states: (S, T, H), after the first layer's self-attention; of a single layer [CLS] alone, (S, 1, H).
        queries: (S, N, T, d), of the first layer's cross-attention; of a single layer (S, N, 1, d).
        mask: (S, T), True where a frame is real.
    """

    states: Tensor
    queries: Tensor
    mask: Tensor

    def select(self, index: Tensor) -> "PreparedSpeech":
        """Take the recordings `index` (M,)."""
        return PreparedSpeech(self.states[index], self.queries[index], self.mask[index])


class PreparedImages(NamedTuple):
    """The pictures' side of matching: keys and values (I, N, P, d) of each layer's cross-attention."""

    keys_values: tuple[tuple[Tensor, Tensor], ...]

    def select(self, index: Tensor) -> "PreparedImages":
        """Take the pictures `index` (M,)."""
        return PreparedImages(tuple((keys[index], values[index]) for keys, values in self.keys_values))


class MultimodalLayer(nn.Module):
    """Self-attention over the recording, cross-attention to the picture, feed-forward; each normalised before."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(config.width)
        self.self_attention = Attention(config.width, config.heads)
        self.cross_norm = nn.LayerNorm(config.width)
        self.cross_attention = Attention(config.width, config.heads)
        self.feedforward_norm = nn.LayerNorm(config.width)
        self.feedforward = FeedForward(config.width, config.feedforward_ratio, config.dropout)
        self.dropout = Dropout(config.dropout)

    def attend_to_speech(self, x: Tensor, mask: Tensor, only_cls: bool) -> Tensor:
        """Self-attention over (M, T, H); with `only_cls` the [CLS] row alone asks, and (M, 1, H) comes back."""
        normed = self.self_norm(x)
        keys, values = self.self_attention.project_keys(normed)
        if only_cls:
            x, normed = x[:, :1], normed[:, :1]
        queries = self.self_attention.project_queries(normed)
        return cast(Tensor, x + self.dropout(self.self_attention.attend(queries, keys, values, mask)))

    def ask(self, x: Tensor) -> Tensor:
        """Return the queries (M, N, T, d) with which states (M, T, H) turn to the picture."""
        return self.cross_attention.project_queries(self.cross_norm(x))

    def attend_to_image(self, x: Tensor, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Cross-attention from states (M, T, H) to keys and values (M, N, P, d), then the feed-forward part."""
        x = x + self.dropout(self.cross_attention.attend(queries, keys, values))
        return cast(Tensor, x + self.feedforward(self.feedforward_norm(x)))

    def forward(self, x: Tensor, mask: Tensor, keys: Tensor, values: Tensor, only_cls: bool) -> Tensor:
        """Compute the whole layer for states (M, T, H); see its parts."""
        x = self.attend_to_speech(x, mask, only_cls)
        return self.attend_to_image(x, self.ask(x), keys, values)


class MultimodalEncoder(nn.Module):
    """The fine stage's scorer: it says whether a recording speaks of a picture.

    Attributes:
        activation_checkpointing: whether the layers are computed again in the backward pass, see `compute`.
    """

    activation_checkpointing = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MultimodalLayer(config) for _ in range(config.multimodal_layers))
        self.output_norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, 2)

    def prepare_speech(self, speech_hidden: Tensor, speech_mask: Tensor) -> PreparedSpeech:
        """Compute what no picture changes, for `speech_hidden` (S, T, H) and its mask (S, T)."""
        first: MultimodalLayer = self.layers[0]  # type: ignore[assignment]
        again, only_cls = self.activation_checkpointing, len(self.layers) == 1
        states = compute(first, first.attend_to_speech, speech_hidden, speech_mask, only_cls, again=again)
        return PreparedSpeech(states, first.ask(states), speech_mask)

    def prepare_images(self, image_hidden: Tensor) -> PreparedImages:
        """Compute what no recording changes, for projected tokens (I, P, H)."""
        return PreparedImages(tuple(layer.cross_attention.project_keys(image_hidden) for layer in self.layers))  # type: ignore[union-attr,operator]

    def forward(self, speech: PreparedSpeech, images: PreparedImages) -> Tensor:
        """Score M pairs, row by row.

        Returns:
            `match_logit` (M,), float32: the log-odds of matched, which is the difference of the head's two logits.
        """
        x, queries, mask = speech
        again, last = self.activation_checkpointing, len(self.layers) - 1
        for number, (layer, (keys, values)) in enumerate(zip(self.layers, images.keys_values, strict=True)):
            assert isinstance(layer, MultimodalLayer)
            if number == 0:
                x = compute(layer, layer.attend_to_image, x, queries, keys, values, again=again)
            else:
                x = compute(layer, layer, x, mask, keys, values, number == last, again=again)
        return self._score(x[:, 0])

    def match_all(self, speech_hidden: Tensor, speech_mask: Tensor, image_hidden: Tensor) -> Tensor:
        """Score every one of S recordings with every one of I pictures.

        Each picture is attended to by the rows of all recordings at once, so that neither side is copied for each
        pair. With a single layer these rows are [CLS] alone, and all pairs of a batch cost about what `match_pairs`
        takes for a few of them.

        Args:
            speech_hidden: (S, T, H).
            speech_mask: (S, T).
            image_hidden: projected tokens (I, P, H).

        Returns:
            `match_logit` (S, I), float32.
        """
        speech, images = self.prepare_speech(speech_hidden, speech_mask), self.prepare_images(image_hidden)
        recordings, pictures = len(speech_hidden), len(image_hidden)
        again, last = self.activation_checkpointing, len(self.layers) - 1
        x = speech.states.flatten(0, 1)  # (S T, H), of one row a recording if there is one layer
        queries = speech.queries.transpose(0, 1).flatten(1, 2).expand(pictures, -1, -1, -1)  # (I, N, S T, d)
        for number, (layer, (keys, values)) in enumerate(zip(self.layers, images.keys_values, strict=True)):
            assert isinstance(layer, MultimodalLayer)
            if number > 0:
                by_pair = x.view(pictures * recordings, -1, x.shape[2])  # (I S, T, H)
                mask = speech_mask.repeat(pictures, 1)
                by_pair = compute(layer, layer.attend_to_speech, by_pair, mask, number == last, again=again)
                x = by_pair.view(pictures, -1, x.shape[2])
                queries = layer.ask(x)
            x = compute(layer, layer.attend_to_image, x, queries, keys, values, again=again)  # (I, S T, H)
        return self._score(x.view(pictures, recordings, -1, x.shape[2])[:, :, 0]).T

    def cross_attention(self, speech: PreparedSpeech, images: PreparedImages) -> Tensor:
        """Return how much of its attention each frame of M recordings gives to each token of their pictures.

        The weights of the cross-attention, averaged over the heads and over all layers but the last. In the last
        layer only [CLS] asks: no score depends on what a frame would ask there, so training never shaped it. With a
        single layer [CLS]'s weights are all there is, and they are given to every frame alike.

        Returns:
            (M, T - 1, P): [CLS] is no moment of the recording and is left out. Rows of one frame sum to 1; those of
            frames that `speech.mask` calls padding mean nothing.
        """
        x, queries, mask = speech
        asking = self.layers[:-1] or self.layers
        weights = []
        for number, (layer, (keys, values)) in enumerate(zip(asking, images.keys_values, strict=False)):
            assert isinstance(layer, MultimodalLayer)
            if number > 0:
                x = layer.attend_to_speech(x, mask, only_cls=False)
                queries = layer.ask(x)
            weights.append(layer.cross_attention.weights(queries, keys).mean(1))
            x = layer.attend_to_image(x, queries, keys, values)
        mean = torch.stack(weights).mean(0)
        return mean.expand(-1, mask.shape[1] - 1, -1) if len(self.layers) == 1 else mean[:, 1:]

    def match_pairs(
        self,
        speech_hidden: Tensor,
        speech_mask: Tensor,
        image_hidden: Tensor,
        speech_index: Tensor,
        image_index: Tensor,
    ) -> Tensor:
        """Score the pairs (speech_index[m], image_index[m]) of S recordings and I pictures.

        Args:
            speech_hidden: (S, T, H).
            speech_mask: (S, T).
            image_hidden: projected tokens (I, P, H).
            speech_index: which recording each pair has (M,).
            image_index: which picture each pair has (M,).

        Returns:
            `match_logit` (M,), float32.
        """
        speech = self.prepare_speech(speech_hidden, speech_mask).select(speech_index)
        logit: Tensor = self(speech, self.prepare_images(image_hidden).select(image_index))
        return logit

    def _score(self, cls: Tensor) -> Tensor:
        """Map the last layer's [CLS] (..., H) to `match_logit` (...)."""
        not_matched, matched = self.head(self.output_norm(cls)).float().unbind(-1)
        return torch.sub(matched, not_matched)
