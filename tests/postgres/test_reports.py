"""Runs on a real server: when they are settled, how they are sealed, a chain that shows every tampering, retention."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from connectors.postgres.connect import Connection
from connectors.postgres.store import reports
from connectors.postgres.store.partitions import Store
from stream.cli.recount import verdict_line
from stream.core.digest import GENESIS, canonical, digest
from stream.core.flushing import Answer, Flush
from stream.core.position import Position, parse_lsn
from stream.core.report import Report, Ruled, Run
from stream.core.verdict import Verdict
from stream.reconcile.runs import completed, conclude
from tests.fix_postgres import Database
from tests.postgres.running import add_campaign, count, prepared, settings_for
from tests.waiting import eventually


@pytest.fixture
def db(mailer_db: Database) -> Database:
    prepared(mailer_db)
    add_campaign(mailer_db, 1, sent_rows=3)
    add_campaign(mailer_db, 2)
    partitions(mailer_db, 1)
    return mailer_db


@pytest.fixture
def conn(db: Database) -> Iterator[Connection]:
    with db.connect() as connection:
        yield connection


def partitions(db: Database, number: int, epoch: int = 1) -> None:
    """That many watermarks, of a new epoch."""
    db.execute("DELETE FROM sentstream.watermarks")
    for partition in range(number):
        db.execute(
            "INSERT INTO sentstream.watermarks (partition, epoch, lsn, based, system_identifier, timeline)"
            " VALUES (%s, %s, '0/1', true, 'x', 1)",
            partition,
            epoch,
        )


def answer(db: Database, run: Run, partition: int = 0, epoch: int = 1, conclusive: bool = True, **tally: int) -> None:
    given = {"verified": 0, "drift": 0, "inconclusive": 0, "baseline": 0, **tally}
    db.execute(
        "INSERT INTO sentstream.answers (run_id, partition, epoch, conclusive, reason, verified, drift, inconclusive,"
        " baseline) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
        run.run_id,
        partition,
        epoch,
        conclusive,
        None if conclusive else "transaction 7 was open",
        *given.values(),
    )


def drift(db: Database, run: Run, campaign: int = 1) -> None:
    db.execute(
        "INSERT INTO sentstream.verdicts (run_id, campaign_id, verdict, cause, corrected, before, after, delta)"
        " VALUES (%s, %s, 'drift', 'missed_change', true,"
        """ '{"sent": 2, "queued": 1}', '{"sent": 3}', '{"sent": 1}')""",
        run.run_id,
        campaign,
    )


def sealed_runs(db: Database, conn: Connection, number: int) -> list[Report]:
    """A chain of that many runs; the second found a drift."""
    found = []
    for n in range(number):
        run = count(conn)
        if n == 1:
            drift(db, run)
        answer(db, run, verified=1)
        found += reports.seal_settled(
            conn, observe=lambda _: [{"campaign_id": 1, "kind": "tracked", "expected": 3, "actual": 2}]
        )
    assert len(found) == number
    return found


# ---- settled -----------------------------------------------------------------------------------------------------


def test_a_run_is_settled_when_every_partition_has_answered(db: Database, conn: Connection) -> None:
    partitions(db, 2)
    run = count(conn)
    answer(db, run, 0)
    assert not reports.is_settled(conn, run.run_id)
    (standing,) = reports.read_open(conn)
    assert (standing.settled, standing.missing, standing.unanswered) == (False, (1,), (1,))
    answer(db, run, 1)
    assert reports.is_settled(conn, run.run_id)


def test_a_run_that_was_passed_over_is_settled_by_the_next(db: Database, conn: Connection) -> None:
    """Its entry was lost, or its epoch ended: entries come in order, so nobody will answer it any more."""
    lost, after = count(conn), count(conn)
    assert not reports.is_settled(conn, lost.run_id)
    answer(db, after, verified=1)
    assert reports.is_settled(conn, lost.run_id)
    first, second = reports.seal_settled(conn)
    assert (first.run.run_id, first.run.tally.not_comparable) == (lost.run_id, 1)
    assert first.run.not_covered[0]["what"] == "partition 0"
    assert (second.run.run_id, second.run.tally.verified) == (after.run_id, 1)


def test_answers_of_an_epoch_that_has_ended_are_not_enough(db: Database, conn: Connection) -> None:
    """With another number of partitions, partition 0 of then is not partition 0 of now."""
    run = count(conn)
    answer(db, run, 0)
    partitions(db, 2, epoch=2)
    assert not reports.is_settled(conn, run.run_id)
    later = count(conn)
    answer(db, later, 0, epoch=2)
    assert not reports.is_settled(conn, run.run_id)
    answer(db, later, 1, epoch=2)
    assert reports.is_settled(conn, run.run_id)


def test_whoever_seals_logs_each_run_once(db: Database, conn: Connection, caplog: pytest.LogCaptureFixture) -> None:
    """The one that was asked for, and those that had to be sealed before it."""
    caplog.set_level(logging.INFO, "sentstream")
    lost, asked = count(conn), count(conn)
    answer(db, asked, verified=1)
    report = conclude(conn, settings_for(db), asked.run_id, threading.Event(), 5.0)
    assert report is not None
    assert report.run.sealed
    lines = [record.getMessage() for record in caplog.records]
    logged = [line.partition(" run=")[2].split()[0] for line in lines if line.startswith("recount trigger=")]
    assert logged == [str(lost.run_id), str(asked.run_id)]


def test_where_it_was_inconclusive_every_campaign_that_is_counted_is_said_so(db: Database, conn: Connection) -> None:
    """Campaign 1 has rows in the queue, 2 has none; then 2 has counts of ours, for its rows were cleared."""
    run = count(conn)
    answer(db, run, conclusive=False, inconclusive=1)
    (report,) = reports.seal_settled(conn)

    def said(*chosen: int) -> list[tuple[int, str]]:
        found = completed(conn, report, reports.read_counted(conn, run.run_id), chosen)
        return [(verdict.campaign_id, verdict.verdict) for verdict in found.verdicts]

    assert said() == said(1, 2) == [(1, "inconclusive")]
    db.execute("INSERT INTO sentstream.progress (campaign_id, partition, removed, sent) VALUES (2, 0, 5, 5)")
    assert said() == said(1, 2) == [(1, "inconclusive"), (2, "inconclusive")]
    assert said(2) == [(2, "inconclusive")]
    assert verdict_line(Ruled(2, "inconclusive", run.started_at)) == "campaign 2: inconclusive"


def test_without_a_stream_nothing_is_settled(db: Database, conn: Connection) -> None:
    partitions(db, 0)
    run = count(conn)
    assert not reports.is_settled(conn, run.run_id)
    assert reports.seal_settled(conn) == []
    (abandoned,) = reports.seal_settled(conn, abandon_after=0)
    assert abandoned.run.tally.not_comparable == 1
    assert reports.verify(conn).runs == 1


def test_an_unknown_run_is_an_error_with_a_fix(conn: Connection) -> None:
    with pytest.raises(reports.NoRunError, match=r"There is no run 99\. `sentstream report list`"):
        reports.read_report(conn, 99)
    with pytest.raises(reports.NoRunError, match=r"There is no run 9{20}"):
        reports.read_report(conn, int("9" * 20))
    with pytest.raises(reports.NoRunError):
        reports.is_settled(conn, 99)


# ---- sealing -----------------------------------------------------------------------------------------------------


def test_a_sealed_run_says_all_that_the_interface_names(db: Database, conn: Connection) -> None:
    run = count(conn, trigger="paused", also=("interval",), requested_by="reconciler")
    drift(db, run)
    answer(db, run, conclusive=True, drift=1)
    (report,) = reports.seal_settled(
        conn, observe=lambda _: [{"campaign_id": 1, "kind": "tracked", "expected": 3, "actual": 2}]
    )
    assert report == reports.read_report(conn, run.run_id)
    shown = report.as_json()
    assert shown["trigger"] == "paused"
    assert shown["also"] == ["interval"]
    assert shown["status"] == "sealed"
    assert shown["counts"] == {"verified": 0, "drift": 1, "inconclusive": 0, "not_comparable": 0, "baseline": 0}
    assert set(shown["snapshot"]) == {"xmin", "xmax", "xip"}
    assert shown["observations"] == [{"campaign_id": 1, "kind": "tracked", "expected": 3, "actual": 2}]
    (verdict,) = shown["verdicts"]
    assert verdict["cause"] == "missed_change"
    assert list(verdict["before"]) == ["queued", "sent"], "in the order of the statuses, whatever jsonb does"
    assert shown["previous_digest"] == GENESIS
    assert len(shown["digest"]) == 64
    assert {"what": "1 campaign without rows in the queue", "why": "there is nothing to count"} in shown["not_covered"]
    assert shown["finished_at"] > shown["started_at"]


def test_the_digest_can_be_computed_from_what_the_report_says(db: Database, conn: Connection) -> None:
    import hashlib

    (report,) = sealed_runs(db, conn, 1)
    assert hashlib.sha256(canonical(report.run.words())).hexdigest() == report.run.digest
    assert report.run.parts is not None
    assert report.run.parts["counts"] == digest({"1": [0, 0, 3, 0, 0, 0], "2": [0, 0, 0, 0, 0, 0]})


def test_an_inconclusive_partition_is_named_with_its_reason(db: Database, conn: Connection) -> None:
    run = count(conn)
    answer(db, run, conclusive=False, inconclusive=1)
    (report,) = reports.seal_settled(conn)
    assert report.reasons == ("transaction 7 was open",)
    assert report.run.not_covered[0] == {"what": "partition 0", "why": "transaction 7 was open"}
    assert not report.run.tally.proved


def test_a_sealed_run_takes_no_more_verdicts(db: Database, conn: Connection) -> None:
    """A reader that begins anew at the slot's old place brings the entry again: it must not touch what is sealed."""
    run = count(conn)
    answer(db, run, verified=1)
    reports.seal_settled(conn)
    partitions(db, 1, epoch=2)
    Store().flush(conn, flush_of(run, epoch=2))
    assert reports.read_report(conn, run.run_id).verdicts == ()
    assert reports.verify(conn).broken is None


