"""The change log behind server-sent events: what is true now, and what changed since an event number.

The log keeps only the newest state of each campaign, in order of change. So "what changed since" is the tail of that
order, memory is bounded by the number of campaigns and not by the number of changes, and a client that was away for an
hour, or reads slowly, receives each campaign once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Reversible
from dataclasses import dataclass, replace
from datetime import datetime
from heapq import merge
from typing import Final, TypeAlias

from .committed import VERDICTS_KEPT, CampaignRow, CommittedFlush
from .position import Position
from .verdict import Verdict

#: seconds between two rounds of events, and so between two events of one campaign
ROUND: Final = 0.25
#: seconds between two events that only say how far a partition is
MARK_EVERY: Final = 1.0
#: deleted campaigns and verdicts that a client can learn of later; a client that missed more receives a snapshot
REMEMBERED: Final = VERDICTS_KEPT


@dataclass(frozen=True, slots=True)
class CampaignState:
    """A campaign as it is known now. ``partition`` is None for one outside the queue: its row then has the mailer's
    values and no counts. ``rate``: mails in the last minute."""

    row: CampaignRow
    partition: int | None
    rate: float = 0.0


@dataclass(frozen=True, slots=True)
class PartitionState:
    """How far a partition is. ``stale`` is decided by the caller, who has a clock."""

    partition: int
    epoch: int
    position: Position
    as_of: datetime | None
    based: bool
    stale: bool = False


@dataclass(frozen=True, slots=True)
class CampaignGone:
    """A campaign that is gone."""

    campaign_id: int


def _behind(mark: PartitionState) -> tuple[bool, bool, float]:
    """Sorts marks: without a base, without a time, then by age."""
    return mark.based, mark.as_of is not None, 0.0 if mark.as_of is None else mark.as_of.timestamp()


#: what an event says
Change: TypeAlias = CampaignState | PartitionState | CampaignGone | Verdict
_Key: TypeAlias = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Event:
    """One change at its place in the order. ``frame`` is what the encoder made of it, once for all clients."""

    number: int
    change: Change
    frame: bytes


@dataclass(frozen=True, slots=True)
class Round:
    """What a round published: events up to number ``last``, of these campaigns, of these partitions' marks."""

    last: int
    campaigns: frozenset[int]
    partitions: frozenset[int]


