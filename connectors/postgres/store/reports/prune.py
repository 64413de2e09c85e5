"""Retention of reports and of the history by minute."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import psycopg
from psycopg.rows import tuple_row

Connection = psycopg.Connection[Any]


def prune_reports(conn: Connection, retention: float, *, most: int = 500) -> int:
    """Take counts, verdicts, answers and observations of old sealed runs away; their digests stay, so the chain can
    still be verified. ``retention``: seconds. At most ``most`` runs; how many it were."""
    with conn.transaction(), conn.cursor(row_factory=tuple_row) as cursor:
        cursor.execute(
            """
            UPDATE sentstream.recounts SET counts = NULL, observations = NULL, pruned_at = clock_timestamp()
            WHERE run_id IN (
                SELECT run_id FROM sentstream.recounts
                WHERE status = 'sealed' AND pruned_at IS NULL AND finished_at < clock_timestamp() - %s::interval
                ORDER BY run_id LIMIT %s::int FOR UPDATE SKIP LOCKED)
            RETURNING run_id
            """,
            (timedelta(seconds=retention), most),
        )
        ids = [row[0] for row in cursor.fetchall()]
        if ids:
            cursor.execute("DELETE FROM sentstream.verdicts WHERE run_id = ANY (%s::bigint[])", (ids,))
            cursor.execute("DELETE FROM sentstream.answers WHERE run_id = ANY (%s::bigint[])", (ids,))
    return len(ids)


def prune_history(conn: Connection, retention: float, *, most: int = 20_000) -> int:
    """Fold minutes older than ``retention`` seconds into one row a campaign (kind ``pruned``, at 1970), so that the sum
    of a campaign's history stays what it was. At most ``most`` rows; how many went."""
    with conn.cursor(row_factory=tuple_row) as cursor:
        row = cursor.execute(
            """
            WITH gone AS (
                DELETE FROM sentstream.history h USING (
                    SELECT campaign_id, minute, kind FROM sentstream.history
                    WHERE minute < clock_timestamp() - %s::interval AND kind <> 'pruned'
                    ORDER BY minute LIMIT %s::int FOR UPDATE SKIP LOCKED
                ) AS old
                WHERE (h.campaign_id, h.minute, h.kind) = (old.campaign_id, old.minute, old.kind)
                RETURNING h.campaign_id, h.sent
            ), folded AS (
                INSERT INTO sentstream.history AS h (campaign_id, minute, kind, sent)
                SELECT campaign_id, to_timestamp(0), 'pruned', sum(sent) FROM gone GROUP BY campaign_id
                ON CONFLICT (campaign_id, minute, kind) DO UPDATE SET sent = h.sent + excluded.sent
            )
            SELECT count(*) FROM gone
            """,
            (timedelta(seconds=retention), most),
        ).fetchone()
    return row[0] if row else 0
