"""The oldest transaction that keeps recounts inconclusive: open or prepared, in any database of the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg.rows import class_row

#: seconds below which a transaction delays a recount unnoticed
SHORT: Final = 5.0

# another role's transaction shows its id to everybody, and its age only to pg_read_all_stats
_QUERY: Final = """
SELECT * FROM (
    SELECT pid, NULL::text AS gid, coalesce(usename::text, '') AS role, coalesce(datname::text, '') AS database,
           coalesce(application_name, '') AS application,
           extract(epoch FROM clock_timestamp() - xact_start)::float8 AS age_seconds
    FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()
    UNION ALL
    SELECT NULL, gid, owner::text, database::text, '', extract(epoch FROM clock_timestamp() - prepared)::float8
    FROM pg_prepared_xacts
) t WHERE age_seconds > %s::float8 OR age_seconds IS NULL ORDER BY age_seconds DESC NULLS LAST LIMIT 1"""


@dataclass(frozen=True, slots=True)
class OldTransaction:
    """An open transaction of process ``pid``, or the prepared one ``gid``. ``age_seconds``: None where not shown."""

    pid: int | None
    gid: str | None
    role: str
    database: str
    application: str
    age_seconds: float | None


def read_old_transaction(connection: psycopg.Connection[Any]) -> OldTransaction | None:
    """The oldest writing transaction of the server, unless it is young."""
    with connection.cursor(row_factory=class_row(OldTransaction)) as cursor:
        return cursor.execute(_QUERY, (SHORT,)).fetchone()
