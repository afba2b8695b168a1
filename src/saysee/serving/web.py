"""What the search and the recording of captions have in common: the page, the form of every error, OpenAPI."""

import hashlib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import cache, partial
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from saysee import __version__
from saysee.errors import SayseeError
from saysee.features.sources import one_line
from saysee.serving.guards import HEALTH
from saysee.serving.refusal import Refusal, error_body

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
INDEX = "index.html"
_OWN_REFUSAL = "HTTPValidationError"


def make_web(title: str, lifespan: Lifespan, *, token: bool, api: APIRouter) -> FastAPI:
    """Return an application with the page, the routes given, and one form for all errors.

    Args:
        title: of the OpenAPI description.
        lifespan: what is begun before the first request and ended after the last.
        token: whether the description says that a token is required.
        api: the routes below `/api`.
    """
    app = FastAPI(
        title=title,
        version=__version__,
        lifespan=lifespan,
        openapi_url="/api/openapi.json",
        redirect_slashes=False,
        # their pages would load scripts of another host
        docs_url=None,
        redoc_url=None,
    )
    security = [Depends(HTTPBearer(auto_error=False, description="the token that was printed at the start"))]
    app.include_router(api, prefix="/api", dependencies=security if token else [])
    app.add_exception_handler(Refusal, _on_refusal)
    app.add_exception_handler(RequestValidationError, _on_bad_parameter)
    app.add_exception_handler(SayseeError, _on_mistake)
    app.add_exception_handler(HTTPException, _on_routing)
    app.add_exception_handler(Exception, _on_fault)
    app.openapi = partial(_description, app)  # type: ignore[method-assign]
    pages = page_files()

    @app.get("/", include_in_schema=False)
    async def index(request: Request) -> Response:
        return _page(request, pages[INDEX])

    @app.get("/page/{name}", include_in_schema=False)
    async def page(request: Request, name: str) -> Response:
        if name not in pages or name == INDEX:
            raise Refusal(404, "the page has no such file")
        return _page(request, pages[name])

    return app


@cache
def page_files() -> dict[str, tuple[bytes, str]]:
    """Return the files of the page with their media types; a request names one of them or nothing."""
    found = {}
    for file in files("saysee.serving").joinpath("page").iterdir():
        kind = _TYPES.get(file.name[file.name.rfind(".") :])
        if kind is not None:
            found[file.name] = (file.read_bytes(), kind)
    return found


def not_modified(request: Request, tag: str, caching: str) -> Response | None:
    """Return the answer that the client has the newest already (304), None if it has not."""
    given = [one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")]
    return Response(status_code=304, headers=_kept(tag, caching)) if f'"{tag}"' in given else None


def answer_file(request: Request, content: bytes, kind: str, tag: str, caching: str) -> Response:
    """Return a file, or only that the client has it already.

    Args:
        request: may say which one the client has.
        content: of the file.
        kind: its media type.
        tag: see `tag_of`.
        caching: of `Cache-Control`.
    """
    return not_modified(request, tag, caching) or Response(content, media_type=kind, headers=_kept(tag, caching))


def tag_of(*parts: object) -> str:
    """Return an ETag's text for what is the same as long as these are."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogatepass"))
        digest.update(b"\0")
    return digest.hexdigest()[:32]


def _description(app: FastAPI) -> dict[str, Any]:
    """Return FastAPI's description without what it takes for granted: a form of refusals of its own, and a token."""
    if app.openapi_schema is None:
        described = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for path, methods in described["paths"].items():
            for operation in methods.values():
                if path == HEALTH:
                    operation.pop("security", None)
                if _OWN_REFUSAL in str(operation["responses"].get("422")):
                    del operation["responses"]["422"]
        for name in (_OWN_REFUSAL, "ValidationError"):
            described["components"]["schemas"].pop(name, None)
        app.openapi_schema = described
    return app.openapi_schema


def _kept(tag: str, caching: str) -> dict[str, str]:
    return {"etag": f'"{tag}"', "cache-control": caching}


def _page(request: Request, page: tuple[bytes, str]) -> Response:
    content, kind = page
    return answer_file(request, content, kind, tag_of(content), "no-cache")


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return Response(error_body(one_line(message)), status, headers, "application/json")


async def _on_refusal(_: Request, refusal: Any) -> Response:
    return _error(refusal.status, refusal.message, refusal.headers)


async def _on_mistake(_: Request, mistake: Exception) -> Response:
    return _error(422, str(mistake))


async def _on_bad_parameter(_: Request, error: Any) -> Response:
    faults = [f"{'.'.join(map(str, fault['loc'][1:]))}: {fault['msg']}" for fault in error.errors()]
    return _error(422, "; ".join(faults[:3]))


async def _on_routing(_: Request, error: Any) -> Response:
    message = {404: "there is nothing here", 405: "this method does nothing here"}.get(error.status_code, error.detail)
    return _error(error.status_code, message, error.headers)


async def _on_fault(_: Request, error: Exception) -> Response:
    return _error(500, "a fault of the server; its log names the place")
