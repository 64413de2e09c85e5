"""The live state of all campaigns, and the event streams that follow it.

A stream is a cursor into the change log. A publishing round wakes it, and it sends the events after its cursor. A slow
client therefore receives fewer, newer events instead of a growing queue. Streams at the same cursor share the encoded
bytes.
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

#: seconds between two comments on a stream: proxies close silent connections, and clients use them as heartbeats
COMMENT_EVERY: Final = 15.0
#: the longest wait of the publisher, which bounds how late a stale partition is noticed
MAX_WAIT: Final = 0.25
#: seconds for which a full snapshot is shared between new streams; newer changes follow it
SNAPSHOT_KEPT: Final = 1.0
#: clock readings that are kept
CLOCK_READINGS: Final = 32
#: snapshots are sent in chunks of this size, which bounds the buffer of a client that stops reading
CHUNK: Final = 64 * 1024
_COMMENT: Final = b":\n\n"


class LiveState:
    """State shared by all calls and streams. Belongs to the event loop, except ``inbox``."""

    def __init__(self, max_streams: int = 2000) -> None:
        self.inbox = Inbox()
        self.encoder = Encoder(secrets.token_hex(4), self.now, lambda: self.mailer_seen, lambda: self.shadow)
        self.log = ChangeLog(self.encoder)
        self.max_streams = max_streams
        self.mailer_seen: datetime | None = None
        self.loaded = False
        self.shadow = False
        self.newest_run = 0
        self.closing = False
        self.ticked = time.monotonic()
        self.dropped = 0
        self._offsets: deque[timedelta] = deque(maxlen=CLOCK_READINGS)
        self._streams: set[EventStream] = set()
        self._arrived = asyncio.Event()
        self._snapshot: tuple[float, int, bytes] | None = None
        self._tails: dict[tuple[int, int | None], bytes] = {}

    # Clock of the database, to compare `as_of` with

    def now(self) -> datetime:
        """Now, by the database's clock."""
        return datetime.now(timezone.utc) + max(self._offsets, default=timedelta(0))

    def set_clock(self, database_now: datetime) -> None:
        """Note a reading of the database's clock. The largest offset wins: it had the shortest delay."""
        self._offsets.append(database_now - datetime.now(timezone.utc))

    # Input

    def take(self, flushes: Iterable[CommittedFlush]) -> None:
        """Apply committed flushes."""
        for flush in flushes:
            self.log.flushed(flush)
        self._arrived.set()

    def wake_publisher(self) -> None:
        """The log was changed directly: publish soon."""
        self._arrived.set()

    async def publish(self) -> None:
        """Publish rounds until closed: one task for all streams."""
        loop = asyncio.get_running_loop()
        self.inbox.on_arrival(partial(_call, loop, self._arrived.set))
        while not self.closing:
            self._arrived.clear()
            for flush in self.inbox.take():
                self.log.flushed(flush)
            self.log.aged(partial(is_stale, now=self.now()))
            self.ticked = time.monotonic()
            published = self.log.publish(self.ticked)
            if published is not None:
                self._wake(published)
            self._comment()
            wait = self.log.wait(time.monotonic())
            await self._pause(MAX_WAIT if wait is None else min(wait, MAX_WAIT))

    async def _pause(self, seconds: float) -> None:
        # While the next round is not due, arrivals need no wake-up: that round takes them in.
        if self.log.wait(time.monotonic()) is None:
            try:
                await asyncio.wait_for(self._arrived.wait(), seconds)
            except (TimeoutError, asyncio.TimeoutError):
                pass
        else:
            await asyncio.sleep(seconds)

    def close(self) -> None:
        """End every stream: each sends its remaining events and the end of its body."""
        self.closing = True
        self._arrived.set()
        for stream in self._streams:
            stream.wake.set()

    # Streams

    @property
    def streams(self) -> int:
        return len(self._streams)

    def stream(self, campaign_id: int | None, last_event_id: str | None) -> EventStream:
        return EventStream(self, campaign_id, last_event_id)

    def snapshot(self, campaign_id: int | None) -> tuple[int, bytes]:
        """The event number and the snapshot at that number. The one of all campaigns is made once a second at most."""
        if campaign_id is not None:
            return self.log.last, self.encoder.snapshot(self.log, campaign_id)
        now = time.monotonic()
        if self._snapshot is None or now - self._snapshot[0] > SNAPSHOT_KEPT:
            self._snapshot = (now, self.log.last, self.encoder.snapshot(self.log))
        return self._snapshot[1:]

    def tail(self, number: int, campaign_id: int | None) -> bytes:
        """The events after ``number`` as bytes, encoded once for all streams at that number."""
        key = (number, campaign_id)
        found = self._tails.get(key)
        if found is None:
            found = self._tails[key] = b"".join(event.frame for event in self.log.since(number, campaign_id))
        return found

    def join(self, stream: EventStream) -> None:
        self._streams.add(stream)

    def leave(self, stream: EventStream) -> None:
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


class EventStream:
    """One client's server-sent events."""

    __slots__ = ("_campaign_id", "_last_event_id", "_live", "_number", "commented", "wake")

    def __init__(self, live: LiveState, campaign_id: int | None, last_event_id: str | None) -> None:
        self._live = live
        self._campaign_id = campaign_id
        self._last_event_id = last_event_id
        self._number = 0
        self.wake = asyncio.Event()
        self.commented = time.monotonic()

    def concerned(self, published: Round) -> bool:
        """Whether a round has published something for this stream."""
        if self._campaign_id is None or self._campaign_id in published.campaigns:
            return True
        known = self._live.log.campaigns.get(self._campaign_id)
        return known is not None and known.partition in published.partitions

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The bytes of the stream, until the server closes or the campaign is deleted."""
        live = self._live
        live.join(self)
        try:
            for chunk in self._beginning():
                yield chunk
            while not live.closing:
                await self.wake.wait()
                self.wake.clear()
                for chunk in self._news():
                    yield chunk
                if self._is_over():
                    return
        finally:
            live.leave(self)

    def _beginning(self) -> Iterable[bytes]:
        # jitter: after a restart a thousand clients should not reconnect in the same moment
        yield b"retry: %d\n\n" % (1000 + secrets.randbelow(1500))
        number = self._live.encoder.number_of(self._last_event_id or "")
        if number is not None and self._live.log.resumable(number):
            self._number = number
            self.wake.set()
            return
        self._number, body = self._live.snapshot(self._campaign_id)
        yield from _chunks(body)
        self.wake.set()  # changes since the shared snapshot was made

    def _news(self) -> Iterable[bytes]:
        body = self._live.tail(self._number, self._campaign_id)
        self._number = self._live.log.last
        if body:
            yield from _chunks(body)
        now = time.monotonic()
        if now - self.commented >= COMMENT_EVERY:
            self.commented = now
            yield _COMMENT

    def _is_over(self) -> bool:
        return self._campaign_id is not None and self._campaign_id not in self._live.log.campaigns


def _call(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(function)
    except RuntimeError:  # the loop is closed
        pass


def _chunks(body: bytes) -> Iterable[bytes]:
    if len(body) <= CHUNK:
        yield body
        return
    for start in range(0, len(body), CHUNK):
        yield body[start : start + CHUNK]
