"""Wishes and facts as values: what setup shall make, and what it finds. The plan is a function of the two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from connectors.postgres.catalog.conformance import Difference
from connectors.postgres.catalog.rights import Right

IdentityMode = Literal["index", "full"]
Part = Literal["all", "owner", "replication"]


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
    part: Part = "all"

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
    """A table of the mailer: columns are name -> (type name, not null); ``key``: those of its primary key."""

    name: str
    kind: str
    persistence: str
    identity: str
    identity_index: str | None
    key: Sequence[str]
    partition: bool
    parent: bool
    owner: str
    owned: bool
    columns: Mapping[str, tuple[str, bool]]


@dataclass(frozen=True, slots=True)
class Index:
    """Whatever relation has the name of our identity index. ``builder`` is the pid of a build that is going on."""

    table: str
    columns: tuple[str, ...]
    plain: bool
    valid: bool
    builder: int | None


@dataclass(frozen=True, slots=True)
class Publication:
    """The publication of our name; ``members`` are ``schema.table`` -> (listed columns or None, has a row filter)."""

    owner: str
    owned: bool
    all_tables: bool
    actions: tuple[str, ...]
    schemas: tuple[str, ...]
    members: Mapping[tuple[str, str], tuple[tuple[str, ...] | None, bool]]


@dataclass(frozen=True, slots=True)
class Conflict:
    """A publication of somebody else under which the mailer's updates would fail with our identity."""

    publication: str
    listed: tuple[str, ...] | None
    filtered: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Slot:
    """The slot of our name. ``stale``: it stands before the WAL can be counted (see conformance.countable_from)."""

    plugin: str | None
    kind: str
    database: str | None
    temporary: bool
    active_pid: int | None
    holder: str | None
    wal_status: str | None
    stale: bool


@dataclass(frozen=True, slots=True)
class Found:
    """Everything the plan looks at."""

    version: int
    recovering: bool
    wal_level: str
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
    tables: Mapping[str, Table]
    elsewhere: tuple[str, ...]
    bad_statuses: tuple[tuple[str, int], ...]
    largest_id: int
    index: Index | None
    publication: Publication | None
    conflicts: tuple[Conflict, ...]
    taking_all: tuple[str, ...]
    slot: Slot | None
    differences: tuple[Difference, ...]
    roles: Mapping[str, tuple[bool, bool]] = field(default_factory=dict)
    missing: Mapping[str, tuple[Right, ...]] = field(default_factory=dict)


def mode(found: Found, wanted: Wanted) -> IdentityMode:
    """The identity that is wanted: as asked for, else as an earlier setup left it, else ``index``."""
    if wanted.identity is not None:
        return wanted.identity
    return "full" if found.state.get("identity_mode") == "full" else "index"
