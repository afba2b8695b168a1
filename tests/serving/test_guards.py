"""How much a client may send, how slowly, how often, and what is no request at all; seen from a socket."""

import contextlib
import time
from contextlib import ExitStack

import pytest

from saysee.serving.guards import Access, Guard
from saysee.serving.limits import ServingLimits
from serving.live import Live, live, read_answer, until
from serving.probe import BEARER, SMALL, Probe, head_of

# ---- how much


def test_a_large_body_is_refused_by_its_head(guarded: Live, probe: Probe) -> None:
    with guarded.raw() as connection:
        connection.sendall(head_of("POST", "/api/search", **{"content-length": str(10**15)}))
        answer = read_answer(connection, "POST")
    assert (answer.status, answer.closed) == (413, True)
    assert b"at most 100,000 are allowed" in answer.body
    assert not probe.asked


def test_a_large_body_without_a_length_is_refused_while_it_comes(guarded: Live, probe: Probe) -> None:
    chunk = b"4000\r\n" + bytes(0x4000) + b"\r\n"
    with guarded.raw() as connection:
        connection.sendall(head_of("POST", "/api/search", **{"transfer-encoding": "chunked"}))
        connection.sendall(chunk * 7)
        answer = read_answer(connection, "POST")
        # the rest is read and dropped, but not for ever
        with pytest.raises(ConnectionError):
            for _ in range(100_000):
                connection.sendall(chunk)
    assert answer.status == 413
    assert not probe.asked


def test_a_client_that_sends_all_before_it_reads_sees_the_refusal(guarded: Live) -> None:
    with guarded.client(headers=BEARER) as client:
        for _ in range(3):
            assert client.post("/api/search", content=bytes(1_000_000)).status_code == 413


def test_a_body_of_the_allowed_size_comes_through(guarded: Live, probe: Probe) -> None:
    with guarded.client(headers=BEARER) as client:
        assert client.post("/api/search", content=bytes(100_000)).json() == {"bytes": 100_000}
        assert client.post("/api/search", content=iter([b"ab", b"cd"])).json() == {"bytes": 4}
        assert client.post("/api/search", content=bytes(100_001)).status_code == 413
    assert [len(body) for _, body in probe.asked] == [100_000, 4]


def test_all_bodies_together_are_bounded(probe: Probe) -> None:
    """Two that are allowed alone, the first of them not whole yet; what was held is free afterwards."""
    limits = ServingLimits(body_bytes=100_000, held_bytes=150_000, body_seconds=5)
    with live(Guard(probe, Access(), limits), limits) as server, server.client() as client:
        with server.raw() as connection:
            connection.sendall(head_of("POST", "/api/search", **{"content-length": "100000"}) + bytes(90_000))
            until(lambda: client.post("/api/search", content=bytes(70_000)).status_code == 503)
            refused = client.post("/api/search", content=bytes(70_000))
            assert refused.headers["retry-after"] == "1"
            assert client.post("/api/search", content=bytes(50_000)).status_code == 200
        until(lambda: client.post("/api/search", content=bytes(100_000)).status_code == 200)


# ---- how slowly


def test_a_slow_body_is_given_up(guarded: Live, probe: Probe) -> None:
    with guarded.raw() as connection:
        connection.sendall(head_of("POST", "/api/search", **{"content-length": "1000"}) + b"x")
        answer = read_answer(connection, "POST")
    assert (answer.status, answer.closed) == (408, True)
    assert not probe.asked


