"""A question against an index: the ranking is the one that is measured, in every direction."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from media import write_image, write_wav
from saysee.errors import SayseeError
from saysee.features.image import load_image
from saysee.models.calibration import Calibration
from saysee.models.retrieval_model import SpeechImageModel
from saysee.search.building import update_index
from saysee.search.index import Index, open_index
from saysee.search.question import Question
from saysee.search.reranker import fuse, match_logits
from saysee.search.searcher import Searcher
from saysee.search.stores.base import Filter
from small_indexes import build, by_path, indexed, spoken, write_pictures
from stubs import small_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "pictures")


def reference(index: Index, model: SpeechImageModel, question: Question) -> tuple[list[Path], Tensor, Tensor]:
    """The pictures, their coarse scores and their log-odds, computed one by one with nothing prepared or stored."""
    assert question.waveform is not None
    speech = model.encode_speech(question.waveform)
    paths = [index.file(item) for item in index.store.items()]
    images = model.encode_image(paths)
    rows = torch.arange(len(paths))
    logits = match_logits(model, speech, images.hidden.half(), torch.zeros_like(rows), rows)
    return paths, (speech.embedding @ images.embedding.T)[0], logits


@pytest.mark.parametrize("fusion", ["match", "match+similarity", "match+scaled-similarity"])
def test_a_search_ranks_as_evaluation_does(folder: Path, tmp_path: Path, fusion: str) -> None:
    """Coarse by cosine; the best k by the fused score; below k the coarse order."""
    model = small_model(rerank=4)
    index = indexed(folder, model, tmp_path / "index")
    searcher = Searcher(index, model)
    for seed in range(5):
        paths, similarity, logits = reference(index, model, spoken(seed))
        order = similarity.argsort(descending=True).tolist()
        coarse = searcher.search(spoken(seed), top=9, rerank=0).answers
        assert [answer.path for answer in coarse] == [paths[row] for row in order]
        assert all(answer.fine is None for answer in coarse)

        fine = searcher.search(spoken(seed), top=9, fusion=fusion).answers  # type: ignore[arg-type]
        best = order[:4]
        rule = replace(model.config.search, fusion=fusion)  # type: ignore[arg-type]
        fused = fuse(logits[best], similarity[best], model.temperature, rule)
        expected = [*(best[n] for n in fused.argsort(descending=True).tolist()), *order[4:]]
        assert [answer.path for answer in fine] == [paths[row] for row in expected]
        assert [answer.rank for answer in fine] == list(range(1, 10))
        for answer, row in zip(fine, expected, strict=True):
            assert answer.coarse == pytest.approx(similarity[row].item(), abs=1e-6)
            if row in best:
                assert answer.fine == pytest.approx(logits[row].item(), abs=1e-5)
            else:
                assert answer.fine is None


def test_questions_encoded_together_are_answered_as_alone(folder: Path, tmp_path: Path) -> None:
    model = small_model(rerank=4)
    searcher = Searcher(indexed(folder, model, tmp_path / "index"), model)
    picture = Question("picture", image=load_image(folder / "red o'clock 0.png"))
    questions = [spoken(0), picture, spoken(1, 5_000), spoken(2, 20_000)]
    together = [searcher.rank(encoded).answers for encoded in searcher.encode(questions)]
    for question, answers in zip(questions, together, strict=True):
        alone = searcher.search(question).answers
        assert [answer.id for answer in answers] == [answer.id for answer in alone]
        scores = [[answer.coarse, answer.fine or 0.0] for answer in answers]
        np.testing.assert_allclose(scores, [[answer.coarse, answer.fine or 0.0] for answer in alone], atol=1e-5)


def test_k_and_top_are_clamped_to_the_index(folder: Path, tmp_path: Path) -> None:
    model = small_model()
    searcher = Searcher(indexed(folder, model, tmp_path / "index"), model)
    answers = searcher.search(spoken(), top=1000, rerank=1000).answers
    assert len(answers) == 9
    assert all(answer.fine is not None for answer in answers)
    for top, rerank in ((0, None), (-1, None), (5, -1)):
        with pytest.raises(SayseeError, match="allowed: 1 or more answers"):
            searcher.search(spoken(), top=top, rerank=rerank)


def test_only_what_passes_the_filter_is_ranked(folder: Path, tmp_path: Path) -> None:
    model = small_model(rerank=2)
    searcher = Searcher(indexed(folder, model, tmp_path / "index"), model)
    everything = searcher.search(spoken(), top=9, rerank=0).answers
    nested = searcher.search(spoken(), top=9, rerank=0, only=Filter(path="nested/*")).answers
    assert [answer.id for answer in nested] == [
        answer.id for answer in everything if answer.path.parent.name == "nested"
    ]
    assert searcher.search(spoken(), only=Filter(path="nothing")).answers == ()
    fine = searcher.search(spoken(), only=Filter(path="*red*")).answers
    assert len(fine) == 1
    assert fine[0].fine is not None


def test_a_picture_finds_pictures_and_more_like_it(folder: Path, tmp_path: Path) -> None:
    model = small_model()
    index = indexed(folder, model, tmp_path / "index")
    searcher = Searcher(index, model)
    path = folder / "blue o'clock 2.png"
    answers = searcher.search(Question("picture", image=load_image(path)), top=9).answers
    assert answers[0].path == path
    assert answers[0].coarse == pytest.approx(1, abs=1e-5)
    assert all(answer.fine is None for answer in answers)
    like = searcher.like(answers[0].id, top=8).answers
    assert [answer.id for answer in like] == [answer.id for answer in answers[1:]]
    assert [answer.rank for answer in like] == list(range(1, 9))
    with pytest.raises(KeyError):
        searcher.like("0" * 32)


def test_a_picture_finds_recordings_in_two_stages(tmp_path: Path) -> None:
    folder, model = tmp_path / "sounds", small_model(rerank=3)
    folder.mkdir()
    for number in range(6):
        write_wav(folder / f"{number}.wav", 0.3 + 0.1 * number, frequency=300.0 + 50 * number)
    index = indexed(folder, model, tmp_path / "index", kind="recording")
    image = load_image(write_image(tmp_path / "red.png", colour="red"))
    answers = Searcher(index, model).search(Question("picture", image=image), top=6, fusion="match").answers
    paths = [index.file(item) for item in index.store.items()]
    speech, picture = model.encode_speech(paths), model.encode_image(image)
    similarity = (picture.embedding @ speech.embedding.T)[0]
    rows = torch.arange(6)
    logits = match_logits(model, speech, picture.hidden, rows, torch.zeros_like(rows))
    order = similarity.argsort(descending=True).tolist()
    best = sorted(order[:3], key=lambda row: -float(logits[row]))
    assert [answer.path for answer in answers] == [paths[row] for row in [*best, *order[3:]]]
    for answer, row in zip(answers, best, strict=False):
        assert answer.fine == pytest.approx(logits[row].item(), abs=5e-3)  # stored as float16


def test_a_model_without_the_fine_stage_ranks_coarse(folder: Path, tmp_path: Path) -> None:
    model = small_model(matching=False)
    searcher = Searcher(indexed(folder, model, tmp_path / "index"), model)
    assert all(answer.fine is None for answer in searcher.search(spoken()).answers)
    with pytest.raises(SayseeError, match=r"loss\.matching off"):
        searcher.search(spoken(), rerank=3)


def test_an_index_without_the_fine_stage_ranks_coarse(folder: Path, tmp_path: Path) -> None:
    model = small_model()
    searcher = Searcher(indexed(folder, model, tmp_path / "index", coarse_only=True), model)
    answers = searcher.search(spoken()).answers
    assert all(answer.fine is None for answer in answers)
    with pytest.raises(SayseeError, match="built without the fine stage"):
        searcher.search(spoken(), rerank=3)
    with pytest.raises(SayseeError, match="built without the fine stage"):
        searcher.attention(searcher.encode([spoken()])[0], answers[0].id)


def test_scores_that_are_not_finite_are_not_ranked(folder: Path, tmp_path: Path) -> None:
    model = small_model()
    with torch.no_grad():
        model.require_multimodal_encoder().head.weight.fill_(torch.nan)
    with pytest.raises(SayseeError, match="not finite"):
        Searcher(indexed(folder, model, tmp_path / "index"), model).search(spoken())


def test_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    build(folder, small_model(0), tmp_path / "index")
    with pytest.raises(SayseeError, match=r"the index was built with .*, and runs/b has fingerprint"):
        Searcher(open_index(tmp_path / "index"), small_model(1), "runs/b")


def test_a_changed_picture_is_matched_with_its_new_tokens(folder: Path, tmp_path: Path) -> None:
    """What was prepared for the old content must not answer for the new one."""
    model = small_model(rerank=9)
    index = indexed(folder, model, tmp_path / "index")
    searcher = Searcher(index, model)
    searcher.search(spoken(), top=9)
    write_image(folder / "red o'clock 0.png", colour="cyan")
    update_index(index, model)
    paths, _, logits = reference(index, model, spoken())
    for answer in searcher.search(spoken(), top=9).answers:
        assert answer.fine == pytest.approx(logits[paths.index(answer.path)].item(), abs=1e-5)


def test_what_another_process_removed_is_not_answered(folder: Path, tmp_path: Path) -> None:
    model, into = small_model(rerank=9), tmp_path / "index"
    searcher, writer = Searcher(indexed(folder, model, into), model), open_index(into)
    gone = by_path(writer)["red o'clock 0.png"].id
    writer.store.write(remove=[gone])
    answers = searcher.search(spoken(), top=9).answers
    assert len(answers) == 8
    assert gone not in {answer.id for answer in answers}
    assert [answer.rank for answer in answers] == list(range(1, 9))


def test_tokens_that_are_not_kept_are_made_again_and_a_file_that_is_gone_comes_last(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model(rerank=9)
    index = indexed(folder, model, tmp_path / "index")
    paths, similarity, logits = reference(index, model, spoken())
    monkeypatch.setattr(index.store, "hidden", lambda _: None)  # as a cluster's store does
    searcher = Searcher(index, model)
    (folder / "red o'clock 0.png").rename(tmp_path / "away.png")
    for _ in range(2):  # the second time from what is prepared
        answers = searcher.search(spoken(), top=9, fusion="match").answers
        assert [answer.fine is None for answer in answers] == [False] * 8 + [True]
        assert answers[-1].path.name == "red o'clock 0.png"
        for answer in answers[:-1]:
            assert answer.fine == pytest.approx(logits[paths.index(answer.path)].item(), abs=5e-3)
        for answer in answers:
            assert answer.coarse == pytest.approx(similarity[paths.index(answer.path)].item(), abs=1e-6)


def test_nothing_here_fits_is_said_of_a_best_score_that_mismatched_pairs_get(folder: Path, tmp_path: Path) -> None:
    model = small_model()
    searcher = Searcher(indexed(folder, model, tmp_path / "index"), model)
    assert searcher.search(spoken()).chance is None
    assert searcher.search(spoken()).fits is None
    low, high = (
        Calibration(model.fingerprint, 10, 10, 90, tuple(np.linspace(start, start + 1, 100).tolist()), 0.1)
        for start in (-50.0, 50.0)
    )
    searcher.calibration = low
    assert searcher.search(spoken()).fits is True
    searcher.calibration = high
    answers = searcher.search(spoken())
    assert answers.fits is False
    assert len(answers.answers) == 9  # they are given all the same
    assert searcher.search(spoken(), only=Filter(path="*")).chance is None


def test_the_heat_map_is_of_the_stored_tokens(folder: Path, tmp_path: Path) -> None:
    from saysee.models.heat import attention_map

    model = small_model()
    index = indexed(folder, model, tmp_path / "index")
    searcher = Searcher(index, model)
    (encoded,) = searcher.encode([spoken()])
    item = next(index.store.items())
    heat = searcher.attention(encoded, item.id)
    waveform = spoken().waveform
    assert waveform is not None
    expected = attention_map(model, model.encode_speech(waveform), model.encode_image(index.file(item)).hidden[0])
    np.testing.assert_allclose(heat.weights, expected.weights, atol=1e-3)
    with pytest.raises(KeyError):
        searcher.attention(encoded, "0" * 32)
    (picture,) = searcher.encode([Question("picture", image=load_image(index.file(item)))])
    with pytest.raises(SayseeError, match="ask with a recording"):
        searcher.attention(picture, item.id)
