"""The reconciler beside the running stream, on a real server: first contact, triggers, injected faults, the pause."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from connectors.postgres.connect import Connection
from connectors.postgres.store import reports
from stream.core.batch import Batch
from stream.core.entries import Move
from stream.core.partition import Outcome
from stream.core.report import Report, Ruled
from stream.core.status import QUEUED, SENDING, SENT
from stream.reconcile.reconciler import Reconciler
from stream.reconcile.runs import recount_once
from stream.reconcile.webhook import Notifier
from tests.fix_postgres import Database
from tests.postgres.running import (
    Stream,
    add_campaign,
    add_rows,
    at_rest,
    based,
    count,
    prepared,
    reconciling,
    request_now,
    running,
    settings_for,
    shown,
    streaming,
    truth,
)
from tests.waiting import eventually


def sealed(conn: Connection, run_id: int) -> Report:
    """The report of a run, once it is sealed."""
    eventually(lambda: reports.read_report(conn, run_id).run.sealed, 20)
    return reports.read_report(conn, run_id)


def newest(conn: Connection, trigger: str) -> Report:
    """The newest sealed run of that trigger, which the test waits for."""
    runs = eventually(lambda: [r for r in reports.read_runs(conn) if r.sealed and trigger in (r.trigger, *r.also)], 20)
    return reports.read_report(conn, runs[0].run_id)


def quiet(conn: Connection) -> None:
    """No run is open, and the last one found everything verified."""

    def probe() -> bool:
        runs = reports.read_runs(conn, limit=1)
        return bool(runs) and runs[0].sealed and not runs[0].tally.inconclusive

    eventually(probe, 20)


# ---- first contact -----------------------------------------------------------------------------------------------


def test_the_case_that_started_all_this(db: Database, conn: Connection) -> None:
    """sent=0, 20,323 rows sent, 20,318 tracked, 1,282 delivered: right at first contact, the report tells it all."""
    add_campaign(db, 64, sent_rows=20_323, failed=12, status="finished")
    db.execute(
        "INSERT INTO azure_message_tracking (azure_message_id, campaign_id, subscriber_id)"
        " SELECT gen_random_uuid(), 64, 1 FROM generate_series(1, 20318)"
    )
    db.execute(
        "INSERT INTO azure_delivery_events (azure_message_id, campaign_id, status)"
        " SELECT azure_message_id, 64, 'Delivered' FROM azure_message_tracking LIMIT 1282"
    )
    with running(db):
        eventually(lambda: shown(db) == {64: 20_323})
        report = newest(conn, "start")
    (verdict,) = report.verdicts
    assert (verdict.campaign_id, verdict.verdict, verdict.corrected) == (64, "baseline", True)
    assert verdict.before == {"counter": 0}
    assert verdict.after is not None
    assert verdict.after["sent"] == verdict.after["counter"] == 20_323
    assert verdict.delta is not None
    assert verdict.delta["counter"] == 20_323
    assert list(report.run.observations) == [
        {"campaign_id": 64, "kind": "tracked", "expected": 20_323, "actual": 20_318},
        {"campaign_id": 64, "kind": "delivered", "expected": 20_323, "actual": 1_282},
    ]
    assert report.run.tally.as_json() == {
        "verified": 0, "drift": 0, "inconclusive": 0, "not_comparable": 0, "baseline": 1,
    }  # fmt: skip
    assert reports.verify(conn).broken is None


def test_observations_are_told_once_and_never_written(
    db: Database, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream.reconcile.reconciler.OBSERVE_LEAST", 0.0)
    add_campaign(db, 1, sent_rows=5)
    add_campaign(db, 2, sent=9)
    db.execute(
        "INSERT INTO azure_message_tracking (azure_message_id, campaign_id, subscriber_id)"
        " SELECT gen_random_uuid(), 1 + n % 2, 1 FROM generate_series(1, 6) n"
    )
    with running(db) as reconciler:
        based(db)
        first = newest(conn, "start")
        again = sealed(conn, request_now(reconciler, "test").run_id)
        db.execute("DELETE FROM azure_message_tracking WHERE campaign_id = 2")
        changed = sealed(conn, request_now(reconciler, "test").run_id)
    assert [(o["campaign_id"], o["kind"], o["expected"], o["actual"]) for o in first.run.observations] == [
        (1, "tracked", 5, 3),
        (2, "unqueued_tracked", 9, 3),
    ]
    assert again.run.observations == ()
    assert [(o["kind"], o["actual"]) for o in changed.run.observations] == [("unqueued_tracked", 0)]
    assert shown(db) == {1: 5, 2: 9}


# ---- triggers ----------------------------------------------------------------------------------------------------


def test_it_counts_at_start_and_by_the_interval(db: Database, conn: Connection) -> None:
    add_campaign(db, 1, queued=3)
    with running(db, recount_interval=1):
        report = newest(conn, "interval")
    assert report.run.tally.verified == 1
    assert newest(conn, "start").run.run_id < report.run.run_id


@pytest.mark.parametrize(
    ("before", "after", "trigger"),
    [
        ("running", "paused", "paused"),
        ("running", "finished", "finished"),
        ("running", "cancelled", "cancelled"),
        ("paused", "running", "resumed"),
    ],
)
def test_what_the_log_shows_of_a_campaign_is_counted(
    db: Database, conn: Connection, before: str, after: str, trigger: str
) -> None:
    add_campaign(db, 1, sent_rows=3, status=before)
    with running(db):
        based(db)
        quiet(conn)
        db.execute(f"UPDATE campaigns SET status = '{after}'")
        assert newest(conn, trigger).run.tally.verified == 1


def test_with_the_stream_elsewhere_it_looks_at_the_statuses_itself(
    db: Database, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the Kafka shape."""
    monkeypatch.setattr("stream.reconcile.reconciler.STATUS_POLL", 0.2)
    add_campaign(db, 1, sent_rows=3)
    with streaming(db), reconciling(db, follow_log=False):
        based(db)
        quiet(conn)
        db.execute("UPDATE campaigns SET status = 'paused'")
        assert newest(conn, "paused").run.tally.verified == 1


