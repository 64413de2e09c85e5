"""The recount transaction on a real server: what it counts, what it waits for, and what it refuses to count."""

from __future__ import annotations

import threading
import time
from typing import Any

import psycopg
import pytest

from connectors.postgres.connect import Connection
from connectors.postgres.setup import Wanted, set_up
from connectors.postgres.store.recount import LOCK_KEY, Limits, NotNowError
from stream.core.align import Snapshot
from stream.core.errors import PreconditionError, UncountableError
from stream.core.position import parse_lsn
from stream.core.report import Run
from tests.fix_postgres import Database
from tests.postgres.running import add_campaign, add_rows, count, prepared
from tests.waiting import eventually


def counts_of(db: Database, run_id: int) -> dict[str, list[int]]:
    found: dict[str, list[int]] = db.value("SELECT counts FROM sentstream.recounts WHERE run_id = %s", run_id)
    return found


def runs_in(db: Database) -> int:
    number: int = db.value("SELECT count(*) FROM sentstream.recounts")
    return number


def waits_for_a_lock(db: Database, pid: int) -> bool:
    return bool(db.execute("SELECT 1 FROM pg_locks WHERE pid = %s AND NOT granted", pid))


def in_thread(work: Any) -> tuple[threading.Thread, list[Any]]:
    """Run ``work`` beside the test; its result or its error, once the thread has ended."""
    result: list[Any] = []

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:
            result.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, result


def test_it_counts_every_campaign_also_those_without_rows(any_mailer_db: Database) -> None:
    db = prepared(any_mailer_db)
    add_campaign(db, 1, queued=3, sending=2, sent_rows=5, failed=1, cancelled=4, sent=17)
    add_campaign(db, 2, sent_rows=1)
    add_campaign(db, 3, sent=9)
    db.execute("UPDATE campaigns SET sent = NULL WHERE id = 2")
    with db.connect() as conn:
        run = count(conn, trigger="start", requested_by="me", also=("gap",), rebase=[2, 1])
    assert counts_of(db, run.run_id) == {"1": [3, 2, 5, 1, 4, 17], "2": [0, 0, 1, 0, 0, 0], "3": [0, 0, 0, 0, 0, 9]}
    assert run.campaigns == 3
    assert db.execute(
        "SELECT trigger, also, requested_by, status, rebase, removed_policy, version, campaigns"
        " FROM sentstream.recounts"
    ) == [("start", ["gap"], "me", "open", [1, 2], "keep", "test", 3)]


def test_a_rebase_that_an_inconclusive_run_carried_is_carried_on(db: Database, conn: Connection) -> None:
    def answered(run: Run, conclusive: bool) -> None:
        db.execute(
            "INSERT INTO sentstream.answers (run_id, partition, epoch, conclusive) VALUES (%s, 0, 1, %s)",
            run.run_id,
            conclusive,
        )

    answered(count(conn, rebase=[2]), conclusive=False)
    run = count(conn)
    assert run.rebase == [2]
    answered(run, conclusive=False)
    run = count(conn, rebase=[1])
    assert run.rebase is not None
    assert sorted(run.rebase) == [1, 2]
    answered(run, conclusive=False)
    run = count(conn, rebase="all")
    assert run.rebase == "all"
    answered(run, conclusive=True)
    assert count(conn).rebase is None


def test_an_empty_mailer_is_counted_as_empty(db: Database, conn: Connection) -> None:
    run = count(conn, rebase="all")
    assert counts_of(db, run.run_id) == {}
    assert db.value("SELECT rebase FROM sentstream.recounts") == "all"


