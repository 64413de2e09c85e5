"""Whether publication and identities are still as ``setup`` made them: the catalog, in one query.

Counting on when they are not would count wrongly and quietly: ``DROP COLUMN ... CASCADE`` of a listed column takes the
whole table out of the publication, an identity that goes back to DEFAULT takes the old status out of every update. So
the reader asks at start, every few seconds, and every recount asks in its own transaction. Only tables of the catalog
are read, by name and under the transaction's snapshot (no ``to_regclass``, no ``::regclass``, which look at the newest
catalog), in a millisecond or two.

A difference is what makes a count wrong or the mailer's statements fail. What is merely different (an added column in
a list, lists taken off for a migration of the mailer) is none: the reader goes by column names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import psycopg
from psycopg.rows import dict_row, tuple_row

from connectors.postgres.catalog.names import (
    ACTIONS,
    IDENTITY_COLUMNS,
    IDENTITY_INDEX,
    SCHEMA,
    Member,
    literal,
    members,
    quoted,
)

Mode = Literal["index", "full", "default", "nothing", "other", "missing"]
_SETUP = "Run `sentstream setup`."


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as setup made it: ``code`` for programs, ``what`` for people, ``fix`` in words or SQL."""

    code: str
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.what} {self.fix}"


# One row a table: what it is, its identity, the index that serves as identity, and its place in the publication.
_TABLES = """
SELECT w.ordinal, c.oid IS NOT NULL AS found, c.relkind, c.relpersistence, c.relreplident, c.relispartition,
       EXISTS (SELECT FROM pg_catalog.pg_inherits h WHERE h.inhparent = c.oid) AS parent,
       x.name AS identity_name, x.columns AS identity_columns, x.usable AS identity_usable,
       ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS columns,
       p.oid IS NOT NULL AS published, p.prqual IS NOT NULL AS filtered, p.columns AS listed
FROM unnest(%(schemas)s::text[], %(tables)s::text[]) WITH ORDINALITY AS w (schema, name, ordinal)
LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema
LEFT JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.name
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
LEFT JOIN LATERAL (
    SELECT r.oid, r.prqual,
           CASE WHEN r.prattrs IS NOT NULL THEN
               ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a
                     WHERE a.attrelid = c.oid AND a.attnum = ANY (r.prattrs::int2[])) END AS columns
    FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication b ON b.oid = r.prpubid
    WHERE b.pubname = %(publication)s AND r.prrelid = c.oid
) p ON true
ORDER BY w.ordinal
"""

_PUBLICATION = """
SELECT b.puballtables,
       array_remove(ARRAY[CASE WHEN b.pubinsert THEN 'insert' END, CASE WHEN b.pubupdate THEN 'update' END,
                          CASE WHEN b.pubdelete THEN 'delete' END, CASE WHEN b.pubtruncate THEN 'truncate' END], NULL)
           AS actions,
       ARRAY(SELECT n.nspname::text FROM pg_catalog.pg_publication_namespace s
             JOIN pg_catalog.pg_namespace n ON n.oid = s.pnnspid WHERE s.pnpubid = b.oid ORDER BY 1) AS schemas,
       ARRAY(SELECT n.nspname || '.' || c.relname FROM pg_catalog.pg_publication_rel r
             JOIN pg_catalog.pg_class c ON c.oid = r.prrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
             WHERE r.prpubid = b.oid
               AND NOT EXISTS (SELECT FROM unnest(%(schemas)s::text[], %(tables)s::text[]) AS w (schema, name)
                               WHERE w.schema = n.nspname AND w.name = c.relname)
             ORDER BY 1) AS others
FROM pg_catalog.pg_publication b WHERE b.pubname = %(publication)s
"""


def check(conn: psycopg.Connection[Any], publication: str, mailer_schema: str) -> list[Difference]:
    """All differences, table by table, then the publication; empty when everything is as setup made it.

    Works inside any transaction, and then tells what its snapshot sees. Needs no right beyond reading the catalog.
    """
    wanted = members(mailer_schema)
    parameters = {
        "publication": publication,
        "schemas": [member.schema for member in wanted],
        "tables": [member.table for member in wanted],
    }
    with conn.cursor(row_factory=dict_row) as cursor:
        tables = cursor.execute(_TABLES, parameters).fetchall()
        head = cursor.execute(_PUBLICATION, parameters).fetchone()
    differences: list[Difference] = []
    for member, row in zip(wanted, tables, strict=True):
        differences += _shape(member, row)
        if row["found"]:
            differences += _identity(member, row)
    differences += _publication(publication, head)
    if head is not None and not head["puballtables"]:
        for member, row in zip(wanted, tables, strict=True):
            if row["found"]:
                differences += _membership(publication, member, row, head["schemas"])
    return differences


