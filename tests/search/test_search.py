"""Index and search: the round trip, the ranking, and everything that a folder of somebody's pictures may hold."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from media import BAD_PICTURES, write_image
from saysee.config import SearchConfig
from saysee.errors import SayseeError
from saysee.search.index import build_index, find_pictures, read_index
from saysee.search.reranker import best_candidates, fuse, match_logits
from saysee.search.searcher import Searcher
from stubs import small_model

COLOURS = ("red", "green", "blue", "white", "black", "orange", "purple", "brown", "pink")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    for number, colour in enumerate(COLOURS):
        path = folder / ("nested" if number % 2 else ".") / f"{colour} o'clock {number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, colour=colour)
    return folder


def question(seed: int = 0) -> np.ndarray:
    values: np.ndarray = np.random.default_rng(seed).normal(0, 0.1, 12_000).astype(np.float32)
    return values


def test_an_index_holds_what_the_model_says_of_each_picture(pictures: Path, tmp_path: Path) -> None:
    model = small_model()
    report = build_index(pictures, model, tmp_path / "m", tmp_path / "index")
    index = read_index(tmp_path / "index")
    assert report.indexed == len(index) == 9
    assert index.model_fingerprint == model.fingerprint
    for row, name in enumerate(index.paths):
        encoding = model.encode_image(pictures / name)
        torch.testing.assert_close(index.embedding[row], encoding.embedding[0])
        assert index.hidden is not None
        torch.testing.assert_close(index.hidden[row].float(), encoding.hidden[0], atol=2e-3, rtol=2e-3)


def test_a_search_ranks_as_evaluation_does(pictures: Path, tmp_path: Path) -> None:
    """Coarse by cosine; the best k by the fused score; below k the coarse order."""
    model = small_model(rerank=4)
    build_index(pictures, model, tmp_path / "m", tmp_path / "index")
    index = read_index(tmp_path / "index")
    searcher = Searcher(index, model)
    for seed in range(5):
        speech = model.encode_speech(question(seed))
        similarity = (speech.embedding @ index.embedding.T)[0]
        order = similarity.argsort(descending=True)
        coarse = searcher.search(question(seed), top=9, rerank=0)
        assert [answer.path for answer in coarse] == [pictures / index.paths[row] for row in order]
        assert all(answer.fine is None for answer in coarse)

        fine = searcher.search(question(seed), top=9)
        assert index.hidden is not None
        best = order[:4]
        logits = match_logits(model, speech, index.hidden, torch.zeros(4, dtype=torch.int64), best)
        fused = logits + similarity[best] / model.temperature
        expected = [*best[fused.argsort(descending=True)].tolist(), *order[4:].tolist()]
        assert [answer.path for answer in fine] == [pictures / index.paths[row] for row in expected]
        assert [answer.rank for answer in fine] == list(range(1, 10))
        assert [answer.fine is None for answer in fine] == [False] * 4 + [True] * 5
        for answer, row in zip(fine, expected, strict=True):
            assert answer.coarse == pytest.approx(similarity[row].item(), abs=1e-6)


def test_k_and_top_are_clamped_to_the_index(pictures: Path, tmp_path: Path) -> None:
    model = small_model()
    build_index(pictures, model, tmp_path / "m", tmp_path / "index")
    answers = Searcher(read_index(tmp_path / "index"), model).search(question(), top=1000, rerank=1000)
    assert len(answers) == 9
    assert all(answer.fine is not None for answer in answers)
    for top, rerank in ((0, None), (-1, None), (5, -1)):
        with pytest.raises(SayseeError, match="allowed: 1 or more answers"):
            Searcher(read_index(tmp_path / "index"), model).search(question(), top, rerank)


def test_scores_that_are_not_finite_are_not_ranked(pictures: Path, tmp_path: Path) -> None:
    model = small_model()
    with torch.no_grad():
        model.require_multimodal_encoder().head.weight.fill_(torch.nan)
    build_index(pictures, model, tmp_path / "m", tmp_path / "index")
    with pytest.raises(SayseeError, match="not finite"):
        Searcher(read_index(tmp_path / "index"), model).search(question())


def test_bad_pictures_are_skipped_named_and_counted(pictures: Path, tmp_path: Path) -> None:
    for number, make in enumerate(BAD_PICTURES.values()):
        (pictures / f"bad {number}.png").write_bytes(make())
    (pictures / "notes.txt").write_text("not a picture")
    (pictures / ".hidden").mkdir()
    write_image(pictures / ".hidden" / "secret.png")
    report = build_index(pictures, small_model(), tmp_path / "m", tmp_path / "index")
    assert report.indexed == 9
    assert {path.name for path in report.skipped} == {f"bad {number}.png" for number in range(len(BAD_PICTURES))}
    assert all(path.name in reason and "\n" not in reason for path, reason in report.skipped.items())


def test_a_folder_with_nothing_to_index_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SayseeError, match="no picture in"):
        build_index(tmp_path / "empty", small_model(), tmp_path / "m", tmp_path / "index")
    with pytest.raises(SayseeError, match="is no folder"):
        build_index(tmp_path / "nowhere", small_model(), tmp_path / "m", tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_an_index_is_replaced_whole_and_nothing_else_is(pictures: Path, tmp_path: Path) -> None:
    model, into = small_model(), tmp_path / "index"
    build_index(pictures, model, tmp_path / "m", into)
    write_image(pictures / "new.png")
    assert build_index(pictures, model, tmp_path / "m", into).indexed == 10
    assert len(read_index(into)) == 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "pictures"]
    assert len(list(into.iterdir())) == 3
    site = tmp_path / "site"
    site.mkdir()
    (site / "index.json").write_text('{"name": "somebody else"}')
    (site / "thesis.tex").write_text("years of work")
    for other in (pictures, site):
        before = sorted(other.rglob("*"))
        with pytest.raises(SayseeError, match="exists and is no index"):
            build_index(pictures, model, tmp_path / "m", other)
        assert sorted(other.rglob("*")) == before


@pytest.mark.parametrize("write", ["write_text", "atomic_path"])
def test_stopped_anywhere_the_old_index_is_whole(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    from saysee.search import index as module

    model, into = small_model(), tmp_path / "index"
    build_index(pictures, model, tmp_path / "m", into)
    expected = read_index(into)
    write_image(pictures / "new.png")
    original = getattr(module, write)
    for stop_at in (1, 2):
        calls = 0

        def stopping(*arguments, stop_at=stop_at):  # type: ignore[no-untyped-def]
            nonlocal calls
            calls += 1
            if calls == stop_at:
                raise KeyboardInterrupt
            return original(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(module, write, stopping)
            try:
                build_index(pictures, model, tmp_path / "m", into)
            except KeyboardInterrupt:
                found = read_index(into)
                assert found.paths == expected.paths
                assert torch.equal(found.embedding, expected.embedding)
    assert len(read_index(into)) == (9 if write == "write_text" else 10)


def test_names_that_are_not_text_and_names_with_line_breaks_are_indexed(pictures: Path, tmp_path: Path) -> None:
    odd = [b"caf\xe9.png", b"two\nlines.png", "ñandú.png".encode()]
    for name in odd:
        write_image(pictures / "plain.png")
        (pictures / "plain.png").rename(pictures / os.fsdecode(name))
    model = small_model()
    build_index(pictures, model, tmp_path / "m", tmp_path / "index")
    answers = Searcher(read_index(tmp_path / "index"), model).search(question(), top=100)
    assert {os.fsencode(answer.path.name) for answer in answers} >= set(odd)
    assert all(answer.path.is_file() for answer in answers)


def test_another_model_is_refused(pictures: Path, tmp_path: Path) -> None:
    build_index(pictures, small_model(0), tmp_path / "m", tmp_path / "index")
    with pytest.raises(SayseeError, match="the index was built with"):
        Searcher(read_index(tmp_path / "index"), small_model(1))


def test_a_damaged_index_is_named(pictures: Path, tmp_path: Path) -> None:
    into = tmp_path / "index"
    with pytest.raises(SayseeError, match="is no index"):
        read_index(into)
    build_index(pictures, small_model(), tmp_path / "m", into)
    described = (into / "index.json").read_text()
    (into / "index.json").write_text(json.dumps({**json.loads(described), "saysee_index": 7}))
    with pytest.raises(SayseeError, match="index format 7"):
        read_index(into)
    (into / "index.json").write_text(described)
    for file in (*into.glob("pictures-*"), *into.glob("vectors-*"), into / "index.json"):
        content = file.read_bytes()
        for broken in (content[: len(content) // 2], content[:-20] + bytes([content[-20] ^ 1]) + content[-19:], None):
            file.unlink() if broken is None else file.write_bytes(broken)
            with pytest.raises(SayseeError, match=r"is damaged|is no index"):
                read_index(into)
            file.write_bytes(content)
    assert len(read_index(into)) == 9


def test_pictures_are_found_in_the_order_of_their_names(pictures: Path) -> None:
    found = list(find_pictures(pictures))
    assert len(found) == 9
    assert found == sorted(found, key=lambda path: (len(path.parts), path.name))


@settings(deadline=None, max_examples=30)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=40), at_once=st.sampled_from([1, 3, 512])
)
def test_a_score_does_not_depend_on_what_is_scored_with_it(pairs: list[tuple[int, int]], at_once: int) -> None:
    from saysee.search import reranker

    model = small_model().eval()
    speech = model.encode_speech([question(seed)[: 4_000 + 3_000 * seed] for seed in range(3)])
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
