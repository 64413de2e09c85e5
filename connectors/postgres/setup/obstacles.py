"""What must be put right by a person before setup may go on: each a function of the facts, each with the fix.

Setup tells all of them at once and changes nothing while there are any.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from connectors.mailer.tables import CAMPAIGNS, EMAIL_QUEUE, Column, needed
from connectors.postgres.catalog.facts import Found, Slot, Table, Wanted, mode
from connectors.postgres.catalog.names import IDENTITY_COLUMNS, IDENTITY_INDEX, PLUGIN, SCHEMA, literal, members, quoted
from connectors.postgres.setup.versions import migrations
from stream.core.status import STATUSES

#: publications with column lists and row filters, UNIQUE NULLS, security_invoker: all begin here
OLDEST_SERVER: Final = 15
#: campaigns are counted by `integer`, as the mailer's own schema has them
LARGEST_ID: Final = 2**31 - 1
#: in the way only of one who has something to make or change there
OF_OWNERS: Final = frozenset({"owner_right", "schema_owner", "publication_owner"})


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why setup can't go on: ``code`` for programs; ``what`` and ``fix`` (SQL where it is SQL) for people."""

    code: str
    what: str
    fix: str
    part: Literal["owner", "replication"]

    def __str__(self) -> str:
        return f"{self.what} {self.fix}"


def obstacles(found: Found, wanted: Wanted) -> tuple[Obstacle, ...]:
    """All of them, for the parts that are asked for."""
    server = list(_server(found))
    if server:
        return tuple(server)
    hindering: list[Obstacle] = []
    if wanted.owns:
        hindering += mailer_obstacles(found, wanted)
        hindering += _owner(found, wanted)
        hindering += _own_schema(found, wanted)
        hindering += _index(found, wanted)
        hindering += _publication(found, wanted)
        hindering += conflict_obstacles(found, wanted)
        hindering += _role(found, wanted)
    if wanted.replicates:
        hindering += slot_obstacles(found, wanted)
    return tuple(hindering)


def _server(found: Found) -> Iterator[Obstacle]:
    if found.version < OLDEST_SERVER:
        yield Obstacle(
            "server_version",
            f"The server is PostgreSQL {found.version}; column lists of publications need {OLDEST_SERVER} or later.",
            "Upgrade the server.",
            "owner",
        )
    if found.recovering:
        yield Obstacle("server_standby", "The server is a standby.", "Point DATABASE_URL at the primary.", "owner")


def mailer_obstacles(found: Found, wanted: Wanted) -> Iterator[Obstacle]:
    """The two tables that are counted."""
    for name in (EMAIL_QUEUE.name, CAMPAIGNS.name):
        if name not in found.tables:
            yield _missing_table(found, wanted, name)
            continue
        table = found.tables[name]
        yield from _shape(wanted, table)
        yield from _columns(wanted, table)
    if found.bad_statuses:
        shown = ", ".join(f"{status} ({count} rows)" for status, count in found.bad_statuses)
        yield Obstacle(
            "status_unknown",
            f"{quoted(wanted.mailer_schema, EMAIL_QUEUE.name)} has rows whose status is none of {', '.join(STATUSES)}: "
            f"{shown}.",
            "Give these rows one of the five statuses, or delete them.",
            "owner",
        )
    if found.largest_id > LARGEST_ID:
        yield Obstacle(
            "campaign_id_large",
            f"{quoted(wanted.mailer_schema, CAMPAIGNS.name)} has an id of {found.largest_id}; ids up to {LARGEST_ID} "
            "can be counted.",
            "Give the campaigns beyond it smaller ids: the mailer's own are integers.",
            "owner",
        )
    campaigns = found.tables.get(CAMPAIGNS.name)
    if campaigns is not None and campaigns.identity != "d":
        name = quoted(wanted.mailer_schema, campaigns.name)
        what = {"f": "FULL", "n": "NOTHING"}.get(campaigns.identity, f"an index ({campaigns.identity_index})")
        yield Obstacle(
            "campaigns_identity",
            f"The replica identity of {name} is {what}: with the publication's column list the mailer's updates of it "
            "would fail.",
            f"ALTER TABLE {name} REPLICA IDENTITY DEFAULT;",
            "owner",
        )
    elif campaigns is not None and set(campaigns.key) != {"id"}:
        name = quoted(wanted.mailer_schema, campaigns.name)
        what = f"({', '.join(campaigns.key)})" if campaigns.key else "missing"
        yield Obstacle(
            "campaigns_key",
            f"The primary key of {name} is {what}, not (id): once published, the mailer's updates of it would fail.",
            f"ALTER TABLE {name} ADD PRIMARY KEY (id); -- in place of another one, if there is one",
            "owner",
        )


