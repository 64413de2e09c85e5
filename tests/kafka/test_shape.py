"""The Kafka shape from WAL to counter, with all that can die in between: the counts are the truth, nothing twice."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.fix_postgres import Database
from tests.kafka.shape import Shape, load
from tests.postgres.running import add_campaign
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(240)


def running(shape: Shape, campaigns: int = 8, *, workers: int = 1) -> Shape:
    """Reader and workers at work, all partitions based."""
    for number in range(1, campaigns + 1):
        add_campaign(shape.db, number, queued=100)
    shape.start("read")
    for number in range(workers):
        shape.start("work", name=f"w{number}")
    shape.until_based()
    return shape


def proved(shape: Shape, timeout: float = 60, *, removed: bool = False) -> None:
    """The counts are the truth, and a recount finds nothing to correct. ``removed``: rows may count as removed."""
    shape.until_right(timeout, removed=removed)
    found = shape.verdicts_of(shape.recount().run_id)
    assert (found["drift"], found["baseline"]) == (0, 0), found


def test_counters_follow_the_wal_and_roles_leave_in_order(shape: Shape) -> None:
    running(shape)
    with load(shape.db, 8) as done:
        eventually(lambda: done() > 500, 30)
    proved(shape)
    reader, worker = shape.roles
    assert reader.stop() == 0
    assert worker.stop() == 0
    assert "Traceback" not in reader.said + worker.said
    assert shape.db.value("SELECT count(*) FROM sentstream.history") > 0
    assert (
        shape.db.execute(
            "SELECT campaign_id FROM sentstream.history h JOIN sentstream.progress p USING (campaign_id)"
            " GROUP BY campaign_id, p.sent HAVING sum(h.sent) <> p.sent"
        )
        == []
    )


@pytest.mark.slow  # tests/kafka/test_members.py kills one, too
def test_kill_9_of_a_worker_under_load(shape: Shape) -> None:
    running(shape, workers=2)
    with load(shape.db, 8) as done:
        _, first, second = shape.roles
        eventually(lambda: done() > 300, 30)
        first.kill()
        eventually(lambda: done() > 1000, 30)
        first.again()
        eventually(lambda: done() > 1500, 30)
        second.kill()
    proved(shape)


@pytest.mark.slow
def test_kill_9_of_the_reader_under_load(shape: Shape) -> None:
    running(shape)
    reader = shape.roles[0]
    with load(shape.db, 8) as done:
        for _ in range(3):
            seen = done()
            eventually(lambda: done() > seen + 300, 30)  # noqa: B023 - asked at once
            reader.kill()
            reader.again()
    proved(shape)


@pytest.mark.parametrize(
    "place",
    [
        "after_send",
        *(
            pytest.param(p, marks=pytest.mark.slow)
            for p in ("before_send", "before_confirm", "after_confirm", "after_fold")
        ),
    ],
)
def test_a_reader_that_dies_at(shape: Shape, place: str) -> None:
    running(shape)
    shape.roles[0].stop()
    with load(shape.db, 8) as done:
        seen = done()
        doomed = shape.start("read", failpoints=f"{place}=kill:4")
        eventually(lambda: doomed.process.poll() == -9, 40)
        eventually(lambda: done() > seen + 300, 30)
        shape.start("read")
    proved(shape)


@pytest.mark.parametrize(
    "place",
    [
        "after_commit",
        *(pytest.param(p, marks=pytest.mark.slow) for p in ("after_swap", "before_flush", "before_commit")),
    ],
)
def test_a_worker_that_dies_at(shape: Shape, place: str) -> None:
    running(shape)
    shape.roles[1].stop()
    with load(shape.db, 8) as done:
        seen = done()
        doomed = shape.start("work", name="w0", failpoints=f"{place}=kill:4")
        eventually(lambda: doomed.process.poll() == -9, 40)
        eventually(lambda: done() > seen + 300, 30)
        shape.start("work", name="w0")
    proved(shape)


@pytest.mark.slow
def test_two_readers_one_works_the_other_takes_over(shape: Shape) -> None:
    running(shape)
    second = shape.start("read")
    with load(shape.db, 8) as done:
        eventually(lambda: "waiting for the slot" in second.said, 30)
        eventually(lambda: done() > 300, 30)
        shape.roles[0].kill()
        eventually(lambda: "reading from" in second.said, 30)
        seen = done()
        eventually(lambda: done() > seen + 300, 30)
    proved(shape)


@pytest.mark.slow
def test_a_reader_that_was_stopped_and_goes_on_counts_nothing_twice(shape: Shape) -> None:
    """Its slot was taken over meanwhile; what it still sends are repetitions."""
    shape.db.execute("ALTER SYSTEM SET wal_sender_timeout = '2s'")
    shape.db.execute("SELECT pg_reload_conf()")
    try:
        running(shape)
        zombie = shape.roles[0]
        shape.start("read")
        with load(shape.db, 8) as done:
            eventually(lambda: done() > 300, 30)
            zombie.pause()
            eventually(lambda: "reading from" in shape.roles[2].said, 60)
            seen = done()
            eventually(lambda: done() > seen + 300, 30)
            zombie.go_on()
            eventually(lambda: done() > seen + 900, 30)
        proved(shape)
    finally:
        shape.db.execute("ALTER SYSTEM RESET wal_sender_timeout")
        shape.db.execute("SELECT pg_reload_conf()")


def test_a_worker_that_was_stopped_and_goes_on_is_fenced(shape: Shape) -> None:
    running(shape, workers=2)
    zombie = shape.roles[1]
    with load(shape.db, 8) as done:
        eventually(lambda: done() > 300, 30)
        zombie.pause()
        before = {row[0]: row[1] for row in shape.db.execute("SELECT partition, flushed_at FROM sentstream.watermarks")}
        eventually(
            lambda: all(
                row[1] > before[row[0]]
                for row in shape.db.execute("SELECT partition, flushed_at FROM sentstream.watermarks")
            ),
            40,
        )
        seen = done()
        eventually(lambda: done() > seen + 300, 30)
        zombie.go_on()
        eventually(lambda: done() > seen + 900, 30)
    proved(shape)


@pytest.mark.slow
def test_a_worker_comes_and_goes_under_load(shape: Shape) -> None:
    running(shape)
    with load(shape.db, 8) as done:
        joined = shape.start("work", name="late")
        eventually(lambda: "partitions assigned" in joined.said, 40)
        seen = done()
        eventually(lambda: done() > seen + 500, 30)
        assert joined.stop() == 0
        eventually(lambda: done() > seen + 1000, 30)
    proved(shape)


@pytest.mark.slow
def test_kill_9_of_postgresql(make_shape: Callable[..., Shape], private_mailer_db: Database, private_pg: Any) -> None:
    shape = running(make_shape(private_mailer_db))
    with load(shape.db, 8) as done:
        eventually(lambda: done() > 300, 30)
        private_pg.kill()
        private_pg.start()
        seen = done()
        eventually(lambda: done() > seen + 500, 60)
    proved(shape)


@pytest.mark.slow
def test_one_campaign_with_all_the_traffic(shape: Shape) -> None:
    running(shape, campaigns=1)
    with load(shape.db, 1, rate=2000) as done:
        eventually(lambda: done() > 2000, 40)
    proved(shape)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [30_000, 1_000_000])
def test_a_bulk_change_is_a_few_records(shape: Shape, rows: int) -> None:
    """Many rows in one statement, eight campaigns."""
    running(shape)
    shape.until_right()
    shape.db.execute(
        "INSERT INTO email_queue (campaign_id, subscriber_id) SELECT 1 + i %% 8, 1 FROM generate_series(1, %s::int) i",
        rows,
    )
    shape.until_right(60)
    before = len(shape.records(shape.names.changes))
    began = time.monotonic()
    shape.db.execute("UPDATE email_queue SET status = 'sent'")
    shape.until_right(60)
    ticks = (time.monotonic() - began) / 2 * 4
    assert len(shape.records(shape.names.changes)) - before < 20 + 2 * ticks


@pytest.mark.slow
def test_ten_thousand_campaigns_at_once(shape: Shape) -> None:
    shape.db.execute("INSERT INTO subscribers (id, email) VALUES (1, 'one@example.org')")
    shape.db.execute(
        "INSERT INTO campaigns (id, name, status, to_send)"
        " SELECT i, 'c' || i, 'running', 10 FROM generate_series(1, 10000) i"
    )
    shape.db.execute(
        "INSERT INTO email_queue (campaign_id, subscriber_id) SELECT 1 + i % 10000, 1 FROM generate_series(1, 100000) i"
    )
    shape.start("read")
    shape.start("work", name="w0")
    shape.until_based()
    shape.until_right(60)
    before = len(shape.records(shape.names.changes))
    shape.db.execute("UPDATE email_queue SET status = 'sent' WHERE id % 2 = 0")
    shape.until_right(60)
    assert len(shape.records(shape.names.changes)) - before < 100
    proved(shape)
