"""What a committed flush tells the interfaces: the watermark it wrote and the campaigns it changed.

Server-sent events, the dashboard and the progress topic are fed with these values.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import Final, Protocol

from .flushing import Flush, ProgressRow
from .position import Position
from .verdict import Verdict

#: newest verdicts kept where flushes are merged, and in the change log
VERDICTS_KEPT: Final = 1000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True, slots=True)
class CampaignRow:
    """A campaign as the flush wrote it. ``counts``: queued, sending, sent, failed, cancelled; ``sent``: what
    ``campaigns.sent`` shows. ``name`` and ``status`` are the mailer's; an empty one means "not known here"."""

    campaign_id: int
    name: str
    status: str
    to_send: int
    counts: tuple[int, int, int, int, int]
    removed: int
    sent: int
    verified_at: datetime | None = None
    verified_lsn: int | None = None


@dataclass(frozen=True, slots=True)
class CommittedFlush:
    """One committed flush of one partition: the watermark it wrote, and the campaigns that it changed.

    ``rows``: the changed campaigns, each with all its values. ``whole`` (after a load): ``rows`` are all campaigns of
    the partition, and a campaign missing from them is gone. ``deleted``: campaigns that are gone. ``based`` is false
    while the counts have no baseline.
    """

    epoch: int
    partition: int
    position: Position
    as_of: datetime | None
    based: bool
    rows: tuple[CampaignRow, ...] = ()
    deleted: tuple[int, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    whole: bool = False


class FlushListener(Protocol):
    """Receives each committed flush, in the flush thread, after the commit. Must not block."""

    def flushed(self, what: CommittedFlush) -> None: ...


def of_flush(flush: Flush) -> CommittedFlush:
    """What the interfaces learn from a flush that committed."""
    here = {row.campaign for row in flush.rows}
    return CommittedFlush(
        flush.epoch,
        flush.partition,
        flush.position,
        _time(flush.as_of),
        flush.based,
        tuple(map(of_progress, flush.rows)),
        tuple(campaign for campaign in flush.deleted if campaign not in here),
        flush.verdicts,
    )


def of_progress(row: ProgressRow) -> CampaignRow:
    """A row of ``sentstream.progress`` as the interfaces know it."""
    return CampaignRow(
        row.campaign,
        row.name,
        row.status,
        row.to_send,
        row.counts,
        row.removed,
        row.sent,
        _time(row.verified_at),
        row.verified_lsn,
    )


def merged(older: CommittedFlush, newer: CommittedFlush) -> CommittedFlush:
    """Two flushes of a partition, one after the other, as one."""
    verdicts = (*older.verdicts, *newer.verdicts)[-VERDICTS_KEPT:]
    if newer.whole:
        return replace(newer, verdicts=verdicts)
    rows = {row.campaign_id: row for row in older.rows}
    rows.update((row.campaign_id, row) for row in newer.rows)
    for gone in newer.deleted:
        rows.pop(gone, None)
    deleted = {*older.deleted, *newer.deleted} - rows.keys()
    return replace(
        newer, rows=tuple(rows.values()), deleted=tuple(sorted(deleted)), verdicts=verdicts, whole=older.whole
    )


def _time(microseconds: int | None) -> datetime | None:
    """Microseconds since 1970 (as the core keeps times) as a datetime."""
    return None if not microseconds else _EPOCH + timedelta(microseconds=microseconds)
