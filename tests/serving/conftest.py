"""Servers for all tests of a module; one with other limits, or in another state, a test starts itself."""

from collections.abc import Iterator

import httpx
import pytest

from saysee.serving.app import create_app
from saysee.serving.guards import Access, Guard
from serving.gallery import LIMITS, Gallery, make_gallery
from serving.live import Live, live
from serving.probe import SMALL, TOKEN, Probe


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Probe, Live]]:
    probe = Probe()
    with live(Guard(probe, Access(frozenset({"pictures.example"}), token=TOKEN), SMALL), SMALL) as server:
        yield probe, server


@pytest.fixture
def probe(running: tuple[Probe, Live]) -> Probe:
    """The application behind `guarded`, as if it had not been asked yet."""
    running[0].asked.clear()
    running[0].called_off.clear()
    return running[0]


@pytest.fixture
def guarded(running: tuple[Probe, Live]) -> Live:
    return running[1]


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    return make_gallery(tmp_path_factory.mktemp("gallery"))


@pytest.fixture(scope="module")
def server(gallery: Gallery) -> Iterator[Live]:
    with live(create_app(gallery.searcher(), LIMITS), LIMITS) as running:
        yield running


@pytest.fixture
def client(server: Live) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client
