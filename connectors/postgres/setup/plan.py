"""The plan: from what is found to what is wanted. Pure; what is there makes no step, so setup is idempotent.

The order is the point:

1. the schema with its versions, for it keeps what teardown must put back;
2. the index, built CONCURRENTLY;
3. the publication before the identity when going to FULL (FULL under a column list makes every UPDATE of the mailer
   fail), the identity before the publication on the way back;
4. a note of the LSN from which on all that is right; rights; and last the slot, for a slot older than its publication
   can't be read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from connectors.mailer.tables import EMAIL_QUEUE
from connectors.postgres.catalog.conformance import conformance
from connectors.postgres.catalog.countable import NOTE
from connectors.postgres.catalog.facts import Found, IdentityMode, Wanted, mode
from connectors.postgres.catalog.names import (
    ACTIONS,
    IDENTITY_COLUMNS,
    IDENTITY_INDEX,
    PLUGIN,
    SCHEMA,
    Member,
    literal,
    members,
    quoted,
)
from connectors.postgres.catalog.rights import READ_ONLY, merged
from connectors.postgres.catalog.slots import Slot
from connectors.postgres.setup.preconditions import OF_OWNERS, unmet
from connectors.postgres.setup.versions import migrations, release
from stream.core.finding import Finding

#: whether a member of the publication shall have its column list
Listed = Callable[[Member], bool]

# where our slot stands, if it is there, else the end of the WAL
_HELD = (
    "least(pg_current_wal_insert_lsn(), (SELECT confirmed_flush_lsn FROM pg_replication_slots "
    "WHERE slot_name = {} AND database = current_database()))"
)

# differences that leave what flows through the publication whole
_HARMLESS = frozenset({"publication_others", "schema_missing"})


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do: SQL statements, run in one transaction, or, if ``alone``, outside of any."""

    code: str
    purpose: str
    part: Literal["owner", "replication"]
    statements: tuple[str, ...]
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to do, what stands in the way, and what a person should know besides."""

    steps: tuple[Step, ...]
    obstacles: tuple[Finding, ...]
    notes: tuple[str, ...]

    @property
    def done(self) -> bool:
        """Whether everything is as wanted."""
        return not self.steps and not self.obstacles


def plan(found: Found, wanted: Wanted) -> Plan:
    """The steps from ``found`` to ``wanted``. With obstacles, no step may be run."""
    hindering = unmet(found, wanted)
    if any(finding.code in ("table_missing", "server_version", "server_standby") for finding in hindering):
        return Plan((), hindering, ())
    steps: list[Step] = []
    if wanted.owns:
        steps += _rescue(found, wanted)
        steps += _schema(found, wanted)
        steps += _index(found, wanted)
        steps += _identity_and_publication(found, wanted)
        steps += _grants(found)
    if wanted.replicates:
        renewed = any(step.code == "countable" for step in steps)
        steps += _slot(found, wanted, renewed=renewed)
    if not any(step.part == "owner" for step in steps):
        # another owner is no obstacle while there is nothing for the owner to do
        hindering = tuple(finding for finding in hindering if finding.code not in OF_OWNERS)
    return Plan(tuple(steps), hindering, tuple(_notes(found, wanted)))


def _rescue(found: Found, wanted: Wanted) -> Iterator[Step]:
    """An identity index that is gone makes the mailer's updates fail now; the build takes minutes."""
    queue = found.tables[EMAIL_QUEUE.name]
    published = found.publication is not None and (wanted.mailer_schema, queue.name) in found.publication.members
    if queue.identity == "n" or (queue.identity == "i" and not queue.identity_usable):
        usable = found.index is not None and found.index.valid
        if published and not usable:
            yield Step(
                "identity_rescue",
                "Let the mailer's updates work again while the index is built (they fail without any identity)",
                "owner",
                (f"ALTER TABLE {quoted(wanted.mailer_schema, queue.name)} REPLICA IDENTITY DEFAULT;",),
            )


def _schema(found: Found, wanted: Wanted) -> Iterator[Step]:
    have = found.schema_version or 0
    for migration in migrations():
        if migration.version <= have:
            continue
        statements = [] if have or found.schema_owner or migration.version > 1 else [f"CREATE SCHEMA {SCHEMA};"]
        statements.append(migration.sql(wanted.mailer_schema))
        values = f"({migration.version}, {literal(release())})"
        statements.append(f"INSERT INTO {SCHEMA}.schema_version (version, release) VALUES {values};")  # noqa: S608
        if migration.version == 1:
            statements.append(_remember("mailer_schema", wanted.mailer_schema))
            statements.append(_remember("publication", wanted.publication))
            statements.append(_remember("replica_identity", _identity_now(found)))
        yield Step(
            "schema",
            f"Schema {SCHEMA}, version {migration.version} ({migration.name.replace('_', ' ')})",
            "owner",
            tuple(statements),
        )


