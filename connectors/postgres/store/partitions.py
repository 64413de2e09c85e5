"""The store of record: loading a partition, beginning an epoch, and the flush.

A flush is one transaction. It first moves the watermark by compare-and-swap from what this process loaded or wrote
last; if that finds nothing, somebody else owns the partition, and nothing else is written. That is the fence against
zombies of every kind, and it makes exactly-once a property of one row. Source: DESIGN 3.

All writers of ours (this one, the interim raise of a recount) take the watermark's row first, so they queue there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from stream.core.epoch import Server, Watermark
from stream.core.errors import FencedError
from stream.core.flushing import (
    Flush,
    FlushResult,
    Overwritten,
    ProgressRow,
    Stored,
    with_raised,
    with_store_faults,
    without_corrections,
)
from stream.core.partition import Loaded, MailerCampaign
from stream.core.position import Position, lsn_text, parse_lsn

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
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

_CAS = """
UPDATE sentstream.watermarks
SET lsn = %s::pg_lsn, seq = %s::bigint, based = %s::boolean, as_of = %s::timestamptz,
    next_offset = coalesce(%s::bigint, next_offset), flushed_at = clock_timestamp()
WHERE partition = %s::int AND epoch = %s::bigint AND lsn = %s::pg_lsn AND seq = %s::bigint"""

_DUE = sql.SQL("""
WITH due AS (
    SELECT d.id, d.sent, p.written
    FROM unnest(%(ids)s::int[], %(sent)s::int[]) AS d(id, sent)
    LEFT JOIN sentstream.progress p ON p.campaign_id = d.id
    WHERE p.floor_lsn IS NULL OR p.floor_lsn <= %(lsn)s::pg_lsn
), locked AS (
    SELECT c.id, c.sent AS found
    FROM {campaigns} c JOIN due ON due.id = c.id
    WHERE c.sent IS DISTINCT FROM due.sent
    ORDER BY c.id
    FOR NO KEY UPDATE OF c SKIP LOCKED
)
SELECT due.id, due.sent, due.written, locked.id IS NOT NULL, locked.found
FROM due JOIN {campaigns} c ON c.id = due.id AND c.sent IS DISTINCT FROM due.sent
LEFT JOIN locked ON locked.id = due.id
ORDER BY due.id""")

# Only `sent`: updated_at is indexed, and leaving it alone keeps the update HOT.
_WRITE = sql.SQL("""
UPDATE {campaigns} c SET sent = w.sent
FROM unnest(%s::int[], %s::int[]) AS w(id, sent)
WHERE c.id = w.id
RETURNING c.id, c.sent""")

_PROGRESS = """
INSERT INTO sentstream.progress AS p (
    campaign_id, partition, queue_queued, queue_sending, queue_sent, queue_failed, queue_cancelled, removed, sent,
    verified_at, verified_lsn)
SELECT campaign, %s::int, queued, sending, sent_rows, failed, cancelled, removed, sent,
       verified_at, verified_lsn::pg_lsn
