"""What the simulated mailer knows of its own rows: each row's status, by campaign, and with it the truth.

An entry is made after the commit of the statement that it stands for, and each entry says how many rows it took; the
sender holds that against the number that PostgreSQL gave. So the book is exact, and never copied from the database.

Truth of a campaign: the five live counts; ``removed``, the rows that were ``sent`` when they were deleted; and what
``campaigns.sent`` should be: ``live + removed`` (policy keep) or ``live`` (policy follow). A campaign that never had a
queue row keeps what the mailer itself wrote.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice

from stream.core.status import QUEUED, SENT, STATUSES

Counts = tuple[int, int, int, int, int]

#: statuses of a campaign in which the mailer takes rows from its queue
SENDING_STATUSES = frozenset({"running", "scheduled"})


@dataclass(frozen=True, slots=True)
class CampaignTruth:
    """``counts`` in the order of STATUSES; ``counter``: what the mailer itself wrote to ``campaigns.sent``."""

    name: str
    status: str
    to_send: int
    counts: Counts
    removed: int
    ever_queued: bool
    counter: int

    def sent(self, policy: str = "keep") -> int:
        """What ``campaigns.sent`` should be under that policy."""
        if not self.ever_queued:
            return self.counter
        return self.counts[SENT] + (self.removed if policy == "keep" else 0)


@dataclass(frozen=True, slots=True)
class Truth:
    """The truth at one moment between transactions. ``changes``: rows changed so far; ``acts``: times each was done."""

    campaigns: Mapping[int, CampaignTruth]
    changes: int
    acts: Mapping[str, int]

    def live(self) -> dict[int, Counts]:
        """The five counts of every campaign that has rows: what ``GROUP BY campaign_id, status`` finds."""
        return {campaign: truth.counts for campaign, truth in self.campaigns.items() if any(truth.counts)}

    def sent(self, policy: str = "keep") -> dict[int, int]:
        """What ``campaigns.sent`` should be, of every campaign."""
        return {campaign: truth.sent(policy) for campaign, truth in self.campaigns.items()}


@dataclass(slots=True)
class Page:
    """One campaign of the book. ``rows``: status by row id; ``size``: how many rows it queues when it starts."""

    id: int
    name: str
    status: str = "draft"
    messenger: str = "automatic"
    size: int = 0
    to_send: int = 0
    use_queue: bool = False
    auto_paused: bool = False
    counter: int = 0
    removed: int = 0
    ever_queued: bool = False
    rows: dict[int, int] = field(default_factory=dict)
    counts: list[int] = field(default_factory=lambda: [0] * len(STATUSES))
    #: rows that were queued when they were put here, oldest first; those that no longer are are passed over
    line: deque[int] = field(default_factory=deque)

    def enter(self, ids: Iterable[int], status: int = QUEUED) -> int:
        """Rows inserted with that status. Returns how many."""
        before = len(self.rows)
        self.rows.update(dict.fromkeys(ids, status))
        entered = len(self.rows) - before
        self.counts[status] += entered
        self.ever_queued = self.ever_queued or entered > 0
        if status == QUEUED:
            self._line_up()
        return entered

    def turn(self, row: int, status: int, only_from: int | None = None) -> int:
        """One row gets that status: 1, or 0 where it is gone or (with ``only_from``) has another than that."""
        old = self.rows.get(row)
        if old is None or (only_from is not None and old != only_from):
            return 0
        self.rows[row] = status
        self.counts[old] -= 1
        self.counts[status] += 1
        if status == QUEUED and old != QUEUED:
            self.line.append(row)
            if len(self.line) > 2 * self.counts[QUEUED] + 1000:
                self._line_up()
        return 1

    def turn_all(self, sources: Iterable[int], target: int) -> int:
        """All rows of those statuses get another. Returns how many."""
        taken = frozenset(sources)
        rows = [row for row, status in self.rows.items() if status in taken]
        for source in taken:
            self.counts[source] = 0
        self.rows.update(dict.fromkeys(rows, target))
        self.counts[target] += len(rows)
        if target == QUEUED:
            self._line_up()
        return len(rows)

    def drop(self, rows: Iterable[int]) -> int:
        """Rows deleted; those that were sent become ``removed``. Returns how many."""
        dropped = 0
        for row in rows:
            status = self.rows.pop(row, None)
            if status is not None:
                self.counts[status] -= 1
                self.removed += status == SENT
                dropped += 1
        return dropped

    def drop_status(self, status: int) -> int:
        """All rows of that status deleted. Returns how many."""
        return self.drop([row for row, has in self.rows.items() if has == status])

    def drop_all(self) -> None:
        """The queue was truncated."""
        self.removed += self.counts[SENT]
        self.rows.clear()
        self.line.clear()
        self.counts = [0] * len(STATUSES)

    def replace(self, rows: Mapping[int, int], there: Collection[int] = ()) -> None:
        """The rows as the table has them. ``there``: rows in any campaign; what is not among them has been deleted."""
        self.removed += sum(status == SENT and row not in there for row, status in self.rows.items())
        self.rows = dict(rows)
        self.counts = [0] * len(STATUSES)
        for status in self.rows.values():
            self.counts[status] += 1
        self.ever_queued = self.ever_queued or bool(rows)
        self._line_up()

    def next_queued(self, n: int) -> list[int]:
        """Up to ``n`` queued rows, oldest first. Passes over what the line has that is queued no more."""
        while self.line and self.rows.get(self.line[0]) != QUEUED:
            self.line.popleft()
        found = dict.fromkeys(row for row in islice(self.line, 2 * n) if self.rows.get(row) == QUEUED)
        return list(islice(found, n))

    def truth(self) -> CampaignTruth:
        queued, sending, sent, failed, cancelled = self.counts
        counts = (queued, sending, sent, failed, cancelled)
        return CampaignTruth(self.name, self.status, self.to_send, counts, self.removed, self.ever_queued, self.counter)

    def _line_up(self) -> None:
        self.line = deque(row for row, status in self.rows.items() if status == QUEUED)


@dataclass(slots=True)
class Book:
    """All campaigns of the simulated mailer."""

    pages: dict[int, Page] = field(default_factory=dict)

    def turn(self, campaign: int, row: int, status: int, only_from: int | None = None) -> int:
        """As the page does; 0 where the campaign is gone."""
        page = self.pages.get(campaign)
        return 0 if page is None else page.turn(row, status, only_from)

    def drop(self, campaign: int, row: int) -> int:
        """A row deleted: 1, or 0 where it is gone already."""
        page = self.pages.get(campaign)
        return 0 if page is None else page.drop([row])

    def move(self, row: int, source: int, target: int) -> int:
        """A row goes to another campaign, with its status: 1, or 0 where it is gone. Moved is not removed."""
        page = self.pages[source]
        status = page.rows.pop(row, None)
        if status is None:
            return 0
        page.counts[status] -= 1
        return self.pages[target].enter([row], status)

    def truncate(self) -> None:
        """The queue is empty."""
        for page in self.pages.values():
            page.drop_all()

    def forget_removed(self) -> None:
        """Leaves out what was removed so far: for a counter that starts now, and cannot know it."""
        for page in self.pages.values():
            page.removed = 0

    def truth(self, changes: int, acts: Mapping[str, int]) -> Truth:
        """The truth as it stands; ``changes`` and ``acts`` are the senders' own account."""
        campaigns = {campaign: self.pages[campaign].truth() for campaign in sorted(self.pages)}
        return Truth(campaigns, changes, dict(acts))
