"""Whether tables, identities and publication are as ``setup`` makes them: findings, from what the catalog says.

Counting on when they are not would count wrongly and quietly: ``DROP COLUMN ... CASCADE`` of a listed column takes the
whole table out of the publication, an identity that goes back to DEFAULT takes the old status out of every update. So
the reader asks at start, every few seconds, and every recount asks in its own transaction.

A finding is what makes a count wrong or the mailer's statements fail. What is merely different (an added column in
a list, lists taken off for a migration of the mailer) is none: the reader goes by column names.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import psycopg

from connectors.mailer.tables import CAMPAIGNS
from connectors.postgres.catalog.facts import Publication, Structure, Table
from connectors.postgres.catalog.names import (
    ACTIONS,
    IDENTITY_COLUMNS,
    IDENTITY_INDEX,
    Member,
    literal,
    quoted,
)
from connectors.postgres.catalog.structure import read_structure
from stream.core.finding import Finding, critical

#: findings of the mailer's tables themselves, which no setup can mend
OF_TABLES: Final = frozenset(
    {"table_missing", "table_partitioned", "table_kind", "table_unlogged", "column_missing", "campaigns_identity"}
)
#: counters are written, so a standby can't serve
STANDBY: Final = critical("server_standby", "The server is a standby: read-only.", "Point DATABASE_URL at the primary.")
_SETUP: Final = "Run `sentstream setup`."


def check(conn: psycopg.Connection[Any], publication: str, mailer_schema: str) -> list[Finding]:
    """All that is not as setup makes it, as the transaction's snapshot sees it; empty when everything is."""
    return conformance(read_structure(conn, publication, mailer_schema))


def conformance(structure: Structure) -> list[Finding]:
    """The tables first, then the identities, then the publication."""
    return [*table_findings(structure), *_identities(structure), *publication_findings(structure), *_members(structure)]


def table_findings(structure: Structure, *, mailer_alone: bool = False) -> Iterator[Finding]:
    """Tables that are missing, or of a kind that can't be counted; of all that are published, or of the mailer's."""
    for member in structure.members:
        if mailer_alone and not member.mailer:
            continue
        table = structure.tables.get(member.table)
        if table is None:
            yield _missing(structure, member)
            continue
        lost = [column for column in member.columns if column not in table.columns]
        if lost:
            yield critical(
                "column_missing",
                f"{member.name} has no column {', '.join(lost)}.",
                f"Put {'them' if len(lost) > 1 else 'it'} back, then run `sentstream setup`; or check MAILER_SCHEMA, "
                "if this is not the mailer's table.",
            )
        if member.mailer:
            yield from _kind(member, table)


def publication_findings(structure: Structure) -> Iterator[Finding]:
    """The publication as a whole, where it takes in what setup did not put there."""
    publication, name = structure.publication, quoted(structure.publication_name)
    if publication is None:
        return
    if publication.all_tables:
        yield critical(
            "publication_all_tables",
            f"Publication {name} is FOR ALL TABLES and so not the one that setup makes.",
            f"Choose another name by PUBLICATION, or drop it if nothing reads it: DROP PUBLICATION {name};",
        )
        return
    ours = {(member.schema, member.table) for member in structure.members}
    others = [member for member in publication.members if member not in ours]
    extra = [f"schema {schema}" for schema in publication.schemas] + [".".join(other) for other in others]
    if extra:
        drops = [f"ALTER PUBLICATION {name} DROP TABLES IN SCHEMA {quoted(schema)};" for schema in publication.schemas]
        drops += [f"ALTER PUBLICATION {name} DROP TABLE {quoted(*other)};" for other in others]
        yield critical(
            "publication_others",
            f"Publication {name} also covers {', '.join(extra)}, which setup did not put there.",
            f"{' '.join(drops)} -- or, if something reads them there, choose another name by PUBLICATION",
        )


def publication_missing(structure: Structure) -> Finding:
    """There is none of our name."""
    return critical(
        "publication_missing",
        f"Publication {quoted(structure.publication_name)} does not exist in this database.",
        "Run `sentstream setup --part owner` first; a slot older than its publication can't be read.",
        "replication",
    )


def campaigns_identity(table: Table, shown: str) -> Finding:
    """The replica identity of ``campaigns`` is not its primary key."""
    return _identity_finding(quoted(table.schema, table.name), table.name, shown)


def _missing(structure: Structure, member: Member) -> Finding:
    if not member.mailer:
        return critical("schema_missing", f"Table {member.name} does not exist.", _SETUP)
    where = f"Database {quoted(structure.database)} has no table {member.name}"
    if structure.elsewhere:
        fix = f"Schema {' and schema '.join(structure.elsewhere)} has one: set MAILER_SCHEMA={structure.elsewhere[0]}."
    elif member.is_queue and CAMPAIGNS.name in structure.tables:
        where += ", though it has campaigns: a plain listmonk without a queue"
        fix = "There is nothing to count without the queue; check DATABASE_URL."
    else:
        fix = "Check DATABASE_URL and MAILER_SCHEMA."
    return critical("table_missing", f"{where}.", fix)