def identity_mode(conn: psycopg.Connection[Any], mailer_schema: str) -> Mode:
    """How the queue's old rows reach the WAL: ``index`` (by our index), ``full``, or what counts wrong.

    ``nothing`` is also an identity index that was dropped, or is not valid.
    """
    with conn.cursor(row_factory=tuple_row) as cursor:
        row = cursor.execute(
            """
            SELECT c.relreplident,
                   (SELECT i.relname::text FROM pg_catalog.pg_index d JOIN pg_catalog.pg_class i ON i.oid = d.indexrelid
                    WHERE d.indrelid = c.oid AND d.indisreplident AND d.indisvalid AND d.indislive LIMIT 1)
            FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
            WHERE n.nspname = %s::text AND c.relname = 'email_queue'
            """,
            (mailer_schema,),
        ).fetchone()
    if row is None:
        return "missing"
    letter, index = _letter(row[0]), row[1]
    if letter != "i":
        return _MODES[letter]
    if index is None:
        return "nothing"
    return "index" if index == IDENTITY_INDEX else "other"


_MODES: dict[str, Mode] = {"f": "full", "d": "default", "n": "nothing"}


def countable_from(conn: psycopg.Connection[Any]) -> str | None:
    """LSN from which on publication and identities have been right without a break, as text; None when never noted.

    ``setup`` notes it whenever it had to make the publication or put an identity right. The WAL before it can't be
    counted (and, on servers before 18, can't even be decoded: "publication does not exist"). A slot whose confirmed LSN
    is below it is as good as lost: made again (advancing it would leave transactions that span the point), it begins
    beyond, and the gap rule brings a new baseline.
    """
    with conn.cursor(row_factory=tuple_row) as cursor:
        if cursor.execute("SELECT to_regclass('sentstream.setup_state') IS NULL").fetchall() == [(True,)]:
            return None
        # beyond the end of the WAL: noted on another server, from which this database was copied
        row = cursor.execute(
            """
            SELECT value #>> '{}' FROM sentstream.setup_state
            WHERE key = 'countable_from' AND (value #>> '{}')::pg_lsn <=
                CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END
            """
        ).fetchone()
    return None if row is None else str(row[0])


def _shape(member: Member, row: dict[str, Any]) -> Iterator[Difference]:
    """What kind of table it is."""
    if not row["found"]:
        if member.mailer:
            yield Difference(
                "table_missing",
                f"Table {member.name} does not exist.",
                "Check MAILER_SCHEMA; a plain listmonk without a queue has nothing to count.",
            )
        else:
            yield Difference("schema_missing", f"Table {member.name} does not exist.", _SETUP)
        return
    lost = [column for column in member.columns if column not in row["columns"]]
    if lost:
        yield Difference(
            "column_missing",
            f"{member.name} has no column {', '.join(lost)}.",
            f"Put {'them' if len(lost) > 1 else 'it'} back, then run `sentstream setup`.",
        )
    if not member.mailer:
        return
    kind, persistence = _letter(row["relkind"]), _letter(row["relpersistence"])
    if kind == "p" or row["relispartition"] or row["parent"]:
        how = (
            "partitioned"
            if kind == "p"
            else "a partition of another table"
            if row["relispartition"]
            else "a parent of others"
        )
        yield Difference(
            "table_partitioned",
            f"Table {member.name} is {how}: identities and TRUNCATE of its parts, and DETACH, would go unseen.",
            "Keep the queue in one plain table; partitioned ones can't be counted.",
        )
    elif kind != "r":
        yield Difference("table_kind", f"{member.name} is no table (relkind {kind}).", "Check MAILER_SCHEMA.")
    if persistence != "p":
        yield Difference(
            "table_unlogged",
            f"Table {member.name} is UNLOGGED: its changes are not in the WAL.",
            f"ALTER TABLE {member.name} SET LOGGED;",
        )


def _identity(member: Member, row: dict[str, Any]) -> Iterator[Difference]:
    """What an UPDATE or DELETE logs of the old row."""
    letter = _letter(row["relreplident"])
    columns: Sequence[str] = row["identity_columns"] or ()
    usable = bool(row["identity_usable"])
    if letter == "f":
        return
    if member.is_queue:
        yield from _queue_identity(member, letter, row["identity_name"], columns, usable)
        return
    if letter == "d" and usable and set(columns) <= set(member.columns):
        return
    if letter == "i" and usable and {member.columns[0]} <= set(columns) <= set(member.columns):
        return
    shown = {"d": "DEFAULT without a primary key that is listed", "n": "NOTHING"}.get(
        letter, "an index that lacks its key or is not listed"
    )
    yield Difference(
        f"{member.table}_identity",
        f"The replica identity of {member.name} is {shown}: its updates or deletes can't be followed.",
        f"ALTER TABLE {member.name} REPLICA IDENTITY DEFAULT;",
    )