def test_the_position_is_read_after_the_snapshot(db: Database, conn: Connection) -> None:
    before = parse_lsn(db.value("SELECT pg_current_wal_insert_lsn()::text"))
    with db.connect(autocommit=False) as busy:
        busy.execute("INSERT INTO campaigns (id, name) VALUES (1, 'in progress')")
        xid = int(busy.execute("SELECT pg_current_xact_id()::text").fetchall()[0][0])
        run = count(conn)
        busy.commit()
    snapshot = Snapshot.parse(run.snapshot)
    assert not snapshot.sees(xid)
    assert counts_of(db, run.run_id) == {}
    assert parse_lsn(run.lsn) >= before
    assert run.started_at == db.value("SELECT started_at FROM sentstream.recounts")
    assert 0 < run.count_ms < 60_000


def test_epoch_and_lag_are_those_of_the_watermarks(db: Database, conn: Connection) -> None:
    assert count(conn).epoch == 0
    db.execute(
        "INSERT INTO sentstream.watermarks (partition, epoch, lsn, system_identifier, timeline)"
        " VALUES (0, 42, '0/1000', 'x', 1), (1, 42, pg_current_wal_insert_lsn(), 'x', 1)"
    )
    run = count(conn)
    assert run.epoch == 42
    assert run.lag_bytes is not None
    assert parse_lsn(run.lsn) - 0x1000 - run.lag_bytes < 1000


def test_with_the_identity_index_it_is_an_index_only_scan(db: Database, conn: Connection) -> None:
    add_campaign(db, 1, sent_rows=20_000)
    assert isinstance(count(conn).index_only, bool)
    db.execute("VACUUM (ANALYZE) email_queue")
    assert count(conn).index_only is True
    assert db.value("SELECT index_only FROM sentstream.recounts ORDER BY run_id DESC LIMIT 1") is True


def test_with_full_identity_it_counts_as_well(mailer_db: Database) -> None:
    with mailer_db.connect() as conn:
        set_up(conn, Wanted(slot=mailer_db.slot, identity="full"))
        add_campaign(mailer_db, 1, sent_rows=5_000)
        run = count(conn)
    assert counts_of(mailer_db, run.run_id)["1"][2] == 5_000


def test_a_schema_with_an_odd_name(pg: Database) -> None:
    name = 'The "Mailer"'
    from psycopg import sql

    from connectors.mailer.tables import schema_sql

    with pg.connect() as conn:
        conn.execute(sql.SQL("CREATE SCHEMA {n}; SET search_path = {n}").format(n=sql.Identifier(name)))
        conn.execute(schema_sql().encode())
        conn.execute("INSERT INTO campaigns (id, name) VALUES (1, 'one')")
        conn.execute("RESET search_path")
        set_up(conn, Wanted(slot=pg.slot, mailer_schema=name))
        assert count(conn, mailer_schema=name).campaigns == 1


def test_as_the_role_with_the_least_rights(mailer_db: Database) -> None:
    role = mailer_db.role("LOGIN REPLICATION")
    prepared(mailer_db, role=role)
    add_campaign(mailer_db, 1, sent_rows=2)
    with mailer_db.connect(user=role) as conn:
        assert count(conn).campaigns == 1


# ---- the lock comes first ----------------------------------------------------------------------------------------


def test_the_lock_comes_before_the_snapshot(db: Database, conn: Connection) -> None:
    """TRUNCATE is not MVCC-safe: a snapshot older than its commit would count 0 here, where the truth is 5."""
    add_campaign(db, 1, sent_rows=100)
    with db.connect(autocommit=False) as clearing:
        clearing.execute("TRUNCATE email_queue")
        clearing.execute(
            "INSERT INTO email_queue (campaign_id, subscriber_id, status)"
            " SELECT 1, 1, 'queued' FROM generate_series(1, 5)"
        )
        pid = conn.info.backend_pid
        thread, result = in_thread(lambda: count(conn, limits=Limits(5, 20, 60)))
        eventually(lambda: waits_for_a_lock(db, pid))
        clearing.commit()
    thread.join(20)
    assert counts_of(db, result[0].run_id) == {"1": [5, 0, 0, 0, 0, 0]}


