"""The replication slot as ``pg_replication_slots`` has it, and what keeps it from being read by sentstream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import dict_row

from connectors.postgres.catalog.names import PLUGIN, literal, quoted
from stream.core.finding import Finding, critical
from stream.core.position import parse_lsn


@dataclass(frozen=True, slots=True)
class Slot:
    """``here``: it belongs to this database. ``confirmed``: LSN. ``lost``: it was invalidated, or its WAL is gone.
    ``stale``: it stands before the WAL that can be counted (see `countable_from`)."""

    name: str
    kind: str
    plugin: str | None
    database: str | None
    here: bool
    temporary: bool
    two_phase: bool
    active_pid: int | None
    confirmed: int
    wal_status: str | None
    lost: bool
    stale: bool

    @property
    def foreign(self) -> bool:
        """Whether it is physical, of another plugin, or of another database."""
        return self.kind != "logical" or self.plugin != PLUGIN or not self.here

    @property
    def spent(self) -> bool:
        """Whether it has to be made again."""
        return self.lost or self.stale


def find_slot(conn: psycopg.Connection[Any], name: str, countable_from: str | None = None) -> Slot | None:
    """The slot of that name; names are cluster-wide, so it may be another database's."""
    with conn.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(_SLOT, (countable_from, name)).fetchone()
    return None if row is None else Slot(**{**row, "confirmed": parse_lsn(row["confirmed"])})


def unusable(slot: Slot) -> Iterator[Finding]:
    """What forbids to read this slot, and is for a person to decide."""
    name = quoted(slot.name)
    drop = f"SELECT pg_drop_replication_slot({literal(slot.name)});"
    if slot.foreign:
        if slot.kind != "logical":
            what = f"Slot {name} is a physical one, not one of {PLUGIN}."
        elif slot.plugin != PLUGIN:
            what = f"Slot {name} has plugin {slot.plugin}, not {PLUGIN}."
        else:
            what = f"Slot {name} belongs to database {quoted(slot.database or '')}; names of slots are cluster-wide."
        fix = f"Choose another name by SLOT_NAME, or drop it if nothing reads it: {drop}"
        yield critical("slot_foreign", what, fix, "replication")
    elif slot.two_phase:
        yield critical(
            "slot_two_phase",
            f"Slot {name} has two_phase: it sends prepared transactions before they commit; that can't be counted.",
            f"{drop} -- then `sentstream setup --part replication` makes it again, and a new baseline follows",
            "replication",
        )


# to_jsonb: reasons for which a slot is invalid are columns that depend on the server's version
_SLOT = """
SELECT s.slot_name::text AS name, s.slot_type::text AS kind, s.plugin::text, s.database::text,
       coalesce(s.database = current_database(), false) AS here, s.temporary, s.two_phase, s.active_pid,
       coalesce(s.confirmed_flush_lsn, '0/0')::text AS confirmed, s.wal_status::text,
       coalesce(s.wal_status = 'lost' OR to_jsonb(s) ->> 'invalidation_reason' <> ''
                OR (to_jsonb(s) ->> 'conflicting')::boolean, false) AS lost,
       coalesce(s.confirmed_flush_lsn < %s::pg_lsn, false) AS stale
FROM pg_replication_slots s WHERE s.slot_name = %s::text
"""
