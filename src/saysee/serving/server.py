"""Runs the server: where it listens, with which token, and how it ends."""

import functools
import secrets
import signal
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from types import FrameType
from typing import Any, cast
from urllib.parse import quote

import uvicorn
from starlette.types import ASGIApp
from uvicorn.config import HTTPProtocolType

from saysee.errors import SayseeError
from saysee.search.searcher import Searcher
from saysee.serving.app import create_app
from saysee.serving.guards import Access
from saysee.serving.limits import ServingLimits
from saysee.serving.protocol import BoundedProtocol
from saysee.serving.record_app import create_record_app
from saysee.serving.recordings import opened

HOST, PORT = "127.0.0.1", 8765
"""Where the server listens unless it is told otherwise: for this machine alone."""

MIN_TOKEN = 16
"""Characters that a token of one's own must have (ours)."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """How a server is reached.

    Attributes:
        host: name or address to listen at. One that other machines reach needs a token; if none is given, one is made.
        port: 0 takes a free one.
        cert: a TLS certificate (PEM), with its chain; a phone's microphone needs it.
        key: its private key.
        token: to be sent with every request; on the loopback interface alone None asks for none.
        allowed_hosts: further names by which the server may be called, such as that of a proxy before it.
        limits: see `ServingLimits`.
    """

    host: str = HOST
    port: int = PORT
    cert: Path | None = None
    key: Path | None = None
    token: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    limits: ServingLimits = field(default_factory=ServingLimits)


def tell_at_once(text: str) -> None:
    """Print a line, also into a pipe, before the next thing is done."""
    print(text, flush=True)


def serve_search(searcher: Searcher, settings: Settings, tell: Tell = tell_at_once) -> None:
    """Serve a search until the process is told to end (SIGINT, SIGTERM).

    Args:
        searcher: answers the questions.
        settings: see `Settings`.
        tell: is given the address to open, and what else somebody who starts a server should know.

    Raises:
        SayseeError: the address cannot be listened at, or certificate, key or token cannot be used.
    """
    serve(lambda access: create_app(searcher, settings.limits, access), settings, tell)


def serve_recording(folder: Path, manifest: Path, settings: Settings, tell: Tell = tell_at_once) -> None:
    """Serve the recording of captions until the process is told to end, and say what has been made.

    Args:
        folder: of the pictures.
        manifest: the file to write; one that is there is gone on with. Sound files go to a folder beside it.
        settings: see `Settings`.
        tell: see `serve_search`.

    Raises:
        SayseeError: see `serve_search` and `saysee.serving.recordings.opened`.
    """
    with opened(folder, manifest) as recordings:
        if recordings.copies:
            tell(f"{recordings.copies} files equal others and are not shown")
        tell(f"{len(recordings.pictures):,} pictures, {len(recordings):,} recordings so far")
        serve(lambda access: create_record_app(recordings, settings.limits, access), settings, tell)
        tell(recordings.summary())


def serve(make_app: Callable[[Access], ASGIApp], settings: Settings, tell: Tell) -> None:
    """Run an application; see `serve_search`."""
    context = _tls(settings)
    listening, loopback = _listen(settings)
    with listening:
        token = _token(settings, loopback)
        name = settings.host if settings.host not in ("0.0.0.0", "::", "") else socket.gethostname()  # noqa: S104
        hosts = frozenset(host.lower() for host in (name, settings.host, *settings.allowed_hosts))
        app = make_app(Access(hosts, any_address=not loopback, token=token))
        scheme, port = "http" if context is None else "https", listening.getsockname()[1]
        shown = f"[{name}]" if ":" in name else name
        after = "" if token is None else f"#token={quote(token, safe='')}"
        tell(f"open {scheme}://{shown}:{port}/{after}")
        if context is None and not loopback:
            tell("without --cert and --key whoever is on the network can read along, and browsers give no microphone")
        tell("Ctrl-C ends it")
        make_server(app, settings.limits, context).run(sockets=[listening])


def make_server(app: ASGIApp, limits: ServingLimits, context: ssl.SSLContext | None = None) -> uvicorn.Server:
    """Return a server that keeps to the limits, to be run with sockets that listen."""
    config = uvicorn.Config(
        app,
        http=cast(HTTPProtocolType, functools.partial(BoundedProtocol, limits)),
        ws="none",
        # nothing of a request is logged, and where it comes from is what the socket says
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=limits.idle_seconds,
        timeout_graceful_shutdown=limits.drain_seconds,
        lifespan="on",
        ssl_context_factory=None if context is None else lambda *_: context,
    )
    return _Server(config)


class _Server(uvicorn.Server):
    """uvicorn's server, which ends with status 0 when it has been told to end and has ended what was begun."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn would remember the signal, and raise it again at the end
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def _listen(settings: Settings) -> tuple[socket.socket, bool]:
    """Return a listening socket, and whether only this machine reaches it."""
    where = f"{settings.host}:{settings.port}"
    if not 0 <= settings.port <= 65_535:  # the system would take the rest of a division
        raise SayseeError(f"the port is {settings.port}; give one from 1 to 65535, or 0 for a free one")
    try:
        family, _, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.create_server(cast(Any, address), family=family, backlog=512)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SayseeError(f"cannot listen at {where} ({reason}); give another --host or --port") from None
    return listening, ip_address(address[0]).is_loopback


def _token(settings: Settings, loopback: bool) -> str | None:
    if settings.token is None:
        return None if loopback else secrets.token_urlsafe(24)
    if len(settings.token) < MIN_TOKEN or not (settings.token.isascii() and settings.token.isprintable()):
        raise SayseeError(
            f"the token has {len(settings.token)} characters; give {MIN_TOKEN} or more, of ASCII letters, digits and "
            "signs, or none and one is made"
        )
    return settings.token


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if settings.cert is None and settings.key is None:
        return None
    if settings.cert is None or settings.key is None:
        raise SayseeError("TLS needs a certificate and its key; give both --cert and --key, or neither")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(settings.cert, settings.key, password=lambda: "")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = getattr(error, "strerror", None) or error
        raise SayseeError(
            f"{settings.cert} and {settings.key} cannot be used ({reason}); give a certificate and its key as PEM, "
            "without a password"
        ) from None
    return context
