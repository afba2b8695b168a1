"""Both servers against their own OpenAPI description: what fits it, and what just does not, gets a described answer."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from media import BAD_RECORDINGS, write_image
from saysee.serving.app import create_app
from saysee.serving.limits import ServingLimits
from saysee.serving.record_app import create_record_app
from saysee.serving.recordings import Recordings
from serving.gallery import make_gallery, recordings
from serving.live import Live, live

LIMITS = ServingLimits(rate=1e6, burst=1_000_000, body_bytes=1_000_000)

# what the description calls a file: rubbish of every kind, and recordings that can be asked
schemathesis.openapi.format(
    "binary",
    st.one_of(
        st.sampled_from(recordings(6)),
        st.sampled_from([BAD_RECORDINGS[kind]() for kind in ("a picture", "silent", "half a flac", "1 Hz")]),
        st.binary(max_size=200),
    ),
)


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    gallery = make_gallery(tmp_path_factory.mktemp("gallery"))
    with live(create_app(gallery.searcher(), LIMITS), LIMITS) as server:
        yield server


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(5):
        write_image(folder / f"{number}.png", (20, 10 + number))
    app = create_record_app(Recordings(folder, folder / "captions.jsonl"), LIMITS)
    with live(app, LIMITS) as server:
        yield server


# no description can say that a file holds no speech, that a day is after another, or that a name can be printed
UNSAID = [positive_data_acceptance]

SEARCH = {
    "GET /api/health": [],
    "GET /api/about": [],
    "POST /api/search": UNSAID,
    "GET /api/items/{item_id}/similar": [],
    "POST /api/items/{item_id}/attention": UNSAID,
    "GET /api/items/{item_id}/thumbnail": [],
    "GET /api/items/{item_id}/picture": [],
}
RECORD = {
    "GET /api/record": [],
    "GET /api/record/next": UNSAID,
    "GET /api/record/pictures/{item_id}": [],
    "POST /api/record/pictures/{item_id}": UNSAID,
    "GET /api/record/recordings/{item_id}": [],
    "DELETE /api/record/recordings/{item_id}": [],
}


@pytest.mark.parametrize("operation", SEARCH)
def test_searching_with_what_fits_the_description(search: Live, operation: str) -> None:
    check(search, operation, GenerationMode.POSITIVE, SEARCH[operation])


@pytest.mark.parametrize("operation", [*SEARCH][2:])  # the others take nothing that could be wrong
def test_searching_with_what_does_not_fit_it(search: Live, operation: str) -> None:
    check(search, operation, GenerationMode.NEGATIVE, [])


@pytest.mark.parametrize("operation", RECORD)
def test_recording_with_what_fits_the_description(record: Live, operation: str) -> None:
    check(record, operation, GenerationMode.POSITIVE, RECORD[operation])


@pytest.mark.parametrize("operation", [*RECORD][1:])
def test_recording_with_what_does_not_fit_it(record: Live, operation: str) -> None:
    check(record, operation, GenerationMode.NEGATIVE, [])


def test_all_operations_are_here(search: Live, record: Live) -> None:
    for server, listed in ((search, {*SEARCH}), (record, {*RECORD, "GET /api/health", "GET /api/about"})):
        paths = httpx.get(f"{server.url}/api/openapi.json", trust_env=False).json()["paths"]
        assert {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods} == listed


def check(server: Live, operation: str, mode: GenerationMode, without: list[Any]) -> None:
    """Send what fits the description, or just does not, and hold the answers against it."""
    schema = schemathesis.openapi.from_url(f"{server.url}/api/openapi.json")
    method, _, path = operation.partition(" ")

    @settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(schema[path][method].as_strategy(mode))
    def holds(case: schemathesis.Case[Any]) -> None:
        case.call_and_validate(excluded_checks=without)

    holds()
