"""Another process moved the watermark: what this one holds is loaded again, and it goes on counting."""

from __future__ import annotations

import pytest

from tests.contract.conftest import Counting
from tests.fix_postgres import Database
from tests.postgres.running import add_campaign, add_rows, at_rest, kept, prepared, shown, truth
from tests.waiting import eventually


@pytest.fixture
def db(mailer_db: Database) -> Database:
    prepared(mailer_db)
    for number in range(1, 5):
        add_campaign(mailer_db, number, queued=2, sent_rows=number)
    return mailer_db


def test_after_the_watermark_was_moved_from_outside_it_counts_on(db: Database, counting: Counting) -> None:
    with counting(db):
        at_rest(db)
        for round_ in (1, 2):
            moved = db.value("SELECT pg_current_wal_insert_lsn()::text")
            db.execute(
                "UPDATE sentstream.watermarks SET lsn = %s::pg_lsn, seq = 0 WHERE lsn < %s::pg_lsn", moved, moved
            )
            for number in range(1, 5):
                add_rows(db, number, "sent", 3)
            eventually(lambda: kept(db) == truth(db), 12)
            at_rest(db)
            assert shown(db) == {number: number + 3 * round_ for number in range(1, 5)}
    causes = {row[0] for row in db.execute("SELECT cause FROM sentstream.verdicts WHERE cause IS NOT NULL")}
    assert not causes & {"gap", "rows_vanished_unwatched"}, causes
