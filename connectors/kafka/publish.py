"""Publishes batches, and knows which of them every in-sync replica has.

An LSN is confirmed only as far as every partition has it durably, as an ``end``. So each record's future is checked, in
order and by partition, before its ``end`` counts (the client's ``flush()`` raises nothing). What is in flight is
bounded here, as the client does not bound it. An error is final: the reader starts again from the confirmed LSN and
sends again everything that was not acknowledged. See docs/design/kafka.md.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, NamedTuple

import kafka.errors
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.protocol.consumer import OffsetSpec

from connectors.kafka.cluster import Cluster
from connectors.kafka.codec import NEWEST_EPOCH, encode_within, end_of
from connectors.kafka.topics import RECORD_LIMIT
from stream.core.batch import Batch
from stream.core.epoch import KafkaEnd
from stream.core.errors import SentstreamError
from stream.core.position import Position

#: bytes not yet acknowledged at which the reader stops reading; a broker that is away costs no more memory than this
IN_FLIGHT: Final = 32 << 20
#: how long a record may wait for its acknowledgement before the reader gives up and starts again
DELIVERY_TIMEOUT: Final = 120.0
#: bytes of a record at which a batch is cut into several
_RECORD_BYTES: Final = 1 << 20
#: records at the end of a partition among which the last batch is searched
_LOOK_BACK: Final = 50


class PublishError(SentstreamError):
    """A record was not acknowledged. Nothing beyond the last acknowledged end is confirmed, so nothing is lost."""


class _Sent(NamedTuple):
    """A record in flight. ``sent_at``: monotonic seconds."""

    future: Any
    end: Position
    size: int
    sent_at: float


@dataclass(slots=True)
class _Lane:
    """What is in flight to one partition, oldest first."""

    durable: Position
    waiting: deque[_Sent] = field(default_factory=deque)


class Publisher:
    """Sends batches to the changes topic. For one thread; closes as a context manager.

    ``begin``: where the first batches begin; all before that is durable already. ``acknowledged``: called (in the
    client's thread) whenever something was acknowledged, to wake up who waits. ``failpoint``: called with
    the name of each step.
    """

    def __init__(
        self,
        cluster: Cluster,
        topic: str,
        partitions: int,
        begin: Position,
        *,
        in_flight: int = IN_FLIGHT,
        failpoint: Callable[[str], None] = lambda _name: None,
    ) -> None:
        self._cluster = cluster
        self._topic = topic
        self._limit = in_flight
        self._failpoint = failpoint
        self._lanes = [_Lane(begin) for _ in range(partitions)]
        self._some = threading.Event()
        self.in_flight = 0
        self.records = 0
        self.bytes = 0
        try:
            self._producer = KafkaProducer(
                client_id="sentstream-read",
                acks="all",
                enable_idempotence=True,
                compression_type="lz4",
                linger_ms=2,
                batch_size=128 << 10,
                max_request_size=RECORD_LIMIT,
                max_block_ms=5_000,
                delivery_timeout_ms=int(DELIVERY_TIMEOUT * 1000),
                request_timeout_ms=10_000,
                bootstrap_timeout_ms=5_000,
                reconnect_backoff_max_ms=2_000,
                allow_auto_create_topics=False,
                metrics_enabled=False,
                **cluster.kafka_python(),
            )
        except (kafka.errors.KafkaError, OSError) as error:
            raise cluster.refused(error) from error

    def __enter__(self) -> Publisher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(0.0 if kind or self.in_flight else 2.0)

    @property
    def room(self) -> bool:
        """Whether more may be sent without passing the bound."""
        return self.in_flight < self._limit

    @property
    def idle(self) -> bool:
        """Whether everything sent is acknowledged, as of the last `poll`."""
        return not self.in_flight

    def send(self, batch: Batch) -> None:
        """Send a batch; does not wait for it. PublishError where it can't be sent, or an earlier one failed."""
        lane = self._lanes[batch.partition]
        for end, data in encode_within(batch, _RECORD_BYTES):
            self._failpoint("before_send")
            self._send(lane, batch, end, data)

    def _send(self, lane: _Lane, batch: Batch, end: Position, data: bytes) -> None:
        try:
            future = self._producer.send(self._topic, value=data, partition=batch.partition)
        except (kafka.errors.KafkaError, OSError, AssertionError) as error:
            raise self._failed(error, batch.partition, batch.begin) from error
        lane.waiting.append(_Sent(future, end, len(data), time.monotonic()))
        self.in_flight += len(data)
        self.records += 1
        self.bytes += len(data)
        future.add_both(self._wake)

    def _wake(self, _result: object) -> None:
        self._some.set()

    def poll(self) -> None:
        """Process the acknowledgements that arrived. PublishError at the first record that failed."""
        self._some.clear()
        for number, lane in enumerate(self._lanes):
            waiting = lane.waiting
            while waiting and waiting[0].future.is_done:
                sent = waiting[0]
                if not sent.future.succeeded():
                    raise self._failed(sent.future.exception, number, lane.durable)
                waiting.popleft()
                self.in_flight -= sent.size
                lane.durable = sent.end

    @property
    def oldest(self) -> float | None:
        """When (monotonic seconds) the oldest record was sent that is not acknowledged, as of the last `poll`."""
        return min((lane.waiting[0].sent_at for lane in self._lanes if lane.waiting), default=None)

    @property
    def durable(self) -> Position:
        """The end up to which every partition has everything, as of the last `poll`: this may be confirmed."""
        return min(lane.durable for lane in self._lanes)

    def wait(self, seconds: float) -> None:
        """Wait for an acknowledgement, at most for so long."""
        self._some.wait(seconds)

    def drain(self, seconds: float) -> bool:
        """Wait until everything is acknowledged; False where that takes longer than ``seconds``."""
        until = time.monotonic() + seconds
        self.poll()
        while self.in_flight and time.monotonic() < until:
            self.wait(min(0.2, max(0.0, until - time.monotonic())))
            self.poll()
        return not self.in_flight

    def close(self, seconds: float = 10.0) -> None:
        """Close. What is not acknowledged by then is sent again by the next reader. Raises nothing."""
        try:
            self._producer.close(timeout=seconds)
        except kafka.errors.KafkaError:  # it flushes first, and where that fails its thread goes on
            self._producer._sender.force_close()  # noqa: SLF001
            with contextlib.suppress(kafka.errors.KafkaError):
                self._producer.close(timeout=1.0)

    def _failed(self, error: BaseException | None, partition: int, durable: Position) -> SentstreamError:
        if isinstance(error, kafka.errors.MessageSizeTooLargeError):
            return PublishError(
                f"A batch for {self._topic}, partition {partition}, is larger than the broker takes: {error}.",
                f"Raise max.message.bytes of the topic to {RECORD_LIMIT} (docs/topics.md, 'Sizes').",
            )
        if isinstance(error, (kafka.errors.AuthorizationError, kafka.errors.SaslAuthenticationFailedError)):
            return self._cluster.refused(error)
        return PublishError(
            f"Kafka did not take a batch for {self._topic}, partition {partition} "
            f"({type(error).__name__}: {error}); it has everything up to {durable}.",
            "Nothing behind that is confirmed; it is read and sent again.",
        )


def last_ends(cluster: Cluster, topic: str, partitions: int, *, timeout: float = 20.0) -> Sequence[KafkaEnd]:
    """Epoch and end of the last batch of each partition that holds one. Other records are passed over."""
    try:
        consumer = KafkaConsumer(
            client_id="sentstream-read",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_partition_fetch_bytes=1 << 20,
            bootstrap_timeout_ms=5_000,
            **cluster.kafka_python(),
        )
    except (kafka.errors.KafkaError, OSError) as error:
        raise cluster.refused(error) from error
    admin = cluster.admin()
    try:
        tps = [TopicPartition(topic, number) for number in range(partitions)]
        ends = {tp: it.offset for tp, it in admin.list_partition_offsets(dict.fromkeys(tps, OffsetSpec.LATEST)).items()}
        first = admin.list_partition_offsets(dict.fromkeys(tps, OffsetSpec.EARLIEST))
        begins = {tp: it.offset for tp, it in first.items()}
        found = []
        until = time.monotonic() + timeout
        for tp in tps:
            if ends[tp] > begins[tp]:
                last = _last_batch(consumer, tp, begins[tp], ends[tp], until)
                if last is not None:
                    found.append(last)
        return found
    except (kafka.errors.KafkaError, OSError) as error:
        raise cluster.refused(error) from error
    finally:
        consumer.close(timeout_ms=1000)
        admin.close()


def _last_batch(consumer: KafkaConsumer, tp: TopicPartition, begin: int, end: int, until: float) -> KafkaEnd | None:
    """Reads the last record, then up to `_LOOK_BACK` before it where that is not a batch."""
    for start in dict.fromkeys((max(begin, end - 1), max(begin, end - _LOOK_BACK))):
        consumer.assign([tp])
        consumer.seek(tp, start)
        found = None
        while consumer.position(tp) < end:
            if time.monotonic() > until:
                raise kafka.errors.KafkaTimeoutError(f"the end of {tp.topic}, partition {tp.partition}, can't be read")
            for record in consumer.poll(timeout_ms=500).get(tp, ()):
                end_here = end_of(record.value)
                if end_here is not None and end_here.epoch <= NEWEST_EPOCH:
                    found = end_here
        if found is not None:
            return found
    return None
