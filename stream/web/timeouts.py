"""The HTTP connection, with the patience that uvicorn leaves out: how long a client may take to ask, and to read.

Both are held at the transport, where nothing waits for the client's goodwill: a request must be complete some seconds
after its first byte, and a client that takes nothing off a full buffer for some seconds is cut off. So a thousand
slow clients cost a buffer each, for a bounded time.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from stream.web.problems import MEDIA_TYPE, body_of

log = logging.getLogger(__name__)

#: seconds in which a request must have come whole, or a new connection have asked anything
ASK_WITHIN: Final = 15.0
#: seconds without reading after which a client whose buffer is full is cut off
READ_WITHIN: Final = 5.0


class PatientProtocol(H11Protocol):
    """uvicorn's protocol with time limits, and with problems for what is no HTTP."""

    _asking: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        limit = self.config.limit_concurrency
        if limit is not None and len(self.connections) > limit:
            self._answer(503, "Too many connections. Try again in a moment.")
            return
        self._asking = self.loop.call_later(ASK_WITHIN, self._cut, "did not send a whole request")

    def data_received(self, data: bytes) -> None:
        if self._asking is None and self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            self._asking = self.loop.call_later(ASK_WITHIN, self._cut, "did not send a whole request")
        super().data_received(data)
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._asking = _stop(self._asking)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._reading is None:
            self._reading = self.loop.call_later(READ_WITHIN, self._cut, "does not read")

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reading = _stop(self._reading)

    def connection_lost(self, exc: Exception | None) -> None:
        self._asking, self._reading = _stop(self._asking), _stop(self._reading)
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        del msg
        self._answer(400, "This is not HTTP/1.1, or its head is larger than 16 kB.")

    def _answer(self, status: int, detail: str) -> None:
        """Answer without having understood a request, and close."""
        body = body_of(status, detail, "", "-")
        head = f"HTTP/1.1 {status} {'Bad Request' if status == 400 else 'Service Unavailable'}\r\n"
        lines = (f"content-type: {MEDIA_TYPE}", f"content-length: {len(body)}", "connection: close")
        self.transport.write(head.encode() + "\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        self.transport.close()

    def _cut(self, why: str) -> None:
        log.info("A client was cut off: it %s.", why)
        self.transport.abort()


def _stop(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """None, which is what is left of a timer that is stopped."""
    if timer is not None:
        timer.cancel()
    return None


def settings() -> dict[str, Any]:
    """Arguments of ``uvicorn.Config`` that belong to this protocol."""
    return {"http": PatientProtocol, "ws": "none", "h11_max_incomplete_event_size": 16 * 1024}
