"""What is true, on `/metrics`: the database is looked at every few seconds, whoever scrapes and how often."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import psycopg

from connectors.postgres.queries.metrics import StoreMetrics, read_metrics
from stream.core.errors import SentstreamError
from stream.metrics.database import EVERY, DatabaseView
from stream.metrics.families import Page
from stream.web.context import Context
from stream.web.lag import LagWatch
from stream.web.problems import Problem

log = logging.getLogger(__name__)


class FiguresWatch:
    """Looks again and again. `text` is a part of `/metrics`."""

    def __init__(self, context: Context, lag: LagWatch) -> None:
        self._lag = lag
        self._view = DatabaseView(context.settings, self._last_lag)
        self._page = Page(self._view.families)
        self.text = self._page.text

    async def watch(self, shared: Context) -> None:
        """Look until cancelled."""
        trouble = ""
        while True:
            try:
                self._view.saw(await asyncio.to_thread(self._look, shared))
                trouble = ""
            except (psycopg.Error, SentstreamError, Problem) as error:
                self._view.failed()
                if str(error) != trouble:
                    trouble = str(error)
                    log.warning("What is true can't be read for metrics: %s", trouble)
            await asyncio.sleep(EVERY)

    def _look(self, shared: Context) -> StoreMetrics:
        with shared.shelf.lend() as connection:
            return read_metrics(connection)

    def _last_lag(self) -> Mapping[str, Any] | None:
        try:
            return self._lag.last()
        except Problem:
            return None
