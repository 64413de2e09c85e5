"""Progress of campaigns, from the live state; their history, from PostgreSQL."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from connectors.postgres.queries.history import read_history
from stream.core.change_log import CampaignState
from stream.core.progress import time_text
from stream.web import models
from stream.web.context import Context, Shared
from stream.web.problems import Problem
from stream.web.responses import MAX_ID, answer, cursor_of, number_of

router = APIRouter(prefix="/api", tags=["campaigns"])

CampaignStatus = Literal["draft", "running", "scheduled", "paused", "cancelled", "finished"]
CampaignId = Annotated[int, Path(ge=1, le=MAX_ID, description="Id of a campaign.")]


@router.get("/campaigns", response_model=models.Campaigns)
async def list_campaigns(
    request: Request,
    shared: Shared,
    status: Annotated[list[CampaignStatus] | None, Query(description="Only these; may be given several times.")] = None,
    q: Annotated[str | None, Query(max_length=200, description="Part of the name, or the id.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: Annotated[str | None, Query(max_length=100, description="`next_cursor` of the page before.")] = None,
) -> Response:
    """The campaigns, the newest first: those in the queue, and those that the mailer sends without it."""
    live = shared.loaded()
    after = number_of(cursor)
    fitting = [it for it in live.log.campaigns.values() if _fits(it, status, q)]
    fitting.sort(key=lambda it: it.row.campaign_id, reverse=True)
    rest = [it for it in fitting if after is None or it.row.campaign_id < after]
    page = rest[:limit]
    return answer(
        request,
        {
            "campaigns": [live.encoder.progress(it, live.log) for it in page],
            "next_cursor": cursor_of(page[-1].row.campaign_id) if len(rest) > len(page) else None,
            "total": len(fitting),
        },
    )


@router.get("/campaigns/{campaign_id}", response_model=models.Progress)
async def one_campaign(request: Request, shared: Shared, campaign_id: CampaignId) -> Response:
    """One campaign."""
    live = shared.loaded()
    return answer(request, live.encoder.progress(known(shared, campaign_id), live.log))


@router.get("/campaigns/{campaign_id}/history", response_model=models.History, tags=["history"])
def campaign_history(
    request: Request,
    shared: Shared,
    campaign_id: CampaignId,
    since: Annotated[datetime | None, Query(description="Default: 24 hours before `until`.")] = None,
    until: Annotated[datetime | None, Query(description="Default: now.")] = None,
) -> Response:
    """Mails that became sent, by minute; at most 31 days at once. All of them and the adjustments add up to `sent`."""
    known(shared, campaign_id)
    return answer(request, _history(shared, campaign_id, since, until))


@router.get("/history", response_model=models.History, tags=["history"])
def whole_history(
    request: Request,
    shared: Shared,
    since: Annotated[datetime | None, Query(description="Default: 3 hours before `until`.")] = None,
    until: Annotated[datetime | None, Query(description="Default: now.")] = None,
) -> Response:
    """Mails of all campaigns that became sent, by minute; at most 31 days at once."""
    shared.loaded()
    return answer(request, _history(shared, None, since, until))


def known(shared: Context, campaign_id: int) -> CampaignState:
    """The state of a campaign; Problem 404 where there is none."""
    campaign = shared.loaded().log.campaigns.get(campaign_id)
    if campaign is None:
        raise Problem(404, f"There is no campaign {campaign_id}.")
    return campaign


def _fits(campaign: CampaignState, status: list[CampaignStatus] | None, q: str | None) -> bool:
    if status and campaign.row.status not in status:
        return False
    return not q or q.casefold() in campaign.row.name.casefold() or q == str(campaign.row.campaign_id)


def _history(
    shared: Context, campaign_id: int | None, since: datetime | None, until: datetime | None
) -> dict[str, Any]:
    now = shared.live.now()
    try:
        until = _utc(until) if until is not None else (now + timedelta(minutes=1)).replace(second=0, microsecond=0)
        since = _utc(since) if since is not None else until - timedelta(hours=3 if campaign_id is None else 24)
    except OverflowError:
        raise Problem(422, "`since` and `until` are out of range.") from None
    if since >= until:
        raise Problem(422, "`since` must be earlier than `until`.")
    if until - since > timedelta(days=31):
        raise Problem(422, "At most 31 days are given at once: move `since` and `until` closer together.")
    with shared.session() as connection:
        minutes, adjustments = read_history(connection, campaign_id, since, until)
    return {
        "campaign_id": campaign_id,
        "since": time_text(since),
        "until": time_text(until),
        "minutes": [{"minute": time_text(minute), "sent": sent} for minute, sent in minutes],
        "adjustments": [
            {"minute": time_text(minute), "kind": kind, "sent": sent} for minute, kind, sent in adjustments
        ],
    }


def _utc(time: datetime) -> datetime:
    """A time without a zone is taken for UTC."""
    return time.replace(tzinfo=timezone.utc) if time.tzinfo is None else time.astimezone(timezone.utc)
