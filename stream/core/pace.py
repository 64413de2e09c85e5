"""When to do what: the decisions of a runtime's loop, as functions of time and of what is waiting.

Times are seconds of one monotonic clock, passed in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

#: an idle database's position and time travel this often
TICK: Final = 2.0
#: a live batch is cut at least this often
CUT: Final = 0.05
#: far behind, a flush may wait this long: fewer of them, of more each
BEHIND_FLUSH: Final = 1.0
#: bytes of WAL unread beyond which the reader is far behind
FAR_BEHIND: Final = 16 << 20
#: seconds that an open session lives to count as a success, however it ends: the pause after it is the first again
LIVED: Final = 2.0


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits to be written: ``dirty``: more than a watermark; ``moved``: the position is not the written one;
    ``due_at``: when a campaign that was locked or contested is to be tried again; ``behind``: bytes of WAL unread."""

    dirty: bool
    moved: bool
    due_at: float | None = None
    behind: int = 0


@dataclass(frozen=True, slots=True)
class FlushPace:
    """Decides flushes. ``interval``: FLUSH_INTERVAL; ``last``: when the last flush began."""

    interval: float
    last: float = float("-inf")

    def due(self, now: float, waiting: Waiting) -> bool:
        """Whether a flush is due: for changes by the interval, for a watermark alone by the tick."""
        since = now - self.last
        if self._changed(now, waiting):
            return since >= self._interval(waiting)
        return waiting.moved and since >= TICK

    def wait(self, now: float, waiting: Waiting) -> float:
        """Seconds until :meth:`due` may turn true without anything else happening."""
        if self.due(now, waiting):
            return 0.0
        since = now - self.last
        candidates = [TICK]
        if waiting.dirty:
            candidates.append(self._interval(waiting) - since)
        if waiting.due_at is not None:
            candidates.append(max(waiting.due_at - now, self._interval(waiting) - since))
        if waiting.moved and not self._changed(now, waiting):
            candidates.append(TICK - since)
        return max(0.0, min(candidates))

    @staticmethod
    def _changed(now: float, waiting: Waiting) -> bool:
        return waiting.dirty or (waiting.due_at is not None and waiting.due_at <= now)

    def _interval(self, waiting: Waiting) -> float:
        return max(self.interval, BEHIND_FLUSH) if waiting.behind > FAR_BEHIND else self.interval

    def flushed(self, now: float) -> FlushPace:
        return replace(self, last=now)


@dataclass(frozen=True, slots=True)
class Backoff:
    """Growing pauses between attempts: ``first``, doubled up to ``most``, and after a success ``first`` again. A
    session that lived for `LIVED` seconds before it failed was a success."""

    first: float = 0.2
    most: float = 15.0
    failures: int = 0

    @property
    def pause(self) -> float:
        """Seconds before the next attempt; 0 after a success."""
        return 0.0 if not self.failures else min(self.most, self.first * 2.0 ** min(self.failures - 1, 16))

    def failed(self, lived: float = 0.0) -> Backoff:
        """``lived``: seconds for which the session was open; 0 where it never was."""
        return replace(self, failures=1 if lived > LIVED else self.failures + 1)

    def succeeded(self) -> Backoff:
        return replace(self, failures=0)
