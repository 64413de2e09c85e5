"""The dashboard's page and files, login and logout."""

from __future__ import annotations

import time
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs

import orjson
from fastapi import APIRouter, Request
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from stream.web import login_page
from stream.web.access import COOKIE, COOKIE_SECONDS, TOO_MANY_GUESSES, client_address
from stream.web.context import Context, Shared
from stream.web.problems import Problem

router = APIRouter()

STATIC: Final = Path(str(resources.files("stream.web") / "static"))

_LOGIN_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/Login"}},
            "application/x-www-form-urlencoded": {"schema": {"$ref": "#/components/schemas/Login"}},
        },
    }
}
_LOGIN_ANSWERS: dict[int | str, dict[str, Any]] = {
    204: {"description": "The cookie is set."},
    303: {"description": "A form's answer: the cookie is set, on to the dashboard."},
}


def files() -> StaticFiles:
    """The dashboard's scripts and styles."""
    return StaticFiles(directory=STATIC)


@router.get("/", include_in_schema=False)
async def dashboard(shared: Shared) -> Response:
    page = _page()
    if shared.rules.token:
        page = page.replace(b"<html ", b"<html data-token ", 1)  # then it offers to log out
    return Response(page, media_type="text/html; charset=utf-8")


@router.get("/favicon.ico", include_in_schema=False)
async def favicon() -> Response:
    return FileResponse(STATIC / "icon.svg", media_type="image/svg+xml")


@router.post("/api/login", status_code=204, tags=["login"], openapi_extra=_LOGIN_BODY, responses=_LOGIN_ANSWERS)
async def login(request: Request, shared: Shared) -> Response:
    """Exchange the token for the dashboard's same-site cookie."""
    is_form = request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded")
    token = _token(await request.body(), is_form)
    if shared.rules.token and not await _is_right(request, shared, token):
        if is_form and "text/html" in request.headers.get("accept", ""):
            page = login_page.page(failed=True)
            return Response(page, 401, {"Content-Security-Policy": login_page.POLICY}, "text/html; charset=utf-8")
        raise Problem(401, "That is not the token.", {"WWW-Authenticate": 'Bearer realm="sentstream"'})
    response = Response(status_code=303, headers={"Location": "../"}) if is_form else Response(status_code=204)
    if shared.rules.token:
        _set_cookie(response, request, shared.rules.cookie(time.time()), COOKIE_SECONDS)
    return response


async def _is_right(request: Request, shared: Context, token: str) -> bool:
    """Whether ``token`` is the token; Problem 429 where too many wrong ones are sent."""
    address, now, wrong = client_address(request.scope), time.monotonic(), shared.wrong_tokens
    blocked = wrong.is_blocked(address, now)
    if not blocked and shared.rules.fits(token):
        return True
    wrong.note(address, now)
    if blocked or not await wrong.delay():
        raise Problem(TOO_MANY_GUESSES.status, TOO_MANY_GUESSES.detail, TOO_MANY_GUESSES.headers)
    return False


@router.post("/api/logout", status_code=204, tags=["login"])
async def logout(request: Request) -> Response:
    """Remove the cookie from this browser."""
    response = Response(status_code=204)
    _set_cookie(response, request, "", 0)
    return response


@cache
def _page() -> bytes:
    return (STATIC / "index.html").read_bytes()


def _token(body: bytes, is_form: bool) -> str:
    try:
        if is_form:
            return parse_qs(body.decode(), strict_parsing=True, max_num_fields=4)["token"][0]
        value = orjson.loads(body)
        if isinstance(value, dict) and isinstance(value.get("token"), str):
            return str(value["token"])
    except (ValueError, KeyError):
        pass
    raise Problem(422, 'Send the token as JSON, {"token": "..."}, or as the form field `token`.')


def _set_cookie(response: Response, request: Request, value: str, seconds: int) -> None:
    response.set_cookie(
        COOKIE, value, max_age=seconds, path="/", secure=request.url.scheme == "https", httponly=True, samesite="strict"
    )
