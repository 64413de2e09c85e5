"""The flush: all that a partition has to write, in one transaction.

It first moves the watermark by compare-and-swap from what this process loaded or wrote last; where that finds nothing,
another process owns the partition, and nothing else is written. That is the fence against every kind of zombie, and it
makes exactly-once a property of one row. See docs/design/store.md.

All our writers (this one, and the raise of a recount) take the watermark's row first, so they queue there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from connectors.postgres.store import flush_statements as statements
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

log = logging.getLogger("sentstream.store")

Connection = psycopg.Connection[Any]

#: a row that the database will not take, whoever tries; a lost connection or a deadlock is none of these
_REFUSALS: Final = (
    psycopg.IntegrityError,
    psycopg.DataError,
    psycopg.InternalError,
    psycopg.ProgrammingError,
    psycopg.NotSupportedError,
)


class FlushWriter:
    """Writes flushes to one database. ``failpoint`` is called with the name of each step."""

    def __init__(self, mailer_schema: str, failpoint: Callable[[str], None]) -> None:
        campaigns = sql.Identifier(mailer_schema, "campaigns")
        self._due = statements.DUE.format(campaigns=campaigns)
        self._write = statements.WRITE.format(campaigns=campaigns)
        self._found_right = statements.FOUND_RIGHT.format(campaigns=campaigns)
        self._failpoint = failpoint
        self._refused: dict[int, str] = {}

    def write(self, connection: Connection, flush: Flush) -> FlushResult:
        """Write ``flush`` in one transaction, durably.

        :exc:`FencedError` where the watermark is not the expected one; nothing is written then. Serialization
        failures, deadlocks and lock time-outs (``psycopg.errors``) leave nothing written either: the same flush may
        be tried again. After any other database error the outcome is unknown: the partition must be loaded again.
        """
        failpoint = self._failpoint
        failpoint("before_flush")
        with connection.transaction():
            # What is confirmed must be on disk, whatever the database's default says.
            connection.execute("SET LOCAL synchronous_commit = on")
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
                ),
            )
            if moved.rowcount != 1:
                raise FencedError(
                    f"partition {flush.partition} is no longer at {flush.expected} of epoch {flush.epoch}: "
                    "somebody else writes it.",
                    "Its state is loaded again.",
                )
            failpoint("after_swap")
            flush, raised = self._raised(connection, flush)
            held, overwritten, writes, found = self._due_now(connection, flush)
            refused = self._write_counters(connection, writes)
            if refused:
                writes = {campaign: sent for campaign, sent in writes.items() if campaign not in refused}
                overwritten = [it for it in overwritten if it.campaign not in refused]
                held |= refused.keys()
                flush = without_corrections(flush, {campaign: found[campaign] for campaign in refused})
            flush = self._checked(connection, flush)
            self._write_rows(connection, flush)
            if writes:
                connection.execute(statements.WRITTEN, (list(writes), list(writes.values())))
            right = [campaign for campaign in flush.due if campaign not in writes and campaign not in refused]
            if right:
                connection.execute(self._found_right, (right,))
            failpoint("before_commit")
        failpoint("after_commit")
        self._tell_refused(refused, writes)
        return FlushResult(frozenset(held), tuple(overwritten), flush.verdicts, raised)

    @staticmethod
    def _raised(connection: Connection, flush: Flush) -> tuple[Flush, Mapping[int, int]]:
        """With a baseline, the campaigns that only a raise has met so far."""
        if not flush.unmet:
            return flush, {}
        rows = connection.execute(statements.RAISED, (list(flush.unmet), lsn_text(flush.position.lsn))).fetchall()
        return with_raised(flush, dict(rows))

    def _write_counters(self, connection: Connection, writes: Mapping[int, int]) -> dict[int, str]:
        """Write ``campaigns.sent``; of those that the mailer's own constraints, triggers or rules refuse, why. One
        refused row holds up no other: the rest is written by halves."""
        if not writes:
            return {}
        try:
            with connection.transaction():
                rows = connection.execute(self._write, (list(writes), list(writes.values()))).fetchall()
        except psycopg.errors.InsufficientPrivilege:
            raise
        except _REFUSALS as error:
            if len(writes) > 1:
                items = list(writes.items())
                first, second = dict(items[: len(items) // 2]), dict(items[len(items) // 2 :])
                return self._write_counters(connection, first) | self._write_counters(connection, second)
            return dict.fromkeys(writes, error.diag.message_primary or type(error).__name__)
        shown = dict(rows)
        return {
            campaign: f"a trigger or rule keeps it at {shown[campaign]}"
            if campaign in shown
            else "a trigger or rule takes the update away"
            for campaign, sent in writes.items()
            if shown.get(campaign) != sent
        }

    def _tell_refused(self, refused: Mapping[int, str], written: Iterable[int]) -> None:
        """Say once what is refused, and why: it is tried again every second."""
        for campaign in written:
            self._refused.pop(campaign, None)
        for campaign, why in refused.items():
            if self._refused.get(campaign) != why:
                self._refused[campaign] = why
                log.warning("campaigns.sent of campaign %d can't be written: %s; it stays due", campaign, why)

    def _due_now(
        self, connection: Connection, flush: Flush
    ) -> tuple[set[int], list[Overwritten], dict[int, int], dict[int, int]]:
        """Lock the counters that differ; those that somebody else has locked stay due. What is held, what somebody
        else wrote, what is to be written, and what stands there now."""
        held: set[int] = set()
        overwritten: list[Overwritten] = []
        writes: dict[int, int] = {}
        stands: dict[int, int] = {}
        if not flush.due:
            return held, overwritten, writes, stands
        rows = connection.execute(
            self._due,
            {"ids": list(flush.due), "sent": list(flush.due.values()), "lsn": lsn_text(flush.position.lsn)},
        ).fetchall()
        for campaign, sent, written, locked, found in rows:
            if not locked:
                held.add(campaign)
                continue
            writes[campaign], stands[campaign] = sent, found or 0
            if written is not None and found != written and campaign not in flush.deleted:
                overwritten.append(Overwritten(campaign, found or 0, sent))
        return held, overwritten, writes, stands

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
