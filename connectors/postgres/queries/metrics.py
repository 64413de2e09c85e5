"""Read model of `/metrics`: sums and ages of everything, whose size does not depend on the number of campaigns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg.rows import class_row, dict_row, tuple_row

from connectors.postgres.queries.errors import reading
from stream.core.status import STATUSES

#: the verdicts of a run, as columns of ``sentstream.recounts``
VERDICTS: Final = ("verified", "drift", "inconclusive", "not_comparable", "baseline")
#: causes of a drift, as ``sentstream.verdicts`` allows them
CAUSES: Final = (
    "missed_change",
    "duplicate_change",
    "counter_overwritten",
    "rows_vanished_unwatched",
    "gap",
    "new_epoch",
    "lost_state",
    "unknown",
)


@dataclass(frozen=True, slots=True)
class WatermarkMetrics:
    """A partition's watermark. ``lsn``: bytes of WAL since the beginning of time; ages in seconds, None: never."""

    partition: int
    epoch: int
    lsn: int
    based: bool
    next_offset: int | None
    as_of_age: float | None
    flush_age: float | None


@dataclass(frozen=True, slots=True)
class LastRun:
    """The newest sealed run. ``age``: seconds since it was sealed; ``count_seconds``: what the counting took."""

    run_id: int
    age: float
    count_seconds: float
    campaigns: int
    tally: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class StoreMetrics:
    """One look. ``rows``: live rows by status over all campaigns; ``proved_age``: seconds since the start of the newest
    sealed run that compared everything (a drift that it found is corrected by it); ``drift``: campaigns found drifting
    in the last hour, by cause; ``open_age``: of the oldest run that is not sealed."""

    wal: int
    campaigns: int
    rows: Mapping[str, int]
    sent: int
    removed: int
    marks: tuple[WatermarkMetrics, ...]
    last_run: LastRun | None
    proved_age: float | None
    open_runs: int
    open_age: float | None
    drift: Mapping[str, int]


_SUMS: Final = """
SELECT count(*) AS campaigns, coalesce(sum(queue_queued), 0)::bigint AS queued,
       coalesce(sum(queue_sending), 0)::bigint AS sending, coalesce(sum(queue_sent), 0)::bigint AS sent_rows,
       coalesce(sum(queue_failed), 0)::bigint AS failed, coalesce(sum(queue_cancelled), 0)::bigint AS cancelled,
       coalesce(sum(removed), 0)::bigint AS removed, coalesce(sum(sent), 0)::bigint AS sent
FROM sentstream.progress"""

_WAL: Final = """
SELECT pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END,
                       '0/0')::bigint"""

_MARKS: Final = """
SELECT partition, epoch, pg_wal_lsn_diff(lsn, '0/0')::bigint AS lsn, based, next_offset,
       extract(epoch FROM clock_timestamp() - as_of)::float8 AS as_of_age,
       extract(epoch FROM clock_timestamp() - flushed_at)::float8 AS flush_age
FROM sentstream.watermarks ORDER BY partition"""

_LAST: Final = """
SELECT run_id, extract(epoch FROM clock_timestamp() - finished_at)::float8 AS age, count_ms / 1000 AS count_seconds,
       campaigns, verified, drift, inconclusive, not_comparable, baseline
FROM sentstream.recounts WHERE status = 'sealed' ORDER BY run_id DESC LIMIT 1"""

# a run that was abandoned (its epoch ended) answers for no partition
_PROVED: Final = """
SELECT extract(epoch FROM clock_timestamp() - started_at)::float8
FROM sentstream.recounts
WHERE status = 'sealed' AND inconclusive = 0 AND not_comparable = 0
  AND (campaigns = 0 OR verified + drift + baseline > 0)
ORDER BY run_id DESC LIMIT 1"""

_OPEN: Final = """
SELECT count(*), extract(epoch FROM clock_timestamp() - min(started_at))::float8
FROM sentstream.recounts WHERE status = 'open'"""

# by run_id, which the verdicts are kept in order of: nothing here grows with retention
_DRIFT: Final = """
SELECT cause, count(DISTINCT campaign_id) FROM sentstream.verdicts
WHERE verdict = 'drift' AND run_id >= (
    SELECT min(run_id) FROM (SELECT run_id, started_at FROM sentstream.recounts ORDER BY run_id DESC LIMIT 2000) r
    WHERE started_at > clock_timestamp() - interval '1 hour')
GROUP BY cause"""


def read_metrics(connection: psycopg.Connection[Any]) -> StoreMetrics:
    """One look, in a few small queries. PreconditionError where `setup` has not been run here; UnreachableError."""
    with reading("Metrics"):
        with connection.cursor(row_factory=class_row(WatermarkMetrics)) as cursor:
            marks = tuple(cursor.execute(_MARKS).fetchall())
        with connection.cursor(row_factory=dict_row) as named:
            sums = named.execute(_SUMS).fetchone()
            last = named.execute(_LAST).fetchone()
        with connection.cursor(row_factory=tuple_row) as plain:
            wal = plain.execute(_WAL).fetchone()
            proved = plain.execute(_PROVED).fetchone()
            runs = plain.execute(_OPEN).fetchone()
            drift: dict[str, int] = dict(plain.execute(_DRIFT).fetchall())
    assert sums is not None
    assert wal is not None
    assert runs is not None
    return StoreMetrics(
        wal=wal[0],
        campaigns=sums["campaigns"],
        rows={status: sums["sent_rows" if status == "sent" else status] for status in STATUSES},
        sent=sums["sent"],
        removed=sums["removed"],
        marks=marks,
        last_run=None if last is None else _run(last),
        proved_age=None if proved is None else proved[0],
        open_runs=runs[0],
        open_age=runs[1],
        drift={cause: drift.get(cause, 0) for cause in CAUSES},
    )


def _run(row: Mapping[str, Any]) -> LastRun:
    tally = {name: row[name] or 0 for name in VERDICTS}
    return LastRun(row["run_id"], row["age"] or 0.0, row["count_seconds"] or 0.0, row["campaigns"], tally)
