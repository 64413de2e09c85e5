"""A campaign comes with its counter, the session is renewed, and then its rows come."""

from __future__ import annotations

from tests.fix_postgres import Database
from tests.postgres.running import add_campaign, add_rows, at_rest, based, running, shown
from tests.waiting import eventually


def test_rows_that_come_after_a_renewed_session_are_not_counted_twice(db: Database) -> None:
    add_campaign(db, 1, queued=5)
    with running(db):
        based(db)
        eventually(lambda: db.execute("SELECT 1 FROM sentstream.recounts HAVING bool_and(status = 'sealed')"), 20)
        add_campaign(db, 2, sent=10)
        (pid,) = db.execute("SELECT active_pid FROM pg_replication_slots WHERE active")[0]
        db.execute("SELECT pg_terminate_backend(%s)", pid)
        eventually(lambda: db.execute("SELECT 1 FROM pg_replication_slots WHERE active_pid <> %s", pid), 20)
        for _ in range(2):
            add_rows(db, 2, "sent", 5)
            eventually(lambda: db.execute("SELECT 1 FROM sentstream.progress WHERE campaign_id = 2"), 20)
        at_rest(db)
        assert shown(db)[2] == 10
