"""What reader and worker report about themselves: written by the role, read by `status`, health and metrics.

All times are monotonic seconds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class ReaderState:
    """State of the role `read`."""

    confirmed: int = 0
    behind: int = 0
    in_flight: int = 0
    records: int = 0
    bytes: int = 0
    entries: int = 0
    sessions: int = 0
    waiting_for_slot: bool = False
    #: since when Kafka has acknowledged nothing although something waits for it
    broker_away_since: float | None = None
    #: false while a backlog is read by SQL, and after a session that ended while it was
    caught_up: bool = True


@dataclass(slots=True)
class WorkerState:
    """State of the role `work`."""

    partitions: tuple[int, ...] = ()
    records: int = 0
    entries_bytes: int = 0
    pending_bytes: int = 0
    flushes: int = 0
    reloads: int = 0
    gaps: int = 0
    skipped: int = 0
    poison: int = 0
    moved_at: float = field(default_factory=time.monotonic)
    database_away_since: float | None = None
    broker_away_since: float | None = None
    next_offsets: dict[int, int] = field(default_factory=dict)
