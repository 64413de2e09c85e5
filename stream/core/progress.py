"""A campaign's progress as every interface shows it: one set of names, and the numbers derived from the counts.

Table, topic, events, HTTP and terminal all show `CampaignProgress`; each of them calls `measure` with the counts
and a time. Nothing here reads a clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Final, Literal

from stream.core.position import Position, lsn_text
from stream.core.status import QUEUED, SENDING

#: seconds after which a number is no longer called fresh: the idle tick is two, and one may get lost
STALE_AFTER: Final = 5.0
#: an ETA beyond this says nothing (and would overflow a date)
LONGEST_ETA: Final = timedelta(days=3650)


@dataclass(frozen=True, slots=True)
class CampaignProgress:
    """One campaign; the fields are the JSON names of the contract, in their order.

    ``sent`` is what ``campaigns.sent`` shows. ``as_of``: commit time up to which everything is applied. ``lsn`` is
    text as PostgreSQL prints it, ``position`` text that sorts. ``source``: `queue`, or `mailer` for a campaign without
    rows in the queue, whose ``sent`` is the mailer's own and whose counts are 0.
    """

    campaign_id: int
    name: str
    status: str
    sent: int
    queue_queued: int
    queue_sending: int
    queue_sent: int
    queue_failed: int
    queue_cancelled: int
    queue_total: int
    removed: int
    to_send: int
    percent: float | None
    rate_per_minute: float
    eta: datetime | None
    as_of: datetime | None
    verified_at: datetime | None
    lsn: str | None
    position: str | None
    stale: bool
    source: Literal["queue", "mailer"] = "queue"


def measure(
    *,
    campaign_id: int,
    name: str,
    status: str,
    to_send: int,
    counts: Sequence[int],
    removed: int,
    sent: int,
    rate: float,
    now: datetime,
    as_of: datetime | None,
    based: bool,
    verified_at: datetime | None = None,
    epoch: int = 0,
    position: Position | None = None,
    source: Literal["queue", "mailer"] = "queue",
) -> CampaignProgress:
    """The progress of a campaign at ``now``. ``counts``: the five in status order; ``rate``: see `rate_per_minute`."""
    queued, sending, queue_sent, failed, cancelled = counts
    waiting = counts[QUEUED] + counts[SENDING]
    old = stale(as_of, based, now)
    return CampaignProgress(
        campaign_id=campaign_id,
        name=name,
        status=status,
        sent=sent,
        queue_queued=queued,
        queue_sending=sending,
        queue_sent=queue_sent,
        queue_failed=failed,
        queue_cancelled=cancelled,
        queue_total=sum(counts),
        removed=removed,
        to_send=to_send,
        percent=percent(sent, to_send),
        rate_per_minute=rate,
        eta=None if old else eta(waiting, rate, now),
        as_of=as_of,
        verified_at=verified_at,
        lsn=None if position is None else lsn_text(position.lsn),
        position=None if position is None else position_text(epoch, position),
        stale=old,
        source=source,
    )


def percent(sent: int, to_send: int) -> float | None:
    """100 * sent / to_send with one decimal, clamped to 0..100; None when there is nothing to send.

    Rounded half up in whole numbers, as PostgreSQL's NUMERIC does, so that both show the same.
    """
    if to_send <= 0:
        return None
    return max(0, min(1000, (2000 * sent + to_send) // (2 * to_send))) / 10


def rate_per_minute(current: int, previous: int, seconds_into_minute: float) -> float:
    """Mails in the last 60 s, one decimal, from what history holds by minute: the current minute, and of the one before
    the share that lies within the last 60 s. Never below 0 (a mail that turns from sent to failed counts -1).
    """
    share = 1 - max(0.0, min(60.0, seconds_into_minute)) / 60
    return max(0.0, round(current + previous * share, 1))


def eta(waiting: int, rate: float, now: datetime) -> datetime | None:
    """When the ``waiting`` rows (queued and sending) are gone at the present ``rate`` (a minute), to the second.

    None unless mail is flowing: no rate, nothing waiting, or an end too far off to mean anything.
    """
    if rate <= 0 or waiting <= 0:
        return None
    minutes = waiting / rate
    if minutes > LONGEST_ETA / timedelta(minutes=1):
        return None
    return (now + timedelta(minutes=minutes)).astimezone(timezone.utc).replace(microsecond=0)


def stale(as_of: datetime | None, based: bool, now: datetime) -> bool:
    """Whether a number must not pass for a live one: older than 5 s, of a time to come (the clock was put back), or its
    partition has no baseline yet."""
    return not based or as_of is None or abs(now - as_of) > timedelta(seconds=STALE_AFTER)


def position_text(epoch: int, position: Position) -> str:
    """Text that sorts as (epoch, position) does: in a new epoch the WAL may begin anew at smaller LSNs."""
    return f"{epoch:016X}.{position}"


def time_text(time: datetime | None) -> str | None:
    """RFC 3339 in UTC, milliseconds where there are any: ``2026-03-01T12:00:00.250Z``."""
    if time is None:
        return None
    utc = time.astimezone(timezone.utc)
    spec = "milliseconds" if utc.microsecond else "seconds"
    return utc.replace(tzinfo=None).isoformat(timespec=spec) + "Z"


def to_json(progress: CampaignProgress) -> dict[str, Any]:
    """The JSON object of the contract: times as text, everything else as it is."""
    return {name: _plain(getattr(progress, name)) for name in FIELDS}


def _plain(value: Any) -> Any:
    return time_text(value) if isinstance(value, datetime) else value


FIELDS: Final = tuple(CampaignProgress.__dataclass_fields__)
