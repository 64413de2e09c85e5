"""`/api/lag` and `/api/status`: looked at once a second at most, whoever asks."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from datetime import datetime
from typing import Any, Final

import psycopg
from fastapi import APIRouter, Request
from starlette.responses import Response

from connectors.postgres.queries.status import read_status
from stream.config.settings import Settings
from stream.core.errors import SentstreamError
from stream.core.progress import time_text
from stream.metrics.lag import LagReading
from stream.web import models
from stream.web.context import Context, Shared
from stream.web.problems import Problem
from stream.web.responses import answer

log = logging.getLogger(__name__)

router = APIRouter(prefix="/api", tags=["operations"])

#: seconds between two looks
EVERY: Final = 1.0
#: seconds for which a look is shown while the next one takes its time, and once a later one has failed
KEPT: Final = 10.0
KEPT_FAILING: Final = 2.0


class LagWatch:
    """Looks at slot, flush and topics again and again, so that the verdicts have a window to judge by."""

    def __init__(self, settings: Settings) -> None:
        self._reading = LagReading(settings)
        self._last: tuple[float, dict[str, Any]] | None = None
        self._trouble = ""

    async def watch(self, shared: Context) -> None:
        """Look until cancelled."""
        while True:
            try:
                self._last = (time.monotonic(), await asyncio.to_thread(self._look, shared))
                self._trouble = ""
            except (psycopg.Error, SentstreamError, Problem) as error:
                trouble = str(error) or type(error).__name__
                if trouble != self._trouble:
                    self._trouble = trouble
                    log.warning("The lag can't be read: %s", trouble)
            await asyncio.sleep(EVERY)

    def last(self) -> dict[str, Any]:
        """The newest look; Problem 503 where it is too old to be shown."""
        kept = KEPT_FAILING if self._trouble else KEPT
        if self._last is None or time.monotonic() - self._last[0] > kept:
            raise Problem(503, "The lag can't be read at the moment: see `/readyz?verbose`.", {"Retry-After": "5"})
        return self._last[1]

    def close(self) -> None:
        self._reading.close()

    def _look(self, shared: Context) -> dict[str, Any]:
        with shared.shelf.lend() as connection:
            return self._reading.poll(connection)


@router.get("/lag", response_model=models.Lag)
async def lag(request: Request, shared: Shared) -> Response:
    """How far slot, topics and flush are behind, each with a verdict."""
    del shared
    watch: LagWatch = request.app.state.lag
    return answer(request, watch.last())


@router.get("/status", response_model=models.Status)
def status(request: Request, shared: Shared) -> Response:
    """Roles alive, positions, slot, last flush, last verification."""
    with shared.shelf.lend() as connection:
        found = read_status(connection, shared.settings.slot_name)
    return answer(request, _plain(dataclasses.asdict(found)) | {"alive": found.alive, "healthy": found.healthy})


def _plain(value: Any) -> Any:
    """Times as text, whatever holds them."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return time_text(value) if isinstance(value, datetime) else value
