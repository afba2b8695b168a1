"""An application behind the guards that remembers what it was asked, with small limits."""

import asyncio
import threading

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from saysee.serving.limits import ServingLimits

SMALL = ServingLimits(
    body_bytes=100_000,
    held_bytes=150_000,
    body_seconds=1.0,
    header_seconds=1.0,
    write_seconds=0.5,
    answer_seconds=1.5,
    linger_seconds=0.5,
    idle_seconds=1,
    connections=8,
    rate=10_000,
    burst=100_000,
    drain_seconds=1,
)
TOKEN = "a token of thirty-two characters"
SECRET = "what somebody asked"


class Probe:
    """An application that remembers what it was asked, and does what the path says."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, bytes]] = []
        self.called_off = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for kind in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{kind}.complete"})
            return
        body = (await receive())["body"]
        self.asked.append((scope["path"], body))
        answer: Response = JSONResponse({"bytes": len(body)})
        match scope["path"]:
            case "/api/fault":
                raise RuntimeError(SECRET)
            case "/api/slow":
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    self.called_off.set()
                    raise
            case "/api/large":
                answer = Response(bytes(64 * 1024 * 1024), media_type="image/jpeg")
            case "/api/own":
                answer = Response(b"", headers={"cache-control": "private"})
        await answer(scope, receive, send)


BEARER = {"authorization": f"Bearer {TOKEN}"}


def head_of(method: str, path: str, **headers: str) -> bytes:
    """The head of a request as it is sent."""
    lines = [f"{method} {path} HTTP/1.1", "host: localhost", f"authorization: Bearer {TOKEN}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()
