"""In the Kafka mode the topic ``sentstream.progress`` brings counts to the HTTP server as the workers flush them.

Every serving process reads the newest records of all partitions, without a consumer group. The initial state and missed
records come from PostgreSQL, the store of record, which is polled as well. A record is applied as a flush of its
partition, so an older number never replaces a newer one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import orjson

from connectors.kafka.cluster import Cluster
from connectors.kafka.topics import Names
from stream.core.committed import CampaignRow, CommittedFlush
from stream.core.errors import SentstreamError
from stream.core.position import Position, parse_lsn
from stream.web.context import Context

if TYPE_CHECKING:
    from aiokafka import AIOKafkaConsumer

log = logging.getLogger(__name__)

#: seconds before a lost broker is tried again
RETRY_AFTER: Final = 3.0
#: milliseconds that a fetch may wait for records, which bounds how late a change is shown
WAIT_MS: Final = 100
_WATERMARK: Final = b"watermark:"


async def follow_topic(context: Context) -> None:
    """Read the topic until cancelled."""
    trouble = ""
    while True:
        try:
            await _read(context)
        except (SentstreamError, OSError) as error:
            if str(error) != trouble:
                trouble = str(error)
                log.warning("The topic of progress can't be read; the database is polled instead: %s", error)
        await asyncio.sleep(RETRY_AFTER)


async def _read(context: Context) -> None:
    from aiokafka.errors import KafkaError  # noqa: PLC0415 - the embedded mode needs no Kafka client

    cluster = Cluster.of(context.settings)
    consumer = _consumer(cluster, Names(context.settings.kafka_topic_prefix).progress)
    try:
        await consumer.start()
        while True:
            records = await consumer.getmany(timeout_ms=1000)
            read = [
                (record.partition, record.key, record.value)
                for batch in records.values()
                for record in batch
                if record.key is not None
            ]
            if read:
                context.live.take(flushes_of(read))
    except KafkaError as error:
        raise cluster.refused(error) from error
    finally:
        await consumer.stop()


def _consumer(cluster: Cluster, topic: str) -> AIOKafkaConsumer:
    from aiokafka import AIOKafkaConsumer  # noqa: PLC0415

    return AIOKafkaConsumer(
        topic,
        **cluster.aiokafka(),
        client_id="sentstream-http",
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="latest",
        fetch_max_wait_ms=WAIT_MS,
    )


def flushes_of(records: Iterable[tuple[int, bytes, bytes | None]]) -> list[CommittedFlush]:
    """Records (partition, key, value) as flushes, one a partition.

    A record that can't be read is skipped: the poll brings its counts a moment later.
    """
    merged: dict[int, _PartitionRecords] = {}
    for partition, key, value in records:
        try:
            merged.setdefault(partition, _PartitionRecords()).add(key, None if value is None else orjson.loads(value))
        except (ValueError, KeyError, TypeError, AttributeError):
            log.warning("a record with key %r in partition %d can't be read and is skipped", key[:50], partition)
    return [found for partition, part in merged.items() if (found := part.flushed(partition)) is not None]


@dataclass(slots=True)
class _PartitionRecords:
    """The records of one partition, merged."""

    epoch: int = 0
    position: Position | None = None
    as_of: datetime | None = None
    based: bool = True
    rows: dict[int, CampaignRow] = field(default_factory=dict)
    deleted: set[int] = field(default_factory=set)

    def add(self, key: bytes, value: Mapping[str, Any] | None) -> None:
        if value is None:
            self.rows.pop(int(key), None)
            self.deleted.add(int(key))
        elif key.startswith(_WATERMARK):
            self._reach(value)
            self.based = bool(value["based"])
        else:
            row = _row(value)
            self._reach(value)
            self.rows[row.campaign_id] = row
            self.deleted.discard(row.campaign_id)

    def flushed(self, partition: int) -> CommittedFlush | None:
        """None without a position: the position of a deletion comes with the watermark that follows it."""
        if self.position is None:
            return None
        rows, deleted = tuple(self.rows.values()), tuple(sorted(self.deleted))
        return CommittedFlush(self.epoch, partition, self.position, self.as_of, self.based, rows, deleted)

    def _reach(self, value: Mapping[str, Any]) -> None:
        epoch, lsn, seq = (int(part, 16) for part in value["position"].split("."))
        if self.position is None or (epoch, Position(lsn, seq)) >= (self.epoch, self.position):
            self.epoch, self.position = epoch, Position(lsn, seq)
            self.as_of = _time(value["as_of"])


def _row(value: Mapping[str, Any]) -> CampaignRow:
    names = ("queue_queued", "queue_sending", "queue_sent", "queue_failed", "queue_cancelled")
    queued, sending, sent, failed, cancelled = (int(value[name]) for name in names)
    return CampaignRow(
        int(value["campaign_id"]),
        str(value["name"]),
        str(value["status"]),
        int(value["to_send"]),
        (queued, sending, sent, failed, cancelled),
        int(value["removed"]),
        int(value["sent"]),
        _time(value["verified_at"]),
        None if value.get("verified_lsn") is None else parse_lsn(value["verified_lsn"]),
    )


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text.replace("Z", "+00:00"))
