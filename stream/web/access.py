"""Access control for the HTTP server: ASGI middleware that refuses a request before the application sees it.

Checks, in order: Host (against DNS rebinding), Origin (cross-site requests, CORS), size of head and body, then the
bearer token or the dashboard's cookie. Every response gets a request id and the security headers.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stream.service.auth import is_loopback, same_token
from stream.web import login_page
from stream.web.problems import Problem, send_problem
from stream.web.wrong_tokens import WrongTokens

MAX_BODY: Final = 64 * 1024
MAX_HEAD: Final = 16 * 1024
COOKIE: Final = "sentstream"
COOKIE_SECONDS: Final = 30 * 24 * 3600
HEALTH: Final = frozenset({"/livez", "/readyz"})
LOGIN: Final = "/api/login"
UNCHANGING: Final = frozenset({"GET", "HEAD", "OPTIONS"})

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")

#: Content-Security-Policy of the dashboard: scripts, styles and calls from this origin, nothing inline, no frames
PAGE_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS: Final = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # with no-referrer a form would be sent with `Origin: null`
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


@dataclass(frozen=True, slots=True)
class AccessRules:
    """Empty ``token``: no authentication. ``hosts``, ``origins``: allowed beside our own."""

    token: str = ""
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()

    def knows_host(self, host: str) -> bool:
        """Whether ``host`` (a Host header) is loopback or in the list of allowed hosts."""
        name = host_name(host)
        return name is not None and (is_loopback(name) or name in self.hosts or host.lower() in self.hosts)

    def knows_origin(self, origin: str, host: str) -> bool:
        """Whether ``origin`` is our own address or in the list of allowed origins."""
        if origin.lower() in self.origins:
            return True
        try:
            parts = urlsplit(origin)
        except ValueError:  # brackets that don't match
            return False
        return parts.scheme in ("http", "https") and bool(parts.netloc) and parts.netloc.lower() == host.lower()

    def fits(self, token: str) -> bool:
        """Constant-time comparison with the configured token."""
        return same_token(token, self.token)

    def cookie(self, now: float) -> str:
        """A session cookie: an expiry time and its HMAC, keyed with the token."""
        expiry = str(int(now) + COOKIE_SECONDS)
        return f"{expiry}.{self._signature(expiry)}"

    def accepts_cookie(self, cookie: str, now: float) -> bool:
        expiry, _, signature = cookie.partition(".")
        right = hmac.compare_digest(signature.encode("utf-8", "replace"), self._signature(expiry).encode())
        return right and expiry.isascii() and expiry.isdigit() and len(expiry) < 12 and now < int(expiry)

    def _signature(self, expiry: str) -> str:
        return hmac.new(self.token.encode(), b"sentstream cookie 1 " + expiry.encode(), hashlib.sha256).hexdigest()


def host_name(host: str) -> str | None:
    """The name in a Host header, in lower case, without port and brackets; None where it is malformed."""
    if re.search(r"[\s@/\\?#]", host):
        return None
    try:
        parts = urlsplit(f"//{host}")
        parts.port  # noqa: B018 - raises where the port is no number
    except ValueError:
        return None
    return parts.hostname.rstrip(".").lower() if parts.hostname else None


class AccessMiddleware:
    """Checks each request, then passes it to ``app``; adds headers to each response."""

    def __init__(self, app: ASGIApp, rules: AccessRules, wrong_tokens: WrongTokens) -> None:
        self._app = app
        self._rules = rules
        self._wrong_tokens = wrong_tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = _request_id(headers)
        scope = dict(scope) | {"sentstream.request_id": request_id, "sentstream.rules": self._rules}
        send = self._stamped(send, headers, request_id, scope["path"])
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            if refusal.is_guess and not await self._wrong_tokens.delay():
                refusal = TOO_MANY_GUESSES
            await self._refuse(scope, headers, refusal, send)
            return
        if scope["method"] == "OPTIONS" and "origin" in headers:
            await send({"type": "http.response.start", "status": 204, "headers": _preflight()})
            await send({"type": "http.response.body", "body": b""})
            return
        if scope["method"] == "HEAD" and not scope["path"].endswith("/events"):
            scope["method"] = "GET"  # the server leaves the body out
        body, answered = _Body(receive), False

        async def sending(message: Message) -> None:
            nonlocal answered
            await send(message)
            answered = message["type"] == "http.response.body" and not message.get("more_body", False)

        try:
            await self._app(scope, body.receive, sending)
        except _TooLargeError:
            await self._refuse(scope, headers, _too_large(), send)
        except Exception:
            # Starlette logs the error, answers with a problem and raises it again. Raised here, too, it would make the
            # server close a connection that the client may already have reused.
            if not answered:
                raise

    def _refusal(self, scope: Scope, headers: Headers) -> _Refusal | None:
        path, method = scope["path"], scope["method"]
        if path in HEALTH:
            return None
        host = headers.get("host", "")
        if len(headers.getlist("host")) != 1 or not self._rules.knows_host(host):
            return _Refusal(
                421,
                f"This server does not answer for the host {host[:100]!r}. "
                "Add its name to SENTSTREAM_HTTP_ALLOWED_HOSTS, or ask for a loopback address.",
            )
        if (foreign := self._foreign(path, method, host, headers)) is not None:
            return foreign
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEAD:
            return _Refusal(431, f"The head of the request is larger than {MAX_HEAD} bytes.", {"connection": "close"})
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit() or int(length[:12]) > MAX_BODY:
            return _too_large()
        if not self._rules.token or path == LOGIN or (method == "OPTIONS" and "origin" in headers):
            return None
        return self._unauthenticated(headers, client_address(scope))

    def _foreign(self, path: str, method: str, host: str, headers: Headers) -> _Refusal | None:
        origin = headers.get("origin")
        if origin is None and (
            method in UNCHANGING or headers.get("sec-fetch-site") not in ("cross-site", "same-site")
        ):
            return None
        if origin is not None and (self._rules.knows_origin(origin, host) or not path.startswith("/api/")):
            return None
        return _Refusal(
            403,
            f"Requests from pages of {str(origin)[:100]!r} are refused. "
            "Add the origin to SENTSTREAM_HTTP_ALLOWED_ORIGINS if they are yours.",
        )

    def _unauthenticated(self, headers: Headers, address: str) -> _Refusal | None:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        is_guess = scheme.lower() == "bearer" and bool(token.strip())
        if is_guess:
            now = time.monotonic()
            if self._wrong_tokens.is_blocked(address, now):
                return TOO_MANY_GUESSES
            if self._rules.fits(token.strip()):
                return None
            self._wrong_tokens.note(address, now)
        else:
            cookie = _cookie(headers)
            if cookie is not None and self._rules.accepts_cookie(cookie, time.time()):
                return None
        return _Refusal(
            401,
            "This call needs the token: send `Authorization: Bearer <token>`, or log in on the dashboard.",
            {"www-authenticate": 'Bearer realm="sentstream"'},
            is_guess,
        )

    async def _refuse(self, scope: Scope, headers: Headers, refusal: _Refusal, send: Send) -> None:
        path, request_id = scope["path"], scope["sentstream.request_id"]
        if refusal.status == 401 and path == "/" and "text/html" in headers.get("accept", ""):
            await login_page.send_page(send, failed=False)
            return
        await send_problem(send, refusal.status, refusal.detail, path, request_id, refusal.headers)

    def _stamped(self, send: Send, headers: Headers, request_id: str, path: str) -> Send:
        """``send`` that adds our headers to every response."""
        origin = headers.get("origin")
        allowed = origin if origin is not None and origin.lower() in self._rules.origins else None

        async def stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                there = {name.lower() for name, _ in message["headers"]}
                ours = {"x-request-id": request_id, "content-security-policy": PAGE_POLICY, **_HEADERS}
                ours["cross-origin-resource-policy"] = "cross-origin" if allowed else "same-origin"
                if path not in HEALTH:
                    ours["vary"] = "Origin, Cookie, Authorization"
                if not path.startswith("/static/"):
                    ours["cache-control"] = "no-cache, private"
                if allowed is not None:
                    ours["access-control-allow-origin"] = allowed
                    ours["access-control-allow-credentials"] = "true"
                    ours["access-control-expose-headers"] = "ETag, Location, Retry-After, X-Request-Id"
                extra = [(n.encode(), v.encode("latin-1")) for n, v in ours.items() if n.encode() not in there]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        return stamped


@dataclass(frozen=True, slots=True)
class _Refusal:
    """``is_guess``: a wrong token was sent."""

    status: int
    detail: str
    headers: Mapping[str, str] | None = None
    is_guess: bool = False


TOO_MANY_GUESSES: Final = _Refusal(
    429, "Too many wrong tokens. Try again in a minute.", {"retry-after": "60", "connection": "close"}
)


def client_address(scope: Scope) -> str:
    """The client's address; behind a trusted proxy that of the proxy's client."""
    return str(scope["client"][0]) if scope.get("client") else ""


class _TooLargeError(Problem):
    """The body is larger than allowed."""

    def __init__(self) -> None:
        super().__init__(413, _too_large().detail, {"connection": "close"})


class _Body:
    """Limits a request body while it is read: a chunked one has no Content-Length."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._read = 0

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._read += len(message.get("body", b""))
            if self._read > MAX_BODY:
                raise _TooLargeError
        return message


def _too_large() -> _Refusal:
    return _Refusal(413, f"The body is larger than {MAX_BODY} bytes.", {"connection": "close"})


def _request_id(headers: Headers) -> str:
    asked = headers.get("x-request-id", "")
    return asked if _REQUEST_ID.match(asked) else secrets.token_hex(8)


def _cookie(headers: Headers) -> str | None:
    jar: SimpleCookie = SimpleCookie()
    try:
        jar.load(headers.get("cookie", ""))
    except CookieError:
        return None
    return jar[COOKIE].value if COOKIE in jar else None


def _preflight() -> list[tuple[bytes, bytes]]:
    return [
        (b"access-control-allow-methods", b"GET, HEAD, POST"),
        (b"access-control-allow-headers", b"Authorization, Content-Type, If-None-Match, Last-Event-ID, X-Request-Id"),
        (b"access-control-max-age", b"600"),
    ]
