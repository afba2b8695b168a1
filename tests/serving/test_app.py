"""Search over HTTP: answers are the searcher's, pictures leave without metadata, and nothing is named but by its id."""

import base64
import io
import os
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from media import BAD_PICTURES, AudioKind, encode_audio, encode_image
from saysee.features.audio import load_waveform
from saysee.search.building import update_index
from saysee.search.question import read_question
from saysee.serving.app import create_app
from serving.gallery import CAMERA, LIMITS, Gallery, as_wav, ask, error_of, make_gallery, recordings
from serving.live import Live, live, read_answer
from stubs import small_model


def test_a_recording_gets_the_answers_that_the_searcher_gives(client: httpx.Client, gallery: Gallery) -> None:
    searcher = gallery.searcher()
    for recording in recordings(4):
        question = read_question(recording)
        expected = searcher.search(question, top=12)
        answer = ask(client, recording)
        assert answer.status_code == 200
        found = answer.json()
        assert [one["id"] for one in found["answers"]] == [one.id for one in expected.answers]
        for mine, theirs in zip(found["answers"], expected.answers, strict=True):
            assert mine["rank"] == theirs.rank
            assert mine["coarse"] == pytest.approx(theirs.coarse, abs=1e-5)
            assert (mine["fine"] is None) == (theirs.fine is None)
            if theirs.fine is not None:
                assert mine["fine"] == pytest.approx(theirs.fine, abs=1e-4)
            assert (gallery.pictures / mine["path"]).name == mine["name"] or "\ufffd" in mine["name"]
        assert sum(one["fine"] is not None for one in found["answers"]) == 3  # the model's own k
        assert found["kind"] == "recording"
        assert found["seconds"] == pytest.approx(question.seconds)
        assert found["heard"] == pytest.approx(question.heard)
        assert (found["fits"], found["chance"]) == (None, None)  # this model is not calibrated
        assert set(found["timings"]) == {"decode", "wait", "encode", "coarse", "fine"}


def test_the_format_of_a_recording_is_told_by_its_content(client: httpx.Client) -> None:
    recording = recordings(1)[0]
    waveform = load_waveform(recording)
    best = ask(client, recording, rerank=0).json()["answers"][0]
    kinds: tuple[AudioKind, ...] = ("wav", "flac", "webm", "m4a")
    for kind in kinds:
        lossless = kind in ("wav", "flac")
        answer = client.post(
            "/api/search?rerank=0",
            # WebM's codec knows no 16 kHz
            content=encode_audio(waveform if lossless else waveform.repeat(3), 16_000 if lossless else 48_000, kind),
            headers={"content-type": "text/html; charset=nonsense"},
        )
        assert answer.status_code == 200, answer.text
        if lossless:
            assert answer.json()["answers"][0]["coarse"] == pytest.approx(best["coarse"], abs=1e-3)


def test_a_picture_may_be_the_question(client: httpx.Client, gallery: Gallery) -> None:
    answer = ask(client, (gallery.pictures / "picture 04.png").read_bytes(), top=2).json()
    assert (answer["kind"], answer["seconds"], answer["heard"]) == ("picture", None, None)
    assert answer["answers"][0]["path"] == "picture 04.png"
    assert answer["answers"][0]["coarse"] == pytest.approx(1.0, abs=1e-5)


def test_questions_can_be_narrowed(client: httpx.Client) -> None:
    recording = recordings(1)[0]
    assert len(ask(client, recording, top=30).json()["answers"]) == 18
    assert len(ask(client, recording, top=5).json()["answers"]) == 5
    unranked = ask(client, recording, rerank=0).json()["answers"]
    assert [one["fine"] for one in unranked] == [None] * 12
    assert [one["coarse"] for one in unranked] == sorted((one["coarse"] for one in unranked), reverse=True)
    nested = ask(client, recording, top=30, path="nested/*").json()["answers"]
    assert sorted(one["path"] for one in nested) == [f"nested/picture {number:02}.png" for number in range(1, 14, 2)]
    assert len(ask(client, recording, path="o'clock.png").json()["answers"]) == 1
    assert ask(client, recording, since="2999-01-01").json()["answers"] == []
    assert len(ask(client, recording, top=30, since="1970-01-01", until="2999-01-01").json()["answers"]) == 18


def test_names_that_are_not_text_are_answered_as_text(client: httpx.Client) -> None:
    found = ask(client, recordings(1)[0], top=30).json()["answers"]
    assert {"o'clock.png", "two\nlines.png", "caf\ufffd.png"} < {one["name"] for one in found}
    for one in found:
        assert client.get(f"/api/items/{one['id']}/picture").status_code == 200


