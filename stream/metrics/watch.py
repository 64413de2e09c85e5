"""Looks at the database for a role whose endpoint shows what is true: where HTTP is off, nobody else does."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Any

import psycopg

from connectors.postgres.connect import connect
from connectors.postgres.queries.metrics import read_metrics
from stream.config.settings import Settings
from stream.core.errors import SentstreamError
from stream.metrics.database import EVERY, DatabaseView
from stream.metrics.lag import LagReading

log = logging.getLogger("sentstream.metrics")


class DatabaseWatch(threading.Thread):
    """A thread with a session of its own, and a `view` of what it saw last. Ends with the process, or by `stop`."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(name="figures", daemon=True)
        self._settings = settings
        self._stopped = threading.Event()
        self._lag: Mapping[str, Any] | None = None
        self.view = DatabaseView(settings, lambda: self._lag)

    def stop(self) -> None:
        self._stopped.set()
        self.join(5)

    def run(self) -> None:
        told = ""
        with LagReading(self._settings) as lag:
            while not self._stopped.is_set():
                try:
                    with connect(self._settings.require_database(), "metrics") as connection:
                        self._look_until_stopped(connection, lag)
                    return
                except (psycopg.Error, SentstreamError, OSError) as error:
                    self._lag = None
                    self.view.failed()
                    if str(error) != told:
                        told = str(error)
                        log.warning("what is true can't be read for metrics: %s", " ".join(told.split()))
                self._stopped.wait(EVERY)

    def _look_until_stopped(self, connection: psycopg.Connection[Any], lag: LagReading) -> None:
        while not self._stopped.is_set():
            self.view.saw(read_metrics(connection))
            self._lag = lag.poll(connection)
            self._stopped.wait(EVERY)
