"""Reads the published tables and the publication from the catalog, in two queries of a millisecond or two.

Only tables of the catalog are read, by name and under the transaction's snapshot (no ``to_regclass``, no
``::regclass``, which look at the newest catalog), so that a recount sees what its counts rest on.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.rows import dict_row

from connectors.mailer.tables import CAMPAIGNS, EMAIL_QUEUE
from connectors.postgres.catalog.facts import Publication, Structure, Table
from connectors.postgres.catalog.names import members


def read_structure(conn: psycopg.Connection[Any], publication: str, mailer_schema: str) -> Structure:
    """Tables and publication as the transaction's snapshot sees them. Needs no right beyond reading the catalog."""
    wanted = members(mailer_schema)
    with conn.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(_TABLES, ([it.schema for it in wanted], [it.table for it in wanted])).fetchall()
        head = cursor.execute(_PUBLICATION, (publication,)).fetchone()
        found = {row["name"]: _table(row) for row in rows}
        elsewhere: tuple[str, ...] = ()
        if not {EMAIL_QUEUE.name, CAMPAIGNS.name} <= set(found):
            others = cursor.execute(_ELSEWHERE, (EMAIL_QUEUE.name, mailer_schema, CAMPAIGNS.name)).fetchall()
            elsewhere = tuple(row["name"] for row in others)
    return Structure(
        database=conn.info.dbname,
        mailer_schema=mailer_schema,
        publication_name=publication,
        tables=found,
        publication=None if head is None else _publication(head),
        elsewhere=elsewhere,
    )


_TABLES = """
SELECT n.nspname::text AS schema, c.relname::text AS name, c.relkind::text AS kind,
       c.relpersistence::text AS persistence, c.relispartition AS partition,
       EXISTS (SELECT FROM pg_catalog.pg_inherits h WHERE h.inhparent = c.oid) AS parent,
       pg_catalog.pg_get_userbyid(c.relowner)::text AS owner, pg_catalog.pg_has_role(c.relowner, 'USAGE') AS owned,
       (SELECT jsonb_object_agg(a.attname, jsonb_build_array(t.typname, a.attnotnull))
        FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS columns,
       ARRAY(SELECT k.attname::text
             FROM pg_catalog.pg_index d
             JOIN pg_catalog.pg_attribute k ON k.attrelid = c.oid AND k.attnum = ANY (d.indkey)
             WHERE d.indrelid = c.oid AND d.indisprimary) AS key,
       c.relreplident::text AS identity, CASE WHEN c.relreplident = 'i' THEN x.name END AS identity_index,
       coalesce(x.columns, '{}') AS identity_columns, coalesce(x.usable, false) AS identity_usable
FROM unnest(%s::text[], %s::text[]) WITH ORDINALITY AS w (schema, name, ordinal)
JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema
JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.name
LEFT JOIN LATERAL (
    SELECT i.relname::text AS name, d.indisvalid AND d.indisready AND d.indislive AS usable,
           ARRAY(SELECT a.attname::text FROM unnest(d.indkey::int2[]) WITH ORDINALITY AS k (attnum, place)
                 JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
                 WHERE k.place <= d.indnkeyatts ORDER BY k.place) AS columns
    FROM pg_catalog.pg_index d JOIN pg_catalog.pg_class i ON i.oid = d.indexrelid
    WHERE d.indrelid = c.oid
      AND CASE c.relreplident WHEN 'd' THEN d.indisprimary WHEN 'i' THEN d.indisreplident ELSE false END
    LIMIT 1
) x ON true
ORDER BY w.ordinal
"""

_PUBLICATION = """
SELECT pg_catalog.pg_get_userbyid(b.pubowner)::text AS owner, pg_catalog.pg_has_role(b.pubowner, 'USAGE') AS owned,
       b.puballtables AS all_tables,
       array_remove(ARRAY[CASE WHEN b.pubinsert THEN 'insert' END, CASE WHEN b.pubupdate THEN 'update' END,
                          CASE WHEN b.pubdelete THEN 'delete' END, CASE WHEN b.pubtruncate THEN 'truncate' END], NULL)
           AS actions,
       ARRAY(SELECT n.nspname::text FROM pg_catalog.pg_publication_namespace s
             JOIN pg_catalog.pg_namespace n ON n.oid = s.pnnspid WHERE s.pnpubid = b.oid ORDER BY 1) AS schemas,
       (SELECT jsonb_agg(jsonb_build_array(n.nspname, c.relname, CASE WHEN r.prattrs IS NOT NULL THEN
                   (SELECT jsonb_agg(a.attname) FROM pg_catalog.pg_attribute a
                    WHERE a.attrelid = c.oid AND a.attnum = ANY (r.prattrs::int2[])) END, r.prqual IS NOT NULL)
                         ORDER BY n.nspname, c.relname)
        FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_class c ON c.oid = r.prrelid
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE r.prpubid = b.oid) AS members
FROM pg_catalog.pg_publication b WHERE b.pubname = %s::text
"""

_ELSEWHERE = """
SELECT n.nspname::text AS name
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relname = %s::text AND c.relkind IN ('r', 'p') AND n.nspname <> %s::text
  AND EXISTS (SELECT FROM pg_catalog.pg_class o WHERE o.relnamespace = n.oid AND o.relname = %s::text)
ORDER BY 1
"""


def _table(row: dict[str, Any]) -> Table:
    columns = {name: (kind, not_null) for name, (kind, not_null) in (row["columns"] or {}).items()}
    parts = {"columns": columns, "key": tuple(row["key"]), "identity_columns": tuple(row["identity_columns"])}
    return Table(**{**row, **parts})


def _publication(row: dict[str, Any]) -> Publication:
    return Publication(
        owner=row["owner"],
        owned=row["owned"],
        all_tables=row["all_tables"],
        actions=tuple(row["actions"]),
        schemas=tuple(row["schemas"]),
        members={
            (schema, table): (None if listed is None else tuple(listed), filtered)
            for schema, table, listed, filtered in row["members"] or ()
        },
    )
