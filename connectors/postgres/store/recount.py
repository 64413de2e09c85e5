"""The recount: one transaction that counts the whole queue and puts the counts into the WAL.

Any role may run it; an advisory lock keeps it to one at a time. What it inserts into the published table
``sentstream.recounts`` reaches the stream in WAL order, with the snapshot it was counted by, and there it is compared.

The order of the steps is the rule: **the table lock comes first**. TRUNCATE is not MVCC-safe, so a snapshot that is
older than its commit counts 0; with the lock held before the snapshot is taken, no TRUNCATE can commit in between.
LOCK TABLE itself takes no snapshot, so nothing that reads (no SELECT, no set_config) may stand before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

import psycopg
from psycopg import errors, pq, sql
from psycopg.rows import tuple_row
from psycopg.types.json import Jsonb

from connectors.mailer.tables import CAMPAIGNS, EMAIL_QUEUE
from connectors.postgres.catalog import conformance
from connectors.postgres.catalog.names import IDENTITY_INDEX
from stream.core.errors import PreconditionError, SentstreamError, UncountableError
from stream.core.report import Run
from stream.core.status import STATUSES

Connection = psycopg.Connection[Any]
Rebase = Sequence[int] | Literal["all"] | None

#: key of the advisory lock, in each database its own: "sentrcnt" as eight bytes
LOCK_KEY: Final = int.from_bytes(b"sentrcnt", "big")

_GROUPED = "SELECT q.campaign_id, q.status, count(*) AS n FROM {queue} q GROUP BY q.campaign_id, q.status"

# The outer target list is evaluated when `found` has been computed, so clock_timestamp() there tells the count's time.
# A rebase that an inconclusive run carried was not done: the next run carries it on.
# pg_current_wal_insert_lsn() is read after the transaction's snapshot was taken, at any place in the statement.
_COUNT = """
WITH grouped AS MATERIALIZED (
    {grouped}
), pivoted AS (
    SELECT campaign_id, {pivots} FROM grouped GROUP BY campaign_id
), found AS MATERIALIZED (
    SELECT coalesce(jsonb_object_agg(c.id::text, jsonb_build_array({counts}, coalesce(c.sent, 0))), '{{}}') AS counts,
           count(*) AS campaigns,
           (SELECT coalesce(sum(n), 0) FROM grouped) AS rows,
           coalesce(sum({total}), 0) AS countable
    FROM {campaigns} c LEFT JOIN pivoted p ON p.campaign_id = c.id
), owed AS (
    SELECT r.rebase FROM sentstream.recounts r
    WHERE r.run_id = (SELECT max(run_id) FROM sentstream.recounts)
      AND EXISTS (SELECT FROM sentstream.answers a WHERE a.run_id = r.run_id AND NOT a.conclusive)
), rebase AS (
    SELECT CASE WHEN '"all"' IN (given, owed.rebase) THEN '"all"'
                WHEN owed.rebase IS NULL OR given IS NULL THEN coalesce(given, owed.rebase)
                ELSE (SELECT jsonb_agg(DISTINCT id) FROM jsonb_array_elements(given || owed.rebase) id) END AS ids
    FROM (SELECT %(rebase)s::jsonb AS given) g LEFT JOIN owed ON true
)
INSERT INTO sentstream.recounts (
    trigger, also, requested_by, started_at, lsn, snapshot, counts, rebase, epoch, removed_policy, version, count_ms,
    index_only, campaigns, lag_bytes)
SELECT %(trigger)s::text, %(also)s::text[], %(requested_by)s::text, statement_timestamp(),
       pg_current_wal_insert_lsn(), pg_current_snapshot()::text, found.counts, rebase.ids,
       coalesce((SELECT max(epoch) FROM sentstream.watermarks), 0), %(removed_policy)s::text, %(version)s::text,
       extract(epoch FROM clock_timestamp() - statement_timestamp()) * 1000, %(index_only)s::boolean, found.campaigns,
       (SELECT max(pg_wal_lsn_diff(pg_current_wal_insert_lsn(), w.lsn)) FROM sentstream.watermarks w)
FROM found, rebase WHERE found.rows = found.countable
RETURNING run_id, started_at, lsn::text, snapshot, epoch, count_ms, campaigns, lag_bytes, rebase
"""

_STRANGE = """
SELECT q.id, q.status::text, q.campaign_id, c.id IS NULL
FROM {queue} q LEFT JOIN {campaigns} c ON c.id = q.campaign_id
WHERE c.id IS NULL OR q.status IS NULL OR q.status <> ALL (%s::text[])
ORDER BY q.id LIMIT 10
"""

_HOLDERS = """
SELECT DISTINCT a.pid, a.application_name
FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.granted AND l.pid <> pg_backend_pid()
  AND (l.locktype = 'advisory' AND l.objsubid = 1
          AND l.classid = %(high)s::bigint::oid AND l.objid = %(low)s::bigint::oid
       OR l.relation IN (SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                         WHERE n.nspname = %(schema)s::text AND c.relname = ANY (%(tables)s::text[]))
          AND l.mode = 'AccessExclusiveLock')
  AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
  AND l.locktype = %(type)s::text
