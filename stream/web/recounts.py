"""RecountQueue for a recount, and reading the runs and their verdicts."""

from __future__ import annotations

import asyncio
import logging
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from connectors.postgres.connect import connect
from connectors.postgres.store.recount import NotNowError
from connectors.postgres.store.reports import NoRunError, read_report, read_runs
from stream.config.settings import Settings
from stream.reconcile.runs import NeverCountedError, request, require_stream
from stream.web import models
from stream.web.campaigns import CampaignId, known
from stream.web.context import Context, Shared
from stream.web.problems import Problem
from stream.web.responses import MAX_ID, answer, cursor_of, number_of, where
from stream.web.serialize import dumps

log = logging.getLogger(__name__)

router = APIRouter(prefix="/api", tags=["recounts"])

#: recounts that may wait at once; the next is refused
WAITING: Final = 4
#: seconds that a call waits for another recount to end
TURN: Final = 10.0

Cursor = Annotated[str | None, Query(max_length=100, description="`next_cursor` of the page before.")]
RunId = Annotated[int, Path(ge=1, le=MAX_ID, description="Id of a run.")]
_ASKED: dict[int | str, dict[str, Any]] = {
    202: {"model": models.Asked, "description": "The run has been counted; its verdict follows in the stream's order."},
    409: {
        "model": models.Problem,
        "description": "sentstream has never run here: nothing to compare with.",
    },
}


class RecountQueue:
    """Runs recounts requested by HTTP one after the other, and limits how many wait."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._waiting = 0

    async def ask(self, settings: Settings) -> int:
        """Recount all campaigns now; the run's id. Problem 409 where sentstream has never run here; 503 where too many
        wait, or another recount goes on for too long."""
        if self._waiting >= WAITING:
            raise Problem(503, f"{WAITING} recounts are waiting already.", {"Retry-After": "10"})
        self._waiting += 1
        try:
            async with self._lock:
                return await asyncio.to_thread(_recount, settings)
        except NeverCountedError as error:
            raise Problem(409, str(error)) from error
        except NotNowError as error:
            raise Problem(503, str(error), {"Retry-After": "5"}) from error
        finally:
            self._waiting -= 1


@router.post("/recounts", status_code=202, response_model=models.Asked, responses=_ASKED)
async def ask_for_recount(call: Request, shared: Shared) -> Response:
    """Recount all campaigns now."""
    return await _ask(call, shared)


@router.post("/campaigns/{campaign_id}/sync-counts", status_code=202, response_model=models.Asked, responses=_ASKED)
async def sync_counts(call: Request, shared: Shared, campaign_id: CampaignId) -> Response:
    """Recount now. A recount always counts all campaigns."""
    known(shared, campaign_id)
    return await _ask(call, shared)


@router.get("/recounts", response_model=models.Recounts)
def list_recounts(
    call: Request,
    shared: Shared,
    campaign_id: Annotated[int | None, Query(ge=1, le=MAX_ID, description="Runs with a verdict on it.")] = None,
    drift: Annotated[bool, Query(description="Only runs that found a drift.")] = False,
    limit: Annotated[int, Query(ge=1, le=200)] = 20,
    cursor: Cursor = None,
) -> Response:
    """The runs, the newest first, without their verdicts."""
    before = number_of(cursor)
    with shared.session() as connection:
        runs = read_runs(connection, limit=limit + 1, before=before, campaign=campaign_id, with_drift=drift)
    page = runs[:limit]
    return answer(
        call,
        {
            "recounts": [run.as_json() | {"verdicts": []} for run in page],
            "next_cursor": cursor_of(page[-1].run_id) if len(runs) > limit else None,
        },
    )


@router.get("/recounts/{run_id}", response_model=models.RecountRun)
def one_recount(
    call: Request,
    shared: Shared,
    run_id: RunId,
    limit: Annotated[int, Query(ge=1, le=1000, description="Verdicts on a page.")] = 200,
    cursor: Cursor = None,
) -> Response:
    """A run and its verdicts, a page of them; of an open run as far as it has got."""
    after = number_of(cursor) or 0
    with shared.session() as connection:
        try:
            report = read_report(connection, run_id)
        except NoRunError:
            raise Problem(404, f"There is no run {run_id}.") from None
    run = report.as_json()
    rest = run["verdicts"][after:]
    run["verdicts"] = rest[:limit]
    return answer(call, run | {"next_cursor": cursor_of(after + limit) if len(rest) > limit else None})


async def _ask(call: Request, shared: Context) -> Response:
    shared.loaded()
    queue: RecountQueue = call.app.state.recount_queue
    run_id = await queue.ask(shared.settings)
    location = where(call, f"/api/recounts/{run_id}")
    body = dumps({"run_id": run_id, "location": location})
    return Response(body, 202, {"Location": location}, "application/json")


def _recount(settings: Settings) -> int:
    with connect(settings.require_database(), "recount") as connection:
        require_stream(connection)
        run = request(connection, settings, "manual", "http", turn=TURN)
    log.info("recount %d was asked for by HTTP", run.run_id)
    return run.run_id
