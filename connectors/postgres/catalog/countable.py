"""The note of the point from which on the WAL can be counted."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.rows import tuple_row


def countable_from(conn: psycopg.Connection[Any]) -> str | None:
    """LSN from which on publication and identities have been right without a break, as text; None when never noted.

    ``setup`` notes it whenever it had to make the publication or put an identity right. The WAL before it can't be
    counted (and, on servers before 18, can't even be decoded: "publication does not exist"). A slot whose confirmed LSN
    is below it is as good as lost: made again (advancing it would leave transactions that span the point), it begins
    beyond, and the gap rule brings a new baseline.
    """
    with conn.cursor(row_factory=tuple_row) as cursor:
        if cursor.execute("SELECT to_regclass('sentstream.setup_state') IS NULL").fetchall() == [(True,)]:
            return None
        # beyond the end of the WAL: noted on another server, from which this database was copied
        row = cursor.execute(
            """
            SELECT value #>> '{}' FROM sentstream.setup_state
            WHERE key = 'countable_from' AND (value #>> '{}')::pg_lsn <=
                CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END
            """
        ).fetchone()
    return None if row is None else str(row[0])
