"""Reading ``sentstream.history``."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import psycopg
from psycopg.rows import tuple_row

_OF_ONE = """
SELECT minute, kind, sent FROM sentstream.history
WHERE campaign_id = %(campaign)s::bigint AND minute >= %(since)s::timestamptz AND minute < %(until)s::timestamptz
ORDER BY minute, kind
"""
_OF_ALL = """
SELECT minute, kind, sum(sent)::bigint FROM sentstream.history
WHERE minute >= %(since)s::timestamptz AND minute < %(until)s::timestamptz
GROUP BY minute, kind ORDER BY minute, kind
"""
_RECENT_FLOW = """
SELECT h.campaign_id, (extract(epoch FROM h.minute) / 60)::bigint, h.sent
FROM sentstream.history h JOIN sentstream.progress p USING (campaign_id)
WHERE h.kind = 'flow' AND p.partition = %(partition)s::int AND h.minute >= now() - interval '2 minutes'
ORDER BY h.minute
"""


def read_history(
    connection: psycopg.Connection[Any], campaign_id: int | None, since: datetime, until: datetime
) -> tuple[list[tuple[datetime, int]], list[tuple[datetime, str, int]]]:
    """Mails by minute, and what changed ``sent`` otherwise (minute, kind, sent); of one campaign, or of all."""
    asked = {"campaign": campaign_id, "since": since, "until": until}
    with connection.cursor(row_factory=tuple_row) as cursor:
        rows = cursor.execute(_OF_ALL if campaign_id is None else _OF_ONE, asked).fetchall()
    minutes = [(minute, sent) for minute, kind, sent in rows if kind == "flow"]
    return minutes, [(minute, kind, sent) for minute, kind, sent in rows if kind != "flow"]


def recent_flow(connection: psycopg.Connection[Any], partition: int) -> list[tuple[int, int, int]]:
    """What the campaigns of a partition sent in the last two minutes: (campaign, minute since 1970, mails)."""
    with connection.cursor(row_factory=tuple_row) as cursor:
        return cursor.execute(_RECENT_FLOW, {"partition": partition}).fetchall()
