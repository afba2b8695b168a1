"""How the server says no: a status, one line of JSON, and where waiting helps, how long."""

import json

REASONS = {
    400: "The request is malformed.",
    401: "A token is required: `Authorization: Bearer TOKEN`.",
    403: "The names in Host or Origin are not this server's.",
    404: "There is no such thing here (any more).",
    405: "This method does nothing here; `Allow` lists those that do.",
    408: "The body came too slowly.",
    413: "The body is too large.",
    415: "The body is neither a recording nor a picture of a known format.",
    422: "A parameter is not allowed, or the body cannot be used: damaged, silent, too long, too many pixels.",
    429: "Too many requests of this client; `Retry-After` says in how many seconds there is room again.",
    500: "A fault of the server.",
    503: "The server is busy or took too long; ask again after `Retry-After` seconds.",
}
"""What each status stands for; the OpenAPI description says it in these words."""


class Refusal(Exception):  # noqa: N818
    """Ends a request with a status of `REASONS`.

    Args:
        status: of HTTP.
        message: one line: what was received, what is allowed.
        headers: further ones of the answer, such as `Retry-After`; names in lower case.
    """

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        assert status in REASONS
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers or {}

    @property
    def body(self) -> bytes:
        """The JSON of the answer."""
        return error_body(self.message)


def busy(message: str, seconds: int = 1) -> Refusal:
    """Return a refusal for what can be done later."""
    return Refusal(503, message, {"retry-after": str(seconds)})


def error_body(message: str) -> bytes:
    """Return `{"error": message}`; what UTF-8 cannot hold, as in a broken file name, becomes `?`."""
    return json.dumps({"error": message}, ensure_ascii=False).encode("utf-8", "replace")
