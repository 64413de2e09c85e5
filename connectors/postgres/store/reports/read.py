"""Reading runs and their reports.

A run is open until every partition has answered it, or has answered a later one: entries come in order, so a run that
was passed over (its entry was lost, its epoch ended) will never be answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import psycopg
from psycopg.rows import dict_row, tuple_row

from stream.core.errors import SentstreamError
from stream.core.partitioner import partition_of
from stream.core.report import Answered, Report, Ruled, Run, Tally

Connection = psycopg.Connection[Any]

#: seconds in which a stream that is neither behind nor down has answered
INTERIM_AFTER: Final = 2.0
#: numbers of runs are bigints: there is no run beyond
_MOST_RUNS: Final = (1 << 63) - 1

RUN_COLUMNS = """
run_id, trigger, also, requested_by, status, started_at, lsn::text, snapshot, rebase, epoch, removed_policy, version,
count_ms, index_only, campaigns, lag_bytes, finished_at, verified, drift, inconclusive, not_comparable, baseline,
not_covered, observations, parts, pruned_at, chain_no, previous_digest, digest
"""
_VERDICTS = """
SELECT run_id, campaign_id, verdict, cause, before, after, delta, corrected, estimated, decided_at
FROM sentstream.verdicts WHERE run_id = ANY (%s::bigint[]) ORDER BY run_id, campaign_id, verdict
"""
_ANSWERS = """
SELECT run_id, partition, epoch, conclusive, reason, verified, drift, inconclusive, baseline, answered_at
FROM sentstream.answers WHERE run_id = ANY (%s::bigint[]) ORDER BY run_id, partition
"""
_OPEN = """
SELECT r.run_id, r.trigger, r.epoch, r.lsn::text AS lsn,
       extract(epoch FROM clock_timestamp() - r.started_at)::double precision AS age,
       ARRAY(SELECT a.partition FROM sentstream.answers a WHERE a.run_id = r.run_id) AS answered,
       ARRAY(SELECT a.partition FROM sentstream.answers a WHERE a.run_id = r.run_id AND NOT a.conclusive
             ORDER BY a.partition) AS inconclusive
FROM sentstream.recounts r WHERE r.status = 'open'
"""

# A partition is through with a run when it has answered it in this epoch, or a later run.
_STANDING = """
SELECT r.run_id, w.partition,
       EXISTS (SELECT FROM sentstream.answers a
               WHERE a.partition = w.partition AND (a.run_id > r.run_id OR a.run_id = r.run_id AND a.epoch = w.epoch))
FROM sentstream.recounts r CROSS JOIN sentstream.watermarks w
WHERE r.status = 'open' AND r.run_id = ANY (%s::bigint[])
"""


class NoRunError(SentstreamError):
    """There is no such run: the number that was given is wrong."""

    code = 2


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run that is not sealed. ``settled``: no partition will answer it any more; ``missing``: those that have yet to;
    ``unanswered``: those from which it has no answer; ``inconclusive``: those that could not conclude it; ``age``:
    seconds since it was counted, negative where the server's clock was put back."""

    run_id: int
    trigger: str
    epoch: int
    lsn: str
    age: float
    settled: bool
    missing: tuple[int, ...]
    unanswered: tuple[int, ...]
    inconclusive: tuple[int, ...]


def read_runs(
    conn: Connection,
    *,
    limit: int = 50,
    before: int | None = None,
    campaign: int | None = None,
    with_drift: bool = False,
) -> list[Run]:
    """Runs, newest first. ``before``: only those with a smaller id, for the next page; ``campaign``: only those that
    kept a verdict on it; ``with_drift``: only those that found one."""
    query = f"""
        SELECT {RUN_COLUMNS} FROM sentstream.recounts r
        WHERE (%(before)s::bigint IS NULL OR run_id < %(before)s::bigint)
          AND (%(campaign)s::bigint IS NULL OR run_id IN (
               SELECT v.run_id FROM sentstream.verdicts v WHERE v.campaign_id = %(campaign)s::bigint))
          AND (NOT %(drift)s::boolean OR drift > 0)
        ORDER BY run_id DESC LIMIT %(limit)s::int"""  # noqa: S608 - our own column names
    values = {"before": before, "campaign": campaign, "limit": limit, "drift": with_drift}
    with conn.cursor(row_factory=dict_row) as cursor:
        return [run_of(row) for row in cursor.execute(query.encode(), values)]


