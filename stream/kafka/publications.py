"""What a worker publishes after a flush: rows of ``progress``, watermarks and verdicts; and its Faust table.

Publishing is apart from flushing, so that a slow broker delays no count. The newest value of each key is kept, and a
task sends those in batches by partition (Faust's own sends cost ten times as much). What fails stays due.

A tombstone that a worker owed when it died is sent by the next owner of the partition. ``stream.core.tombstones`` says
how, and why that hides no campaign that exists; it relies on one event loop and one round at a time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Final

from connectors.kafka.codec import campaign_key, encode_progress, encode_verdict, encode_watermark, watermark_key
from connectors.kafka.topics import Names
from stream.core.committed import CampaignRow, CommittedFlush
from stream.core.pace import Backoff
from stream.core.progress import measure, position_text, rate_per_minute, to_json
from stream.core.tombstones import Due

log = logging.getLogger("sentstream.publish")

#: seconds between two rounds of publishing
_ROUND: Final = 0.1
#: seconds between two watermarks of a partition in which nothing changed
_MARK: Final = 1.0
#: verdicts that wait while the broker is away; older ones are in PostgreSQL
_VERDICTS: Final = 20_000
_TIMEOUT: Final = 15.0
#: campaigns that one line of the log names
_NAMED: Final = 10


class Rates:
    """Mails a minute of the campaigns of one partition, from the changes of ``sent`` by commit minute."""

    def __init__(self) -> None:
        self._flows: dict[int, tuple[int, int, int]] = {}

    def add(self, campaign: int, minute: int, sent: int) -> None:
        """``sent`` more in the minute ``minute`` (since 1970)."""
        now, current, previous = self._flows.get(campaign, (minute, 0, 0))
        if minute == now:
            self._flows[campaign] = (now, current + sent, previous)
        elif minute > now:
            self._flows[campaign] = (minute, sent, current if minute == now + 1 else 0)
        elif minute == now - 1:
            self._flows[campaign] = (now, current, previous + sent)

    def rate(self, campaign: int, at: float) -> float:
        """Of the 60 seconds before ``at``, seconds since 1970."""
        minute, current, previous = self._flows.get(campaign, (0, 0, 0))
        now = int(at // 60)
        if minute == now - 1:
            current, previous = 0, current
        elif minute != now:
            return 0.0
        return rate_per_minute(current, previous, at % 60)


@dataclass(slots=True)
class _Mine:
    """A partition that is ours. ``campaigns``: those in the table; ``marked``: when its watermark was last due."""

    due: Due = field(default_factory=Due)
    campaigns: set[int] = field(default_factory=set)
    rates: Rates = field(default_factory=Rates)
    marked: float = float("-inf")


class Publications:
    """What is to be published, the newest value of each key; keeps the Faust table in step. For one event loop.

    ``state``: of a partition, a function that says whether its state has a campaign; None until it has a baseline.
    """

    def __init__(
        self, names: Names, table: Callable[[], Any], state: Callable[[int], Callable[[int], bool] | None]
    ) -> None:
        self._names = names
        self._table = table
        self._state = state
        self._mine: dict[int, _Mine] = {}
        self._round = asyncio.Lock()
        self._verdicts: deque[tuple[int, bytes, bytes]] = deque(maxlen=_VERDICTS)
        self._some = asyncio.Event()

    def add(self, what: CommittedFlush, flows: Iterable[tuple[int, int, int]] = ()) -> None:
        """A flush that committed, or (``whole``) a partition as it was loaded. ``flows``: (campaign, minute,
        sent)."""
        partition = what.partition
        mine = self._mine.setdefault(partition, _Mine())
        due, table = mine.due, self._table().data
        if what.whole:
            mine.rates = Rates()
            gone = mine.campaigns - {row.campaign_id for row in what.rows}
            due.suspect(gone)  # the flush that took them away has committed, and its answer was lost
            self._take_off(mine, gone)
        for campaign, minute, sent in flows:
            mine.rates.add(campaign, minute, sent)
        now = datetime.now(timezone.utc)
        for row in what.rows:
            key, value = campaign_key(row.campaign_id), _value(row, what, mine.rates, now)
            table[key] = value
            due.put(key, value)
            mine.campaigns.add(row.campaign_id)
        for campaign in what.deleted:
            due.put(campaign_key(campaign), None)
        self._take_off(mine, what.deleted)
        mono = time.monotonic()
        if what.rows or what.deleted or mono - mine.marked >= _MARK:
            mine.marked = mono
            as_of = 0 if what.as_of is None else int(what.as_of.timestamp() * 1e6)
            watermark = encode_watermark(
                partition, what.epoch, position_text(what.epoch, what.position), what.position.lsn, as_of, what.based
            )
            due.put(watermark_key(partition), watermark)
        for verdict in what.verdicts:
            self._verdicts.append((partition, campaign_key(verdict.campaign), encode_verdict(verdict, partition)))
        if due or self._verdicts:
            self._some.set()

    def forget(self, partition: int) -> None:
        """The partition was revoked: its next owner publishes it whole."""
        mine = self._mine.pop(partition, None)
        if mine is not None:
            self._take_off(mine, list(mine.campaigns))

    def _take_off(self, mine: _Mine, campaigns: Iterable[int]) -> None:
        """Take campaigns off the table."""
        table = self._table().data
        for campaign in campaigns:
            mine.campaigns.discard(campaign)
            table.pop(campaign_key(campaign), None)

    def shown(self, partition: int, campaigns: Iterable[int]) -> None:
        """The topic, read after the partition was published whole, shows these campaigns."""
        mine = self._mine.get(partition)
        if mine is not None:
            mine.due.suspect(campaigns)
            self._some.set()

    async def run(self, producer: Callable[[], Any]) -> None:
        """Publish what is due, until cancelled. ``producer``: returns aiokafka's."""
        backoff = Backoff(first=0.5, most=10.0)
        while True:
            await self._some.wait()
            self._some.clear()
            try:
                await self.publish(producer())
                backoff = backoff.succeeded()
            except asyncio.CancelledError:
                raise
            except Exception as error:  # any error of the client: the counts are written, this waits
                self._some.set()
                if not backoff.failures:
                    log.warning("publishing waits: %s: %s", type(error).__name__, error)
                backoff = backoff.failed()
            await asyncio.sleep(max(_ROUND, backoff.pause))

    async def publish(self, producer: Any) -> None:
        """One round, after the present one. What could not be sent is due again, unless a newer value is."""
        async with self._round:
            await self._publish(producer)

    async def _publish(self, producer: Any) -> None:
        verdicts: dict[int, list[tuple[bytes, bytes | None]]] = {}
        taken = [self._verdicts.popleft() for _ in range(len(self._verdicts))]
        for partition, key, value in taken:
            verdicts.setdefault(partition, []).append((key, value))
        due = {partition: (mine.due, self._take(partition, mine.due)) for partition, mine in self._mine.items()}
        try:
            for partition, (_, values) in due.items():
                if values:
                    await self._send(producer, self._names.progress, partition, list(values.items()))
            for partition, records in verdicts.items():
                await self._send(producer, self._names.verdicts, partition, records)
        except BaseException:
            for waits, values in due.values():
                waits.again(values)
            self._verdicts.extendleft(reversed(taken))
            raise

    def _take(self, partition: int, due: Due) -> dict[bytes, bytes | None]:
        values, gone = due.take(self._state(partition))
        if gone:
            log.info(
                "partition %d: the topic still showed campaigns that are gone (%s%s); their tombstones follow",
                partition,
                ", ".join(map(str, gone[:_NAMED])),
                ", ..." if len(gone) > _NAMED else "",
            )
        return values

    async def _send(self, producer: Any, topic: str, partition: int, records: list[tuple[bytes, bytes | None]]) -> None:
        futures = []
        batch = producer.create_batch()
        for key, value in records:
            if batch.append(key=key, value=value, timestamp=None) is None:
                batch.close()
                futures.append(await producer.send_batch(batch, topic, partition=partition))
                batch = producer.create_batch()
                batch.append(key=key, value=value, timestamp=None)
        batch.close()
        futures.append(await producer.send_batch(batch, topic, partition=partition))
        done, waiting = await asyncio.wait(futures, timeout=_TIMEOUT)
        for future in done:
            future.result()
        if waiting:
            raise TimeoutError(f"{len(waiting)} batches for {topic} are not acknowledged")


def _value(row: CampaignRow, what: CommittedFlush, rates: Rates, now: datetime) -> bytes:
    progress = measure(
        campaign_id=row.campaign_id,
        name=row.name,
        status=row.status,
        to_send=row.to_send,
        counts=row.counts,
        removed=row.removed,
        sent=row.sent,
        rate=rates.rate(row.campaign_id, now.timestamp()),
        now=now,
        as_of=what.as_of,
        based=what.based,
        verified_at=row.verified_at,
        epoch=what.epoch,
        position=what.position,
    )
    value: Mapping[str, Any] = to_json(progress)
    return encode_progress(value)
