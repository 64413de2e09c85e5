"""Responses: JSON with a strong ETag, 304 for If-None-Match, opaque cursors."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from stream.web.problems import Problem
from stream.web.serialize import dumps

#: the largest bigint
MAX_ID: Final = 2**63 - 1

_TAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"')


def answer(request: Request, value: object, status: int = 200) -> Response:
    """``value`` as JSON. The ETag is a hash of the bytes, so it is equal in every process."""
    body = dumps(value)
    tag = f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
    if _has(request.headers.get("if-none-match"), tag):
        return Response(status_code=304, headers={"ETag": tag})
    return Response(body, status, {"ETag": tag}, "application/json")


def _has(if_none_match: str | None, tag: str) -> bool:
    if if_none_match is None:
        return False
    if if_none_match.strip() == "*":
        return True
    return any(held.removeprefix("W/") == tag for held in _TAG.findall(if_none_match))


def cursor_of(number: int) -> str:
    """A cursor for the page after ``number``."""
    return base64.urlsafe_b64encode(f"after {number}".encode()).decode().rstrip("=")


def number_of(cursor: str | None) -> int | None:
    """The number in a cursor that `cursor_of` made; None without a cursor. Problem 422 for any other text."""
    if cursor is None:
        return None
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True).decode("ascii")
        word, _, number = text.partition(" ")
        if word == "after" and number.isdigit() and len(number) < 20 and int(number) <= MAX_ID:
            return int(number)
    except (binascii.Error, ValueError):
        pass
    raise Problem(422, "The cursor is not valid. Take `next_cursor` of the page before, or leave it out.")


def where(request: Request, path: str) -> str:
    """``path`` as the client sees it: under X-Forwarded-Prefix behind a proxy that sends it."""
    return str(request.scope.get("sentstream.prefix", "")) + path
