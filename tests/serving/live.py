"""A server of its own for a test: real sockets on the loopback interface, in a thread of this process."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import h11
import httpx
from starlette.types import ASGIApp

from saysee.serving.limits import ServingLimits
from saysee.serving.server import make_server


@dataclass
class Live:
    """Where a running server is reached."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **options: object) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30, trust_env=False, **options)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def raw(self, timeout: float = 20.0) -> Iterator[socket.socket]:
        with socket.create_connection(("127.0.0.1", self.port), timeout) as connection:
            yield connection


@dataclass
class RawAnswer:
    """What came back on a socket."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    closed: bool = field(default=False)


@contextlib.contextmanager
def live(app: ASGIApp, limits: ServingLimits | None = None) -> Iterator[Live]:
    """Run an application for the block."""
    server = make_server(app, limits or ServingLimits())
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        until(lambda: server.started)
        yield Live(listening.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def until(condition, seconds: float = 20.0) -> None:  # type: ignore[no-untyped-def]
    """Wait for something that happens soon."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def read_answer(connection: socket.socket, method: str = "GET") -> RawAnswer:
    """Read one answer, and whether the server closes the connection after it."""
    parser = h11.Connection(h11.CLIENT)
    parser.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
    parser.send(h11.EndOfMessage())
    status, headers, body = 0, {}, b""
    while True:
        event = parser.next_event()
        if event is h11.NEED_DATA:
            parser.receive_data(connection.recv(65536))
        elif isinstance(event, h11.Response):
            status = event.status_code
            headers = {name.decode(): value.decode() for name, value in event.headers}
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
            break
    closed = False
    if headers.get("connection") == "close":
        with contextlib.suppress(ConnectionError):
            closed = connection.recv(1) == b""
    return RawAnswer(status, headers, body, closed)
