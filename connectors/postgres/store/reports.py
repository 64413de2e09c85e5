"""Runs and their reports in PostgreSQL: reading, sealing into the chain, verifying the chain, retention.

**Sealing.** A run is open until every partition has answered it, or has answered a later one: entries come in order,
so what was passed over (a lost entry, an epoch that ended) is never answered. Runs are therefore settled in the order
they were counted, and sealed in that order; each takes the next place in the chain. The one row of
``sentstream.chain`` is locked meanwhile, so the chain can't fork, whoever seals. The run's row is locked against the
flush that may be writing its verdicts, and what is sealed takes no more of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final

import psycopg
from psycopg.rows import dict_row, tuple_row
from psycopg.types.json import Jsonb

from stream.core.digest import Checked, Link, digest, walk
from stream.core.errors import SentstreamError
from stream.core.partitioner import partition_of
from stream.core.report import Answered, Report, Ruled, Run, Tally, parts_of

Connection = psycopg.Connection[Any]

#: runs read at once where a chain is walked: their counts may be half a megabyte each
_PAGE: Final = 50
#: seconds in which a stream that is neither behind nor down has answered
INTERIM_AFTER: Final = 2.0
#: numbers of runs are bigints: there is no run beyond
_MOST_RUNS: Final = (1 << 63) - 1

_RUN_COLUMNS = """
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

# A partition is through with a run when it answered it in this epoch, or a later one. Without a watermark nobody is.
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
class Open:
    """A run that is not sealed. ``settled``: no partition will answer it any more; ``missing``: those that have yet to;
    ``unanswered``: those from which it has no answer; ``age``: seconds since it was counted."""

    run_id: int
    trigger: str
    epoch: int
    lsn: str
    age: float
    settled: bool
    missing: tuple[int, ...]
    unanswered: tuple[int, ...]


# ---- reading ----------------------------------------------------------------------------------------------------


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
        SELECT {_RUN_COLUMNS} FROM sentstream.recounts r
        WHERE (%(before)s::bigint IS NULL OR run_id < %(before)s::bigint)
          AND (%(campaign)s::int IS NULL OR run_id IN (
               SELECT v.run_id FROM sentstream.verdicts v WHERE v.campaign_id = %(campaign)s::int))
          AND (NOT %(drift)s::boolean OR drift > 0)
        ORDER BY run_id DESC LIMIT %(limit)s::int"""  # noqa: S608 - our own column names
    values = {"before": before, "campaign": campaign, "limit": limit, "drift": with_drift}
    with conn.cursor(row_factory=dict_row) as cursor:
        return [_run(row) for row in cursor.execute(query.encode(), values)]


def read_report(conn: Connection, run_id: int) -> Report:
    """A run with its verdicts and answers; of an open run as far as it has got: what a stream that is behind or down
    has not answered after `INTERIM_AFTER` is not comparable for now. NoRunError."""
    reports = read_reports(conn, [run_id]) if abs(run_id) <= _MOST_RUNS else []
    if not reports:
        raise NoRunError(f"There is no run {run_id}.", "`sentstream report list` shows those there are.")
    (report,) = reports
    if report.run.sealed:
        return report
    for run in _open(conn, f"AND r.run_id = {run_id:d}"):
        if run.age > INTERIM_AFTER:
            with conn.cursor(row_factory=tuple_row) as cursor:
                (partitions,) = cursor.execute("SELECT count(*) FROM sentstream.watermarks").fetchone() or (0,)
            counts = {str(campaign): list(numbers) for campaign, numbers in read_counts(conn, run_id).items()}
            report = replace(report, run=replace(report.run, tally=_tally(report, run, counts, partitions)))
    return report


def read_reports(conn: Connection, run_ids: Sequence[int]) -> list[Report]:
    """Runs with their verdicts and answers, in order of id; those that don't exist are left out."""
    query = f"SELECT {_RUN_COLUMNS} FROM sentstream.recounts WHERE run_id = ANY (%s::bigint[]) ORDER BY run_id"  # noqa: S608
    with conn.cursor(row_factory=dict_row) as cursor:
        runs = [_run(row) for row in cursor.execute(query.encode(), (list(run_ids),))]
    verdicts, answers = _verdicts(conn, run_ids), _answers(conn, run_ids)
    return [Report(run, verdicts.get(run.run_id, ()), answers.get(run.run_id, ())) for run in runs]