def _missing_table(found: Found, wanted: Wanted, name: str) -> Obstacle:
    where = f"Database {quoted(found.database)} has no table {quoted(wanted.mailer_schema, name)}"
    if found.elsewhere:
        fix = f"Schema {' and schema '.join(found.elsewhere)} has one: set MAILER_SCHEMA={found.elsewhere[0]}."
    elif name == EMAIL_QUEUE.name and CAMPAIGNS.name in found.tables:
        where += ", though it has campaigns: a plain listmonk without a queue"
        fix = "There is nothing to count without the queue; check DATABASE_URL."
    else:
        fix = "Check DATABASE_URL and MAILER_SCHEMA."
    return Obstacle("table_missing", where + ".", fix, "owner")


def _shape(wanted: Wanted, table: Table) -> Iterator[Obstacle]:
    name = quoted(wanted.mailer_schema, table.name)
    if table.kind == "p" or table.partition or table.parent:
        yield Obstacle(
            "table_partitioned",
            f"{name} is partitioned or inherited: the identities of its parts, TRUNCATE of a part and DETACH would go "
            "unseen.",
            "Keep the queue in one plain table; partitioned ones can't be counted.",
            "owner",
        )
    elif table.kind != "r":
        yield Obstacle("table_kind", f"{name} is not a table (relkind {table.kind}).", "Check MAILER_SCHEMA.", "owner")
    elif table.persistence != "p":
        yield Obstacle(
            "table_unlogged",
            f"{name} is UNLOGGED: its changes are not in the WAL.",
            f"ALTER TABLE {name} SET LOGGED;",
            "owner",
        )


def _owner(found: Found, wanted: Wanted) -> Iterator[Obstacle]:
    owners = {table.owner for table in found.tables.values() if not table.owned}
    for owner in sorted(owners):
        yield Obstacle(
            "owner_right",
            f"Only the owner of the mailer's tables in {quoted(wanted.mailer_schema)}, {quoted(owner)}, may index and "
            "publish them.",
            f"Run `sentstream setup --part owner` as {quoted(owner)}.",
            "owner",
        )


def _columns(wanted: Wanted, table: Table) -> Iterator[Obstacle]:
    name = quoted(wanted.mailer_schema, table.name)
    for of, column in needed():
        if of.name != table.name:
            continue
        if column.name not in table.columns:
            yield Obstacle(
                "column_missing",
                f"{name} has no column {column.name}.",
                "Check MAILER_SCHEMA, and whether this is the mailer's table.",
                "owner",
            )
            continue
        kind, not_null = table.columns[column.name]
        if kind not in column.types:
            yield Obstacle(
                "column_type",
                f"{name}.{column.name} is of type {kind}; it can be counted as {', '.join(column.types)}.",
                _retyped(name, column, kind),
                "owner",
            )
        if table.name == EMAIL_QUEUE.name and not not_null:
            yield Obstacle(
                "column_nullable",
                f"{name}.{column.name} may be NULL; an identity index needs it NOT NULL.",
                f"ALTER TABLE {name} ALTER COLUMN {quoted(column.name)} SET NOT NULL;",
                "owner",
            )


