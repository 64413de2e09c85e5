"""What a recount says of a campaign, and the likely cause of a difference.

The cause is inferred from the difference (the stream's count less the recount's) and from the moves that
the campaign has seen since its last recount: a change that was missed leaves its rows where they came from, one that
was counted twice takes them along twice. It is a hint for a reader of the report; the correction does not depend on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from .entries import Counts
from .status import MOVED, NEW, REMOVED, STATUSES

VERIFIED: Final = "verified"
DRIFT: Final = "drift"
BASELINE: Final = "baseline"

MISSED_CHANGE: Final = "missed_change"
DUPLICATE_CHANGE: Final = "duplicate_change"
COUNTER_OVERWRITTEN: Final = "counter_overwritten"
ROWS_VANISHED: Final = "rows_vanished_unwatched"
GAP: Final = "gap"
NEW_EPOCH: Final = "new_epoch"
LOST_STATE: Final = "lost_state"
UNKNOWN: Final = "unknown"

#: how far a status is on a mail's way; a natural move goes forward
_FORWARD = (0, 1, 2, 2, 2)


@dataclass(frozen=True, slots=True)
class Verdict:
    """``before`` and ``after``: counts by name, ``removed`` and ``counter`` (campaigns.sent) where they matter;
    ``estimated``: ``removed`` grew by a difference that the stream did not see happen."""

    run_id: int
    campaign: int
    verdict: str
    cause: str | None = None
    before: Mapping[str, int] | None = None
    after: Mapping[str, int] | None = None
    corrected: bool = False
    estimated: bool = False

    @property
    def delta(self) -> dict[str, int] | None:
        """``after`` less ``before``, by name; only what differs."""
        if self.before is None or self.after is None:
            return None
        names = [*self.after, *(name for name in self.before if name not in self.after)]
        differences = {name: self.after.get(name, 0) - self.before.get(name, 0) for name in names}
        return {name: n for name, n in differences.items() if n}


def named(counts: Counts | list[int], removed: int | None = None) -> dict[str, int]:
    """Counts as an object: ``{"queued": 1, ...}``, with ``removed`` where given."""
    result = dict(zip(STATUSES, counts[:5], strict=True))
    if removed is not None:
        result["removed"] = removed
    return result


def cause_of(shown: Counts, expected: Counts, moves: int, intact: bool) -> str:
    """The likely cause of ``shown`` (the stream) where the recount says ``expected``.

    ``moves``: the bits of the moves since the last recount (``Move.bit``); ``intact``: whether the counts still agree
    with the checksum that every move keeps beside them.
    """
    if not intact:
        return LOST_STATE
    difference = [(place, a - b) for place, (a, b) in enumerate(zip(shown, expected, strict=True)) if a != b]
    if len(difference) == 1:
        place, n = difference[0]
        if n > 0:  # too many rows here: an insert counted twice, or a row's going that was missed
            return DUPLICATE_CHANGE if _saw(moves, NEW, place) and not _gone(moves, place) else MISSED_CHANGE
        return DUPLICATE_CHANGE if _gone(moves, place) and not _saw(moves, NEW, place) else MISSED_CHANGE
    if len(difference) == 2 and difference[0][1] == -difference[1][1]:
        (a, n), (b, _) = difference
        high, low = (a, b) if n > 0 else (b, a)  # missed: high -> low; duplicate: low -> high
        if not _saw(moves, low, high):
            return MISSED_CHANGE
        if _FORWARD[low] < _FORWARD[high]:
            return DUPLICATE_CHANGE
        return MISSED_CHANGE if _FORWARD[high] < _FORWARD[low] or _saw(moves, high, low) else DUPLICATE_CHANGE
    return UNKNOWN


def _saw(moves: int, source: int, target: int) -> bool:
    return bool(moves >> (source * 8 + target) & 1)


def _gone(moves: int, place: int) -> bool:
    return _saw(moves, place, REMOVED) or _saw(moves, place, MOVED)
