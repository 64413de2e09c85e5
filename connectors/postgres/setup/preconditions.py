"""What a person must put right before setup may go on: findings, each a function of the facts, each with the fix.

Setup tells all of them at once and changes nothing while there are any; doctor takes its findings from here where both
look at the same thing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from connectors.mailer.tables import CAMPAIGNS, EMAIL_QUEUE, Column, needed
from connectors.postgres.catalog.conformance import (
    STANDBY,
    campaigns_identity,
    publication_findings,
    publication_missing,
    table_findings,
)
from connectors.postgres.catalog.facts import Found, Table, Wanted, mode
from connectors.postgres.catalog.names import IDENTITY_COLUMNS, IDENTITY_INDEX, SCHEMA, quoted
from connectors.postgres.catalog.slots import unusable
from connectors.postgres.setup.versions import migrations
from stream.core.finding import Finding, critical
from stream.core.status import STATUSES

#: publications with column lists and row filters, UNIQUE NULLS, security_invoker: all begin here
OLDEST_SERVER: Final = 15
#: campaigns named in a finding
_SHOWN: Final = 5
#: in the way only where the owner has something to make or change
OF_OWNERS: Final = frozenset({"owner_right", "schema_owner", "publication_owner"})


def unmet(found: Found, wanted: Wanted) -> tuple[Finding, ...]:
    """All of them, for the parts that are asked for."""
    server = [*server_version(found), *server_standby(found)]
    if server:
        return tuple(server)
    findings: list[Finding] = []
    if wanted.owns:
        findings += mailer_tables(found, wanted)
        findings += _owner(found, wanted)
        findings += _own_schema(found, wanted)
        findings += _index(found, wanted)
        findings += _publication(found, wanted)
        findings += publication_conflicts(found, wanted)
        findings += _role(found, wanted)
    if wanted.replicates:
        findings += _slot(found, wanted)
    return tuple(findings)


def server_version(found: Found) -> Iterator[Finding]:
    """Column lists of publications came with 15."""
    if found.version < OLDEST_SERVER:
        yield critical(
            "server_version",
            f"The server is PostgreSQL {found.version}; column lists of publications need {OLDEST_SERVER} or later.",
            "Upgrade the server.",
        )


def server_standby(found: Found) -> Iterator[Finding]:
    """Counters are written, so a standby can't serve."""
    if found.recovering:
        yield STANDBY


def wal_level(found: Found) -> Iterator[Finding]:
    """Whether the WAL can be decoded. A server that has ``effective_wal_level`` raises ``replica`` by itself."""
    raises = found.effective_wal_level is not None and found.wal_level == "replica"
    if found.wal_level != "logical" and not raises:
        yield critical(
            "wal_level",
            f"wal_level is {found.wal_level}; logical decoding needs logical.",
            "ALTER SYSTEM SET wal_level = 'logical'; -- then restart the server",
            "replication",
        )


def replication_right(found: Found) -> Iterator[Finding]:
    """Making a slot and reading it is a right of its own."""
    if not found.replication:
        yield critical(
            "replication_right",
            f"Role {quoted(found.user)} has no REPLICATION right: it can neither make a slot nor read the WAL.",
            f"ALTER ROLE {quoted(found.user)} REPLICATION; -- or use a role that has it",
            "replication",
        )


