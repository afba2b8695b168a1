"""What stands before every request: whether it may come in, how much it may bring and how long it may take.

In this order: Host and Origin (DNS rebinding, other sites' pages), the client's rate, the token, the body, the time.
Around all of it: security headers, and one line in the log for a fault of ours, which says nothing of the question.
"""

import asyncio
import contextlib
import hmac
import logging
import traceback
from collections.abc import MutableMapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from saysee.serving.counting import Budget, Held, RateLimit
from saysee.serving.limits import ServingLimits
from saysee.serving.refusal import Refusal, busy

LOG = logging.getLogger("saysee.serving")

API = "/api/"
HEALTH = "/api/health"

CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "media-src blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    "cache-control": "no-store",
}
"""Headers of every answer that does not say otherwise itself."""

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class Access:
    """Who may ask.

    Attributes:
        hosts: names by which the server may be called, besides those of the loopback interface; in lower case.
        any_address: whether it may be called by any IP address: a page of another site can make a name of its own lead
            here (DNS rebinding), but not an address.
        token: what has to be sent with every request to the API but for its health; None: nothing.
    """

    hosts: frozenset[str] = frozenset()
    any_address: bool = False
    token: str | None = None

    def check(self, scope: Scope) -> None:
        """Check Host and Origin, and the browser's own word on where a request to the API comes from.

        Raises:
            Refusal: 403.
        """
        hosts = _values(scope, b"host")
        if len(hosts) != 1 or not self._is_here(_host_of(hosts[0])):
            raise Refusal(
                403, f"this server is not called {_shown(hosts)}; use its own address, or start it with --allow-host"
            )
        for origin in _values(scope, b"origin"):
            if not _is_own(origin, scope["scheme"], hosts[0]):
                raise Refusal(403, f"pages of {_shown([origin])} may not use this server")
        if scope["path"].startswith(API) and set(_values(scope, b"sec-fetch-site")) & {"cross-site", "same-site"}:
            raise Refusal(403, "pages of other sites may not use this server")

    def check_token(self, scope: Scope) -> None:
        """Check the token, in a time that does not depend on where it is wrong.

        Raises:
            Refusal: 401.
        """
        if self.token is None or not scope["path"].startswith(API) or scope["path"] == HEALTH:
            return
        given = " ".join(_values(scope, b"authorization"))
        scheme, _, token = given.partition(" ")
        right = hmac.compare_digest(token.strip().encode("utf-8"), self.token.encode("utf-8"))
        if scheme.lower() != "bearer" or not right:
            message = "a token is needed: open the address that was printed when the server was started"
            raise Refusal(401, message, {"www-authenticate": "Bearer"})

    def _is_here(self, host: str | None) -> bool:
        if host is None:
            return False
        return host in _LOOPBACK or host in self.hosts or (self.any_address and _is_address(host))


class Guard:
    """An ASGI application that lets through to another what keeps to the limits.

    Args:
        app: what is guarded. It finds `Held`, the account of what its request holds, by `held_by`.
        access: who may ask.
        limits: how much, how often, how long.
    """

    def __init__(self, app: ASGIApp, access: Access, limits: ServingLimits) -> None:
        self._app = app
        self._access = access
        self._limits = limits
        self._budget = Budget(limits.held_bytes)
        self._rate = RateLimit(limits.rate, limits.burst, limits.clients)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send)
        body = _Body(receive, scope)
        with self._budget.hold() as held:
            try:
                await self._answer(scope, body, answer, held)
            except Refusal as refusal:
                await self._refuse(refusal, body, answer)
            except asyncio.CancelledError:  # the server has been told to stop, and this took longer than it waits
                if not answer.started:
                    await self._refuse(busy("the server is stopping"), body, answer)
            except Exception as error:
                _log(scope, error)
                if not answer.started:
                    await self._refuse(Refusal(500, "a fault of the server; its log names the place"), body, answer)

    async def _answer(self, scope: Scope, body: "_Body", answer: "_Answer", held: Held) -> None:
        self._access.check(scope)
        client = scope.get("client")
        self._rate.spend(client[0] if client else "", self._limits.question_cost if scope["method"] == "POST" else 1)
        self._access.check_token(scope)
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                content = await body.read(self._limits.body_bytes, held)
        except TimeoutError:
            message = f"the body was not here within {self._limits.body_seconds:g} s; send less, or faster"
            raise Refusal(408, message) from None
        if content is None:  # the client went away
            return
        scope.setdefault("state", {})["held"] = held
        app = asyncio.ensure_future(self._app(scope, _replay(content), answer.send))
        gone = asyncio.ensure_future(body.wait_for_disconnect())
        try:
            await asyncio.wait({app, gone}, timeout=self._limits.answer_seconds, return_when=asyncio.FIRST_COMPLETED)
            if answer.started:  # how slowly it may be taken is the business of `protocol`
                await asyncio.wait({app, gone}, return_when=asyncio.FIRST_COMPLETED)
            elif not app.done() and not gone.done():
                app.cancel()
                message = f"no answer within {self._limits.answer_seconds:g} s; ask again in a few seconds"
                await self._refuse(busy(message, 5), body, answer)
        finally:
            app.cancel()
            gone.cancel()
            # what a thread still works on counts as held until it is done
            await asyncio.wait({app, gone})
        if not app.cancelled():
            app.result()

    async def _refuse(self, refusal: Refusal, body: "_Body", answer: "_Answer") -> None:
        headers = {"content-type": "application/json", "content-length": str(len(refusal.body)), **refusal.headers}
        if not body.complete:
            headers["connection"] = "close"
        start: Message = {"type": "http.response.start", "status": refusal.status, "headers": _encoded(headers)}
        await answer.send(start)
        await answer.send({"type": "http.response.body", "body": refusal.body, "more_body": True})
        if not body.complete:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._limits.linger_seconds):
                    await body.drop_rest()
        await answer.send({"type": "http.response.body", "body": b"", "more_body": False})


