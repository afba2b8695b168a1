"""Recording captions over HTTP."""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from media import BAD_RECORDINGS, encode_audio
from saysee.data.manifest import read_manifest
from saysee.data.validate import validate
from saysee.features.audio import load_waveform
from saysee.search.stores.base import path_id
from saysee.serving.guards import Access
from saysee.serving.limits import ServingLimits
from saysee.serving.record_app import create_record_app
from saysee.serving.recordings import Recordings
from serving.gallery import CAMERA, as_wav, picture_with_a_place, recordings
from serving.live import live

LIMITS = ServingLimits(body_bytes=2_000_000, seconds=10.0, rate=10_000, burst=100_000)
VOICE = {"speaker": "anna", "language": "en"}


@dataclass(frozen=True)
class Studio:
    """A running server, its pictures and what it writes."""

    client: httpx.Client
    pictures: Path
    manifest: Path

    def record(self, picture: str, body: bytes, **voice: str) -> httpx.Response:
        return self.client.post(f"/api/record/pictures/{picture}", params={**VOICE, **voice}, content=body)


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Studio]:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(8):
        noise = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).save(pictures / f"{number}.png")
    (pictures / "with a place.jpg").write_bytes(picture_with_a_place())
    manifest = tmp_path / "captions.jsonl"
    with live(create_record_app(Recordings(pictures, manifest), LIMITS), LIMITS) as server, server.client() as client:
        yield Studio(client, pictures, manifest)


def test_a_session_from_the_first_picture_to_the_last(studio: Studio) -> None:
    client = studio.client
    assert client.get("/api/about").json() == {
        "mode": "record",
        "items": 9,
        "kind": "picture",
        "model": "",
        "top": 0,
        "rerank": 0,
        "fine": False,
        "attention": False,
        "token": False,
        "limits": {"bytes": 2_000_000, "seconds": 10.0, "pixels": 50_000_000},
    }
    assert client.get("/api/health").json() == {"status": "ok", "items": 9, "waiting": 0}
    state = client.get("/api/record").json()
    assert (state["pictures"], state["recorded"], state["divided"]) == (9, 0, False)
    after = ""
    for number, recording in enumerate(recordings(9)):
        following = client.get("/api/record/next", params={**VOICE, "after": after}).json()
        assert (following["position"], following["recorded"]) == (number + 1, None)
        kept = studio.record(following["id"], recording)
        assert kept.status_code == 201
        assert kept.json()["seconds"] == pytest.approx(len(load_waveform(recording)) / 16_000)
        assert len(read_manifest(studio.manifest).captions) == number + 1
        played = client.get(f"/api/record/recordings/{kept.json()['id']}")
        assert played.headers["content-type"] == "audio/flac"
        np.testing.assert_allclose(load_waveform(played.content), load_waveform(recording), atol=1e-4)
        after = following["id"]
    done = client.get("/api/record/next", params=VOICE)
    assert done.status_code == 404
    assert done.json() == {"error": "all pictures are done, or those after this one"}
    assert client.get("/api/record").json() == {
        "pictures": 9,
        "recorded": 9,
        "speakers": ["anna"],
        "languages": ["en"],
        "divided": True,
        "needed": None,
    }
    assert validate(read_manifest(studio.manifest)) == []


def test_what_is_missing_is_said_until_the_manifest_can_train(studio: Studio) -> None:
    needed = studio.client.get("/api/record").json()["needed"]
    for recording in recordings(3):
        number = int(needed.split("(picture ")[1].split(" ")[0])
        name = sorted(path.name for path in studio.pictures.iterdir())[number - 1]
        assert studio.record(path_id(name), recording).status_code == 201
        needed = studio.client.get("/api/record").json()["needed"]
    assert needed is None


def test_a_recording_is_replaced_and_removed(studio: Studio) -> None:
    first, second = recordings(2)
    picture = path_id("3.png")
    kept = studio.record(picture, first).json()
    again = studio.record(picture, second).json()
    assert again["id"] == kept["id"]
    assert studio.record(picture, first, speaker="omar").json()["id"] != kept["id"]
    assert [caption.speaker for caption in read_manifest(studio.manifest).captions] == ["anna", "omar"]
    assert studio.client.delete(f"/api/record/recordings/{kept['id']}").status_code == 204
    assert [caption.speaker for caption in read_manifest(studio.manifest).captions] == ["omar"]
    assert studio.client.delete(f"/api/record/recordings/{kept['id']}").status_code == 404
    assert studio.client.get(f"/api/record/recordings/{kept['id']}").status_code == 404


