"""Sealing runs into the chain.

Runs are sealed in the order they were counted; each takes the next place in the chain. The one row of
``sentstream.chain`` is locked meanwhile, so the chain can't fork, whichever process seals. The run's own row is locked
against a flush that may be writing its verdicts: a sealed run takes no more of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import psycopg
from psycopg.rows import tuple_row
from psycopg.types.json import Jsonb

from connectors.postgres.store.reports.read import OpenRun, oldest_open, read_report, read_runs, tally_of
from stream.core.digest import digest
from stream.core.report import Report, Run, parts_of

Connection = psycopg.Connection[Any]


def seal_settled(
    conn: Connection,
    *,
    observe: Callable[[Run], Sequence[dict[str, Any]]] = lambda _: (),
    abandon_after: float | None = None,
    most: int = 1000,
) -> list[Report]:
    """Seal every run that is settled, in order; the reports. At most ``most``: others may go on counting meanwhile.

    ``conn``: in autocommit, outside a transaction. ``observe``: what other tables say, attached to the run (called
    before the chain is locked). ``abandon_after``: seconds after which a run without answers is sealed anyway.
    """
    sealed: list[Report] = []
    while len(sealed) < most:
        ready = oldest_open(conn)
        if ready is None or not _is_ready(ready, abandon_after):
            return sealed
        (run,) = read_runs(conn, limit=1, before=ready.run_id + 1)
        observations = list(observe(run))
        report = _seal(conn, ready.run_id, observations, abandon_after)
        if report is not None:  # None: another session was quicker
            sealed.append(report)
    return sealed


def _is_ready(run: OpenRun, abandon_after: float | None) -> bool:
    return run.settled or (abandon_after is not None and run.age > abandon_after)


def _seal(
    conn: Connection, run_id: int, observations: list[dict[str, Any]], abandon_after: float | None
) -> Report | None:
    """Seal the run if it is still the oldest open one, and ready; None where another session sealed it."""
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
            tally=tally_of(report, ready, counts or {}, partitions),
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


def _not_covered(report: Report, ready: OpenRun, counts: dict[str, list[int]]) -> Iterator[dict[str, Any]]:
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