def mailer_tables(found: Found, wanted: Wanted) -> Iterator[Finding]:
    """The two tables that are counted."""
    yield from table_findings(found.structure, mailer_alone=True)
    for table in found.structure.mailer_tables:
        yield from _columns(table)
    if found.bad_statuses:
        shown = ", ".join(f"{status} ({count} rows)" for status, count in found.bad_statuses)
        yield critical(
            "status_unknown",
            f"{quoted(wanted.mailer_schema, EMAIL_QUEUE.name)} has rows whose status is none of {', '.join(STATUSES)}: "
            f"{shown}.",
            "Give these rows one of the five statuses, or delete them.",
        )
    if found.orphans:
        queue, campaigns_name = (quoted(wanted.mailer_schema, name) for name in (EMAIL_QUEUE.name, CAMPAIGNS.name))
        shown = ", ".join(f"{campaign} ({count} rows)" for campaign, count in found.orphans[:_SHOWN])
        more = f" and {len(found.orphans) - _SHOWN} others" if len(found.orphans) > _SHOWN else ""
        yield critical(
            "campaign_missing",
            f"{queue} has rows of campaigns that do not exist: {shown}{more}.",
            f"DELETE FROM {queue} q WHERE NOT EXISTS (SELECT FROM {campaigns_name} c WHERE c.id = q.campaign_id);",  # noqa: S608
        )
    campaigns = found.tables.get(CAMPAIGNS.name)
    if campaigns is not None and campaigns.identity != "d":
        shown = {"f": "FULL", "n": "NOTHING"}.get(campaigns.identity, f"an index ({campaigns.identity_index})")
        yield campaigns_identity(campaigns, shown)
    elif campaigns is not None and set(campaigns.key) != {"id"}:
        name = quoted(wanted.mailer_schema, campaigns.name)
        what = f"({', '.join(campaigns.key)})" if campaigns.key else "missing"
        yield critical(
            "campaigns_key",
            f"The primary key of {name} is {what}, not (id): once published, the mailer's updates of it would fail.",
            f"ALTER TABLE {name} ADD PRIMARY KEY (id); -- in place of another one, if there is one",
        )


def _owner(found: Found, wanted: Wanted) -> Iterator[Finding]:
    owners = {table.owner for table in found.structure.mailer_tables if not table.owned}
    for owner in sorted(owners):
        yield critical(
            "owner_right",
            f"Only the owner of the mailer's tables in {quoted(wanted.mailer_schema)}, {quoted(owner)}, may index and "
            "publish them.",
            f"Run `sentstream setup --part owner` as {quoted(owner)}.",
        )


def _columns(table: Table) -> Iterator[Finding]:
    name = quoted(table.schema, table.name)
    for of, column in needed():
        if of.name != table.name or column.name not in table.columns:
            continue
        kind, not_null = table.columns[column.name]
        if kind not in column.types:
            yield critical(
                "column_type",
                f"{name}.{column.name} is of type {kind}; it can be counted as {', '.join(column.types)}.",
                _retyped(name, column, kind),
            )
        if table.name == EMAIL_QUEUE.name and not not_null:
            yield critical(
                "column_nullable",
                f"{name}.{column.name} may be NULL; an identity index needs it NOT NULL.",
                f"ALTER TABLE {name} ALTER COLUMN {quoted(column.name)} SET NOT NULL;",
            )


def _retyped(table: str, column: Column, kind: str) -> str:
    """SQL where a cast exists and loses nothing that a counter has; words where a person has to decide."""
    if "int4" in column.types and kind in ("numeric", "float4", "float8"):
        return f"ALTER TABLE {table} ALTER COLUMN {quoted(column.name)} TYPE bigint;"
    return "Give it one of these types, if this is the mailer's table at all; is MAILER_SCHEMA right?"


def _own_schema(found: Found, wanted: Wanted) -> Iterator[Finding]:
    """The schema sentstream: ours, of our release or older, for this mailer's schema and publication."""
    if found.schema_owner is None:
        if not found.may_create:
            yield _create_right(found, "schema")
        return
    if not found.schema_owned:
        yield critical(
            "schema_owner",
            f"Schema {SCHEMA} belongs to {quoted(found.schema_owner)}.",
            f"Run `sentstream setup --part owner` as {quoted(found.schema_owner)}.",
        )
    elif found.schema_tables and "schema_version" not in found.schema_tables:
        yield critical(
            "schema_foreign",
            f"Schema {SCHEMA} is not ours: it has tables ({', '.join(found.schema_tables[:3])}) but no schema_version.",
            f"ALTER SCHEMA {SCHEMA} RENAME TO {SCHEMA}_old;",
        )
    else:
        yield from schema_newer(found)
    for key, now in (("mailer_schema", wanted.mailer_schema), ("publication", wanted.publication)):
        before = found.state.get(key)
        if before is not None and before != now:
            yield critical(
                f"{key}_changed",
                f"This database was set up with {key.upper()}={before}, and is now asked for {now}.",
                f"Set {key.upper()}={before}; or run `sentstream teardown` with it first.",
            )


