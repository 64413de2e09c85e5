"""Whether what flushes is in shadow mode (WRITE_BACK=false): the names of its sessions say so."""

from __future__ import annotations

from typing import Any, Final

import psycopg

from connectors.postgres.connect import SHADOW

_QUERY: Final = """
SELECT bool_or(right(application_name, length(%(shadow)s::text)) = %(shadow)s::text) FROM pg_stat_activity
WHERE datname = current_database() AND application_name ~ '^sentstream (flush|work)( |$)'"""


def flushes_in_shadow(connection: psycopg.Connection[Any]) -> bool | None:
    """None where nothing flushes."""
    row = connection.execute(_QUERY, {"shadow": SHADOW}).fetchone()
    return None if row is None else row[0]