def flush_of(run: Run, epoch: int = 1) -> Flush:
    verdict = Verdict(run.run_id, 1, "baseline", None, {"counter": 0}, {"counter": 3}, corrected=True)
    answered = Answer(run.run_id, True, baseline=1)
    here = Position(parse_lsn("0/1"))
    return Flush(0, epoch, here, Position(parse_lsn("0/2")), True, 0, verdicts=(verdict,), answers=(answered,))


def test_sealing_waits_for_the_flush_that_writes_the_verdicts(db: Database, conn: Connection) -> None:
    run = count(conn)
    result: list[Any] = []
    with db.connect() as flushing:
        at_commit, go_on = threading.Event(), threading.Event()

        def stop_at(name: str) -> None:
            if name == "before_commit":
                at_commit.set()
                go_on.wait(10)

        flusher = threading.Thread(target=lambda: Store(failpoint=stop_at).flush(flushing, flush_of(run)))
        flusher.start()
        assert at_commit.wait(10)
        sealing = threading.Thread(target=lambda: result.append(reports.seal_settled(conn, abandon_after=0)))
        sealing.start()
        eventually(lambda: db.execute("SELECT 1 FROM pg_locks WHERE pid = %s AND NOT granted", conn.info.backend_pid))
        go_on.set()
        flusher.join(10)
        sealing.join(10)
    ((report,),) = result
    assert report.run.tally.baseline == 1
    assert len(report.verdicts) == 1
    assert reports.verify(conn).broken is None