def schema_newer(found: Found) -> Iterator[Finding]:
    """A newer release has been here."""
    newest = migrations()[-1].version
    if found.schema_version is not None and found.schema_version > newest:
        yield critical(
            "schema_newer",
            f"Schema {SCHEMA} has version {found.schema_version}, written by a newer release; this one knows {newest}.",
            "Use the newer release of sentstream.",
        )


def _index(found: Found, wanted: Wanted) -> Iterator[Finding]:
    index = found.index
    if not found.may_index and (index is None or not index.valid):
        schema, user = quoted(wanted.mailer_schema), quoted(found.user)
        yield critical(
            "index_right",
            f"{user} may not create an index in schema {schema}.",
            f"GRANT CREATE ON SCHEMA {schema} TO {user};",
        )
    if index is None:
        return
    name = quoted(wanted.mailer_schema, IDENTITY_INDEX)
    if index.builder is not None:
        yield index_building(wanted, index.builder)
    elif index.table != EMAIL_QUEUE.name or (index.valid and (not index.plain or index.columns != IDENTITY_COLUMNS)):
        yield critical(
            "index_foreign",
            f"{name} exists and is not a unique index of {EMAIL_QUEUE.name} ({', '.join(IDENTITY_COLUMNS)}).",
            f"ALTER INDEX {name} RENAME TO {quoted(IDENTITY_INDEX + '_old')};",
        )


def index_building(wanted: Wanted, builder: int) -> Finding:
    """Another session builds our index."""
    return critical(
        "index_building",
        f"Index {quoted(wanted.mailer_schema, IDENTITY_INDEX)} is being built by process {builder} right now.",
        f"Wait for it, or SELECT pg_terminate_backend({builder});",
    )


def _publication(found: Found, wanted: Wanted) -> Iterator[Finding]:
    publication = found.publication
    if publication is None:
        if found.schema_owner is not None and not found.may_create:
            yield _create_right(found, "publication")
        return
    foreign = list(publication_findings(found.structure))
    yield from foreign
    if not foreign and not publication.owned:
        yield critical(
            "publication_owner",
            f"Publication {quoted(wanted.publication)} belongs to {quoted(publication.owner)}.",
            f"Run `sentstream setup --part owner` as {quoted(publication.owner)}.",
        )


def _create_right(found: Found, thing: str) -> Finding:
    user, database = quoted(found.user), quoted(found.database)
    return critical(
        "create_right",
        f"{user} may not create a {thing} in database {database}.",
        f"GRANT CREATE ON DATABASE {database} TO {user};",
    )


def publication_conflicts(found: Found, wanted: Wanted) -> Iterator[Finding]:
    """Publications of others, under which the mailer's updates would fail with the identity we are about to set."""
    full = mode(found, wanted) == "full"
    for conflict in found.conflicts:
        name = quoted(conflict.publication)
        if conflict.listed is not None and (full or not set(IDENTITY_COLUMNS) <= set(conflict.listed)):
            need = (
                "no column list at all (REPLICA IDENTITY FULL)"
                if full
                else f"a list with {', '.join(IDENTITY_COLUMNS)}"
            )
        elif not full and not set(conflict.filtered) <= set(IDENTITY_COLUMNS):
            need = f"a row filter on {', '.join(IDENTITY_COLUMNS)} alone"
        else:
            continue
        yield critical(
            "publication_conflict",
            f"Publication {name} covers {quoted(wanted.mailer_schema, EMAIL_QUEUE.name)} in a way that would make the "
            f"mailer's updates fail after setup: it would need {need}.",
            f"Change publication {name} accordingly, or drop the table from it.",
        )


def _role(found: Found, wanted: Wanted) -> Iterator[Finding]:
    if wanted.role is not None and not found.roles[wanted.role][0]:
        role = quoted(wanted.role)
        yield critical(
            "role_missing",
            f"Role {role} does not exist.",
            f"CREATE ROLE {role} LOGIN REPLICATION PASSWORD '...';",
        )


def _slot(found: Found, wanted: Wanted) -> Iterator[Finding]:
    slot = found.slot
    if slot is not None:
        yield from unusable(slot)
        if slot.foreign:
            return
    if wanted.temporary_slot:
        return
    if slot is None or slot.spent:
        yield from wal_level(found)
        yield from replication_right(found)
    if found.publication is None and not wanted.owns:
        yield publication_missing(found.structure)
