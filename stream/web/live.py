"""What is true now, and who is told: the change log on the event loop, and the streams that follow it.

A stream is a cursor into the log. It is woken when a round has published something for it, and sends what came after
its cursor, so a slow reader gets fewer and newer events instead of a queue. All streams at the same place share bytes.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Final

from stream.core.change_log import ChangeLog, Round
from stream.core.committed import CommittedFlush
from stream.service.inbox import Inbox
from stream.web.serialize import Encoder, is_stale

log = logging.getLogger(__name__)

#: seconds between two comments on a stream, whatever else it says: proxies close what is silent, and a client may count
#: on it
COMMENT_EVERY: Final = 15.0
#: the longest nap of the publisher: how late a stale partition is noticed
NAP: Final = 0.25
#: seconds for which a snapshot of everything is given to whoever asks; what came since follows it
SNAPSHOT_FOR: Final = 1.0
#: looks at the database's clock that are remembered
LOOKS: Final = 32
#: a snapshot is sent in pieces of this size, so that a client that stops reading holds no more than that
PIECE: Final = 64 * 1024
_COMMENT: Final = b":\n\n"


class Live:
    """The state that all calls and streams share. Everything here runs on the event loop, except ``inbox``."""

    def __init__(self, max_streams: int = 2000) -> None:
        self.inbox = Inbox()
        self.encoder = Encoder(secrets.token_hex(4), self.now, lambda: self.mailer_seen)
        self.log = ChangeLog(self.encoder)
        self.max_streams = max_streams
        self.mailer_seen: datetime | None = None
        self.loaded = False
        self.newest_run = 0
        self.closing = False
        self.ticked = time.monotonic()
        self.dropped = 0
        self._offsets: deque[timedelta] = deque(maxlen=LOOKS)
        self._streams: set[Stream] = set()
        self._arrived = asyncio.Event()
        self._snapshot: tuple[float, int, bytes] | None = None
        self._tails: dict[tuple[int, int | None], bytes] = {}

    # Time: that of the database, for `as_of` is

    def now(self) -> datetime:
        """Now, by the database's clock."""
        return datetime.now(timezone.utc) + max(self._offsets, default=timedelta(0))

    def set_clock(self, database_now: datetime) -> None:
        """What the database's clock said a moment ago. Of several looks, the one that took least is nearest to it."""
        self._offsets.append(database_now - datetime.now(timezone.utc))

    # What arrives

    def take(self, flushes: Iterable[CommittedFlush]) -> None:
        """Take flushes in."""
        for what in flushes:
            self.log.flushed(what)
        self._arrived.set()

    def stir(self) -> None:
        """Something was put into the log: look soon."""
        self._arrived.set()

    async def publish(self) -> None:
        """Run the rounds until the end: one task for all streams."""
        loop = asyncio.get_running_loop()
        self.inbox.on_arrival(partial(_call, loop, self._arrived.set))
        while not self.closing:
            self._arrived.clear()
            for what in self.inbox.take():
                self.log.flushed(what)
            self.log.aged(partial(is_stale, now=self.now()))
            self.ticked = time.monotonic()
            published = self.log.publish(self.ticked)
            if published is not None:
                self._wake(published)
            self._comment()
            wait = self.log.wait(time.monotonic())
            await self._pause(NAP if wait is None else min(wait, NAP))

    async def _pause(self, seconds: float) -> None:
        # While a round is not due yet, arrivals need no look: they are taken in with it.
        if self.log.wait(time.monotonic()) is None:
            try:
                await asyncio.wait_for(self._arrived.wait(), seconds)
            except (TimeoutError, asyncio.TimeoutError):
                pass
        else:
            await asyncio.sleep(seconds)

    def close(self) -> None:
        """End every stream properly: each sends its last piece and the end of its body."""
        self.closing = True
        self._arrived.set()
        for stream in self._streams:
            stream.wake.set()

    # Who is told

    @property
    def streams(self) -> int:
        return len(self._streams)

    def stream(self, campaign_id: int | None, last_event_id: str | None) -> Stream:
        return Stream(self, campaign_id, last_event_id)

    def snapshot(self, campaign_id: int | None) -> tuple[int, bytes]:
        """All that is true now and the number it goes up to. That of all campaigns is made once a second at most."""
        if campaign_id is not None:
            return self.log.last, self.encoder.snapshot(self.log, campaign_id)
        now = time.monotonic()
        if self._snapshot is None or now - self._snapshot[0] > SNAPSHOT_FOR:
            self._snapshot = (now, self.log.last, self.encoder.snapshot(self.log))
        return self._snapshot[1:]

    def tail(self, number: int, campaign_id: int | None) -> bytes:
        """The events after ``number`` as bytes, made once for all streams that are there."""
        key = (number, campaign_id)
        found = self._tails.get(key)
        if found is None:
            found = self._tails[key] = b"".join(event.frame for event in self.log.since(number, campaign_id))
        return found

    def join(self, stream: Stream) -> None:
        self._streams.add(stream)

    def leave(self, stream: Stream) -> None:
        self._streams.discard(stream)

    def _wake(self, published: Round) -> None:
        self._tails.clear()
        for stream in self._streams:
            if stream.concerned(published):
                stream.wake.set()

    def _comment(self) -> None:
        due = self.ticked - COMMENT_EVERY
        for stream in self._streams:
            if stream.commented <= due:
                stream.wake.set()