def test_a_flush_that_comes_while_a_run_is_sealed_writes_nothing_to_it(db: Database, conn: Connection) -> None:
    run = count(conn)
    with db.connect() as flushing:
        with conn.transaction():
            conn.execute("SELECT 1 FROM sentstream.recounts WHERE run_id = %s FOR UPDATE", (run.run_id,))
            conn.execute("UPDATE sentstream.recounts SET status = 'sealed' WHERE run_id = %s", (run.run_id,))
            flusher = threading.Thread(target=lambda: Store().flush(flushing, flush_of(run)))
            flusher.start()
            pid = flushing.info.backend_pid
            eventually(lambda: db.execute("SELECT 1 FROM pg_locks WHERE pid = %s AND NOT granted", pid))
        flusher.join(10)
    assert reports.read_report(conn, run.run_id).verdicts == ()
    assert reports.read_report(conn, run.run_id).answers == ()


def test_however_many_seal_at_once_the_chain_does_not_fork(db: Database) -> None:
    with db.connect() as conn:
        for _ in range(30):
            answer(db, count(conn), verified=1)
    failures: list[BaseException] = []

    def seal() -> None:
        try:
            with db.connect() as other:
                reports.seal_settled(other)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=seal) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures
    with db.connect() as conn:
        checked = reports.verify(conn)
        assert (checked.runs, checked.broken) == (30, None)
        assert [run.chain_no for run in reports.read_runs(conn)] == list(range(30, 0, -1))
        assert reports.read_head(conn) == (30, checked.head)