def read_open(conn: Connection) -> list[Open]:
    """All open runs, oldest first."""
    return _open(conn, "ORDER BY r.run_id")


def oldest_open(conn: Connection) -> Open | None:
    """The open run that is sealed next; None: all are sealed."""
    return next(iter(_open(conn, "ORDER BY r.run_id LIMIT 1")), None)


def newest_open(conn: Connection) -> Open | None:
    """The open run that counted last."""
    return next(iter(_open(conn, "ORDER BY r.run_id DESC LIMIT 1")), None)


def _open(conn: Connection, which: str) -> list[Open]:
    with conn.cursor(row_factory=tuple_row) as cursor:
        rows = cursor.execute(
            f"""
            SELECT r.run_id, r.trigger, r.epoch, r.lsn::text,
                   extract(epoch FROM clock_timestamp() - r.started_at)::double precision,
                   ARRAY(SELECT a.partition FROM sentstream.answers a WHERE a.run_id = r.run_id)
            FROM sentstream.recounts r WHERE r.status = 'open' {which}
            """.encode()  # noqa: S608 - our own words
        ).fetchall()
    standing = _standing(conn, [row[0] for row in rows])
    found = []
    for run_id, trigger, epoch, lsn, age, answered in rows:
        through = standing.get(run_id, {})
        missing = tuple(sorted(p for p, done in through.items() if not done))
        unanswered = tuple(sorted(p for p in through if p not in answered))
        found.append(Open(run_id, trigger, epoch, lsn, age, bool(through) and not missing, missing, unanswered))
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


def _standing(conn: Connection, run_ids: Sequence[int]) -> dict[int, dict[int, bool]]:
    """Run -> partition -> whether it is through with the run; open runs only."""
    standing: dict[int, dict[int, bool]] = {}
    if run_ids:
        with conn.cursor(row_factory=tuple_row) as cursor:
            for run_id, partition, through in cursor.execute(_STANDING, (list(run_ids),)):
                standing.setdefault(run_id, {})[partition] = through
    return standing


def _run(row: dict[str, Any]) -> Run:
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


def _verdicts(conn: Connection, run_ids: Sequence[int]) -> dict[int, tuple[Ruled, ...]]:
    found: dict[int, list[Ruled]] = {}
    with conn.cursor(row_factory=dict_row) as cursor:
        for row in cursor.execute(_VERDICTS, (list(run_ids),)):
            found.setdefault(row.pop("run_id"), []).append(Ruled(**row))
    return {run_id: tuple(rows) for run_id, rows in found.items()}


def _answers(conn: Connection, run_ids: Sequence[int]) -> dict[int, tuple[Answered, ...]]:
    found: dict[int, list[Answered]] = {}
    with conn.cursor(row_factory=dict_row) as cursor:
        for row in cursor.execute(_ANSWERS, (list(run_ids),)):
            found.setdefault(row.pop("run_id"), []).append(Answered(**row))
    return {run_id: tuple(rows) for run_id, rows in found.items()}


# ---- sealing ----------------------------------------------------------------------------------------------------


def seal_settled(
    conn: Connection,
    *,
    observe: Callable[[Run], Sequence[dict[str, Any]]] = lambda _: (),
    abandon_after: float | None = None,
    most: int = 1000,
) -> list[Report]:
    """Seal every run that is settled, in order; the reports. At most ``most``: others may go on counting meanwhile.

    ``conn``: in autocommit, outside a transaction. ``observe``: what other tables say, attached to the run (called
    before the chain is locked). ``abandon_after``: seconds after which a run that nobody answers is sealed anyway.
    """
    sealed: list[Report] = []
    while len(sealed) < most:
        ready = oldest_open(conn)
        if ready is None or not _is_ready(ready, abandon_after):
            return sealed
        (run,) = read_runs(conn, limit=1, before=ready.run_id + 1)
        observations = list(observe(run))
        report = _seal(conn, ready.run_id, observations, abandon_after)
        if report is not None:  # None: somebody else was quicker
            sealed.append(report)
    return sealed


def _is_ready(run: Open, abandon_after: float | None) -> bool:
    return run.settled or (abandon_after is not None and run.age > abandon_after)


