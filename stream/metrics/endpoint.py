"""METRICS_LISTEN: `/metrics`, `/livez` and `/readyz` of one role, from a thread of its own and the standard library.

The rules are those of the HTTP API: without a token it listens on loopback only, and answers only to loopback names;
with one, `/metrics` needs it (`Authorization: Bearer`). The health calls need none.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

from prometheus_client.exposition import CONTENT_TYPE_LATEST

from stream.config.settings import Settings
from stream.core.errors import ConfigurationError
from stream.metrics.states import Check, Health
from stream.service.auth import is_loopback, same_token

log = logging.getLogger("sentstream.metrics")

#: seconds that a client may take to ask
PATIENCE: Final = 5.0
#: calls at once; more are refused
AT_ONCE: Final = 8


class Endpoint:
    """Serves until `close`. ``url``: where."""

    def __init__(self, settings: Settings, text: Callable[[], bytes], health: Health) -> None:
        where = settings.metrics_address
        assert where is not None
        host, port = where
        if not settings.http_token and not is_loopback(host):
            raise ConfigurationError(
                f"METRICS_LISTEN {settings.metrics_listen} would be open to other machines, and HTTP_TOKEN is not set.",
                "Set SENTSTREAM_HTTP_TOKEN to a long random word, or listen on 127.0.0.1.",
            )
        hosts = frozenset(name.lower() for name in settings.http_allowed_hosts)
        shows = _Shows(text, health, settings.http_token, hosts)
        handler = type("Handler", (_Handler,), {"shows": shows})
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
            server = type("Server", (_Server,), {"address_family": family})
            self._server: ThreadingHTTPServer = server((host, port), handler)
        except OSError as error:
            raise ConfigurationError(
                f"METRICS_LISTEN {settings.metrics_listen} can't be listened on: {error.strerror or error}.",
                "Stop what listens there, or choose another port (0: any free one; off: none).",
            ) from error
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._server.server_address[1]}/"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.2}, name="metrics", daemon=True
        )
        self._thread.start()
        log.info("metrics and health are at %s", self.url)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class _Shows:
    """What the calls have in common."""

    text: Callable[[], bytes]
    health: Health
    token: str
    hosts: frozenset[str]
    free: threading.BoundedSemaphore = field(default_factory=lambda: threading.BoundedSemaphore(AT_ONCE))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 16

    def handle_error(self, request: Any, client_address: Any) -> None:
        del request
        log.debug("a call from %s failed", client_address)


class _Handler(BaseHTTPRequestHandler):
    shows: ClassVar[_Shows]
    timeout = PATIENCE
    server_version = "sentstream"
    sys_version = ""

    def do_GET(self) -> None:
        if not self.shows.free.acquire(blocking=False):
            self._answer(503, b"Too many calls at once.\n")
            return
        try:
            self._get()
        finally:
            self.shows.free.release()

    do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

    def _get(self) -> None:
        path, _, query = self.path.partition("?")
        if path in ("/livez", "/readyz"):
            live, ready = self.shows.health()
            self._checks(live if path == "/livez" else [*live, *ready], verbose="verbose" in query)
        elif path != "/metrics":
            self._answer(404, b"/metrics, /livez and /readyz are here.\n")
        elif not self._knows_host():
            self._answer(421, b"Ask for a loopback name, or one of HTTP_ALLOWED_HOSTS.\n")
        elif self.shows.token and not self._has_token():
            self._answer(401, b"Authorization: Bearer is needed, with HTTP_TOKEN.\n", ("WWW-Authenticate", "Bearer"))
        else:
            self._answer(200, self.shows.text(), ("Content-Type", CONTENT_TYPE_LATEST))

    def _checks(self, checks: list[Check], *, verbose: bool) -> None:
        ok = all(check.ok for check in checks)
        words = [{"name": check.name, "ok": check.ok, "detail": check.detail} for check in checks] if verbose else None
        body = json.dumps({"ok": ok, "checks": words}).encode()
        self._answer(200 if ok else 503, body, ("Content-Type", "application/json"))

    def _knows_host(self) -> bool:
        """DNS rebinding: a foreign page under a name that resolves to us must not read where no token protects."""
        if self.shows.token:
            return True
        try:
            name = urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""
        except ValueError:
            return False
        return is_loopback(name) or name in self.shows.hosts

    def _has_token(self) -> bool:
        given = self.headers.get("Authorization", "")
        scheme, _, word = given.partition(" ")
        return scheme.lower() == "bearer" and same_token(word.strip(), self.shows.token)

    def _answer(self, status: int, body: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (*headers, ("Content-Length", str(len(body))), ("Cache-Control", "no-store")):
            self.send_header(name, value)
        if not any(name == "Content-Type" for name, _ in headers):
            self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of the overridden method
        log.debug(format, *args)


def start(settings: Settings, text: Callable[[], bytes], health: Health) -> Endpoint | None:
    """An `Endpoint`, or None where METRICS_LISTEN is `off`. ConfigurationError where it can't be listened on."""
    return Endpoint(settings, text, health) if settings.metrics_address is not None else None
