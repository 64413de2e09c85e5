"""The change log as JSON. Names are the same in HTTP answers, events and topics."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import orjson

from stream.core.change_log import CampaignGone, CampaignState, Change, ChangeLog, PartitionState
from stream.core.position import lsn_text
from stream.core.progress import measure, position_text, stale, time_text, to_json
from stream.core.verdict import Verdict


def dumps(value: object) -> bytes:
    """JSON in UTF-8."""
    return orjson.dumps(value)


def is_stale(mark: PartitionState, now: datetime) -> bool:
    """Whether the partition's numbers are stale."""
    return stale(mark.as_of, mark.based, now)


def progress(
    campaign: CampaignState, mark: PartitionState | None, now: datetime, seen: datetime | None
) -> dict[str, Any]:
    """A campaign's progress. ``mark``: from `ChangeLog.mark_of`; ``seen``: when the mailer's table was read, the upper
    bound of `as_of` for a campaign outside the queue."""
    row = campaign.row
    outside = campaign.partition is None
    as_of = None if mark is None else mark.as_of
    if outside and as_of is not None:
        as_of = None if seen is None else min(as_of, seen)
    measured = measure(
        campaign_id=row.campaign_id,
        name=row.name,
        status=row.status,
        to_send=row.to_send,
        counts=row.counts,
        removed=row.removed,
        sent=row.sent,
        rate=campaign.rate,
        now=now,
        as_of=as_of,
        based=mark is not None and mark.based,
        verified_at=row.verified_at,
        epoch=0 if mark is None or outside else mark.epoch,
        position=None if mark is None or outside else mark.position,
        source="mailer" if outside else "queue",
    )
    return to_json(measured) | {
        "verified_lsn": None if row.verified_lsn is None else lsn_text(row.verified_lsn),
        "partition": campaign.partition,
    }


def watermark(mark: PartitionState) -> dict[str, Any]:
    """How far a partition is."""
    return {
        "partition": mark.partition,
        "epoch": mark.epoch,
        "position": position_text(mark.epoch, mark.position),
        "lsn": lsn_text(mark.position.lsn),
        "as_of": time_text(mark.as_of),
        "based": mark.based,
        "stale": mark.stale,
    }


def verdict(of: Verdict) -> dict[str, Any]:
    """The verdict of a run on a campaign."""
    return {
        "run_id": of.run_id,
        "campaign_id": of.campaign,
        "verdict": of.verdict,
        "cause": of.cause,
        "before": of.before,
        "after": of.after,
        "delta": of.delta,
        "corrected": of.corrected,
    }


class Encoder:
    """Encodes server-sent events. ``boot``: prefix of event ids, unique to this process."""

    def __init__(
        self,
        boot: str,
        now: Callable[[], datetime],
        seen: Callable[[], datetime | None],
        shadow: Callable[[], bool],
    ) -> None:
        self._boot = boot
        self._now = now
        self._seen = seen
        self._shadow = shadow

    def event_id(self, number: int) -> str:
        return f"{self._boot}-{number:x}"

    def number_of(self, event_id: str) -> int | None:
        """The number in an event id of this process; None for any other text."""
        boot, _, number = event_id.partition("-")
        try:
            return int(number, 16) if boot == self._boot and len(number) < 16 else None
        except ValueError:
            return None

    def __call__(self, number: int, change: Change, log: ChangeLog) -> bytes:
        if isinstance(change, CampaignState):
            return self.frame(number, "progress", self.progress(change, log))
        if isinstance(change, PartitionState):
            return self.frame(
                number, "watermark", watermark(change) | {"now": time_text(self._now()), "shadow": self._shadow()}
            )
        if isinstance(change, CampaignGone):
            return self.frame(number, "deleted", {"campaign_id": change.campaign_id})
        return self.frame(number, "verdict", verdict(change))

    def progress(self, campaign: CampaignState, log: ChangeLog) -> dict[str, Any]:
        return progress(campaign, log.mark_of(campaign), self._now(), self._seen())

    def snapshot(self, log: ChangeLog, campaign_id: int | None = None) -> bytes:
        """The current state of all campaigns, or of one."""
        chosen = log.campaigns.values() if campaign_id is None else [log.campaigns[campaign_id]]
        marks = list(log.marks.values())
        if campaign_id is not None:
            marks = [mark for mark in marks if mark.partition == log.campaigns[campaign_id].partition]
        data = {
            "now": time_text(self._now()),
            "shadow": self._shadow(),
            "campaigns": [self.progress(campaign, log) for campaign in chosen],
            "watermarks": [watermark(mark) for mark in marks],
        }
        return self.frame(log.last, "snapshot", data)

    def frame(self, number: int, event: str, data: object) -> bytes:
        return b"id: %b\nevent: %b\ndata: %b\n\n" % (self.event_id(number).encode(), event.encode(), dumps(data))
