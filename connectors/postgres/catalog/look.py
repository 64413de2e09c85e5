"""What is there: the facts about server, mailer, schema, publication and slot that the plan is made from.

Only looks. Rights that are missing for a look show as facts (``owned = False``), never as errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg.rows import dict_row

from connectors.mailer.tables import CAMPAIGNS, EMAIL_QUEUE
from connectors.postgres.catalog.countable import countable_from
from connectors.postgres.catalog.facts import Conflict, Found, Index, Table, Wanted
from connectors.postgres.catalog.names import IDENTITY_INDEX, SCHEMA, quoted
from connectors.postgres.catalog.rights import missing_rights
from connectors.postgres.catalog.slots import find_slot
from connectors.postgres.catalog.structure import read_structure
from stream.core.status import STATUSES


def look(conn: psycopg.Connection[Any], wanted: Wanted) -> Found:
    """The facts, through ``conn``, which must be in autocommit mode. Takes no lock that holds up others."""
    server = _one(conn, _SERVER)
    state = _state(conn)
    structure = read_structure(conn, wanted.publication, wanted.mailer_schema)
    since = countable_from(conn) if state else None
    roles = _roles(conn, wanted, state)
    return Found(
        version=server["version"] // 10000,
        recovering=server["recovering"],
        wal_level=server["wal_level"],
        effective_wal_level=server["effective_wal_level"],
        database=server["database"],
        user=server["role"],
        superuser=server["superuser"],
        replication=server["replication"],
        may_create=server["may_create"],
        may_index=_may_index(conn, wanted.mailer_schema),
        state=state,
        structure=structure,
        index=_index(conn, wanted.mailer_schema),
        conflicts=_conflicts(conn, wanted),
        taking_all=tuple(row["name"] for row in _all(conn, _TAKING_ALL, (wanted.publication,))),
        countable_from=since,
        slot=find_slot(conn, wanted.slot, since),
        roles=roles,
        missing={
            role: missing_rights(conn, role, wanted.mailer_schema, wanted.write_back)
            for role, (exists, _) in roles.items()
            if exists
        },
        **_schema(conn),
        **_uncountable(conn, wanted.mailer_schema, structure.tables if wanted.owns else {}),
    )


_SERVER = """
SELECT current_setting('server_version_num')::int AS version, pg_is_in_recovery() AS recovering,
       current_setting('wal_level') AS wal_level,
       current_setting('effective_wal_level', true) AS effective_wal_level,
       current_database()::text AS database, current_user::text AS role,
       r.rolsuper AS superuser,
       r.rolsuper OR r.rolreplication OR EXISTS (SELECT FROM pg_roles m WHERE m.rolname = 'rds_replication'
                                                 AND pg_has_role(m.oid, 'USAGE')) AS replication,
       has_database_privilege(current_database(), 'CREATE') AS may_create
FROM pg_roles r WHERE r.rolname = current_user
"""

# the queue is read once, and by the identity index alone where that is there
_UNCOUNTABLE = """
WITH grouped AS MATERIALIZED (
    SELECT campaign_id, status::text AS status, count(*) AS n FROM {queue} GROUP BY 1, 2
)
SELECT 'status' AS what, status AS value, sum(n) AS n FROM grouped
WHERE status <> ALL (%s::text[]) OR status IS NULL GROUP BY 2
UNION ALL
SELECT 'campaign', g.campaign_id::text, sum(g.n) FROM grouped g
WHERE NOT EXISTS (SELECT FROM {campaigns} c WHERE c.id = g.campaign_id) GROUP BY 2
ORDER BY 1, 2
"""

_INDEX = """
SELECT coalesce(t.relname::text, i.relname::text) AS "table", d.indexrelid IS NOT NULL
           AND d.indisunique AND d.indimmediate AND d.indpred IS NULL AND d.indexprs IS NULL AS plain,
       coalesce(d.indisvalid AND d.indisready AND d.indislive, false) AS valid,
       ARRAY(SELECT a.attname::text FROM unnest(d.indkey::int2[]) WITH ORDINALITY AS k (attnum, place)
             JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = k.attnum ORDER BY k.place) AS columns,
       (SELECT min(b.pid) FROM pg_stat_progress_create_index b
        WHERE b.index_relid = i.oid AND b.datname = current_database()) AS builder
FROM pg_class i JOIN pg_namespace n ON n.oid = i.relnamespace
LEFT JOIN pg_index d ON d.indexrelid = i.oid LEFT JOIN pg_class t ON t.oid = d.indrelid
WHERE n.nspname = %s::text AND i.relname = %s::text
"""

# pg_depend knows which columns a list or a filter uses; those of a filter alone are what the list does not explain
_CONFLICTS = """
SELECT b.pubname::text AS publication,
       CASE WHEN r.prattrs IS NOT NULL THEN
           ARRAY(SELECT a.attname::text FROM pg_attribute a
                 WHERE a.attrelid = r.prrelid AND a.attnum = ANY (r.prattrs::int2[])) END AS listed,
       CASE WHEN r.prqual IS NOT NULL THEN
           ARRAY(SELECT a.attname::text FROM pg_depend d
                 JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
                 WHERE d.classid = 'pg_publication_rel'::regclass AND d.objid = r.oid AND d.refobjid = r.prrelid
                   AND d.refobjsubid > 0 AND NOT a.attnum = ANY (coalesce(r.prattrs::int2[], '{}'))) END AS filtered
