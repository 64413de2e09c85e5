"""Each fault of Faust that we work around, shown without the work-around, and gone with it."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections import Counter
from typing import Any

import faust
import pytest
from faust.types import TP
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


class Consumer:
    """The part of Faust's consumer that decides what may be committed."""

    def __init__(self, committed: int) -> None:
        tp = TP("t", 0)
        self._committed_offset: dict[TP, int | None] = {tp: committed}
        self._acked: dict[TP, list[int]] = {tp: []}
        self._acked_index: dict[TP, set[int]] = {tp: set()}
        self._gap: dict[TP, Any] = {tp: None}

    def ack(self, *offsets: int) -> None:
        self._acked[TP("t", 0)] += offsets
        self._acked_index[TP("t", 0)] |= set(offsets)

    def new_offset(self) -> int | None:
        from faust.transport.consumer import Consumer as Real

        return Real._new_offset(self, TP("t", 0))  # type: ignore[arg-type]


def test_after_a_seek_forward_nothing_is_committed_any_more() -> None:
    consumer = Consumer(committed=10)
    consumer.ack(500, 501)
    assert consumer.new_offset() is None


def test_with_the_place_told_the_commit_goes_on() -> None:
    consumer = Consumer(committed=10)
    consumer.ack(11)
    faust_patches.committed_up_to(consumer, TP("t", 0), 500)
    consumer.ack(500, 501)
    assert consumer.new_offset() == 502
    assert Counter(consumer._acked[TP("t", 0)]) == Counter()
