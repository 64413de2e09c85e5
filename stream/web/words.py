"""What the change log knows, in the JSON names that INTERFACE fixes: the same in answers, events and topics."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Final

import orjson

from stream.core.feed import Campaign, Change, ChangeLog, Deleted, Mark
from stream.core.position import lsn_text
from stream.core.verdict import Verdict

#: seconds after which `as_of` is too old to be shown as now
STALE_AFTER: Final = 5.0
_OPTIONS = orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS


def dumps(value: object) -> bytes:
    """JSON, times as RFC 3339 in UTC."""
    return orjson.dumps(value, option=_OPTIONS)


def is_stale(mark: Mark, now: datetime) -> bool:
    """Whether the partition's numbers must not be taken for those of now."""
    return not mark.based or mark.as_of is None or (now - mark.as_of).total_seconds() > STALE_AFTER


def percent(sent: int, to_send: int) -> float | None:
    """``100 * sent / to_send`` with one decimal, clamped to 0..100; None where nothing is to be sent."""
    if to_send <= 0:
        return None
    return min(1000, max(0, (2000 * sent + to_send) // (2 * to_send))) / 10


def eta(campaign: Campaign, now: datetime) -> datetime | None:
    """When the last mail goes out at the rate of the last minute; None unless mail is flowing."""
    queued, sending, *_ = campaign.row.counts
    if campaign.partition is None or campaign.rate <= 0 or queued + sending <= 0:
        return None
    return (now + timedelta(minutes=(queued + sending) / campaign.rate)).replace(microsecond=0)


def progress(campaign: Campaign, mark: Mark | None, now: datetime, seen: datetime | None) -> dict[str, Any]:
    """A campaign's progress. ``seen``: when the mailer's table was read, the as-of of a campaign outside the queue."""
    row = campaign.row
    queued, sending, sent, failed, cancelled = row.counts
    outside = campaign.partition is None
    as_of = seen if outside else mark.as_of if mark is not None else None
    old = as_of is None or (now - as_of).total_seconds() > STALE_AFTER
    return {
        "campaign_id": row.campaign_id,
        "name": row.name,
        "status": row.status,
        "source": "mailer" if outside else "queue",
        "sent": row.sent,
        "queue_queued": queued,
        "queue_sending": sending,
        "queue_sent": sent,
        "queue_failed": failed,
        "queue_cancelled": cancelled,
        "queue_total": sum(row.counts),
        "removed": row.removed,
        "to_send": row.to_send,
        "percent": percent(row.sent, row.to_send),
        "rate_per_minute": round(campaign.rate, 1),
        "eta": eta(campaign, now),
        "as_of": as_of,
        "verified_at": row.verified_at,
        "verified_lsn": None if row.verified_lsn is None else lsn_text(row.verified_lsn),
        "lsn": None if mark is None else lsn_text(mark.position.lsn),
        "position": None if mark is None else str(mark.position),
        "partition": campaign.partition,
        "stale": old or (not outside and (mark is None or not mark.based)),
    }


def watermark(mark: Mark) -> dict[str, Any]:
    """How far a partition is."""
    return {
        "partition": mark.partition,
        "epoch": mark.epoch,
        "position": str(mark.position),
        "lsn": lsn_text(mark.position.lsn),
        "as_of": mark.as_of,
        "based": mark.based,
        "stale": mark.stale,
    }


def verdict(of: Verdict) -> dict[str, Any]:
    """What a run says of a campaign."""
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
    """Makes the bytes of server-sent events. ``boot`` tells our ids from those of another process."""

    def __init__(self, boot: str, now: Callable[[], datetime], seen: Callable[[], datetime | None]) -> None:
        self._boot = boot
        self._now = now
        self._seen = seen

    def event_id(self, number: int) -> str:
        return f"{self._boot}-{number:x}"

    def number_of(self, event_id: str) -> int | None:
        """The number in an id of ours; None for any other text."""
        boot, _, number = event_id.partition("-")
        try:
            return int(number, 16) if boot == self._boot and len(number) < 16 else None
        except ValueError:
            return None

    def __call__(self, number: int, change: Change, log: ChangeLog) -> bytes:
        if isinstance(change, Campaign):
            return self.frame(number, "progress", self.progress(change, log))
        if isinstance(change, Mark):
            return self.frame(number, "watermark", watermark(change))
        if isinstance(change, Deleted):
            return self.frame(number, "deleted", {"campaign_id": change.campaign_id})
        return self.frame(number, "verdict", verdict(change))

    def progress(self, campaign: Campaign, log: ChangeLog) -> dict[str, Any]:
        return progress(campaign, log.mark_of(campaign), self._now(), self._seen())

    def snapshot(self, log: ChangeLog, campaign_id: int | None = None) -> bytes:
        """All that is true now, of all campaigns or one."""
        chosen = log.campaigns.values() if campaign_id is None else [log.campaigns[campaign_id]]
        marks = list(log.marks.values())
        if campaign_id is not None:
            marks = [mark for mark in marks if mark.partition == log.campaigns[campaign_id].partition]
        data = {
            "now": self._now(),
            "campaigns": [self.progress(campaign, log) for campaign in chosen],
            "watermarks": [watermark(mark) for mark in marks],
        }
        return self.frame(log.last, "snapshot", data)

    def frame(self, number: int, event: str, data: object) -> bytes:
        return b"id: %b\nevent: %b\ndata: %b\n\n" % (self.event_id(number).encode(), event.encode(), dumps(data))


def rounded_up(seconds: float) -> int:
    """Whole seconds for a Retry-After."""
    return max(1, math.ceil(seconds))
