"""One look at the slot and the watermarks: a few catalog rows, cheap enough for every second."""

from __future__ import annotations

from typing import Any, Final

import psycopg
from psycopg.rows import dict_row, tuple_row

from stream.core.position import parse_lsn
from stream.core.slot_lag import SlotSample, WatermarkSample

_SLOT: Final = """
SELECT extract(epoch FROM clock_timestamp())::float8 AS at,
       (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END)::text AS wal,
       s.slot_name IS NOT NULL AS found, s.active_pid, s.wal_status, s.confirmed_flush_lsn::text AS confirmed,
       s.restart_lsn::text AS restart, s.safe_wal_size
FROM (SELECT %s::name AS name) AS asked LEFT JOIN pg_replication_slots AS s ON s.slot_name = asked.name
"""

_MARKS: Final = """
SELECT partition, lsn::text, based, extract(epoch FROM as_of)::float8, extract(epoch FROM flushed_at)::float8
FROM sentstream.watermarks ORDER BY partition
"""


def read_lag(connection: psycopg.Connection[Any], slot: str) -> SlotSample:
    """The slot of that name and the watermarks as they stand. Errors of psycopg, a missing schema among them."""
    with connection.cursor(row_factory=tuple_row) as cursor:
        marks = tuple(
            WatermarkSample(partition, parse_lsn(lsn), based, as_of, flushed_at)
            for partition, lsn, based, as_of, flushed_at in cursor.execute(_MARKS)
        )
    with connection.cursor(row_factory=dict_row) as cursor:
        found = cursor.execute(_SLOT, (slot,)).fetchone()
    assert found is not None  # one row, whether there is a slot or not
    return SlotSample(
        at=found["at"],
        wal=parse_lsn(found["wal"]),
        slot=slot,
        exists=found["found"],
        active_pid=found["active_pid"],
        wal_status=found["wal_status"],
        confirmed=_lsn(found["confirmed"]),
        restart=_lsn(found["restart"]),
        safe_wal_size=found["safe_wal_size"],
        marks=marks,
    )


def _lsn(text: str | None) -> int | None:
    return None if text is None else parse_lsn(text)
