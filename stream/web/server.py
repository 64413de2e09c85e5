"""Starts the HTTP server: opens the socket, and serves in this process (`serve`) or in a child process (`start`).

The child process keeps a thousand clients from slowing the counting down, for Python runs one thread of a process at a
time. The parent sends committed flushes through a pipe, the next when the child has taken the last; meanwhile newer
rows replace older ones in the inbox.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from stream.config.settings import Settings
from stream.core.errors import ConfigurationError
from stream.service.auth import is_loopback
from stream.service.inbox import Inbox
from stream.web.child_process import ServerProcess

if TYPE_CHECKING:
    from stream.web.app import Source

log = logging.getLogger(__name__)


def start(settings: Settings, feed: Inbox, metrics: Callable[[], bytes] | None = None) -> ServerProcess | None:
    """Serve in a child process, fed from ``feed``; None where HTTP_LISTEN is `off`.

    ``metrics``: makes text for `/metrics`, called every few seconds. ConfigurationError where the address can't be
    listened on, or is not loopback and there is no token.
    """
    if settings.http_address is None:
        return None
    sock = listen(settings)
    return ServerProcess(settings, sock, address_of(sock), feed, metrics)


def serve(settings: Settings, *sources: Source) -> None:
    """Serve in this process until SIGTERM or Ctrl-C. ``sources``: tasks that bring counts beside the poll."""
    sock = listen(settings)
    log.info("The dashboard is at %s", address_of(sock))
    from stream.web.uvicorn_server import run_server  # noqa: PLC0415 - a parent of a server needs no FastAPI

    run_server(settings, sock, *sources)


def listen(settings: Settings) -> socket.socket:
    """A socket on HTTP_LISTEN. Raises ConfigurationError as `start` does."""
    where = settings.http_address
    if where is None:
        raise ConfigurationError("HTTP_LISTEN is off.", "Give an address such as 127.0.0.1:8087.")
    host, port = where
    if not settings.http_token and not is_loopback(host):
        raise ConfigurationError(
            f"HTTP_LISTEN {settings.http_listen} would be open to other machines, and HTTP_TOKEN is not set.",
            "Set SENTSTREAM_HTTP_TOKEN to a long random word, or listen on 127.0.0.1 and put a proxy in front.",
        )
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as error:
        raise ConfigurationError(
            f"HTTP_LISTEN {settings.http_listen} can't be listened on: {error.strerror or error}.",
            "Stop what listens there, or choose another port (0: any free one; off: no HTTP).",
        ) from error


def address_of(sock: socket.socket) -> str:
    """The URL of a listening socket."""
    host, port = sock.getsockname()[:2]
    shown = "127.0.0.1" if host == "0.0.0.0" else "[::1]" if host == "::" else f"[{host}]" if ":" in host else host  # noqa: S104
    return f"http://{shown}:{port}/"
