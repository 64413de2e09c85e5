"""Reads the mailer's send window from its ``settings`` table.

What the three settings mean, and when to count because of them, is ``stream/core/window.py``.
"""

from __future__ import annotations

from typing import Any

from psycopg import Connection, sql
from psycopg.rows import tuple_row

from connectors.mailer import catalog
from connectors.mailer.tables import SETTING_SEND_TIME_END, SETTING_SEND_TIME_START, SETTING_TIMEZONE, SETTINGS
from stream.core.window import SendWindow, parse_window

_KEYS = (SETTING_SEND_TIME_START, SETTING_SEND_TIME_END, SETTING_TIMEZONE)


def read_window(conn: Connection[Any], schema: str, *, zone: str = "") -> SendWindow:
    """The send window as the mailer's settings stand now; ``zone`` (our TIMEZONE) goes before the mailer's own.

    Without the table, the right to read it, or a row, the mailer's defaults hold: always open, America/New_York.
    ConfigurationError, which names the setting, where a value is no time of day or no time zone: the caller reports it
    and goes on without recounts before pauses.
    """
    values = _read(conn, schema)
    return parse_window(
        values.get(SETTING_SEND_TIME_START),
        values.get(SETTING_SEND_TIME_END),
        zone or values.get(SETTING_TIMEZONE),
    )


def _read(conn: Connection[Any], schema: str) -> dict[str, object]:
    if not catalog.is_readable(conn, schema, SETTINGS):
        return {}
    query = sql.SQL("SELECT key, value::jsonb FROM {} WHERE key = ANY(%s::text[])")
    with conn.cursor(row_factory=tuple_row) as cursor:
        return dict(cursor.execute(query.format(sql.Identifier(schema, SETTINGS.name)), (list(_KEYS),)).fetchall())
