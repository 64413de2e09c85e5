"""Each fault of Faust that we work around, shown without the work-around, and gone with it."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from typing import Any

import faust
import pytest
from faust.transport.drivers.aiokafka import Consumer as Faust
from faust.types import TP
from intervaltree import IntervalTree  # type: ignore[import-untyped]
from kafka import KafkaAdminClient, KafkaProducer
from mode.utils.queues import FlowControlEvent, FlowControlQueue

from stream.kafka import faust_patches
from tests.fix_kafka import Kafka
from tests.waiting import eventually


def resumed_twice(flow: FlowControlEvent) -> int:
    """What is left in a queue that was filled between two calls of ``resume``, as Faust makes after a rebalance."""

    async def main() -> int:
        queue: FlowControlQueue[int] = FlowControlQueue(10, flow_control=flow, clear_on_resume=True)
        flow.suspend()
        flow.resume()
        queue.put_nowait(1)
        flow.resume()
        return queue.qsize()

    return asyncio.run(main())


def test_resuming_flow_that_flows_drops_what_was_delivered() -> None:
    assert resumed_twice(FlowControlEvent(initially_suspended=False)) == 0


def test_steady_flow_drops_nothing() -> None:
    assert resumed_twice(faust_patches.SteadyFlow(initially_suspended=False)) == 1


def test_steady_flow_still_clears_what_was_suspended() -> None:
    """Records of partitions that were revoked must not be delivered after a rebalance."""

    async def main() -> int:
        flow = faust_patches.SteadyFlow(initially_suspended=False)
        queue: FlowControlQueue[int] = FlowControlQueue(10, flow_control=flow, clear_on_resume=True)
        flow.resume()
        queue.put_nowait(1)
        flow.suspend()
        flow.resume()
        return queue.qsize()

    assert asyncio.run(main()) == 0


class Counting(threading.Thread):
    """A Faust app that reads a topic with a table beside it, and says what of the changelog it replayed."""

    def __init__(self, kafka: Kafka, prefix: str, **values: Any) -> None:
        super().__init__(daemon=True)
        self._kafka, self._prefix, self._values = kafka, prefix, values
        self.seen: list[int] = []
        self.table: dict[bytes, bytes] = {}
        self.ready = threading.Event()
        self._end: Any = None

    def run(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        app = faust.App(
            f"{self._prefix}app",
            broker=f"kafka://{self._kafka.bootstrap}",
            store="memory://",
            datadir=tempfile.mkdtemp(prefix=self._prefix),
            autodiscover=False,
            web_enabled=False,
            topic_allow_declare=False,
            topic_disable_leader=True,
            stream_wait_empty=False,
            **self._values,
        )
        table = app.Table(
            "t",
            partitions=1,
            key_type=bytes,
            value_type=bytes,
            changelog_topic=app.topic(f"{self._prefix}log", key_type=bytes, value_type=bytes, value_serializer="raw"),
        )

        @app.agent(app.topic(f"{self._prefix}in", key_type=bytes, value_type=bytes, value_serializer="raw"))
        async def agent(stream: Any) -> None:
            async for event in stream.events():
                self.seen.append(event.message.offset)
                self.table = dict(table.data.items())
                self.ready.set()

        app.finalize()
        await app.start()
        await self._over.wait()
        await app.stop()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self.join(30)


@pytest.mark.parametrize("fixed", [False, True], ids=["without", "with"])
def test_the_changelog_is_replayed_unless_we_say_no(kafka: Kafka, topic_prefix: str, fixed: bool) -> None:
    admin = KafkaAdminClient(**kafka.client())
    admin.create_topics(
        {f"{topic_prefix}{name}": {"num_partitions": 1, "replication_factor": 1} for name in ("in", "log")}
    )
    admin.wait_for_topics([f"{topic_prefix}in", f"{topic_prefix}log"])
    admin.close()
    with KafkaProducer(**kafka.client()) as producer:
        for number in range(200):
            producer.send(f"{topic_prefix}log", key=b"%d" % number, value=b"old")
        producer.send(f"{topic_prefix}in", key=b"k", value=b"v")
        producer.flush(20)
    app = Counting(kafka, topic_prefix, **(faust_patches.settings() if fixed else {}))
    app.start()
    try:
        eventually(app.ready.is_set, 60)
        assert len(app.table) == (0 if fixed else 200)
    finally:
        app.stop()


class Acknowledged:
    """The part of Faust's consumer that decides what may be committed, with the rules of ``real``."""

    def __init__(self, real: type[Any], committed: int) -> None:
        self._real = real
        self._committed_offset: dict[TP, int | None] = {_TP: committed}
        self._acked: dict[TP, list[int]] = {_TP: []}
        self._acked_index: dict[TP, set[int]] = {_TP: set()}
        self._gap: dict[TP, Any] = {_TP: IntervalTree()}

    def ack(self, *offsets: int) -> None:
        self._acked[_TP] += [it for it in offsets if it not in self._acked_index[_TP]]
        self._acked_index[_TP] |= set(offsets)

    def skip(self, first: int, last: int) -> None:
        """What Faust does where the next record is not the one behind the last."""
        asyncio.run(self._real._add_gap(self, _TP, first, last))

    def commit(self) -> int | None:
        """One commit; the offset committed after it."""
        offset = self._real._new_offset(self, _TP)
        committed = self._committed_offset[_TP]
        if offset is not None and (committed is None or offset > committed):
            self._committed_offset[_TP] = offset
        return self._committed_offset[_TP]


_TP = TP("t", 0)
_COMMITS = {
    # skipped records were read again, after a seek back
    "read again": ((11, 40), range(10, 61), 61),
    # what a seek forward passed over is never acknowledged
    "passed over": ((11, 39), (10, *range(40, 61)), 61),
    # retention took records that no worker had read
    "lost": (None, range(500, 511), 511),
}


def committed_at_once(real: type[Any], name: str) -> bool:
    """Whether one commit reaches the end of what is acknowledged."""
    skipped, acked, end = _COMMITS[name]
    consumer = Acknowledged(real, committed=10)
    if skipped is not None:
        consumer.skip(*skipped)
    consumer.ack(*acked)
    return consumer.commit() == end


@pytest.mark.parametrize("name", ["read again", "lost"])
def test_faust_commits_little_by_little_or_nothing_where_offsets_are_not_consecutive(name: str) -> None:
    assert not committed_at_once(Faust, name)


@pytest.mark.parametrize("name", _COMMITS)
def test_all_that_is_acknowledged_in_order_is_committed_at_once(name: str) -> None:
    assert committed_at_once(faust_patches.InOrderConsumer, name)


def test_what_is_acknowledged_twice_is_committed_once() -> None:
    consumer = Acknowledged(faust_patches.InOrderConsumer, committed=10)
    consumer.ack(10, 11)
    assert consumer.commit() == 12
    assert consumer.commit() == 12
    consumer.ack(12)
    assert consumer.commit() == 13


def test_the_app_gets_the_consumer_that_commits_in_order() -> None:
    app = faust.App("any", store="memory://", broker="kafka://127.0.0.1:1", autodiscover=False)
    faust_patches.install(app)
    assert app.transport.Consumer is faust_patches.InOrderConsumer
