"""Where the live state comes from: PostgreSQL, looked at again and again by one thread of its own.

In the embedded shape and with Kafka the newest counts arrive earlier by another way (the flush itself, the topic); the
look still brings what they don't carry: the start, campaigns outside the queue, rates, the clock, and what a recount
wrote ahead of the stream.
"""

from __future__ import annotations

import asyncio
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
from stream.web.live import Live

log = logging.getLogger(__name__)

#: seconds between two looks: where nothing else brings the counts, and where something does
EVERY: Final = 0.25
EVERY_BESIDE: Final = 1.0
#: seconds between two attempts while the database can't be reached: at first, at last
RETRY_FIRST: Final = 0.5
RETRY_LAST: Final = 5.0
#: a look that takes longer is given up
LOOK_TIMEOUT: Final = "10s"


async def follow(context: Context) -> None:
    """Look until cancelled."""
    state = context.following
    thread = ThreadPoolExecutor(1, "follow")
    looker = _Looker(context.settings.require_database(), Follower(context.settings.mailer_schema))
    loop = asyncio.get_running_loop()
    pause = RETRY_FIRST
    try:
        while True:
            state.tried = time.monotonic()
            try:
                look = await loop.run_in_executor(thread, looker.look)
            except (psycopg.Error, SentstreamError) as error:
                if str(error) != state.trouble:
                    state.trouble = str(error)
                    log.warning("The database can't be followed: %s", state.trouble)
                await asyncio.sleep(pause)
                pause = min(pause * 2, RETRY_LAST)
                continue
            if state.trouble:
                log.info("The database is followed again.")
            state.succeeded, state.trouble, pause = time.monotonic(), "", RETRY_FIRST
            if not take(context.live, look):
                looker.again()
            await asyncio.sleep(EVERY_BESIDE if context.beside else EVERY)
    finally:
        # the thread may hang in a look: it must not hold up the end of the process
        looker.give_up()
        thread.shutdown(wait=False, cancel_futures=True)


def take(live: Live, look: Changes) -> bool:
    """Put what a look found into the live state; False where the mailer's campaigns must all be read again."""
    live.set_clock(look.now)
    live.take(look.flushes)
    complete = True
    if look.existing is not None and look.counted is not None:
        live.mailer_seen = look.now
        live.log.outside(look.outside)
        complete = _drop(live, look, look.existing, look.counted)
    if look.rates is not None:
        live.log.rates(look.rates)
    live.newest_run = look.run or live.newest_run
    live.loaded = True
    live.stir()
    return complete


def _drop(live: Live, look: Changes, existing: frozenset[int], counted: frozenset[int]) -> bool:
    """Drop what is gone; a campaign that the look lacks may just be newer than the look, and stays. False where a
    campaign lost its counts and is still there: outside the queue from now on."""
    missing = [
        (number, campaign.partition)
        for number, campaign in live.log.campaigns.items()
        if number not in counted and (campaign.partition is not None or number not in existing)
    ]
    gone = [
        number
        for number, partition in missing
        if partition is None or (partition in look.reached and live.log.is_at_most(number, look.reached[partition]))
    ]
    live.log.gone(gone)
    return existing.isdisjoint(gone)


class _Looker:
    """A follower and its connection, made anew after an error."""

    def __init__(self, url: str, follower: Follower) -> None:
        self._url = url
        self._follower = follower
        self._connection: psycopg.Connection[Any] | None = None
        self._again = False

    def look(self) -> Changes:
        if self._again:
            self._follower.forget_campaigns()
            self._again = False
        if self._connection is None:
            self._connection = connect(self._url, "http", settings={"statement_timeout": LOOK_TIMEOUT})
            self._follower.forget()
        try:
            return self._follower.poll(self._connection, time.monotonic())
        except psycopg.Error:
            self._connection.close()
            self._connection = None
            raise

    def again(self) -> None:
        self._again = True

    def give_up(self) -> None:
        if self._connection is not None:
            _quietly(self._connection.close)


def _quietly(what: Callable[[], None]) -> None:
    try:
        what()
    except psycopg.Error:
        pass
