"""`setup` beside a mailer at work: its writes go on."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tests.fix_postgres import Database
from tests.postgres.running import add_campaign, prepared
from tests.waiting import eventually


def test_the_index_is_made_while_the_mailer_goes_on_writing(mailer_db: Database) -> None:
    """An open transaction that has written holds up the index. Nothing may queue behind the index's lock."""
    db = mailer_db
    add_campaign(db, 1, queued=3)
    building = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        " AND query ~* '^\\s*create unique index'"
    )
    with (
        db.connect(autocommit=False) as slow,
        db.connect() as mailer,
        ThreadPoolExecutor(1) as pool,
    ):
        mailer.execute("SET lock_timeout = '1s'")
        slow.execute("UPDATE email_queue SET priority = 2")
        setting_up = pool.submit(prepared, db)
        try:
            eventually(lambda: db.value(building) == 1)
            mailer.execute("INSERT INTO email_queue (campaign_id, subscriber_id) VALUES (1, 1)")
        finally:
            slow.rollback()
        setting_up.result(30)
