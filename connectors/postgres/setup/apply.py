"""Runs steps, each in a transaction of its own under ``lock_timeout``, and names the sessions that are in the way.

A statement that waits for a lock makes others wait behind it, so it gives up after seconds; only what holds up no other
session (a build CONCURRENTLY, the making of a slot) may wait for minutes. What is done stays done: setup goes on from
there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Final

import psycopg
from psycopg.rows import dict_row

from connectors.postgres.catalog.names import literal, quoted
from connectors.postgres.setup.plan import Step
from stream.core.errors import PreconditionError, SentstreamError, UnreachableError

#: seconds that a statement may wait for its locks, when others queue behind it
LOCK_TIMEOUT: Final = 5.0
#: seconds for what waits without holding up others
PATIENT_TIMEOUT: Final = 600.0
#: seconds to wait until a slot that has to go is let go
SLOT_WAIT: Final = 10.0
_LOOK_EVERY: Final = 0.2


class BlockedError(SentstreamError):
    """A lock was not to be had in time; the message names who holds it."""


@dataclass(frozen=True, slots=True)
class Blocker:
    """A session (or, with ``prepared``, a prepared transaction) that a statement of ours waits for."""

    pid: int
    role: str
    application: str
    state: str
    began: datetime | None
    query_started: datetime | None
    query: str
    prepared: str = ""

    def __str__(self) -> str:
        if self.prepared:
            return f"prepared transaction {self.prepared} ({self.role}, since {_time(self.began)})"
        parts = [f"process {self.pid}"]
        parts.append(
            f"({self.application or 'no application name'}, role {self.role}, {self.state or 'state not shown'})"
        )
        parts.append(
            f"in a transaction since {_time(self.began)}, query since {_time(self.query_started)}: {self.query}"
        )
        return " ".join(parts)

    @property
    def fix(self) -> str:
        """What ends it, as SQL."""
        if self.prepared:
            return f"ROLLBACK PREPARED {literal(self.prepared)};"
        return f"SELECT pg_terminate_backend({self.pid});"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the build of an index is: the server's words for the phase; blocks or rows done, of all (0: unknown)."""

    phase: str
    done: int
    total: int


def _quiet(_: object) -> None:
    """Not reported."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds that steps may wait: for locks while others queue behind, for what holds up no other, for a used slot."""

    locks: float = LOCK_TIMEOUT
    long: float = PATIENT_TIMEOUT
    slot: float = SLOT_WAIT


@dataclass(frozen=True, slots=True)
class Reports:
    """What is reported while steps run: each step, each session that it waits for, how far a build is.

    ``watch``, a second autocommit connection, sees the latter two; without it they are not reported.
    """

    watch: psycopg.Connection[Any] | None = None
    step: Callable[[Step], None] = _quiet
    wait: Callable[[Blocker], None] = _quiet
    progress: Callable[[Progress], None] = _quiet


def apply(
    conn: psycopg.Connection[Any],
    steps: Sequence[Step],
    reports: Reports = Reports(),
    patience: Patience = Patience(),
) -> None:
    """Run ``steps`` in order on ``conn`` (autocommit).

    BlockedError names the blocker, PreconditionError what else is in the way; the steps before stay done.
    """
    for step in steps:
        reports.step(step)
        with _Watch(reports, conn.info.backend_pid) as seen:
            try:
                _run(conn, step, patience)
            except psycopg.Error as error:
                raise _explained(error, conn, step, seen.blockers) from error


def _run(conn: psycopg.Connection[Any], step: Step, patience: Patience) -> None:
    timeout = patience.long if step.alone else patience.locks
    setting = f"SET {'' if step.alone else 'LOCAL '}lock_timeout = {max(1, round(timeout * 1000))}".encode()
    if step.alone:
        conn.execute(setting)
        try:
            for statement in step.statements:
                conn.execute(statement.encode())
        finally:
            if not conn.closed:
                conn.execute(b"RESET lock_timeout")
        return
    give_up = time.monotonic() + patience.slot
    while True:
        try:
            with conn.transaction():
                conn.execute(setting)
                for statement in step.statements:
                    conn.execute(statement.encode())
        except psycopg.errors.ObjectInUse:
            # a slot in use: its holder may be about to let go
            if time.monotonic() > give_up:
                raise
            time.sleep(_LOOK_EVERY)
        else:
            return


class _Watch:
    """Looks from a second connection, while a step runs, at who holds what the first one waits for."""

    def __init__(self, reports: Reports, pid: int) -> None:
        self.blockers: list[Blocker] = []
        self._reports = reports
        self._conn = reports.watch
        self._pid = pid
        self._reported: set[tuple[int, str]] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, name="sentstream setup watch", daemon=True)

    def __enter__(self) -> _Watch:
        if self._conn is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._conn is not None:
            self._thread.join()

    def _look(self) -> None:
        assert self._conn is not None
        while not self._stop.wait(_LOOK_EVERY):
            try:
                now = blockers(self._conn, self._pid)
                progress = _progress(self._conn, self._pid)
            except psycopg.Error:
                return
            if now:
                self.blockers = now
            for blocker in now:
                key = (blocker.pid, blocker.prepared)
                if key not in self._reported:
                    self._reported.add(key)
                    self._reports.wait(blocker)
            if progress is not None:
                self._reports.progress(progress)