@pytest.mark.parametrize("first", [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\n"])
def test_a_slow_head_is_given_up(guarded: Live, probe: Probe, first: bytes) -> None:
    begun = time.monotonic()
    with guarded.raw() as connection:
        connection.sendall(first)
        answer = read_answer(connection)
    assert (answer.status, answer.closed) == (408, True)
    assert time.monotonic() - begun >= SMALL.header_seconds
    assert not probe.asked


def test_a_head_that_comes_byte_by_byte_is_given_up_after_an_earlier_request_too(guarded: Live) -> None:
    with guarded.raw() as connection:
        connection.sendall(head_of("GET", "/api/about"))
        assert read_answer(connection).status == 200
        with pytest.raises(ConnectionError):  # what is sent to a closed connection
            for byte in b"GET / HTTP/1.1\r\nX: " + b"x" * 1000:
                connection.sendall(bytes([byte]))
                time.sleep(0.02)


def test_an_idle_connection_is_closed(guarded: Live) -> None:
    with guarded.raw() as connection:
        connection.sendall(head_of("GET", "/api/about"))
        assert read_answer(connection).status == 200
        assert connection.recv(1) == b""


def test_a_client_that_does_not_read_is_cut_off(guarded: Live, probe: Probe) -> None:
    with guarded.raw() as connection:
        connection.sendall(head_of("GET", "/api/large"))
        until(lambda: bool(probe.asked))
        time.sleep(3 * SMALL.write_seconds)
        received = 0
        with pytest.raises(ConnectionError):
            while piece := connection.recv(1 << 20):
                received += len(piece)
            raise ConnectionResetError  # an end in the middle of the body is as good
        assert received < 64 * 1024 * 1024


def test_what_takes_too_long_is_called_off(guarded: Live, probe: Probe) -> None:
    with guarded.client(headers=BEARER) as client:
        answer = client.get("/api/slow")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "5"
    assert probe.called_off.wait(5)


def test_what_a_client_waited_for_is_called_off_when_it_goes(guarded: Live, probe: Probe) -> None:
    limits = ServingLimits(answer_seconds=60)
    with live(Guard(probe, Access(), limits), limits) as server:
        with server.raw() as connection:
            connection.sendall(head_of("GET", "/api/slow"))
            until(lambda: bool(probe.asked))
        assert probe.called_off.wait(5)


# ---- what is no request


@pytest.mark.parametrize(
    "rubbish",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),  # TLS
        b"\x00" * 100 + b"\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: \x00\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nno number\r\n\r\n",
    ],
    ids=lambda rubbish: ascii(rubbish[:40]),
)
def test_what_is_no_http_gets_400(guarded: Live, probe: Probe, rubbish: bytes) -> None:
    with guarded.raw() as connection:
        connection.sendall(rubbish)
        answer = read_answer(connection)
    assert answer.status in (400, 501)
    assert b'{"error": ' in answer.body
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert not probe.asked
    with guarded.client() as client:
        assert client.get("/api/health").status_code == 200


@pytest.mark.parametrize("start", [b"GET /", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: "])
def test_a_head_without_end_is_refused(guarded: Live, probe: Probe, start: bytes) -> None:
    with guarded.raw() as connection, contextlib.suppress(ConnectionError):
        connection.sendall(start)
        for _ in range(100):
            connection.sendall(b"x" * 100_000)
        pytest.fail("ten megabytes were taken")
    assert not probe.asked


def test_requests_may_follow_each_other_without_waiting(guarded: Live, probe: Probe) -> None:
    with guarded.raw() as connection:
        connection.sendall(head_of("GET", "/api/a") + head_of("GET", "/api/b") + head_of("GET", "/api/c")[:-2])
        assert read_answer(connection).status == 200
        connection.sendall(b"\r\n")
        until(lambda: [path for path, _ in probe.asked] == ["/api/a", "/api/b", "/api/c"])


def test_a_method_with_a_body_that_nobody_wants_is_bounded_too(guarded: Live) -> None:
    with guarded.raw() as connection:
        connection.sendall(head_of("GET", "/api/about", **{"content-length": "100000000"}))
        assert read_answer(connection).status == 413


# ---- how often, how many


def test_the_rate_of_a_client_is_limited_whatever_it_says_of_itself(probe: Probe) -> None:
    limits = ServingLimits(rate=0.5, burst=12, question_cost=5)
    with live(Guard(probe, Access(), limits), limits) as server, server.client() as client:
        statuses = []
        for number in range(4):
            answer = client.post("/api/search", headers={"x-forwarded-for": f"10.0.0.{number}"}, content=b"x")
            statuses.append(answer.status_code)
        assert statuses == [200, 200, 429, 429]
        assert 1 <= int(answer.headers["retry-after"]) <= 10
        assert [client.get("/api/about").status_code for _ in range(2)] == [200, 200]
    assert len(probe.asked) == 4


def test_too_many_connections_are_refused_and_there_is_room_again(guarded: Live) -> None:
    with ExitStack() as stack:
        connections = [stack.enter_context(guarded.raw()) for _ in range(SMALL.connections)]
        for connection in connections:  # they are all there when the last has its answer
            connection.sendall(head_of("GET", "/api/about"))
            assert read_answer(connection).status == 200
        with guarded.raw() as further:
            answer = read_answer(further)
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    with guarded.client() as client:
        until(lambda: client.get("/api/health").status_code == 200)