def _seal(
    conn: Connection, run_id: int, observations: list[dict[str, Any]], abandon_after: float | None
) -> Report | None:
    """Seal the run if it is still the oldest open one, and ready; None where somebody else sealed it."""
    with conn.transaction():
        with conn.cursor(row_factory=tuple_row) as cursor:
            (place, previous), *_ = cursor.execute(
                "SELECT chain_no, digest FROM sentstream.chain FOR UPDATE"
            ).fetchall()
            row = cursor.execute(
                "SELECT counts, (SELECT count(*) FROM sentstream.watermarks)"
                " FROM sentstream.recounts WHERE run_id = %s::bigint AND status = 'open' FOR UPDATE",
                (run_id,),
            ).fetchone()
            (finished_at,), *_ = cursor.execute("SELECT clock_timestamp()").fetchall()
        ready = oldest_open(conn)
        if row is None or ready is None or ready.run_id != run_id or not _is_ready(ready, abandon_after):
            return None
        counts, partitions = row
        report = read_report(conn, run_id)
        run = replace(
            report.run,
            status="sealed",
            finished_at=finished_at,
            tally=_tally(report, ready, counts or {}, partitions),
            not_covered=tuple(_not_covered(report, ready, counts or {})),
            observations=tuple(observations),
            parts=parts_of(counts, observations, report.verdicts, report.answers),
            chain_no=place + 1,
            previous_digest=previous,
        )
        run = replace(run, digest=digest(run.words()))
        _write_seal(conn, run)
    return replace(report, run=run)


def _write_seal(conn: Connection, run: Run) -> None:
    conn.execute(
        """
        UPDATE sentstream.recounts SET
            status = 'sealed', finished_at = %s::timestamptz, verified = %s::int, drift = %s::int,
            inconclusive = %s::int, not_comparable = %s::int, baseline = %s::int, not_covered = %s::jsonb,
            observations = %s::jsonb, parts = %s::jsonb, chain_no = %s::bigint, previous_digest = %s::text,
            digest = %s::text
        WHERE run_id = %s::bigint
        """,
        (
            run.finished_at,
            *run.tally.as_json().values(),
            Jsonb(list(run.not_covered)),
            Jsonb(list(run.observations)),
            Jsonb(run.parts),
            run.chain_no,
            run.previous_digest,
            run.digest,
            run.run_id,
        ),
    )
    conn.execute("UPDATE sentstream.chain SET chain_no = %s::bigint, digest = %s::text", (run.chain_no, run.digest))


def _tally(report: Report, ready: Open, counts: dict[str, list[int]], partitions: int) -> Tally:
    """The partitions' sums; campaigns of partitions that never answered are not comparable."""
    sums = {
        name: sum(getattr(answer, name) for answer in report.answers)
        for name in ("verified", "drift", "inconclusive", "baseline")
    }
    silent = frozenset(ready.unanswered)
    unknown = 0
    if silent or not partitions:
        in_queue = (int(campaign) for campaign, numbers in counts.items() if any(numbers[:5]))
        unknown = sum(1 for campaign in in_queue if not partitions or partition_of(campaign, partitions) in silent)
    return Tally(not_comparable=unknown, **sums)


def _not_covered(report: Report, ready: Open, counts: dict[str, list[int]]) -> Iterator[dict[str, Any]]:
    """What the run says nothing about, each with why."""
    for answer in report.answers:
        if not answer.conclusive:
            yield {"what": f"partition {answer.partition}", "why": answer.reason or "inconclusive"}
    if ready.unanswered:
        why = "the stream went on without this recount: its entry was lost, or its epoch ended"
        if not ready.settled:
            why = "the stream never got there"
        yield {"what": f"partition {', '.join(map(str, ready.unanswered))}", "why": why}
    outside = sum(1 for numbers in counts.values() if not any(numbers[:5]))
    if outside:
        what = "1 campaign" if outside == 1 else f"{outside} campaigns"
        yield {"what": f"{what} without rows in the queue", "why": "there is nothing to count"}
    if report.run.removed_policy == "keep":
        yield {"what": "removed", "why": "rows that are gone can't be counted again: known from the stream alone"}


# ---- the chain --------------------------------------------------------------------------------------------------


