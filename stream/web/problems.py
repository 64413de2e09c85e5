"""Errors as application/problem+json (RFC 9457), each with its request id.

A problem says what is wrong and what to do. It never contains a traceback, the database's address or a secret; the log
has these under the same request id.
"""

from __future__ import annotations

import http
import logging
from collections.abc import Mapping
from typing import Any, Final

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Send

from stream.core.errors import PreconditionError, SentstreamError, UnreachableError

log = logging.getLogger(__name__)

#: status of a request whose client left, for the metrics: nginx uses it, too
CLIENT_LEFT: Final = 499
MEDIA_TYPE = "application/problem+json"


class Problem(HTTPException):
    """An error response; ``detail`` says what is wrong and what to do."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, detail, dict(headers or {}))


def body_of(status: int, detail: str, path: str, request_id: str, errors: list[dict[str, str]] | None = None) -> bytes:
    """The JSON of a problem."""
    content: dict[str, Any] = {
        "type": "about:blank",
        "title": http.HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "instance": path,
        "request_id": request_id,
    }
    if errors:
        content["errors"] = errors
    return orjson.dumps(content)


async def send_problem(
    send: Send, status: int, detail: str, path: str, request_id: str, headers: Mapping[str, str] | None = None
) -> None:
    """Send a problem from ASGI middleware."""
    body = body_of(status, detail, path, request_id)
    lines = [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", str(len(body)).encode())]
    lines.extend((name.lower().encode(), value.encode("latin-1")) for name, value in (headers or {}).items())
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": body})


def install(app: FastAPI) -> None:
    """Answer every error of ``app`` with a problem."""

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        return _response(request, error.status_code, str(error.detail), error.headers)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        errors = [
            {"where": ".".join(str(part) for part in item["loc"]), "what": str(item["msg"])} for item in error.errors()
        ]
        what = "; ".join(f"{item['where']}: {item['what']}" for item in errors[:3])
        return _response(request, 422, f"The request is not valid. {what}", None, errors)

    @app.exception_handler(SentstreamError)
    async def _expected(request: Request, error: SentstreamError) -> Response:
        unavailable = isinstance(error, (UnreachableError, PreconditionError))
        log.warning("request %s failed: %s", _id_of(request), error)
        what = "The database can't be reached." if isinstance(error, UnreachableError) else error.what
        headers = {"Retry-After": "5"} if unavailable else None
        return _response(request, 503 if unavailable else 500, f"{what} The log has more.", headers)

    @app.exception_handler(ClientDisconnect)
    async def _client_left(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=CLIENT_LEFT)

    @app.exception_handler(Exception)
    async def _unexpected(request: Request, error: Exception) -> Response:
        log.error("request %s failed", _id_of(request), exc_info=error)
        return _response(request, 500, "An internal error. The log has the reason under this request id.")


def _response(
    request: Request,
    status: int,
    detail: str,
    headers: Mapping[str, str] | None = None,
    errors: list[dict[str, str]] | None = None,
) -> Response:
    body = body_of(status, detail, request.url.path, _id_of(request), errors)
    return Response(body, status, headers, MEDIA_TYPE)


def _id_of(request: Request) -> str:
    return str(request.scope.get("sentstream.request_id", "-"))
