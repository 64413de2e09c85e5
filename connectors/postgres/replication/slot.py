"""The replication slot, as the server sees it: is it there, whose is it, does it still hold what we need?

The slot needs no bookkeeping of ours: one that was made, lost, invalidated or advanced by another session begins beyond
the state's position, and the gap rule does the rest. See docs/design/batches.md.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import class_row

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
    """Where the WAL ends, and what time it is there. What commits before has its record below ``wal_end``."""
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


@dataclass(frozen=True, slots=True)
class Writer:
    """A transaction (32-bit id) that has written to the queue or to campaigns and has not let its locks go. ``idle``:
    it is not committing at this moment, so what it commits has its record behind the WAL of now."""

    xid: int
    idle: bool


# A transaction lets its locks go only after it has become visible. A session that is idle in its transaction is not
# committing it; a prepared one (no pid) is not being committed while no other session runs a transaction that holds no
# table: COMMIT PREPARED is such a one. One reading of pg_locks, or a session could slip through between two.
_WRITERS = """
WITH held AS MATERIALIZED (
    SELECT * FROM pg_locks WHERE granted
), writing AS (
    SELECT DISTINCT virtualtransaction, pid FROM held
    WHERE locktype = 'relation'
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND relation IN (SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                       WHERE n.nspname = %s::text AND c.relname IN ('email_queue', 'campaigns'))
      AND mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
)
SELECT x.transactionid::text::bigint AS xid,
       CASE WHEN w.pid IS NULL THEN NOT EXISTS (
           SELECT FROM held v
           WHERE v.locktype = 'virtualxid' AND v.pid <> pg_backend_pid() AND NOT EXISTS (
               SELECT FROM held t WHERE t.locktype = 'relation' AND t.virtualtransaction = v.virtualtransaction))
       ELSE coalesce(a.state LIKE 'idle in transaction%%', false) END AS idle
FROM writing w
JOIN held x ON x.locktype = 'transactionid' AND x.mode = 'ExclusiveLock'
           AND x.virtualtransaction = w.virtualtransaction AND x.pid IS NOT DISTINCT FROM w.pid
LEFT JOIN pg_stat_activity a ON a.pid = w.pid"""


def writers(connection: Connection, mailer_schema: str) -> list[Writer]:
    """The transactions that have written to the mailer's tables and are not visible yet."""
    with connection.cursor(row_factory=class_row(Writer)) as cursor:
        return cursor.execute(_WRITERS, (mailer_schema,)).fetchall()
