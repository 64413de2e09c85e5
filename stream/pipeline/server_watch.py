"""A thread that asks the server beside the stream, so that the reading thread never waits for an answer.

Every tick: the server's time and the end of its WAL, and whether publication and identities are still as ``setup`` made
them. Every ten seconds: a snapshot, by which the alignment evicts old transactions.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any, Final

import psycopg

from connectors.postgres.catalog.conformance import check
from connectors.postgres.replication import slot as slots
from stream.core.align import Snapshot
from stream.core.errors import PreconditionError
from stream.core.pace import TICK
from stream.pipeline.wal_options import WalOptions

_SNAPSHOT_EVERY: Final = 10.0


class ServerWatch(threading.Thread):
    """``failure``: what ended it; the reading thread raises it."""

    def __init__(self, control: psycopg.Connection[Any], options: WalOptions) -> None:
        super().__init__(name="watch", daemon=True)
        self._connection = control
        self._options = options
        self._stopped = threading.Event()
        self._clocks: deque[slots.Clock] = deque(maxlen=1)
        self._seen: deque[Snapshot] = deque(maxlen=1)
        self._snapshots: deque[tuple[float, Snapshot]] = deque()
        self._settled: deque[tuple[list[int], Snapshot]] = deque(maxlen=1)
        #: whether the alignment waits to learn which writers were not committing when it began
        self.unsettled = False
        self.failure: Exception | None = None

    def take_clock(self) -> slots.Clock | None:
        return self._clocks.popleft() if self._clocks else None

    def take_seen(self) -> Snapshot | None:
        return self._seen.popleft() if self._seen else None

    def take_settled(self) -> tuple[list[int], Snapshot] | None:
        return self._settled.popleft() if self._settled else None

    def stop(self) -> None:
        self._stopped.set()
        self._connection.cancel_safe(timeout=1)
        self.join(timeout=5)

    def run(self) -> None:
        asked = conformed = float("-inf")
        # Twice a tick: what a flush writes every tick is then at most one and a half ticks old, and never stale.
        while not self._stopped.wait(TICK / 2):
            try:
                now = time.monotonic()
                if now - conformed >= TICK * 0.9:
                    conformed = now
                    conform(self._connection, self._options)
                self._clocks.append(slots.clock(self._connection))
                if self.unsettled:
                    idle = [w.xid for w in slots.writers(self._connection, self._options.mailer_schema) if w.idle]
                    self._settled.append((idle, slots.snapshot(self._connection)))
                if now - asked >= _SNAPSHOT_EVERY:
                    asked = now
                    self._remember(now)
            except Exception as error:  # handed to the reading thread, which ends on it
                if not self._stopped.is_set():
                    self.failure = error
                return

    def _remember(self, now: float) -> None:
        """H becomes the newest snapshot that is older than any recount may last."""
        self._snapshots.append((now, slots.snapshot(self._connection)))
        old = None
        while self._snapshots and now - self._snapshots[0][0] > self._options.memory:
            old = self._snapshots.popleft()[1]
        if old is not None:
            self._seen.append(old)


def conform(connection: psycopg.Connection[Any], options: WalOptions) -> None:
    """:exc:`PreconditionError` where publication or identities are not as ``setup`` made them."""
    differences = check(connection, options.publication, options.mailer_schema)
    if differences:
        raise PreconditionError("; ".join(difference.finding for difference in differences), differences[0].fix)
