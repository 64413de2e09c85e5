"""A worker by itself: what it acknowledges, and what it gives up when another takes part of its work."""

from __future__ import annotations

import time

from connectors.kafka.topics import Names
from tests.fix_kafka import Kafka
from tests.fix_postgres import Database
from tests.kafka.in_process import WorkerThread, kafka_shape, kafka_values
from tests.postgres.running import add_campaign, add_rows, at_rest, prepared, settings_for
from tests.waiting import eventually

PARTITIONS = {0, 1, 2}


def counted(mailer_db: Database) -> Database:
    db = prepared(mailer_db)
    for number in range(1, 7):
        add_campaign(db, number, queued=1)
    return db


def held(worker: WorkerThread) -> tuple[set[int], set[int]]:
    """Partitions that a worker says it has, and those of which it still keeps a place to go on at."""
    assert worker.worker is not None
    state = worker.worker.state
    return set(state.partitions), set(state.next_offsets)


def test_nothing_is_acknowledged_that_is_not_written(mailer_db: Database, kafka: Kafka) -> None:
    """The flush is held up at the watermarks, while records come and are applied."""
    from kafka import KafkaAdminClient, TopicPartition

    db = counted(mailer_db)
    names = Names(db.name)
    tps = [TopicPartition(names.changes, number) for number in PARTITIONS]
    admin = KafkaAdminClient(**kafka.client())

    def ahead() -> dict[int, tuple[int, int]]:
        """Partitions that are acknowledged further than written."""
        acknowledged = admin.list_group_offsets({names.group: tps})[names.group]
        written = dict(db.execute("SELECT partition, next_offset FROM sentstream.watermarks"))
        found = {tp.partition: (it.offset, written[tp.partition] or 0) for tp, it in acknowledged.items()}
        return {number: (one, other) for number, (one, other) in found.items() if one > other}

    with kafka_shape(db, kafka.bootstrap) as thread:
        at_rest(db)
        assert thread.worker is not None
        state = thread.worker.state
        eventually(lambda: admin.list_group_offsets({names.group: tps})[names.group])
        with db.connect(autocommit=False) as holder:
            holder.execute("SELECT 1 FROM sentstream.watermarks FOR UPDATE")
            before = state.records
            for number in range(1, 7):
                add_rows(db, number, "sent", 2)
            # the changes, and then each partition's news of a tick: offsets are committed twice a second
            while state.records < before + 3 + 2 * len(PARTITIONS):
                assert ahead() == {}
                time.sleep(0.1)
        at_rest(db)
    admin.close()


def test_what_another_worker_takes_is_given_up(mailer_db: Database, kafka: Kafka) -> None:
    db = counted(mailer_db)
    with kafka_shape(db, kafka.bootstrap) as first:
        at_rest(db)
        eventually(lambda: held(first) == (PARTITIONS, PARTITIONS))
        second = WorkerThread(settings_for(db, **kafka_values(db, kafka.bootstrap)))
        second.start()
        try:
            eventually(lambda: second.worker is not None and held(second)[0] and held(first)[0] < PARTITIONS, 20)
            for number in range(1, 7):
                add_rows(db, number, "sent", 2)
            at_rest(db)
            eventually(lambda: held(first)[0] == held(first)[1] and held(second)[0] == held(second)[1], 10)
            assert held(first)[0] | held(second)[0] == PARTITIONS
            assert not held(first)[0] & held(second)[0]
        finally:
            second.stop()
        eventually(lambda: held(first) == (PARTITIONS, PARTITIONS), 40)
        add_rows(db, 1, "sent", 2)
        at_rest(db)
