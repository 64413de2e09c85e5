"""The state of a partition, and how a batch is applied to it. This is the whole protocol.

    1. an older epoch is ignored; a newer one asks for a reload
    2. a batch that ends at or before the position is a repetition, and ignored; one that begins beyond it is a
       gap: something was lost, and the counts are no longer ``based``
    3. entries below the position are skipped, the others applied in order; then the position is the batch's end
    4. while not based, moves are dropped and nothing but the watermark is written, until a recount sets every count

The rules make repetition, doubling and re-cutting of batches harmless: what is applied is always a prefix of the WAL.
The state is what PostgreSQL holds (a load) plus the batches since; a flush takes what changed. See
docs/design/batches.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from operator import attrgetter
from typing import Final, Literal

from .batch import MINUTE, Batch
from .campaign import CHANGED, DESCRIBED, DUE, Campaign, MailerCampaign, Verified
from .entries import CampaignChanged, CampaignDeleted, Counted, Move, Recount, Truncate
from .flushing import Answer, Flush, FlushResult, HistoryKey, Overwritten, ProgressRow
from .judge import compare, set_baseline
from .position import Position
from .status import NEW, REMOVED, SENT
from .verdict import BASELINE, DRIFT, GAP, VERIFIED, Verdict

#: seconds after which a campaign is due again: its row was locked; its counter was written by another writer
HELD_AGAIN: Final = 0.5
CONTESTED_AGAIN: Final = 1.0

Policy = Literal["keep", "follow"]
_NUMBER: Final = attrgetter("number")


class Outcome(Enum):
    """What became of a batch."""

    APPLIED = "applied"
    REPEATED = "repeated"
    OLD_EPOCH = "old_epoch"
    #: the batch's epoch is newer: load again, then offer it again
    NEW_EPOCH = "new_epoch"
    #: applied, but something before it was lost
    GAP = "gap"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A partition as PostgreSQL holds it. ``campaigns``: what the mailer says of each."""

    epoch: int
    position: Position
    based: bool
    as_of: int
    rows: tuple[ProgressRow, ...]
    campaigns: Mapping[int, MailerCampaign]
    next_offset: int | None = None


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
        self._minute = 0  # of the batch that was applied last
        self._campaigns: dict[int, Campaign] = {}
        self._unbased_because: str | None = None
        #: (campaign, status before, status now), as the log told them; the runtime takes them away
        self.status_changes: list[tuple[int, str, str]] = []
        self._forget_pending()

    def _forget_pending(self) -> None:
        # These may name campaigns that went since: what is no longer in `_campaigns` is passed over when it is taken.
        self._touched: list[Campaign] = []
        self._unmet: list[Campaign] = []
        self._again: set[Campaign] = set()
        self._deleted: set[int] = set()
        self._verdicts: list[Verdict] = []
        self._answers: list[Answer] = []
        self._check = False

    # ---- loading ------------------------------------------------------------------------------------------------

    def load(self, loaded: Loaded, because: str | None = None) -> None:
        """Become what PostgreSQL holds; every campaign whose counter differs is due.

        ``because``: why the state is not based, where the caller knows (a verdict's cause).
        """
        self.epoch, self.position, self.based = loaded.epoch, loaded.position, loaded.based
        self.as_of, self._written = loaded.as_of, loaded.position
        self._campaigns = {number: Campaign(number, mailer) for number, mailer in loaded.campaigns.items()}
        self._forget_pending()
        self._unbased_because = because
        for row in loaded.rows:
            campaign, floor = self._known(row.campaign), row.floor or 0
            if not any(row.stored) and not row.sent and (not self.based or floor > self.position.lsn):
                campaign.raised = floor  # put there by an interim raise: no row of the campaign was met
                continue
            campaign.set_counts(row.counts)
            campaign.removed, campaign.unmatched, campaign.stored = row.removed, row.unmatched, row.stored
            if row.overwritten_with is not None:
                campaign.overwritten = Overwritten(row.campaign, row.overwritten_with, row.sent)
            if row.sent != campaign.sent:
                campaign.check += 1  # not as it was written: the next recount says `lost_state`
            if row.removed and not self._keep:  # the policy was `keep` before: what it kept is shown no longer
                campaign.note((loaded.as_of or row.verified_at or 0) // MINUTE, "correction", -row.removed)
                campaign.removed = 0
                self._touch(campaign, CHANGED)
            if row.verified_at is not None and row.verified_lsn is not None:
                campaign.verified = Verified(row.verified_at, row.verified_lsn)
            if campaign.mailer is not None and campaign.mailer.sent != campaign.sent:
                self._touch(campaign, DUE)

    def _known(self, number: int) -> Campaign:
        campaign = self._campaigns.get(number)
        if campaign is None:
            campaign = self._campaigns[number] = Campaign(number)
        return campaign

    def _touch(self, campaign: Campaign, writes: int) -> None:
        """The next flush writes this of the campaign."""
        if not campaign.writes:
            self._touched.append(campaign)
        campaign.writes |= writes

    def _lives(self, campaign: Campaign) -> bool:
        """Whether the campaign has counts, and neither went since nor came again."""
        return bool(campaign.places) and self._campaigns.get(campaign.number) is campaign

    def _met(self) -> list[Campaign]:
        """The campaigns that have counts."""
        return [campaign for campaign in self._campaigns.values() if campaign.places]

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
        if batch.minute != self._minute:
            for campaign in self._touched:
                campaign.note_flow(self._minute)
            self._minute = batch.minute
        self._apply_entries(entries, batch.minute)
        self.position = batch.end
        self.as_of = batch.as_of or self.as_of
        return outcome

    def unbase(self, because: str) -> None:
        """The counts can't be trusted any more: nothing is written until a recount."""
        if self.based or self._unbased_because is None:
            self._unbased_because = because
        self.based = False

    def _apply_entries(self, entries: Iterable[tuple[int, int, object]], minute: int) -> None:
        campaigns, keep = self._campaigns, self._keep
        for _, _, entry in entries:
            if type(entry) is Move:
                if not self.based:
                    continue
                campaign = campaigns.get(entry.campaign)
                if campaign is None or not campaign.places:
                    campaign = self._meet(entry.campaign, minute)
                if campaign.unmatched:
                    self._match(entry, campaign, minute)
                places = campaign.places
                places[entry.source] -= entry.n
                places[entry.target] += entry.n
                campaign.moves |= entry.bit
                campaign.check += entry.weight
                if not campaign.writes & CHANGED:
                    self._touch(campaign, CHANGED)
                sent = entry.sent
                if sent:
                    if keep and entry.target == REMOVED:
                        campaign.removed += entry.n
                        continue
                    campaign.flow += sent
            else:
                self._apply_rare(entry, minute)

    def _apply_rare(self, entry: object, minute: int) -> None:
        if isinstance(entry, Recount):
            self._recount(entry, minute)
        elif isinstance(entry, CampaignChanged):
            self._campaign_changed(entry)
        elif isinstance(entry, CampaignDeleted):
            self._forget(entry.campaign)
            self._deleted.add(entry.campaign)
        elif isinstance(entry, Truncate):
            self._truncate(entry, minute)
        else:
            raise TypeError(f"{type(entry).__name__} is no entry of a batch")

    def _meet(self, number: int, minute: int) -> Campaign:
        """A campaign's first row. What its counter shows already was not sent from here: it becomes ``removed``."""
        campaign = self._known(number)
        removed = max(0, campaign.mailer.sent) if campaign.mailer is not None and self._keep else 0
        if campaign.raised is not None:
            removed = 0  # the counter was raised by us, for rows that the stream is about to bring
            campaign.raised = None
        if removed:
            campaign.unmet = None
        campaign.set_counts((0, 0, 0, 0, 0))
        campaign.removed = removed
        if campaign.mailer is not None and campaign.mailer.came:
            campaign.unmatched = removed
        campaign.note(minute, "baseline", removed)
        return campaign

    @staticmethod
    def _match(entry: Move, campaign: Campaign, minute: int) -> None:
        """The mailer makes campaigns without mails, and no row as `sent`: where a campaign comes with its counter and
        then with such rows (a restore, a new key), that counter has counted them already. Until the mailer sends."""
        if entry.source != NEW:
            campaign.unmatched = 0
        elif entry.target == SENT:
            matched = min(campaign.unmatched, entry.n, campaign.removed)
            campaign.unmatched -= matched
            campaign.removed -= matched
            campaign.note(minute, "baseline", -matched)

    def _truncate(self, entry: Truncate, minute: int) -> None:
        if entry.table == "campaigns":
            for number in list(self._campaigns):
                self._forget(number)  # those that were made later, and loaded, come again
            return
        if not self.based:
            return
        for campaign in self._met():
            if not any(campaign.counts):
                continue
            sent, moves = campaign.places[SENT], campaign.moves
            if self._keep:
                campaign.removed += sent
            else:
                campaign.note(minute, "flow", -sent)
            campaign.set_counts((0, 0, 0, 0, 0))
            campaign.moves = moves | 1 << (SENT * 8 + REMOVED)
            self._touch(campaign, CHANGED)

    def _campaign_changed(self, entry: CampaignChanged) -> None:
        campaign = self._known(entry.campaign)
        mailer = campaign.mailer
        if mailer is None:
            mailer = campaign.mailer = MailerCampaign(entry.name or "", "", 0, 0, came=True)
        if mailer.status != entry.status:
            self.status_changes.append((entry.campaign, mailer.status, entry.status))
        name = mailer.name if entry.name is None else entry.name
        described = (name, entry.status, entry.to_send)
        changed = described != (mailer.name, mailer.status, mailer.to_send)
        mailer.name, mailer.status, mailer.to_send = described
        mailer.sent = entry.sent
        if not campaign.places:
            return
        if changed:
            self._touch(campaign, DESCRIBED)
        # Our own flush comes back so as well: it shows what we hold, or an older number while a newer is on its way.
        campaign.contested = entry.sent != campaign.sent and not campaign.writes & (CHANGED | DUE)
        if campaign.contested:
            self._again.add(campaign)

    def _forget(self, number: int) -> None:
        """The campaign is gone. If it comes again, its old rows are deleted before the new ones are written."""
        campaign = self._campaigns.pop(number, None)
        if campaign is not None and (campaign.places or campaign.raised is not None):
            self._deleted.add(number)

    # ---- recounts -----------------------------------------------------------------------------------------------

    def _recount(self, entry: Recount, minute: int) -> None:
        if entry.reason is not None:
            met = self._met()
            for campaign in met:
                self._touch(campaign, DUE)  # what the run may have raised ahead of us lies behind its floor now
            self._answers.append(Answer(entry.run_id, False, entry.reason, inconclusive=max(1, len(met))))
            return
        for campaign in list(self._campaigns.values()):
            raised = campaign.raised is not None and campaign.raised <= entry.lsn
            if (campaign.places or raised) and campaign.number not in entry.expected:
                self._forget(campaign.number)
        tally = {VERIFIED: 0, DRIFT: 0, BASELINE: 0}
        for number, counted in entry.expected.items():
            campaign = self._known(number)
            if not campaign.places and not any(counted.counts):
                if not self.based:
                    campaign.unmet = minute  # unless a run has raised it, before its rows went
                    self._unmet.append(campaign)
                continue  # a campaign that never had a queue row is never written
            verdict = self._judge(entry, campaign, counted, minute)
            tally[VERIFIED if verdict is None else verdict.verdict] += 1
            if verdict is not None:
                self._verdicts.append(verdict)
            first = verdict is not None and verdict.verdict == BASELINE  # counted, not compared
            campaign.verified = None if first else Verified(entry.started_at, entry.lsn)
        self.based = True
        self._unbased_because = None
        rebase = frozenset(entry.expected if entry.rebase == "all" else entry.rebase or ())
        for campaign in self._met():
            if campaign.removed and campaign.number in rebase:
                campaign.note(minute, "correction", -campaign.removed)
                campaign.removed = 0
            self._touch(campaign, CHANGED | DUE)
        self._answers.append(Answer(entry.run_id, True, None, tally[VERIFIED], tally[DRIFT], 0, tally[BASELINE]))
        self._check = True

    def _judge(self, entry: Recount, campaign: Campaign, counted: Counted, minute: int) -> Verdict | None:
        if not self.based:
            because, keep, write_back = self._unbased_because, self._keep, self._write_back
            return set_baseline(campaign, entry, counted, minute, because=because, keep=keep, write_back=write_back)
        known = bool(campaign.places)
        if not known:
            self._meet(campaign.number, minute)
        return compare(campaign, entry, counted, minute, known=known)

    # ---- flushing -----------------------------------------------------------------------------------------------

    def sent(self, number: int) -> int:
        """What ``campaigns.sent`` of a campaign with counts should show."""
        return self._campaigns[number].sent

    @property
    def dirty(self) -> bool:
        """Whether there is more to write than a watermark."""
        return bool(self._answers or self._verdicts or (self.based and (self._touched or self._deleted)))

    def due_at(self) -> float | None:
        """When a campaign that was locked or contested is to be tried again, in the caller's seconds; None: never."""
        if not (self.based and self._write_back):
            return None
        return min((at for it in self._again if self._lives(it) for at in _due_times(it)), default=None)

    def take(self, now: float, next_offset: int | None = None) -> Flush:
        """All that is to be written now, as one value; ``now`` in the caller's monotonic seconds.

        The caller writes it, then says so with :meth:`flushed`; where writing failed in a way that leaves the
        outcome unknown, the state is to be loaded again.
        """
        common = (self.number, self.epoch, self._written, self.position, self.based, self.as_of)
        verdicts, answers = tuple(self._verdicts), tuple(self._answers)
        self._verdicts, self._answers = [], []
        if not self.based:
            return Flush(*common, verdicts=verdicts, answers=answers, next_offset=next_offset)
        rows: list[ProgressRow] = []
        history: list[tuple[HistoryKey, int]] = []
        due = {campaign.number: campaign.sent for campaign in self._take_again(now)}
        campaigns = self._campaigns
        touched = [it for it in self._touched if it.places and campaigns.get(it.number) is it]
        touched.sort(key=_NUMBER)
        for campaign in touched:
            number, row = campaign.number, campaign.progress()
            if campaign.writes & (CHANGED | DESCRIBED):
                rows.append(row)
            if campaign.writes & (CHANGED | DUE):
                due[number] = row.sent
                campaign.contested, campaign.due_last = False, now
            if campaign.flow and not campaign.history:
                history.append(((number, self._minute, "flow"), campaign.flow))
                campaign.flow = 0
            elif campaign.history:
                campaign.note_flow(self._minute)
                history += [((number, minute, kind), n) for (minute, kind), n in campaign.history.items()]
                campaign.history = {}
            campaign.writes = 0
        unmet = {}
        for campaign in self._unmet:
            if campaign.unmet is not None and self._campaigns.get(campaign.number) is campaign:
                unmet[campaign.number], campaign.unmet = campaign.unmet, None
        check = {it.number: it.stored for it in self._campaigns.values() if it.stored} if self._check else None
        deleted = tuple(sorted(self._deleted))
        self._touched, self._unmet, self._deleted, self._check = [], [], set(), False
        return Flush(
            *common,
            rows=tuple(rows),
            deleted=deleted,
            history=tuple(history),
            due=dict(sorted(due.items())) if self._write_back else {},
            verdicts=verdicts,
            answers=answers,
            check=check,
            next_offset=next_offset,
            unmet=unmet,
            keep=self._keep,
        )

    def _take_again(self, now: float) -> list[Campaign]:
        """Campaigns whose row was locked, or whose counter was written by another writer, as far as they are due."""
        due = []
        for campaign in list(self._again):
            if not self._lives(campaign):
                self._again.discard(campaign)
                continue
            if campaign.held_until is not None and campaign.held_until <= now:
                campaign.held_until = None
                due.append(campaign)
            if campaign.contested and campaign.due_last + CONTESTED_AGAIN <= now:
                campaign.contested, campaign.due_last = False, now
                due.append(campaign)
            if campaign.held_until is None and not campaign.contested:
                self._again.discard(campaign)
        return due

    def has(self, number: int) -> bool:
        """Whether there is a row of this campaign, here or (where only a raise has met it) in the store."""
        campaign = self._campaigns.get(number)
        return campaign is not None and (bool(campaign.places) or campaign.raised is not None)

    def snapshot(self) -> tuple[ProgressRow, ...]:
        """All campaigns of the partition as they stand."""
        return tuple(campaign.progress() for campaign in sorted(self._met(), key=_NUMBER))

    def flushed(self, flush: Flush, result: FlushResult, now: float) -> None:
        """The flush has committed."""
        self._written = flush.position
        for number in flush.deleted:
            if number in self._campaigns:
                self._campaigns[number].stored = None
        for row in flush.rows:
            campaign = self._campaigns.get(row.campaign)
            if campaign is not None and campaign.places:
                campaign.stored = row.stored
        for number, removed in result.raised.items():
            if number not in self._deleted:
                self._take_over(self._known(number), removed)
        for number in result.held:
            campaign = self._campaigns.get(number)
            if campaign is not None and campaign.places:
                campaign.held_until = now + HELD_AGAIN
                self._again.add(campaign)
        for overwritten in result.overwritten:
            campaign = self._campaigns.get(overwritten.campaign)
            if campaign is not None:
                campaign.overwritten = overwritten

    def _take_over(self, campaign: Campaign, removed: int) -> None:
        """A campaign that only a raise had met, as the flush has written it."""
        campaign.raised = None
        if not campaign.places:
            campaign.set_counts((0, 0, 0, 0, 0))
        campaign.removed += removed
        *counts, before = campaign.stored or (0, 0, 0, 0, 0, 0)
        campaign.stored = (counts[0], counts[1], counts[2], counts[3], counts[4], before + removed)
        self._touch(campaign, CHANGED)


def _due_times(campaign: Campaign) -> Iterable[float]:
    if campaign.held_until is not None:
        yield campaign.held_until
    if campaign.contested:
        yield max(0.0, campaign.due_last + CONTESTED_AGAIN)