def test_a_truncate_waits_for_the_recount_and_not_longer(db: Database) -> None:
    """From lock to commit nothing can be truncated; the statement between is held up by a lock on the recounts."""
    add_campaign(db, 1, sent_rows=10)
    with db.connect() as conn, db.connect() as mailer, db.connect(autocommit=False) as holder:
        holder.execute("LOCK TABLE sentstream.recounts IN ACCESS EXCLUSIVE MODE")
        counting, result = in_thread(lambda: count(conn, limits=Limits(5, 20, 60)))
        eventually(lambda: waits_for_a_lock(db, conn.info.backend_pid))
        clearing, _ = in_thread(lambda: mailer.execute("TRUNCATE email_queue"))
        eventually(lambda: waits_for_a_lock(db, mailer.info.backend_pid))
        holder.rollback()
        counting.join(20)
        clearing.join(20)
    assert counts_of(db, result[0].run_id) == {"1": [0, 0, 10, 0, 0, 0]}
    assert db.value("SELECT count(*) FROM email_queue") == 0


def test_a_table_that_stays_locked_is_a_clear_error_and_nothing_is_left_behind(db: Database, conn: Connection) -> None:
    with db.connect(autocommit=False) as holder:
        holder.execute("LOCK TABLE email_queue IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(
            NotNowError, match=f"could not be locked .* within 0.1 s, held by PID {holder.info.backend_pid}"
        ):
            count(conn, limits=Limits(5, 0.1, 60))
    assert runs_in(db) == 0
    assert not db.execute("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND pid = %s", conn.info.backend_pid)
    assert count(conn).campaigns == 0


def test_only_one_at_a_time(db: Database, conn: Connection) -> None:
    with db.connect() as other:
        other.execute("SELECT pg_advisory_lock(%s::bigint)", (LOCK_KEY,))
        with pytest.raises(NotNowError, match=f"Another recount is running, held by PID {other.info.backend_pid}"):
            count(conn, limits=Limits(0.1, 5, 60))
        thread, result = in_thread(lambda: count(conn, limits=Limits(20, 5, 60)))
        eventually(lambda: waits_for_a_lock(db, conn.info.backend_pid))
        assert runs_in(db) == 0
        other.execute("SELECT pg_advisory_unlock(%s::bigint)", (LOCK_KEY,))
        thread.join(20)
    assert result[0].run_id == 1


def test_runs_are_numbered_in_the_order_in_which_they_commit(db: Database) -> None:
    def several() -> None:
        with db.connect() as conn:
            for _ in range(10):
                count(conn, limits=Limits(20, 5, 60))

    threads = [in_thread(several) for _ in range(4)]
    for thread, result in threads:
        thread.join(30)
        assert result == [None]
    rows = db.execute("SELECT lsn FROM sentstream.recounts ORDER BY run_id")
    positions = [parse_lsn(row[0]) for row in rows]
    assert len(positions) == 40
    assert positions == sorted(positions)


def test_a_count_that_takes_too_long_gives_up(db: Database, conn: Connection) -> None:
    with db.connect(autocommit=False) as holder:
        holder.execute("LOCK TABLE sentstream.recounts IN ACCESS EXCLUSIVE MODE")
        began = time.monotonic()
        with pytest.raises(NotNowError, match=r"longer than 0\.2 s"):
            count(conn, limits=Limits(5, 30, 0.2))
        assert time.monotonic() - began < 5
    assert count(conn).run_id


def test_in_a_deadlock_it_gives_way(db: Database, conn: Connection) -> None:
    conn.execute("SET deadlock_timeout = '50ms'")
    with db.connect(autocommit=False) as mailer:
        mailer.execute("LOCK TABLE campaigns IN ACCESS EXCLUSIVE MODE")
        thread, result = in_thread(lambda: count(conn, limits=Limits(5, 20, 60)))
        eventually(lambda: waits_for_a_lock(db, conn.info.backend_pid))
        mailer.execute("LOCK TABLE email_queue IN ACCESS EXCLUSIVE MODE")
        mailer.commit()
    thread.join(20)
    # the mailer's wait may begin after our check: then there was no deadlock to see, and the count went on
    assert isinstance(result[0], NotNowError) or result[0].run_id
    assert count(conn).run_id


