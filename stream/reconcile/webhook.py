"""A JSON POST to NOTIFY_URL on drift, stall and recovery: sent once, retried a few times, never waited for.

Messages go into a short queue, and one thread posts them in order; while the receiver is away, the oldest are dropped,
which is logged. Delivery is best effort: the reports in PostgreSQL are the record.
"""

from __future__ import annotations

import json
import logging
import queue
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any, Final
from urllib.parse import urlsplit

from stream.core.report import rfc3339

log = logging.getLogger("sentstream.notify")

#: seconds before each attempt at one message
PAUSES: Final = (0.0, 1.0, 4.0, 15.0)
TIMEOUT: Final = 5.0
#: messages that may wait in the queue
ROOM: Final = 100


class Notifier:
    """Posts in a thread of its own. ``address``: NOTIFY_URL as it is now; empty: nothing is sent."""

    def __init__(
        self, address: Callable[[], str], pauses: tuple[float, ...] = PAUSES, timeout: float = TIMEOUT
    ) -> None:
        self._address = address
        self._pauses = pauses
        self._timeout = timeout
        self._waiting: queue.Queue[dict[str, Any]] = queue.Queue(ROOM)
        self._stop = threading.Event()
        self._until = float("inf")
        self._thread: threading.Thread | None = None
        self._opener = urllib.request.build_opener(
            _NoRedirect, urllib.request.HTTPSHandler(context=ssl.create_default_context())
        )

    def notify(self, event: str, words: Mapping[str, Any]) -> None:
        """Send ``{"event": event, "at": now, ...words}`` soon. Never blocks, never raises."""
        if not self._address():
            return
        message = {"event": event, "at": rfc3339(datetime.now(timezone.utc)), **words}
        while True:
            try:
                self._waiting.put_nowait(message)
                break
            except queue.Full:
                self._drop_oldest()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="notify", daemon=True)
            self._thread.start()

    def close(self, timeout: float = 2.0) -> None:
        """Give what is waiting ``timeout`` seconds, then end."""
        self._until = time.monotonic() + timeout
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout)

    def _drop_oldest(self) -> None:
        try:
            dropped = self._waiting.get_nowait()
        except queue.Empty:
            return
        log.warning("NOTIFY_URL is too slow: news of %s (%s) was dropped", dropped["event"], dropped["at"])

    def _run(self) -> None:
        while time.monotonic() < self._until:
            try:
                message = self._waiting.get(timeout=0.2)
            except queue.Empty:
                if self._stop.is_set():
                    return
                continue
            self._deliver(message)

    def _deliver(self, message: dict[str, Any]) -> None:
        problem = ""
        for pause in self._pauses:
            if pause and self._stop.wait(pause):
                break
            problem = self._post(message)
            if not problem:
                return
        log.warning("news of %s could not be delivered to %s: %s", message["event"], self._host(), problem or "stopped")

    def _post(self, message: dict[str, Any]) -> str:
        """What went wrong, in a few words; empty: nothing."""
        request = urllib.request.Request(  # noqa: S310 - settings allow http and https alone
            self._address(),
            data=json.dumps(message).encode(),
            headers={"Content-Type": "application/json", "User-Agent": "sentstream"},
            method="POST",
        )
        try:
            with self._opener.open(request, timeout=self._timeout) as answer:
                answer.read(4096)
                return ""
        except urllib.error.HTTPError as error:
            return f"HTTP status {error.code}"
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            return type(reason).__name__ if not isinstance(reason, str) else reason

    def _host(self) -> str:
        """The address without what may be secret in it."""
        parts = urlsplit(self._address())
        return f"{parts.scheme}://{parts.hostname}"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST would become a GET to an address that the settings don't name."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None