"""


class NotNowError(SentstreamError):
    """A recount that could not be made at this moment: locks, time-outs, deadlocks. Trying again is the cure."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds that a recount may wait and work. ``turn``: for another recount to end; ``lock``: for the table lock,
    behind which a TRUNCATE by the mailer waits in turn; ``count``: the counting statement."""

    turn: float = 30.0
    lock: float = 2.0
    count: float = 300.0


def request(
    conn: Connection,
    *,
    mailer_schema: str,
    publication: str,
    trigger: str,
    requested_by: str,
    removed_policy: str,
    version: str,
    rebase: Rebase = None,
    also: Sequence[str] = (),
    limits: Limits | None = None,
) -> Run:
    """Count everything, and put the counts into the WAL; the run, open.

    ``conn``: in autocommit, outside a transaction. ``rebase``: campaigns whose ``removed`` becomes 0 when the stream
    gets there. ``also``: triggers that fell together with ``trigger``.

    NotNowError (a lock, a time-out, a deadlock: try again), PreconditionError (the database is not as ``setup`` leaves
    it), UncountableError (a row that can't be counted); nothing is written then. psycopg.OperationalError where the
    connection is lost: whether the run exists is then unknown, and does not matter.
    """
    if conn.info.transaction_status != pq.TransactionStatus.IDLE or not conn.autocommit:
        raise ValueError("a recount needs a connection in autocommit and outside a transaction: its lock comes first")
    limits = limits or Limits()
    queue = sql.Identifier(mailer_schema, EMAIL_QUEUE.name)
    campaigns = sql.Identifier(mailer_schema, CAMPAIGNS.name)
    tables = {"queue": queue, "campaigns": campaigns}
    values: dict[str, Any] = {
        "trigger": trigger,
        "also": list(also),
        "requested_by": requested_by,
        "rebase": None if rebase is None else Jsonb(rebase if rebase == "all" else sorted(rebase)),
        "removed_policy": removed_policy,
        "version": version,
    }
    with _translated(conn, mailer_schema, limits), _turn(conn, limits.turn), conn.transaction():
        _lock_first(conn, queue, campaigns, limits)
        _check_conformance(conn, publication, mailer_schema)
        values["index_only"] = _is_index_only(conn, queue)
        with conn.cursor(row_factory=tuple_row) as cursor:
            row = cursor.execute(_count_statement(tables), values).fetchone()
        if row is None:
            raise _uncountable(conn, mailer_schema, tables)
    run_id, started_at, lsn, snapshot, epoch, count_ms, number, lag, carried = row
    return Run(
        run_id=run_id,
        trigger=trigger,
        also=tuple(also),
        requested_by=requested_by,
        status="open",
        started_at=started_at,
        lsn=lsn,
        snapshot=snapshot,
        epoch=epoch,
        removed_policy=removed_policy,
        version=version,
        count_ms=count_ms,
        campaigns=number,
        rebase=carried,
        index_only=bool(values["index_only"]),
        lag_bytes=lag,
    )


def _lock_first(conn: Connection, queue: sql.Identifier, campaigns: sql.Identifier, limits: Limits) -> None:
    """Isolation, time-outs and the lock, in one go and without a snapshot.

    Parallel workers would take the mailer's cores, and JIT costs more than the count. The identity index is read from
    end to end, not at random: planned with ``random_page_cost = 1`` it is chosen as soon as it pays (measured: a
    million vacuumed rows in 167 ms against 372 by a sequential scan, which is still preferred before a vacuum).
    """
    conn.execute(
        sql.SQL(
            "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ;"
            " SET LOCAL lock_timeout = {lock}; SET LOCAL statement_timeout = {count};"
            " SET LOCAL max_parallel_workers_per_gather = 0; SET LOCAL jit = off;"
            " SET LOCAL seq_page_cost = 1; SET LOCAL random_page_cost = 1;"
            " LOCK TABLE {queue}, {campaigns} IN ACCESS SHARE MODE"
        ).format(
            lock=sql.Literal(f"{max(1, round(limits.lock * 1000))}ms"),
            count=sql.Literal(f"{max(1, round(limits.count * 1000))}ms"),
            queue=queue,
            campaigns=campaigns,
        )
    )


def _check_conformance(conn: Connection, publication: str, mailer_schema: str) -> None:
    """The locks are held, so what is found holds until the commit (the publication's head aside)."""
    differences = conformance.check(conn, publication, mailer_schema)
    if differences:
        first = differences[0]
        more = f" ({len(differences) - 1} more: `sentstream setup --check`)" if len(differences) > 1 else ""
        raise PreconditionError(f"Not counted: {first.finding}{more}", first.fix)


def _is_index_only(conn: Connection, queue: sql.Identifier) -> bool:
    """Whether the planner counts by the identity index alone (a young or small table is quicker read whole)."""
    statement = sql.SQL("EXPLAIN (FORMAT JSON) " + _GROUPED).format(queue=queue)
    with conn.cursor(row_factory=tuple_row) as cursor:
        row = cursor.execute(statement).fetchone()
    assert row is not None
    return any(
        node.get("Node Type") == "Index Only Scan" and node.get("Index Name") == IDENTITY_INDEX
        for node in _nodes(row[0][0]["Plan"])
    )


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from _nodes(inner)


def _count_statement(tables: dict[str, sql.Identifier]) -> sql.Composed:
    pivots = ", ".join(f"sum(n) FILTER (WHERE status = '{s}') AS {s}" for s in STATUSES)
    counts = ", ".join(f"coalesce(p.{s}, 0)" for s in STATUSES)
    total = " + ".join(f"coalesce(p.{s}, 0)" for s in STATUSES)
    parts = {name: sql.SQL(text) for name, text in (("pivots", pivots), ("counts", counts), ("total", total))}
    return sql.SQL(_COUNT).format(grouped=sql.SQL(_GROUPED).format(**tables), **parts, **tables)


def _uncountable(conn: Connection, mailer_schema: str, tables: dict[str, sql.Identifier]) -> UncountableError:
    with conn.cursor(row_factory=tuple_row) as cursor:
        rows = cursor.execute(sql.SQL(_STRANGE).format(**tables), (list(STATUSES),)).fetchall()
    where = f"{mailer_schema}.{EMAIL_QUEUE.name}"
    shown = "; ".join(
        f"id {number}: campaign {campaign}, which does not exist" if lost else f"id {number}: status {status!r}"
        for number, status, campaign, lost in rows
    )
    return UncountableError(
        f"Not counted: {where} holds rows that can't be counted ({shown}).",
        f"Give them one of the statuses {', '.join(STATUSES)} and a campaign that exists, then recount.",
    )


@contextmanager
def _turn(conn: Connection, patience: float) -> Iterator[None]:
    """Hold the advisory lock. It belongs to the session, so a transaction of its own may take it."""
    with conn.transaction():
        conn.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(f"{max(1, round(patience * 1000))}ms")))
        try:
            conn.execute("SELECT pg_advisory_lock(%s::bigint)", (LOCK_KEY,))
        except errors.LockNotAvailable:
            raise _TurnError from None
    try:
        yield
    finally:
        if not conn.closed and conn.info.transaction_status == pq.TransactionStatus.IDLE:
            conn.execute("SELECT pg_advisory_unlock(%s::bigint)", (LOCK_KEY,))