def _progress(conn: psycopg.Connection[Any], pid: int) -> Progress | None:
    """Of the index that process ``pid`` builds."""
    with conn.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(
            """
            SELECT phase, CASE WHEN blocks_total > 0 THEN blocks_done ELSE tuples_done END AS done,
                   CASE WHEN blocks_total > 0 THEN blocks_total ELSE tuples_total END AS total
            FROM pg_stat_progress_create_index WHERE pid = %s::int
            """,
            (pid,),
        ).fetchall()
    return Progress(**rows[0]) if rows else None


def blockers(conn: psycopg.Connection[Any], pid: int) -> list[Blocker]:
    """Who holds what process ``pid`` waits for right now, the oldest transaction first."""
    with conn.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(
            """
            SELECT b.pid, coalesce(a.usename::text, '') AS role, coalesce(a.application_name, '') AS application,
                   coalesce(a.state, '') AS state, a.xact_start AS began, a.query_start AS query_started,
                   left(regexp_replace(coalesce(a.query, ''), '\\s+', ' ', 'g'), 200) AS query
            FROM unnest(pg_blocking_pids(%s::int)) AS b (pid) LEFT JOIN pg_stat_activity a ON a.pid = b.pid
            ORDER BY a.xact_start
            """,
            (pid,),
        ).fetchall()
        found = [Blocker(**row) for row in rows if row["pid"] != 0]
        if any(row["pid"] == 0 for row in rows):
            prepared = cursor.execute(
                "SELECT gid, owner::text AS owner, prepared FROM pg_prepared_xacts ORDER BY prepared"
            ).fetchall()
            found += [Blocker(0, row["owner"], "", "", row["prepared"], None, "", row["gid"]) for row in prepared]
    return found


def _explained(
    error: psycopg.Error, conn: psycopg.Connection[Any], step: Step, seen: Sequence[Blocker]
) -> SentstreamError:
    """The error as a person needs it: what, where, what to do."""
    what = f"{step.purpose}: {_message(error)}."
    again = "then run the command again; what is done stays done."
    if isinstance(error, (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)):
        if not seen:
            return BlockedError(f"{step.purpose}: a lock was not to be had in time.", "Run the command again.")
        names = "; ".join(str(blocker) for blocker in seen)
        return BlockedError(
            f"{step.purpose}: gave up waiting for {names}.",
            f"Wait until that is over, or end it: {' '.join(blocker.fix for blocker in seen)} {again}",
        )
    if isinstance(error, psycopg.errors.ObjectInUse):
        return BlockedError(
            f"{step.purpose}: the slot is in use{_holder(conn, step)}.",
            f"Stop that process (sentstream run or read), {again}",
        )
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        who = quoted(conn.info.user)
        role = "a role with REPLICATION" if step.part == "replication" else "the owner of the mailer's tables"
        return PreconditionError(f"{what} Connected as {who}.", f"Run `sentstream setup --part {step.part}` as {role}.")
    if isinstance(error, psycopg.errors.UniqueViolation) and step.code == "index":
        return PreconditionError(what, "Two rows of the queue have one id: give it its primary key back, " + again)
    if isinstance(error, psycopg.errors.DiskFull):
        return PreconditionError(what, "Make room on the server's disk, " + again)
    if isinstance(error, psycopg.OperationalError) and conn.closed:
        return UnreachableError(
            f"{step.purpose}: the connection was lost.", "Run the command again; what is done stays done."
        )
    if isinstance(error, psycopg.errors.ConfigurationLimitExceeded):
        return PreconditionError(what, "Raise max_replication_slots and restart the server, " + again)
    return PreconditionError(what, "Put that right, " + again)


def _holder(conn: psycopg.Connection[Any], step: Step) -> str:
    """Who has the slot that the step's statements name."""
    with conn.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(
            "SELECT a.pid, a.application_name, a.usename::text AS role, a.client_addr::text AS address "
            "FROM pg_replication_slots s JOIN pg_stat_activity a ON a.pid = s.active_pid "
            "WHERE position(quote_literal(s.slot_name) IN %s::text) > 0",
            (" ".join(step.statements),),
        ).fetchall()
    if not rows:
        return ""
    row = rows[0]
    place = row["address"] or "a local socket"
    return f" by process {row['pid']} ({row['application_name']}, role {row['role']}, from {place})"


def _message(error: psycopg.Error) -> str:
    diagnosis = error.diag
    text = diagnosis.message_primary or str(error).strip()
    return f"{text} ({diagnosis.message_detail.rstrip('.')})" if diagnosis.message_detail else text


def _time(value: datetime | None) -> str:
    return (
        "a time not shown to this role"
        if value is None
        else value.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    )