def held_by(request: Request) -> Held:
    """Return the account of what a request holds."""
    return cast(Held, request.state.held)


class _Body:
    """The body of a request, read as it comes."""

    def __init__(self, receive: Receive, scope: Scope) -> None:
        self._receive = receive
        self._length = int(next(iter(_values(scope, b"content-length")), 0))
        self.complete = self._length == 0 and not _values(scope, b"transfer-encoding")

    async def read(self, allowed: int, held: Held) -> bytes | None:
        """Return the body, None if the client goes away before its end.

        Raises:
            Refusal: 413, by what the head says, or when too much has come; 503, all requests hold too much together.
        """
        too_large = Refusal(413, f"the body has over {allowed:,} bytes; at most {allowed:,} are allowed: send less")
        if self._length > allowed:
            raise too_large
        pieces: list[bytes] = []
        size = 0
        while not self.complete:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return None
            piece = message.get("body", b"")
            size += len(piece)
            if size > allowed:
                raise too_large
            held.add(len(piece))
            pieces.append(piece)
            self.complete = not message.get("more_body", False)
        return b"".join(pieces)

    async def drop_rest(self) -> None:
        """Read to the end, or until the client goes away, and keep nothing."""
        while not self.complete:
            message = await self._receive()
            self.complete = message["type"] == "http.disconnect" or not message.get("more_body", False)

    async def wait_for_disconnect(self) -> None:
        """Come back when the client has gone away."""
        while (await self._receive())["type"] != "http.disconnect":
            pass


class _Answer:
    """What is sent back, with the headers that all answers have."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            own = {name for name, _ in message["headers"]}
            further = [(name, value) for name, value in _encoded(HEADERS) if name not in own]
            message = {**message, "headers": [*message["headers"], *further]}
        await self._send(message)


def _replay(content: bytes) -> Receive:
    """Give the application a body that has been read."""
    sent = False

    async def receive() -> MutableMapping[str, Any]:
        nonlocal sent
        if sent:
            await asyncio.Event().wait()  # `Guard` watches whether the client goes away
        sent = True
        return {"type": "http.request", "body": content, "more_body": False}

    return receive


def _log(scope: Scope, error: Exception) -> None:
    # no message and no parameters: they may hold what somebody asked
    place = traceback.extract_tb(error.__traceback__)[-1]
    LOG.error(
        "%s in %s:%s, %s %a",
        type(error).__name__,
        Path(place.filename).name,
        place.lineno,
        scope["method"],
        scope["path"],
    )


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for header, value in scope["headers"] if header == name]


def _encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


def _is_own(origin: str, scheme: str, host: str) -> bool:
    """Say whether an origin is this server's, as the client calls it: its scheme (or TLS before it), host and port."""
    own_scheme = origin.partition(":")[0].lower()
    if own_scheme not in ("https", scheme):
        return False
    place = _place_of(origin)
    return place is not None and place == _place_of(f"{own_scheme}://{host}")


def _place_of(url: str) -> tuple[str, int] | None:
    """Return host and port of an origin, None for what is none."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if host is None or parts.path or parts.query or parts.fragment or "@" in parts.netloc:
        return None
    return host.rstrip("."), port or (443 if parts.scheme == "https" else 80)


def _host_of(host: str) -> str | None:
    place = _place_of(f"http://{host}")
    return None if place is None else place[0]


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _shown(values: list[str]) -> str:
    return ascii(", ".join(values)[:100]) if values else "by no name"
