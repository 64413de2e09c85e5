"""Reads which campaigns one partition of the progress topic shows, once from its beginning to its end.

Runs in a thread with an event loop of its own, so that the worker's is not held up, and in no consumer group, so that
no partition moves. Only keys are kept. Time, keys and memory are bounded (`PATIENCE`, `MOST`, one fetch of a megabyte),
and it pauses as long as it works (at most 150,000 records a second, measured).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from connectors.kafka.cluster import Cluster
from connectors.kafka.members import CLIENT_ID
from stream.core.errors import SentstreamError
from stream.core.tombstones import campaigns_of, fold

#: seconds that reading one partition may take
PATIENCE: Final = 120.0
#: keys of one partition that are kept; docs/topics.md, `Sizes`, promises less than half of it
MOST: Final = 500_000
#: records processed in one go: some milliseconds
_RECORDS: Final = 1000
#: seconds between two checks whether to give up
_LOOK: Final = 0.2


def live_campaigns(
    cluster: Cluster,
    topic: str,
    number: int,
    partitions: int,
    *,
    give_up: Callable[[], bool] = lambda: False,
    patience: float = PATIENCE,
) -> set[int]:
    """The campaigns of a partition whose newest record is not a tombstone, up to the present end.

    ``give_up``: asked repeatedly whether the answer is still wanted. SentstreamError where there is no answer.
    """
    try:
        keys = asyncio.run(_bounded(cluster, TopicPartition(topic, number), give_up, patience))
    except (KafkaError, OSError) as error:
        raise cluster.refused(error) from error
    return campaigns_of(keys, number, partitions)


async def _bounded(cluster: Cluster, tp: TopicPartition, give_up: Callable[[], bool], patience: float) -> set[bytes]:
    until = time.monotonic() + patience
    reading = asyncio.ensure_future(_read(cluster, tp))
    while not reading.done():
        await asyncio.wait({reading}, timeout=_LOOK)
        if not reading.done() and (give_up() or time.monotonic() > until):
            reading.cancel()
            await asyncio.wait({reading}, timeout=_LOOK * 10)
            raise SentstreamError(f"Partition {tp.partition} of {tp.topic} could not be read within {patience:.0f} s.")
    return reading.result()


async def _read(cluster: Cluster, tp: TopicPartition) -> set[bytes]:
    consumer = AIOKafkaConsumer(
        **cluster.aiokafka(),
        client_id=CLIENT_ID,
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=1 << 20,
    )
    live: set[bytes] = set()
    try:
        await consumer.start()
        consumer.assign([tp])
        end = (await consumer.end_offsets([tp]))[tp]
        await consumer.seek_to_beginning(tp)
        while await consumer.position(tp) < end:
            found = await consumer.getmany(tp, timeout_ms=1000, max_records=_RECORDS)
            began = time.monotonic()
            fold(live, ((record.key, record.value) for record in found.get(tp, ())))
            if len(live) > MOST:
                raise SentstreamError(f"Partition {tp.partition} of {tp.topic} holds more than {MOST:,} keys.")
            await asyncio.sleep(time.monotonic() - began)
    finally:
        await consumer.stop()
    return live
