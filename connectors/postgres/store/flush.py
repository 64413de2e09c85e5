"""The flush: all that a partition has to write, in one transaction.

It first moves the watermark by compare-and-swap from what this process loaded or wrote last; where that finds nothing,
another process owns the partition, and nothing else is written. That is the fence against every kind of zombie, and it
makes exactly-once a property of one row. See docs/design/store.md.

All our writers (this one, and the raise of a recount) take the watermark's row first, so they queue there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from connectors.postgres.store import flush_statements as statements
from connectors.postgres.store.counters import CounterWriter
from connectors.postgres.store.times import timestamp
from stream.core.errors import FencedError
from stream.core.flushing import (
    Flush,
    FlushResult,
    Overwritten,
    Stored,
    with_raised,
    with_store_faults,
    without_corrections,
)
from stream.core.position import lsn_text

Connection = psycopg.Connection[Any]


@dataclass(slots=True)
class _Due:
    """Counters that differ. ``held``: their rows are locked by other sessions; ``writes``: to be written, what with;
    ``found``: what they show; ``overwritten``: those of them that another session wrote."""

    held: set[int] = field(default_factory=set)
    writes: dict[int, int] = field(default_factory=dict)
    found: dict[int, int] = field(default_factory=dict)
    overwritten: list[Overwritten] = field(default_factory=list)


class FlushWriter:
    """Writes flushes to one database. ``failpoint`` is called with the name of each step."""

    def __init__(self, mailer_schema: str, failpoint: Callable[[str], None]) -> None:
        campaigns = sql.Identifier(mailer_schema, "campaigns")
        self._due = statements.DUE.format(campaigns=campaigns)
        self._found_right = statements.FOUND_RIGHT.format(campaigns=campaigns)
        self._failpoint = failpoint
        self._counters = CounterWriter(mailer_schema)

    def write(self, connection: Connection, flush: Flush) -> FlushResult:
        """Write ``flush`` in one transaction, durably.

        :exc:`FencedError` where the watermark is not the expected one; nothing is written then. Serialization
        failures, deadlocks and lock time-outs (``psycopg.errors``) leave nothing written either: the same flush may
        be tried again. After any other database error the outcome is unknown: the partition must be loaded again.
        """
        self._failpoint("before_flush")
        try:
            result = self._write(connection, flush, self._counters.may_try)
        except psycopg.errors.InsufficientPrivilege as error:
            result = self._write(connection, flush, counters=False)  # raises again where it is not about the counters
            self._counters.missing_right(error)
        self._failpoint("after_commit")
        return result

    def _write(self, connection: Connection, flush: Flush, counters: bool) -> FlushResult:
        """In one transaction; without ``counters`` all that is due stays so."""
        with connection.transaction():
            # What is confirmed must be on disk: the database's default may say otherwise.
            connection.execute("SET LOCAL synchronous_commit = on")
            self._move_watermark(connection, flush)
            self._failpoint("after_swap")
            flush, raised = self._raised(connection, flush)
            due = self._due_now(connection, flush) if counters else self._due_later(connection, flush)
            refused = self._counters.write(connection, due.writes)
            written = {campaign: sent for campaign, sent in due.writes.items() if campaign not in refused}
            if refused or not counters:
                shown = {c: due.found[c] if it.shows is None else it.shows for c, it in refused.items()}
                flush = without_corrections(flush, shown if counters else due.found)
            flush = self._checked(connection, flush)
            self._write_rows(connection, flush)
            if written:
                connection.execute(statements.WRITTEN, (list(written), list(written.values())))
            overwritten = tuple(it for it in due.overwritten if it.campaign not in refused)
            if overwritten:
                found = [it.found for it in overwritten]
                connection.execute(statements.OVERWRITTEN, ([it.campaign for it in overwritten], found))
            right = [campaign for campaign in flush.due if campaign not in due.writes and campaign not in due.held]
            if right:
                connection.execute(self._found_right, (right,))
            self._failpoint("before_commit")
        return FlushResult(frozenset(due.held | refused.keys()), overwritten, flush.verdicts, raised)

    @staticmethod
    def _move_watermark(connection: Connection, flush: Flush) -> None:
        moved = connection.execute(
            statements.CAS,
            (
                lsn_text(flush.position.lsn),
                flush.position.seq,
                flush.based,
                timestamp(flush.as_of),
                flush.next_offset,
                flush.partition,
                flush.epoch,
                lsn_text(flush.expected.lsn),
                flush.expected.seq,
                lsn_text(flush.position.lsn),
            ),
        )
        if moved.rowcount != 1:
            raise FencedError(
                f"partition {flush.partition} is no longer at {flush.expected} of epoch {flush.epoch} (another process "
                f"writes it), or {lsn_text(flush.position.lsn)} lies beyond the server's WAL.",
                "Its state is loaded again.",
            )

    @staticmethod
    def _raised(connection: Connection, flush: Flush) -> tuple[Flush, Mapping[int, int]]:
        """With a baseline, the campaigns that only a raise has met so far."""
        if not flush.unmet:
            return flush, {}
        rows = connection.execute(statements.RAISED, (list(flush.unmet), lsn_text(flush.position.lsn))).fetchall()
        return with_raised(flush, dict(rows))

    def _due_now(self, connection: Connection, flush: Flush) -> _Due:
        """Lock the counters that differ; those that another session has locked stay due."""
        due = _Due()
        if not flush.due:
            return due
        given = {"ids": list(flush.due), "sent": list(flush.due.values()), "lsn": lsn_text(flush.position.lsn)}
        for campaign, sent, written, locked, found in connection.execute(self._due, given):
            if not locked:
                due.held.add(campaign)
                continue
            due.writes[campaign], due.found[campaign] = sent, found
            if written is not None and found != written and campaign not in flush.deleted:
                due.overwritten.append(Overwritten(campaign, found, sent))
        return due

    def _due_later(self, connection: Connection, flush: Flush) -> _Due:
        """The counters that differ, where we may not write them: all stay due."""
        shown = self._counters.shown(connection, flush.due)
        found = {campaign: shown[campaign] for campaign, sent in flush.due.items() if shown.get(campaign, sent) != sent}
        return _Due(held=set(found), found=found)

    @staticmethod
    def _checked(connection: Connection, flush: Flush) -> Flush:
        """With a recount, look whether the progress rows are as we left them."""
        if not flush.check:
            return flush
        rows = connection.execute(statements.STORED, (list(flush.check),)).fetchall()
        found: dict[int, Stored] = {row[0]: (row[1], row[2], row[3], row[4], row[5], row[6]) for row in rows}
        return with_store_faults(flush, found)

    @staticmethod
    def _write_rows(connection: Connection, flush: Flush) -> None:
        if flush.deleted:
            gone = list(flush.deleted)
            connection.execute(statements.DELETE_PROGRESS, (gone, lsn_text(flush.position.lsn)))
            connection.execute(statements.DELETE_HISTORY, (gone,))
        if flush.rows:
            rows = flush.rows
            connection.execute(
                statements.PROGRESS,
                (
                    flush.partition,
                    [row.campaign for row in rows],
                    *([row.counts[status] for row in rows] for status in range(5)),
                    [row.removed for row in rows],
                    [row.sent for row in rows],
                    [timestamp(row.verified_at) for row in rows],
                    [None if row.verified_lsn is None else lsn_text(row.verified_lsn) for row in rows],
                    [row.unmatched for row in rows],
                ),
            )
        if flush.history:
            keys = [key for key, _ in flush.history]
            connection.execute(
                statements.HISTORY,
                ([k[0] for k in keys], [k[1] for k in keys], [k[2] for k in keys], [n for _, n in flush.history]),
            )
        if flush.verdicts:
            connection.cursor().executemany(
                statements.VERDICTS,
                [
                    (
                        *(v.run_id, v.campaign, v.verdict, v.cause, _json(v.before), _json(v.after), _json(v.delta)),
                        *(v.corrected, v.estimated, v.run_id),
                    )
                    for v in flush.verdicts
                ],
            )
        for a in flush.answers:
            connection.execute(
                statements.ANSWERS,
                (
                    *(a.run_id, flush.partition, flush.epoch, a.conclusive, a.reason),
                    *(a.verified, a.drift, a.inconclusive, a.baseline, a.run_id),
                ),
            )


def _json(value: Any) -> Jsonb | None:
    return None if value is None else Jsonb(dict(value))
