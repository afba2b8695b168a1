"""What cannot be asked is refused in one form and one line, and none of it is logged."""

import json
import logging

import httpx
import pytest
from PIL import Image

from media import BAD_PICTURES, BAD_RECORDINGS, encode_audio, encode_image, sine
from saysee.serving.app import create_app
from saysee.serving.guards import Access
from serving.gallery import LIMITS, Gallery, as_wav, ask, error_of, recordings
from serving.live import live


@pytest.mark.parametrize("kind", BAD_RECORDINGS)
def test_a_bad_recording_is_refused_in_one_line(client: httpx.Client, kind: str) -> None:
    body = BAD_RECORDINGS[kind]()
    answer = ask(client, body)
    if kind in ("a picture", "half a webm"):  # a picture may be asked; of half a webm the half is heard, or no speech
        assert answer.status_code in (200, 422)
        return
    assert answer.status_code == {"empty": 400, "a text": 415}.get(kind, 422)
    assert error_of(answer)


@pytest.mark.parametrize("kind", BAD_PICTURES)
def test_a_bad_picture_is_refused_in_one_line(client: httpx.Client, kind: str) -> None:
    answer = ask(client, BAD_PICTURES[kind]())
    assert answer.status_code == {"empty": 400, "a text": 415}.get(kind, 422)
    assert error_of(answer)


def test_limits_of_the_server_are_stricter_than_those_of_files(client: httpx.Client) -> None:
    recording = recordings(1)[0]
    for body, status, reason in (
        (as_wav(recording, 30), 422, "at most 20 s are allowed"),
        (encode_image(Image.new("1", (2000, 2000))), 422, "at most 3,000,000 are allowed"),
        (bytes(4_000_001), 413, "at most 4,000,000 are allowed"),
        (encode_audio(sine(1.0), 16_000, "wav"), 422, "no speech"),
    ):
        answer = ask(client, body)
        assert answer.status_code == status
        assert reason in error_of(answer)


@pytest.mark.parametrize(
    "query",
    [
        "top=0",
        "top=-1",
        "top=101",
        "top=1_0",
        "top=ten",
        "top=1e1",
        "top=",
        "top=" + "9" * 5000,
        "rerank=257",
        "rerank=-1",
        "path=",
        "path=" + "x" * 500,
        "since=20240101",
        "since=1714521600",
        "since=2024-02-30",
        "until=yesterday",
        "since=2024-02-01&until=2024-01-01",
        "tpo=5",
    ],
)
def test_a_parameter_that_is_not_allowed_is_named(client: httpx.Client, query: str) -> None:
    answer = client.post(f"/api/search?{query}", content=recordings(1)[0])
    assert answer.status_code == 422
    assert query.partition("=")[0] in error_of(answer)


def test_odd_patterns_find_nothing_or_something_and_break_nothing(client: httpx.Client) -> None:
    for pattern in (
        "'",
        '"; DROP TABLE items --',
        "*" * 400,
        "[",
        "[^",
        "\x00",
        "%",
        "\ud800".encode("utf-8", "replace"),
    ):
        answer = ask(client, recordings(1)[0], path=pattern)
        assert answer.status_code == 200, (pattern, answer.text)
    raw = client.post("/api/search?path=%ff%fe%00", content=recordings(1)[0])
    assert raw.status_code == 200


def test_a_picture_has_no_attention_of_its_own(client: httpx.Client, gallery: Gallery) -> None:
    item = next(iter(gallery.index().store.items()))
    answer = client.post(f"/api/items/{item.id}/attention", content=encode_image(Image.new("RGB", (50, 50))))
    assert answer.status_code == 415
    assert "send a recording" in error_of(answer)


def test_routes_and_methods_that_are_not_there(client: httpx.Client) -> None:
    assert error_of(client.get("/api/nothing")) == "there is nothing here"
    for method, path in (("GET", "/api/search"), ("POST", "/api/about"), ("DELETE", "/api/health"), ("PUT", "/")):
        answer = client.request(method, path)
        assert answer.status_code == 405
        assert answer.headers["allow"]
        error_of(answer)


# ---- what is told to whom


def test_questions_are_not_logged(client: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        assert ask(client, recordings(1)[0], path="*secret*").status_code == 200
        assert ask(client, b"secret", path="*secret*").status_code == 415
        assert ask(client, recordings(1)[0], top=1000, path="*secret*").status_code == 422
        assert client.get("/api/secret").status_code == 404
    own = [record.getMessage() for record in caplog.records if record.name.partition(".")[0] in ("saysee", "uvicorn")]
    assert own == []


def test_the_description_names_every_refusal_in_one_form(client: httpx.Client, gallery: Gallery) -> None:
    described = client.get("/api/openapi.json").json()
    assert "HTTPValidationError" not in json.dumps(described)
    operations = [
        (path, method, operation)
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    ]
    assert {path for path, _, _ in operations} == {
        "/api/health",
        "/api/about",
        "/api/search",
        "/api/items/{item_id}/similar",
        "/api/items/{item_id}/attention",
        "/api/items/{item_id}/thumbnail",
        "/api/items/{item_id}/picture",
    }
    for path, method, operation in operations:
        refusals = {status: answer for status, answer in operation["responses"].items() if status >= "4"}
        assert {"400", "403", "408", "413", "429", "500", "503"} <= set(refusals)
        assert ("401" in refusals) == (path != "/api/health")
        assert ("422" in refusals) == (
            "parameters" in operation and "/thumbnail" not in path and "/picture" not in path
        )
        for status, refusal in refusals.items():
            assert refusal["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Error"}
            assert ("Retry-After" in refusal.get("headers", {})) == (status in ("429", "503"))
        assert (method == "post") == ("requestBody" in operation)


def test_a_required_token_is_described_and_asked_for(gallery: Gallery) -> None:
    token = "a token of thirty-two characters"
    with live(create_app(gallery.searcher(), LIMITS, Access(token=token)), LIMITS) as server, server.client() as client:
        assert client.get("/api/about").status_code == 401
        assert client.get("/api/openapi.json").status_code == 401
        client.headers["authorization"] = f"Bearer {token}"
        assert client.get("/api/about").json()["token"] is True
        described = client.get("/api/openapi.json").json()
        assert described["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
        assert "security" not in described["paths"]["/api/health"]["get"]
        assert "security" in described["paths"]["/api/search"]["post"]
