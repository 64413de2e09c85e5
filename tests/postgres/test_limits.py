"""What it costs, and what it withstands: memory, CPU and WAL at rest, rows locked by others, changes of the tables."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import psycopg
import pytest

from stream.core.errors import PreconditionError
from tests.fix_postgres import Database
from tests.postgres.processes import Process, sentstream
from tests.postgres.running import (
    add_campaign,
    add_rows,
    at_rest,
    based,
    count,
    kept,
    prepared,
    running,
    shown,
    streaming,
    truth,
)
from tests.waiting import eventually

_SLOW = pytest.mark.slow


def resident(process: Process) -> int:
    """Bytes of memory of the process, as it is now."""
    return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak(process: Process) -> int:
    """Bytes of memory of the process, at the most so far."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


def cpu(process: Process) -> float:
    """CPU seconds of the process and its threads so far."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize(("rows", "most"), [(200_000, 32 << 20), pytest.param(1_000_000, 64 << 20, marks=_SLOW)])
def test_a_huge_transaction_leaves_memory_flat(mailer_db: Database, tmp_path: Path, rows: int, most: int) -> None:
    """The long form, and what is promised: a million rows in less than 64 MB."""
    db = prepared(mailer_db)
    for number in range(1, 51):
        add_campaign(db, number)
    with sentstream(db, tmp_path / "run.log") as process:
        based(db)
        idle = resident(process)
        db.execute("INSERT INTO subscribers (id, email) VALUES (1, 'one@example.org') ON CONFLICT DO NOTHING")
        db.execute("ALTER TABLE email_queue DISABLE TRIGGER ALL")
        db.execute(
            "INSERT INTO email_queue (campaign_id, subscriber_id, status)"
            " SELECT 1 + mod(i, 50), 1, 'sent' FROM generate_series(1, %s) i",
            rows,
        )
        eventually(lambda: db.value("SELECT sum(sent) FROM campaigns") == rows, 90)
        assert peak(process) - idle < most


def test_a_backlog_of_small_transactions_leaves_memory_flat(mailer_db: Database, tmp_path: Path) -> None:
    """The short form: 60,000 transactions. The long one, 400,000, is `python -m benchmarks.drain`."""
    db = prepared(mailer_db)
    for number in range(1, 51):
        add_campaign(db, number)
        add_rows_of(db, number, 600)
    with sentstream(db, tmp_path / "1.log"):
        based(db)
    db.execute(
        "CREATE PROCEDURE backlog() LANGUAGE plpgsql AS $$ DECLARE r record; BEGIN"
        " FOR r IN SELECT id FROM email_queue LOOP"
        "   UPDATE email_queue SET status = 'sending' WHERE id = r.id; COMMIT;"
        "   UPDATE email_queue SET status = 'sent' WHERE id = r.id; COMMIT; END LOOP; END $$"
    )
    with db.connect() as session:
        session.execute("SET synchronous_commit = off")
        session.execute("CALL backlog()")
    with sentstream(db, tmp_path / "2.log") as process:
        process.says("reading from")
        idle = resident(process)
        eventually(lambda: db.value("SELECT sum(sent) FROM campaigns") == 30_000, 60)
        assert peak(process) - idle < 64 << 20


def add_rows_of(db: Database, campaign: int, n: int) -> None:
    db.execute("INSERT INTO subscribers (id, email) VALUES (1, 'one@example.org') ON CONFLICT DO NOTHING")
    add_rows(db, campaign, "queued", n)


def test_at_rest_it_takes_next_to_no_cpu_and_its_own_flush_asks_for_no_other(
    mailer_db: Database, tmp_path: Path
) -> None:
    db = prepared(mailer_db)
    add_campaign(db, 1, sent_rows=3)
    with sentstream(db, tmp_path / "run.log", recount_interval="1h") as process:
        based(db)
        at_rest(db)
        for _ in range(2):  # the start is over
            last = _flushes(db)
            eventually(lambda: _flushes(db) != last)  # noqa: B023 - asked at once
        before, began, flushed = cpu(process), time.monotonic(), _flushes(db)
        seen = set()
        while time.monotonic() - began < 6:  # what happens in a time is what is tested
            seen.add(db.value("SELECT flushed_at FROM sentstream.watermarks"))
            time.sleep(0.1)
        assert len(seen) <= 5  # one every two seconds
        assert cpu(process) - before < 0.01 * 6
        assert flushed != _flushes(db)


def _flushes(db: Database) -> object:
    return db.value("SELECT flushed_at FROM sentstream.watermarks")


def test_the_slot_moves_on_while_only_another_database_is_busy(
    mailer_db: Database, make_database: object, tmp_path: Path
) -> None:
    db = prepared(mailer_db)
    other: Database = make_database()  # type: ignore[operator]
    other.execute("CREATE TABLE busy (n int)")
    with sentstream(db, tmp_path / "run.log"):
        based(db)
        other.execute("INSERT INTO busy SELECT generate_series(1, 100000)")
        end = db.value("SELECT pg_current_wal_insert_lsn()")
        eventually(
            lambda: db.value(
                "SELECT confirmed_flush_lsn >= %s FROM pg_replication_slots WHERE slot_name = %s", end, db.slot
            ),
            15,
        )


def _trigger(body: str, when: str = "BEFORE UPDATE OF sent", kind: str = "") -> str:
    """SQL for a trigger on campaigns that does ``body`` where sent becomes more than 3."""
    return (
        f"CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.sent > 3 THEN {body}; END IF;"
        f" RETURN NEW; END $$; CREATE {kind} TRIGGER f {when} ON campaigns"
        f" {'DEFERRABLE INITIALLY DEFERRED' if kind else ''} FOR EACH ROW EXECUTE FUNCTION f()"
    )


_REFUSING = {
    "constraint": "ALTER TABLE campaigns ADD CHECK (sent <= 3)",
    "trigger that raises": _trigger("RAISE 'not that many'"),
    "trigger that takes it away": _trigger("RETURN NULL"),
    "trigger that puts it back": _trigger("UPDATE campaigns SET sent = 0 WHERE id = NEW.id", "AFTER UPDATE OF sent"),
    "deferred trigger": _trigger("RAISE 'not that many'", "AFTER UPDATE OF sent", "CONSTRAINT"),
    "trigger that waits for a lock": _trigger("PERFORM pg_advisory_xact_lock(4711)"),
    **{
        f"trigger that raises {state}": _trigger(f"RAISE 'not that many' USING ERRCODE = '{state}'")
        for state in ("09000", "38000", "42501", "55P03", "40001", "57014", "53100")
    },
}


@pytest.mark.parametrize("how", _REFUSING)
def test_a_counter_that_the_mailer_refuses_holds_up_no_other(
    mailer_db: Database, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    db = prepared(mailer_db)
    for number, sent in ((1, 2), (2, 5), (3, 3)):
        add_campaign(db, number, sent_rows=sent)
    db.execute(_REFUSING[how])
    with db.connect() as holder, running(db):
        holder.execute("SELECT pg_advisory_lock(4711)")
        based(db)
        eventually(lambda: shown(db) == {1: 2, 2: 0, 3: 3})
        said = [record.getMessage() for record in caplog.records if "can't be written" in record.getMessage()]
        assert len(said) == 1
        assert "campaign 2" in said[0]
        assert "Failing row" not in said[0]
        verdicts = "SELECT corrected, (after->>'counter')::int FROM sentstream.verdicts WHERE campaign_id = %s"
        assert db.execute(verdicts, 2) == [(False, 0)]
        assert db.execute(verdicts, 1) == [(True, 2)]
        fewer = "(SELECT id FROM email_queue WHERE campaign_id = 2 LIMIT 2)"
        db.execute(f"UPDATE email_queue SET status = 'failed' WHERE id IN {fewer}")
        eventually(lambda: shown(db) == {1: 2, 2: 3, 3: 3})


def test_a_counter_is_written_as_soon_as_nothing_refuses_it(mailer_db: Database) -> None:
    db = prepared(mailer_db)
    add_campaign(db, 1, sent_rows=5)
    db.execute(_REFUSING["trigger that puts it back"])
    with running(db):
        based(db)
        eventually(lambda: db.value("SELECT sent FROM sentstream.progress") == 5)
        assert shown(db) == {1: 0}
        db.execute("DROP TRIGGER f ON campaigns")
        eventually(lambda: shown(db) == {1: 5})


def test_a_counter_that_another_session_wrote_is_reported_after_a_restart_too(mailer_db: Database) -> None:
    """The flush that corrects it records it, so what stops before the next recount forgets nothing."""
    db = prepared(mailer_db)
    add_campaign(db, 1, sent_rows=5)
    recorded = "SELECT overwritten_with, overwritten_at IS NOT NULL FROM sentstream.progress"
    with running(db):
        at_rest(db)
        based(db)
        assert db.execute(recorded) == [(None, False)]
        db.execute("UPDATE campaigns SET sent = 99")
        eventually(lambda: shown(db) == {1: 5})
    assert db.execute(recorded) == [(99, True)]
    with running(db):
        told = "SELECT cause, (before->>'counter')::int, (after->>'counter')::int FROM sentstream.verdicts"
        eventually(lambda: db.execute(f"{told} WHERE verdict = 'drift'") == [("counter_overwritten", 99, 5)])
        with db.connect() as session:
            count(session)
        eventually(lambda: db.value("SELECT count(*) FROM sentstream.recounts WHERE status = 'open'") == 0)
        assert db.execute(f"{told} WHERE verdict = 'drift'") == [("counter_overwritten", 99, 5)]
    assert db.execute(recorded) == [(None, True)]


def test_without_the_right_to_write_counters_it_goes_on_counting(
    mailer_db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    db = prepared(mailer_db)
    add_campaign(db, 1, sent_rows=5)
    with running(db):
        based(db)
        at_rest(db)
    role = db.role("LOGIN REPLICATION")
    for part in ("public", "sentstream"):
        db.execute(f"GRANT USAGE ON SCHEMA {part} TO {role}")
        db.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA {part} TO {role}")
    db.execute(f"GRANT INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA sentstream TO {role}")
    db.execute(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA sentstream TO {role}")
    with running(db, database_url=db.url_of(role)):
        add_rows(db, 1, "sent", 4)
        eventually(lambda: db.value("SELECT sent FROM sentstream.progress") == 9)
        assert shown(db) == {1: 5}
        said = [record.getMessage() for record in caplog.records if "Counting goes on" in record.getMessage()]
        assert len(said) == 1
        assert "GRANT UPDATE (sent) ON public.campaigns" in said[0]
        db.execute(f"GRANT UPDATE (sent) ON campaigns TO {role}")
        eventually(lambda: shown(db) == {1: 9})


def test_a_queue_that_has_another_name_for_a_moment_is_counted(mailer_db: Database) -> None:
    """First thing in a session, so that the WAL has never shown the table under its own name."""
    db = prepared(mailer_db)
    add_campaign(db, 1, queued=5, sent_rows=1)
    with running(db):
        at_rest(db)
        based(db)
    db.execute(
        "BEGIN; ALTER TABLE email_queue RENAME TO q; UPDATE q SET status = 'sent'; DELETE FROM q WHERE id % 2 = 0;"
        " ALTER TABLE q RENAME TO email_queue; COMMIT"
    )
    with running(db):
        eventually(lambda: shown(db) == {1: 6})
        eventually(lambda: kept(db) == truth(db))
    assert db.execute("SELECT * FROM sentstream.verdicts WHERE verdict = 'drift'") == []


def test_a_sum_that_does_not_fit_holds_up_no_other(mailer_db: Database) -> None:
    db = prepared(mailer_db)
    add_campaign(db, 1, queued=2, sent=2_147_483_647)
    add_campaign(db, 2, queued=2)
    with running(db):
        based(db)
        db.execute("UPDATE email_queue SET status = 'sent'")
        eventually(lambda: shown(db) == {1: 2_147_483_647, 2: 2})
        assert db.value("SELECT sent FROM sentstream.progress WHERE campaign_id = 1") == 2_147_483_649


def test_ids_may_be_as_wide_as_bigint(mailer_db: Database) -> None:
    for table in ("email_queue", "campaigns"):
        for column in ("id", "campaign_id") if table == "email_queue" else ("id", "sent", "to_send"):
            mailer_db.execute(f"ALTER TABLE {table} ALTER COLUMN {column} TYPE bigint")
    db = prepared(mailer_db)
    wide = 3_000_000_000
    add_campaign(db, wide, queued=2, sent_rows=1)
    add_campaign(db, 2, sent_rows=1)
    with running(db):
        based(db)
        add_rows(db, wide, "sent", 4)
        eventually(lambda: shown(db) == {wide: 5, 2: 1})
        with db.connect() as session:
            count(session)
        eventually(lambda: db.value("SELECT count(*) FROM sentstream.recounts WHERE status = 'open'") == 0)
        db.execute("DELETE FROM campaigns WHERE id = %s", wide)
        eventually(lambda: db.value("SELECT count(*) FROM sentstream.progress") == 1)
    assert db.execute("SELECT * FROM sentstream.verdicts WHERE verdict = 'drift'") == []


def test_a_locked_campaign_holds_up_no_other(mailer_db: Database) -> None:
    db = prepared(mailer_db)
    for number in (1, 2, 3):
        add_campaign(db, number, queued=1)
    with running(db):
        based(db)
        with db.connect(autocommit=False) as holder:
            holder.execute("SELECT 1 FROM campaigns WHERE id = 2 FOR UPDATE")
            for number in (1, 2, 3):
                add_rows(db, number, "sent", 4) if number != 2 else _rows_past_the_lock(db)
            eventually(lambda: shown(db) == {1: 4, 2: 0, 3: 4})
            assert db.value("SELECT sent FROM sentstream.progress WHERE campaign_id = 2") == 1
            add_rows(db, 1, "sent", 1)
            eventually(lambda: shown(db)[1] == 5)
            assert shown(db)[2] == 0
        eventually(lambda: shown(db)[2] == 1)


def _rows_past_the_lock(db: Database) -> None:
    """A row of the locked campaign turns sent; a new one would wait at the foreign key."""
    db.execute("UPDATE email_queue SET status = 'sent' WHERE campaign_id = 2")


def test_queueing_goes_on_while_a_flush_holds_the_campaign(mailer_db: Database) -> None:
    """FOR NO KEY UPDATE: the foreign-key check of an insert does not wait for our lock."""
    db = prepared(mailer_db)
    add_campaign(db, 1, queued=1)
    with db.connect(autocommit=False) as flush, db.connect() as mailer:
        flush.execute("SELECT 1 FROM campaigns WHERE id = 1 FOR NO KEY UPDATE SKIP LOCKED")
        mailer.execute("SET lock_timeout = '1s'")
        mailer.execute("INSERT INTO email_queue (campaign_id, subscriber_id) VALUES (1, 1)")


STOPS = {
    "identity_default": ("ALTER TABLE email_queue REPLICA IDENTITY DEFAULT", "identity"),
    "identity_nothing": ("ALTER TABLE email_queue REPLICA IDENTITY NOTHING", "identity"),
    "identity_index_dropped": ("DROP INDEX email_queue_sentstream", "index"),
    "listed_column_dropped_with_cascade": ("ALTER TABLE email_queue DROP COLUMN status CASCADE", "email_queue"),
    "table_taken_out_of_the_publication": ("ALTER PUBLICATION sentstream DROP TABLE email_queue", "publication"),
    "publication_dropped": ("DROP PUBLICATION sentstream", "publication"),
}


@pytest.mark.parametrize("name", STOPS)
def test_it_stops_loudly_instead_of_counting_wrongly(any_mailer_db: Database, name: str) -> None:
    db = prepared(any_mailer_db)
    add_campaign(db, 1, queued=5, sent_rows=2)
    statement, word = STOPS[name]
    with pytest.raises(PreconditionError, match=f"(?i){word}"), running(db):  # noqa: PT012
        based(db)
        at_rest(db)
        db.execute(statement)
        if name != "identity_index_dropped":  # there the server refuses the mailer's updates
            try:
                db.execute("UPDATE email_queue SET scheduled_at = now() WHERE id = 1")
            except psycopg.Error:
                pass
        eventually(lambda: not _streaming(db), 15)
    assert shown(db) == {1: 2}


def _streaming(db: Database) -> bool:
    return bool(db.value("SELECT active FROM pg_replication_slots WHERE slot_name = %s", db.slot))


def test_a_publication_made_anew_is_cured_by_a_new_slot(any_mailer_db: Database) -> None:
    """The slot reads WAL from a time without publication, which no server lets pass."""
    db = prepared(any_mailer_db)
    add_campaign(db, 1, queued=5, sent_rows=2)
    with running(db):
        based(db)
        at_rest(db)
    db.execute("DROP PUBLICATION sentstream")
    db.execute("UPDATE email_queue SET status = 'sent'")
    prepared(db)
    with running(db):
        eventually(lambda: shown(db) == {1: 7}, 30)


def test_a_status_outside_the_five_stops_and_is_not_confirmed(mailer_db: Database) -> None:
    from stream.core.errors import UncountableError

    db = prepared(mailer_db)
    add_campaign(db, 1, queued=5, sent_rows=2)
    db.execute("ALTER TABLE email_queue DROP CONSTRAINT IF EXISTS email_queue_status_check")
    before = None
    with pytest.raises(UncountableError, match="bounced"), streaming(db) as stream:  # noqa: PT012
        eventually(lambda: _streaming(db))
        before = db.value("SELECT pg_current_wal_insert_lsn()")
        db.execute("UPDATE email_queue SET status = 'bounced' WHERE status = 'sent'")
        eventually(lambda: stream.failure is not None, 15)
    assert db.value("SELECT confirmed_flush_lsn <= %s FROM pg_replication_slots WHERE slot_name = %s", before, db.slot)
    db.execute("UPDATE email_queue SET status = 'failed' WHERE status = 'bounced'")
    assert isinstance(stream.failure, UncountableError)
    over = re.search(r"SELECT pg_replication_slot_advance\(.*?;", stream.failure.fix)
    assert over is not None, "the error says how to go on"
    db.execute(over[0])
    with running(db):
        eventually(lambda: kept(db) == {1: (5, 0, 0, 2, 0)}, 30)


def test_teardown_setup_and_run_again_no_counter_falls(mailer_db: Database) -> None:
    from connectors.postgres.setup import tear_down

    db = prepared(mailer_db)
    add_campaign(db, 1, queued=5, sent_rows=20)
    with running(db):
        based(db)
        at_rest(db)
        db.execute("DELETE FROM email_queue WHERE status = 'sent' AND id % 2 = 0")
        at_rest(db)
        assert shown(db) == {1: 20}
    with db.connect() as session:
        tear_down(session, db.slot, "sentstream", "public")
    assert shown(db) == {1: 20}
    prepared(db)
    with running(db):
        based(db)
        add_rows(db, 1, "sent", 3)
        eventually(lambda: shown(db) == {1: 23})


def test_the_mailer_is_not_slowed_by_a_stopped_reader(mailer_db: Database, tmp_path: Path) -> None:
    """A reader that is killed leaves nothing locked."""
    db = prepared(mailer_db)
    add_campaign(db, 1, queued=5)
    with sentstream(db, tmp_path / "run.log", failpoints="before_commit=kill:2") as process:
        eventually(lambda: not process.alive, 30)
        with db.connect() as session:
            session.execute("SET lock_timeout = '5s'")
            session.execute("UPDATE campaigns SET to_send = to_send + 1 WHERE id = 1")
