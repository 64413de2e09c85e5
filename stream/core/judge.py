"""Judging a recount: what it says of one campaign, compared with the counts that the stream has kept.

Where the partition has a baseline, equal counts are `verified` and different ones are `drift`; without one the recount
sets the counts and is the baseline. See docs/design/recount.md.
"""

from __future__ import annotations

from .campaign import Campaign
from .entries import Counted, Recount
from .status import SENT
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


def compare(campaign: Campaign, recount: Recount, counted: Counted, minute: int, *, known: bool) -> Verdict | None:
    """The verdict on a campaign of a partition that has its baseline; the campaign takes the recount's counts.

    ``known``: whether the stream had met the campaign. None: equal, and nothing moved since the last verdict.
    """
    overwritten, campaign.overwritten = campaign.overwritten, None
    shown, moves, intact = campaign.counts, campaign.moves, campaign.intact
    campaign.set_counts(counted.counts)
    run, number = recount.run_id, campaign.number
    if shown != counted.counts:
        if intact:  # otherwise the history is right: it is kept apart from what was damaged
            campaign.note(minute, "correction", counted.counts[SENT] - shown[SENT])
        cause = cause_of(shown, counted.counts, moves, intact) if known else MISSED_CHANGE
        before, after = named(shown), named(counted.counts)
        if overwritten is not None:
            before["counter"], after["counter"] = overwritten.found, overwritten.written
        return Verdict(run, number, DRIFT, cause, before, after, corrected=True)
    if overwritten is not None:
        before, after = {"counter": overwritten.found}, {"counter": overwritten.written}
        return Verdict(run, number, DRIFT, COUNTER_OVERWRITTEN, before, after, corrected=True)
    if moves:
        same = named(shown, campaign.removed)
        return Verdict(run, number, VERIFIED, None, same, same)
    return None


def set_baseline(
    campaign: Campaign,
    recount: Recount,
    counted: Counted,
    minute: int,
    *,
    because: str | None,
    keep: bool,
    write_back: bool,
) -> Verdict:
    """Set the first counts of a campaign, or the first after a gap; what it has shown does not fall.

    ``because``: why the partition has no baseline, where that is known.
    """
    sent = counted.counts[SENT]
    if campaign.places:
        cause: str | None = because or GAP
        before, shown = named(campaign.counts, campaign.removed), campaign.sent
        vanished = max(0, campaign.places[SENT] - sent)
    else:  # first contact
        cause = None if because == GAP else because
        before, shown = {}, 0
        vanished = max(0, counted.shown - sent)
    before["counter"] = counted.shown
    if not keep:
        vanished = 0
    if vanished:
        cause = ROWS_VANISHED
    campaign.set_counts(counted.counts)
    campaign.removed += vanished
    campaign.raised = None
    campaign.note(minute, "baseline", campaign.sent - shown)
    after = named(counted.counts, campaign.removed)
    after["counter"] = campaign.sent if write_back else counted.shown
    corrected = after["counter"] == campaign.sent
    return Verdict(recount.run_id, campaign.number, BASELINE, cause, before, after, corrected, estimated=bool(vanished))