# ---- what is refused ---------------------------------------------------------------------------------------------


def test_a_status_outside_the_five_is_named_and_nothing_is_counted(db: Database, conn: Connection) -> None:
    add_campaign(db, 1, sent_rows=3)
    db.execute("ALTER TABLE email_queue DROP CONSTRAINT email_queue_status_check")
    add_rows(db, 1, "bounced", 2)
    with pytest.raises(UncountableError, match=r"public\.email_queue .*id 4: status 'bounced'; id 5: status 'bounced'"):
        count(conn)
    assert runs_in(db) == 0
    db.execute("UPDATE email_queue SET status = 'failed' WHERE status = 'bounced'")
    assert count(conn).campaigns == 1


def test_a_row_without_a_campaign_is_named(db: Database, conn: Connection) -> None:
    add_campaign(db, 1, sent_rows=1)
    db.execute("ALTER TABLE email_queue DROP CONSTRAINT email_queue_campaign_id_fkey")
    add_rows(db, 77, "sent", 1)
    with pytest.raises(UncountableError, match="id 2: campaign 77, which does not exist"):
        count(conn)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("ALTER TABLE email_queue REPLICA IDENTITY DEFAULT", "DEFAULT"),
        ("ALTER TABLE email_queue REPLICA IDENTITY NOTHING", "NOTHING"),
        ("DROP INDEX email_queue_sentstream", "gone"),
        ("ALTER PUBLICATION sentstream DROP TABLE email_queue", "not in publication"),
        ("ALTER PUBLICATION sentstream SET (publish = 'insert, update')", "leaves out"),
        ("DROP PUBLICATION sentstream", "does not exist"),
    ],
)
def test_a_database_that_is_no_longer_as_setup_made_it_is_not_counted(
    db: Database, conn: Connection, change: str, words: str
) -> None:
    db.execute(change)
    with pytest.raises(PreconditionError, match=f"Not counted: .*{words}"):
        count(conn)
    assert runs_in(db) == 0


def test_a_database_without_setup(mailer_db: Database) -> None:
    with mailer_db.connect() as conn, pytest.raises(PreconditionError, match="setup"):
        count(conn)


def test_a_policy_that_would_hide_rows_is_an_error_and_no_zero(mailer_db: Database) -> None:
    role = mailer_db.role("LOGIN REPLICATION")
    prepared(mailer_db, role=role)
    add_campaign(mailer_db, 1, sent_rows=2)
    mailer_db.execute("ALTER TABLE email_queue ENABLE ROW LEVEL SECURITY")
    with mailer_db.connect(user=role) as conn, pytest.raises(PreconditionError, match="row-level security"):
        count(conn)


def test_a_right_that_is_missing_is_said_so(mailer_db: Database) -> None:
    role = mailer_db.role("LOGIN")
    prepared(mailer_db)
    with mailer_db.connect(user=role) as conn, pytest.raises(PreconditionError, match="permission denied"):
        count(conn)


def test_a_transaction_around_it_is_refused(db: Database, conn: Connection) -> None:
    with db.connect(autocommit=False) as other, pytest.raises(ValueError, match="autocommit"):
        count(other)
    with conn.transaction(), pytest.raises(ValueError, match="outside a transaction"):
        count(conn)


def test_a_lost_connection_is_the_callers(db: Database) -> None:
    with db.connect() as conn:
        db.execute("SELECT pg_terminate_backend(%s)", conn.info.backend_pid)
        with pytest.raises(psycopg.OperationalError):
            count(conn)