# ---- tampering ---------------------------------------------------------------------------------------------------


#: what is done to a chain of five, what it is called, and words of the sentence that names it
TAMPERINGS = [
    ("UPDATE sentstream.recounts SET drift = 7 WHERE run_id = 2", "edited", "Run 2 was edited: its row"),
    ("UPDATE sentstream.recounts SET started_at = started_at + '1us' WHERE run_id = 2", "edited", "Run 2"),
    ("UPDATE sentstream.recounts SET version = 'x' WHERE run_id = 1", "edited", "Run 1"),
    ("""UPDATE sentstream.recounts SET not_covered = '[]' WHERE run_id = 3""", "edited", "Run 3"),
    ("UPDATE sentstream.recounts SET count_ms = count_ms + 0.001 WHERE run_id = 3", "edited", "Run 3"),
    (
        """UPDATE sentstream.recounts SET counts = jsonb_set(counts, '{1,2}', '4') WHERE run_id = 2""",
        "edited",
        "Run 2 was edited: its counts",
    ),
    ("UPDATE sentstream.recounts SET observations = '[]' WHERE run_id = 4", "edited", "its observations"),
    ("DELETE FROM sentstream.verdicts WHERE run_id = 2", "edited", "Run 2 was edited: its verdicts"),
    ("UPDATE sentstream.verdicts SET cause = 'unknown'", "edited", "Run 2 was edited: its verdicts"),
    (
        "INSERT INTO sentstream.verdicts (run_id, campaign_id, verdict) VALUES (3, 9, 'verified')",
        "edited",
        "Run 3 was edited: its verdicts",
    ),
    ("UPDATE sentstream.answers SET verified = 7 WHERE run_id = 3", "edited", "Run 3 was edited: its answers"),
    ("UPDATE sentstream.recounts SET digest = repeat('a', 64) WHERE run_id = 3", "edited", "Run 3"),
    ("UPDATE sentstream.recounts SET previous_digest = NULL WHERE run_id = 3", "edited", "Run 3"),
    ("DELETE FROM sentstream.recounts WHERE run_id = 1", "removed", "place 1 was removed, before run 2"),
    ("DELETE FROM sentstream.recounts WHERE run_id = 3", "removed", "place 3 was removed, between run 2 and run 4"),
    ("DELETE FROM sentstream.recounts WHERE run_id IN (2, 3)", "removed", "places 2 to 3 were removed"),
    ("DELETE FROM sentstream.recounts WHERE run_id = 5", "removed", "place 5 was removed, at the end"),
    ("UPDATE sentstream.recounts SET status = 'open' WHERE run_id = 2", "removed", "place 2"),
    ("DELETE FROM sentstream.recounts", "removed", "places 1 to 5 were removed"),
    (
        "INSERT INTO sentstream.recounts (trigger, requested_by, lsn, snapshot, epoch, removed_policy, version,"
        " count_ms, status) VALUES ('manual', 'x', '0/1', '1:1:', 1, 'keep', 'x', 1, 'sealed')",
        "inserted",
        "was inserted",
    ),
    (
        "INSERT INTO sentstream.recounts (trigger, requested_by, lsn, snapshot, epoch, removed_policy, version,"
        " count_ms, status, chain_no) VALUES ('manual', 'x', '0/1', '1:1:', 1, 'keep', 'x', 1, 'sealed', 6)",
        "inserted",
        "was inserted",
    ),
    ("UPDATE sentstream.chain SET chain_no = 4", "inserted", "Run 5 was inserted"),
    ("UPDATE sentstream.chain SET digest = repeat('0', 64)", "replaced", "Run 5"),
    ("DELETE FROM sentstream.chain", "inserted", "Run 1 was inserted"),
]