def _identity_now(found: Found) -> dict[str, str | None]:
    """What teardown shall put back. Our own index, left by hand, tells nothing of what was before: DEFAULT."""
    queue = found.tables[EMAIL_QUEUE.name]
    if queue.identity == "i" and (not queue.identity_usable or queue.identity_index == IDENTITY_INDEX):
        return {"kind": "d", "index": None}
    return {"kind": queue.identity, "index": queue.identity_index}


def _index(found: Found, wanted: Wanted) -> Iterator[Step]:
    index = found.index
    if index is not None and index.valid:
        return
    name = quoted(wanted.mailer_schema, IDENTITY_INDEX)
    if index is not None:
        yield Step(
            "index_invalid",
            f"Drop the invalid leftover of index {name}",
            "owner",
            (f"DROP INDEX CONCURRENTLY {name};",),
            alone=True,
        )
    yield Step(
        "index",
        f"Index {name}: identity of the queue's rows, and what makes a recount an index-only scan",
        "owner",
        (
            f"CREATE UNIQUE INDEX CONCURRENTLY {quoted(IDENTITY_INDEX)} "
            f"ON {quoted(wanted.mailer_schema, EMAIL_QUEUE.name)} ({', '.join(IDENTITY_COLUMNS)});",
        ),
        alone=True,
    )


def _identity_and_publication(found: Found, wanted: Wanted) -> Iterator[Step]:
    target = mode(found, wanted)
    identity = list(_identity(found, wanted, target))
    publication = list(_publication(found, wanted, target))
    queue = (wanted.mailer_schema, EMAIL_QUEUE.name)
    has_list = found.publication is not None and found.publication.members.get(queue, (None, False))[0] is not None
    yield from publication + identity if target == "full" and has_list else identity + publication
    if any(finding.code not in _HARMLESS for finding in conformance(found.structure)):
        yield _countable("countable", "pg_current_wal_insert_lsn()")
    elif found.countable_from is None:
        # nothing was wrong, so what the slot still holds can be counted
        yield _countable("countable_note", _HELD.format(literal(wanted.slot)))


def _countable(code: str, point: str) -> Step:
    note = _remember("countable_from", raw=NOTE.format(point))
    return Step(code, "Note from which point on this server's WAL can be counted", "owner", (note,))


def _identity(found: Found, wanted: Wanted, target: IdentityMode) -> Iterator[Step]:
    queue = found.tables[EMAIL_QUEUE.name]
    name = quoted(wanted.mailer_schema, queue.name)
    if target == "full":
        right = queue.identity == "f"
        clause, shown = "FULL", "FULL"
    else:
        right = queue.identity_usable and queue.identity_index == IDENTITY_INDEX
        clause, shown = f"USING INDEX {quoted(IDENTITY_INDEX)}", f"index {IDENTITY_INDEX}"
    statements = [] if right else [f"ALTER TABLE {name} REPLICA IDENTITY {clause};"]
    if found.state.get("identity_mode") != target:
        statements.append(_remember("identity_mode", target))
    if statements:
        yield Step("identity", f"Replica identity of {name}: {shown}", "owner", tuple(statements))


def _publication(found: Found, wanted: Wanted, target: IdentityMode) -> Iterator[Step]:
    name = quoted(wanted.publication)

    def listed(member: Member) -> bool:
        if member.is_queue and target == "full":
            return False
        return not (wanted.release and member.mailer)

    actions = literal(", ".join(ACTIONS))
    if found.publication is None:
        yield Step(
            "publication",
            f"Publication {name}",
            "owner",
            (f"CREATE PUBLICATION {name} FOR TABLE {_tables(wanted, listed)} WITH (publish = {actions});",),
        )
        return
    statements = []
    if set(found.publication.actions) != set(ACTIONS):
        statements.append(f"ALTER PUBLICATION {name} SET (publish = {actions});")
    want = {
        (member.schema, member.table): (frozenset(member.columns) if listed(member) else None, False)
        for member in members(wanted.mailer_schema)
    }
    have = {
        key: (None if columns is None else frozenset(columns), filtered)
        for key, (columns, filtered) in found.publication.members.items()
    }
    if have != want:
        statements.append(_set_tables(wanted, listed))
    if statements:
        purpose = "column lists off, for a migration of the mailer" if wanted.release else "tables and columns"
        yield Step("publication", f"Publication {name}: {purpose}", "owner", tuple(statements))


def _set_tables(wanted: Wanted, lists: Listed) -> str:
    return f"ALTER PUBLICATION {quoted(wanted.publication)} SET TABLE {_tables(wanted, lists)};"


def _tables(wanted: Wanted, lists: Listed) -> str:
    return ", ".join(
        member.name + (f" ({', '.join(quoted(column) for column in member.columns)})" if lists(member) else "")
        for member in members(wanted.mailer_schema)
    )


