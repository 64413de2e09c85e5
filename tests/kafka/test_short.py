"""Promises of the Kafka mode in a few seconds each: roles are threads of the test.

Their long forms, with processes that are killed, stand in the files beside this one and run in ``make test-more``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from kafka import KafkaAdminClient, TopicPartition

from connectors.kafka.topics import Names
from stream.demo.private_kafka import PrivateKafka
from stream.kafka.faust_patches import Coordinator
from tests.fix_kafka import Kafka
from tests.fix_postgres import Database
from tests.kafka.in_process import WorkerThread, kafka_shape, kafka_values
from tests.postgres.running import add_campaign, add_rows, at_rest, count, kept, prepared, settings_for, truth
from tests.waiting import eventually


@pytest.fixture
def db(mailer_db: Database) -> Database:
    prepared(mailer_db)
    for number in range(1, 7):
        add_campaign(mailer_db, number, queued=3, sent_rows=number)
    return mailer_db


def proved(db: Database) -> None:
    """The counts are the truth, and a recount finds nothing to correct."""
    eventually(lambda: kept(db) == truth(db), 20)
    at_rest(db)
    with db.connect() as session:
        run = count(session)
    answers = "SELECT drift + baseline, conclusive FROM sentstream.answers WHERE run_id = %s"
    eventually(lambda: len(db.execute(answers, run.run_id)) == 3, 20)
    assert set(db.execute(answers, run.run_id)) == {(0, True)}


@contextmanager
def worker_of(db: Database, kafka: Kafka, instance: str = "") -> Iterator[WorkerThread]:
    """One more worker."""
    thread = WorkerThread(settings_for(db, **kafka_values(db, kafka.bootstrap)), instance)
    thread.start()
    try:
        yield thread
    finally:
        thread.stop()


def partitions_of(thread: WorkerThread) -> set[int]:
    return set(thread.worker.state.partitions) if thread.worker is not None else set()


def test_topics_made_anew_are_counted_anew(db: Database, kafka: Kafka) -> None:
    with kafka_shape(db, kafka.bootstrap):
        at_rest(db)
    # the topics went with the roles
    db.execute("UPDATE email_queue SET status = 'sent' WHERE id % 2 = 0")
    with kafka_shape(db, kafka.bootstrap):
        add_rows(db, 1, "sent", 5)
        proved(db)


def test_offsets_that_were_moved_back_count_nothing_twice(db: Database, kafka: Kafka) -> None:
    names = Names(db.name)
    admin = KafkaAdminClient(**kafka.client())
    with kafka_shape(db, kafka.bootstrap) as first:
        for number in range(1, 7):
            add_rows(db, number, "sent", 2)
        proved(db)
        first.stop()
        eventually(lambda: not admin.describe_groups([names.group])[names.group]["members"], 20)
        admin.delete_group_offsets(names.group, [TopicPartition(names.changes, number) for number in range(3)])
        with worker_of(db, kafka):
            add_rows(db, 1, "sent", 5)
            proved(db)
            assert db.execute("SELECT 1 FROM sentstream.watermarks WHERE NOT based") == []
    admin.close()


def test_a_worker_that_comes_back_under_its_name_keeps_its_partitions_and_disturbs_no_other(
    db: Database, kafka: Kafka, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill -9: a member that is stopped would leave its group."""

    async def killed(_: Coordinator) -> None:
        pass

    monkeypatch.setattr(Coordinator, "_maybe_leave_group", killed)
    caplog.set_level("INFO", logger="sentstream.worker")

    def assignments() -> int:
        return sum(record.getMessage().startswith("partitions assigned") for record in caplog.records)

    with kafka_shape(db, kafka.bootstrap) as nameless, worker_of(db, kafka, f"{db.name}-two") as two:
        nameless.stop()
        with worker_of(db, kafka, f"{db.name}-one") as one:
            eventually(lambda: partitions_of(one) and partitions_of(two) and len(partitions_of(one)) < 3, 40)
            eventually(lambda: partitions_of(one) | partitions_of(two) == {0, 1, 2})
            mine, others = partitions_of(one), partitions_of(two)
            before = assignments()
            one.stop()
            add_rows(db, 1, "sent", 2)
            with worker_of(db, kafka, f"{db.name}-one") as again:
                eventually(lambda: partitions_of(again) == mine, 20)
                for number in range(1, 7):
                    add_rows(db, number, "sent", 2)
                proved(db)
                assert partitions_of(two) == others
                assert assignments() == before + 1, "that of the one that came back"


def test_a_broker_away_is_waited_for_and_nothing_is_confirmed(db: Database, private_kafka: PrivateKafka) -> None:
    confirmed = "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = %s"
    with kafka_shape(db, private_kafka.bootstrap):
        proved(db)
        private_kafka.nodes[0].pause()
        try:
            change = db.value("SELECT pg_current_wal_insert_lsn()")
            for number in range(1, 7):
                add_rows(db, number, "sent", 2)
            end = db.value("SELECT pg_current_wal_insert_lsn()")
            read = (
                "SELECT write_lsn >= %s FROM pg_stat_replication r JOIN pg_replication_slots s ON s.active_pid = r.pid"
            )
            eventually(lambda: db.value(f"{read} WHERE s.slot_name = %s", end, db.slot), 20)
            until = time.monotonic() + 2.5  # a confirmation is told within a second
            while time.monotonic() < until:
                assert db.value(f"SELECT ({confirmed}) <= %s", db.slot, change)
                time.sleep(0.1)
        finally:
            private_kafka.nodes[0].resume()
        proved(db)
