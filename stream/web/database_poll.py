"""Feeds the live state by polling PostgreSQL in a thread of its own.

In both modes the newest counts arrive earlier by another way (from the flush, from the topic). The poll adds what these
don't carry: the initial state, campaigns outside the queue, rates, the clock, and counters that a recount raised.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import psycopg

from connectors.postgres.connect import connect
from connectors.postgres.queries.changes import Changes, Follower
from stream.core.errors import SentstreamError
from stream.web.context import Context
from stream.web.live_state import LiveState

log = logging.getLogger(__name__)

#: seconds between two polls: alone, and where flushes or the topic bring counts, too
EVERY: Final = 0.25
EVERY_WITH_FEED: Final = 1.0
#: back-off while the database can't be reached: first and longest pause in seconds
RETRY_FIRST: Final = 0.5
RETRY_LAST: Final = 5.0
STATEMENT_TIMEOUT: Final = "10s"


async def poll_database(context: Context) -> None:
    """Poll until cancelled."""
    state = context.poll
    thread = ThreadPoolExecutor(1, "database-poll")
    session = _PollingSession(context.settings.require_database, Follower(context.settings.mailer_schema))
    loop = asyncio.get_running_loop()
    pause = RETRY_FIRST
    try:
        while True:
            state.tried = time.monotonic()
            try:
                changes = await loop.run_in_executor(thread, session.poll)
            except (psycopg.Error, SentstreamError) as error:
                if str(error) != state.trouble:
                    state.trouble = str(error)
                    log.warning("The database can't be polled: %s", state.trouble)
                await asyncio.sleep(pause)
                pause = min(pause * 2, RETRY_LAST)
                continue
            if state.trouble:
                log.info("The database is polled again.")
            state.succeeded, state.trouble, pause = time.monotonic(), "", RETRY_FIRST
            if not apply(context.live, changes):
                session.read_all_campaigns()
            await asyncio.sleep(EVERY_WITH_FEED if context.has_feed else EVERY)
    finally:
        # the thread may hang in a statement: it must not delay the end of the process
        session.close()
        thread.shutdown(wait=False, cancel_futures=True)


def apply(live: LiveState, changes: Changes) -> bool:
    """Apply polled changes to the live state; False where all of the mailer's campaigns must be read again."""
    live.set_clock(changes.now)
    live.take(changes.flushes)
    complete = True
    if changes.existing is not None and changes.counted is not None:
        live.mailer_seen = changes.now
        live.log.outside(changes.outside)
        complete = _drop_missing(live, changes, changes.existing, changes.counted)
    if changes.rates is not None:
        live.log.rates(changes.rates)
    if changes.shadow is not None:
        live.shadow = changes.shadow
    live.newest_run = changes.run or live.newest_run
    live.loaded = True
    live.wake_publisher()
    return complete


def _drop_missing(live: LiveState, changes: Changes, existing: frozenset[int], counted: frozenset[int]) -> bool:
    """Drop campaigns that the poll did not find, unless they are newer than the poll. False where a campaign has lost
    its counts and still exists: it is outside the queue from now on."""
    missing = [
        (number, campaign.partition)
        for number, campaign in live.log.campaigns.items()
        if number not in counted and (campaign.partition is not None or number not in existing)
    ]
    gone = [
        number
        for number, partition in missing
        if partition is None
        or (partition in changes.reached and live.log.is_at_most(number, changes.reached[partition]))
    ]
    live.log.gone(gone)
    return existing.isdisjoint(gone)


class _PollingSession:
    """A follower and its connection, which is opened again after an error."""

    def __init__(self, url: Callable[[], str], follower: Follower) -> None:
        self._url = url
        self._follower = follower
        self._connection: psycopg.Connection[Any] | None = None
        self._read_all = False

    def poll(self) -> Changes:
        if self._read_all:
            self._follower.forget_campaigns()
            self._read_all = False
        if self._connection is None:
            self._connection = connect(self._url(), "http", settings={"statement_timeout": STATEMENT_TIMEOUT})
            self._follower.forget()
        try:
            return self._follower.poll(self._connection, time.monotonic())
        except psycopg.Error:
            self._connection.close()
            self._connection = None
            raise

    def read_all_campaigns(self) -> None:
        self._read_all = True

    def close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(psycopg.Error):
                self._connection.close()