def test_a_broken_chain_is_found_and_the_first_break_named(db: Database, conn: Connection) -> None:
    sealed_runs(db, conn, 5)
    tables = ("verdicts", "answers", "recounts", "chain")
    for table in tables:
        db.execute(f"CREATE TABLE public.kept_{table} AS TABLE sentstream.{table}")
    for tampering, kind, words in TAMPERINGS:
        assert reports.verify(conn).broken is None
        db.execute(tampering)
        broken = reports.verify(conn).broken
        assert broken is not None, tampering
        assert broken.kind == kind, tampering
        assert words in broken.what, tampering
        for table in tables:
            db.execute(f"DELETE FROM sentstream.{table}")
        for table in reversed(tables):
            db.execute(f"INSERT INTO sentstream.{table} OVERRIDING SYSTEM VALUE TABLE public.kept_{table}")


def test_the_first_of_several_breaks_is_named(db: Database, conn: Connection) -> None:
    sealed_runs(db, conn, 5)
    db.execute("UPDATE sentstream.recounts SET version = 'x' WHERE run_id IN (4, 3)")
    checked = reports.verify(conn)
    assert checked.broken is not None
    assert checked.broken.run_id == 3
    assert checked.runs == 2


def test_a_forger_who_seals_anew_is_found_by_a_digest_noted_elsewhere(db: Database, conn: Connection) -> None:
    noted = sealed_runs(db, conn, 3)[1].run.digest
    assert noted is not None
    assert reports.verify(conn, anchor=noted).anchored is True
    db.execute(
        "UPDATE sentstream.recounts SET status = 'open', chain_no = NULL, drift = 0;"
        "DELETE FROM sentstream.verdicts; UPDATE sentstream.chain SET chain_no = 0, digest = repeat('0', 64)"
    )
    assert len(reports.seal_settled(conn)) == 3
    assert reports.verify(conn).broken is None, "the chain alone can't tell"
    checked = reports.verify(conn, anchor=noted)
    assert checked.anchored is False
    assert checked.broken is not None
    assert checked.broken.kind == "anchor"


def test_a_long_chain_is_walked_page_by_page(db: Database, conn: Connection) -> None:
    for _ in range(120):
        answer(db, count(conn), verified=1)
    reports.seal_settled(conn)
    told: list[tuple[int, int]] = []
    assert reports.verify(conn, progress=lambda done, total: told.append((done, total))).runs == 120
    assert told[-1] == (120, 120)


