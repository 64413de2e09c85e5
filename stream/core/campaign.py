"""All that a partition knows of one campaign, in one value: dropping the value forgets the campaign.

Counts, what the mailer says, what the store holds, and what the next flush writes stand side by side, so no rule has to
remember which of many tables a deleted campaign is still in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from .entries import Counts, checksum
from .flushing import HistoryKind, Overwritten, ProgressRow, Stored
from .status import SENT

#: what the next flush writes of a campaign
CHANGED: Final = 1  # its counts
DESCRIBED: Final = 2  # name, status or to_send
DUE: Final = 4  # its counter, where it differs

NO_COUNTS: Final[Counts] = (0, 0, 0, 0, 0)


@dataclass(slots=True)
class MailerCampaign:
    """What the mailer says of a campaign. ``sent``: its counter, as the log or the load last showed it; ``came``: the
    campaign came after the newest run, so rows that its counter has counted may still come."""

    name: str
    status: str
    to_send: int
    sent: int
    came: bool = False


class Verified(NamedTuple):
    """The last run that found the counts right, or set them. ``at``: microseconds since 1970."""

    at: int
    lsn: int


@dataclass(slots=True, eq=False)
class Campaign:
    """One campaign of a partition. Compared by identity: a campaign that comes again is another value."""

    number: int
    mailer: MailerCampaign | None = None
    #: rows by place (``status.PLACES``), the first five are the counts; empty until the first row of the queue is met
    places: list[int] = field(default_factory=list)
    #: checksum of the five counts, kept by every move
    check: int = 0
    #: bits of the moves since the last recount
    moves: int = 0
    #: rows that were sent when they were deleted
    removed: int = 0
    #: mails that its counter showed when the campaign was met, and that have no row yet; 0 once the mailer sends
    unmatched: int = 0
    verified: Verified | None = None
    #: what the store holds
    stored: Stored | None = None
    #: LSN of the run that raised the counter before any row was met
    raised: int | None = None
    #: another writer's counter that the last flush replaced; the next run reports it
    overwritten: Overwritten | None = None
    #: the log shows another counter than ours, and no flush will write it anyway: due again, at most once a second
    contested: bool = False
    #: when a flush last wrote its counter, or looked whether it had to
    due_last: float = float("-inf")
    #: its row was locked: due again at this time
    held_until: float | None = None
    #: a combination of CHANGED, DESCRIBED and DUE
    writes: int = 0
    #: mails sent in the minute of the last batch; `note_flow` takes it into the history
    flow: int = 0
    history: dict[tuple[int, HistoryKind], int] = field(default_factory=dict)
    #: minute of a baseline that found no rows, while it is not known whether a run had raised the counter
    unmet: int | None = None

    @property
    def counts(self) -> Counts:
        places = self.places
        return (places[0], places[1], places[2], places[3], places[4]) if places else NO_COUNTS

    @property
    def sent(self) -> int:
        """What ``campaigns.sent`` should show: rows sent now, and those that were sent when they went."""
        return max(0, self.places[SENT] + self.removed)

    @property
    def intact(self) -> bool:
        """Whether the counts agree with the checksum that every move keeps beside them."""
        return self.check == checksum(self.counts)

    def set_counts(self, counts: Counts) -> None:
        """Take over the counts of a recount or of the store."""
        self.places = [*counts, 0, 0, 0]
        self.check, self.moves = checksum(counts), 0

    def note(self, minute: int, kind: HistoryKind, n: int) -> None:
        """Add to the history that the next flush writes."""
        if n:
            self.history[minute, kind] = self.history.get((minute, kind), 0) + n

    def note_flow(self, minute: int) -> None:
        """Take the flow of the minute that is over into the history."""
        self.note(minute, "flow", self.flow)
        self.flow = 0

    def progress(self) -> ProgressRow:
        """The campaign as a row of ``sentstream.progress``."""
        verified, mailer, places, removed = self.verified, self.mailer, self.places, self.removed
        return ProgressRow(
            self.number,
            (places[0], places[1], places[2], places[3], places[4]),
            removed,
            max(0, places[SENT] + removed),
            verified.at if verified else None,
            verified.lsn if verified else None,
            mailer.name if mailer else "",
            mailer.status if mailer else "",
            mailer.to_send if mailer else 0,
            unmatched=self.unmatched,
        )
