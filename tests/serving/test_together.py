"""Questions that come together: a full queue, clients that go away, bad ones among good ones, and the same answers."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from media import BAD_RECORDINGS, encode_image
from saysee.search.question import Question, read_question
from saysee.search.searcher import EncodedQuestion
from saysee.serving.app import create_app
from saysee.serving.limits import ServingLimits
from serving.gallery import LIMITS, Gallery, as_wav, ask, error_of, recordings
from serving.live import live, until


class Slow:
    """A searcher whose encoding waits at a gate, so that a test decides when the model is busy."""

    def __init__(self, gallery: Gallery) -> None:
        self.searcher = gallery.searcher()
        self.gate = threading.Event()
        self.batches: list[int] = []
        self.bad: float | None = None
        encode = self.searcher.encode

        def slow(questions: Sequence[Question]) -> list[EncodedQuestion]:
            self.batches.append(len(questions))
            assert self.gate.wait(30)
            if any(question.seconds == self.bad for question in questions):
                raise RuntimeError("the model stumbles over this one")
            return encode(questions)

        self.searcher.encode = slow  # type: ignore[method-assign]


def test_a_full_queue_refuses_and_those_who_wait_are_answered(gallery: Gallery) -> None:
    slow, recording = Slow(gallery), recordings(1)[0]
    with (
        live(create_app(slow.searcher, LIMITS), LIMITS) as server,
        ThreadPoolExecutor(8) as pool,
        server.client() as client,
    ):
        asked = [pool.submit(ask, client, recording) for _ in range(LIMITS.questions)]
        until(lambda: client.get("/api/health").json()["waiting"] == LIMITS.questions)
        refused = ask(client, recording)
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert "4 questions are waiting" in error_of(refused)
        # what needs no model is answered meanwhile
        item = next(iter(gallery.index().store.items()))
        assert client.get(f"/api/items/{item.id}/thumbnail").status_code == 200
        slow.gate.set()
        assert [one.result().status_code for one in asked] == [200] * LIMITS.questions
        assert client.get("/api/health").json()["waiting"] == 0
        assert ask(client, recording).status_code == 200


def test_a_client_that_goes_away_leaves_the_queue(gallery: Gallery) -> None:
    slow, recording = Slow(gallery), recordings(1)[0]
    head = b"POST /api/search HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(recording)
    with live(create_app(slow.searcher, LIMITS), LIMITS) as server, server.client() as client:
        with ThreadPoolExecutor(2) as pool, server.raw() as gone:
            first = pool.submit(ask, client, recording)
            until(lambda: slow.batches == [1])
            gone.sendall(head + recording)
            until(lambda: client.get("/api/health").json()["waiting"] == 2)
            gone.close()
            until(lambda: client.get("/api/health").json()["waiting"] == 1)
            slow.gate.set()
            assert first.result().status_code == 200
        assert ask(client, recording).status_code == 200
        assert slow.batches == [1, 1]


def test_a_question_that_breaks_the_model_breaks_no_other(gallery: Gallery, caplog: pytest.LogCaptureFixture) -> None:
    slow = Slow(gallery)
    bodies = [as_wav(recordings(1)[0], times) for times in (1, 2, 3, 2)]
    slow.bad = read_question(bodies[2]).seconds
    with (
        live(create_app(slow.searcher, LIMITS), LIMITS) as server,
        ThreadPoolExecutor(4) as pool,
        server.client() as client,
    ):
        first = pool.submit(ask, client, bodies[0])
        until(lambda: slow.batches == [1])
        rest = [pool.submit(ask, client, body) for body in bodies[1:]]
        until(lambda: client.get("/api/health").json()["waiting"] == 4)
        slow.gate.set()
        statuses = [one.result().status_code for one in (first, *rest)]
    assert statuses == [200, 200, 500, 200]
    lines = [record.getMessage() for record in caplog.records if record.name == "saysee.serving"]
    assert len(lines) == 1
    assert lines[0].startswith("RuntimeError in test_together.py:")
    assert "stumbles" not in lines[0]


def test_questions_that_arrive_together_get_what_each_gets_alone(gallery: Gallery) -> None:
    limits = ServingLimits(questions=64, rate=10_000, burst=100_000)
    bodies = recordings(24)
    rubbish = [BAD_RECORDINGS[kind]() for kind in ("half a flac", "a text", "silent", "NaN")]
    with live(create_app(gallery.searcher(), limits), limits) as server, server.client() as client:
        alone = [ask(client, body).json()["answers"] for body in bodies]
        with ThreadPoolExecutor(24) as pool:
            asked = [pool.submit(ask, client, body) for pair in zip(bodies, rubbish * 6, strict=True) for body in pair]
            together = [one.result() for one in asked]
    assert {answer.status_code for answer in together[1::2]} <= {415, 422}
    for mine, theirs in zip(together[::2], alone, strict=True):
        found = mine.json()["answers"]
        assert [one["id"] for one in found] == [one["id"] for one in theirs]
        for a, b in zip(found, theirs, strict=True):
            assert a["coarse"] == pytest.approx(b["coarse"], abs=1e-5)
            assert (a["fine"] or 0) == pytest.approx(b["fine"] or 0, abs=1e-3)


def test_decoded_questions_count_as_held(gallery: Gallery) -> None:
    """A picture of 8 kB that decodes to 9 MB, where all together may hold 4 MB."""
    limits = ServingLimits(held_bytes=4_000_000)
    with live(create_app(gallery.searcher(), limits), limits) as server, server.client() as client:
        for _ in range(2):  # and what was held is free again
            answer = ask(client, encode_image(Image.new("RGB", (2000, 1500))))
            assert answer.status_code == 503
            assert ask(client, encode_image(Image.new("RGB", (800, 600)))).status_code == 200
