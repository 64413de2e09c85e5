"""Verdicts on lag: of a consumer behind its topic, a slot behind the WAL, a flush behind the stream.

As Burrow does, the verdict comes from a window of samples and not from one number: a high lag that shrinks is a
catch-up, a small one that stands still is a dead consumer. Unlike Burrow, a moment without lag excuses nothing, and
**nothing that stands still behind its goal is ever OK**: OK needs the follower to be at its goal, or the oldest
thing that waits for it to be younger than what is allowed.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final


class LagVerdict(str, Enum):
    """OK; WARN: behind, but moving; STALL: there, and standing still; STOP: no consumer; REWIND: moved back, or
    ahead of a goal that was made anew; UNKNOWN: the window is too short to say."""

    OK = "OK"
    WARN = "WARN"
    STALL = "STALL"
    STOP = "STOP"
    REWIND = "REWIND"
    UNKNOWN = "UNKNOWN"

    def __str__(self) -> str:
        return self.value


#: from what needs no attention to what needs it first
SEVERITY = (LagVerdict.OK, LagVerdict.UNKNOWN, LagVerdict.WARN, LagVerdict.REWIND, LagVerdict.STALL, LagVerdict.STOP)


#: seconds after which a follower that is not there is gone, and not about to be there again
GONE_AFTER: Final = 10.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One observation. ``at``: seconds of any clock that goes on; ``done``: how far the follower says it is (None: it
    never said); ``goal``: how far it could be, in the same unit (offsets, bytes of WAL); ``seconds``: age of the
    oldest thing that waits for it (0 where nothing waits, None where it can't be told); ``present``: whether
    a consumer is there (None: can't be told)."""

    at: float
    done: int | None
    goal: int
    seconds: float | None = None
    present: bool | None = None

    @property
    def lag(self) -> int | None:
        """What is left to do, None where the follower never said how far it is."""
        return None if self.done is None else self.goal - self.done


def judge(samples: Sequence[Sample], *, now: float, window: float, allowed: float) -> LagVerdict:
    """The verdict over the samples of the last ``window`` seconds, oldest first; a lag of ``allowed`` seconds is no
    reason to worry. Something has "stood still" when it did not move for half the window."""
    seen = [sample for sample in samples if now - sample.at <= window]
    if not seen:
        return LagVerdict.UNKNOWN
    last = seen[-1]
    if _went_back(seen):
        return LagVerdict.REWIND
    still = last.at - _last_move(seen)
    long_enough = still >= window / 2
    if last.present is False:
        return LagVerdict.STOP if still >= min(GONE_AFTER, window / 2) else LagVerdict.UNKNOWN
    if last.done is not None and last.done == last.goal:
        return LagVerdict.OK
    if last.seconds is not None and last.seconds <= allowed:
        return LagVerdict.OK
    if long_enough:
        return LagVerdict.STOP if last.done is None else LagVerdict.STALL
    if still < last.at - seen[0].at:
        return LagVerdict.WARN
    return LagVerdict.UNKNOWN


def _went_back(seen: Sequence[Sample]) -> bool:
    """Whether the newest sample is below an earlier one, or beyond its goal."""
    last = seen[-1]
    if last.done is None:
        return any(sample.done is not None for sample in seen)
    highest = max((sample.done for sample in seen if sample.done is not None), default=last.done)
    return last.done < highest or last.done > last.goal


def _last_move(seen: Sequence[Sample]) -> float:
    """When the follower was last seen to get on; the first sample's time where it never was."""
    moved = seen[0].at
    for before, after in itertools.pairwise(seen):
        if after.done is not None and (before.done is None or after.done > before.done):
            moved = after.at
    return moved


def worst(verdicts: Iterable[LagVerdict]) -> LagVerdict:
    """The verdict that needs attention first; UNKNOWN of nothing."""
    return max(verdicts, key=SEVERITY.index, default=LagVerdict.UNKNOWN)


@dataclass(slots=True)
class LagWindow:
    """The samples of one follower over the last ``seconds``."""

    seconds: float
    samples: deque[Sample] = field(default_factory=deque)

    def add(self, sample: Sample) -> None:
        """Add a sample; samples that have left the window are dropped."""
        self.samples.append(sample)
        while self.samples and sample.at - self.samples[0].at > self.seconds:
            self.samples.popleft()

    def verdict(self, *, now: float, allowed: float) -> LagVerdict:
        """`judge` over what the window holds."""
        return judge(list(self.samples), now=now, window=self.seconds, allowed=allowed)
