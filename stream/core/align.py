"""Aligning a recount with the stream: exact while mail is flowing.

A recount is a row that reaches the reader in WAL order, with the snapshot it counted by. What the stream should show at
that point: the counts, plus the moves of every transaction delivered before it that the snapshot could not see.
Comparing by LSN alone is not exact: a commit record can be in the WAL, and delivered, before its transaction is
visible.

The reader therefore remembers moves by transaction. It forgets those that a snapshot H sees, H being older than any
recount may last. A recount is conclusive only if nothing it needs is missing:

- its snapshot sees all that H sees: what H sees is forgotten, or was never stored
- it sees every transaction that may have committed before this reader's stream begins and was invisible when the reader
  started. Such a transaction is never delivered here. It has written to the counted tables, so it holds their locks
  until it is visible: these are the ``unsettled`` ones, read after the slot was taken. Any other old transaction that
  is still open commits later, in this stream, and is replayed like all others
- its snapshot is of the history of its own transaction, which that of a row restored from elsewhere is not

See docs/design/recount.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from .entries import (
    CampaignChanged,
    CampaignDeleted,
    Counted,
    Entry,
    Move,
    Recount,
    RecountRow,
    Transaction,
    Truncate,
    Unreadable,
)
from .status import MOVED, NEW, REMOVED

_CYCLE = 1 << 32
_NOTHING = Counted((0, 0, 0, 0, 0), 0)


class Snapshot(NamedTuple):
    """Which transactions are visible. 64-bit xids; ``xip``: those in progress between ``xmin`` and ``xmax``."""

    xmin: int
    xmax: int
    xip: frozenset[int] = frozenset()

    @classmethod
    def parse(cls, text: str) -> Snapshot:
        """``pg_current_snapshot()`` as text: ``xmin:xmax:xip,xip``. ValueError where it is none."""
        xmin, xmax, xip = text.split(":")
        return cls(int(xmin), int(xmax), frozenset(int(x) for x in xip.split(",") if x))

    def sees(self, xid: int) -> bool:
        return xid < self.xmin or (xid < self.xmax and xid not in self.xip)

    def sees_all_of(self, older: Snapshot) -> bool:
        """Whether everything that ``older`` sees is visible here as well."""
        if any(older.sees(xid) for xid in self.xip):
            return False
        if self.xmax >= older.xmax:
            return True
        hidden = sum(1 for xid in older.xip if xid >= self.xmax)
        return hidden == older.xmax - self.xmax


def widen(xid: int, near: int) -> int:
    """A 32-bit xid as the 64-bit one nearest to ``near``, a 64-bit xid of about the same time.

    Transaction ids wrap around every 2**32; those in use at one time span less than half of that.
    """
    wide = (near & ~(_CYCLE - 1)) | xid
    if wide > near + _CYCLE // 2:
        return wide - _CYCLE
    if wide < near - _CYCLE // 2:
        return wide + _CYCLE
    return wide


class Alignment:
    """The reader's memory of recent transactions. One for each time the slot is taken.

    ``seen``: H, at first a snapshot taken after ``unsettled`` was read, so that a backlog costs no memory;
    ``unsettled``: ids (32 bits or 64) of transactions that had written to the counted tables when the slot was taken,
    and may have committed before it; ``most``: entries remembered at most; beyond that the oldest are forgotten, and
    recounts that would have needed them are inconclusive.
    """

    def __init__(self, seen: Snapshot, unsettled: Iterable[int] = (), most: int = 250_000) -> None:
        self._start = self._h = seen
        self._near = seen.xmax
        self._unsettled = {widen(xid % _CYCLE, seen.xmax) for xid in unsettled}
        self._evicted = 0  # the newest transaction that was forgotten for want of memory
        self._most = most
        self._size = 0
        self._recent: deque[tuple[int, tuple[Entry, ...]]] = deque()

    @property
    def unsettled(self) -> bool:
        """Whether it is still to be found out of transactions when they committed."""
        return bool(self._unsettled)

    def settle(self, xids: Iterable[int], now: Snapshot) -> None:
        """These transactions were not committing. ``now``: a snapshot taken after that was seen; what it sees has
        ended, and may have been another transaction by then."""
        known = {widen(xid % _CYCLE, self._near) for xid in xids}
        self._unsettled -= {xid for xid in known if not now.sees(xid)}

    def __len__(self) -> int:
        return self._size

    def follow(self, transactions: Iterable[Transaction]) -> list[Transaction]:
        """Remember transactions as they pass, in WAL order; each recount row among them leaves as a recount."""
        out: list[Transaction] = []
        xmin, xmax, xip, near = self._h.xmin, self._h.xmax, self._h.xip, self._near
        recent, half = self._recent, _CYCLE // 2
        high = near & ~(_CYCLE - 1)
        for transaction in transactions:
            xid = high | transaction[3]
            if not near - half <= xid <= near + half:
                xid = widen(transaction[3], near)
            entries = transaction[4]
            if RecountRow in map(type, entries):
                transaction = self._aligned(transaction, xid)
                entries = tuple(entry for entry in entries if type(entry) is not RecountRow)
            if entries and xid >= xmin and (xid >= xmax or xid in xip):
                recent.append((xid, entries))
                self._unsettled.discard(xid)
                self._size += len(entries)
            out.append(transaction)
        while self._size > self._most:
            xid, entries = recent.popleft()
            self._size -= len(entries)
            self._evicted = max(self._evicted, xid)
        return out

    def forget(self, seen: Snapshot) -> None:
        """H becomes ``seen``: a snapshot older than any recount that may still arrive."""
        if not seen.sees_all_of(self._h):
            return
        self._h = seen
        self._near = max(self._near, seen.xmax)
        self._recent = deque(kept for kept in self._recent if not seen.sees(kept[0]))
        self._size = sum(len(entries) for _, entries in self._recent)

    def _aligned(self, transaction: Transaction, xid: int) -> Transaction:
        entries = tuple(self.align(e, xid) if isinstance(e, RecountRow) else e for e in transaction.entries)
        return transaction._replace(entries=entries)

    def align(self, row: RecountRow, xid: int) -> Recount:
        """What every campaign should show at the place of ``row`` in the WAL, or why that can't be told. ``xid``: of
        the recount's own transaction, 64 bits."""
        if row.fault is not None:
            return _inconclusive(row, row.fault)
        try:
            snapshot = Snapshot.parse(row.snapshot)
        except ValueError:
            return _inconclusive(row, f"{row.snapshot!r:.80} is no snapshot")
        reason = self._reason(snapshot, xid)
        if reason is not None:
            return _inconclusive(row, reason)
        self._near = max(self._near, snapshot.xmax)
        expected = dict(row.counts)
        for other, entries in self._recent:
            if not snapshot.sees(other):
                unreadable = next((entry for entry in entries if isinstance(entry, Unreadable)), None)
                if unreadable is not None:
                    return _inconclusive(row, f"what transaction {other} did is not known: {unreadable.why}")
                _replay(expected, entries)
        return Recount(row.run_id, row.trigger, row.started_at, row.lsn, expected, row.rebase)

    def _reason(self, snapshot: Snapshot, xid: int) -> str | None:
        if xid < snapshot.xmax:  # a recount draws its id after its snapshot: this row was copied in from elsewhere
            return f"its snapshot ({snapshot.xmin}:{snapshot.xmax}) is of another history than its transaction {xid}"
        if snapshot.xmin <= self._evicted:
            return self._out_of_memory(snapshot)
        if not snapshot.sees_all_of(self._h):
            counted = f"the queue was counted (by snapshot {snapshot.xmin}:{snapshot.xmax})"
            if self._h is self._start:
                return f"{counted} before this reader started (at {self._h.xmin}:{self._h.xmax})"
            return f"{counted} earlier than the reader still remembers (from {self._h.xmin}:{self._h.xmax} on)"
        unseen = min((xid for xid in self._unsettled if not snapshot.sees(xid)), default=None)
        if unseen is not None:
            return (
                f"transaction {unseen} had written to the mailer's tables before this reader started, and was still "
                "open when the queue was counted"
            )
        return None

    def _out_of_memory(self, snapshot: Snapshot) -> str:
        remembers = f"than what the reader still remembers (from transaction {self._evicted + 1} on)"
        if snapshot.xmin < snapshot.xmax:
            return f"transaction {snapshot.xmin} was still open when the queue was counted, and it is older {remembers}"
        return f"the count's snapshot ({snapshot.xmin}:{snapshot.xmax}) is older {remembers}"


def _inconclusive(row: RecountRow, reason: str) -> Recount:
    return Recount(row.run_id, row.trigger, row.started_at, row.lsn, {}, row.rebase, reason)


def _replay(expected: dict[int, Counted], entries: tuple[Entry, ...]) -> None:
    """Apply a transaction that the snapshot could not see to its counts."""
    for entry in entries:
        if isinstance(entry, Move):
            before = expected.get(entry.campaign, _NOTHING)
            counts = list(before.counts)
            if entry.source < NEW:
                counts[entry.source] -= entry.n
            if entry.target not in (NEW, REMOVED, MOVED):
                counts[entry.target] += entry.n
            expected[entry.campaign] = Counted((counts[0], counts[1], counts[2], counts[3], counts[4]), before.shown)
        elif isinstance(entry, Truncate):
            if entry.table == "campaigns":
                expected.clear()
            for campaign, counted in list(expected.items()):
                expected[campaign] = Counted((0, 0, 0, 0, 0), counted.shown)
        elif isinstance(entry, CampaignDeleted):
            expected.pop(entry.campaign, None)
        elif isinstance(entry, CampaignChanged):
            before = expected.get(entry.campaign, _NOTHING)
            expected[entry.campaign] = Counted(before.counts, entry.sent)
