"""Reads the mailer's send window from its ``settings`` table.

What the three settings mean, and when to count because of them, is ``stream/core/window.py``.
"""

from __future__ import annotations

import json
from typing import Any

from psycopg import Connection, errors, sql
from psycopg.rows import tuple_row

from connectors.mailer import catalog
from connectors.mailer.tables import SETTING_SEND_TIME_END, SETTING_SEND_TIME_START, SETTING_TIMEZONE, SETTINGS
from stream.core.errors import ConfigurationError
from stream.core.window import SendWindow, parse_window

_KEYS = (SETTING_SEND_TIME_START, SETTING_SEND_TIME_END, SETTING_TIMEZONE)


def read_window(conn: Connection[Any], schema: str, *, zone: str = "") -> SendWindow:
    """The send window as the mailer's settings stand now; ``zone`` (our TIMEZONE) goes before the mailer's own.

    Without the table, the right to read it, or a row, the mailer's defaults hold: always open, America/New_York.
    ConfigurationError, which names the setting, where a value is no JSON, no time of day or no time zone, and where a
    policy hides the rows: the caller reports it and goes on without recounts before pauses.
    """
    values = _read(conn, schema, [key for key in _KEYS if key != SETTING_TIMEZONE or not zone])
    return parse_window(
        values.get(SETTING_SEND_TIME_START),
        values.get(SETTING_SEND_TIME_END),
        zone or values.get(SETTING_TIMEZONE),
    )


def _read(conn: Connection[Any], schema: str, keys: list[str]) -> dict[str, object]:
    if not catalog.is_readable(conn, schema, SETTINGS):
        return {}
    # read as JSON here and not by the server, whose error would name no setting and end the caller's transaction
    query = sql.SQL("SELECT key::text, value::text FROM {} WHERE key::text = ANY(%s::text[])")
    try:
        with conn.cursor(row_factory=tuple_row) as cursor:
            rows = cursor.execute(query.format(sql.Identifier(schema, SETTINGS.name)), (keys,)).fetchall()
    except errors.InsufficientPrivilege as error:
        raise ConfigurationError(
            f"The mailer's settings can't be read: {error.diag.message_primary}; when it pauses is not known.",
            f"ALTER ROLE {_user(conn)} BYPASSRLS;",
        ) from error
    return {key: _value(key, value) for key, value in rows}


def _value(key: str, value: str | None) -> object:
    try:
        return None if value is None else json.loads(value)
    except ValueError:
        raise ConfigurationError(
            f"The mailer's setting {key} is {value!r}, which is no JSON: when it pauses is not known.",
            f"Set it to JSON, a text in its quotation marks, in the mailer's settings: {json.dumps(value)}",
        ) from None


def _user(conn: Connection[Any]) -> str:
    return sql.Identifier(conn.info.user).as_string(conn)
