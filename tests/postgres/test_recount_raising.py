"""The interim raise: what a recount does to ``campaigns.sent`` while the stream is behind or down; how that ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
import pytest

from connectors.postgres.connect import Connection
from connectors.postgres.store import reports
from connectors.postgres.store.raise_counters import Raise, Raised, raise_counters
from stream.embedded import run as embedded
from tests.fix_postgres import Database
from tests.postgres.running import (
    add_campaign,
    add_rows,
    at_rest,
    based,
    count,
    reconciling,
    request_now,
    running,
    running_process,
    settings_for,
    shown,
    truth,
)
from tests.waiting import eventually


def watermark(db: Database, partition: int = 0, *, based: bool = True, lsn: str = "0/1000", epoch: int = 1) -> None:
    """A partition that stands still at ``lsn``: its stream is down."""
    db.execute(
        "INSERT INTO sentstream.watermarks (partition, epoch, lsn, based, system_identifier, timeline)"
        " VALUES (%s, %s, %s::pg_lsn, %s, 'x', 1)",
        partition,
        epoch,
        lsn,
        based,
    )


def raised(conn: Connection, run_id: int) -> Raised:
    return raise_counters(conn, run_id, mailer_schema="public")


def floors(db: Database) -> dict[int, tuple[Any, ...]]:
    rows = db.execute(
        "SELECT campaign_id, floor_lsn::text, written, queue_sent, removed, sent FROM sentstream.progress"
    )
    return {row[0]: row[1:] for row in rows}


@pytest.mark.parametrize("is_based", [True, False])
def test_it_raises_to_the_count_and_says_so(db: Database, conn: Connection, is_based: bool) -> None:
    watermark(db, based=is_based)
    add_campaign(db, 1, sent_rows=20, queued=3, sent=4)
    add_campaign(db, 2, sent_rows=5, sent=9)
    add_campaign(db, 3, sent_rows=6, sent=6)
    run = count(conn)
    assert raised(conn, run.run_id) == Raised((0,), (Raise(1, 4, 20),))
    assert shown(db) == {1: 20, 2: 9, 3: 6}
    assert floors(db) == {1: (run.lsn, 20, 0, 0, 0)}
    (verdict,) = reports.read_report(conn, run.run_id).verdicts
    assert (verdict.campaign_id, verdict.verdict, verdict.corrected) == (1, "not_comparable", True)
    assert (verdict.before, verdict.after, verdict.delta) == ({"counter": 4}, {"counter": 20}, {"counter": 16})
    assert raised(conn, run.run_id) == Raised((0,)), "it is harmless to repeat"


def test_removed_rows_count_with_keep_and_not_with_follow(db: Database, conn: Connection) -> None:
    watermark(db)
    add_campaign(db, 1, sent_rows=20, sent=4)
    db.execute("INSERT INTO sentstream.progress (campaign_id, partition, queue_sent, removed) VALUES (1, 0, 1, 100)")
    assert raised(conn, count(conn).run_id).raises == (Raise(1, 4, 120),)
    assert raised(conn, count(conn, removed_policy="follow").run_id).raises == (Raise(1, 120, 20),)


def test_it_never_lowers_with_keep(db: Database, conn: Connection) -> None:
    """Rows may have been removed that the stream has not seen go."""
    watermark(db)
    add_campaign(db, 1, sent_rows=3, sent=50)
    assert raised(conn, count(conn).run_id).raises == ()
    assert shown(db) == {1: 50}


@pytest.mark.parametrize("policy", ["keep", "follow"])
def test_a_campaign_that_never_had_a_queue_row_is_never_written(db: Database, conn: Connection, policy: str) -> None:
    watermark(db, based=False)
    add_campaign(db, 1, sent=7)
    assert raised(conn, count(conn, removed_policy=policy).run_id) == Raised((0,))
    assert shown(db) == {1: 7}
    assert floors(db) == {}


def test_with_follow_a_campaign_whose_rows_are_gone_is_set(db: Database, conn: Connection) -> None:
    watermark(db)
    add_campaign(db, 1, sent=7)
    db.execute("INSERT INTO sentstream.progress (campaign_id, partition, queue_sent, sent) VALUES (1, 0, 7, 7)")
    assert raised(conn, count(conn, removed_policy="follow").run_id).raises == (Raise(1, 7, 0),)


def test_a_locked_campaign_holds_up_nobody(db: Database, conn: Connection) -> None:
    watermark(db)
    for campaign in (1, 2, 3):
        add_campaign(db, campaign, sent_rows=2)
    run = count(conn)
    with db.connect(autocommit=False) as mailer:
        mailer.execute("SELECT 1 FROM campaigns WHERE id = 2 FOR UPDATE")
        assert raised(conn, run.run_id) == Raised((0,), (Raise(1, 0, 2), Raise(3, 0, 2)), held=(2,))
    assert raised(conn, run.run_id) == Raised((0,), (Raise(2, 0, 2),))


@pytest.mark.parametrize(
    "check", ["CHECK (id <> 2 OR sent <= 1)", "EXCLUDE (sent WITH =) DEFERRABLE INITIALLY DEFERRED"]
)
def test_a_counter_that_the_mailer_refuses_stops_no_other(db: Database, conn: Connection, check: str) -> None:
    watermark(db)
    for campaign, sent in ((1, 2), (2, 5), (3, 3)):
        add_campaign(db, campaign, sent_rows=sent, sent=-campaign)
    add_campaign(db, 4, sent=5)
    db.execute(f"ALTER TABLE campaigns ADD CONSTRAINT refusing {check}")
    run = count(conn)
    assert raised(conn, run.run_id) == Raised((0,), (Raise(1, -1, 2), Raise(3, -3, 3)), held=(2,))
    assert shown(db) == {1: 2, 2: -2, 3: 3, 4: 5}
    assert set(floors(db)) == {1, 3}
    db.execute("ALTER TABLE campaigns DROP CONSTRAINT refusing")
    assert raised(conn, run.run_id).raises == (Raise(2, -2, 5),)


def test_a_foreign_key_check_by_the_mailer_does_not_hold_it_up(db: Database, conn: Connection) -> None:
    """Queueing locks the campaign FOR KEY SHARE; a campaign that is being queued is raised all the same."""
    watermark(db)
    add_campaign(db, 1, sent_rows=2)
    run = count(conn)
    with db.connect(autocommit=False) as mailer:
        mailer.execute("INSERT INTO email_queue (campaign_id, subscriber_id) VALUES (1, 1)")
        assert raised(conn, run.run_id).raises == (Raise(1, 0, 2),)


def test_only_partitions_that_are_behind(db: Database, conn: Connection) -> None:
    """Campaign ids by Kafka's partitioner: with two partitions 1 and 2 are on one side, 3 on the other (see below)."""
    from stream.core.partitioner import partition_of

    one = next(n for n in range(1, 50) if partition_of(n, 2) == 0)
    other = next(n for n in range(1, 50) if partition_of(n, 2) == 1)
    watermark(db, 0, lsn="FFFFFFFF/0")
    watermark(db, 1)
    for campaign in (one, other):
        add_campaign(db, campaign, sent_rows=2)
    assert raised(conn, count(conn).run_id) == Raised((1,), (Raise(other, 0, 2),))
    assert shown(db)[one] == 0


