"""Polls PostgreSQL (and Kafka's consumer group) for `/metrics` and `/api/lag`, in a thread of its own.

The lag is read every second, so that its verdicts have a window to judge by; the sums for `/metrics` every five.
Scrapes and calls show the newest reading, however many they are.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

import psycopg

from connectors.postgres.connect import connect
from connectors.postgres.queries.metrics import read_metrics
from stream.config.settings import Settings
from stream.metrics.database import DatabaseView
from stream.metrics.lag import LagReading

log = logging.getLogger("sentstream.metrics")

#: seconds between two readings of the lag, and of the sums
LAG_EVERY: Final = 1.0
SUMS_EVERY: Final = 5.0
#: seconds for which a lag is shown while the next reading takes its time, and once a later one has failed
KEPT: Final = 10.0
KEPT_FAILING: Final = 2.0

Session = Callable[[], AbstractContextManager[psycopg.Connection[Any]]]


class DatabasePoller(threading.Thread):
    """Polls until `stop`. ``session``: lends a connection for one poll; by default one of its own, kept open.

    `view` is the part of `/metrics` that it feeds, `lag` the newest lag.
    """

    def __init__(self, settings: Settings, session: Session | None = None) -> None:
        super().__init__(name="metrics-poller", daemon=True)
        self._session = session or _OwnSession(settings).lend
        self._stopped = threading.Event()
        self._reading = LagReading(settings)
        self._lag: tuple[float, dict[str, Any]] | None = None
        self._sums_at = float("-inf")
        self._error = ""
        self.view = DatabaseView(settings, self.lag)

    def lag(self) -> dict[str, Any] | None:
        """The newest lag; None where it is too old to be shown."""
        kept, lag = KEPT_FAILING if self._error else KEPT, self._lag
        return lag[1] if lag is not None and time.monotonic() - lag[0] <= kept else None

    def stop(self) -> None:
        """A poll that the server does not answer ends with the process."""
        self._stopped.set()
        if self.is_alive():
            self.join(2)

    def run(self) -> None:
        with self._reading:
            while not self._stopped.is_set():
                try:
                    self._poll()
                except Exception as error:  # a server that is away, or a fault of ours: aborts this poll only
                    self.view.failed()
                    if str(error) != self._error:
                        self._error = str(error) or type(error).__name__
                        log.warning("metrics and lag can't be read: %s", " ".join(self._error.split()))
                self._stopped.wait(LAG_EVERY)

    def _poll(self) -> None:
        with self._session() as connection:
            if time.monotonic() - self._sums_at >= SUMS_EVERY:
                self.view.saw(read_metrics(connection))
                self._sums_at = time.monotonic()
            self._lag = (time.monotonic(), self._reading.poll(connection))
        self._error = ""


class _OwnSession:
    """One connection, opened again after an error."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._connection: psycopg.Connection[Any] | None = None

    @contextmanager
    def lend(self) -> Iterator[psycopg.Connection[Any]]:
        if self._connection is None:
            self._connection = connect(self._settings.require_database(), "metrics")
        try:
            yield self._connection
        except BaseException:
            self._connection.close()
            self._connection = None
            raise
