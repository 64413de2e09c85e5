"""Checks of what setup made in the database: schema, publication, identities, index."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from connectors.mailer.tables import EMAIL_QUEUE
from connectors.postgres.catalog.conformance import OF_TABLES, conformance
from connectors.postgres.catalog.names import IDENTITY_INDEX, SCHEMA, members, quoted
from connectors.postgres.doctor.target import Target
from connectors.postgres.setup import preconditions
from connectors.postgres.setup.versions import migrations
from stream.core.finding import Finding, critical, ok, warning


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
        yield from preconditions.schema_newer(target.found)
    else:
        yield ok("schema_version", f"Schema {SCHEMA} has version {have}.")


def as_setup_made_it(target: Target) -> Iterator[Finding]:
    """Publication and identities are as setup made them."""
    unmet = [it for it in conformance(target.found.structure) if it.code not in OF_TABLES | {"schema_missing"}]
    yield from unmet or [ok("conformance", "Publication and replica identities are as setup made them.")]


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
        yield replace(preconditions.index_building(target.wanted, found.builder), severity="warning")
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
    elif not conformance(target.found.structure):
        yield warning(
            "columns_released",
            "The publication's column lists are off (`setup --release-columns`): all columns travel, bodies of "
            "campaigns too.",
            "`sentstream setup --part owner`",
        )


def publication_conflicts(target: Target) -> Iterator[Finding]:
    """Publications of others, under which the mailer's updates fail with our identity."""
    unmet = list(preconditions.publication_conflicts(target.found, target.wanted))
    yield from unmet or [ok("publication_conflict", "No other publication is at odds with our identity.")]


CHECKS = (schema_version, as_setup_made_it, index, blocked_columns, publication_conflicts)
