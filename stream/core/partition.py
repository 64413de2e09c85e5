"""The state of a partition, and how a batch is applied to it. This is the whole protocol (DESIGN 2).

    1. an older epoch is ignored; a newer one asks for a reload
    2. a batch that ends at or before the position is a repetition, and ignored; one that begins beyond it is a
       gap: something was lost, and the counts are no longer ``based``
    3. entries below the position are skipped, the others applied in order; then the position is the batch's end
    4. while not based, moves are dropped and nothing but the watermark is written, until a recount loads every row

The rules make repetition, doubling and re-cutting of batches harmless: what is applied is always a prefix of the WAL.
The state is what PostgreSQL holds (a load) plus the batches since; a flush takes what changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Literal

from .batch import MINUTE, Batch
from .entries import CampaignChanged, CampaignDeleted, Counted, Counts, Move, Recount, Truncate, checksum
from .flushing import Answer, Flush, FlushResult, HistoryKey, HistoryKind, Overwritten, ProgressRow, Stored
from .position import Position
from .status import NEW, REMOVED, SENT
from .verdict import (
    BASELINE,
    COUNTER_OVERWRITTEN,
    DRIFT,
    GAP,
    MISSED_CHANGE,
    ROWS_VANISHED,
    VERIFIED,
    Verdict,
    cause_of,
    named,
)

#: a row's list: the eight places (five of them counts), then these
_MOVES: Final = 8  # bits of the moves since the last recount
_CHECK: Final = 9  # checksum of the five counts
_GONE: Final = 10  # ``removed``: rows that were sent when they were deleted
_WIDTH: Final = 11

#: seconds after which a campaign whose row was locked, or whose counter was written by somebody, is tried again
HELD_AGAIN: Final = 0.5
CONTESTED_AGAIN: Final = 1.0

Policy = Literal["keep", "follow"]


class Outcome(Enum):
    """What became of a batch."""

    APPLIED = "applied"
    REPEATED = "repeated"
    OLD_EPOCH = "old_epoch"
    #: the batch's epoch is newer: load again, then offer it again
    NEW_EPOCH = "new_epoch"
    #: applied, but something before it was lost
    GAP = "gap"


@dataclass(slots=True)
class MailerCampaign:
    """What the mailer says of a campaign. ``sent``: its counter, as the log or the load last showed it."""

    name: str
    status: str
    to_send: int
    sent: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """A partition as PostgreSQL holds it. ``due``: what ``campaigns.sent`` shows, by campaign."""

    epoch: int
    position: Position
    based: bool
    as_of: int
    rows: tuple[ProgressRow, ...]
    campaigns: Mapping[int, MailerCampaign]
    next_offset: int | None = None


@dataclass(slots=True)
class _Pending:
    """What the next flush will write."""

    changed: set[int] = field(default_factory=set)
    described: set[int] = field(default_factory=set)  # name, status or to_send are new
    due: set[int] = field(default_factory=set)
    deleted: set[int] = field(default_factory=set)
    history: dict[HistoryKey, int] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    unmet: dict[int, int] = field(default_factory=dict)
    check: bool = False


class Partition:
    """The counts of one partition. Not thread-safe; time is passed in."""

    def __init__(self, number: int = 0, policy: Policy = "keep", write_back: bool = True) -> None:
        self.number = number
        self.epoch = 0
        self.position = Position(0)
        self.based = False
        self.as_of = 0
        self.gaps = 0
        self._keep = policy == "keep"
        self._write_back = write_back
        self._written = Position(0)
        self._rows: dict[int, list[int]] = {}
        self._campaigns: dict[int, MailerCampaign] = {}
        self._verified: dict[int, tuple[int, int]] = {}
        self._stored: dict[int, Stored] = {}
        self._pending = _Pending()
        self._held: dict[int, float] = {}
        #: campaigns that came with mails in their counter -> how many of these have no row, until the mailer sends
        self._described: dict[int, int] = {}
        self._contested: set[int] = set()
        self._contested_at: dict[int, float] = {}
        self._overwritten: dict[int, Overwritten] = {}
        self._unbased_because: str | None = None
        #: campaigns that only a raise had met when the state was loaded, with the LSN of its run
        self._raised: dict[int, int] = {}
        #: (campaign, status before, status now), as the log told them; the runtime takes them away
        self.status_changes: list[tuple[int, str, str]] = []

    # ---- loading ------------------------------------------------------------------------------------------------

    def load(self, loaded: Loaded, because: str | None = None) -> None:
        """Become what PostgreSQL holds; every campaign whose counter differs is due.

        ``because``: why the state is not based, where the caller knows (a verdict's cause).
        """
        self.epoch, self.position, self.based = loaded.epoch, loaded.position, loaded.based
        self.as_of, self._written = loaded.as_of, loaded.position
        self._campaigns = dict(loaded.campaigns)
        self._pending = _Pending()
        self._held.clear()
        self._described.clear()
        self._contested.clear()
        self._unbased_because = because
        self._rows, self._stored, self._verified, self._raised = {}, {}, {}, {}
        for row in loaded.rows:
            floor = row.floor or 0
            if not any(row.stored) and not row.sent and (not self.based or floor > self.position.lsn):
                self._raised[row.campaign] = floor  # put there by an interim raise: we have not met the campaign
                continue
            self._rows[row.campaign] = self._row(row.counts, row.removed)
            self._stored[row.campaign] = row.stored
            if row.sent != self.sent(row.campaign):
                self._rows[row.campaign][_CHECK] += 1  # not as we wrote it: the next recount says `lost_state`
            if row.removed and not self._keep:
                self._follow(row.campaign, loaded.as_of or row.verified_at or 0)
            if row.verified_at is not None and row.verified_lsn is not None:
                self._verified[row.campaign] = (row.verified_at, row.verified_lsn)
            campaign = self._campaigns.get(row.campaign)
            if campaign is not None and campaign.sent != self.sent(row.campaign):
                self._pending.due.add(row.campaign)

    def _follow(self, campaign: int, time: int) -> None:
        """The policy was `keep` before: what it kept is shown no longer."""
        row = self._rows[campaign]
        self._note(campaign, time // MINUTE, "correction", -row[_GONE])
        row[_GONE] = 0
        self._pending.changed.add(campaign)

    @staticmethod
    def _row(counts: Counts, removed: int = 0) -> list[int]:
        return [*counts, 0, 0, 0, 0, checksum(counts), removed]

    # ---- applying -----------------------------------------------------------------------------------------------

    def apply(self, batch: Batch) -> Outcome:
        """Apply a batch; see the four rules above."""
        if batch.epoch < self.epoch:
            return Outcome.OLD_EPOCH
        if batch.epoch > self.epoch:
            return Outcome.NEW_EPOCH
        if batch.end <= self.position:
            return Outcome.REPEATED
        outcome = Outcome.APPLIED
        if batch.begin > self.position:
            outcome = Outcome.GAP
            self.gaps += 1
            self.unbase(GAP)
        entries = batch.entries
        if batch.begin < self.position:
            here = self.position
            entries = tuple(placed for placed in entries if (placed[0], placed[1]) >= here)
        self._apply_entries(entries, batch.minute)
        self.position = batch.end
        self.as_of = batch.as_of or self.as_of
        return outcome

    def unbase(self, because: str) -> None:
        """The counts are no longer to be trusted: nothing is written until a recount."""
        if self.based or self._unbased_because is None:
            self._unbased_because = because
        self.based = False

    def _apply_entries(self, entries: Iterable[tuple[int, int, object]], minute: int) -> None:
        rows, changed, history, keep = self._rows, self._pending.changed, self._pending.history, self._keep
        for _, _, entry in entries:
            if type(entry) is Move:
                if not self.based:
                    continue
                campaign = entry.campaign
                row = rows.get(campaign)
                if row is None:
                    row = self._meet(campaign, minute)
                if self._described and campaign in self._described:
                    self._restored(entry, row, minute)
                row[entry.source] -= entry.n
                row[entry.target] += entry.n
                row[_MOVES] |= entry.bit
                row[_CHECK] += entry.weight
                changed.add(campaign)
                sent = entry.sent
                if sent:
                    if keep and entry.target == REMOVED:
                        row[_GONE] += entry.n
                        continue
                    key: HistoryKey = (campaign, minute, "flow")
                    history[key] = history.get(key, 0) + sent
            else:
                self._apply_rare(entry, minute)

    def _apply_rare(self, entry: object, minute: int) -> None:
        if isinstance(entry, Recount):
            self._recount(entry, minute)
        elif isinstance(entry, CampaignChanged):
            self._campaign_changed(entry)
        elif isinstance(entry, CampaignDeleted):
            self._campaign_deleted(entry.campaign)
        elif isinstance(entry, Truncate):
            self._truncate(entry, minute)
        else:
            raise TypeError(f"{type(entry).__name__} is no entry of a batch")

    def _meet(self, campaign: int, minute: int) -> list[int]:
        """A campaign's first row. What its counter shows already was not sent from here: it becomes ``removed``."""
        known = self._campaigns.get(campaign)
        removed = max(0, known.sent) if known is not None and self._keep else 0
        if self._raised.pop(campaign, None) is not None:
            removed = 0  # it is we who raised the counter, for rows that the stream is about to bring
        if removed:
            self._pending.unmet.pop(campaign, None)
            if campaign in self._described:
                self._described[campaign] = removed
        row = self._rows[campaign] = self._row((0, 0, 0, 0, 0), removed)
        self._note(campaign, minute, "baseline", removed)
        return row

    def _restored(self, entry: Move, row: list[int], minute: int) -> None:
        """The mailer makes campaigns without mails, and no row as `sent`: where a campaign comes with its counter and
        then with such rows (a restore, a new key), that counter has counted them already."""
        campaign = entry.campaign
        if entry.source != NEW:
            del self._described[campaign]
        elif entry.target == SENT:
            known = min(self._described[campaign], entry.n, row[_GONE])
            self._described[campaign] -= known
            row[_GONE] -= known
            self._note(campaign, minute, "baseline", -known)

    def _note(self, campaign: int, minute: int, kind: HistoryKind, n: int) -> None:
        if n:
            key: HistoryKey = (campaign, minute, kind)
            self._pending.history[key] = self._pending.history.get(key, 0) + n

    def _truncate(self, entry: Truncate, minute: int) -> None:
        if entry.table == "campaigns":
            for campaign in list(self._rows):
                self._drop(campaign)
            self._campaigns.clear()  # those that came later, and were loaded, come again
            return
        if not self.based:
            return
        for campaign, row in self._rows.items():
            if not any(row[:5]):
                continue
            if self._keep:
                row[_GONE] += row[SENT]
            else:
                self._note(campaign, minute, "flow", -row[SENT])
            row[:5] = [0, 0, 0, 0, 0]
            row[_CHECK] = 0
            row[_MOVES] |= 1 << (SENT * 8 + REMOVED)
            self._pending.changed.add(campaign)

    def _campaign_changed(self, entry: CampaignChanged) -> None:
        before = self._campaigns.get(entry.campaign)
        if before is None:
            before = self._campaigns[entry.campaign] = MailerCampaign(entry.name or "", "", 0, 0)
            if entry.sent > 0 and entry.campaign not in self._rows:
                self._described[entry.campaign] = 0
        if entry.name is not None:
            before.name = entry.name
        if before.status != entry.status:
            self.status_changes.append((entry.campaign, before.status, entry.status))
        if entry.campaign in self._rows:
            self._pending.described.add(entry.campaign)
        before.status, before.to_send, before.sent = entry.status, entry.to_send, entry.sent
        if entry.campaign in self._rows and entry.sent != self.sent(entry.campaign):
            self._contested.add(entry.campaign)

    def _campaign_deleted(self, campaign: int) -> None:
        self._campaigns.pop(campaign, None)
        self._raised.pop(campaign, None)
        self._drop(campaign)
        self._pending.deleted.add(campaign)

    def _drop(self, campaign: int) -> None:
        pending = self._pending
        stores: tuple[dict[int, Any], ...] = (
            self._held,
            self._overwritten,
            self._verified,
            self._stored,
            self._described,
        )
        for store in stores:
            store.pop(campaign, None)
        self._contested.discard(campaign)
        if self._rows.pop(campaign, None) is not None:
            pending.deleted.add(campaign)  # and stays so if it comes again: its old history goes before the new
        pending.changed.discard(campaign)
        pending.described.discard(campaign)
        pending.due.discard(campaign)
        pending.unmet.pop(campaign, None)
        for key in [key for key in pending.history if key[0] == campaign]:
            del pending.history[key]

    # ---- recounts -----------------------------------------------------------------------------------------------

    def _recount(self, entry: Recount, minute: int) -> None:
        pending = self._pending
        if entry.reason is not None:
            pending.due.update(self._rows)  # what the run may have raised ahead of us lies behind its floor now
            pending.answers.append(Answer(entry.run_id, False, entry.reason, inconclusive=max(1, len(self._rows))))
            return
        verdicts: list[Verdict] = []
        for campaign in [c for c in self._rows if c not in entry.expected]:
            self._drop(campaign)  # the campaign is gone
        for campaign in [c for c, floor in self._raised.items() if c not in entry.expected and floor <= entry.lsn]:
            del self._raised[campaign]
            pending.deleted.add(campaign)
        tally = {VERIFIED: 0, DRIFT: 0, BASELINE: 0}
        for campaign, counted in entry.expected.items():
            if campaign not in self._rows and not any(counted.counts):
                if not self.based:
                    pending.unmet[campaign] = minute  # unless a run has raised it, before its rows went
                continue  # a campaign that never had a queue row is never written
            row_verdicts = self._judge(entry, campaign, counted, minute)
            kinds = {verdict.verdict for verdict in row_verdicts}
            tally[DRIFT if DRIFT in kinds else BASELINE if BASELINE in kinds else VERIFIED] += 1
            verdicts += row_verdicts
            self._verified[campaign] = (entry.started_at, entry.lsn)
        self._rebase(entry, minute)
        self.based = True
        self._unbased_because = None
        pending.changed.update(self._rows)
        pending.due.update(self._rows)
        pending.verdicts += verdicts
        pending.answers.append(Answer(entry.run_id, True, None, tally[VERIFIED], tally[DRIFT], 0, tally[BASELINE]))
        pending.check = True

    def _judge(self, entry: Recount, campaign: int, counted: Counted, minute: int) -> list[Verdict]:
        row = self._rows.get(campaign)
        if not self.based:
            return [self._baseline(entry, campaign, row, counted, minute)]
        unknown = row is None
        if row is None:
            row = self._meet(campaign, minute)
        verdicts = []
        overwritten = self._overwritten.pop(campaign, None)
        shown = (row[0], row[1], row[2], row[3], row[4])
        intact = row[_CHECK] == checksum(shown)
        if shown != counted.counts:
            cause = MISSED_CHANGE if unknown else cause_of(shown, counted.counts, row[_MOVES], intact)
            if intact:  # else the history is right, for it was kept apart from what was damaged
                self._note(campaign, minute, "correction", counted.counts[SENT] - shown[SENT])
            before, after = named(shown), named(counted.counts)
            if overwritten is not None:
                before["counter"], after["counter"] = overwritten.found, overwritten.written
            verdicts.append(Verdict(entry.run_id, campaign, DRIFT, cause, before, after, corrected=True))
        elif overwritten is not None:
            before, after = {"counter": overwritten.found}, {"counter": overwritten.written}
            verdicts.append(Verdict(entry.run_id, campaign, DRIFT, COUNTER_OVERWRITTEN, before, after, corrected=True))
        elif row[_MOVES]:
            same = named(shown, row[_GONE])
            verdicts.append(Verdict(entry.run_id, campaign, VERIFIED, None, same, same))
        row[:5] = counted.counts
        row[_CHECK] = checksum(counted.counts)
        row[_MOVES] = 0
        return verdicts

    def _baseline(self, entry: Recount, campaign: int, row: list[int] | None, counted: Counted, minute: int) -> Verdict:
        """The first counts of a campaign, or the first after a gap: whatever it had shown, it does not fall."""
        sent = counted.counts[SENT]
        cause = self._unbased_because or (GAP if row is not None else None)
        if row is None:
            before, total = {"counter": counted.shown}, 0
            vanished, removed = max(0, counted.shown - sent), 0
            if cause == GAP:
                cause = None  # first contact
        else:
            shown = (row[0], row[1], row[2], row[3], row[4])
            before, total = named(shown, row[_GONE]) | {"counter": counted.shown}, self.sent(campaign)
            vanished, removed = max(0, row[SENT] - sent), row[_GONE]
        if not self._keep:
            vanished = 0
        if vanished:
            cause = ROWS_VANISHED
        self._rows[campaign] = self._row(counted.counts, removed + vanished)
        self._raised.pop(campaign, None)
        self._note(campaign, minute, "baseline", self.sent(campaign) - total)
        after = named(counted.counts, removed + vanished)
        after["counter"] = self.sent(campaign) if self._write_back else counted.shown
        corrected = after["counter"] == self.sent(campaign)
        return Verdict(entry.run_id, campaign, BASELINE, cause, before, after, corrected, estimated=bool(vanished))

    def _rebase(self, entry: Recount, minute: int) -> None:
        if entry.rebase is None:
            return
        for campaign in self._rows if entry.rebase == "all" else entry.rebase:
            row = self._rows.get(campaign)
            if row is not None and row[_GONE]:
                self._note(campaign, minute, "correction", -row[_GONE])
                row[_GONE] = 0

    # ---- flushing -----------------------------------------------------------------------------------------------

    def sent(self, campaign: int) -> int:
        """What ``campaigns.sent`` should show: rows sent now, and those that were sent when they went."""
        row = self._rows[campaign]
        return max(0, row[SENT] + row[_GONE])

    @property
    def dirty(self) -> bool:
        """Whether there is more to write than a watermark."""
        pending = self._pending
        if pending.answers or pending.verdicts:
            return True
        return self.based and bool(pending.changed or pending.described or pending.due or pending.deleted)

    def due_at(self) -> float | None:
        """When a campaign that was locked or contested is to be tried again, in the caller's seconds; None: never."""
        if not (self.based and self._write_back):
            return None
        contested = (
            self._contested_at.get(campaign, -CONTESTED_AGAIN) + CONTESTED_AGAIN for campaign in self._contested
        )
        return min((*self._held.values(), *contested), default=None)

    def take(self, now: float, next_offset: int | None = None) -> Flush:
        """All that is to be written now, as one value; ``now`` in the caller's monotonic seconds.

        The caller writes it, then says so with :meth:`flushed`; where writing failed in a way that leaves the
        outcome unknown, the state is to be loaded again.
        """
        pending = self._pending
        common = (self.number, self.epoch, self._written, self.position, self.based, self.as_of)
        if not self.based:
            verdicts, answers = tuple(pending.verdicts), tuple(pending.answers)
            pending.verdicts, pending.answers = [], []
            return Flush(*common, verdicts=verdicts, answers=answers, next_offset=next_offset)
        self._pending = _Pending()
        due = pending.changed | pending.due | self._tried_again(now)
        return Flush(
            *common,
            rows=tuple(self._progress(campaign) for campaign in sorted(pending.changed | pending.described)),
            deleted=tuple(sorted(pending.deleted)),
            history=tuple(pending.history.items()),
            due={c: self.sent(c) for c in sorted(due) if c in self._rows} if self._write_back else {},
            verdicts=tuple(pending.verdicts),
            answers=tuple(pending.answers),
            check=dict(self._stored) if pending.check else None,
            next_offset=next_offset,
            unmet=pending.unmet,
            keep=self._keep,
        )

    def _tried_again(self, now: float) -> set[int]:
        """Campaigns whose row was locked, or whose counter somebody wrote, as far as their time has come."""
        again = {campaign for campaign, at in self._held.items() if at <= now}
        for campaign in again:
            del self._held[campaign]
        last = self._contested_at
        contested = {c for c in self._contested if now - last.get(c, -CONTESTED_AGAIN) >= CONTESTED_AGAIN}
        self._contested -= contested
        self._contested_at = {c: at for c, at in last.items() if now - at < CONTESTED_AGAIN}
        self._contested_at.update(dict.fromkeys(contested, now))
        return again | contested

    def has(self, campaign: int) -> bool:
        """Whether there is a row of this campaign, here or (where only a raise has met it) in the store."""
        return campaign in self._rows or campaign in self._raised

    def snapshot(self) -> tuple[ProgressRow, ...]:
        """All campaigns of the partition as they stand."""
        return tuple(self._progress(campaign) for campaign in sorted(self._rows))

    def _progress(self, campaign: int) -> ProgressRow:
        row = self._rows[campaign]
        at, lsn = self._verified.get(campaign, (None, None))
        known = self._campaigns.get(campaign)
        return ProgressRow(
            campaign,
            (row[0], row[1], row[2], row[3], row[4]),
            row[_GONE],
            self.sent(campaign),
            at,
            lsn,
            known.name if known else "",
            known.status if known else "",
            known.to_send if known else 0,
        )

    def flushed(self, flush: Flush, result: FlushResult, now: float) -> None:
        """The flush has committed."""
        self._written = flush.position
        for campaign in flush.deleted:
            self._stored.pop(campaign, None)
        for row in flush.rows:
            if row.campaign in self._rows:
                self._stored[row.campaign] = row.stored
        for campaign, removed in result.raised.items():
            self._take_over(campaign, removed)
        for campaign in result.held:
            if campaign in self._rows:
                self._held[campaign] = now + HELD_AGAIN
        for overwritten in result.overwritten:
            self._overwritten[overwritten.campaign] = overwritten

    def _take_over(self, campaign: int, removed: int) -> None:
        """A campaign that only a raise had met, as the flush has written it."""
        if campaign in self._pending.deleted:
            return
        self._raised.pop(campaign, None)
        row = self._rows.setdefault(campaign, self._row((0, 0, 0, 0, 0)))
        row[_GONE] += removed
        *counts, before = self._stored.get(campaign, (0, 0, 0, 0, 0, 0))
        self._stored[campaign] = (counts[0], counts[1], counts[2], counts[3], counts[4], before + removed)
        self._pending.changed.add(campaign)
