"""Server-sent events of campaign changes."""

from __future__ import annotations

import logging
from typing import Annotated

from fastapi import APIRouter, Header, Query
from sse_starlette.sse import AppStatus, EventSourceResponse, SendTimeoutError
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from stream.web.campaigns import CampaignId, known
from stream.web.context import Context, Shared
from stream.web.live_state import EventStream
from stream.web.problems import Problem

log = logging.getLogger(__name__)

router = APIRouter(prefix="/api", tags=["events"])

# Our streams end by themselves at shutdown; sse-starlette would cut them off before their last event.
AppStatus.enable_automatic_graceful_drain = False

_TEXT = "An endless `text/event-stream`: a `snapshot`, then `progress`, `verdict`, `deleted` and `watermark`."
_ANSWERS: dict[int | str, dict[str, object]] = {
    200: {"description": _TEXT, "content": {"text/event-stream": {"schema": {"type": "string"}}}}
}
LastEventId = Annotated[str | None, Header(alias="Last-Event-ID", max_length=200)]
#: for clients that can't set a header on the first request
LastEventIdAsked = Annotated[str | None, Query(alias="last_event_id", max_length=200)]


@router.get("/events", response_class=Response, responses=_ANSWERS)
async def all_events(shared: Shared, resume: LastEventId = None, asked: LastEventIdAsked = None) -> Response:
    """The changes of all campaigns, each campaign at most four times a second."""
    return _stream(shared, None, resume or asked)


@router.get("/campaigns/{campaign_id}/events", response_class=Response, responses=_ANSWERS)
async def campaign_events(
    shared: Shared, campaign_id: CampaignId, resume: LastEventId = None, asked: LastEventIdAsked = None
) -> Response:
    """The changes of one campaign. Ends after `deleted`."""
    known(shared, campaign_id)
    return _stream(shared, campaign_id, resume or asked)


@router.head("/events", include_in_schema=False)
async def head_all_events() -> Response:
    return Response(media_type="text/event-stream", headers={"Cache-Control": "no-store"})


@router.head("/campaigns/{campaign_id}/events", include_in_schema=False)
async def head_campaign_events(shared: Shared, campaign_id: CampaignId) -> Response:
    known(shared, campaign_id)
    return await head_all_events()


def _stream(shared: Context, campaign_id: int | None, last_event_id: str | None) -> Response:
    live = shared.loaded()
    if live.closing:
        raise Problem(503, "The server is going down. Try again in a moment.", {"Retry-After": "2"})
    if live.streams >= live.max_streams:
        raise Problem(
            503,
            f"There are {live.max_streams} event streams already (HTTP_MAX_STREAMS). Try again later.",
            {"Retry-After": "10"},
        )
    return _Events(live.stream(campaign_id, last_event_id))


class _Events(EventSourceResponse):
    """An event stream as a response, without sse-starlette's pings: they could fall into the middle of an event."""

    def __init__(self, stream: EventStream) -> None:
        super().__init__(stream.events(), ping=0, sep="\n", send_timeout=30)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            log.info("An event stream was closed: its client does not read.")