# ---- reading -----------------------------------------------------------------------------------------------------


def test_runs_are_listed_newest_first_by_page_and_by_campaign(db: Database, conn: Connection) -> None:
    sealed_runs(db, conn, 5)
    assert [run.run_id for run in reports.read_runs(conn, limit=2)] == [5, 4]
    assert [run.run_id for run in reports.read_runs(conn, limit=2, before=4)] == [3, 2]
    assert [run.run_id for run in reports.read_runs(conn, campaign=1)] == [2]
    assert [run.run_id for run in reports.read_runs(conn, campaign=2)] == []
    assert reports.read_counts(conn, 1) == {1: (0, 0, 3, 0, 0, 0), 2: (0, 0, 0, 0, 0, 0)}


# ---- retention ---------------------------------------------------------------------------------------------------


def test_retention_takes_the_bulk_and_the_chain_stays_verifiable(db: Database, conn: Connection) -> None:
    sealed_runs(db, conn, 5)
    db.execute("UPDATE sentstream.recounts SET finished_at = finished_at WHERE run_id <= 3")
    assert reports.prune_reports(conn, 3600) == 0
    assert reports.prune_reports(conn, 0, most=3) == 3
    checked = reports.verify(conn)
    assert (checked.runs, checked.pruned, checked.broken) == (5, 3, None)
    pruned = reports.read_report(conn, 2)
    assert pruned.verdicts == ()
    assert pruned.run.campaigns == 2
    assert reports.read_counts(conn, 2) == {}
    assert db.value("SELECT count(*) FROM sentstream.answers") == 2
    db.execute("UPDATE sentstream.recounts SET verified = 9 WHERE run_id = 1")
    broken = reports.verify(conn).broken
    assert broken is not None, "what a pruned run says of itself is still covered"
    assert broken.run_id == 1


def test_an_open_run_is_not_pruned(db: Database, conn: Connection) -> None:
    run = count(conn)
    assert reports.prune_reports(conn, 0) == 0
    assert reports.read_counts(conn, run.run_id)


def test_old_minutes_are_folded_and_the_sum_stays(db: Database, conn: Connection) -> None:
    now = datetime.now(timezone.utc).replace(second=0, microsecond=0)
    rows = [
        (1, now - timedelta(days=500), "baseline", 100),
        (1, now - timedelta(days=450), "flow", 7),
        (1, now - timedelta(days=450), "correction", -2),
        (1, now - timedelta(days=3), "flow", 5),
        (2, now - timedelta(days=401), "flow", 1),
    ]
    for row in rows:
        db.execute("INSERT INTO sentstream.history (campaign_id, minute, kind, sent) VALUES (%s, %s, %s, %s)", *row)

    def sums() -> dict[int, int]:
        return {c: int(n) for c, n in db.execute("SELECT campaign_id, sum(sent) FROM sentstream.history GROUP BY 1")}

    before = sums()
    retention = 400 * 86400.0
    assert reports.prune_history(conn, retention, most=1) == 1
    assert sums() == before
    assert reports.prune_history(conn, retention) == 3
    assert reports.prune_history(conn, retention) == 0
    assert sums() == before
    assert db.execute("SELECT campaign_id, kind, sent FROM sentstream.history ORDER BY 1, minute") == [
        (1, "pruned", 105),
        (1, "flow", 5),
        (2, "pruned", 1),
    ]


def test_verifying_does_not_wait_for_anybody(db: Database, conn: Connection) -> None:
    sealed_runs(db, conn, 2)
    with db.connect(autocommit=False) as busy:
        busy.execute("SELECT 1 FROM sentstream.chain FOR UPDATE")
        busy.execute("UPDATE sentstream.recounts SET drift = 5")
        began = time.monotonic()
        assert reports.verify(conn).broken is None
        assert time.monotonic() - began < 5
