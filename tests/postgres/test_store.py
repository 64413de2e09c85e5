"""The store of record, by itself: what it refuses to load."""

from __future__ import annotations

import pytest

from connectors.postgres.store.partitions import Store
from stream.core.errors import OtherHistoryError
from tests.fix_postgres import Database
from tests.postgres.running import add_campaign, based, prepared, running


@pytest.fixture
def stored(mailer_db: Database) -> Database:
    """Counted up to its end, and left."""
    db = prepared(mailer_db)
    add_campaign(db, 1, sent_rows=3)
    with running(db):
        based(db)
    return db


def load(db: Database) -> int:
    with db.connect() as session:
        return len(Store().load(session, 0, lambda _campaign: 0).rows)


def test_a_partition_of_this_history_is_loaded(stored: Database) -> None:
    assert load(stored) == 1


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ("system_identifier = '1'", "was on system 1, now on"),
        ("timeline = timeline + 1", "timeline changed"),
        ("lsn = pg_current_wal_insert_lsn() + 1000000", "beyond the server's WAL"),
    ],
)
def test_a_partition_of_another_history_is_not_loaded(stored: Database, changed: str, said: str) -> None:
    """A restored database: a worker that starts before the reader must not apply the lost history to it."""
    stored.execute(f"UPDATE sentstream.watermarks SET {changed}")
    with pytest.raises(OtherHistoryError, match=said):
        load(stored)
