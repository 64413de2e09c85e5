"""`/api/lag` and `/api/status`: looked at once a second at most, whoever asks."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import psycopg
from fastapi import APIRouter, Request
from starlette.responses import Response

from connectors.postgres.lag import read_lag
from connectors.postgres.status import read_status
from stream.core.errors import SentstreamError, UnreachableError
from stream.core.lag import Verdict, worst
from stream.core.lag_slot import Judge
from stream.core.progress import time_text
from stream.settings import Settings
from stream.web import models
from stream.web.answers import answer
from stream.web.context import Context, Shared

if TYPE_CHECKING:
    from connectors.kafka.lag import LagReader

log = logging.getLogger(__name__)

router = APIRouter(prefix="/api", tags=["operations"])

#: seconds between two looks
EVERY: Final = 1.0
#: seconds for which a look is shown while the next one fails
KEPT: Final = 10.0


class LagWatch:
    """Looks at slot, flush and topics again and again, so that the verdicts have a window to judge by."""

    def __init__(self, settings: Settings) -> None:
        self._slot = settings.slot_name
        self._judge = Judge(settings.lag_window, settings.lag_allowed, settings.slot_allowed)
        self._groups = _group_reader(settings)
        self._last: tuple[float, dict[str, Any]] | None = None

    async def watch(self, shared: Context) -> None:
        """Look until cancelled."""
        trouble = ""
        while True:
            try:
                self._last = (time.monotonic(), await asyncio.to_thread(self._look, shared))
                trouble = ""
            except (psycopg.Error, SentstreamError) as error:
                if str(error) != trouble:
                    trouble = str(error)
                    log.warning("The lag can't be read: %s", trouble)
            await asyncio.sleep(EVERY)

    def last(self) -> dict[str, Any]:
        """The newest look; UnreachableError where it is too old to be shown."""
        if self._last is None or time.monotonic() - self._last[0] > KEPT:
            raise UnreachableError("The lag can't be read at the moment.", "Try again.")
        return self._last[1]

    def close(self) -> None:
        if self._groups is not None:
            self._groups.close()

    def _look(self, shared: Context) -> dict[str, Any]:
        with shared.shelf.lend() as connection:
            slot, flush = self._judge.look(read_lag(connection, self._slot))
        groups = [] if self._groups is None else self._groups.read()
        verdict = worst([slot.verdict, flush.verdict, *(group.verdict for group in groups)])
        return lag_json(verdict, slot.as_json(), flush.as_json(), [group.json() for group in groups])


def lag_json(
    verdict: Verdict, slot: dict[str, Any], flush: dict[str, Any], groups: list[dict[str, Any]]
) -> dict[str, Any]:
    """The object that INTERFACE names, the same here and in `sentstream lag --json`."""
    return {"verdict": verdict.value, "slot": slot, "groups": groups, "flush": flush}


def _group_reader(settings: Settings) -> LagReader | None:
    if not settings.kafka:
        return None
    from connectors.kafka.cluster import Cluster  # noqa: PLC0415 - the embedded shape needs no Kafka client
    from connectors.kafka.lag import LagReader  # noqa: PLC0415
    from connectors.kafka.topics import GROUP, Names  # noqa: PLC0415

    return LagReader(
        Cluster.of(settings),
        GROUP,
        Names(settings.kafka_topic_prefix).changes,
        window=settings.lag_window,
        allowed=settings.lag_allowed,
    )


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
