"""Hands committed flushes from the flush thread to the thread that serves them."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

from stream.core.committed import CommittedFlush, merged


class Inbox:
    """Flushes on their way to the serving thread, merged per partition.

    Bounded: a newer row of a campaign replaces the older one. ``wake`` is called in the flush thread when the first
    flush since the last `take` arrives.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._waiting: dict[int, CommittedFlush] = {}
        self._wake: Callable[[], None] = lambda: None

    def on_arrival(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` now if a flush waits, and for each first arrival from here on."""
        with self._lock:
            self._wake = wake
            waiting = bool(self._waiting)
        if waiting:
            wake()

    def flushed(self, what: CommittedFlush) -> None:
        with self._lock:
            first = not self._waiting
            before = self._waiting.get(what.partition)
            self._waiting[what.partition] = what if before is None else merged(before, what)
            wake = self._wake
        if first:
            wake()

    def take(self) -> tuple[CommittedFlush, ...]:
        """What was flushed since the last call, one for each partition."""
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        return tuple(waiting.values())
