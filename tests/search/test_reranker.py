"""The fine stage's parts: a score depends on its pair alone, what is prepared once serves every later question."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saysee.config import SearchConfig
from saysee.search.reranker import PreparedPictures, best_candidates, fuse, match_logits, match_prepared
from small_indexes import heard, spoken
from stubs import small_model


@settings(deadline=None, max_examples=30)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=40), at_once=st.sampled_from([1, 3, 512])
)
def test_a_score_does_not_depend_on_what_is_scored_with_it(pairs: list[tuple[int, int]], at_once: int) -> None:
    from saysee.search import reranker

    model = small_model().eval()
    speech = model.encode_speech([heard(spoken(seed, 4_000 + 3_000 * seed)) for seed in range(3)])
    hidden = torch.randn(4, 5, 16, generator=torch.Generator().manual_seed(0))
    whole = {
        (s, i): match_logits(model, speech, hidden, torch.tensor([s]), torch.tensor([i])).item() for s, i in set(pairs)
    }
    before = reranker.PAIRS_AT_ONCE
    reranker.PAIRS_AT_ONCE = at_once
    try:
        indices = torch.tensor(pairs, dtype=torch.int64).view(-1, 2)
        scored = match_logits(model, speech, hidden, indices[:, 0], indices[:, 1])
    finally:
        reranker.PAIRS_AT_ONCE = before
    assert scored.tolist() == pytest.approx([whole[pair] for pair in pairs], abs=1e-5)


def test_fusion_rules() -> None:
    logit, similarity, temperature = torch.tensor([2.0]), torch.tensor([0.5]), torch.tensor(0.1)
    rule = SearchConfig()
    assert fuse(logit, similarity, temperature, replace(rule, fusion="match")).item() == 2.0
    assert fuse(logit, similarity, temperature, replace(rule, fusion="match+similarity")).item() == 2.5
    assert fuse(logit, similarity, temperature, replace(rule, fusion="match+scaled-similarity")).item() == 7.0


def test_best_candidates_are_clamped() -> None:
    assert best_candidates(torch.tensor([[0.1, 0.3, 0.2]]), 10).tolist() == [[1, 2, 0]]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=4), max_size=12))
def test_prepared_pictures_score_as_unprepared_ones(asked: list[list[int]]) -> None:
    """Whatever is asked in whatever order, with room for four pictures of eight."""
    model = small_model().eval()
    encoder = model.require_multimodal_encoder()
    hidden = torch.randn(8, 5, 16, generator=torch.Generator().manual_seed(0))
    speech = model.encode_speech([heard(spoken())])
    expected = match_logits(model, speech, hidden, torch.zeros(8, dtype=torch.int64), torch.arange(8))
    one = encoder.prepare_images(hidden[:1]).keys_values
    prepared = PreparedPictures(encoder, max_bytes=4 * sum(t.nbytes for pair in one for t in pair))
    for pictures in asked:
        contents = [str(picture) for picture in pictures]
        missing = prepared.missing(contents)
        assert len({contents[n] for n in missing}) == len(missing)
        prepared.prepare({contents[n]: hidden[pictures[n]] for n in missing}, together=len(pictures))
        assert all(content in prepared for content in contents)
        scores = match_prepared(model, speech, prepared.select(contents))
        torch.testing.assert_close(scores, expected[pictures])
        assert sum(str(picture) in prepared for picture in range(8)) <= 4


def test_there_is_room_for_the_pictures_of_one_question() -> None:
    model = small_model().eval()
    prepared = PreparedPictures(model.require_multimodal_encoder(), max_bytes=1)
    hidden = torch.randn(6, 5, 16)
    for count in (2, 6):
        contents = [str(n) for n in range(count)]
        missing = prepared.missing(contents)
        prepared.prepare({contents[n]: hidden[n] for n in missing}, together=count)
        keys, _ = prepared.select(contents).keys_values[0]
        expected, _ = model.require_multimodal_encoder().prepare_images(hidden[:count]).keys_values[0]
        torch.testing.assert_close(keys, expected)
