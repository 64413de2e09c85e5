"""`/livez` and `/readyz`, decided by progress.

*live*: the background tasks make progress; otherwise only a restart helps. A database that is away is no reason to
restart. *ready*: the answers are current: read lately, with a baseline, and not older than a load balancer accepts.
"""

from __future__ import annotations

import time
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from stream.web import models
from stream.web.context import Context, Shared
from stream.web.serialize import dumps

router = APIRouter(tags=["health"])

#: seconds without progress after which a background task counts as stuck
STUCK: Final = 30.0
#: seconds after which the database counts as away, and `as_of` as too old to serve
AWAY: Final = 10.0
OLD: Final = 30.0

Verbose = Annotated[str | None, Query(description="Name the checks.")]
_ANSWERS: dict[int | str, dict[str, Any]] = {503: {"model": models.Health}}


@router.get("/livez", response_model=models.Health, responses=_ANSWERS)
async def livez(request: Request, shared: Shared, verbose: Verbose = None) -> Response:
    """Whether this process makes progress."""
    del request
    return _answer(_live(shared), verbose)


@router.get("/readyz", response_model=models.Health, responses=_ANSWERS)
async def readyz(request: Request, shared: Shared, verbose: Verbose = None) -> Response:
    """Whether the answers are current."""
    del request
    return _answer([*_live(shared), *_ready(shared)], verbose)


def _live(shared: Context) -> list[dict[str, Any]]:
    now = time.monotonic()
    return [
        _younger("publisher", now - shared.live.ticked, STUCK, "last round"),
        _younger("follower", now - shared.poll.tried, STUCK, "last look"),
    ]


def _ready(shared: Context) -> list[dict[str, Any]]:
    live = shared.live
    if live.closing:
        return [_check("serving", ok=False, detail="going down")]
    checks = [_check("loaded", ok=live.loaded, detail="read" if live.loaded else "nothing read yet")]
    seen = shared.poll.succeeded
    if seen is None:
        checks.append(_check("database", ok=False, detail="not reached yet"))
    else:
        checks.append(_younger("database", time.monotonic() - seen, AWAY, "last look that succeeded"))
    marks = list(live.log.marks.values())
    unbased = [mark.partition for mark in marks if not mark.based]
    checks.append(_check("baseline", ok=bool(marks) and not unbased, detail=_baseline(len(marks), unbased)))
    times = [mark.as_of for mark in marks if mark.as_of is not None]
    if times and len(times) == len(marks):
        checks.append(_younger("stream", (live.now() - min(times)).total_seconds(), OLD, "as of"))
    else:
        checks.append(_check("stream", ok=False, detail="nothing applied yet"))
    return checks


def _baseline(partitions: int, unbased: list[int]) -> str:
    if not partitions:
        return "sentstream has not run on this database yet"
    return f"partitions {unbased} wait for a recount" if unbased else f"{partitions} partitions have one"


def _younger(name: str, age: float, limit: float, what: str) -> dict[str, Any]:
    return _check(name, ok=abs(age) <= limit, detail=f"{what} {age:.1f} s ago (limit {limit:g})")


def _check(name: str, *, ok: bool, detail: str) -> dict[str, Any]:
    return {"name": name, "ok": ok, "detail": detail}


def _answer(checks: list[dict[str, Any]], verbose: str | None) -> Response:
    ok = all(check["ok"] for check in checks)
    body: dict[str, Any] = {"ok": ok, "checks": checks if verbose is not None else None}
    return Response(dumps(body), 200 if ok else 503, {"Cache-Control": "no-store"}, "application/json")