def test_a_partition_that_has_answered_is_left_alone(db: Database, conn: Connection) -> None:
    watermark(db)
    add_campaign(db, 1, sent_rows=2)
    run = count(conn)
    db.execute(
        "INSERT INTO sentstream.answers (run_id, partition, epoch, conclusive) VALUES (%s, 0, 1, true)", run.run_id
    )
    assert raised(conn, run.run_id) == Raised()


def test_a_run_of_another_epoch_is_left_alone(db: Database, conn: Connection) -> None:
    """Its LSN means nothing in the history that began since: no floor could be compared with it."""
    watermark(db, epoch=1)
    add_campaign(db, 1, sent_rows=2)
    run = count(conn)
    db.execute("UPDATE sentstream.watermarks SET epoch = 2, based = false")
    assert raised(conn, run.run_id) == Raised()
    assert shown(db) == {1: 0}


def test_a_sealed_run_is_left_alone(db: Database, conn: Connection) -> None:
    watermark(db)
    add_campaign(db, 1, sent_rows=2)
    run = count(conn)
    reports.seal_settled(conn, abandon_after=0)
    assert raised(conn, run.run_id) == Raised()
    assert reports.verify(conn).broken is None


def test_an_older_run_does_not_undo_a_newer_one(db: Database, conn: Connection) -> None:
    watermark(db)
    add_campaign(db, 1, sent_rows=2)
    older = count(conn, removed_policy="follow")
    add_rows(db, 1, "sent", 3)
    newer = count(conn, removed_policy="follow")
    assert raised(conn, newer.run_id).raises == (Raise(1, 0, 5),)
    assert raised(conn, older.run_id).raises == ()
    assert floors(db)[1][0] == newer.lsn


