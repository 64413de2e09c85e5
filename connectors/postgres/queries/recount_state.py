"""What the reconciler looks at, about once a second: watermarks, the newest run, what the mailer says of campaigns.

Nothing here reads the queue: the tables are ours, and ``campaigns`` by its status.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.rows import class_row, tuple_row

from connectors.mailer.tables import CAMPAIGNS

Connection = psycopg.Connection[Any]

#: the mailer's word for a campaign that is held; its last mails may still go out
PAUSED: Final = "paused"

_STATE = """
SELECT w.partitions, w.based, w.as_of, extract(epoch FROM clock_timestamp() - w.as_of)::double precision AS as_of_age,
       r.run_id, r.trigger, extract(epoch FROM clock_timestamp() - r.started_at)::double precision AS run_age,
       coalesce(r.count_ms, 0) / 1000 AS cost,
       EXISTS (SELECT FROM sentstream.answers a WHERE a.run_id = r.run_id AND NOT a.conclusive) AS inconclusive,
       EXISTS (SELECT FROM sentstream.watermarks b
               WHERE NOT b.based AND b.epoch = r.epoch AND b.lsn < r.lsn AND r.status = 'open') AS pending
FROM (SELECT count(*)::int AS partitions, coalesce(bool_and(based), true) AS based,
             CASE WHEN bool_and(as_of IS NOT NULL) THEN min(as_of) END AS as_of
      FROM sentstream.watermarks) w
LEFT JOIN (SELECT * FROM sentstream.recounts ORDER BY run_id DESC LIMIT 1) r ON true
"""


@dataclass(frozen=True, slots=True)
class RecountState:
    """Watermarks and the newest run at one look. ``as_of``: up to when everything is applied, of the slowest partition
    (None: not everywhere known); ages in seconds by the database's clock."""

    partitions: int
    based: bool
    as_of: datetime | None
    as_of_age: float | None
    run_id: int | None
    trigger: str | None
    run_age: float | None
    cost: float
    inconclusive: bool
    pending: bool


def read_recount_state(conn: Connection) -> RecountState:
    """The state of things, in one query."""
    with conn.cursor(row_factory=class_row(RecountState)) as cursor:
        return cursor.execute(_STATE).fetchall()[0]


def read_statuses(conn: Connection, mailer_schema: str) -> dict[int, str]:
    """The status of every campaign, as the mailer has it."""
    query = sql.SQL("SELECT id::bigint, status::text FROM {}").format(sql.Identifier(mailer_schema, CAMPAIGNS.name))
    with conn.cursor(row_factory=tuple_row) as cursor:
        return dict(cursor.execute(query).fetchall())


def read_draining(conn: Connection, mailer_schema: str, *, stream_up: bool) -> frozenset[int]:
    """Paused campaigns with rows still ``sending``: by our counts, or with the stream down by the newest run's."""
    known = "SELECT campaign_id::bigint AS id FROM sentstream.progress WHERE queue_sending > 0"
    if not stream_up:
        known = """
            SELECT e.key::bigint AS id
            FROM (SELECT counts FROM sentstream.recounts ORDER BY run_id DESC LIMIT 1) r,
                 jsonb_each(coalesce(r.counts, '{}')) AS e
            WHERE (e.value ->> 1)::bigint > 0"""
    query = sql.SQL("SELECT s.id FROM ({known}) s JOIN {campaigns} c ON c.id = s.id WHERE c.status::text = %s::text")
    campaigns = sql.Identifier(mailer_schema, CAMPAIGNS.name)
    with conn.cursor(row_factory=tuple_row) as cursor:
        rows = cursor.execute(query.format(known=sql.SQL(known), campaigns=campaigns), (PAUSED,)).fetchall()
    return frozenset(row[0] for row in rows)


def read_expected(conn: Connection) -> dict[int, int]:
    """What ``campaigns.sent`` should show, by campaign: rows sent now and those that were sent when they went."""
    with conn.cursor(row_factory=tuple_row) as cursor:
        return dict(
            cursor.execute(
                "SELECT campaign_id::bigint, queue_sent + removed FROM sentstream.progress"
                " WHERE queue_queued + queue_sending + queue_sent + queue_failed + queue_cancelled + removed > 0"
            ).fetchall()
        )


def count_unwritten(conn: Connection, mailer_schema: str) -> int:
    """How many campaigns have a counter that does not show what was counted for them."""
    campaigns = sql.Identifier(mailer_schema, CAMPAIGNS.name)
    row = conn.execute(
        sql.SQL(
            "SELECT count(*) FROM sentstream.progress p JOIN {} c ON c.id = p.campaign_id"
            " WHERE c.sent IS DISTINCT FROM p.sent"
        ).format(campaigns)
    ).fetchone()
    assert row is not None
    return int(row[0])
