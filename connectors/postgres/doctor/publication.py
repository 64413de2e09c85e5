"""Checks of what setup made in the database: schema, publication, identities, index."""

from __future__ import annotations

from collections.abc import Iterator

from connectors.mailer.tables import EMAIL_QUEUE
from connectors.postgres.catalog.names import IDENTITY_INDEX, SCHEMA, members, quoted
from connectors.postgres.doctor.target import Target
from connectors.postgres.setup.obstacles import conflict_obstacles
from connectors.postgres.setup.versions import migrations
from stream.core.finding import Finding, critical, ok, warning

# the shapes of the mailer's tables are told by its own check
_TOLD_ELSEWHERE = frozenset({"table_missing", "table_partitioned", "table_kind", "table_unlogged", "column_missing"})


def schema_version(target: Target) -> Iterator[Finding]:
    """Our tables, in the version that this release reads and writes."""
    newest = migrations()[-1].version
    have = target.found.schema_version
    if have is None and target.found.schema_tables:
        return  # not readable, or not ours: rights, and setup itself, say so
    if have is None:
        yield critical(
            "schema_missing", f"There is no schema {SCHEMA}: this database is not set up.", "`sentstream setup`"
        )
    elif have < newest:
        what = f"Schema {SCHEMA} has version {have}; this release needs {newest}."
        yield critical("schema_old", what, "`sentstream setup --part owner`")
    elif have > newest:
        what = f"Schema {SCHEMA} has version {have}, which is newer than this release knows ({newest})."
        yield critical("schema_newer", what, "Use the newer release of sentstream.")
    else:
        yield ok("schema_version", f"Schema {SCHEMA} has version {have}.")


def conformance(target: Target) -> Iterator[Finding]:
    """Publication and identities are as setup made them."""
    differences = [d for d in target.found.differences if d.code not in _TOLD_ELSEWHERE | {"schema_missing"}]
    for difference in differences:
        yield critical(difference.code, difference.what, difference.fix)
    if not differences:
        yield ok("conformance", "Publication and replica identities are as setup made them.")


def index(target: Target) -> Iterator[Finding]:
    """The identity index, also where identity is FULL: a recount without it reads the whole table."""
    if EMAIL_QUEUE.name not in target.found.tables:
        return
    found = target.found.index
    name = quoted(target.wanted.mailer_schema, IDENTITY_INDEX)
    if found is None:
        what = f"Index {name} does not exist: recounts read the whole table."
        yield warning("index_missing", what, "`sentstream setup --part owner`")
    elif found.builder is not None:
        what = f"Index {name} is being built by process {found.builder}."
        yield warning("index_building", what, "Wait for it.")
    elif not found.valid:
        yield critical(
            "index_invalid",
            f"Index {name} is not valid: a build CONCURRENTLY was interrupted.",
            "`sentstream setup --part owner`",
        )
    else:
        yield ok("index", f"Index {name} is valid.")


def blocked_columns(target: Target) -> Iterator[Finding]:
    """Columns that a migration of the mailer can't retype or drop, and how to let it."""
    publication = target.found.publication
    if publication is None:
        return
    listed = []
    for member in members(target.wanted.mailer_schema):
        columns, _ = publication.members.get((member.schema, member.table), (None, False))
        if member.mailer and columns is not None:
            listed.append(f"{member.name} ({', '.join(sorted(columns, key=list(member.columns + columns).index))})")
    if listed:
        yield ok(
            "blocked_columns",
            f"Published columns can be neither retyped nor dropped: {', '.join(listed)}; a migration of the "
            "mailer that has to is let through by `sentstream setup --release-columns`.",
        )
    elif not target.found.differences:
        yield warning(
            "columns_released",
            "The publication's column lists are off (`setup --release-columns`): all columns travel, bodies of "
            "campaigns too.",
            "`sentstream setup --part owner`",
        )


def publication_conflicts(target: Target) -> Iterator[Finding]:
    """Publications of others, under which the mailer's updates fail with our identity."""
    conflicts = list(conflict_obstacles(target.found, target.wanted))
    for conflict in conflicts:
        yield critical(conflict.code, conflict.what, conflict.fix)
    if not conflicts:
        yield ok("publication_conflict", "No other publication is at odds with our identity.")


CHECKS = (schema_version, conformance, index, blocked_columns, publication_conflicts)
