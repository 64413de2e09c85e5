"""How far the workers are: the columns of ``kafka-consumer-groups --describe``, and seconds.

The seconds of a partition are the age of the record at the committed offset, which is the oldest that waits. Where that
record is gone (retention), they are interpolated from when the end of the topic passed that offset. The verdict comes
from ``stream.core.lag``, over a window of samples.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import kafka.errors
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.protocol.consumer import OffsetSpec

from connectors.kafka.cluster import Cluster
from stream.core.errors import SentstreamError
from stream.core.lag import LagVerdict, LagWindow, Sample

T = TypeVar("T")

#: seconds that a broker may take to answer, and after which one that did not is asked again
_PATIENCE: Final = 3.0
_ASK_AGAIN: Final = 5.0


@dataclass(frozen=True, slots=True)
class PartitionLag:
    """One line of the table. ``current_offset`` None: nothing committed; ``seconds`` None: can't be told."""

    group: str
    topic: str
    partition: int
    current_offset: int | None
    log_end_offset: int
    seconds: float | None
    consumer_id: str | None = None
    host: str | None = None
    verdict: LagVerdict = LagVerdict.UNKNOWN

    @property
    def lag(self) -> int | None:
        return None if self.current_offset is None else max(0, self.log_end_offset - self.current_offset)

    def json(self) -> dict[str, Any]:
        """As an element of ``groups`` in the answer of `lag`."""
        return {
            "group": self.group,
            "topic": self.topic,
            "partition": self.partition,
            "current_offset": self.current_offset,
            "log_end_offset": self.log_end_offset,
            "lag": self.lag,
            "seconds": None if self.seconds is None else round(self.seconds, 3),
            "consumer_id": self.consumer_id,
            "host": self.host,
            "verdict": self.verdict.value,
        }


@dataclass(slots=True)
class _Ends:
    """When the end of a partition was at which offset: for the age of an offset whose record can't be read."""

    seen: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=720))

    def add(self, at: float, end: int) -> None:
        if not self.seen or self.seen[-1][1] != end:
            self.seen.append((at, end))

    def age(self, offset: int, now: float) -> float | None:
        """Seconds since the end passed ``offset``, interpolated between samples; None before the first."""
        before: tuple[float, int] | None = None
        for at, end in self.seen:
            if end > offset:
                if before is None:
                    return None
                t0, e0 = before
                return now - (t0 + (at - t0) * max(0.0, (offset - e0) / max(1, end - e0)))
            before = (at, end)
        return 0.0 if before is not None else None


