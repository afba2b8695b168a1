"""HTTP/1.1 on one connection, as uvicorn speaks it, with a limit on how slow the other end may be.

uvicorn bounds neither how long the head of a request takes nor how long an answer waits to be taken: a client that
sends a byte a minute, or never reads, would hold its connection for ever.
"""

import asyncio
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from saysee.serving.guards import HEADERS
from saysee.serving.limits import ServingLimits
from saysee.serving.refusal import Refusal, busy


class BoundedProtocol(H11Protocol):
    """uvicorn's protocol with time-outs for heads and for answers, and a limit on the number of connections.

    Args:
        limits: `connections`, `header_seconds`, `write_seconds`.
        arguments: uvicorn's own.
    """

    def __init__(self, limits: ServingLimits, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._limits = limits
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request, or refuse the connection."""
        super().connection_made(transport)
        # with nothing kept back, `pause_writing` tells of every byte that the other end does not take
        transport.set_write_buffer_limits(high=1, low=0)
        if len(self.connections) > self._limits.connections:
            self._end_with(busy("too many connections are open; try again in a second"))
        else:
            self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        super().connection_lost(exc)
        self._stop_head_timer()
        self.resume_writing()

    def data_received(self, data: bytes) -> None:
        """Take what has come."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        self._watch_head()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, in the form of all other refusals."""
        self._end_with(Refusal(400, "this is no valid HTTP/1.1 request"))

    def pause_writing(self) -> None:
        """Begin to wait for the other end to take what it is sent."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self._limits.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on: all has been taken."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _watch_head(self) -> None:
        in_a_request = self.cycle is not None and not self.cycle.response_complete
        if in_a_request or self.transport.is_closing():
            self._stop_head_timer()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self._limits.header_seconds, self._head_is_late)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        message = f"no whole request within {self._limits.header_seconds:g} s"
        self._end_with(Refusal(408, message))

    def _end_with(self, refusal: Refusal) -> None:
        """Send a refusal for which there is no request, if the state of the connection allows it, and close."""
        if self.transport.is_closing():
            return
        headers = {**HEADERS, "content-type": "application/json", "connection": "close", **refusal.headers}
        headers["content-length"] = str(len(refusal.body))
        try:
            for event in (
                h11.Response(
                    status_code=refusal.status,
                    headers=list(headers.items()),
                    reason=HTTPStatus(refusal.status).phrase,
                ),
                h11.Data(data=refusal.body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:  # in the middle of an answer
            pass
        self.transport.close()
