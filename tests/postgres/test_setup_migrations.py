"""The schema sentstream as its migrations make it: what its columns take, and what its checks refuse."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tests.fix_postgres import Database
from tests.postgres.preparing import prepare, to_version_1, to_version_2

FAR = 3_000_000_000
#: a row of recounts that is as it has to be, column by column
RUN: dict[str, Any] = {
    "trigger": "interval",
    "requested_by": "x",
    "started_at": "2026-01-01",
    "lsn": "0/1",
    "snapshot": "10:12:10,11",
    "counts": '{"1": [0, 1, 2, 3, 4, 5], "3000000000": [0, 0, 0, 0, 0, -7]}',
    "rebase": "[1, 3000000000]",
    "epoch": 1,
    "removed_policy": "keep",
    "version": "0",
    "count_ms": 1.5,
    "campaigns": 2,
}


def insert_run(db: Database, **columns: Any) -> None:
    row = {**RUN, **columns}
    names, places = ", ".join(row), ", ".join(["%s"] * len(row))
    db.execute(f"INSERT INTO sentstream.recounts ({names}) VALUES ({places})", *row.values())


def test_ids_of_campaigns_may_be_beyond_integer(mailer_db: Database) -> None:
    db = mailer_db
    prepare(db)
    db.execute("INSERT INTO sentstream.progress (campaign_id, partition, sent) VALUES (%s, 0, 7)", FAR)
    db.execute("INSERT INTO sentstream.history VALUES (%s, now(), 'flow', 7)", FAR)
    insert_run(db)
    db.execute("INSERT INTO sentstream.verdicts (run_id, campaign_id, verdict) VALUES (1, %s, 'verified')", FAR)
    db.execute("ALTER PUBLICATION sentstream DROP TABLE campaigns; ALTER TABLE campaigns ALTER COLUMN id TYPE bigint")
    db.execute("INSERT INTO campaigns (id, name, to_send) VALUES (%s, 'far', 7)", FAR)
    assert db.execute("SELECT id, sent, progress_pct FROM sentstream.campaign_progress") == [(FAR, 7, 100)]


def test_an_earlier_schema_is_widened_and_what_others_made_of_the_views_stays(mailer_db: Database) -> None:
    db = mailer_db
    prepare(db)
    to_version_1(db)
    prepare(db)
    reader = db.role("LOGIN")
    to_version_2(db)
    db.execute(f"GRANT USAGE ON SCHEMA sentstream TO {reader}; GRANT SELECT ON sentstream.discrepancies TO {reader}")
    db.execute("CREATE VIEW wrong AS SELECT id FROM sentstream.discrepancies")
    prepare(db)
    assert db.value("SELECT has_table_privilege(%s, 'sentstream.discrepancies', 'SELECT')", reader)
    assert db.execute("SELECT * FROM wrong") == []


def test_a_run_as_it_has_to_be_is_taken(mailer_db: Database) -> None:
    prepare(mailer_db)
    insert_run(mailer_db)
    insert_run(mailer_db, counts="{}", rebase='"all"', snapshot="10:10:")
    insert_run(mailer_db, counts=None, rebase=None)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("counts", '{"1": [0]}'),
        ("counts", '{"1": [0, 1, 2, 3, 4, 5, 6]}'),
        ("counts", '{"1": [0, 1, -2, 3, 4, 5]}'),
        ("counts", '{"1": [0, 1, 2.0, 3, 4, 5]}'),
        ("counts", '{"1": [0, 1, 1e30, 3, 4, 5]}'),
        ("counts", '{"1": [0, 1, "2", 3, 4, 5]}'),
        ("counts", '{"x": [0, 1, 2, 3, 4, 5]}'),
        ("counts", '{"99999999999999999999": [0, 1, 2, 3, 4, 5]}'),
        ("counts", "[[0, 1, 2, 3, 4, 5]]"),
        ("counts", "null"),
        ("rebase", '["x", {}]'),
        ("rebase", '"some"'),
        ("rebase", "[1.5]"),
        ("rebase", "1"),
        ("snapshot", "12:10:"),
        ("snapshot", "now"),
        ("removed_policy", "both"),
        ("epoch", -1),
        ("campaigns", -1),
        ("count_ms", float("nan")),
        ("count_ms", float("inf")),
        ("count_ms", -1),
        ("started_at", "infinity"),
    ],
)
def test_a_run_that_no_recount_makes_is_refused(mailer_db: Database, column: str, value: Any) -> None:
    prepare(mailer_db)
    with pytest.raises((psycopg.errors.CheckViolation, psycopg.errors.InvalidTextRepresentation)):
        insert_run(mailer_db, **{column: value})