def test_what_is_like_a_picture(client: httpx.Client, gallery: Gallery) -> None:
    item = next(iter(gallery.index().store.items()))
    expected = [one.id for one in gallery.searcher().like(item.id, top=4).answers]
    found = client.get(f"/api/items/{item.id}/similar", params={"top": 4}).json()["answers"]
    assert [one["id"] for one in found] == expected
    assert item.id not in expected


def test_where_the_model_looked(client: httpx.Client, gallery: Gallery) -> None:
    recording, searcher = as_wav(recordings(1)[0]), gallery.searcher()
    item = next(iter(gallery.index().store.items()))
    question = read_question(recording)
    heat = searcher.attention(searcher.encode([question])[0], item.id)
    found = client.post(f"/api/items/{item.id}/attention", content=recording).json()
    frames, rows, columns = heat.weights.shape
    assert (found["frames"], found["rows"], found["columns"]) == (frames, rows, columns)
    assert (found["from"], found["step"]) == pytest.approx((question.heard[0], heat.step))
    weights = np.frombuffer(base64.b64decode(found["weights"]), np.uint8).reshape(frames, rows, columns)
    assert weights.max() == 255
    np.testing.assert_allclose(weights, heat.weights * (255 / heat.weights.max()), atol=0.51)


def test_a_model_that_cannot_say_where_it_looked_says_that(tmp_path: Path) -> None:
    gallery = make_gallery(tmp_path, small_model(matching=False))
    item = next(iter(gallery.index().store.items()))
    with live(create_app(gallery.searcher(), LIMITS), LIMITS) as server, server.client() as client:
        about = client.get("/api/about").json()
        assert (about["fine"], about["attention"], about["rerank"]) == (False, False, 0)
        answer = client.post(f"/api/items/{item.id}/attention", content=recordings(1)[0])
        assert answer.status_code == 422
        assert "fine stage" in error_of(answer)
        assert ask(client, recordings(1)[0], rerank=5).status_code == 422
        assert ask(client, recordings(1)[0]).status_code == 200


def test_about_and_health(client: httpx.Client) -> None:
    assert client.get("/api/health").json() == {"status": "ok", "items": 18, "waiting": 0}
    assert client.get("/api/about").json() == {
        "mode": "search",
        "items": 18,
        "kind": "picture",
        "model": "model",
        "top": 12,
        "rerank": 3,
        "fine": True,
        "attention": True,
        "token": False,
        "limits": {"bytes": 4_000_000, "seconds": 20.0, "pixels": 3_000_000},
    }


def test_what_another_process_has_indexed_is_found(tmp_path: Path) -> None:
    gallery = make_gallery(tmp_path)
    with live(create_app(gallery.searcher(), LIMITS), LIMITS) as server, server.client() as client:
        gone = "nested/picture 03.png"
        assert gone in {one["path"] for one in ask(client, recordings(1)[0], top=30).json()["answers"]}
        (gallery.pictures / gone).unlink()
        new = encode_image(Image.new("RGB", (40, 40), "orange"))
        (gallery.pictures / "new.png").write_bytes(new)
        index = gallery.index()
        update_index(index, gallery.model, tell=lambda _: None)
        index.close()
        found = {one["path"] for one in ask(client, recordings(1)[0], top=30).json()["answers"]}
        assert "new.png" in found
        assert gone not in found


# ---- pictures


def test_pictures_leave_without_what_the_camera_wrote(client: httpx.Client, gallery: Gallery) -> None:
    stored = (gallery.pictures / "with a place.jpg").read_bytes()
    assert stored.count(CAMERA.encode()) == 3
    assert Image.open(io.BytesIO(stored)).getexif().get_ifd(0x8825)
    item = next(item for item in gallery.index().store.items() if item.path == "with a place.jpg")
    for part, size in (("picture", (960, 1600)), ("thumbnail", (192, 320))):
        answer = client.get(f"/api/items/{item.id}/{part}")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "image/jpeg"
        assert CAMERA.encode() not in answer.content
        image = Image.open(io.BytesIO(answer.content))
        assert image.format == "JPEG"
        assert image.size == size  # upright, which the stored one is not
        assert not image.getexif()
        assert set(image.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}


