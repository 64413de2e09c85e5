"""A far backlog is read by SQL: the same counts, the slot moved on behind it, and the walsender goes on live."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.fix_postgres import Database
from tests.postgres.processes import sentstream
from tests.postgres.running import add_rows, at_rest, based
from tests.postgres.test_faults import mailing, right, watched
from tests.waiting import eventually


def with_backlog(db: Database, tmp_path: Path) -> Database:
    """Based, then some thousand changes while nobody reads, among them a bulk one and a TRUNCATE."""
    watched(db)
    with sentstream(db, tmp_path / "before.log"):
        based(db)
    add_rows(db, 1, "sent", 500)
    db.execute("TRUNCATE email_queue")
    db.execute("INSERT INTO gone SELECT campaign_id FROM sentstream.progress, generate_series(1, queue_sent::int)")
    db.execute("INSERT INTO gone SELECT 1 FROM generate_series(1, 500)")
    with mailing(db):
        eventually(lambda: db.value("SELECT count(*) FROM email_queue") > 300, 60)
    add_rows(db, 2, "queued", 3000)
    return db


def test_counts_are_right_and_the_walsender_goes_on(any_mailer_db: Database, tmp_path: Path) -> None:
    db = with_backlog(any_mailer_db, tmp_path)
    behind = db.value("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = %s", db.slot)
    with sentstream(db, tmp_path / "run.log", catchup_threshold="32kB") as process:
        process.says("catching up by SQL")
        eventually(lambda: process.said.count("reading from") >= 2, 30)
        assert db.value(
            "SELECT confirmed_flush_lsn > %s FROM pg_replication_slots WHERE slot_name = %s", behind, db.slot
        )
        with mailing(db, seed=2):
            at_least = db.value("SELECT sum(sent) FROM campaigns") + 5
            eventually(lambda: db.value("SELECT sum(sent) FROM campaigns") > at_least, 30)
        right(db)
        process.send(signal.SIGTERM)
        assert process.wait() == 0
    assert db.execute("SELECT 1 FROM pg_replication_slots WHERE slot_name LIKE '%catchup%'") == []


_OTHERS = [pytest.param(it, marks=pytest.mark.slow) for it in ("after_fold", "before_flush")]


@pytest.mark.parametrize("place", ["after_commit", "before_confirm", *_OTHERS])
def test_kill_9_while_catching_up(mailer_db: Database, tmp_path: Path, place: str) -> None:
    db = with_backlog(mailer_db, tmp_path)
    with sentstream(db, tmp_path / "1.log", catchup_threshold="32kB", failpoints=f"{place}=kill:1") as process:
        assert process.wait(30) == -signal.SIGKILL
    with sentstream(db, tmp_path / "2.log", catchup_threshold="32kB"):
        right(db)


def test_without_a_free_slot_for_the_copy_the_walsender_reads_the_backlog(
    private_mailer_db: Database, tmp_path: Path
) -> None:
    db = with_backlog(private_mailer_db, tmp_path)
    db.execute("ALTER SYSTEM SET max_replication_slots = 1")
    db.server.restart()  # type: ignore[attr-defined]
    with sentstream(db, tmp_path / "run.log", catchup_threshold="32kB") as process:
        process.says("the backlog is read by the walsender")
        right(db)


def test_run_once_catches_up_by_sql(mailer_db: Database, tmp_path: Path) -> None:
    db = with_backlog(mailer_db, tmp_path)
    with sentstream(db, tmp_path / "run.log", "run", "--once", catchup_threshold="32kB") as process:
        assert process.wait(60) == 0, process.said
        assert "catching up by SQL" in process.said
    at_rest(db)