FROM unnest(%s::int[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[],
            %s::timestamptz[], %s::text[])
    AS r(campaign, queued, sending, sent_rows, failed, cancelled, removed, sent, verified_at, verified_lsn)
ON CONFLICT (campaign_id) DO UPDATE SET
    partition = excluded.partition, queue_queued = excluded.queue_queued, queue_sending = excluded.queue_sending,
    queue_sent = excluded.queue_sent, queue_failed = excluded.queue_failed, queue_cancelled = excluded.queue_cancelled,
    removed = excluded.removed, sent = excluded.sent,
    verified_at = excluded.verified_at, verified_lsn = excluded.verified_lsn"""

_WRITTEN = """
UPDATE sentstream.progress p SET written = w.sent
FROM unnest(%s::int[], %s::bigint[]) AS w(id, sent)
WHERE p.campaign_id = w.id"""

# A counter that was right when we met the campaign is as good as written by us.
_FOUND_RIGHT = sql.SQL("""
UPDATE sentstream.progress p SET written = c.sent
FROM {campaigns} c
WHERE p.campaign_id = ANY(%s::int[]) AND p.written IS NULL AND c.id = p.campaign_id AND c.sent = p.sent""")

_HISTORY = """
INSERT INTO sentstream.history AS h (campaign_id, minute, kind, sent)
SELECT campaign, to_timestamp(minute * 60.0), kind, n
FROM unnest(%s::int[], %s::bigint[], %s::text[], %s::bigint[]) AS r(campaign, minute, kind, n)
ON CONFLICT (campaign_id, minute, kind) DO UPDATE SET sent = h.sent + excluded.sent"""

# A sealed run takes no more verdicts, or its digest would not hold; whoever seals it waits for this lock.
_VERDICTS = """
INSERT INTO sentstream.verdicts (run_id, campaign_id, verdict, cause, before, after, delta, corrected, estimated)
SELECT %s::bigint, %s::int, %s::text, %s::text, %s::jsonb, %s::jsonb, %s::jsonb, %s::boolean, %s::boolean
WHERE EXISTS (SELECT FROM sentstream.recounts WHERE run_id = %s::bigint AND status = 'open' FOR KEY SHARE)
ON CONFLICT (run_id, campaign_id, verdict) DO NOTHING"""

_ANSWERS = """
INSERT INTO sentstream.answers (
    run_id, partition, epoch, conclusive, reason, verified, drift, inconclusive, baseline)
SELECT %s::bigint, %s::int, %s::bigint, %s::boolean, %s::text, %s::int, %s::int, %s::int, %s::int
WHERE EXISTS (SELECT FROM sentstream.recounts WHERE run_id = %s::bigint AND status = 'open' FOR KEY SHARE)
ON CONFLICT (run_id, partition) DO NOTHING"""

_STORED = """
SELECT campaign_id, queue_queued, queue_sending, queue_sent, queue_failed, queue_cancelled, removed
FROM sentstream.progress WHERE campaign_id = ANY(%s::int[])"""


_BEGIN = """
INSERT INTO sentstream.watermarks (
    partition, epoch, lsn, seq, based, system_identifier, timeline, fold_version, flushed_at)
VALUES (%s::int, %s::bigint, %s::pg_lsn, 0, false, %s::text, %s::int, %s::int, clock_timestamp())
ON CONFLICT (partition) DO UPDATE SET
    epoch = excluded.epoch, lsn = excluded.lsn, seq = 0, based = false, as_of = NULL, next_offset = NULL,
    system_identifier = excluded.system_identifier, timeline = excluded.timeline,
    fold_version = excluded.fold_version, flushed_at = excluded.flushed_at"""


def timestamp(microseconds: int | None) -> datetime | None:
    """Microseconds since 1970 as a time; 0 and None as None."""
    return _EPOCH + timedelta(microseconds=microseconds) if microseconds else None


def microseconds(time: datetime | None) -> int:
    """A time as microseconds since 1970; None as 0."""
    return 0 if time is None else (time - _EPOCH) // timedelta(microseconds=1)


def _nothing(name: str) -> None:
    del name


class Store:
    """The tables of one database. ``failpoint`` is called with the name of each step."""

    def __init__(self, mailer_schema: str = "public", failpoint: Callable[[str], None] = _nothing) -> None:
        campaigns = sql.Identifier(mailer_schema, "campaigns")
        self._campaigns = campaigns
        self._due = _DUE.format(campaigns=campaigns)
        self._write = _WRITE.format(campaigns=campaigns)
        self._found_right = _FOUND_RIGHT.format(campaigns=campaigns)
        self._failpoint = failpoint
        self._refused: dict[int, str] = {}

    # ---- loading ------------------------------------------------------------------------------------------------

    def watermarks(self, connection: Connection) -> list[Watermark]:
        """All watermarks, by partition."""
        rows = connection.execute(
            "SELECT partition, epoch, lsn::text, seq, based, system_identifier, timeline, fold_version, next_offset,"
            " as_of FROM sentstream.watermarks ORDER BY partition"
        ).fetchall()
        return [
            Watermark(
                p, epoch, Position(parse_lsn(lsn), seq), based, system, timeline, fold, offset, microseconds(as_of)
            )
            for p, epoch, lsn, seq, based, system, timeline, fold, offset, as_of in rows
        ]

    def load(self, connection: Connection, partition: int, partition_of: Callable[[int], int]) -> Loaded:
        """A partition as it stands, in one snapshot. LookupError where it has no watermark."""
        with connection.transaction():
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            mark = next((w for w in self.watermarks(connection) if w.partition == partition), None)
            if mark is None:
                raise LookupError(f"partition {partition} has no watermark")
            rows = connection.execute(
                "SELECT campaign_id, queue_queued, queue_sending, queue_sent, queue_failed, queue_cancelled, removed,"
                " sent, verified_at, verified_lsn::text, floor_lsn::text"
                " FROM sentstream.progress WHERE partition = %s::int",
                (partition,),
            ).fetchall()
            campaigns = connection.execute(
                sql.SQL("SELECT id, name, status::text, to_send, sent FROM {}").format(self._campaigns)
            ).fetchall()
        return Loaded(
            mark.epoch,
            mark.position,
            mark.based,
            mark.as_of,
            tuple(
                ProgressRow(
                    row[0],
                    (row[1], row[2], row[3], row[4], row[5]),
                    row[6],
                    row[7],
                    microseconds(row[8]) or None,
                    parse_lsn(row[9]) if row[9] else None,
                    floor=parse_lsn(row[10]) if row[10] else None,
                )
                for row in rows
            ),
            {
                number: MailerCampaign(name or "", status or "", to_send or 0, sent or 0)
                for number, name, status, to_send, sent in campaigns
                if partition_of(number) == partition
            },
            mark.next_offset,
        )

    # ---- epochs -------------------------------------------------------------------------------------------------

    def begin_epoch(
        self,
        connection: Connection,
        known: Sequence[Watermark],
        epoch: int,
        partitions: int,
        partition_of: Callable[[int], int],
        lsn: int,
        server: Server,
        fold_version: int,
    ) -> None:
        """Write the first watermarks of an epoch: nothing is based, floors are cleared.

        By compare-and-swap too: :exc:`FencedError` where the watermarks are no longer ``known``.
        """
        with connection.transaction():
            connection.execute("LOCK TABLE sentstream.watermarks IN SHARE ROW EXCLUSIVE MODE")
            now = self.watermarks(connection)
            if [(w.partition, w.epoch, w.position) for w in now] != [(w.partition, w.epoch, w.position) for w in known]:
                raise FencedError("another reader moved the watermarks while a new epoch was about to begin.")
            connection.execute("DELETE FROM sentstream.watermarks WHERE partition >= %s::int", (partitions,))
            connection.cursor().executemany(
                _BEGIN,
                [
                    (number, epoch, lsn_text(lsn), server.system_identifier, server.timeline, fold_version)
                    for number in range(partitions)
                ],
            )
            rows = connection.execute("SELECT campaign_id FROM sentstream.progress").fetchall()
            ids = [row[0] for row in rows]
            connection.execute(
                "UPDATE sentstream.progress p SET floor_lsn = NULL, partition = m.partition"
                " FROM unnest(%s::int[], %s::int[]) AS m(id, partition) WHERE p.campaign_id = m.id"
                " AND (p.floor_lsn IS NOT NULL OR p.partition <> m.partition)",
                (ids, [partition_of(number) for number in ids]),
            )

    # ---- flushing -----------------------------------------------------------------------------------------------

    def flush(self, connection: Connection, flush: Flush) -> FlushResult:
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
                _CAS,
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
                connection.execute(_WRITTEN, (list(writes), list(writes.values())))
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
        rows = connection.execute(
            "SELECT campaign_id, coalesce(written, 0) FROM sentstream.progress"
            " WHERE campaign_id = ANY(%s::int[]) AND (floor_lsn IS NULL OR floor_lsn <= %s::pg_lsn)",
            (list(flush.unmet), lsn_text(flush.position.lsn)),
        ).fetchall()
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
        rows = connection.execute(_STORED, (list(flush.check),)).fetchall()
        found: dict[int, Stored] = {row[0]: (row[1], row[2], row[3], row[4], row[5], row[6]) for row in rows}
        return with_store_faults(flush, found)

    @staticmethod
    def _write_rows(connection: Connection, flush: Flush) -> None:
        if flush.deleted:
            # A row that was raised ahead of the stream is of a campaign that lives where the stream will get to.
            connection.execute(
                "DELETE FROM sentstream.progress WHERE campaign_id = ANY(%s::int[])"
                " AND (floor_lsn IS NULL OR floor_lsn <= %s::pg_lsn)",
                (list(flush.deleted), lsn_text(flush.position.lsn)),
            )
            connection.execute(
                "DELETE FROM sentstream.history WHERE campaign_id = ANY(%s::int[])", (list(flush.deleted),)
            )
        if flush.rows:
            rows = flush.rows
            connection.execute(
                _PROGRESS,
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
                _HISTORY,
                ([k[0] for k in keys], [k[1] for k in keys], [k[2] for k in keys], [n for _, n in flush.history]),
            )
        if flush.verdicts:
            connection.cursor().executemany(
                _VERDICTS,
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
                _ANSWERS,
                (
                    *(a.run_id, flush.partition, flush.epoch, a.conclusive, a.reason),
                    *(a.verified, a.drift, a.inconclusive, a.baseline, a.run_id),
                ),
            )


def _json(value: Any) -> Jsonb | None:
    return None if value is None else Jsonb(dict(value))
