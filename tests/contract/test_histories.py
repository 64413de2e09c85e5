"""Another history of the log, in both modes: positions can't be compared, so a new epoch begins with a baseline."""

from __future__ import annotations

import pytest

from tests.contract.conftest import Counting
from tests.fix_postgres import Database
from tests.postgres.running import add_campaign, add_rows, at_rest, kept, prepared, truth
from tests.waiting import eventually


@pytest.mark.parametrize("other", ["lsn = 'FFFF/0'", "timeline = 77"])
def test_a_log_whose_positions_cannot_be_compared_begins_an_epoch(
    mailer_db: Database, counting: Counting, other: str
) -> None:
    db = prepared(mailer_db)
    add_campaign(db, 1, queued=3, sent_rows=4)
    with counting(db):
        at_rest(db)
        before = db.value("SELECT max(epoch) FROM sentstream.watermarks")
    db.execute(f"UPDATE sentstream.watermarks SET {other}")
    add_rows(db, 1, "sent", 7)
    with counting(db):
        eventually(lambda: kept(db) == truth(db), 20)
        at_rest(db)
        assert db.value("SELECT min(epoch) FROM sentstream.watermarks") > before


def test_a_temporary_slot_begins_from_a_new_baseline_at_each_start(mailer_db: Database, counting: Counting) -> None:
    """It pins no log while nothing runs, and what happens meanwhile is counted at the next start."""
    db = prepared(mailer_db, temporary_slot=True)
    add_campaign(db, 1, queued=3, sent_rows=4)
    baselines = "SELECT count(*) FROM sentstream.verdicts WHERE verdict = 'baseline'"
    slots = "SELECT slot_name FROM pg_replication_slots WHERE database = current_database()"
    found = 0
    for _ in range(2):
        with counting(db, slot_kind="temporary"):
            eventually(lambda: kept(db) == truth(db), 20)
            at_rest(db)
            before, found = found, db.value(baselines)
            assert found > before
            add_rows(db, 1, "sent", 2)
            eventually(lambda: kept(db) == truth(db), 20)
        eventually(lambda: db.execute(slots) == [])
        add_rows(db, 1, "sent", 3)
