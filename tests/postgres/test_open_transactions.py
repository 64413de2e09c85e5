"""Old transactions that stay open: they keep no run inconclusive, and are counted when they commit."""

from __future__ import annotations

import psycopg

from connectors.postgres.connect import Connection
from connectors.postgres.store import reports
from tests.fix_postgres import Database
from tests.postgres.running import add_campaign, at_rest, based, running, shown, truth
from tests.waiting import eventually

_ONE = "UPDATE email_queue SET status = 'sent' WHERE id = (SELECT min(id) FROM email_queue WHERE status = 'queued'{})"


def test_transactions_older_than_the_reader_block_no_baseline(db: Database, conn: Connection) -> None:
    """One has not touched the queue, one is idle after it has, one is prepared after it has."""
    add_campaign(db, 1, queued=50)
    with running(db):
        based(db)
    name = f"left_{db.name}"
    with psycopg.connect(db.url) as elsewhere, psycopg.connect(db.url) as idle:
        elsewhere.execute("CREATE TABLE of_another (i int)")
        idle.execute(_ONE.format(""))
        db.execute(f"BEGIN; {_ONE.format(' AND id % 2 = 0 AND id > 10')}; PREPARE TRANSACTION '{name}'")
        try:
            db.execute("UPDATE email_queue SET status = 'sent' WHERE id % 2 = 1 AND id > 10")
            db.execute("UPDATE sentstream.watermarks SET based = false")
            with running(db):
                based(db)
                eventually(lambda: any(it.tally.baseline for it in reports.read_runs(conn)))
                at_rest(db)
                before = shown(db)[1]
                idle.commit()
                db.execute(f"COMMIT PREPARED '{name}'")
                at_rest(db)
                assert shown(db)[1] == before + 2 == truth(db)[1][2]
        finally:
            for (left,) in db.execute("SELECT gid FROM pg_prepared_xacts WHERE gid = %s", name):
                db.execute(f"ROLLBACK PREPARED '{left}'")