def test_a_paused_campaign_that_drains_is_counted_until_it_has(
    db: Database, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream.core.schedule.DRAIN_FIRST", 0.5)
    monkeypatch.setattr("stream.reconcile.reconciler.STATUS_POLL", 0.1)
    add_campaign(db, 1, sending=4, queued=3)
    with running(db):
        based(db)
        db.execute("UPDATE campaigns SET status = 'paused'")
        newest(conn, "drain")
        db.execute("UPDATE email_queue SET status = 'sent' WHERE status = 'sending'")
        last = reports.read_runs(conn)[0].run_id
        eventually(lambda: reports.read_runs(conn)[0].run_id > last and reports.read_runs(conn)[0].sealed)
        final = reports.read_runs(conn)[0]
    assert reports.read_counts(conn, final.run_id)[1] == (3, 0, 4, 0, 0, 4)
    assert shown(db) == {1: 4}


def test_a_slot_that_was_lost_ends_in_a_new_baseline_and_a_report(db: Database, conn: Connection) -> None:
    add_campaign(db, 1, sent_rows=30, queued=5)
    with running(db):
        based(db)
        at_rest(db)
    db.execute("SELECT pg_drop_replication_slot(%s)", db.slot)
    db.execute("UPDATE email_queue SET status = 'sent' WHERE status = 'queued'")
    prepared(db)
    last = reports.read_runs(conn)[0].run_id
    with running(db):
        eventually(lambda: shown(db) == {1: 35}, 15)
        report = baseline_after(conn, last)
    (verdict,) = report.verdicts
    assert (verdict.verdict, verdict.cause) == ("baseline", "gap")
    assert verdict.before is not None
    assert (verdict.before["sent"], verdict.before["queued"]) == (30, 5)


def baseline_after(conn: Connection, run_id: int) -> Report:
    """The first sealed run after that one that met campaigns anew."""

    def found() -> list[int]:
        runs = reports.read_runs(conn, limit=1000)
        return [run.run_id for run in runs if run.run_id > run_id and run.sealed and run.tally.baseline]

    return reports.read_report(conn, min(eventually(found, 20)))


def test_a_temporary_slot_begins_with_a_new_baseline_every_time(db: Database, conn: Connection) -> None:
    db.execute("SELECT pg_drop_replication_slot(%s)", db.slot)
    add_campaign(db, 1, sent_rows=3, queued=5)
    last = 0
    for expected in (3, 8):
        with running(db, slot_kind="temporary"):
            wanted = {1: expected}
            eventually(partial(lambda w: shown(db) == w, wanted), 15)
            report = baseline_after(conn, last)
            last = report.run.run_id
        db.execute("UPDATE email_queue SET status = 'sent'")
    assert [(v.verdict, v.cause) for v in report.verdicts] == [("baseline", "gap")]
    assert not db.execute("SELECT 1 FROM pg_replication_slots WHERE slot_name = %s", db.slot)


def test_a_database_that_came_back_from_elsewhere_begins_a_new_epoch(db: Database, conn: Connection) -> None:
    add_campaign(db, 1, sent_rows=3)
    with running(db):
        based(db)
        at_rest(db)
    db.execute("UPDATE sentstream.watermarks SET system_identifier = 'another server'")
    last = reports.read_runs(conn)[0]
    with running(db):
        report = baseline_after(conn, last.run_id)
    # (the run itself may have been counted just before the reader had begun the new epoch)
    epochs = db.execute("SELECT DISTINCT epoch FROM sentstream.watermarks")
    assert [epoch > last.epoch for (epoch,) in epochs] == [True]
    assert [(v.verdict, v.cause) for v in report.verdicts] == [("baseline", "new_epoch")]
    assert reports.verify(conn).broken is None


def test_a_fault_of_ours_does_not_end_it(
    db: Database, conn: Connection, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = [ZeroDivisionError("by a test")]

    def fails_once(*words: Any) -> Any:
        if broken:
            raise broken.pop()
        return real(*words)

    real = reports.oldest_open
    monkeypatch.setattr("connectors.postgres.store.reports.oldest_open", fails_once)
    with running(db):
        newest(conn, "start")
    assert "the reconciler tries again: by a test" in caplog.text


def test_a_rebase_travels_through_the_stream(db: Database, conn: Connection) -> None:
    for campaign in (1, 2):
        add_campaign(db, campaign, sent_rows=10, sent=40)
    with running(db) as reconciler:
        based(db)
        eventually(lambda: dict(db.execute("SELECT campaign_id, removed FROM sentstream.progress")) == {1: 30, 2: 30})
        sealed(conn, request_now(reconciler, "test", rebase=[2]).run_id)
        at_rest(db)
        eventually(lambda: shown(db) == {1: 40, 2: 10})
        sealed(conn, request_now(reconciler, "test", rebase="all").run_id)
        eventually(lambda: shown(db) == {1: 10, 2: 10})


def test_run_once_counts_waits_and_seals(db: Database, conn: Connection) -> None:
    add_campaign(db, 1, sent_rows=4)
    stop = threading.Event()
    with streaming(db):
        eventually(lambda: db.execute("SELECT 1 FROM sentstream.watermarks"))
        assert recount_once(settings_for(db), stop) == 0
        assert shown(db) == {1: 4}
        db.execute("UPDATE sentstream.progress SET queue_sent = 9")
        assert recount_once(settings_for(db), stop) == 1
    assert all(run.sealed for run in reports.read_runs(conn))
    stop.set()
    assert recount_once(settings_for(db), stop) == 130


def test_each_run_is_one_line_in_the_log(db: Database, conn: Connection, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sentstream")
    add_campaign(db, 1, sent_rows=4)
    with running(db) as reconciler:
        based(db)
        report = sealed(conn, request_now(reconciler, "test").run_id)
    lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith("recount trigger=manual")]
    assert len(lines) == 1
    assert lines[0].startswith("recount trigger=manual campaigns=1 verified=1 drift=0 ")
    assert f"digest={report.run.digest}" in lines[0]
    assert " ms=" in lines[0]


class Told(Notifier):
    """Keeps news instead of posting it."""

    def __init__(self) -> None:
        super().__init__(lambda: "http://127.0.0.1:1/")
        self.news: list[tuple[str, Any]] = []

    def notify(self, event: str, words: Any) -> None:
        self.news.append((event, words))


def test_drift_is_told(db: Database, conn: Connection) -> None:
    add_campaign(db, 1, sent_rows=4)
    with running(db) as reconciler:
        told = reconciler._notifier = Told()
        based(db)
        quiet(conn)
        db.execute("UPDATE sentstream.progress SET queue_sent = 1")
        run = sealed(conn, request_now(reconciler, "test").run_id).run
        eventually(lambda: told.news)
    ((event, words),) = told.news
    assert event == "drift"
    assert (words["run"]["run_id"], words["run"]["digest"]) == (run.run_id, run.digest)
    assert [(d["campaign_id"], d["cause"]) for d in words["drifts"]] == [(1, "lost_state")]


def test_a_stall_and_its_end_are_told_once(db: Database, conn: Connection) -> None:
    clock = Clock(CLOSING + timedelta(hours=3))
    settings = settings_for(db)
    reconciler = Reconciler(lambda: settings, wall=clock.wall, seconds=clock.seconds)
    told = reconciler._notifier = Told()
    db.execute(
        "INSERT INTO sentstream.watermarks (partition, epoch, lsn, based, as_of, system_identifier, timeline)"
        " VALUES (0, 1, '0/1', true, clock_timestamp() - interval '1 hour', 'x', 1)"
    )
    reconciler.poll(conn)
    assert told.news == [], "a stream that is just starting is not stalled"
    for _ in range(5):
        clock.advance(20)
        reconciler.poll(conn)
    assert [event for event, _ in told.news] == ["stall"]
    assert told.news[0][1]["age_seconds"] >= 3600
    db.execute("UPDATE sentstream.watermarks SET as_of = clock_timestamp()")
    reconciler.poll(conn)
    reconciler.poll(conn)
    assert [event for event, _ in told.news] == ["stall", "recovery"]


def test_retention_is_at_work(db: Database, conn: Connection) -> None:
    add_campaign(db, 1, sent_rows=4)
    with running(db):
        based(db)
        quiet(conn)
    with reconciling(db, report_retention=0.001, history_retention=60):
        eventually(lambda: not db.execute("SELECT 1 FROM sentstream.recounts WHERE pruned_at IS NULL AND run_id = 1"))
    assert reports.verify(conn).broken is None


def test_a_lost_connection_is_opened_again(db: Database, conn: Connection) -> None:
    with running(db):
        based(db)
        quiet(conn)
        db.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'sentstream reconciler'"
        )
        db.execute("INSERT INTO campaigns (id, name, status) VALUES (1, 'x', 'running')")
        db.execute("UPDATE campaigns SET status = 'finished'")
        newest(conn, "finished")


def test_two_reconcilers_do_not_disturb_each_other(db: Database, conn: Connection) -> None:
    add_campaign(db, 1, sent_rows=4)
    with running(db, recount_interval=1), reconciling(db, follow_log=False, recount_interval=1):
        based(db)
        eventually(lambda: sum(run.sealed for run in reports.read_runs(conn)) >= 5, 20)
    checked = reports.verify(conn)
    assert checked.broken is None
    assert not [run for run in reports.read_runs(conn) if run.tally.drift]


# ---- all injected drift is found -----------------------------------------------------------------------------------


class Faulty:
    """The stream of a test, to be tampered with from inside."""

    def __init__(self, db: Database, conn: Connection, stream: Stream) -> None:
        self.db, self.conn, self._stream = db, conn, stream

    @property
    def partition(self) -> Any:
        session = self._stream.embedded.session
        assert session is not None
        return session._partition

    @contextmanager
    def meddling(self, with_moves: Callable[[tuple[Any, ...]], list[tuple[Any, ...]]]) -> Iterator[None]:
        """Each entry of a batch that is a move goes through ``with_moves``."""
        partition, apply = self.partition, self.partition.apply

        def meddle(batch: Batch) -> Outcome:
            entries: list[Any] = []
            for placed in batch.entries:
                entries += with_moves(placed) if isinstance(placed[2], Move) else [placed]
            outcome: Outcome = apply(replace(batch, entries=tuple(entries)))
            return outcome

        partition.apply = meddle
        try:
            yield
        finally:
            partition.apply = apply

    def caught_up(self) -> None:
        """The stream has applied all that is committed now."""
        end = self.db.value("SELECT pg_current_wal_insert_lsn()")
        eventually(lambda: self.db.execute("SELECT 1 FROM sentstream.watermarks WHERE lsn >= %s::pg_lsn", end), 15)

    def found(self) -> dict[int, Ruled]:
        """The drifts that the next run finds, by campaign; it corrects them."""
        run = count(self.conn)
        report = sealed(self.conn, run.run_id)
        at_rest(self.db)
        clean = sealed(self.conn, count(self.conn).run_id)
        assert clean.run.tally.drift == 0, "the run after it finds all verified"
        assert clean.run.tally.verified == len(truth(self.db))
        drifts = [v for v in report.verdicts if v.verdict == "drift"]
        assert report.run.tally.drift == len({v.campaign_id for v in drifts})
        assert all(v.corrected for v in drifts)
        return {v.campaign_id: v for v in drifts}


@pytest.fixture
def faulty(db: Database, conn: Connection) -> Iterator[Faulty]:
    for campaign in (1, 2, 3):
        add_campaign(db, campaign, queued=20, sending=5, sent_rows=10, failed=2)
    with reconciling(db) as reconciler, streaming(db, reconciler) as stream:
        based(db)
        quiet(conn)
        faulty = Faulty(db, conn, stream)
        yield faulty
    counts = "queue_queued, queue_sending, queue_sent, queue_failed, queue_cancelled"
    progress = {c: tuple(n) for c, *n in db.execute(f"SELECT campaign_id, {counts} FROM sentstream.progress")}
    assert progress == truth(db), "nothing else was touched"
    sums = {c: int(n) for c, n in db.execute("SELECT campaign_id, sum(sent) FROM sentstream.history GROUP BY 1")}
    assert sums == shown(db), "and the history still adds up"


def send(db: Database, campaign: int, n: int) -> None:
    """``n`` mails of the campaign go out, from queued by way of sending."""
    for old, new in (("queued", "sending"), ("sending", "sent")):
        db.execute(
            "UPDATE email_queue SET status = %s WHERE id IN"
            " (SELECT id FROM email_queue WHERE campaign_id = %s AND status = %s ORDER BY id DESC LIMIT %s)",
            new,
            campaign,
            old,
            n,
        )


def test_counts_changed_in_memory_are_found(faulty: Faulty) -> None:
    faulty.partition._campaigns[2].places[SENT] += 7
    drift = faulty.found()
    assert {c: v.cause for c, v in drift.items()} == {2: "lost_state"}
    assert drift[2].delta == {"sent": -7}


def test_counts_changed_in_the_store_are_found(faulty: Faulty) -> None:
    faulty.db.execute("UPDATE sentstream.progress SET queue_failed = 0, removed = 3 WHERE campaign_id = 1")
    assert {c: v.cause for c, v in faulty.found().items()} == {1: "lost_state"}
    assert faulty.db.value("SELECT removed FROM sentstream.progress WHERE campaign_id = 1") == 0


def test_a_row_taken_out_of_the_store_is_found(faulty: Faulty) -> None:
    faulty.db.execute("DELETE FROM sentstream.progress WHERE campaign_id = 3")
    assert {c: v.cause for c, v in faulty.found().items()} == {3: "lost_state"}


def test_a_counter_that_somebody_wrote_is_put_right_at_once_and_told(faulty: Faulty) -> None:
    faulty.db.execute("UPDATE campaigns SET sent = 0 WHERE id = 2")
    eventually(lambda: shown(faulty.db)[2] == 10, 2)
    drift = faulty.found()
    assert {c: v.cause for c, v in drift.items()} == {2: "counter_overwritten"}
    assert (drift[2].before, drift[2].after) == ({"counter": 0}, {"counter": 10})


def test_a_dropped_entry_is_found(faulty: Faulty) -> None:
    """A change to `sending` is lost on the way; the campaign goes on."""
    dropped: list[Any] = []

    def drop_one(placed: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        if not dropped and placed[2].campaign == 1 and placed[2].target == SENT:
            dropped.append(placed)
            return []
        return [placed]

    with faulty.meddling(drop_one):
        for n in (3, 2, 1):
            send(faulty.db, 1, n)
            send(faulty.db, 2, n)
        faulty.caught_up()
    assert dropped
    drift = faulty.found()
    assert {c: v.cause for c, v in drift.items()} == {1: "missed_change"}
    assert drift[1].delta == {"sending": -dropped[0][2].n, "sent": dropped[0][2].n}


def test_an_entry_applied_twice_is_found(faulty: Faulty) -> None:
    doubled: list[Any] = []

    def double_one(placed: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        if not doubled and placed[2].campaign == 3 and (placed[2].source, placed[2].target) == (QUEUED, SENDING):
            doubled.append(placed)
            return [placed, placed]
        return [placed]

    with faulty.meddling(double_one):
        send(faulty.db, 3, 4)
        send(faulty.db, 1, 4)
        faulty.caught_up()
    assert doubled
    drift = faulty.found()
    assert {c: v.cause for c, v in drift.items()} == {3: "duplicate_change"}


def test_the_last_entry_of_a_campaign_that_then_stays_idle_is_found(faulty: Faulty) -> None:
    with faulty.meddling(lambda placed: [] if placed[2].campaign == 2 else [placed]):
        faulty.db.execute("UPDATE email_queue SET status = 'cancelled' WHERE campaign_id = 2 AND status = 'queued'")
        send(faulty.db, 1, 5)
        faulty.caught_up()
    drift = faulty.found()
    assert {c: v.cause for c, v in drift.items()} == {2: "missed_change"}
    assert drift[2].delta == {"queued": -20, "cancelled": 20}


def test_several_faults_at_once_are_all_found(faulty: Faulty) -> None:
    with faulty.meddling(lambda placed: [] if placed[2].campaign == 1 else [placed]):
        send(faulty.db, 1, 2)
        faulty.caught_up()
    faulty.partition._campaigns[2].places[QUEUED] -= 1
    faulty.db.execute("UPDATE sentstream.progress SET queue_sent = 0 WHERE campaign_id = 3")
    assert {c: v.cause for c, v in faulty.found().items()} == {1: "missed_change", 2: "lost_state", 3: "lost_state"}


def test_rows_deleted_while_the_slot_was_gone_become_removed_by_estimate(db: Database, conn: Connection) -> None:
    add_campaign(db, 1, sent_rows=30)
    add_campaign(db, 2, sent_rows=5)
    with running(db):
        based(db)
        at_rest(db)
    db.execute("SELECT pg_drop_replication_slot(%s)", db.slot)
    db.execute("DELETE FROM email_queue WHERE campaign_id = 1 AND id <= 12")
    prepared(db)
    last = reports.read_runs(conn)[0].run_id
    with running(db):
        report = baseline_after(conn, last)
        at_rest(db)
    found = {v.campaign_id: v for v in report.verdicts}
    assert (found[1].cause, found[1].estimated) == ("rows_vanished_unwatched", True)
    assert found[1].after is not None
    assert (found[1].after["sent"], found[1].after["removed"]) == (18, 12)
    assert (found[2].cause, found[2].estimated) == ("gap", False)
    assert shown(db) == {1: 30, 2: 5}, "no counter falls"


# ---- the pause -----------------------------------------------------------------------------------------------------


class Clock:
    """The time of a test: a wall clock, and seconds that go with it."""

    def __init__(self, now: datetime) -> None:
        self.now = now
        self._start = now

    def wall(self) -> datetime:
        return self.now

    def seconds(self) -> float:
        return (self.now - self._start).total_seconds()

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


#: the window closes at 17:01:00 in Berlin, which is 16:01:00 UTC in November
CLOSING = datetime(2026, 11, 24, 16, 1, tzinfo=timezone.utc)


def open_until_five(db: Database) -> None:
    db.execute(
        """UPDATE settings SET value = CASE key WHEN 'app.send_time_start' THEN '"08:00"'::jsonb
           WHEN 'app.send_time_end' THEN '"17:00"' WHEN 'app.timezone' THEN '"Europe/Berlin"' ELSE value END"""
    )


def test_the_pause_with_the_stream_at_work(db: Database, conn: Connection) -> None:
    """The last sends before the pause, those during the drain, and the resume: right at each of these moments."""
    open_until_five(db)
    add_campaign(db, 1, queued=50)
    clock, settings = Clock(CLOSING - timedelta(seconds=600)), settings_for(db)
    reconciler = Reconciler(lambda: settings, wall=clock.wall, seconds=clock.seconds)

    def until(probe: Callable[[], Any]) -> None:
        """Let real time go by, and the test's time slowly, until the stream is there."""

        def turn() -> Any:
            clock.advance(0.02)
            reconciler.poll(conn)
            return probe()

        eventually(turn, 20)

    with streaming(db, reconciler):
        until(lambda: is_based(db) and not reports.read_open(conn))
        clock.now = CLOSING - timedelta(seconds=10)
        for second in range(-10, 90):
            clock.now = max(clock.now, CLOSING + timedelta(seconds=second))
            if second < 20 and second % 2 == 0:
                send(db, 1, 1)
            if second == 20:  # the mailer's ticker: the campaign is paused, the running batch goes on
                at_rest(db)
                assert shown(db) == {1: truth(db)[1][SENT]}
                db.execute("UPDATE email_queue SET status = 'sending' WHERE id <= 6 AND status = 'queued'")
                db.execute("UPDATE campaigns SET status = 'paused', auto_paused = true")
                until(lambda: "paused" in triggers(conn))
            if 20 < second <= 50 and second % 5 == 0:
                db.execute(
                    "UPDATE email_queue SET status = 'sent'"
                    " WHERE id = (SELECT min(id) FROM email_queue WHERE status = 'sending')"
                )
            if second == 70:
                at_rest(db)
            reconciler.poll(conn)
        until(lambda: not reports.read_open(conn))
        db.execute("UPDATE campaigns SET status = 'running', auto_paused = false")
        send(db, 1, 3)
        until(lambda: "resumed" in triggers(conn) and not reports.read_open(conn))
        at_rest(db)
    assert triggers(conn).count("before_pause") == 1, "with the stream at work once is enough"
    assert {"before_pause", "paused", "drain", "resumed"} <= set(triggers(conn))
    assert not [run for run in reports.read_runs(conn, limit=200) if run.tally.drift or run.tally.not_comparable]
    assert shown(db) == {1: truth(db)[1][SENT]}
    assert truth(db)[1][SENDING] == 0


def triggers(conn: Connection) -> list[str]:
    """Of all runs, what they were for."""
    return [trigger for run in reports.read_runs(conn, limit=200) for trigger in (run.trigger, *run.also)]


def is_based(db: Database) -> bool:
    return bool(db.execute("SELECT 1 FROM sentstream.watermarks HAVING bool_and(based)"))


def test_the_pause_with_the_stream_stopped(db: Database, conn: Connection) -> None:
    """At every moment at which the mailer may pause, the counter is what was true at most 15 seconds before."""
    open_until_five(db)
    add_campaign(db, 1, queued=300)
    add_campaign(db, 2, queued=300)
    with running(db):
        based(db)
        quiet(conn)
    db.execute("UPDATE sentstream.watermarks SET as_of = as_of - interval '1 minute'")
    clock = Clock(CLOSING - timedelta(seconds=20))
    settings = settings_for(db)
    reconciler = Reconciler(lambda: settings, wall=clock.wall, seconds=clock.seconds)
    sent_by: dict[float, dict[int, int]] = {}
    counted_at: dict[int, int] = {}
    for second in range(-20, 80):
        clock.now = CLOSING + timedelta(seconds=second)
        send(db, 1 + second % 2, 1)
        reconciler.poll(conn)
        for run in reports.read_runs(conn, limit=100):
            if run.trigger == "before_pause":
                counted_at.setdefault(run.run_id, second)
        sent_by[second] = {campaign: counts[SENT] for campaign, counts in truth(db).items()}
        if 0 <= second <= 75:
            for campaign, number in shown(db).items():
                assert sent_by[second - 15][campaign] <= number <= sent_by[second][campaign], second
    runs = [run for run in reports.read_runs(conn, limit=100) if run.trigger == "before_pause"]
    assert 7 <= len(runs) <= 14
    times = sorted(counted_at.values())
    assert max(later - earlier for earlier, later in pairwise(times)) <= 8, "twice between two repetitions"
    with running(db):
        at_rest(db)
        eventually(lambda: not reports.read_open(conn), 20)
    assert shown(db) == {campaign: counts[SENT] for campaign, counts in truth(db).items()}
    assert not [run for run in reports.read_runs(conn, limit=100) if run.tally.drift]


def test_settings_that_make_no_window_are_said_once_and_count_goes_on(
    db: Database, conn: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    db.execute("""UPDATE settings SET value = '"noon"' WHERE key = 'app.send_time_end'""")
    with running(db, recount_interval=1):
        based(db)
        newest(conn, "interval")
    assert len([r for r in caplog.records if "app.send_time_end" in r.getMessage()]) == 1


def test_rows_added_while_it_counts_are_no_drift(db: Database, conn: Connection) -> None:
    """A long transaction stays open across several recounts: none of them sees it, all of them verify."""
    add_campaign(db, 1, queued=10)
    with running(db) as reconciler:
        based(db)
        quiet(conn)
        with db.connect(autocommit=False) as mailer:
            mailer.execute("UPDATE email_queue SET status = 'sent'")
            for _ in range(3):
                assert sealed(conn, request_now(reconciler, "test").run_id).run.tally.verified == 1
            mailer.commit()
        add_rows(db, 1, "sent", 1)
        assert sealed(conn, request_now(reconciler, "test").run_id).run.tally.verified == 1
        at_rest(db)
    assert shown(db) == {1: 11}
