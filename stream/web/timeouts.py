"""Time limits for HTTP connections, which uvicorn lacks: for sending a request, and for reading the response.

A request must be complete some seconds after its first byte. A client that reads nothing from a full buffer for some
seconds is disconnected. So a thousand slow clients cost a buffer each, for a bounded time.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

import h11
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from stream.web.access import HEALTH
from stream.web.problems import MEDIA_TYPE, body_of, send_problem

log = logging.getLogger(__name__)

#: seconds within which a request must be complete, also the first one of a connection
REQUEST_TIMEOUT: Final = 15.0
#: the same for connections beyond the limit
OVER_LIMIT_TIMEOUT: Final = 2.0
#: seconds without reading after which a client with a full buffer is disconnected
READ_TIMEOUT: Final = 5.0


class TimeoutProtocol(H11Protocol):
    """uvicorn's protocol with time limits, and with problem+json for what is no HTTP."""

    _asking: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        limit = self.config.limit_concurrency
        self.limit_concurrency = None  # uvicorn's own check would refuse the health calls, too
        timeout = REQUEST_TIMEOUT
        if limit is not None and len(self.connections) > limit:
            self.app, timeout = _health_only(self.app), OVER_LIMIT_TIMEOUT
        self._asking = self.loop.call_later(timeout, self._disconnect, "did not send a whole request")

    def data_received(self, data: bytes) -> None:
        if self._asking is None and self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            self._asking = self.loop.call_later(REQUEST_TIMEOUT, self._disconnect, "did not send a whole request")
        super().data_received(data)
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._asking = _stop(self._asking)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._reading is None:
            self._reading = self.loop.call_later(READ_TIMEOUT, self._disconnect, "does not read")

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reading = _stop(self._reading)

    def connection_lost(self, exc: Exception | None) -> None:
        self._asking, self._reading = _stop(self._asking), _stop(self._reading)
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        del msg
        body = body_of(400, "This is not HTTP/1.1, or its head is larger than 16 kB.", "", "-")
        head = "HTTP/1.1 400 Bad Request\r\n"
        lines = (f"content-type: {MEDIA_TYPE}", f"content-length: {len(body)}", "connection: close")
        self.transport.write(head.encode() + "\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        self.transport.close()

    def _disconnect(self, why: str) -> None:
        log.info("A client was disconnected: it %s.", why)
        self.transport.abort()


def _health_only(app: Any) -> ASGIApp:
    """``app`` for connections beyond the limit: health calls are answered, others get 503."""

    async def limited(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in HEALTH:
            await app(scope, receive, send)
            return
        headers = {"retry-after": "2", "connection": "close"}
        await send_problem(send, 503, "Too many connections. Try again in a moment.", scope["path"], "-", headers)

    return limited


def _stop(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """Cancel ``timer``; None, to replace it."""
    if timer is not None:
        timer.cancel()
    return None


def settings() -> dict[str, Any]:
    """Arguments of ``uvicorn.Config`` that belong to this protocol."""
    return {"http": TimeoutProtocol, "ws": "none", "h11_max_incomplete_event_size": 16 * 1024}