def verify(
    conn: Connection, *, anchor: str | None = None, progress: Callable[[int, int], None] = lambda *_: None
) -> Checked:
    """Walk the chain from its first run to its newest; the first break, if there is one.

    ``anchor``: a digest that was noted elsewhere and must be in the chain. ``progress``: told links done, and in all.
    """
    with conn.transaction():
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        with conn.cursor(row_factory=tuple_row) as cursor:
            head = cursor.execute("SELECT chain_no, digest FROM sentstream.chain").fetchone()
        return walk(_links(conn, progress, head[0] if head else 0), head if head and head[0] else None, anchor)


def _links(conn: Connection, progress: Callable[[int, int], None], total: int) -> Iterator[Link]:
    query = f"""
        SELECT {_RUN_COLUMNS}, counts FROM sentstream.recounts
        WHERE status = 'sealed' AND (coalesce(chain_no, 0), run_id) > (%s::bigint, %s::bigint)
        ORDER BY coalesce(chain_no, 0), run_id LIMIT {_PAGE}"""  # noqa: S608 - our own column names
    after, done = (-1, -1), 0
    while True:
        with conn.cursor(row_factory=dict_row) as cursor:
            rows = cursor.execute(query.encode(), after).fetchall()
        if not rows:
            return
        ids = [row["run_id"] for row in rows]
        verdicts, answers = _verdicts(conn, ids), _answers(conn, ids)
        for row in rows:
            counts = row.pop("counts")
            run = _run(row)
            found = None
            if run.pruned_at is None:
                rows_of_run = (verdicts.get(run.run_id, ()), answers.get(run.run_id, ()))
                found = parts_of(counts, run.observations, *rows_of_run)
            yield Link(run.run_id, run.chain_no, run.words(), run.previous_digest, run.digest, run.parts or {}, found)
            done += 1
            progress(done, total)
        after = (rows[-1]["chain_no"] or 0, ids[-1])


# ---- retention --------------------------------------------------------------------------------------------------


def prune_reports(conn: Connection, retention: float, *, most: int = 500) -> int:
    """Take counts, verdicts, answers and observations of old sealed runs away; their digests stay, so the chain can
    still be verified. ``retention``: seconds. At most ``most`` runs; how many it were."""
    with conn.transaction(), conn.cursor(row_factory=tuple_row) as cursor:
        cursor.execute(
            """
            UPDATE sentstream.recounts SET counts = NULL, observations = NULL, pruned_at = clock_timestamp()
            WHERE run_id IN (
                SELECT run_id FROM sentstream.recounts
                WHERE status = 'sealed' AND pruned_at IS NULL AND finished_at < clock_timestamp() - %s::interval
                ORDER BY run_id LIMIT %s::int FOR UPDATE SKIP LOCKED)
            RETURNING run_id
            """,
            (timedelta(seconds=retention), most),
        )
        ids = [row[0] for row in cursor.fetchall()]
        if ids:
            cursor.execute("DELETE FROM sentstream.verdicts WHERE run_id = ANY (%s::bigint[])", (ids,))
            cursor.execute("DELETE FROM sentstream.answers WHERE run_id = ANY (%s::bigint[])", (ids,))
    return len(ids)


def prune_history(conn: Connection, retention: float, *, most: int = 20_000) -> int:
    """Fold minutes older than ``retention`` seconds into one row a campaign (kind ``pruned``, at 1970), so that the sum
    of a campaign's history stays what it was. At most ``most`` rows; how many went."""
    with conn.cursor(row_factory=tuple_row) as cursor:
        row = cursor.execute(
            """
            WITH gone AS (
                DELETE FROM sentstream.history h USING (
                    SELECT campaign_id, minute, kind FROM sentstream.history
                    WHERE minute < clock_timestamp() - %s::interval AND kind <> 'pruned'
                    ORDER BY minute LIMIT %s::int FOR UPDATE SKIP LOCKED
                ) AS old
                WHERE (h.campaign_id, h.minute, h.kind) = (old.campaign_id, old.minute, old.kind)
                RETURNING h.campaign_id, h.sent
            ), folded AS (
                INSERT INTO sentstream.history AS h (campaign_id, minute, kind, sent)
                SELECT campaign_id, to_timestamp(0), 'pruned', sum(sent) FROM gone GROUP BY campaign_id
                ON CONFLICT (campaign_id, minute, kind) DO UPDATE SET sent = h.sent + excluded.sent
            )
            SELECT count(*) FROM gone
            """,
            (timedelta(seconds=retention), most),
        ).fetchone()
    return row[0] if row else 0


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