def read_report(conn: Connection, run_id: int) -> Report:
    """A run with its verdicts and answers; of an open run as far as it has got: what a stream that is behind or down
    has not answered after `INTERIM_AFTER` is not comparable for now. NoRunError."""
    reports = read_reports(conn, [run_id]) if abs(run_id) <= _MOST_RUNS else []
    if not reports:
        raise NoRunError(f"There is no run {run_id}.", "`sentstream report list` shows those there are.")
    (report,) = reports
    if report.run.sealed:
        return report
    for run in _open_runs(conn, f"AND r.run_id = {run_id:d}"):
        if run.age > INTERIM_AFTER:
            with conn.cursor(row_factory=tuple_row) as cursor:
                (partitions,) = cursor.execute("SELECT count(*) FROM sentstream.watermarks").fetchone() or (0,)
            counts = {str(campaign): list(numbers) for campaign, numbers in read_counts(conn, run_id).items()}
            report = replace(report, run=replace(report.run, tally=tally_of(report, run, counts, partitions)))
    return report


def read_reports(conn: Connection, run_ids: Sequence[int]) -> list[Report]:
    """Runs with their verdicts and answers, in order of id; those that don't exist are left out."""
    query = f"SELECT {RUN_COLUMNS} FROM sentstream.recounts WHERE run_id = ANY (%s::bigint[]) ORDER BY run_id"  # noqa: S608
    with conn.cursor(row_factory=dict_row) as cursor:
        runs = [run_of(row) for row in cursor.execute(query.encode(), (list(run_ids),))]
    verdicts, answers = verdicts_of(conn, run_ids), answers_of(conn, run_ids)
    return [Report(run, verdicts.get(run.run_id, ()), answers.get(run.run_id, ())) for run in runs]


def read_open(conn: Connection) -> list[OpenRun]:
    """All open runs, oldest first."""
    return _open_runs(conn, "ORDER BY r.run_id")


def oldest_open(conn: Connection) -> OpenRun | None:
    """The open run that is sealed next; None: all are sealed."""
    return next(iter(_open_runs(conn, "ORDER BY r.run_id LIMIT 1")), None)


def newest_open(conn: Connection) -> OpenRun | None:
    """The open run that counted last."""
    return next(iter(_open_runs(conn, "ORDER BY r.run_id DESC LIMIT 1")), None)


def _open_runs(conn: Connection, which: str) -> list[OpenRun]:
    with conn.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(f"{_OPEN} {which}".encode()).fetchall()
    standing = _standing(conn, [row["run_id"] for row in rows])
    found = []
    for row in rows:
        answered, inconclusive = row.pop("answered"), tuple(row.pop("inconclusive"))
        through = standing.get(row["run_id"], {})
        missing = tuple(sorted(partition for partition, done in through.items() if not done))
        unanswered = tuple(sorted(partition for partition in through if partition not in answered))
        settled = bool(through) and not missing
        found.append(OpenRun(**row, settled=settled, missing=missing, unanswered=unanswered, inconclusive=inconclusive))
    return found


def is_settled(conn: Connection, run_id: int) -> bool:
    """Whether every partition has answered the run, or never will; True for a sealed run. NoRunError."""
    with conn.cursor(row_factory=tuple_row) as cursor:
        row = cursor.execute("SELECT status FROM sentstream.recounts WHERE run_id = %s::bigint", (run_id,)).fetchone()
    if row is None:
        raise NoRunError(f"There is no run {run_id}.", "`sentstream report list` shows those there are.")
    through = _standing(conn, [run_id]).get(run_id, {})
    return row[0] == "sealed" or (bool(through) and all(through.values()))


