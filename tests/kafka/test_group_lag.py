"""The lag of the group: offsets, ages and verdicts, against the real broker and one that goes on while it is asked."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.protocol.consumer import OffsetSpec

from connectors.kafka.cluster import Cluster
from connectors.kafka.group_lag import LagReader
from connectors.kafka.publish import Publisher
from connectors.kafka.topics import Names
from stream.config.settings import Settings
from stream.core.lag import LagVerdict
from stream.core.position import Position
from stream.demo.child_process import free_port
from stream.metrics.lag import LagReading
from tests.fix_postgres import Database
from tests.kafka.test_topics import batch
from tests.postgres.running import prepared
from tests.waiting import eventually


def test_lag_has_offsets_and_the_age_of_the_record_that_waits(made: Settings) -> None:
    names = Names(made.kafka_topic_prefix)
    cluster = Cluster.of(made)
    with Publisher(cluster, names.changes, 3, Position(0)) as publisher:
        for at in range(0, 100, 10):
            publisher.send(batch(1, at, at + 10))
        assert publisher.drain(20)
    first = time.time()
    consumer = KafkaConsumer(group_id=names.group, enable_auto_commit=False, **cluster.kafka_python())
    tp = TopicPartition(names.changes, 1)
    consumer.assign([tp])
    consumer.commit({tp: OffsetAndMetadata(4, "", -1)})
    reader = LagReader(cluster, names.group, names.changes, window=3, allowed=1)
    line = next(it for it in reader.read() if it.partition == 1)
    assert (line.current_offset, line.log_end_offset, line.lag) == (4, 10, 6)
    assert line.seconds is not None
    assert line.seconds <= time.time() - first + 5
    assert line.verdict in (LagVerdict.OK, LagVerdict.UNKNOWN)
    stuck = eventually(
        lambda: [it for it in reader.read() if it.partition == 1 and it.verdict is LagVerdict.STOP], 15, every=0.3
    )
    assert stuck[0].seconds is not None
    assert stuck[0].seconds > 1
    consumer.commit({tp: OffsetAndMetadata(2, "", -1)})
    back = next(it for it in reader.read() if it.partition == 1)
    assert back.verdict is LagVerdict.REWIND
    consumer.close()
    reader.close()


class Moving:
    """A cluster in which the group follows at the very end, which moves on with every question."""

    def __init__(self) -> None:
        self.end = 10

    def _moved(self) -> int:
        self.end += 1
        return self.end

    def describe_topics(self, topics: list[str]) -> list[dict[str, Any]]:
        return [{"name": topics[0], "partitions": [{"partition_index": 0}]}]

    def list_partition_offsets(self, specs: dict[Any, Any]) -> dict[Any, Any]:
        return {
            tp: SimpleNamespace(offset=0 if spec is OffsetSpec.EARLIEST else self._moved())
            for tp, spec in specs.items()
        }

    def list_group_offsets(self, groups: dict[str, list[Any]]) -> dict[str, dict[Any, Any]]:
        return {group: {tp: SimpleNamespace(offset=self._moved()) for tp in tps} for group, tps in groups.items()}

    def describe_groups(self, groups: list[str]) -> dict[str, Any]:
        return {group: {"group_state": "Stable", "members": []} for group in groups}


def test_a_group_that_goes_on_while_it_is_looked_at_has_not_moved_back(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = LagReader(Cluster(("127.0.0.1:1",)), "g", "t")
    reader._admin = Moving()
    monkeypatch.setattr(LagReader, "_timestamps", lambda *_: {})
    for _ in range(3):
        (line,) = reader.read()
        assert line.current_offset is not None
        assert line.current_offset <= line.log_end_offset
        assert line.verdict is not LagVerdict.REWIND
    assert reader.without_owner() == [0]


def test_slot_and_flush_are_known_where_kafka_does_not_answer(mailer_db: Database) -> None:
    prepared(mailer_db)
    settings = Settings(
        database_url=mailer_db.url, slot_name=mailer_db.slot, kafka_bootstrap_servers=(f"127.0.0.1:{free_port()}",)
    )
    with LagReading(settings) as reading, mailer_db.connect() as connection:
        found = reading.poll(connection)
    assert found["slot"]["bytes"] is not None
    assert found["groups"] == []
    assert "does not answer" in found["groups_error"]


def test_where_nothing_was_ever_committed_the_lag_is_not_known(made: Settings) -> None:
    """Which is not 0: nothing has been applied."""
    names = Names(made.kafka_topic_prefix)
    cluster = Cluster.of(made)
    with Publisher(cluster, names.changes, 3, Position(0)) as publisher:
        publisher.send(batch(1, 0, 10))
        assert publisher.drain(20)
    reader = LagReader(cluster, names.group, names.changes, window=3, allowed=1)
    line = next(it for it in reader.read() if it.partition == 1)
    assert (line.log_end_offset, line.current_offset, line.lag, line.seconds) == (1, None, None, None)
    assert (line.json()["lag"], line.json()["seconds"], line.verdict) == (None, None, LagVerdict.UNKNOWN)
    reader.close()


def test_the_age_of_an_offset_without_a_record_is_interpolated(made: Settings) -> None:
    names = Names(made.kafka_topic_prefix)
    cluster = Cluster.of(made)
    consumer = KafkaConsumer(group_id=names.group, enable_auto_commit=False, **cluster.kafka_python())
    tp = TopicPartition(names.changes, 0)
    consumer.assign([tp])
    consumer.commit({tp: OffsetAndMetadata(0, "", -1)})
    reader = LagReader(cluster, names.group, names.changes, window=30, allowed=1)
    reader.read()
    with Publisher(cluster, names.changes, 3, Position(0)) as publisher:
        for at in range(0, 100, 10):
            publisher.send(batch(0, at, at + 10))
        assert publisher.drain(20)
    admin = cluster.admin()
    admin.delete_records({tp: 8})
    admin.close()
    line = next(it for it in reader.read() if it.partition == 0)
    assert line.lag == 10
    assert line.seconds is not None
    assert 0 <= line.seconds < 30
    consumer.close()
    reader.close()
