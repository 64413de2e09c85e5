"""Metric families and health checks of reader and worker, from their states."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client.core import Metric

from stream.kafka.state import ReaderState, WorkerState
from stream.metrics.families import counter, gauge
from stream.metrics.states import Check, round_check

#: seconds without an answer after which a server counts as away
_MOMENT: Final = 5.0


def reader_families(state: ReaderState, stalls: int) -> Iterator[Metric]:
    """Families of a reader. ``stalls``: how often the role has restarted itself."""
    yield counter("sentstream_reader_sessions", "Sessions that took the slot.", state.sessions)
    yield counter("sentstream_reader_entries", "Entries that came out of the WAL.", state.entries)
    yield counter("sentstream_reader_batches", "Records of the changes topic that were sent.", state.records)
    yield counter("sentstream_reader_sent_bytes", "Bytes of those records.", state.bytes)
    yield gauge("sentstream_reader_behind_bytes", "WAL not read yet, by the server's last word.", state.behind)
    yield gauge("sentstream_reader_confirmed_bytes", "Position confirmed to the server.", state.confirmed)
    yield gauge("sentstream_reader_in_flight_bytes", "Bytes that Kafka has not acknowledged.", state.in_flight)
    yield gauge(
        "sentstream_reader_connected", "Whether the slot is held.", bool(state.sessions) and not state.waiting_for_slot
    )
    yield counter("sentstream_stalls", "Restarts of the role by itself, as it stood still.", stalls)


def worker_families(state: WorkerState, stalls: int, now: Callable[[], float] = time.monotonic) -> Iterator[Metric]:
    """Families of a worker. ``stalls``: how often the role has restarted itself."""
    away = state.database_away_since
    yield gauge("sentstream_worker_partitions", "Partitions in this worker's hands.", len(state.partitions))
    yield counter("sentstream_worker_records", "Records applied.", state.records)
    yield counter("sentstream_worker_bytes", "Bytes of those records.", state.entries_bytes)
    yield gauge("sentstream_worker_pending_bytes", "Bytes applied and not yet written.", state.pending_bytes)
    yield counter("sentstream_worker_flushes", "Flush transactions.", state.flushes)
    yield counter("sentstream_worker_reloads", "Partitions loaded again.", state.reloads)
    yield counter("sentstream_worker_gaps", "Partitions counted anew after a gap.", state.gaps)
    yield counter(
        "sentstream_worker_skipped", "Times that records were skipped on their way and read again.", state.skipped
    )
    yield counter("sentstream_worker_poison", "Records that could not be decoded.", state.poison)
    yield gauge(
        "sentstream_worker_database_away_seconds",
        "How long the database has been waited for.",
        0.0 if away is None else now() - away,
    )
    yield counter("sentstream_stalls", "Restarts of the role by itself, as it stood still.", stalls)


def reader_health(state: ReaderState, round_at: float, limit: float) -> tuple[list[Check], list[Check]]:
    """A reader that waits for the slot is ready: it takes over when the other one goes."""
    live = (
        [Check("slot", ok=True, detail="waits for the slot")]
        if state.waiting_for_slot
        else [round_check(round_at, limit)]
    )
    reading = bool(state.sessions)
    return live, [
        Check("reading", reading or state.waiting_for_slot, "reads" if reading else "has not read yet"),
        _away_check("broker", state.broker_away_since),
    ]


def worker_health(state: WorkerState, round_at: float, limit: float) -> tuple[list[Check], list[Check]]:
    """A worker without partitions is ready: it is one more than there are partitions, or waits for its share."""
    return [round_check(round_at, limit)], [
        _away_check("database", state.database_away_since),
        _away_check("broker", state.broker_away_since),
    ]


def _away_check(name: str, since: float | None) -> Check:
    """A server that did not answer for a moment is not away yet."""
    if since is None:
        return Check(name, ok=True, detail="reached")
    seconds = time.monotonic() - since
    return Check(name, seconds < _MOMENT, f"has not answered for {seconds:.0f} s")