def read_counts(conn: Connection, run_id: int) -> dict[int, tuple[int, ...]]:
    """What a run counted: campaign -> queued, sending, sent, failed, cancelled, ``campaigns.sent``. Empty if pruned."""
    with conn.cursor(row_factory=tuple_row) as cursor:
        row = cursor.execute("SELECT counts FROM sentstream.recounts WHERE run_id = %s::bigint", (run_id,)).fetchone()
    counts = row[0] if row is not None and row[0] is not None else {}
    return {int(campaign): tuple(numbers) for campaign, numbers in counts.items()}


def read_counted(conn: Connection, run_id: int) -> dict[int, tuple[int, ...]]:
    """`read_counts` of the campaigns that sentstream counts: those with rows in the queue then, and those with a row of
    progress, whose part of the queue was cleared."""
    counts = read_counts(conn, run_id)
    with conn.cursor(row_factory=tuple_row) as cursor:
        kept = {row[0] for row in cursor.execute("SELECT campaign_id::bigint FROM sentstream.progress")}
    return {campaign: numbers for campaign, numbers in counts.items() if campaign in kept or any(numbers[:5])}


def read_head(conn: Connection) -> tuple[int, str]:
    """Place and digest of the newest sealed run: what to note elsewhere."""
    with conn.cursor(row_factory=tuple_row) as cursor:
        row = cursor.execute("SELECT chain_no, digest FROM sentstream.chain").fetchone()
    if row is None:
        raise SentstreamError(
            "sentstream.chain is empty: the row that remembers the newest run was removed.",
            "`sentstream report verify` shows what is left.",
        )
    return row[0], row[1]


def tally_of(report: Report, open_run: OpenRun, counts: dict[str, list[int]], partitions: int) -> Tally:
    """The partitions' sums; campaigns of partitions that never answered are not comparable."""
    sums = {
        name: sum(getattr(answer, name) for answer in report.answers)
        for name in ("verified", "drift", "inconclusive", "baseline")
    }
    silent = frozenset(open_run.unanswered)
    unknown = 0
    if silent or not partitions:
        in_queue = (int(campaign) for campaign, numbers in counts.items() if any(numbers[:5]))
        unknown = sum(1 for campaign in in_queue if not partitions or partition_of(campaign, partitions) in silent)
    return Tally(not_comparable=unknown, **sums)


def _standing(conn: Connection, run_ids: Sequence[int]) -> dict[int, dict[int, bool]]:
    """Run -> partition -> whether it is through with the run; open runs only."""
    standing: dict[int, dict[int, bool]] = {}
    if run_ids:
        with conn.cursor(row_factory=tuple_row) as cursor:
            for run_id, partition, through in cursor.execute(_STANDING, (list(run_ids),)):
                standing.setdefault(run_id, {})[partition] = through
    return standing


def run_of(row: dict[str, Any]) -> Run:
    tally = Tally(*(row.pop(name) or 0 for name in ("verified", "drift", "inconclusive", "not_comparable", "baseline")))
    return Run(
        **{
            **row,
            "also": tuple(row["also"]),
            "tally": tally,
            "lag_bytes": None if row["lag_bytes"] is None else int(row["lag_bytes"]),
            "not_covered": tuple(row["not_covered"] or ()),
            "observations": tuple(row["observations"] or ()),
        }
    )


def verdicts_of(conn: Connection, run_ids: Sequence[int]) -> dict[int, tuple[Ruled, ...]]:
    found: dict[int, list[Ruled]] = {}
    with conn.cursor(row_factory=dict_row) as cursor:
        for row in cursor.execute(_VERDICTS, (list(run_ids),)):
            found.setdefault(row.pop("run_id"), []).append(Ruled(**row))
    return {run_id: tuple(rows) for run_id, rows in found.items()}


def answers_of(conn: Connection, run_ids: Sequence[int]) -> dict[int, tuple[Answered, ...]]:
    found: dict[int, list[Answered]] = {}
    with conn.cursor(row_factory=dict_row) as cursor:
        for row in cursor.execute(_ANSWERS, (list(run_ids),)):
            found.setdefault(row.pop("run_id"), []).append(Answered(**row))
    return {run_id: tuple(rows) for run_id, rows in found.items()}