def _kind(member: Member, table: Table) -> Iterator[Finding]:
    if table.kind == "p" or table.partition or table.parent:
        how = "partitioned" if table.kind == "p" else "a partition" if table.partition else "a parent of other tables"
        yield critical(
            "table_partitioned",
            f"Table {member.name} is {how}: identities and TRUNCATE of its parts, and DETACH, would go unseen.",
            "Keep the queue in one plain table; partitioned ones can't be counted.",
        )
    elif table.kind != "r":
        yield critical("table_kind", f"{member.name} is not a table (relkind {table.kind}).", "Check MAILER_SCHEMA.")
    elif table.persistence != "p":
        yield critical(
            "table_unlogged",
            f"Table {member.name} is UNLOGGED: its changes are not in the WAL.",
            f"ALTER TABLE {member.name} SET LOGGED;",
        )


def _identities(structure: Structure) -> Iterator[Finding]:
    """What an UPDATE or DELETE logs of the old row."""
    for member in structure.members:
        table = structure.tables.get(member.table)
        if table is None or table.identity == "f":
            continue
        if member.is_queue:
            yield from _queue_identity(member.name, table)
            continue
        columns, listed = set(table.identity_columns), set(member.columns)
        by_key = table.identity == "d" and table.identity_usable and columns <= listed
        by_index = table.identity == "i" and table.identity_usable and {member.columns[0]} <= columns <= listed
        if not by_key and not by_index:
            shown = {"d": "DEFAULT without a primary key that is listed", "n": "NOTHING"}
            lacking = "an index that lacks its key or is not listed"
            yield _identity_finding(member.name, member.table, shown.get(table.identity, lacking))


def _queue_identity(name: str, table: Table) -> Iterator[Finding]:
    if table.identity == "d":
        yield critical(
            "identity_default",
            f"The replica identity of {name} is DEFAULT: updates carry no old status, so they can't be counted.",
            _SETUP,
        )
    elif table.identity == "n":
        yield critical(
            "identity_nothing",
            f"The replica identity of {name} is NOTHING: the mailer's updates fail while it is published.",
            _SETUP,
        )
    elif table.identity_index is None:
        yield critical(
            "identity_index_missing",
            f"The index that was the replica identity of {name} is gone: the mailer's updates fail while it is "
            "published.",
            _SETUP,
        )
    elif not table.identity_usable:
        yield critical(
            "identity_index_invalid",
            f"Index {quoted(table.schema, table.identity_index)}, the replica identity of {name}, is not valid.",
            _SETUP,
        )
    elif table.identity_index != IDENTITY_INDEX or set(table.identity_columns) != set(IDENTITY_COLUMNS):
        yield critical(
            "identity_other_index",
            f"The replica identity of {name} is index {quoted(table.identity_index)} "
            f"({', '.join(table.identity_columns)}) and not {IDENTITY_INDEX} ({', '.join(IDENTITY_COLUMNS)}).",
            _SETUP,
        )


def _identity_finding(name: str, table: str, shown: str) -> Finding:
    return critical(
        f"{table}_identity",
        f"The replica identity of {name} is {shown}: once published, its updates fail or can't be followed.",
        f"ALTER TABLE {name} REPLICA IDENTITY DEFAULT;",
    )


def _members(structure: Structure) -> Iterator[Finding]:
    """What the publication lacks."""
    publication = structure.publication
    if publication is None:
        yield publication_missing(structure)
        return
    name = quoted(structure.publication_name)
    missing = [action for action in ACTIONS if action not in publication.actions]
    if missing:
        yield critical(
            "publication_actions",
            f"Publication {name} leaves out {', '.join(missing)}: such changes go unseen.",
            f"ALTER PUBLICATION {name} SET (publish = {literal(', '.join(ACTIONS))});",
        )
    if publication.all_tables:
        return
    for member in structure.members:
        if member.table in structure.tables:
            yield from _member(name, member, structure.tables[member.table], publication)


def _member(name: str, member: Member, table: Table, publication: Publication) -> Iterator[Finding]:
    """How the publication has this table."""
    if (member.schema, member.table) not in publication.members:
        if member.schema not in publication.schemas:
            yield critical(
                "table_unpublished",
                f"Table {member.name} is not in publication {name} (DROP COLUMN ... CASCADE of a listed column does "
                "that).",
                _SETUP,
            )
        return
    listed, filtered = publication.members[member.schema, member.table]
    if filtered:
        yield critical(
            "publication_filter", f"Publication {name} has a row filter on {member.name}: rows go unseen.", _SETUP
        )
    if listed is None:
        return
    missing = [column for column in member.columns if column not in listed]
    if missing:
        yield critical(
            "columns_unlisted", f"Publication {name} does not list {', '.join(missing)} of {member.name}.", _SETUP
        )
    if table.identity == "f":
        yield critical(
            "full_with_list",
            f"{member.name} has REPLICA IDENTITY FULL and a column list in publication {name}: every UPDATE of it "
            "fails.",
            _SETUP if member.is_queue else f"ALTER TABLE {member.name} REPLICA IDENTITY DEFAULT;",
        )
