"""The one value that flows: all that happened in ``[begin, end)`` of the WAL, for one partition of the campaigns.

Batches of a partition tile the WAL without holes: each begins where the one before it ended. A batch may be cut
anywhere, even inside a giant transaction, because an entry's position depends on its transaction alone. See
docs/design/batches.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from .entries import CampaignChanged, CampaignDeleted, Move, Placed, Recount, Transaction, Unreadable
from .position import Position

MINUTE = 60_000_000  # microseconds

#: microseconds: a step back of the clock, and not the age of a message
CLOCK_STEP: Final = 10_000_000


@dataclass(frozen=True, slots=True)
class Batch:
    """``entries`` in WAL order, with their positions; maybe none. ``as_of``: the commit time up to which all is
    contained, in microseconds since 1970 (0: not known yet). All entries committed within the ``minute``."""

    partition: int
    epoch: int
    begin: Position
    end: Position
    as_of: int
    entries: tuple[Placed, ...] = ()
    minute: int = 0

    def __post_init__(self) -> None:
        if self.end < self.begin:
            raise ValueError(f"a batch that ends at {self.end} before it begins, at {self.begin}")


@dataclass(slots=True)
class _Part:
    begin: Position
    entries: list[Placed] = field(default_factory=list)


class Batcher:
    """Cuts a stream of transactions into batches; those of each partition tile the WAL.

    A batch closes at :meth:`cut`, when the commit minute changes (history is kept by minute), or at ``most`` entries.
    """

    def __init__(
        self,
        epoch: int,
        begin: Position,
        partitions: int = 1,
        partition_of: Callable[[int], int] = lambda _campaign: 0,
        most: int = 5000,
    ) -> None:
        self.epoch = epoch
        self._parts = [_Part(begin) for _ in range(partitions)]
        self._partition_of = partition_of
        self._homes: dict[int, int] = {}
        self._most = most
        self._end = begin
        self._as_of = 0
        self._minute = 0

    @property
    def waiting(self) -> int:
        """How many entries are in batches not yet cut."""
        return sum(len(part.entries) for part in self._parts)

    def add(self, transactions: Iterable[Transaction]) -> list[Batch]:
        """Take transactions in WAL order; the batches that this closed."""
        closed: list[Batch] = []
        parts, most, homes = self._parts, self._most, self._homes
        end, as_of = self._end.lsn, self._as_of
        begun, over = self._minute * MINUTE, (self._minute + 1) * MINUTE
        for lsn, after, time, _, entries in transactions:
            if not begun <= time < over:
                if self.waiting:
                    self._reached(end, as_of)
                    closed += self.cut(idle=False)
                self._minute = time // MINUTE
                begun, over = self._minute * MINUTE, (self._minute + 1) * MINUTE
            if len(entries) == 1 and type(entries[0]) is Move:  # the mailer's every statement
                entry = entries[0]
                number = homes.get(entry.campaign)
                if number is None:
                    number = homes[entry.campaign] = self._partition_of(entry.campaign)
                waiting = parts[number].entries
                waiting.append((lsn, 0, entry))
                if len(waiting) >= most:
                    closed.append(self._close(number, Position(after), time))
            else:
                self._reached(end, as_of)
                closed += self._spread(lsn, after, time, entries)
            end, as_of = after, time
        self._reached(end, as_of)
        return closed

    def _reached(self, end: int, as_of: int) -> None:
        if end != self._end.lsn:
            self._end = Position(end)
        self._as_of = as_of

    def _spread(self, lsn: int, end: int, time: int, entries: tuple[object, ...]) -> list[Batch]:
        closed: list[Batch] = []
        last = len(entries) - 1
        for seq, entry in enumerate(entries):
            if isinstance(entry, Unreadable):
                closed += self._leave_gap(Position(lsn, seq))
                continue
            if isinstance(entry, (Move, CampaignChanged, CampaignDeleted)):
                targets: Iterable[int] = (self._partition_of(entry.campaign),)
            else:
                targets = range(len(self._parts))
            for number in targets:
                mine = self._share(entry, number) if isinstance(entry, Recount) else entry
                part = self._parts[number]
                part.entries.append((lsn, seq, mine))  # type: ignore[arg-type]
                if len(part.entries) >= self._most and seq != last:
                    closed.append(self._close(number, Position(lsn, seq + 1), self._as_of))
        for number, part in enumerate(self._parts):
            if len(part.entries) >= self._most:
                closed.append(self._close(number, Position(end), time))
        return closed

    def _leave_gap(self, at: Position) -> list[Batch]:
        """Close every partition's batch at ``at``, and begin the next behind it, so that they are counted anew."""
        closed = [self._close(n, at, self._as_of) for n, part in enumerate(self._parts) if part.begin < at]
        for part in self._parts:
            part.begin = Position(at.lsn, at.seq + 1)
        return closed

    def _share(self, recount: Recount, partition: int) -> Recount:
        if len(self._parts) == 1:
            return recount
        mine = {c: v for c, v in recount.expected.items() if self._partition_of(c) == partition}
        return Recount(
            recount.run_id, recount.trigger, recount.started_at, recount.lsn, mine, recount.rebase, recount.reason
        )

    def cut(self, end: Position | None = None, as_of: int = 0, *, idle: bool = True) -> list[Batch]:
        """Close the batch of every partition at ``end`` (default: behind the last transaction), entries or none;
        without ``idle``, only of those that have entries; the batches of the others grow.

        An ``end`` that lies behind the last one is taken for it: keepalives may be older than a commit.
        """
        end = max(end or self._end, self._end)
        # a little older: a keepalive that was sent before the last commit; much older: the clock was put back
        if not as_of or self._as_of - CLOCK_STEP <= as_of < self._as_of:
            as_of = self._as_of
        self._end, self._as_of = end, as_of
        return [self._close(number, end, as_of) for number, part in enumerate(self._parts) if idle or part.entries]

    def _close(self, number: int, end: Position, as_of: int) -> Batch:
        part = self._parts[number]
        batch = Batch(number, self.epoch, part.begin, end, as_of, tuple(part.entries), self._minute)
        part.begin, part.entries = end, []
        return batch
