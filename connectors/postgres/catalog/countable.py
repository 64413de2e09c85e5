"""The note of the point from which on the WAL can be counted."""

from __future__ import annotations

from typing import Any, Final

import psycopg
from psycopg.rows import tuple_row

#: SQL for the value of the note: the point, and the history of WAL that it belongs to. ``{}``: the LSN, as SQL
NOTE: Final = (
    "jsonb_build_object('lsn', {}::text, 'system', (SELECT system_identifier::text FROM pg_control_system()), "
    "'timeline', (SELECT timeline_id FROM pg_control_checkpoint()))"
)


def countable_from(conn: psycopg.Connection[Any]) -> str | None:
    """LSN from which on publication and identities have been right without a break, as text; None when none is noted
    for the server's own history.

    ``setup`` notes it whenever it had to make the publication or put an identity right. The WAL before it can't be
    counted (and, on servers before 18, can't even be decoded: "publication does not exist"). A slot whose confirmed LSN
    is below it is as good as lost: made again (advancing it would leave transactions that span the point), it begins
    beyond, and the gap rule brings a new baseline.

    A database that was copied brings the note of another server along: LSNs of two histories can't be compared, so the
    note counts only with the same system identifier, on this timeline or one before it.
    """
    with conn.cursor(row_factory=tuple_row) as cursor:
        if cursor.execute("SELECT to_regclass('sentstream.setup_state') IS NULL").fetchall() == [(True,)]:
            return None
        row = cursor.execute(_NOTED).fetchone()
    return None if row is None else str(row[0])


_NOTED = """
SELECT n.value ->> 'lsn'
FROM sentstream.setup_state n, pg_control_system() s, pg_control_checkpoint() c
WHERE n.key = 'countable_from' AND jsonb_typeof(n.value) = 'object'
  AND n.value ->> 'system' = s.system_identifier::text AND (n.value ->> 'timeline')::bigint <= c.timeline_id
  AND (n.value ->> 'lsn')::pg_lsn
      <= CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END
"""
