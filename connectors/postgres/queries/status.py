"""Read model of `status`: who is alive, how far the stream is, the slot, the last flush and the last recount."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg.rows import class_row

from connectors.postgres.connect import SHADOW
from connectors.postgres.queries.errors import reading
from connectors.postgres.queries.old_transaction import OldTransaction, read_old_transaction
from stream.core.errors import PreconditionError

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True)
class Role:
    """A session of ours on the server. ``role``: `flush`, `reader`, ...; ``since``: when it was opened."""

    role: str
    pid: int
    user: str
    since: datetime | None
    host: str | None


@dataclass(frozen=True, slots=True)
class SlotStatus:
    """The replication slot. ``bytes``: WAL between what it has confirmed and the server's end; ``held_bytes``: WAL that
    it keeps on disk; ``pid``: of the walsender that reads it."""

    name: str
    plugin: str | None
    active: bool
    pid: int | None
    temporary: bool
    wal_status: str | None
    restart_lsn: str | None
    confirmed_lsn: str | None
    bytes: int | None
    held_bytes: int | None
    safe_bytes: int | None


@dataclass(frozen=True, slots=True)
class WatermarkStatus:
    """How far a partition is flushed. ``age_seconds``: of what it is true up to; ``flushed_seconds``: since a flush."""

    partition: int
    epoch: int
    lsn: str
    seq: int
    based: bool
    as_of: datetime | None
    flushed_at: datetime | None
    age_seconds: float | None
    flushed_seconds: float | None
    bytes_behind: int | None


@dataclass(frozen=True, slots=True)
class LastRun:
    """A recount, as far as `status` tells of it."""

    run_id: int
    trigger: str
    status: str
    started_at: datetime
    finished_at: datetime | None
    verified: int | None
    drift: int | None
    inconclusive: int | None
    not_comparable: int | None
    baseline: int | None


@dataclass(frozen=True, slots=True)
class Status:
    """All of it, at the server's time ``now``. ``last_run``: the last sealed one; ``campaigns``: those we
    count; ``old_transaction``: keeps recounts inconclusive, read where there is no baseline or the last run was not
    conclusive."""

    now: datetime
    server_version: str
    wal_lsn: str | None
    schema_version: int | None
    campaigns: int
    slot: SlotStatus | None
    watermarks: tuple[WatermarkStatus, ...]
    roles: tuple[Role, ...]
    last_run: LastRun | None
    open_runs: int
    old_transaction: OldTransaction | None = None

    @property
    def shadow(self) -> bool:
        """Whether what flushes is in shadow mode: it does not write campaigns.sent."""
        return any(role.role.endswith(SHADOW) for role in self.roles)

    @property
    def alive(self) -> bool:
        """Whether anybody flushes: a flush within the last five seconds (the idle tick is two)."""
        ages = [mark.flushed_seconds for mark in self.watermarks if mark.flushed_seconds is not None]
        return bool(ages) and min(map(abs, ages)) <= 5

    @property
    def healthy(self) -> bool:
        """Whether every partition has a base and is true up to at most five seconds ago."""
        fresh = [mark.based and mark.age_seconds is not None and abs(mark.age_seconds) <= 5 for mark in self.watermarks]
        return bool(fresh) and all(fresh)


# pg_current_wal_lsn() is an error on a standby
_HERE = """
SELECT clock_timestamp() AS now, current_setting('server_version') AS server_version,
       CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END::text AS wal_lsn,
       (SELECT max(version) FROM sentstream.schema_version) AS schema_version,
       (SELECT count(*) FROM sentstream.progress) AS campaigns,
       (SELECT count(*) FROM sentstream.recounts WHERE status = 'open') AS open_runs"""

_SLOT = """
SELECT slot_name AS name, plugin, active, active_pid AS pid, temporary, wal_status, restart_lsn::text,
       confirmed_flush_lsn::text AS confirmed_lsn,
       pg_wal_lsn_diff(%(here)s::pg_lsn, confirmed_flush_lsn)::bigint AS bytes,
       pg_wal_lsn_diff(%(here)s::pg_lsn, restart_lsn)::bigint AS held_bytes, safe_wal_size AS safe_bytes
FROM pg_replication_slots WHERE slot_name = %(slot)s::text"""

_WATERMARKS = """
SELECT partition, epoch, lsn::text, seq, based, as_of, flushed_at,
       extract(epoch FROM clock_timestamp() - as_of)::float8 AS age_seconds,
       extract(epoch FROM clock_timestamp() - flushed_at)::float8 AS flushed_seconds,
       pg_wal_lsn_diff(%(here)s::pg_lsn, lsn)::bigint AS bytes_behind
FROM sentstream.watermarks ORDER BY partition"""

# application_name is shown to everybody, who else is connected and from where only to some
_ROLES = """
SELECT substr(application_name, length('sentstream ') + 1) AS role, pid, coalesce(usename, '')::text AS user,
       backend_start AS since, client_addr::text AS host
FROM pg_stat_activity
WHERE application_name LIKE 'sentstream %%' AND pid <> pg_backend_pid()
  AND (datname = current_database() OR datname IS NULL)
ORDER BY role, pid"""

_LAST_RUN = """
SELECT run_id, trigger, status, started_at, finished_at, verified, drift, inconclusive, not_comparable, baseline
FROM sentstream.recounts WHERE status = 'sealed' ORDER BY run_id DESC LIMIT 1"""


def read_status(connection: Connection, slot_name: str) -> Status:
    """One look. PreconditionError where `setup` has not been run here."""
    with reading("Status"):
        here = connection.execute(_HERE).fetchone()
        if here is None:
            raise PreconditionError("The server gave no answer.", "Try again.")
        now, server_version, wal_lsn, schema_version, campaigns, open_runs = here
        given = {"here": wal_lsn, "slot": slot_name}
        with connection.cursor(row_factory=class_row(SlotStatus)) as cursor:
            slot = cursor.execute(_SLOT, given).fetchone()
        with connection.cursor(row_factory=class_row(WatermarkStatus)) as cursor:
            watermarks = cursor.execute(_WATERMARKS, given).fetchall()
        with connection.cursor(row_factory=class_row(Role)) as cursor:
            roles = cursor.execute(_ROLES, given).fetchall()
        with connection.cursor(row_factory=class_row(LastRun)) as cursor:
            last_run = cursor.execute(_LAST_RUN).fetchone()
        inconclusive = last_run is not None and bool(last_run.inconclusive)
        unbased = not all(mark.based for mark in watermarks)
        old_transaction = read_old_transaction(connection) if unbased or inconclusive else None
    return Status(
        now=now,
        server_version=server_version,
        wal_lsn=wal_lsn,
        schema_version=schema_version,
        campaigns=campaigns,
        slot=slot,
        watermarks=tuple(watermarks),
        roles=tuple(roles),
        last_run=last_run,
        open_runs=open_runs,
        old_transaction=old_transaction,
    )