def test_recordings_that_come_together_are_all_kept(studio: Studio) -> None:
    pairs = [(path_id(f"{number}.png"), recording) for number, recording in enumerate(recordings(8))]
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda pair: studio.record(*pair).status_code, pairs))
    assert statuses == [201] * 8
    captions = read_manifest(studio.manifest).captions
    assert {caption.image_id for caption in captions} == {f"{number}.png" for number in range(8)}
    assert all(caption.audio.is_file() for caption in captions)


@pytest.mark.parametrize("kind", BAD_RECORDINGS)
def test_a_bad_recording_is_refused_and_nothing_is_kept(studio: Studio, kind: str) -> None:
    answer = studio.record(path_id("3.png"), BAD_RECORDINGS[kind]())
    assert answer.status_code == {"empty": 400, "a text": 415, "a picture": 415}.get(kind, 422)
    assert set(answer.json()) == {"error"}
    assert not studio.manifest.exists()


def test_limits_and_names(studio: Studio) -> None:
    recording, picture = recordings(1)[0], path_id("3.png")
    noise = np.random.default_rng(0).normal(0, 0.01, 32_000)
    for body, voice, status, reason in (
        (as_wav(recording, 20), {}, 422, "at most 10 s are allowed"),
        (bytes(2_000_001), {}, 413, "at most 2,000,000 are allowed"),
        (encode_audio(noise, 16_000, "wav"), {}, 422, "no speech was heard"),
        (recording, {"speaker": "x" * 65}, 422, "speaker"),
        (recording, {"language": "two\nlines"}, 422, "the language is"),
        (recording, {"spaeker": "anna"}, 422, "spaeker"),
    ):
        answer = studio.record(picture, body, **voice)
        assert answer.status_code == status
        assert reason in answer.json()["error"]
    assert not studio.manifest.exists()
    assert studio.record(picture, recording, speaker="", language="").status_code == 201
    (caption,) = read_manifest(studio.manifest).captions
    assert (caption.speaker, caption.language) == (None, None)


@pytest.mark.parametrize("no_id", ["0" * 32, "..%2f..%2fetc%2fpasswd", "3.png", "x" * 32, "0" * 32 + "%0a"])
def test_what_is_no_id_is_not_there(studio: Studio, no_id: str) -> None:
    for answer in (
        studio.client.get(f"/api/record/pictures/{no_id}"),
        studio.record(no_id, recordings(1)[0]),
        studio.client.get(f"/api/record/recordings/{no_id}"),
        studio.client.delete(f"/api/record/recordings/{no_id}"),
    ):
        assert answer.status_code == 404
        assert set(answer.json()) == {"error"}


def test_pictures_are_shown_without_what_the_camera_wrote(studio: Studio) -> None:
    answer = studio.client.get(f"/api/record/pictures/{path_id('with a place.jpg')}")
    assert answer.headers["content-type"] == "image/jpeg"
    assert CAMERA.encode() not in answer.content
    assert not Image.open(io.BytesIO(answer.content)).getexif()


def test_a_disk_that_takes_nothing_is_said(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("saysee.serving.recordings.write_manifest", full)
        answer = studio.record(path_id("3.png"), recordings(1)[0])
    assert answer.status_code == 500
    assert "No space left on device" in answer.json()["error"]
    assert studio.client.get("/api/record").json()["recorded"] == 0


def test_the_token_is_needed_here_too(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "pictures" / "one.png")
    app = create_record_app(
        Recordings(tmp_path / "pictures", tmp_path / "captions.jsonl"), LIMITS, Access(token="a token of 16 signs")
    )
    with live(app, LIMITS) as server, server.client() as client:
        assert client.get("/api/record").status_code == 401
        assert client.get("/api/record", headers={"authorization": "Bearer a token of 16 signs"}).status_code == 200