@pytest.mark.parametrize("part", ["picture", "thumbnail"])
def test_a_browser_keeps_pictures_and_asks_whether_they_changed(
    client: httpx.Client, gallery: Gallery, part: str
) -> None:
    item = next(iter(gallery.index().store.items()))
    first = client.get(f"/api/items/{item.id}/{part}")
    assert first.headers["cache-control"].startswith("private")
    for tag, status in ((first.headers["etag"], 304), (f'"other", W/{first.headers["etag"]}', 304), ('"other"', 200)):
        again = client.get(f"/api/items/{item.id}/{part}", headers={"if-none-match": tag})
        assert again.status_code == status
        assert (again.content == b"") == (status == 304)


def test_a_picture_that_the_browser_has_is_not_made_again(tmp_path: Path) -> None:
    gallery = make_gallery(tmp_path)
    (item,) = [item for item in gallery.index().store.items() if item.path == "picture 02.png"]
    file = gallery.pictures / item.path
    with live(create_app(gallery.searcher(), LIMITS), LIMITS) as server, server.client() as client:
        tag = client.get(f"/api/items/{item.id}/picture").headers["etag"]
        before = file.stat()
        file.write_bytes(bytes(before.st_size))  # it could not be made again
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert client.get(f"/api/items/{item.id}/picture", headers={"if-none-match": tag}).status_code == 304
        os.utime(file)
        assert client.get(f"/api/items/{item.id}/picture", headers={"if-none-match": tag}).status_code == 404


def test_a_picture_that_is_gone_or_broken_is_not_there(tmp_path: Path) -> None:
    gallery = make_gallery(tmp_path)
    items = {item.path: item for item in gallery.index().store.items()}
    (gallery.pictures / "picture 02.png").unlink()
    (gallery.pictures / "picture 04.png").write_bytes(BAD_PICTURES["half a PNG"]())
    (gallery.pictures / "picture 06.png").write_bytes(b"")
    with live(create_app(gallery.searcher(), LIMITS), LIMITS) as server, server.client() as client:
        for name in ("picture 02.png", "picture 04.png", "picture 06.png"):
            answer = client.get(f"/api/items/{items[name].id}/picture")
            assert answer.status_code == 404
            assert error_of(answer).startswith(name)
            assert str(tmp_path) not in answer.text
            assert client.get(f"/api/items/{items[name].id}/thumbnail").status_code == 200


NOT_THERE = "0" * 32
NO_IDS = [
    "0" * 31,
    "0" * 33,
    "g" * 32,
    "A" * 32,
    "0" * 32 + "%0a",
    "..",
    "..%2f..%2fetc%2fpasswd",
    "%2e%2e%2f" * 4 + "etc/passwd",
    "picture%2000.png",
    "%00",
    "%ff%fe",
    "' OR 1=1 --",
    NOT_THERE,
]


@pytest.mark.parametrize("no_id", NO_IDS)
def test_what_is_no_id_is_not_there(client: httpx.Client, no_id: str) -> None:
    for answer in (
        client.get(f"/api/items/{no_id}/thumbnail"),
        client.get(f"/api/items/{no_id}/picture"),
        client.get(f"/api/items/{no_id}/similar"),
        client.post(f"/api/items/{no_id}/attention", content=recordings(1)[0]),
    ):
        assert answer.status_code == 404
        line = error_of(answer)
        # most are not even looked up
        assert no_id == NOT_THERE or "32 hexadecimal digits" in line or line == "there is nothing here"


@pytest.mark.parametrize(
    "path",
    [
        "/page/../app.py",
        "/page/..%2fapp.py",
        "/page/%2e%2e/app.py",
        "/page//etc/passwd",
        "/page/....//app.py",
        "/page/index.html/../../app.py",
        "/page/__init__.py",
        "/../../../../etc/passwd",
        "//etc/passwd",
        "/api/items/../../etc/passwd",
        "/docs",
        "/redoc",
        "/openapi.json",
    ],
)
def test_no_file_is_named_by_a_request(server: Live, path: str) -> None:
    """Sent as it stands here, which a well-behaved client would not do."""
    with server.raw() as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
        answer = read_answer(connection)
    assert answer.status == 404
    assert b"root:" not in answer.body
    assert b"import" not in answer.body


def test_the_page_and_its_files(client: httpx.Client) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    for name, kind in (("api.js", "text/javascript; charset=utf-8"), ("icon.svg", "image/svg+xml")):
        answer = client.get(f"/page/{name}")
        assert (answer.status_code, answer.headers["content-type"]) == (200, kind)
        assert client.get(f"/page/{name}", headers={"if-none-match": answer.headers["etag"]}).status_code == 304