def _retyped(table: str, column: Column, kind: str) -> str:
    """SQL where a cast exists and loses nothing that a counter has; words where a person has to decide."""
    if "int4" in column.types and kind in ("numeric", "float4", "float8"):
        return f"ALTER TABLE {table} ALTER COLUMN {quoted(column.name)} TYPE bigint;"
    return "Give it one of these types, if this is the mailer's table at all; is MAILER_SCHEMA right?"


def _own_schema(found: Found, wanted: Wanted) -> Iterator[Obstacle]:
    """The schema sentstream: ours, of our release or older, for this mailer's schema and publication."""
    if found.schema_owner is None:
        if not found.may_create:
            yield Obstacle(
                "create_right",
                f"{quoted(found.user)} may not create a schema in database {quoted(found.database)}.",
                f"GRANT CREATE ON DATABASE {quoted(found.database)} TO {quoted(found.user)};",
                "owner",
            )
        return
    if not found.schema_owned:
        yield Obstacle(
            "schema_owner",
            f"Schema {SCHEMA} belongs to {quoted(found.schema_owner)}.",
            f"Run `sentstream setup --part owner` as {quoted(found.schema_owner)}.",
            "owner",
        )
    elif found.schema_tables and "schema_version" not in found.schema_tables:
        yield Obstacle(
            "schema_foreign",
            f"Schema {SCHEMA} is not ours: it has tables ({', '.join(found.schema_tables[:3])}) but no schema_version.",
            f"ALTER SCHEMA {SCHEMA} RENAME TO {SCHEMA}_old;",
            "owner",
        )
    elif found.schema_version is not None and found.schema_version > migrations()[-1].version:
        yield Obstacle(
            "schema_newer",
            f"Schema {SCHEMA} has version {found.schema_version}, written by a newer release; this one knows "
            f"{migrations()[-1].version}.",
            "Use the newer release of sentstream.",
            "owner",
        )
    for key, now in (("mailer_schema", wanted.mailer_schema), ("publication", wanted.publication)):
        before = found.state.get(key)
        if before is not None and before != now:
            yield Obstacle(
                f"{key}_changed",
                f"This database was set up with {key.upper()}={before}, and is now asked for {now}.",
                f"Set {key.upper()}={before}; or run `sentstream teardown` with it first.",
                "owner",
            )


def _index(found: Found, wanted: Wanted) -> Iterator[Obstacle]:
    index = found.index
    if not found.may_index and (index is None or not index.valid):
        schema, user = quoted(wanted.mailer_schema), quoted(found.user)
        yield Obstacle(
            "index_right",
            f"{user} may not create an index in schema {schema}.",
            f"GRANT CREATE ON SCHEMA {schema} TO {user};",
            "owner",
        )
    if index is None:
        return
    name = quoted(wanted.mailer_schema, IDENTITY_INDEX)
    if index.builder is not None:
        yield Obstacle(
            "index_building",
            f"Index {name} is being built by process {index.builder} right now.",
            f"Wait for it, or SELECT pg_terminate_backend({index.builder});",
            "owner",
        )
    elif index.table != EMAIL_QUEUE.name or (index.valid and (not index.plain or index.columns != IDENTITY_COLUMNS)):
        yield Obstacle(
            "index_foreign",
            f"{name} exists and is not a unique index of {EMAIL_QUEUE.name} ({', '.join(IDENTITY_COLUMNS)}).",
            f"ALTER INDEX {name} RENAME TO {quoted(IDENTITY_INDEX + '_old')};",
            "owner",
        )


