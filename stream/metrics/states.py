"""State of the roles that need no Kafka, as metric families and as health checks. The roles fill the states.

Health is progress, not being up. *live*: the role's own loop goes round; where it does not, only a restart helps.
*ready*: the role does its work, or waits for its turn. A server that is away is no reason for a restart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from prometheus_client.core import Metric

from stream.metrics.families import counter, gauge


@dataclass(frozen=True, slots=True)
class Check:
    """One line of a health answer."""

    name: str
    ok: bool
    detail: str


#: (live, ready)
Health: TypeAlias = Callable[[], tuple[list[Check], list[Check]]]


@dataclass(slots=True)
class EmbeddedState:
    """The embedded stream over all its sessions. Positions are bytes of WAL, times monotonic seconds."""

    sessions: int = 0
    connected: bool = False
    entries: int = 0
    batches: int = 0
    behind: int = 0
    confirmed: int = 0
    round_at: float = field(default_factory=time.monotonic)

    def went_round(self) -> None:
        self.round_at = time.monotonic()


@dataclass(slots=True)
class ReconcilerState:
    """The reconciler's loop. ``connected``: whether the last poll succeeded."""

    connected: bool = False
    round_at: float = field(default_factory=time.monotonic)


def embedded_families(state: EmbeddedState) -> Iterator[Metric]:
    """Of `EmbeddedState`."""
    yield counter("sentstream_reader_sessions", "Sessions that took the slot.", state.sessions)
    yield counter("sentstream_reader_entries", "Entries that came out of the WAL.", state.entries)
    yield counter("sentstream_reader_batches", "Batches that were applied.", state.batches)
    yield gauge("sentstream_reader_behind_bytes", "WAL not read yet, by the server's last word.", state.behind)
    yield gauge("sentstream_reader_confirmed_bytes", "Position confirmed to the server.", state.confirmed)
    yield gauge("sentstream_reader_connected", "Whether the slot is held.", state.connected)


def reconciler_families(state: ReconcilerState) -> Iterator[Metric]:
    """Of `ReconcilerState`."""
    yield gauge("sentstream_reconciler_connected", "Whether the last poll succeeded.", state.connected)
    yield gauge(
        "sentstream_reconciler_look_age_seconds", "Time since the last poll.", time.monotonic() - state.round_at
    )


def embedded_health(state: EmbeddedState, limit: float) -> tuple[list[Check], list[Check]]:
    """``limit``: seconds without a round after which only a restart helps."""
    return [round_check(state.round_at, limit)], [Check("slot", state.connected, _slot(state.connected))]


def reconciler_health(state: ReconcilerState, limit: float) -> tuple[list[Check], list[Check]]:
    detail = "reached" if state.connected else "not reached"
    return [round_check(state.round_at, limit)], [Check("database", state.connected, detail)]


def round_check(at: float, limit: float) -> Check:
    age = max(0.0, time.monotonic() - at)
    return Check("loop", age <= limit, f"last round {age:.1f} s ago (limit {limit:g})")


def _slot(held: bool) -> str:
    return "held" if held else "not held: the server is away, or another reader holds it"