class ChangeLog:
    """What is true now, and the order in which it became so. One thread; time is passed in.

    ``encode`` makes the bytes of an event from its number and change. Numbers grow by one an event, begin anew with the
    process, and mean nothing to another: `resumable` says whether one can be gone on from.
    """

    def __init__(self, encode: Callable[[int, Change, ChangeLog], bytes]) -> None:
        self._encode = encode
        self._campaigns: dict[int, CampaignState] = {}
        self._marks: dict[int, PartitionState] = {}
        self._marked_at: dict[int, float] = {}
        self._stamps: dict[int, tuple[int, Position]] = {}
        self._events: dict[_Key, Event] = {}
        self._verdicts: deque[Event] = deque()
        self._due: dict[_Key, Change] = {}
        self._due_verdicts: list[Verdict] = []
        self._ruled: dict[tuple[int, int, str], None] = {}
        self._round_at = float("-inf")
        self._deleted: dict[int, None] = {}
        self._horizon = 0
        self.last = 0

    # What is true now

    @property
    def campaigns(self) -> Mapping[int, CampaignState]:
        return self._campaigns

    @property
    def marks(self) -> Mapping[int, PartitionState]:
        return self._marks

    def mark_of(self, campaign: CampaignState) -> PartitionState | None:
        """How far the campaign's partition is. That one is outside the queue is known as far as the stream has got
        everywhere: the mark that is furthest behind, one without a base first. None: nothing is known."""
        if campaign.partition is not None:
            return self._marks.get(campaign.partition)
        return min(self._marks.values(), key=_behind, default=None)

    # What happens

    def flushed(self, what: CommittedFlush) -> None:
        """Take a flush in. Flushes of a partition may come by two ways and out of order: what is older than what is
        known of a campaign changes nothing."""
        for verdict in what.verdicts:
            self._rule(verdict)
        known = self._marks.get(what.partition)
        if known is not None and what.epoch < known.epoch:
            return
        stamp = (what.epoch, what.position)
        for row in what.rows:
            if self.is_at_most(row.campaign_id, stamp):
                self._learn(row, what.partition)
                self._stamps[row.campaign_id] = stamp
        gone: Collection[int] = what.deleted
        if what.whole:
            here = {row.campaign_id for row in what.rows}
            gone = [n for n, it in self._campaigns.items() if it.partition == what.partition and n not in here]
        for number in gone:
            if number in self._campaigns and self.is_at_most(number, stamp):
                self.gone([number])
                self._stamps[number] = stamp
        self._reach(what, known)

    def is_at_most(self, campaign_id: int, stamp: tuple[int, Position]) -> bool:
        """Whether nothing newer than ``stamp`` (epoch, position) is known of a campaign, its end included."""
        return self._stamps.get(campaign_id, stamp) <= stamp

    def outside(self, rows: Iterable[CampaignRow]) -> None:
        """Campaigns as the mailer's own table has them. Those in the queue take name, status and to_send from it."""
        for row in rows:
            known = self._campaigns.get(row.campaign_id)
            if known is None or known.partition is None:
                self._learn(row, None)
            else:
                self._learn(replace(known.row, name=row.name, status=row.status, to_send=row.to_send), known.partition)

    def gone(self, campaign_ids: Iterable[int]) -> None:
        """Campaigns that exist no more."""
        for number in list(campaign_ids):
            if self._campaigns.pop(number, None) is not None:
                self._due["campaign", number] = CampaignGone(number)

    def rates(self, per_minute: Mapping[int, float]) -> None:
        """Mails in the last minute, by campaign; one that is not named sent none."""
        for number, known in list(self._campaigns.items()):
            rate = per_minute.get(number, 0.0)
            if rate != known.rate:
                self._put(replace(known, rate=rate))

    def aged(self, stale: Callable[[PartitionState], bool]) -> None:
        """Let time pass: a partition that became stale, or fresh again, is said at once."""
        for mark in list(self._marks.values()):
            if stale(mark) != mark.stale:
                self._marks[mark.partition] = self._due["mark", mark.partition] = replace(mark, stale=not mark.stale)
                self._marked_at.pop(mark.partition, None)

    # What is told

    def wait(self, now: float) -> float | None:
        """Seconds until `publish` has something to do; None while nothing is due."""
        if self._due_verdicts or any(kind != "mark" for kind, _ in self._due):
            return max(0.0, self._round_at + ROUND - now)
        waits = [self._marked_at.get(partition, float("-inf")) + MARK_EVERY - now for _, partition in self._due]
        return max(0.0, min(waits), self._round_at + ROUND - now) if waits else None

    def publish(self, now: float) -> Round | None:
        """Give what is due its numbers, at most once in `ROUND` seconds; None where there is nothing or it's early."""
        if now < self._round_at + ROUND:
            return None
        due = [(key, change) for key, change in self._due.items() if self._ripe(key, now)]
        due.sort(key=lambda item: item[0][0] == "mark")  # a mark says that what came before it is complete
        verdicts, self._due_verdicts = self._due_verdicts, []
        if not due and not verdicts:
            return None
        for key, change in due:
            del self._due[key]
            self._events.pop(key, None)  # so that it goes to the end
            self._events[key] = self._event(change)
            if isinstance(change, PartitionState):
                self._marked_at[change.partition] = now
            elif isinstance(change, CampaignGone):
                self._deleted[change.campaign_id] = None
        self._verdicts.extend(self._event(verdict) for verdict in verdicts)
        self._forget()
        self._round_at = now
        changed = [key for key, _ in due]
        campaigns = {number for kind, number in changed if kind == "campaign"} | {it.campaign for it in verdicts}
        partitions = {number for kind, number in changed if kind == "mark"}
        return Round(self.last, frozenset(campaigns), frozenset(partitions))

    def resumable(self, number: int) -> bool:
        """Whether all that changed since ``number`` is still known."""
        return self._horizon <= number <= self.last

    def since(self, number: int, campaign_id: int | None = None) -> list[Event]:
        """The events after ``number``, oldest first; of one campaign, its own and its partition's marks."""
        verdicts = _after(number, self._verdicts)
        if campaign_id is None:
            return list(merge(_after(number, self._events.values()), verdicts, key=_number))
        known = self._campaigns.get(campaign_id)
        keys: list[_Key] = [("campaign", campaign_id)]
        if known is not None and known.partition is not None:
            keys.append(("mark", known.partition))
        own = [self._events[key] for key in keys if key in self._events]
        own.extend(event for event in verdicts if _is_on(event.change, campaign_id))
        return sorted((event for event in own if event.number > number), key=_number)

    # Inside

    def _reach(self, what: CommittedFlush, known: PartitionState | None) -> None:
        """Note how far the partition is, unless it is known to be further."""
        if known is not None and (what.epoch, what.position) < (known.epoch, known.position):
            return
        stale = known.stale if known is not None else False
        mark = PartitionState(what.partition, what.epoch, what.position, what.as_of, what.based, stale)
        if mark == known:
            return
        if known is None or known.based != mark.based or known.epoch != mark.epoch:
            self._marked_at.pop(what.partition, None)
        self._marks[what.partition] = self._due["mark", what.partition] = mark

    def _learn(self, row: CampaignRow, partition: int | None) -> None:
        known = self._campaigns.get(row.campaign_id)
        if known is not None and not (row.name and row.status):
            row = replace(row, name=row.name or known.row.name, status=row.status or known.row.status)
        rate = known.rate if known is not None else 0.0
        if known is None or known.row != row or known.partition != partition:
            self._put(CampaignState(row, partition, rate))

    def _rule(self, verdict: Verdict) -> None:
        """A verdict may come by two ways (the flush, a poll of the store): it is told once."""
        key = (verdict.run_id, verdict.campaign, verdict.verdict)
        if key in self._ruled:
            return
        self._ruled[key] = None
        while len(self._ruled) > 10 * REMEMBERED:
            del self._ruled[next(iter(self._ruled))]
        self._due_verdicts.append(verdict)

    def _put(self, campaign: CampaignState) -> None:
        self._campaigns[campaign.row.campaign_id] = self._due["campaign", campaign.row.campaign_id] = campaign

    def _ripe(self, key: _Key, now: float) -> bool:
        kind, partition = key
        return kind != "mark" or now >= self._marked_at.get(partition, float("-inf")) + MARK_EVERY

    def _event(self, change: Change) -> Event:
        self.last += 1
        return Event(self.last, change, self._encode(self.last, change, self))

    def _forget(self) -> None:
        """Keep the newest verdicts and deletions only; a client that missed a forgotten one gets a snapshot."""
        for number in [number for number in self._deleted if number in self._campaigns]:
            del self._deleted[number]  # it exists again, and its own event says so
        forgotten: list[Event] = []
        while len(self._deleted) > REMEMBERED:
            number = next(iter(self._deleted))
            del self._deleted[number]
            self._stamps.pop(number, None)
            forgotten.append(self._events.pop(("campaign", number)))
        while len(self._verdicts) > REMEMBERED:
            forgotten.append(self._verdicts.popleft())
        self._horizon = max([self._horizon, *(event.number for event in forgotten)])


def _number(event: Event) -> int:
    return event.number


def _after(number: int, events: Reversible[Event]) -> list[Event]:
    """The tail of ``events`` (in order of number) that comes after ``number``."""
    tail: list[Event] = []
    for event in reversed(events):
        if event.number <= number:
            break
        tail.append(event)
    tail.reverse()
    return tail


def _is_on(change: Change, campaign_id: int) -> bool:
    return isinstance(change, Verdict) and change.campaign == campaign_id
