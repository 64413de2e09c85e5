"""What setup shall make, and what is there, as values: findings and plans are functions of the two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from connectors.postgres.catalog.names import Member, members
from connectors.postgres.catalog.rights import Right
from connectors.postgres.catalog.slots import Slot

IdentityMode = Literal["index", "full"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What setup shall make.

    ``identity`` None keeps the mode that an earlier setup chose (at first: index). ``role`` gets the rights that
    running needs. ``release`` takes the column lists off the mailer's tables.
    """

    slot: str = "sentstream"
    publication: str = "sentstream"
    mailer_schema: str = "public"
    temporary_slot: bool = False
    identity: IdentityMode | None = None
    role: str | None = None
    write_back: bool = True
    release: bool = False
    part: Literal["all", "owner", "replication"] = "all"

    @property
    def owns(self) -> bool:
        """Whether the owner's part is asked for."""
        return self.part != "replication"

    @property
    def replicates(self) -> bool:
        """Whether the slot is asked for."""
        return self.part != "owner"


@dataclass(frozen=True, slots=True)
class Table:
    """A table that is published. ``columns``: name -> (type name, not null); ``key``: those of its primary key;
    ``identity_columns``: what identifies an old row in the WAL, by primary key or index."""

    schema: str
    name: str
    kind: str
    persistence: str
    partition: bool
    parent: bool
    owner: str
    owned: bool
    columns: Mapping[str, tuple[str, bool]]
    key: tuple[str, ...]
    identity: str
    identity_index: str | None
    identity_columns: tuple[str, ...]
    identity_usable: bool


@dataclass(frozen=True, slots=True)
class Publication:
    """The publication of our name; ``members`` are (schema, table) -> (listed columns or None, has a row filter)."""

    owner: str
    owned: bool
    all_tables: bool
    actions: tuple[str, ...]
    schemas: tuple[str, ...]
    members: Mapping[tuple[str, str], tuple[tuple[str, ...] | None, bool]]


@dataclass(frozen=True, slots=True)
class Structure:
    """What counting rests on: the published tables that exist, by name, and the publication.

    ``elsewhere``: other schemas that hold a mailer, looked for where a table of the mailer is missing.
    """

    database: str
    mailer_schema: str
    publication_name: str
    tables: Mapping[str, Table]
    publication: Publication | None
    elsewhere: tuple[str, ...] = ()

    @property
    def members(self) -> tuple[Member, ...]:
        """The tables that belong into the publication."""
        return members(self.mailer_schema)

    @property
    def mailer_tables(self) -> tuple[Table, ...]:
        """Those of the mailer that exist, the queue first."""
        return tuple(
            self.tables[member.table] for member in self.members if member.mailer and member.table in self.tables
        )


@dataclass(frozen=True, slots=True)
class Index:
    """The relation that has the name of our identity index. ``builder`` is the pid of a build that is going on."""

    table: str
    columns: tuple[str, ...]
    plain: bool
    valid: bool
    builder: int | None


@dataclass(frozen=True, slots=True)
class Conflict:
    """Another publication under which the mailer's updates would fail with our identity."""

    publication: str
    listed: tuple[str, ...] | None
    filtered: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """Everything that setup and doctor look at.

    ``effective_wal_level``: of a server that raises ``wal_level`` by itself while a logical slot exists; None where the
    server knows no such setting. ``countable_from``: see `countable`. ``bad_statuses`` and ``orphans``: rows of the
    queue that can't be counted, by status or by the id of a campaign that does not exist.
    """

    version: int
    recovering: bool
    wal_level: str
    effective_wal_level: str | None
    database: str
    user: str
    superuser: bool
    replication: bool
    may_create: bool
    may_index: bool
    schema_owner: str | None
    schema_owned: bool
    schema_tables: tuple[str, ...]
    schema_version: int | None
    state: Mapping[str, Any]
    structure: Structure
    bad_statuses: tuple[tuple[str, int], ...]
    orphans: tuple[tuple[str, int], ...]
    index: Index | None
    conflicts: tuple[Conflict, ...]
    taking_all: tuple[str, ...]
    countable_from: str | None
    slot: Slot | None
    roles: Mapping[str, tuple[bool, bool]] = field(default_factory=dict)
    missing: Mapping[str, tuple[Right, ...]] = field(default_factory=dict)

    @property
    def tables(self) -> Mapping[str, Table]:
        """Published tables that exist, by name."""
        return self.structure.tables

    @property
    def publication(self) -> Publication | None:
        """The publication of our name."""
        return self.structure.publication


def mode(found: Found, wanted: Wanted) -> IdentityMode:
    """The identity that is wanted: as asked for, else as an earlier setup left it, else ``index``."""
    if wanted.identity is not None:
        return wanted.identity
    return "full" if found.state.get("identity_mode") == "full" else "index"