class Stream:
    """One client's server-sent events."""

    __slots__ = ("_campaign_id", "_last_event_id", "_live", "_number", "commented", "wake")

    def __init__(self, live: Live, campaign_id: int | None, last_event_id: str | None) -> None:
        self._live = live
        self._campaign_id = campaign_id
        self._last_event_id = last_event_id
        self._number = 0
        self.wake = asyncio.Event()
        self.commented = time.monotonic()

    def concerned(self, published: Round) -> bool:
        """Whether a round has something for this stream."""
        if self._campaign_id is None or self._campaign_id in published.campaigns:
            return True
        known = self._live.log.campaigns.get(self._campaign_id)
        return known is not None and known.partition in published.partitions

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The stream's bytes, until the server closes or the campaign is gone."""
        live = self._live
        live.join(self)
        try:
            for piece in self._beginning():
                yield piece
            while not live.closing:
                await self.wake.wait()
                self.wake.clear()
                for piece in self._news():
                    yield piece
                if self._is_over():
                    return
        finally:
            live.leave(self)

    def _beginning(self) -> Iterable[bytes]:
        # a second or two, not the same for all: a thousand clients shall not come back in one moment
        yield b"retry: %d\n\n" % (1000 + secrets.randbelow(1500))
        number = self._live.encoder.number_of(self._last_event_id or "")
        if number is not None and self._live.log.resumable(number):
            self._number = number
            self.wake.set()
            return
        self._number, body = self._live.snapshot(self._campaign_id)
        yield from _pieces(body)
        self.wake.set()  # what came since a shared snapshot was made

    def _news(self) -> Iterable[bytes]:
        body = self._live.tail(self._number, self._campaign_id)
        self._number = self._live.log.last
        if body:
            yield from _pieces(body)
        now = time.monotonic()
        if now - self.commented >= COMMENT_EVERY:
            self.commented = now
            yield _COMMENT

    def _is_over(self) -> bool:
        return self._campaign_id is not None and self._campaign_id not in self._live.log.campaigns


def _call(loop: asyncio.AbstractEventLoop, what: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(what)
    except RuntimeError:  # the loop is closed: nobody listens any more
        pass


def _pieces(body: bytes) -> Iterable[bytes]:
    if len(body) <= PIECE:
        yield body
        return
    for start in range(0, len(body), PIECE):
        yield body[start : start + PIECE]
