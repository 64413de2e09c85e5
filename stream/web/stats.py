"""The mailer's statistics of running campaigns in its own JSON format, so that a proxy rule can send its page here.

The mailer's page polls every second in every open tab. Campaign rows are therefore read at most twice a second, counts
come from the live state, and aggregates over big tables (views, clicks, delivered mails) are read again only after a
recount. Stale numbers are refused, so that the rule can fall back to the mailer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import datetime, timezone
from typing import Any, Final

import psycopg
from fastapi import APIRouter, Request
from starlette.responses import Response

from connectors.mailer.stats import CampaignRow, Reactions, read_campaigns, read_reactions
from connectors.mailer.tables import QUEUE_MESSENGER
from connectors.postgres.connect import connect
from stream.core.errors import SentstreamError
from stream.web import models
from stream.web.context import Context, Shared
from stream.web.live_state import LiveState
from stream.web.problems import Problem
from stream.web.responses import answer
from stream.web.serialize import is_stale

log = logging.getLogger(__name__)

router = APIRouter(prefix="/api", tags=["mailer"])

#: seconds for which campaign rows are kept
ROWS_KEPT: Final = 0.5
#: seconds between two readings of views, clicks and delivered mails
REACTIONS_EVERY: Final = 60.0


class Stats:
    """State kept between calls."""

    def __init__(self) -> None:
        self.reactions: dict[int, Reactions] = {}
        self._rows: tuple[float, list[CampaignRow]] | None = None
        self._lock = asyncio.Lock()

    async def rows(self, shared: Context) -> list[CampaignRow]:
        """The running campaigns, read at most twice a second."""
        async with self._lock:
            if self._rows is None or time.monotonic() - self._rows[0] > ROWS_KEPT:
                rows = await asyncio.to_thread(_read_rows, shared)
                self._rows = (time.monotonic(), rows)
            return self._rows[1]

    async def refresh(self, shared: Context) -> None:
        """Read views, clicks and delivered mails after each recount, until cancelled."""
        seen = -1
        while True:
            newest = shared.live.newest_run
            if not shared.live.loaded or newest == seen:
                await asyncio.sleep(1)
                continue
            try:
                self.reactions = await asyncio.to_thread(_read_reactions, shared)
                seen = newest
            except (psycopg.Error, SentstreamError) as error:
                log.warning("Views, clicks and delivered mails can't be read: %s", error)
            await asyncio.sleep(REACTIONS_EVERY)


@router.get("/campaigns/running/stats", response_model=models.RunningStats)
async def running_stats(request: Request, shared: Shared) -> Response:
    """The running campaigns in the mailer's own format; 503 while the counts are stale."""
    live = shared.loaded()
    stats: Stats = request.app.state.stats
    rows = await stats.rows(shared)
    marks = live.log.marks.values()
    if rows and (not marks or any(is_stale(mark, live.now()) for mark in marks)):
        raise Problem(
            503, "The counts are stale: `/api/status` says since when. Ask the mailer itself.", {"Retry-After": "2"}
        )
    return answer(request, {"data": [_stat(row, live, stats.reactions.get(row.id, Reactions())) for row in rows]})


def _stat(row: CampaignRow, live: LiveState, reactions: Reactions) -> dict[str, Any]:
    campaign = live.log.campaigns.get(row.id)
    counts = (0, 0, 0, 0, 0) if campaign is None else campaign.row.counts
    in_queue = campaign is not None and campaign.partition is not None
    sent = campaign.row.sent if campaign is not None and in_queue else row.sent
    queued, sending, queue_sent, failed, cancelled = counts
    return {
        "id": row.id,
        "status": row.status,
        "to_send": row.to_send,
        "sent": sent,
        "started_at": _time_text(row.started_at),
        "updated_at": _time_text(row.updated_at),
        "rate": round(campaign.rate) if campaign is not None else 0,
        "net_rate": _net_rate(sent, row.started_at, live.now()),
        "use_queue": bool(row.use_queue) or row.messenger == QUEUE_MESSENGER or in_queue,
        "messenger": row.messenger,
        "queue_queued": queued,
        "queue_sending": sending,
        "queue_sent": queue_sent,
        "queue_failed": failed,
        "queue_cancelled": cancelled,
        "queue_total": sum(counts),
        "auto_paused": bool(row.auto_paused),
        "auto_paused_at": _time_text(row.auto_paused_at),
        "views": reactions.views,
        "clicks": reactions.clicks,
        "azure_sent": reactions.delivered,
    }


def _time_text(time: datetime | None) -> str | None:
    """As the mailer writes it: microseconds without trailing zeros, in UTC."""
    if time is None:
        return None
    text = time.astimezone(timezone.utc).replace(tzinfo=None).isoformat()
    return (text.rstrip("0") if time.microsecond else text) + "Z"


def _net_rate(sent: int, started_at: datetime | None, now: datetime) -> int:
    """Mails per minute since the start, computed as the mailer does: whole minutes, at least one."""
    if started_at is None:
        return 0
    return sent // max(1, int((now - started_at).total_seconds() // 60))


def _read_rows(shared: Context) -> list[CampaignRow]:
    with shared.session() as connection:
        return read_campaigns(connection, shared.settings.mailer_schema, ["running"])


def _read_reactions(shared: Context) -> dict[int, Reactions]:
    # not from the pool: it may take minutes
    with connect(shared.settings.require_database(), "http", settings={"statement_timeout": "5min"}) as connection:
        return read_reactions(connection, shared.settings.mailer_schema)