class LagReader:
    """Looks at a group and a topic again and again. Not for several threads at once; closes by `close`.

    ``window``: seconds over which a lag is judged; ``allowed``: seconds of lag that are no reason to worry.
    """

    def __init__(
        self, cluster: Cluster, group: str, topic: str, *, window: float = 60.0, allowed: float = 10.0
    ) -> None:
        self._cluster = cluster
        self._group = group
        self._topic = topic
        self._seconds = window
        self._allowed = allowed
        self._windows: dict[int, LagWindow] = {}
        self._ends: dict[int, _Ends] = {}
        self._admin: KafkaAdminClient | None = None
        self._consumer: KafkaConsumer | None = None
        self._failed: SentstreamError | None = None
        self._failed_at = 0.0

    def close(self) -> None:
        for client in (self._admin, self._consumer):
            if client is not None:
                client.close()
        self._admin = self._consumer = None

    def read(self) -> list[PartitionLag]:
        """One sample; a line for each partition of the topic, each with its verdict. UnreachableError and the like:
        after that the same for some seconds without asking, so that what is read beside it is not held up."""
        return self._asked(self._read)

    def without_owner(self) -> list[int]:
        """The partitions that no member of the group holds; none while it rebalances."""
        return self._asked(self._without_owner)

    def _without_owner(self) -> list[int]:
        admin = self._connected()
        members = self._members(admin)
        return [] if members is None else [tp.partition for tp in self._tps(admin) if tp.partition not in members]

    def _asked(self, question: Callable[[], T]) -> T:
        if self._failed is not None and time.monotonic() - self._failed_at < _ASK_AGAIN:
            raise self._failed
        self._failed = None
        try:
            return question()
        except (kafka.errors.KafkaError, OSError, SentstreamError) as error:
            self.close()
            known = error if isinstance(error, SentstreamError) else self._cluster.refused(error)
            self._failed, self._failed_at = known, time.monotonic()
            raise known from error

    def _connected(self) -> KafkaAdminClient:
        if self._admin is None:
            self._admin = self._cluster.admin(timeout=_PATIENCE)
        return self._admin

    def _read(self) -> list[PartitionLag]:
        admin = self._connected()
        now, wall = time.monotonic(), time.time()
        partitions = self._tps(admin)
        # in this order: what is committed while the ends are read would lie beyond them
        committed = admin.list_group_offsets({self._group: partitions})[self._group]
        begins = self._offsets(admin, partitions, OffsetSpec.EARLIEST)
        ends = self._offsets(admin, partitions, OffsetSpec.LATEST)
        members = self._members(admin)
        done: dict[TopicPartition, int | None] = dict.fromkeys(partitions)
        done.update((tp, it.offset) for tp, it in committed.items() if it.offset >= 0)
        times = self._timestamps({tp: it for tp, it in done.items() if it is not None and begins[tp] <= it < ends[tp]})
        lines = []
        for tp in partitions:
            seen = self._ends.setdefault(tp.partition, _Ends())
            seen.add(now, ends[tp])
            seconds = self._age(done[tp], ends[tp], times.get(tp), seen, now, wall)
            member = members.get(tp.partition) if members is not None else None
            present = None if members is None else member is not None
            window = self._windows.setdefault(tp.partition, LagWindow(self._seconds))
            window.add(Sample(now, done[tp], ends[tp], seconds, present))
            verdict = window.verdict(now=now, allowed=self._allowed)
            consumer, host = member or (None, None)
            lines.append(
                PartitionLag(
                    self._group, self._topic, tp.partition, done[tp], ends[tp], seconds, consumer, host, verdict
                )
            )
        return lines

    @staticmethod
    def _age(done: int | None, end: int, stamp: int | None, ends: _Ends, now: float, wall: float) -> float | None:
        if done is None:
            return None
        if done >= end:
            return 0.0
        return max(0.0, wall - stamp / 1000) if stamp is not None else ends.age(done, now)

    def _tps(self, admin: KafkaAdminClient) -> list[TopicPartition]:
        description = admin.describe_topics([self._topic])[0]
        numbers = sorted(it["partition_index"] for it in description["partitions"])
        return [TopicPartition(self._topic, number) for number in numbers]

    @staticmethod
    def _offsets(admin: KafkaAdminClient, tps: Iterable[TopicPartition], spec: Any) -> dict[TopicPartition, int]:
        answer = admin.list_partition_offsets(dict.fromkeys(tps, spec))
        return {tp: it.offset for tp, it in answer.items()}

    def _members(self, admin: KafkaAdminClient) -> dict[int, tuple[str, str]] | None:
        """(member id, host) by partition; None while the group rebalances."""
        group = admin.describe_groups([self._group])[self._group]
        if group["group_state"] not in ("Stable", "Empty", "Dead"):
            return None
        members = {}
        for member in group["members"]:
            name = member.get("group_instance_id") or member["member_id"]
            assignment = member.get("member_assignment") or {}
            for it in assignment.get("assigned_partitions", ()):
                if it["topic"] == self._topic:
                    for partition in it["partitions"]:
                        members[partition] = (name, member["client_host"])
        return members

    def _timestamps(self, offsets: dict[TopicPartition, int]) -> dict[TopicPartition, int]:
        """Milliseconds since 1970 of the records at these offsets, as far as they can be read within two seconds."""
        if not offsets:
            return {}
        if self._consumer is None:
            self._consumer = KafkaConsumer(
                enable_auto_commit=False,
                auto_offset_reset="none",
                max_partition_fetch_bytes=1 << 16,
                fetch_max_wait_ms=100,
                check_crcs=False,
                **self._cluster.kafka_python(),
            )
        consumer = self._consumer
        consumer.assign(list(offsets))
        consumer.resume(*offsets)
        found: dict[TopicPartition, int] = {}
        for tp, offset in offsets.items():
            consumer.seek(tp, offset)
        until = time.monotonic() + 2
        while len(found) < len(offsets) and time.monotonic() < until:
            try:
                records = consumer.poll(timeout_ms=200, max_records=len(offsets))
            except kafka.errors.OffsetOutOfRangeError as error:
                gone = list(error.args[0])
                offsets = {tp: offset for tp, offset in offsets.items() if tp not in gone}
                consumer.assign(list(offsets))
                continue
            for tp, batch in records.items():
                if tp not in found and batch:
                    found[tp] = batch[0].timestamp
                    consumer.pause(tp)
        return found