class _TurnError(Exception):
    """The advisory lock was not to be had in time."""


@contextmanager
def _translated(conn: Connection, mailer_schema: str, limits: Limits) -> Iterator[None]:
    try:
        yield
    except _TurnError:
        holders = _holders(conn, mailer_schema, "advisory")
        raise NotNowError(
            f"Another recount is running{holders}; waited {limits.turn:g} s for its end.",
            "Try again when it has ended.",
        ) from None
    except errors.LockNotAvailable:
        raise NotNowError(
            f"{mailer_schema}.{EMAIL_QUEUE.name} and {CAMPAIGNS.name} could not be locked (ACCESS SHARE) within "
            f"{limits.lock:g} s{_holders(conn, mailer_schema, 'relation')}.",
            "Try again, or raise RECOUNT_LOCK_TIMEOUT.",
        ) from None
    except errors.QueryCanceled:
        raise NotNowError(
            f"The recount of {mailer_schema}.{EMAIL_QUEUE.name} was cancelled, or took longer than {limits.count:g} s.",
            "Look for long waits on the server, or raise RECOUNT_TIMEOUT.",
        ) from None
    except (errors.DeadlockDetected, errors.SerializationFailure) as error:
        raise NotNowError(
            f"The recount gave way to another transaction ({_first_line(error)}).", "Try again."
        ) from None
    except (errors.UndefinedTable, errors.UndefinedColumn, errors.InvalidSchemaName) as error:
        raise PreconditionError(
            f"Not counted: {_first_line(error)}.", "Run `sentstream setup`, and check MAILER_SCHEMA."
        ) from None
    except errors.ReadOnlySqlTransaction:
        raise PreconditionError(
            "Not counted: the session is read-only (default_transaction_read_only, or the server is a standby).",
            "`sentstream doctor` says which of them it is, with the statement that lets us write.",
        ) from None
    except errors.InsufficientPrivilege as error:
        raise PreconditionError(
            f"Not counted: {_first_line(error)}.",
            "`sentstream doctor` lists the rights that are missing, with the statements that give them.",
        ) from None


def _holders(conn: Connection, mailer_schema: str, kind: str) -> str:
    """Who holds the lock that was not to be had: " (held by PID 12, psql)", empty where that can't be told."""
    values = {
        "high": LOCK_KEY >> 32,
        "low": LOCK_KEY & 0xFFFFFFFF,
        "schema": mailer_schema,
        "tables": [EMAIL_QUEUE.name, CAMPAIGNS.name],
        "type": kind,
    }
    try:
        with conn.cursor(row_factory=tuple_row) as cursor:
            rows = cursor.execute(_HOLDERS, values).fetchall()
    except psycopg.Error:
        return ""
    shown = ", ".join(f"PID {pid}" + (f" ({name})" if name else "") for pid, name in rows)
    return f", held by {shown}" if shown else ""


def _first_line(error: psycopg.Error) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
