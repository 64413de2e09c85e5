"""The least rights that running needs, as data: what ``setup --role`` grants, ``doctor`` looks for and the docs list.

REPLICATION is an attribute of the role and not granted here; see ``docs/rights.md``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import psycopg
from psycopg.rows import dict_row

from connectors.mailer.tables import CAMPAIGNS, EMAIL_QUEUE, TABLES
from connectors.postgres.catalog.names import SCHEMA, quoted

#: tables of ours that running only reads
READ_ONLY: Final = ("schema_version", "setup_state")
_DML: Final = ("SELECT", "INSERT", "UPDATE", "DELETE")

Kind = Literal["database", "schema", "table", "column", "sequence"]


@dataclass(frozen=True, slots=True)
class Right:
    """A privilege on an object, given as identifiers; a column right has the column's name beside it."""

    kind: Kind
    privilege: str
    names: tuple[str, ...]
    column: str = ""

    @property
    def ours(self) -> bool:
        """Whether the object is in our own schema, and goes with it."""
        return self.names[0] == SCHEMA

    @property
    def words(self) -> str:
        """The privilege as GRANT names it."""
        return f"{self.privilege} ({quoted(self.column)})" if self.column else self.privilege


_WORDS: Final = {"table": "", "column": "", "database": "DATABASE ", "schema": "SCHEMA ", "sequence": "SEQUENCE "}


def merged(rights: Iterable[Right]) -> tuple[str, ...]:
    """``SELECT, INSERT ON a, b``: the rights as few GRANT or REVOKE statements take them, in order of appearance."""
    by_object: dict[tuple[str, str], list[str]] = {}
    for right in rights:
        by_object.setdefault((_WORDS[right.kind], quoted(*right.names)), []).append(right.words)
    by_privileges: dict[tuple[str, str], list[str]] = {}
    for (word, name), privileges in by_object.items():
        by_privileges.setdefault((", ".join(privileges), word), []).append(name)
    return tuple(f"{privileges} ON {word}{', '.join(names)}" for (privileges, word), names in by_privileges.items())


def mailer_rights(mailer_schema: str, present: set[str], write_back: bool) -> Iterator[Right]:
    """What is needed on the mailer's side; ``present`` are the names of the tables that exist."""
    yield Right("schema", "USAGE", (mailer_schema,))
    for table in TABLES:
        if table.name in present:
            yield Right("table", "SELECT", (mailer_schema, table.name))
    if write_back and CAMPAIGNS.name in present:
        yield Right("column", "UPDATE", (mailer_schema, CAMPAIGNS.name), "sent")


def own_rights(relations: dict[str, str]) -> Iterator[Right]:
    """What is needed in our schema; ``relations`` are name -> relkind."""
    yield Right("schema", "USAGE", (SCHEMA,))
    for name, kind in sorted(relations.items()):
        if kind == "S":
            yield Right("sequence", "USAGE", (SCHEMA, name))
        elif kind == "v" or name in READ_ONLY:
            yield Right("table", "SELECT", (SCHEMA, name))
        else:
            for privilege in _DML:
                yield Right("table", privilege, (SCHEMA, name))


def missing_rights(conn: psycopg.Connection[Any], role: str, mailer_schema: str, write_back: bool) -> tuple[Right, ...]:
    """What ``role`` lacks of the tables that exist now. ``role`` must exist."""
    with conn.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(
            """
            SELECT n.nspname::text AS schema, c.relname::text AS name, c.relkind::text AS kind
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE n.nspname = ANY (%s::text[]) AND c.relkind IN ('r', 'p', 'v', 'S')
            """,
            ([mailer_schema, SCHEMA],),
        ).fetchall()
        database = str(cursor.execute("SELECT current_database()::text AS d").fetchall()[0]["d"])
        present = {row["name"] for row in rows if row["schema"] == mailer_schema and row["kind"] in "rp"}
        ours = {row["name"]: row["kind"] for row in rows if row["schema"] == SCHEMA}
        needed = [Right("database", "CONNECT", (database,)), *mailer_rights(mailer_schema, present, write_back)]
        if ours:
            needed += own_rights(ours)
        if not {EMAIL_QUEUE.name, CAMPAIGNS.name} & present:
            needed = [right for right in needed if right.names != (mailer_schema,)]
        return tuple(right for right in needed if not _has(cursor, role, right))


def _has(cursor: psycopg.Cursor[dict[str, Any]], role: str, right: Right) -> bool:
    # by oid: looked up by name, an object in a schema that the asking role may not use is an error
    if right.kind in ("database", "schema"):
        statement = f"SELECT has_{right.kind}_privilege(%s::name, %s::text, %s::text) AS has"
        parameters: tuple[str, ...] = (role, right.names[0], right.privilege)
    else:
        column = "%s::text, " if right.kind == "column" else ""
        statement = (
            f"SELECT has_{right.kind}_privilege(%s::name, c.oid, {column}%s::text) AS has FROM pg_class c "  # noqa: S608
            "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s::text AND c.relname = %s::text"
        )
        parameters = (role, *([right.column] if right.column else []), right.privilege, *right.names)
    return bool(cursor.execute(statement.encode(), parameters).fetchall()[0]["has"])
