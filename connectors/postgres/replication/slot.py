"""The replication slot, as the server sees it: is it there, whose is it, does it still hold what we need?

The slot needs no bookkeeping of ours: one that was made, lost, invalidated or advanced by somebody begins beyond the
state's position, and the gap rule does the rest. See docs/design/batches.md.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import psycopg

from connectors.postgres.catalog.countable import countable_from
from connectors.postgres.catalog.slots import Slot, find_slot, unusable
from stream.core.align import Snapshot
from stream.core.errors import PreconditionError
from stream.core.position import parse_lsn

Connection = psycopg.Connection[Any]

#: from this version on a slot may be kept on standbys
_CAN_FAILOVER = 170_000


def ensure(connection: Connection, name: str) -> tuple[Slot, str | None]:
    """The permanent slot, made where it is missing and made again where it was lost; and what was done, if anything.

    :exc:`PreconditionError` where the name belongs to something that we must not touch, or we may not make it.
    """
    slot = find_slot(connection, name, countable_from(connection))
    done = None
    if slot is not None:
        check_ours(slot)
        if slot.lost:
            connection.execute("SELECT pg_drop_replication_slot(%s::name)", (name,))
            done, slot = f"slot {name} had lost its WAL ({slot.wal_status}) and was made again", None
        elif slot.active_pid is None and slot.stale:
            connection.execute("SELECT pg_drop_replication_slot(%s::name)", (name,))
            done, slot = f"slot {name} stood before publication and identities were right and was made again", None
    if slot is None:
        create(connection, name)
        done = done or f"slot {name} was made"
        slot = find_slot(connection, name)
    if slot is None:
        raise PreconditionError(f"the slot {name} vanished as it was made.", "Look who drops it; then start again.")
    return slot, done


def check_ours(slot: Slot) -> None:
    """:exc:`PreconditionError` where the slot can't be read by us: another plugin's, another database's, two-phase."""
    for finding in unusable(slot):
        raise PreconditionError(finding.finding, finding.fix)


def create(connection: Connection, name: str) -> None:
    """Make the permanent slot; with failover where the server knows it."""
    try:
        if connection.info.server_version >= _CAN_FAILOVER:
            connection.execute(
                "SELECT pg_create_logical_replication_slot(%s::name, 'pgoutput', false, false, true)", (name,)
            )
        else:
            connection.execute("SELECT pg_create_logical_replication_slot(%s::name, 'pgoutput')", (name,))
    except psycopg.errors.DuplicateObject:
        return  # another reader was quicker
    except psycopg.errors.InsufficientPrivilege as error:
        raise PreconditionError(
            f"the slot {name} is missing, and this role may not make it ({error.diag.message_primary}).",
            "Run `sentstream setup --part replication` as a role with REPLICATION.",
        ) from error


def drop(connection: Connection, name: str, patience: float = 10.0) -> None:
    """Drop the slot, as soon as the walsender that we just left has let it go."""
    deadline = time.monotonic() + patience
    while True:
        try:
            connection.execute("SELECT pg_drop_replication_slot(%s::name)", (name,))
            return
        except psycopg.errors.UndefinedObject:
            return
        except psycopg.errors.ObjectInUse:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


@dataclass(frozen=True, slots=True)
class Clock:
    """The server at one moment: its time in microseconds since 1970, and where its WAL then ended."""

    time: int
    wal_end: int


def clock(connection: Connection) -> Clock:
    """Where the WAL ends, and what time it is there. Whatever commits before has its record below ``wal_end``."""
    row = connection.execute(
        "SELECT pg_current_wal_insert_lsn()::text, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
    ).fetchone()
    assert row is not None
    return Clock(row[1], parse_lsn(row[0]))


def snapshot(connection: Connection) -> Snapshot:
    """Which transactions are visible now."""
    row = connection.execute("SELECT pg_current_snapshot()::text").fetchone()
    assert row is not None
    return Snapshot.parse(row[0])


def draw_xid(connection: Connection) -> int:
    """A transaction id of our own (64 bits), assigned and done with."""
    row = connection.execute("SELECT pg_current_xact_id()::text::bigint").fetchone()
    assert row is not None
    return int(row[0])