def test_it_queues_with_flushes_at_the_watermark(db: Database, conn: Connection) -> None:
    watermark(db)
    add_campaign(db, 1, sent_rows=2)
    run = count(conn)
    result: list[Raised] = []
    with db.connect(autocommit=False) as flush:
        flush.execute("UPDATE sentstream.watermarks SET lsn = 'FFFFFFFF/0', seq = 3")
        raising = threading.Thread(target=lambda: result.append(raised(conn, run.run_id)))
        raising.start()
        eventually(lambda: db.execute("SELECT 1 FROM pg_locks WHERE pid = %s AND NOT granted", conn.info.backend_pid))
        flush.commit()
    raising.join(10)
    assert result == [Raised((0,))], "the partition got there while we waited"
    assert shown(db) == {1: 0}


# ---- with the real stream ----------------------------------------------------------------------------------------


class Watching:
    """Reads ``campaigns.sent`` of campaign 1 over and over."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self.seen: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with self._db.connect() as conn:
            while not self._stop.is_set():
                self.seen.append(conn.execute("SELECT sent FROM campaigns WHERE id = 1").fetchall()[0][0])

    def __enter__(self) -> Watching:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)


def send(db: Database, batches: int) -> None:
    """So many transactions, ten mails each."""
    with db.connect() as mailer:
        for _ in range(batches):
            mailer.execute(
                "UPDATE email_queue SET status = 'sent'"
                " WHERE id IN (SELECT id FROM email_queue WHERE status = 'queued' LIMIT 10)"
            )


def test_a_stream_that_catches_up_never_shows_an_older_number(db: Database, conn: Connection) -> None:
    """It was down: the recount raised, and its verdict stays inconclusive, for the reader's memory begins later. The
    next one verifies."""
    add_campaign(db, 1, queued=500)
    with running(db):
        based(db)
    send(db, 30)
    run = count(conn)
    assert raised(conn, run.run_id).raises == (Raise(1, 0, 300),)
    add_rows(db, 1, "sent", 7)
    with Watching(db) as watching:
        with running(db):
            eventually(lambda: reports.is_settled(conn, run.run_id), 20)
            at_rest(db)
            eventually(lambda: reports.read_runs(conn)[0].tally.verified == 1)
    assert watching.seen == sorted(watching.seen)
    assert (watching.seen[0], watching.seen[-1]) == (300, 307)
    (answer,) = reports.read_report(conn, run.run_id).answers
    assert answer.conclusive is False
    assert "before this reader started" in str(answer.reason)


def test_a_stream_that_was_only_behind_brings_the_real_verdict(db: Database, conn: Connection) -> None:
    """The process is stopped for a while (SIGSTOP): its memory reaches back, so the raised run itself is verified."""
    add_campaign(db, 1, queued=500)
    with running_process(db) as process:
        based(db)
        eventually(lambda: not reports.read_open(conn))
        process.send_signal(signal.SIGSTOP)
        try:
            send(db, 30)
            run = count(conn)
            assert raised(conn, run.run_id).raises == (Raise(1, 0, 300),)
            db.execute("DELETE FROM email_queue WHERE status = 'sent' AND id % 2 = 0")
        finally:
            process.send_signal(signal.SIGCONT)
        with Watching(db) as watching:
            eventually(lambda: reports.read_report(conn, run.run_id).run.sealed, 20)
            at_rest(db)
    assert set(watching.seen) == {300}
    report = reports.read_report(conn, run.run_id)
    assert [v.verdict for v in report.verdicts] == ["not_comparable", "verified"]
    assert (report.run.tally.verified, report.run.tally.not_comparable) == (1, 0)


def test_what_it_wrote_is_ours_and_no_overwritten_counter(db: Database, conn: Connection) -> None:
    add_campaign(db, 1, queued=50)
    with running(db):
        based(db)
    db.execute("UPDATE email_queue SET status = 'sent' WHERE id % 2 = 0")
    assert raised(conn, count(conn).run_id).raises
    db.execute("UPDATE email_queue SET status = 'sent'")
    with running(db, recount_interval=1):
        at_rest(db)
        eventually(lambda: len(reports.read_runs(conn)) >= 4)
    for report in reports.read_reports(conn, range(1, 20)):
        assert not [v for v in report.verdicts if v.verdict == "drift"], report


def test_rows_removed_unseen_do_not_lower_the_counter(db: Database, conn: Connection) -> None:
    add_campaign(db, 1, sent_rows=40)
    with running(db):
        based(db)
        at_rest(db)
    add_rows(db, 1, "sent", 10)
    assert raised(conn, count(conn).run_id).raises == (Raise(1, 40, 50),)
    db.execute("DELETE FROM email_queue WHERE id <= 30")
    assert raised(conn, count(conn).run_id).raises == ()
    with running(db):
        at_rest(db)
        eventually(lambda: db.value("SELECT removed FROM sentstream.progress") == 30)
    assert shown(db) == {1: 50}
    assert truth(db)[1][2] == 20


def test_the_reconciler_raises_when_the_verdict_does_not_come(db: Database, conn: Connection) -> None:
    watermark(db, epoch=1)
    add_campaign(db, 1, sent_rows=20)
    with reconciling(db, recount_patience=0.2) as reconciler:
        run = request_now(reconciler, "test")
        eventually(lambda: shown(db) == {1: 20})
    assert run.trigger == "manual"
    (verdict,) = reports.read_report(conn, run.run_id).verdicts
    assert verdict.verdict == "not_comparable"


def test_requests_that_come_faster_than_the_patience_do_not_put_off_the_raise(db: Database, conn: Connection) -> None:
    """The wait belongs to the oldest run without an answer: a newer run does not start it anew."""
    watermark(db, epoch=1)
    add_campaign(db, 1, sent_rows=20)
    with reconciling(db, recount_patience=2.0) as reconciler:

        def raised_while_asked() -> bool:
            request_now(reconciler, "test")
            return shown(db) == {1: 20}

        eventually(raised_while_asked, 15, every=0.5)


@contextmanager
def long_statement(db: Database) -> Iterator[None]:
    """A transaction that has written to the queue, and whose statement goes on: nothing tells that it is not about to
    commit, so no run of a reader that begins now can be concluded before it ends."""
    with psycopg.connect(db.url) as busy:
        begun = threading.Event()

        def work() -> None:
            busy.execute("UPDATE email_queue SET status = status WHERE id = (SELECT min(id) FROM email_queue)")
            begun.set()
            with suppress(psycopg.errors.QueryCanceled):
                busy.execute("SELECT pg_sleep(600)")

        thread = threading.Thread(target=work)
        thread.start()
        try:
            assert begun.wait(10)
            eventually(
                lambda: db.execute(
                    "SELECT 1 FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)'"
                    " AND state = 'active' AND datname = current_database()"
                ),
                10,
            )
            yield
        finally:
            busy.cancel()
            thread.join(20)


def test_a_run_that_can_not_be_concluded_raises_where_nothing_is_based(db: Database, conn: Connection) -> None:
    add_campaign(db, 1, sent_rows=250)
    with running(db):
        with long_statement(db):
            db.execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active")
            db.execute("UPDATE sentstream.watermarks SET based = false")
            add_rows(db, 1, "sent", 10)
            eventually(lambda: shown(db) == {1: 260}, 30)
        based(db)
        at_rest(db)
    assert not [run for run in reports.read_runs(conn) if run.tally.drift]


def test_run_once_raises_what_it_can_not_conclude(db: Database, conn: Connection) -> None:
    add_campaign(db, 1, sent_rows=25)
    with running(db):
        based(db)
    db.execute("UPDATE sentstream.watermarks SET based = false")
    add_rows(db, 1, "sent", 5)
    with long_statement(db):
        assert embedded.run(settings_for(db), once=True) == 1
    assert shown(db) == {1: 30}


def test_in_shadow_mode_nothing_is_raised(db: Database, conn: Connection) -> None:
    watermark(db, epoch=1)
    add_campaign(db, 1, sent_rows=20)
    with reconciling(db, recount_patience=0.1, write_back=False) as reconciler:
        first = request_now(reconciler, "test")
        eventually(lambda: len(reports.read_runs(conn)) >= 2, 15)
        eventually(lambda: reports.read_open(conn)[0].age > 1)
    assert shown(db) == {1: 0}
    assert reports.read_report(conn, first.run_id).verdicts == ()
