"""Taking off what setup made: the slot first (it pins WAL), then publication, identity, index, rights and schema.

The mailer's data stays as it is, counters too. The replica identity becomes what setup found; one that was set
otherwise since is left alone. Idempotent: what is gone already makes no step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import psycopg
from psycopg.rows import tuple_row

from connectors.mailer.tables import EMAIL_QUEUE
from connectors.postgres.catalog.facts import Found, Wanted
from connectors.postgres.catalog.look import look
from connectors.postgres.catalog.names import IDENTITY_INDEX, SCHEMA, literal, members, quoted
from connectors.postgres.setup.plan import Plan, Step
from stream.core.finding import Finding, Part, critical


def look_for_teardown(
    conn: psycopg.Connection[Any], slot: str, publication: str, mailer_schema: str
) -> tuple[Found, Rest]:
    """The facts, and what hangs on our schema or was there before it."""
    found = look(conn, Wanted(slot=slot, publication=publication, mailer_schema=mailer_schema, part="replication"))
    return found, Rest(_dependents(conn), _indexes(conn, mailer_schema), _role_names(conn))


class Rest:
    """What only teardown needs to know: views of others on our tables, indexes of the queue, roles that exist."""

    __slots__ = ("dependents", "indexes", "roles")

    def __init__(self, dependents: tuple[str, ...], indexes: frozenset[str], roles: frozenset[str]) -> None:
        self.dependents = dependents
        self.indexes = indexes
        self.roles = roles


def plan_teardown(
    found: Found, rest: Rest, slot: str, publication: str, mailer_schema: str, part: Part | None = None
) -> Plan:
    """Steps in order, of both parts or of one. Obstacles say which role can do what this one may not; the steps before
    them may run."""
    steps: list[Step] = []
    hindering: list[Finding] = []
    notes: list[str] = []
    if found.slot is not None and found.slot.foreign:
        notes.append(f"Slot {quoted(slot)} is of another plugin or database, and stays.")
    elif found.slot is not None:
        if found.replication and part != "owner":
            statement = f"SELECT pg_drop_replication_slot({literal(slot)});"
            steps.append(Step("slot", f"Drop slot {quoted(slot)}", "replication", (statement,)))
        else:
            hindering.append(
                critical(
                    "replication_right",
                    f"Slot {quoted(slot)} goes first, and {quoted(found.user)} "
                    + ("was asked for the owner's part alone." if part == "owner" else "may not drop it."),
                    "Run `sentstream teardown --part replication` as a role with REPLICATION, then "
                    "`sentstream teardown --part owner` as the owner of the tables.",
                    "replication",
                )
            )
            return Plan((), tuple(hindering), ())
    if part == "replication":
        return Plan(tuple(steps), (), tuple(notes))
    owner_steps = list(_owner_steps(found, rest, publication, mailer_schema, notes))
    hindering += _owner_obstacles(found, rest, owner_steps)
    if not hindering:
        steps += owner_steps
    return Plan(tuple(steps), tuple(hindering), tuple(notes))


def _owner_steps(found: Found, rest: Rest, publication: str, mailer_schema: str, notes: list[str]) -> Iterator[Step]:
    if found.publication is not None:
        if _is_ours(found, publication, mailer_schema):
            purpose = f"Drop publication {quoted(publication)}"
            yield Step("publication", purpose, "owner", (f"DROP PUBLICATION {quoted(publication)};",))
        else:
            notes.append(f"Publication {quoted(publication)} covers more than setup put there, and stays.")
    queue = found.tables.get(EMAIL_QUEUE.name)
    if queue is not None:
        name = quoted(mailer_schema, queue.name)
        clause = _old_identity(found, rest, notes)
        if clause:
            statement = f"ALTER TABLE {name} REPLICA IDENTITY {clause};"
            yield Step("identity", f"Replica identity of {name} back to {clause}", "owner", (statement,))
    if found.index is not None and found.index.table == EMAIL_QUEUE.name:
        name = quoted(mailer_schema, IDENTITY_INDEX)
        yield Step("index", f"Drop index {name}", "owner", (f"DROP INDEX CONCURRENTLY {name};",), alone=True)
    grants: Mapping[str, list[str]] = found.state.get("grants", {})
    for role, revokes in grants.items():
        if role in rest.roles and revokes:
            yield Step("rights", f"Take back what {quoted(role)} was granted", "owner", tuple(revokes))
    if found.schema_owner is not None:
        if "schema_version" in found.schema_tables or not found.schema_tables:
            purpose = f"Drop schema {SCHEMA} with its tables: counts, history, recounts, reports"
            yield Step("schema", purpose, "owner", (f"DROP SCHEMA {SCHEMA} CASCADE;",))
        else:
            notes.append(f"Schema {SCHEMA} is not ours, and stays.")


def _is_ours(found: Found, publication: str, mailer_schema: str) -> bool:
    assert found.publication is not None
    ours = {(member.schema, member.table) for member in members(mailer_schema)}
    if found.publication.all_tables or found.publication.schemas or not set(found.publication.members) <= ours:
        return False
    return bool(found.state.get("publication", publication) == publication)


def _old_identity(found: Found, rest: Rest, notes: list[str]) -> str:
    """The clause that restores it; empty when the identity of now is not ours to change."""
    queue = found.tables[EMAIL_QUEUE.name]
    by_index = queue.identity == "i" and (not queue.identity_usable or queue.identity_index == IDENTITY_INDEX)
    by_full = queue.identity == "f" and found.state.get("identity_mode") == "full"
    if not by_index and not by_full:
        return ""
    old = found.state.get("replica_identity", {"kind": "d", "index": None})
    kind, index = old.get("kind"), old.get("index")
    if kind == "i" and index not in rest.indexes:
        notes.append(f"Index {index}, the replica identity before setup, is gone: it becomes DEFAULT.")
        kind = "d"
    clause = {"d": "DEFAULT", "n": "NOTHING", "f": "FULL", "i": f"USING INDEX {quoted(index or '')}"}[kind]
    return "" if kind == queue.identity == "f" else clause


def _owner_obstacles(found: Found, rest: Rest, steps: list[Step]) -> Iterator[Finding]:
    codes = {step.code for step in steps}
    owners = set()
    queue = found.tables.get(EMAIL_QUEUE.name)
    if queue is not None and not queue.owned and codes & {"identity", "index"}:
        owners.add(queue.owner)
    if found.publication is not None and not found.publication.owned and "publication" in codes:
        owners.add(found.publication.owner)
    if found.schema_owner is not None and not found.schema_owned and "schema" in codes:
        owners.add(found.schema_owner)
    if owners:
        names = " and ".join(quoted(owner) for owner in sorted(owners))
        yield critical(
            "owner_right",
            f"{quoted(found.user)} may not take off publication, index and schema; they belong to {names}.",
            f"Run `sentstream teardown` as {names}.",
        )
    if rest.dependents and "schema" in codes:
        yield critical(
            "schema_used",
            f"Views of others use schema {SCHEMA}: {', '.join(rest.dependents)}.",
            " ".join(f"DROP VIEW {view};" for view in rest.dependents),
        )


def _dependents(conn: psycopg.Connection[Any]) -> tuple[str, ...]:
    with conn.cursor(row_factory=tuple_row) as cursor:
        rows = cursor.execute(
            """
            SELECT DISTINCT vn.nspname::text, v.relname::text
            FROM pg_depend d
            JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
            JOIN pg_class v ON v.oid = r.ev_class JOIN pg_namespace vn ON vn.oid = v.relnamespace
            JOIN pg_class t ON d.refclassid = 'pg_class'::regclass AND t.oid = d.refobjid
            JOIN pg_namespace tn ON tn.oid = t.relnamespace
            WHERE tn.nspname = %s::text AND vn.nspname <> %s::text ORDER BY 1, 2
            """,
            (SCHEMA, SCHEMA),
        ).fetchall()
    return tuple(quoted(schema, view) for schema, view in rows)


def _indexes(conn: psycopg.Connection[Any], mailer_schema: str) -> frozenset[str]:
    with conn.cursor(row_factory=tuple_row) as cursor:
        rows = cursor.execute(
            """
            SELECT i.relname::text FROM pg_index d JOIN pg_class i ON i.oid = d.indexrelid
            JOIN pg_class t ON t.oid = d.indrelid JOIN pg_namespace n ON n.oid = t.relnamespace
            WHERE n.nspname = %s::text AND t.relname = %s::text AND d.indisvalid
            """,
            (mailer_schema, EMAIL_QUEUE.name),
        ).fetchall()
    return frozenset(name for (name,) in rows)


def _role_names(conn: psycopg.Connection[Any]) -> frozenset[str]:
    with conn.cursor(row_factory=tuple_row) as cursor:
        return frozenset(name for (name,) in cursor.execute("SELECT rolname::text FROM pg_roles").fetchall())