def _publication(found: Found, wanted: Wanted) -> Iterator[Obstacle]:
    publication = found.publication
    if publication is None:
        if found.schema_owner is not None and not found.may_create:
            yield Obstacle(
                "create_right",
                f"{quoted(found.user)} may not create a publication in database {quoted(found.database)}.",
                f"GRANT CREATE ON DATABASE {quoted(found.database)} TO {quoted(found.user)};",
                "owner",
            )
        return
    name = quoted(wanted.publication)
    another = "Choose another name by PUBLICATION, or drop it if nobody reads it: " + f"DROP PUBLICATION {name};"
    if publication.all_tables:
        yield Obstacle(
            "publication_all_tables", f"Publication {name} is FOR ALL TABLES, and not ours.", another, "owner"
        )
        return
    ours = {(member.schema, member.table) for member in members(wanted.mailer_schema)}
    extra = [f"schema {schema}" for schema in publication.schemas]
    extra += [quoted(*member) for member in publication.members if member not in ours]
    if extra:
        yield Obstacle(
            "publication_others", f"Publication {name} exists and also covers {', '.join(extra)}.", another, "owner"
        )
    elif not publication.owned:
        yield Obstacle(
            "publication_owner",
            f"Publication {name} belongs to {quoted(publication.owner)}.",
            f"Run `sentstream setup --part owner` as {quoted(publication.owner)}.",
            "owner",
        )


def conflict_obstacles(found: Found, wanted: Wanted) -> Iterator[Obstacle]:
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
        yield Obstacle(
            "publication_conflict",
            f"Publication {name} covers {quoted(wanted.mailer_schema, EMAIL_QUEUE.name)} in a way that would make the "
            f"mailer's updates fail after setup: it would need {need}.",
            f"Change publication {name} accordingly, or drop the table from it.",
            "owner",
        )


def _role(found: Found, wanted: Wanted) -> Iterator[Obstacle]:
    if wanted.role is not None and not found.roles[wanted.role][0]:
        role = quoted(wanted.role)
        yield Obstacle(
            "role_missing",
            f"Role {role} does not exist.",
            f"CREATE ROLE {role} LOGIN REPLICATION PASSWORD '...';",
            "owner",
        )


def slot_is_foreign(found: Found, slot: Slot) -> bool:
    """Whether the slot can't be ours: physical, of another plugin or another database."""
    return slot.kind != "logical" or slot.plugin != PLUGIN or slot.database != found.database


def slot_is_spent(slot: Slot) -> bool:
    """Whether it has to be made again: lost, or standing before the WAL that can be counted."""
    return slot.wal_status == "lost" or slot.stale


def slot_obstacles(found: Found, wanted: Wanted) -> Iterator[Obstacle]:
    slot = found.slot
    name = quoted(wanted.slot)
    if slot is not None and slot_is_foreign(found, slot):
        if slot.kind != "logical":
            what = f"Slot {name} is a physical one."
        elif slot.plugin != PLUGIN:
            what = f"Slot {name} has plugin {slot.plugin}, not {PLUGIN}."
        else:
            what = f"Slot {name} belongs to database {quoted(slot.database or '')}; names of slots are cluster-wide."
        yield Obstacle(
            "slot_foreign",
            what,
            "Choose another name by SLOT_NAME, or drop it if nobody reads it: "
            f"SELECT pg_drop_replication_slot({literal(wanted.slot)});",
            "replication",
        )
        return
    if wanted.temporary_slot:
        return
    if slot is None or slot_is_spent(slot):
        if found.wal_level != "logical":
            yield Obstacle(
                "wal_level",
                f"wal_level is {found.wal_level}; logical decoding needs logical.",
                "ALTER SYSTEM SET wal_level = 'logical'; -- then restart the server",
                "replication",
            )
        if not found.replication:
            yield Obstacle(
                "replication_right",
                f"{quoted(found.user)} may not make a slot.",
                f"ALTER ROLE {quoted(found.user)} REPLICATION; -- or run `sentstream setup --part replication` as one "
                "that has it",
                "replication",
            )
    if found.publication is None and not wanted.owns:
        yield Obstacle(
            "publication_missing",
            f"Publication {quoted(wanted.publication)} does not exist yet; a slot older than its publication can't be "
            "read.",
            "Run `sentstream setup --part owner` first.",
            "replication",
        )
