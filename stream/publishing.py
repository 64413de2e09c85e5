"""What a worker publishes after a flush: the rows of ``progress``, watermarks and verdicts; and its Faust table.

Apart from the flush on purpose: a broker that is slow here must hold up no count. So what is to be published is
kept by key, the newest value alone, and a task of its own sends it in batches by partition (Faust's own sends cost
ten times as much). A batch that fails stays due. The values are the contract's JSON (INTERFACE, "JSON names").
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from typing import Any, Final

from connectors.kafka.codec import (
    campaign_key,
    encode_progress,
    encode_verdict,
    encode_watermark,
    watermark_key,
)
from connectors.kafka.topics import Names
from stream.core.feed import Flushed, Row
from stream.core.pace import Backoff
from stream.core.progress import measure, position_text, rate_per_minute, to_json

log = logging.getLogger("sentstream.publish")

#: seconds between two rounds of publishing
_ROUND: Final = 0.1
#: seconds between two watermarks of a partition in which nothing changed
_MARK: Final = 1.0
#: verdicts that wait while the broker is away; older ones are in PostgreSQL
_VERDICTS: Final = 20_000
_TIMEOUT: Final = 15.0


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


class Publications:
    """What is to be published, newest value by key; the Faust table is kept in step. One event loop."""

    def __init__(self, names: Names, table: Callable[[], Any]) -> None:
        self._names = names
        self._table = table
        self._due: dict[int, dict[bytes, bytes | None]] = {}
        self._keys: dict[int, set[bytes]] = {}
        self._rates: dict[int, Rates] = {}
        self._marked: dict[int, float] = {}
        self._verdicts: deque[tuple[int, bytes, bytes]] = deque(maxlen=_VERDICTS)
        self._some = asyncio.Event()
        self.published = 0
        self.failures = 0

    def add(self, what: Flushed, flows: Iterable[tuple[int, int, int]] = ()) -> None:
        """A flush that committed, or (``whole``) a partition as it was loaded. ``flows``: (campaign, minute,
        sent)."""
        partition = what.partition
        rates = self._rates.setdefault(partition, Rates())
        if what.whole:
            rates = self._rates[partition] = Rates()
        for campaign, minute, sent in flows:
            rates.add(campaign, minute, sent)
        due = self._due.setdefault(partition, {})
        table = self._table().data
        keys = self._keys.setdefault(partition, set())
        now = datetime.now(timezone.utc)
        for row in what.rows:
            key, value = campaign_key(row.campaign_id), _value(row, what, rates, now)
            due[key] = table[key] = value
            keys.add(key)
        for campaign in what.deleted:
            key = campaign_key(campaign)
            due[key] = None
            keys.discard(key)
            table.pop(key, None)
        mono = time.monotonic()
        if what.rows or what.deleted or mono - self._marked.get(partition, 0.0) >= _MARK:
            self._marked[partition] = mono
            as_of = 0 if what.as_of is None else int(what.as_of.timestamp() * 1e6)
            due[watermark_key(partition)] = encode_watermark(
                partition, what.epoch, position_text(what.epoch, what.position), what.position.lsn, as_of, what.based
            )
        for verdict in what.verdicts:
            self._verdicts.append((partition, campaign_key(verdict.campaign), encode_verdict(verdict, partition)))
        if due or self._verdicts:
            self._some.set()

    def forget(self, partition: int) -> None:
        """The partition was given up: whoever has it now publishes it whole."""
        self._due.pop(partition, None)
        self._rates.pop(partition, None)
        self._marked.pop(partition, None)
        table = self._table().data
        for key in self._keys.pop(partition, ()):
            table.pop(key, None)

    async def run(self, producer: Callable[[], Any]) -> None:
        """Publish what is due, for ever. ``producer``: aiokafka's, once there is one."""
        backoff = Backoff(first=0.5, most=10.0)
        while True:
            await self._some.wait()
            self._some.clear()
            try:
                await self.publish(producer())
                backoff = backoff.succeeded()
            except asyncio.CancelledError:
                raise
            except Exception as error:  # whatever a client raises: the counts are written, this waits
                self.failures += 1
                self._some.set()
                if not backoff.failures:
                    log.warning("publishing waits: %s: %s", type(error).__name__, error)
                backoff = backoff.failed()
            await asyncio.sleep(max(_ROUND, backoff.pause))

    async def publish(self, producer: Any) -> None:
        """One round. What could not be sent is due again, unless something newer is."""
        verdicts: dict[int, list[tuple[bytes, bytes | None]]] = {}
        taken = [self._verdicts.popleft() for _ in range(len(self._verdicts))]
        for partition, key, value in taken:
            verdicts.setdefault(partition, []).append((key, value))
        due, self._due = self._due, {}
        try:
            for partition, values in due.items():
                await self._send(producer, self._names.progress, partition, list(values.items()))
            for partition, records in verdicts.items():
                await self._send(producer, self._names.verdicts, partition, records)
        except BaseException:
            for partition, values in due.items():
                self._due[partition] = {**values, **self._due.get(partition, {})}
            self._verdicts.extendleft(reversed(taken))
            raise

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
        self.published += len(records)


def _value(row: Row, what: Flushed, rates: Rates, now: datetime) -> bytes:
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
