"""What the mailer's own stats page shows beside the counts: campaign rows, views, clicks and delivered mails.

The page polls every second in every open tab. Campaign rows are read by the call (a few rows of a small table); views,
clicks and delivered mails are aggregates over big tables, read after a recount and kept. Columns and tables that a
mailer lacks, or that can't be read, become null or zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import Connection, sql
from psycopg.rows import class_row, tuple_row

from connectors.mailer import catalog
from connectors.mailer.tables import AZURE_DELIVERY_EVENTS, CAMPAIGN_VIEWS, CAMPAIGNS, DELIVERED, LINK_CLICKS, Table


@dataclass(frozen=True, slots=True)
class CampaignRow:
    """A row of ``campaigns``, as the stats page shows it; None where the mailer has no such column (or it is null)."""

    id: int
    name: str | None
    status: str | None
    to_send: int
    sent: int
    messenger: str | None
    use_queue: bool | None
    started_at: datetime | None
    created_at: datetime | None
    updated_at: datetime | None
    auto_paused: bool | None
    auto_paused_at: datetime | None


@dataclass(frozen=True, slots=True)
class Reactions:
    """What readers did with a campaign's mails, and how many Azure says were delivered."""

    views: int = 0
    clicks: int = 0
    delivered: int = 0


_ALL = sql.SQL("true")

#: how each column of CampaignRow is read where it exists, and what stands for it where it does not
_COLUMNS = {
    "id": ("{}::bigint", "NULL::bigint"),
    "name": ("{}::text", "NULL::text"),
    "status": ("{}::text", "NULL::text"),
    "to_send": ("coalesce({}, 0)::bigint", "0::bigint"),
    "sent": ("coalesce({}, 0)::bigint", "0::bigint"),
    "messenger": ("{}::text", "NULL::text"),
    "use_queue": ("{}::boolean", "NULL::boolean"),
    "started_at": ("{}::timestamptz", "NULL::timestamptz"),
    "created_at": ("{}::timestamptz", "NULL::timestamptz"),
    "updated_at": ("{}::timestamptz", "NULL::timestamptz"),
    "auto_paused": ("{}::boolean", "NULL::boolean"),
    "auto_paused_at": ("{}::timestamptz", "NULL::timestamptz"),
}


def read_campaigns(conn: Connection[Any], schema: str, statuses: Sequence[str] | None = None) -> list[CampaignRow]:
    """The campaigns by id, those of the given statuses only (None: all). Costs nothing that grows with the queue."""
    present = catalog.readable_columns(conn, schema, CAMPAIGNS.name)
    columns = sql.SQL(", ").join(
        sql.SQL("{} AS {}").format(
            sql.SQL(there).format(sql.Identifier(name)) if name in present else sql.SQL(missing), sql.Identifier(name)
        )
        for name, (there, missing) in _COLUMNS.items()
    )
    query = sql.SQL("SELECT {} FROM {}").format(columns, sql.Identifier(schema, CAMPAIGNS.name))
    values: tuple[object, ...] = ()
    if statuses is not None:
        query += sql.SQL(" WHERE status::text = ANY(%s::text[])")
        values = (list(statuses),)
    with conn.cursor(row_factory=class_row(CampaignRow)) as cursor:
        return cursor.execute(query + sql.SQL(" ORDER BY id"), values).fetchall()


def read_reactions(conn: Connection[Any], schema: str) -> dict[int, Reactions]:
    """Views, clicks and delivered mails of every campaign that has any."""
    views = _count(conn, schema, CAMPAIGN_VIEWS)
    clicks = _count(conn, schema, LINK_CLICKS)
    is_delivered = sql.SQL("status = {}").format(DELIVERED)
    delivered = _count(conn, schema, AZURE_DELIVERY_EVENTS, is_delivered)
    campaigns = sorted(views.keys() | clicks.keys() | delivered.keys())
    return {c: Reactions(views.get(c, 0), clicks.get(c, 0), delivered.get(c, 0)) for c in campaigns}


def _count(conn: Connection[Any], schema: str, table: Table, condition: sql.Composable = _ALL) -> dict[int, int]:
    if not catalog.is_readable(conn, schema, table):
        return {}
    query = sql.SQL("SELECT campaign_id::bigint, count(*) FROM {} WHERE campaign_id IS NOT NULL AND {} GROUP BY 1")
    with conn.cursor(row_factory=tuple_row) as cursor:
        return dict(cursor.execute(query.format(sql.Identifier(schema, table.name), condition)).fetchall())