FROM pg_publication b JOIN pg_publication_rel r ON r.prpubid = b.oid
JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s::text AND c.relname = %s::text AND b.pubname <> %s::text AND (b.pubupdate OR b.pubdelete)
  AND (r.prattrs IS NOT NULL OR r.prqual IS NOT NULL)
ORDER BY 1
"""

_TAKING_ALL = """
SELECT pubname::text AS name FROM pg_publication WHERE puballtables AND pubname <> %s::text ORDER BY 1
"""


def _may_index(conn: psycopg.Connection[Any], schema: str) -> bool:
    """Whether a new index may go into the mailer's schema; also where there is no such schema."""
    rows = _all(
        conn, "SELECT has_schema_privilege(oid, 'CREATE') AS may FROM pg_namespace WHERE nspname = %s::text", (schema,)
    )
    return not rows or bool(rows[0]["may"])


def _uncountable(conn: psycopg.Connection[Any], schema: str, tables: Mapping[str, Table]) -> dict[str, Any]:
    """Rows of the queue that can't be counted, with their number: those whose status is none of the five, and those
    whose campaign does not exist. None where the tables can't be read."""
    found: dict[str, list[tuple[str, int]]] = {"status": [], "campaign": []}
    queue, campaigns = tables.get(EMAIL_QUEUE.name), tables.get(CAMPAIGNS.name)
    if (
        queue is not None
        and campaigns is not None
        and {"campaign_id", "status"} <= set(queue.columns)
        and "id" in campaigns.columns
    ):
        statement = _UNCOUNTABLE.format(
            queue=quoted(schema, EMAIL_QUEUE.name), campaigns=quoted(schema, CAMPAIGNS.name)
        )
        try:
            rows = _all(conn, statement, (list(STATUSES),))
        except psycopg.errors.InsufficientPrivilege:
            rows = []
        for row in rows:
            value = "NULL" if row["value"] is None else repr(row["value"]) if row["what"] == "status" else row["value"]
            found[row["what"]].append((value, int(row["n"])))
    return {"bad_statuses": tuple(found["status"]), "orphans": tuple(found["campaign"])}


def _index(conn: psycopg.Connection[Any], schema: str) -> Index | None:
    for row in _all(conn, _INDEX, (schema, IDENTITY_INDEX)):
        return Index(row["table"], tuple(row["columns"]), row["plain"], row["valid"], row["builder"])
    return None


def _conflicts(conn: psycopg.Connection[Any], wanted: Wanted) -> tuple[Conflict, ...]:
    rows = _all(conn, _CONFLICTS, (wanted.mailer_schema, EMAIL_QUEUE.name, wanted.publication))
    return tuple(
        Conflict(
            row["publication"],
            None if row["listed"] is None else tuple(row["listed"]),
            tuple(row["filtered"] or ()),
        )
        for row in rows
    )


def _schema(conn: psycopg.Connection[Any]) -> dict[str, Any]:
    """Owner, tables and version of the schema sentstream."""
    rows = _all(
        conn,
        """
        SELECT pg_get_userbyid(n.nspowner)::text AS owner,
               pg_has_role(n.nspowner, 'USAGE') OR has_schema_privilege(n.oid, 'CREATE') AS owned,
               ARRAY(SELECT c.relname::text FROM pg_class c WHERE c.relnamespace = n.oid AND c.relkind = 'r' ORDER BY 1)
                   AS tables
        FROM pg_namespace n WHERE n.nspname = %s::text
        """,
        (SCHEMA,),
    )
    facts: dict[str, Any] = {"schema_owner": None, "schema_owned": False, "schema_tables": (), "schema_version": None}
    for row in rows:
        facts |= {"schema_owner": row["owner"], "schema_owned": row["owned"], "schema_tables": tuple(row["tables"])}
        if "schema_version" in row["tables"]:
            facts["schema_version"] = _readable(
                conn, "SELECT coalesce(max(version), 0) AS v FROM sentstream.schema_version"
            )
    return facts


def _state(conn: psycopg.Connection[Any]) -> dict[str, Any]:
    found = _all(
        conn,
        "SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = 'sentstream' AND c.relname = 'setup_state'",
        (),
    )
    if not found:
        return {}
    value = _readable(conn, "SELECT coalesce(jsonb_object_agg(key, value), '{}') AS v FROM sentstream.setup_state")
    return dict(value or {})


def _roles(conn: psycopg.Connection[Any], wanted: Wanted, state: Mapping[str, Any]) -> dict[str, tuple[bool, bool]]:
    """Roles that run: the one asked for and those of earlier setups; each with (exists, may replicate)."""
    names = list(dict.fromkeys([*([wanted.role] if wanted.role else []), *state.get("grants", {})]))
    rows = _all(
        conn,
        "SELECT rolname::text AS name, rolsuper OR rolreplication AS replicates FROM pg_roles "
        "WHERE rolname = ANY (%s::text[])",
        (names,),
    )
    known = {row["name"]: row["replicates"] for row in rows}
    return {name: (name in known, known.get(name, False)) for name in names if name in known or name == wanted.role}


def _readable(conn: psycopg.Connection[Any], statement: str) -> Any:
    """One value ``v``, or None where the role may not read it."""
    try:
        return _all(conn, statement, ())[0]["v"]
    except psycopg.errors.InsufficientPrivilege:
        return None


def _all(conn: psycopg.Connection[Any], statement: str, parameters: tuple[Any, ...]) -> list[dict[str, Any]]:
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(statement.encode(), parameters or None).fetchall()


def _one(conn: psycopg.Connection[Any], statement: str) -> dict[str, Any]:
    return _all(conn, statement, ())[0]
