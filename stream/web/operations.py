"""`/api/lag`, polled once a second however many ask, and `/api/status`."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from connectors.postgres.queries.status import read_status
from stream.core.progress import time_text
from stream.metrics.poller import DatabasePoller
from stream.web import models
from stream.web.context import Shared
from stream.web.problems import Problem
from stream.web.responses import answer

router = APIRouter(prefix="/api", tags=["operations"])


@router.get("/lag", response_model=models.Lag)
async def lag(request: Request, shared: Shared) -> Response:
    """How far slot, topics and flush are behind, each with a verdict."""
    del shared
    poller: DatabasePoller = request.app.state.poller
    found = poller.lag()
    if found is None:
        raise Problem(503, "The lag can't be read at the moment: see `/readyz?verbose`.", {"Retry-After": "5"})
    return answer(request, found)


@router.get("/status", response_model=models.Status)
def status(request: Request, shared: Shared) -> Response:
    """Roles alive, positions, slot, last flush, last verification."""
    with shared.session() as connection:
        found = read_status(connection, shared.settings.slot_name)
    return answer(
        request,
        _plain(dataclasses.asdict(found))
        | {
            "alive": found.alive,
            "healthy": found.healthy,
            "shadow": found.shadow,
        },
    )


def _plain(value: Any) -> Any:
    """``value`` with every time in it as text."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return time_text(value) if isinstance(value, datetime) else value