def _queue_identity(
    member: Member, letter: str, name: str | None, columns: Sequence[str], usable: bool
) -> Iterator[Difference]:
    if letter == "d":
        yield Difference(
            "identity_default",
            f"The replica identity of {member.name} is DEFAULT: updates carry no old status, so they can't be counted.",
            _SETUP,
        )
    elif letter == "n":
        yield Difference(
            "identity_nothing",
            f"The replica identity of {member.name} is NOTHING: the mailer's updates fail while it is published.",
            _SETUP,
        )
    elif name is None:
        yield Difference(
            "identity_index_missing",
            f"The index that was the replica identity of {member.name} is gone: the mailer's updates fail while it is "
            "published.",
            _SETUP,
        )
    elif not usable:
        yield Difference(
            "identity_index_invalid",
            f"Index {quoted(member.schema, name)}, the replica identity of {member.name}, is not valid.",
            _SETUP,
        )
    elif name != IDENTITY_INDEX or set(columns) != set(IDENTITY_COLUMNS):
        yield Difference(
            "identity_other_index",
            f"The replica identity of {member.name} is index {quoted(name)} ({', '.join(columns)}) and not "
            f"{IDENTITY_INDEX} ({', '.join(IDENTITY_COLUMNS)}).",
            _SETUP,
        )


def _publication(publication: str, head: dict[str, Any] | None) -> Iterator[Difference]:
    """The publication as a whole."""
    name = quoted(publication)
    if head is None:
        yield Difference("publication_missing", f"Publication {name} does not exist in this database.", _SETUP)
        return
    if head["puballtables"]:
        yield Difference(
            "publication_all_tables",
            f"Publication {name} is FOR ALL TABLES and so not the one that setup makes.",
            "Choose another name by PUBLICATION and run `sentstream setup`.",
        )
    missing = [action for action in ACTIONS if action not in head["actions"]]
    if missing:
        yield Difference(
            "publication_actions",
            f"Publication {name} leaves out {', '.join(missing)}: such changes go unseen.",
            f"ALTER PUBLICATION {name} SET (publish = {literal(', '.join(ACTIONS))});",
        )
    extra = [f"schema {schema}" for schema in head["schemas"]] + list(head["others"])
    if extra:
        yield Difference(
            "publication_others",
            f"Publication {name} also covers {', '.join(extra)}, which setup did not put there.",
            _drop_extra(name, head),
        )


def _drop_extra(name: str, head: dict[str, Any]) -> str:
    statements = [f"ALTER PUBLICATION {name} DROP TABLES IN SCHEMA {quoted(schema)};" for schema in head["schemas"]]
    statements += [f"ALTER PUBLICATION {name} DROP TABLE {quoted(*other.split('.', 1))};" for other in head["others"]]
    return " ".join(statements)


def _membership(publication: str, member: Member, row: dict[str, Any], schemas: Sequence[str]) -> Iterator[Difference]:
    """How the publication has this table."""
    name = quoted(publication)
    if not row["published"]:
        if member.schema not in schemas:
            yield Difference(
                "table_unpublished",
                f"Table {member.name} is not in publication {name} (DROP COLUMN ... CASCADE of a listed column does "
                "that).",
                _SETUP,
            )
        return
    if row["filtered"]:
        yield Difference(
            "publication_filter", f"Publication {name} has a row filter on {member.name}: rows go unseen.", _SETUP
        )
    listed: Sequence[str] | None = row["listed"]
    if listed is None:
        return
    missing = [column for column in member.columns if column not in listed]
    if missing:
        yield Difference(
            "columns_unlisted",
            f"Publication {name} does not list {', '.join(missing)} of {member.name}.",
            _SETUP,
        )
    if _letter(row["relreplident"]) == "f":
        yield Difference(
            "full_with_list",
            f"{member.name} has REPLICA IDENTITY FULL and a column list in publication {name}: every UPDATE of it "
            "fails.",
            _SETUP if member.is_queue else f"ALTER TABLE {member.name} REPLICA IDENTITY DEFAULT;",
        )


def _letter(value: str | bytes) -> str:
    """A ``"char"`` column, which a binary result gives as bytes."""
    return value.decode() if isinstance(value, bytes) else value


__all__ = ["SCHEMA", "Difference", "Mode", "check", "countable_from", "identity_mode"]
