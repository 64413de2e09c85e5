"""Which of the mailer's tables and columns are there and readable: one look at the catalog, then plain SQL.

Mailers differ (a plain listmonk has no ``email_queue``, the azure tables are optional, a fork may lack a column), and
so do rights. What we may not read counts as missing here: asking first leaves the caller's transaction whole, where
a refused SELECT would abort it. What is needed for counting is judged by ``doctor`` and ``setup``, not here.
"""

from __future__ import annotations

from typing import Any

from psycopg import Connection
from psycopg.rows import tuple_row

from connectors.mailer.tables import Table

_COLUMNS = """
SELECT a.attname, t.typname
FROM pg_catalog.pg_attribute a
JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
WHERE n.nspname = %s::text AND c.relname = %s::text AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
  AND a.attnum > 0 AND NOT a.attisdropped
  AND pg_catalog.has_schema_privilege(n.oid, 'USAGE')
  AND pg_catalog.has_column_privilege(c.oid, a.attnum, 'SELECT')
"""


def readable_columns(conn: Connection[Any], schema: str, table: str) -> dict[str, str]:
    """Names and ``pg_type`` names of the columns that this role may read; empty where there is no such table."""
    with conn.cursor(row_factory=tuple_row) as cursor:
        return {str(name): str(typname) for name, typname in cursor.execute(_COLUMNS, (schema, table))}


def is_readable(conn: Connection[Any], schema: str, table: Table) -> bool:
    """Whether every column that we use of that table is there and readable."""
    return set(table.names()) <= readable_columns(conn, schema, table.name).keys()
