"""The store of record: loading a partition, beginning an epoch. The flush is in :mod:`connectors.postgres.store.flush`.

See docs/design/store.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from connectors.postgres.store.flush import FlushWriter
from connectors.postgres.store.times import microseconds
from stream.core.campaign import MailerCampaign
from stream.core.epoch import Server, Watermark, other_history
from stream.core.errors import FencedError, OtherHistoryError
from stream.core.flushing import Flush, FlushResult, ProgressRow
from stream.core.partition import Loaded
from stream.core.position import Position, lsn_text, parse_lsn

Connection = psycopg.Connection[Any]

_WATERMARKS: Final = """
SELECT partition, epoch, lsn::text AS lsn, seq, based, system_identifier, timeline, fold_version, next_offset, as_of
FROM sentstream.watermarks ORDER BY partition"""

# The timeline is that of the WAL being written: pg_control_checkpoint() still has the old one right after a promotion.
_SERVER: Final = """
SELECT (SELECT system_identifier::text FROM pg_control_system()) AS system_identifier,
       ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int AS timeline,
       pg_current_wal_insert_lsn()::text AS wal_end"""

_PROGRESS: Final = """
SELECT campaign_id, queue_queued, queue_sending, queue_sent, queue_failed, queue_cancelled, removed, sent,
       verified_at, verified_lsn::text AS verified_lsn, floor_lsn::text AS floor_lsn, unmatched,
       overwritten_with
FROM sentstream.progress WHERE partition = %s::int"""

# `came`: after the newest run, which counts every campaign.
_CAMPAIGNS: Final = sql.SQL("""
WITH counted AS MATERIALIZED (
    SELECT jsonb_object_keys(CASE WHEN jsonb_typeof(counts) = 'object' THEN counts ELSE '{{}}' END) AS id
    FROM (SELECT counts FROM sentstream.recounts ORDER BY run_id DESC LIMIT 1) newest
)
SELECT id::bigint AS id, coalesce(name::text, '') AS name, coalesce(status::text, '') AS status,
       coalesce(to_send, 0)::bigint AS to_send, coalesce(sent, 0)::bigint AS sent,
       EXISTS (SELECT FROM counted) AND id::text NOT IN (SELECT id FROM counted) AS came
FROM {campaigns}""")

_BEGIN_EPOCH: Final = """
INSERT INTO sentstream.watermarks (
    partition, epoch, lsn, seq, based, system_identifier, timeline, fold_version, flushed_at)
VALUES (%(partition)s::int, %(epoch)s::bigint, %(lsn)s::pg_lsn, 0, false, %(system)s::text, %(timeline)s::int,
        %(fold)s::int, clock_timestamp())
ON CONFLICT (partition) DO UPDATE SET
    epoch = excluded.epoch, lsn = excluded.lsn, seq = 0, based = false, as_of = NULL, next_offset = NULL,
    system_identifier = excluded.system_identifier, timeline = excluded.timeline,
    fold_version = excluded.fold_version, flushed_at = excluded.flushed_at"""

_FOLLOW_TIMELINE: Final = "UPDATE sentstream.watermarks SET timeline = %s::int WHERE epoch = %s::bigint"

_MOVE_TO_PARTITIONS: Final = """
UPDATE sentstream.progress p SET floor_lsn = NULL, partition = m.partition
FROM unnest(%s::bigint[], %s::int[]) AS m(id, partition)
WHERE p.campaign_id = m.id AND (p.floor_lsn IS NOT NULL OR p.partition <> m.partition)"""


def _no_failpoint(name: str) -> None:
    del name


class Store:
    """The tables of one database. ``failpoint`` is called with the name of each step of a flush."""

    def __init__(self, mailer_schema: str = "public", failpoint: Callable[[str], None] = _no_failpoint) -> None:
        self._campaigns = _CAMPAIGNS.format(campaigns=sql.Identifier(mailer_schema, "campaigns"))
        self._writer = FlushWriter(mailer_schema, failpoint)

    def watermarks(self, connection: Connection) -> list[Watermark]:
        """All watermarks, by partition."""
        with connection.cursor(row_factory=dict_row) as cursor:
            return [_watermark(row) for row in cursor.execute(_WATERMARKS)]

    def load(self, connection: Connection, partition: int, partition_of: Callable[[int], int]) -> Loaded:
        """A partition as it stands, in one snapshot. LookupError where it has no watermark.

        :exc:`OtherHistoryError` where its watermark is of another history than the server's WAL.
        """
        with connection.transaction(), connection.cursor(row_factory=dict_row) as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            watermark = next((w for w in self.watermarks(connection) if w.partition == partition), None)
            if watermark is None:
                raise LookupError(f"partition {partition} has no watermark")
            _check_history(cursor, watermark)
            rows = tuple(_progress_row(row) for row in cursor.execute(_PROGRESS, (partition,)))
            campaigns = {
                number: MailerCampaign(**row)
                for row in cursor.execute(self._campaigns)
                if partition_of(number := row.pop("id")) == partition
            }
        return Loaded(
            watermark.epoch,
            watermark.position,
            watermark.based,
            watermark.as_of,
            rows,
            campaigns,
            watermark.next_offset,
        )

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
            common = {
                "epoch": epoch,
                "lsn": lsn_text(lsn),
                "system": server.system_identifier,
                "timeline": server.timeline,
                "fold": fold_version,
            }
            connection.cursor().executemany(
                _BEGIN_EPOCH, [common | {"partition": number} for number in range(partitions)]
            )
            ids = [number for (number,) in connection.execute("SELECT campaign_id FROM sentstream.progress")]
            connection.execute(_MOVE_TO_PARTITIONS, (ids, [partition_of(number) for number in ids]))

    def follow_timeline(self, connection: Connection, epoch: int, timeline: int) -> None:
        """Note that the epoch goes on in ``timeline``, which forked behind all its watermarks."""
        connection.execute(_FOLLOW_TIMELINE, (timeline, epoch))

    def flush(self, connection: Connection, flush: Flush) -> FlushResult:
        """Write ``flush``; see :meth:`FlushWriter.write`."""
        return self._writer.write(connection, flush)


def _check_history(cursor: psycopg.Cursor[dict[str, Any]], watermark: Watermark) -> None:
    row = cursor.execute(_SERVER).fetchone()
    assert row is not None
    server = Server(row["system_identifier"], row["timeline"], parse_lsn(row["wal_end"]))
    reason = other_history(watermark, server)
    if reason is not None:
        raise OtherHistoryError(
            f"partition {watermark.partition} of epoch {watermark.epoch} is not loaded: {reason}.",
            "It is loaded as soon as a reader has begun a new epoch in this database.",
        )


def _watermark(row: Mapping[str, Any]) -> Watermark:
    return Watermark(
        row["partition"],
        row["epoch"],
        Position(parse_lsn(row["lsn"]), row["seq"]),
        row["based"],
        row["system_identifier"],
        row["timeline"],
        row["fold_version"],
        row["next_offset"],
        microseconds(row["as_of"]),
    )


def _progress_row(row: Mapping[str, Any]) -> ProgressRow:
    verified, floor = row["verified_lsn"], row["floor_lsn"]
    return ProgressRow(
        row["campaign_id"],
        (
            row["queue_queued"],
            row["queue_sending"],
            row["queue_sent"],
            row["queue_failed"],
            row["queue_cancelled"],
        ),
        row["removed"],
        row["sent"],
        microseconds(row["verified_at"]) or None,
        parse_lsn(verified) if verified else None,
        floor=parse_lsn(floor) if floor else None,
        unmatched=row["unmatched"],
        overwritten_with=row["overwritten_with"],
    )
