"""The queue as a dict of rows, which says what the log would say: the truth that folded counts are held against.

:class:`Oracle` plays acts, each a triple of small numbers interpreted against the rows of now (so that Hypothesis may
shrink them), and returns the messages of the transaction. :func:`replay` is the plainest way to read entries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from stream.core.entries import CampaignChanged, CampaignDeleted, Entry, Move, Truncate, Unreadable
from stream.core.status import MOVED, NEW, REMOVED, STATUSES
from tests.core import wal
from tests.core.wal import Table

Act = tuple[int, int, int]
Counts = dict[int, tuple[int, ...]]
#: campaigns are numbered from 1; negative ids are legal integers, and large ones have all their bytes in use
CAMPAIGNS = (1, 2, 70_000, -3)


class Oracle:
    """Rows of ``email_queue`` and of ``campaigns``, committed. ``reuse``: a campaign that went may come again with the
    same number, which a sequence never gives."""

    def __init__(self, queue: Table, campaigns: Table = wal.CAMPAIGNS, reuse: bool = True) -> None:
        self.queue, self.campaigns, self.reuse = queue, campaigns, reuse
        self.numbers = list(CAMPAIGNS)
        self.rows: dict[int, dict[str, Any]] = {}
        self.known: dict[int, dict[str, Any]] = {}
        #: rows that were sent when they were deleted, by campaign, as long as it lives
        self.removed: Counter[int] = Counter()
        #: campaigns that ever had a row, as long as they live
        self.met: set[int] = set()
        self._next = 1

    # ---- the truth ----------------------------------------------------------------------------------------------

    def counts(self) -> Counts:
        """Campaign -> five counts; campaigns without rows have none."""
        found: dict[int, list[int]] = {}
        for row in self.rows.values():
            found.setdefault(row["campaign_id"], [0] * 5)[STATUSES.index(row["status"])] += 1
        return {campaign: tuple(counts) for campaign, counts in found.items()}

    def sent(self, campaign: int, keep: bool = True) -> int:
        """What ``campaigns.sent`` should show."""
        live: int = sum(row["campaign_id"] == campaign and row["status"] == "sent" for row in self.rows.values())
        return live + (self.removed[campaign] if keep else 0)

    # ---- acts ---------------------------------------------------------------------------------------------------

    def play(self, acts: Sequence[Act]) -> list[bytes]:
        """The messages of one transaction that does these acts."""
        return [message for act in acts for message in self._act(*act)]

    def _act(self, kind: int, a: int, b: int) -> list[bytes]:
        campaign = self.numbers[a % len(self.numbers)]
        status = STATUSES[b % 5]
        row = self._pick(a)
        if kind < 6:
            return self._insert(campaign, status) if kind < 3 or row is None else self._update(row, status=status)
        if kind < 10:
            return [] if row is None else self._update(row, status=status)
        if kind == 10:
            return [] if row is None else self._update(row, campaign_id=campaign, status=status)
        if kind == 11:
            return [] if row is None else self._update(row, subscriber_id=b)
        if kind == 12:
            return [] if row is None else self._delete(row)
        if kind == 13:
            return self._change_campaign(campaign, b)
        if kind == 14:
            return self._delete_campaign(campaign)
        if kind == 15:
            return self._truncate()
        if kind == 16:
            return self._truncate_campaigns()
        if kind == 17:
            return [wal.WATERMARKS.update(None, {"partition": 0, "epoch": 1})]
        return [(wal.message(), wal.origin(), wal.type_())[b % 3]]

    def _pick(self, a: int) -> dict[str, Any] | None:
        return list(self.rows.values())[a % len(self.rows)] if self.rows else None

    def _insert(self, campaign: int, status: str) -> list[bytes]:
        messages = [] if campaign in self.known else self._change_campaign(campaign, 0)
        number, self._next = self._next, self._next + 1
        row = self.rows[number] = wal.row(campaign, status, number, subscriber_id=number, updated_at=10**15)
        self.met.add(campaign)
        return [*messages, self.queue.insert(row)]

    def _update(self, row: dict[str, Any], **changes: Any) -> list[bytes]:
        new = row | changes
        messages = [] if new["campaign_id"] in self.known else self._change_campaign(new["campaign_id"], 0)
        self.rows[row["id"]] = new
        self.met.add(new["campaign_id"])
        return [*messages, self.queue.update(row, new)]

    def _gone(self, row: dict[str, Any]) -> None:
        self.removed[row["campaign_id"]] += row["status"] == "sent"
        del self.rows[row["id"]]

    def _delete(self, row: dict[str, Any]) -> list[bytes]:
        self._gone(row)
        return [self.queue.delete(row)]

    def _change_campaign(self, campaign: int, b: int) -> list[bytes]:
        before = self.known.get(campaign)
        sent, name = (before["sent"], wal.UNCHANGED) if before else (0, "name")
        new = wal.campaign(campaign, ("draft", "running", "paused")[b % 3], b, sent, name)
        self.known[campaign] = new
        return [self.campaigns.update(None, new) if before else self.campaigns.insert(new)]

    def _delete_campaign(self, campaign: int) -> list[bytes]:
        if self.known.pop(campaign, None) is None:
            return []
        rows = [row for row in self.rows.values() if row["campaign_id"] == campaign]
        for row in rows:
            del self.rows[row["id"]]
        self._forget(campaign)
        return [self.campaigns.delete({"id": campaign}), *(self.queue.delete(row) for row in rows)]

    def _forget(self, campaign: int) -> None:
        self.removed.pop(campaign, None)
        self.met.discard(campaign)
        if not self.reuse:
            self.numbers[self.numbers.index(campaign)] = max(self.numbers) + 1

    def _truncate(self) -> list[bytes]:
        for row in list(self.rows.values()):
            self._gone(row)
        return [wal.truncate(self.queue)]

    def _truncate_campaigns(self) -> list[bytes]:
        for campaign in list(self.known):
            self._forget(campaign)
        self.rows.clear()
        self.known.clear()
        return [wal.truncate(self.campaigns, self.queue, options=1)]


def replay(counts: dict[int, Counter[int]], entries: Iterable[Entry]) -> None:
    """Apply entries to counts by place, the plain way. A campaign that went is not in ``counts``."""
    for entry in entries:
        if isinstance(entry, Move):
            places = counts.setdefault(entry.campaign, Counter())
            places[entry.source] -= entry.n
            places[entry.target] += entry.n
        elif isinstance(entry, Truncate):
            for campaign in list(counts):
                if entry.table == "campaigns":
                    del counts[campaign]
                else:
                    _empty(counts[campaign])
        elif isinstance(entry, CampaignDeleted):
            counts.pop(entry.campaign, None)
        else:  # here no row outlives its campaign, so nothing is lost where that is not known
            assert isinstance(entry, (CampaignChanged, Unreadable)), entry


def _empty(places: Counter[int]) -> None:
    places[REMOVED] += sum(places[status] for status in range(5))
    for status in range(5):
        places[status] = 0


def live(counts: dict[int, Counter[int]]) -> Counts:
    """The five counts of campaigns that have rows; asserts that rows are neither made nor lost on the way."""
    for places in counts.values():
        assert sum(places.values()) == 0
        assert all(places[status] >= 0 for status in range(5))
        assert places[NEW] <= 0
        assert places[REMOVED] >= 0
        assert places[MOVED] >= 0
    return {
        campaign: tuple(places[status] for status in range(5))
        for campaign, places in counts.items()
        if any(places[status] for status in range(5))
    }
