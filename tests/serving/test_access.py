"""Who may ask: by which name, from which page, with which token; and what every answer says to a browser."""

import logging
import re

import pytest

from saysee.serving.guards import CONTENT_SECURITY_POLICY, HEADERS, Access, Guard
from serving.live import Live, live, read_answer
from serving.probe import BEARER, SECRET, SMALL, TOKEN, Probe


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:1", 200),
        ("localhost", 200),
        ("LOCALHOST:8765", 200),
        ("[::1]:80", 200),
        ("localhost.", 200),
        ("pictures.example:8765", 200),
        ("evil.example", 403),
        ("localhost.evil.example:8765", 403),
        ("127.0.0.1.evil.example", 403),
        ("192.168.1.5:8765", 403),
        ("evil.example@localhost", 403),
        ("localhost/evil.example", 403),
        ("localhost:port", 403),
        ("[::1", 403),
        ("", 403),
    ],
)
def test_only_names_of_this_server_are_answered(guarded: Live, probe: Probe, host: str, status: int) -> None:
    """DNS rebinding: a page of evil.example, whose name leads here by now, sends its own name as Host."""
    with guarded.client() as client:
        answer = client.get("/api/health", headers={"host": host})
        assert answer.status_code == status
        assert (len(probe.asked) == 1) == (status == 200)
        if status == 403:
            assert "this server is not called" in answer.json()["error"]


def test_an_address_is_a_name_only_where_other_machines_may_ask(probe: Probe) -> None:
    with live(Guard(probe, Access(any_address=True, token=TOKEN), SMALL), SMALL) as server, server.client() as client:
        for host, status in (("192.168.1.5:8765", 200), ("[fe80::1]:8765", 200), ("evil.example", 403)):
            assert client.get("/api/health", headers={"host": host}).status_code == status


def test_two_hosts_and_none_are_refused(guarded: Live) -> None:
    for head in (
        b"GET /api/health HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
    ):
        with guarded.raw() as connection:
            connection.sendall(head)
            assert read_answer(connection).status in (400, 403)


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:8765", 200),
        ("https://localhost:8765", 200),  # something before this server speaks TLS
        ("http://localhost:3000", 403),
        ("http://localhost", 403),
        ("http://evil.example", 403),
        ("http://localhost:8765.evil.example", 403),
        ("http://localhost:8765@evil.example", 403),
        ("http://127.0.0.1:8765", 403),  # another origin than the one that is asked
        ("file://", 403),
        ("null", 403),
    ],
)
def test_pages_of_other_origins_are_refused(guarded: Live, origin: str, status: int) -> None:
    with guarded.client() as client:
        headers = {"host": "localhost:8765", "origin": origin, **BEARER}
        assert client.post("/api/search", headers=headers, content=b"x").status_code == status


def test_what_the_browser_says_of_a_request_is_believed(guarded: Live, probe: Probe) -> None:
    """An image of another site's page sends no Origin."""
    with guarded.client() as client:
        for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)):
            assert client.get("/api/items", headers={"sec-fetch-site": site, **BEARER}).status_code == status
        # a link to the page itself may stand anywhere
        assert client.get("/", headers={"sec-fetch-site": "cross-site"}).status_code == 200


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (None, 401),
        (b"", 401),
        (f"Bearer {TOKEN}".encode(), 200),
        (f"bearer {TOKEN}".encode(), 200),
        (f"Basic {TOKEN}".encode(), 401),
        (b"Bearer", 401),
        (f"Bearer {TOKEN}x".encode(), 401),
        (f"Bearer {TOKEN[:-1]}".encode(), 401),
        (TOKEN.encode(), 401),
        (b"Bearer \xf1", 401),
    ],
)
def test_the_api_needs_the_token(guarded: Live, probe: Probe, header: bytes | None, status: int) -> None:
    with guarded.client() as client:
        answer = client.get("/api/about", headers=[] if header is None else [(b"authorization", header)])
        assert answer.status_code == status
        assert bool(probe.asked) == (status == 200)
        if status == 401:
            assert answer.headers["www-authenticate"] == "Bearer"
            assert TOKEN not in answer.text
        # what a page needs before it can send one
        assert client.get("/").status_code == client.get("/api/health").status_code == 200


def test_every_answer_has_the_security_headers(guarded: Live, caplog: pytest.LogCaptureFixture) -> None:
    with guarded.client(headers=BEARER) as client:
        answers = [
            client.get("/api/about"),
            client.get("/api/fault"),
            client.get("/api/about", headers={"host": "evil.example"}),
            client.post("/api/search", content=bytes(200_000)),
        ]
    assert [answer.status_code for answer in answers] == [200, 500, 403, 413]
    for answer in answers:
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    assert "'unsafe" not in CONTENT_SECURITY_POLICY
    assert "http" not in CONTENT_SECURITY_POLICY
    with guarded.client(headers=BEARER) as client:
        own = client.get("/api/own")
    assert own.headers.get_list("cache-control") == ["private"]


def test_a_fault_is_one_line_in_the_log_without_what_was_asked(guarded: Live, caplog: pytest.LogCaptureFixture) -> None:
    with guarded.client(headers=BEARER) as client, caplog.at_level(logging.DEBUG):
        answer = client.get("/api/fault", params={"path": SECRET})
    assert answer.status_code == 500
    assert answer.json() == {"error": "a fault of the server; its log names the place"}
    lines = [record.getMessage() for record in caplog.records if record.name.startswith(("saysee", "uvicorn"))]
    assert len(lines) == 1
    assert re.fullmatch(r"RuntimeError in probe.py:\d+, GET '/api/fault'", lines[0])
