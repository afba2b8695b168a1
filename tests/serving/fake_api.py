"""The API of `saysee serve` and `saysee record`, faked: for states of the page that are hard to bring about for real.

The page, the guards and their headers are the real ones. Every search gets the same ranking, what comes in is kept, and
what is to be refused is refused.
"""

import asyncio
import base64
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.types import ASGIApp

from media import encode_audio, sine
from saysee.data.sample import sample_manifest_path
from saysee.serving.guards import Access, Guard
from saysee.serving.limits import ServingLimits
from saysee.serving.web import make_web
from serving.live import live

ELSEWHERE = "saysee.test"
"""A name by which the server may be called besides those of loopback: a page from there is no secure context."""

CORPUS = sample_manifest_path().parent
RECORDING = encode_audio(sine(2.0), 16_000, "wav")

FRAMES = 20
"""Of every heat map: at first the model looks at the left, at last at the right."""

_LIMITS = ServingLimits(rate=10_000, burst=100_000)


@dataclass(frozen=True)
class FakeItem:
    """A picture as the index would hold it."""

    name: str
    image: bytes
    path: str = ""
    taken: str | None = None


@dataclass
class FakeApi:
    """What it answers, and what it was asked.

    Attributes:
        items: ranked in this order, whatever is asked.
        mode: "search" or "record".
        token: asked for on every request, unless None.
        fits: of every search.
        evenness: of the heat map: its least weight, of 255.
        seconds: the longest recording.
        most: bytes of the largest body.
        delay: seconds that a search takes.
        refusals: (status, headers, error) of the next searches and recordings, each used once.
        uploads: bodies of searches and kept recordings, in order.
        queries: of the same.
        recorded: (picture, speaker, language) -> recording.
    """

    items: list[FakeItem]
    mode: str = "search"
    token: str | None = None
    fits: bool | None = True
    evenness: float = 0.0
    seconds: float = 30.0
    most: int = 500_000
    delay: float = 0.0
    refusals: deque[tuple[int, Mapping[str, str], str]] = field(default_factory=deque)
    uploads: list[bytes] = field(default_factory=list)
    queries: list[dict[str, str]] = field(default_factory=list)
    recorded: dict[tuple[str, str, str], bytes] = field(default_factory=dict)

    def app(self) -> ASGIApp:
        """The application."""
        api = APIRouter()
        for method, path, answer in (
            ("GET", "/about", self._about),
            ("POST", "/search", self._search),
            ("GET", "/items/{item}/thumbnail", self._picture),
            ("GET", "/items/{item}/picture", self._picture),
            ("GET", "/items/{item}/similar", self._similar),
            ("POST", "/items/{item}/attention", self._attention),
            ("GET", "/record", self._record),
            ("GET", "/record/next", self._next),
            ("GET", "/record/pictures/{item}", self._picture),
            ("POST", "/record/pictures/{item}", self._keep),
            ("GET", "/record/recordings/{item}", self._play),
            ("DELETE", "/record/recordings/{item}", self._forget),
        ):
            api.add_api_route(path, answer, methods=[method], response_model=None)
        app = make_web("fake", _nothing, token=self.token is not None, api=api)
        return Guard(app, Access(hosts=frozenset({ELSEWHERE}), token=self.token), _LIMITS)

    async def _about(self) -> Response:
        limits = {"bytes": self.most, "seconds": self.seconds}
        about = {"mode": self.mode, "items": len(self.items), "kind": "picture", "model": "words", "top": 12}
        more = {"rerank": 32, "fine": True, "attention": True, "token": self.token is not None, "limits": limits}
        return JSONResponse(about | more)

    async def _search(self, request: Request) -> Response:
        body = await self._take(request)
        if isinstance(body, Response):
            return body
        await asyncio.sleep(self.delay)
        kind = "picture" if body[:3] == b"\xff\xd8\xff" or body[:4] == b"\x89PNG" else "recording"
        found = [] if request.query_params.get("path") == "nothing/*" else self.items
        answer = {"kind": kind, "seconds": 3.1, "heard": [0.2, 2.9], "fits": self.fits, "chance": 0.01}
        timings = {"decode": 0.011, "wait": 0.002, "encode": 0.12, "coarse": 0.001, "fine": 0.08}
        return JSONResponse(answer | {"answers": self._answers(found, request), "timings": timings})

    async def _similar(self, request: Request) -> Response:
        return JSONResponse({"answers": self._answers(self.items[::-1], request)})

    async def _attention(self, request: Request) -> Response:
        await request.body()
        rows, columns = np.mgrid[0:7, 0:7]
        places = [(3 + 2 * np.sin(frame / 3), frame * 6 / FRAMES) for frame in range(FRAMES)]
        spots = np.stack([np.exp(-((rows - down) ** 2 + (columns - right) ** 2) / 3) for down, right in places])
        weights = self.evenness + (255 - self.evenness) * spots
        encoded = base64.b64encode(weights.astype(np.uint8).tobytes()).decode()
        grid = {"rows": 7, "columns": 7, "frames": FRAMES, "from": 0.1, "step": 0.1}
        return JSONResponse(grid | {"weights": encoded})

    async def _picture(self, request: Request) -> Response:
        item = self.items[int(request.path_params["item"], 16)]
        return Response(item.image, media_type="image/jpeg")

    async def _record(self) -> Response:
        speakers, languages = ({key[part] for key in self.recorded} for part in (1, 2))
        counts = {"pictures": len(self.items), "recorded": len(self.recorded), "divided": True, "needed": None}
        return JSONResponse(counts | {"speakers": sorted(speakers), "languages": sorted(languages)})

    async def _next(self, request: Request) -> Response:
        asked = request.query_params
        first = int(asked["after"], 16) + 1 if "after" in asked else 0
        for number in range(first, len(self.items)):
            if (_id(number), asked["speaker"], asked["language"]) not in self.recorded:
                picture = {"id": _id(number), "name": self.items[number].name, "position": number + 1}
                return JSONResponse(picture | {"recorded": None})
        return _error(404, "all pictures are done")

    async def _keep(self, request: Request) -> Response:
        body = await self._take(request)
        if isinstance(body, Response):
            return body
        asked = request.query_params
        self.recorded[request.path_params["item"], asked["speaker"], asked["language"]] = body
        return JSONResponse({"id": request.path_params["item"], "seconds": 1.0}, 201)

    async def _play(self) -> Response:
        return Response(encode_audio(sine(0.5), 16_000, "flac"), media_type="audio/flac")

    async def _forget(self, request: Request) -> Response:
        for key in [key for key in self.recorded if key[0] == request.path_params["item"]]:
            del self.recorded[key]
        return Response(status_code=204)

    async def _take(self, request: Request) -> bytes | Response:
        body = await request.body()
        if self.refusals:
            status, headers, error = self.refusals.popleft()
            return _error(status, error, headers)
        self.uploads.append(body)
        self.queries.append(dict(request.query_params))
        return body

    def _answers(self, items: list[FakeItem], request: Request) -> list[dict[str, Any]]:
        top = int(request.query_params.get("top", 12))
        return [
            {
                "rank": rank,
                "id": _id(self.items.index(item)),
                "name": item.name,
                "path": item.path or item.name,
                "taken": item.taken,
                "coarse": 0.4 - rank / 50,
                "fine": -rank / 7 if rank < 9 else None,
            }
            for rank, item in enumerate(items[:top], start=1)
        ]


def drawings(*names: str) -> list[FakeItem]:
    """Pictures of the sample corpus."""
    return [FakeItem(f"{name}.jpg", (CORPUS / "images" / f"{name}.jpg").read_bytes()) for name in names]


@contextmanager
def serve(fake: FakeApi) -> Iterator[str]:
    """Serve it while the block runs: its address, without a slash at the end."""
    with live(fake.app(), _LIMITS) as server:
        yield server.url


@asynccontextmanager
async def _nothing(_: FastAPI) -> AsyncIterator[None]:
    yield


def _id(number: int) -> str:
    return f"{number:032x}"


def _error(status: int, error: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": error}, status, headers)
