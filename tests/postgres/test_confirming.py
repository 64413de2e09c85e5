"""The server is told that the log up to a place is done with only when the counts up to there are written."""

from __future__ import annotations

from collections.abc import Callable

from tests.fix_postgres import Database
from tests.postgres.running import add_campaign, add_rows, at_rest, based, prepared, running
from tests.waiting import eventually


def received(db: Database, column: str) -> str:
    """What the reader last told the server, as text: ``write_lsn`` (received) or ``reply_time``."""
    statement = (
        "SELECT r.{}::text FROM pg_stat_replication r JOIN pg_replication_slots s ON s.active_pid = r.pid"
        " WHERE s.slot_name = %s"
    )
    return str(db.value(statement.format(column), db.slot))


def told_again(db: Database) -> Callable[[], bool]:
    """A probe: whether the reader has told the server something since."""
    before = received(db, "reply_time")
    return lambda: received(db, "reply_time") != before


def test_nothing_is_confirmed_that_is_not_written(mailer_db: Database) -> None:
    """The flush is held up at the watermark's row, while the reader reads on and keeps the server told."""
    db = prepared(mailer_db)
    add_campaign(db, 1, queued=2, sent_rows=1)
    with running(db):
        based(db)
        at_rest(db)
        with db.connect(autocommit=False) as holder:
            holder.execute("SELECT 1 FROM sentstream.watermarks FOR UPDATE")
            add_rows(db, 1, "sent", 3)
            end = db.value("SELECT pg_current_wal_insert_lsn()::text")
            eventually(lambda: db.value("SELECT %s::pg_lsn >= %s::pg_lsn", received(db, "write_lsn"), end))
            for _ in range(3):
                eventually(told_again(db))
                ((confirmed, written),) = db.execute(
                    "SELECT confirmed_flush_lsn, (SELECT min(lsn) FROM sentstream.watermarks)"
                    " FROM pg_replication_slots WHERE slot_name = %s",
                    db.slot,
                )
                assert db.value("SELECT %s::pg_lsn <= %s::pg_lsn", confirmed, written), (confirmed, written)
        at_rest(db)
        eventually(
            lambda: db.value(
                "SELECT confirmed_flush_lsn >= %s::pg_lsn FROM pg_replication_slots WHERE slot_name = %s", end, db.slot
            )
        )
