"""Sessions for calls that read the database: a few, kept open, lent to one call at a time.

A call that finds none free within a few seconds is refused instead of queued without end, so that whoever asks too much
waits alone and the streams, which need no session, go on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import BoundedSemaphore, Lock
from typing import Any, Final

import psycopg

from connectors.postgres.connect import connect
from stream.core.errors import UnreachableError
from stream.web.problems import Problem

log = logging.getLogger(__name__)

SESSIONS: Final = 4
#: seconds a call waits for a session, and the longest statement of one
PATIENCE: Final = 3.0
STATEMENT_TIMEOUT: Final = "15s"
#: seconds after which an unused session is closed
IDLE: Final = 60.0


class Shelf:
    """At most `SESSIONS` sessions. For any number of threads."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = Lock()
        self._free = BoundedSemaphore(SESSIONS)
        self._kept: list[tuple[float, psycopg.Connection[Any]]] = []

    @contextmanager
    def lend(self) -> Iterator[psycopg.Connection[Any]]:
        """A session in autocommit mode, whole again afterwards. Problem 503 where all are lent; UnreachableError."""
        if not self._free.acquire(timeout=PATIENCE):
            raise Problem(503, "Too many calls ask the database at once. Try again in a moment.", {"Retry-After": "2"})
        connection: psycopg.Connection[Any] | None = None
        try:
            connection = self._take() or connect(self._url, "http", settings={"statement_timeout": STATEMENT_TIMEOUT})
            yield connection
        except psycopg.OperationalError as error:
            log.warning("A call's session failed: %s", error)
            raise UnreachableError("The database did not answer.", "Try again in a moment.") from error
        finally:
            self._give_back(connection)
            self._free.release()

    def close(self) -> None:
        """Close what is kept; what is lent closes when it comes back broken, or with the process."""
        with self._lock:
            kept, self._kept = self._kept, []
        for _, connection in kept:
            connection.close()

    def _take(self) -> psycopg.Connection[Any] | None:
        with self._lock:
            now = time.monotonic()
            old = [connection for at, connection in self._kept if now - at > IDLE]
            self._kept = [(at, connection) for at, connection in self._kept if now - at <= IDLE]
            found = self._kept.pop()[1] if self._kept else None
        for connection in old:
            connection.close()
        return found

    def _give_back(self, connection: psycopg.Connection[Any] | None) -> None:
        if connection is None or connection.closed:
            return
        if connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
            connection.close()
            return
        with self._lock:
            self._kept.append((time.monotonic(), connection))