def _grants(found: Found) -> Iterator[Step]:
    for role, (exists, _) in found.roles.items():
        missing = list(found.missing.get(role, ()))
        fresh = _fresh_tables(found)
        if not exists or (not missing and not fresh):
            continue
        rights = [right for right in missing if not right.ours]
        statements = [f"GRANT {words} TO {quoted(role)};" for words in merged(rights)]
        if fresh or any(right.ours for right in missing):
            statements += _own_grants(role)
        before = found.state.get("grants", {}).get(role, [])
        mailers = merged(rights)
        given = [*before, *(f"REVOKE {words} FROM {quoted(role)};" for words in mailers)]
        statements.append(_remember_grants(role, given))
        yield Step("rights", f"What {quoted(role)} needs for running", "owner", tuple(statements))


def _own_grants(role: str) -> Iterator[str]:
    who = quoted(role)
    yield f"GRANT USAGE ON SCHEMA {SCHEMA} TO {who};"
    yield f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {SCHEMA} TO {who};"
    yield f"REVOKE INSERT, UPDATE, DELETE ON {', '.join(quoted(SCHEMA, name) for name in READ_ONLY)} FROM {who};"
    yield f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA {SCHEMA} TO {who};"


def _fresh_tables(found: Found) -> bool:
    """Whether this plan makes tables of ours, on which no rights could be looked up yet."""
    return (found.schema_version or 0) < migrations()[-1].version


def _remember_grants(role: str, revokes: list[str]) -> str:
    value = json.dumps({role: revokes})
    return (
        f"INSERT INTO {SCHEMA}.setup_state (key, value) VALUES ('grants', {literal(value)}::jsonb)\n"  # noqa: S608
        f"    ON CONFLICT (key) DO UPDATE SET value = setup_state.value || excluded.value;"
    )


def _remember(key: str, value: object = None, *, raw: str = "") -> str:
    """SQL that keeps a value in setup_state; ``raw`` is an SQL expression instead of a value."""
    expression = raw or f"{literal(json.dumps(value))}::jsonb"
    insert = f"INSERT INTO {SCHEMA}.setup_state (key, value) VALUES ({literal(key)}, {expression})"  # noqa: S608
    return f"{insert}\n    ON CONFLICT (key) DO UPDATE SET value = excluded.value;"


def _slot(found: Found, wanted: Wanted, *, renewed: bool) -> Iterator[Step]:
    slot = found.slot
    if slot is not None and (slot.foreign or slot.two_phase):
        return
    name = quoted(wanted.slot)
    if wanted.temporary_slot:
        if slot is not None and not slot.temporary and slot.active_pid is None:
            purpose = f"Drop permanent slot {name}, which would hold back WAL (SLOT_KIND is temporary)"
            yield Step("slot_unneeded", purpose, "replication", (_drop_slot(wanted),))
        return
    if slot is None:
        yield Step("slot", f"Slot {name}", "replication", (_make_slot(found, wanted),), alone=True)
    elif slot.spent or renewed:
        yield Step("slot_spent", f"Drop slot {name}, {_why_spent(slot)}", "replication", (_drop_slot(wanted),))
        yield Step("slot", f"Slot {name}, made again", "replication", (_make_slot(found, wanted),), alone=True)


def _why_spent(slot: Slot) -> str:
    if slot.lost:
        return "whose WAL is gone"
    return "which stands before the point from which on the WAL can be counted"


def _drop_slot(wanted: Wanted) -> str:
    return f"SELECT pg_drop_replication_slot({literal(wanted.slot)});"


def _make_slot(found: Found, wanted: Wanted) -> str:
    # failover: the server (17 or later) keeps it on standbys, where sync_replication_slots is on
    options = ", failover => true" if found.version >= 17 else ""
    words = f"{literal(wanted.slot)}, {literal(PLUGIN)}{options}"
    return f"SELECT lsn FROM pg_create_logical_replication_slot({words});"  # noqa: S608


def _notes(found: Found, wanted: Wanted) -> Iterator[str]:
    for role, (exists, replicates) in found.roles.items():
        if exists and not replicates and wanted.owns:
            fix = f"ALTER ROLE {quoted(role)} REPLICATION;"
            yield f"Role {quoted(role)} lacks REPLICATION, which an administrator has to give: {fix}"
    if found.schema_version is None and wanted.owns:
        for publication in found.taking_all:
            yield (
                f"Publication {quoted(publication)} is FOR ALL TABLES: the tables of schema {SCHEMA} go out with it, "
                "and a subscriber that lacks them stops. Make them there first (`setup --dry-run` prints them), "
                "or give that publication a list of tables."
            )
    if wanted.release and wanted.owns:
        yield "Column lists are off: after the mailer's migration run `sentstream setup` to put them back."
    slot = found.slot
    if wanted.temporary_slot and slot is not None and not slot.temporary and slot.active_pid is not None:
        user = f"in use by process {slot.active_pid}"
        yield f"Slot {quoted(wanted.slot)} is permanent and {user}; stop that and run setup again."
