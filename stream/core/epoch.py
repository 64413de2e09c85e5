"""Epochs: one history of LSNs, one number of partitions, one way of folding.

Within an epoch positions may be compared. Where they may not (another system, a restore, another number of
partitions, a release that folds differently) a new one begins, in which nothing is based yet. A failover is no new
epoch where the new timeline forked behind all that is remembered: up to the fork both are one history. See
docs/design/batches.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .position import Position, lsn_text


@dataclass(frozen=True, slots=True)
class Watermark:
    """A row of ``sentstream.watermarks``: how far a partition is written."""

    partition: int
    epoch: int
    position: Position
    based: bool
    system_identifier: str
    timeline: int
    fold_version: int
    next_offset: int | None = None
    as_of: int = 0


@dataclass(frozen=True, slots=True)
class Server:
    """The server as it answers now. ``wal_end``: the insert position of its WAL; ``forks``: earlier timelines of its
    history, each with the LSN up to which it is shared."""

    system_identifier: str
    timeline: int
    wal_end: int
    forks: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class KafkaEnd:
    """What the last batch of a partition in the changes topic says."""

    epoch: int
    end: Position


def reason_for_new_epoch(
    watermarks: Sequence[Watermark],
    server: Server,
    partitions: int,
    fold_version: int,
    kafka: Sequence[KafkaEnd] = (),
) -> str | None:
    """Why positions that are remembered can't be compared with those of this server; None: they can."""
    if not watermarks:
        return "first start"
    epoch = watermarks[0].epoch
    newer = max((end.epoch for end in kafka), default=0)
    if newer > epoch:
        return f"the changes topic holds epoch {newer}, PostgreSQL only {epoch}"
    if [w.partition for w in sorted(watermarks, key=lambda w: w.partition)] != list(range(partitions)):
        return f"the number of partitions changed from {len(watermarks)} to {partitions}"
    if len({w.epoch for w in watermarks}) > 1:
        return "the watermarks are of several epochs"
    for watermark in watermarks:
        if watermark.fold_version != fold_version:
            return f"this release folds as version {fold_version}, the last one as {watermark.fold_version}"
    ends = [end.end.lsn for end in kafka if end.epoch == epoch]
    return next(filter(None, (other_history(watermark, server, ends) for watermark in watermarks)), None)


def other_history(watermark: Watermark, server: Server, ends: Sequence[int] = ()) -> str | None:
    """Why ``watermark`` (and ``ends``: LSNs of its epoch that Kafka knows) is of another history than the server's WAL;
    None: it is of the same, and what follows it there follows it here."""
    if watermark.system_identifier != server.system_identifier:
        return f"the database was on system {watermark.system_identifier}, now on {server.system_identifier}"
    furthest = max(watermark.position.lsn, *ends, 0)
    if watermark.timeline != server.timeline:
        left = server.forks.get(watermark.timeline)
        if left is None or furthest > left:
            return f"the server's timeline changed from {watermark.timeline} to {server.timeline}"
    if furthest > server.wal_end:
        return f"position {lsn_text(furthest)} lies beyond the server's WAL, which ends at {lsn_text(server.wal_end)}"
    return None


def next_epoch(watermarks: Sequence[Watermark], now_ms: int, kafka: Sequence[KafkaEnd] = ()) -> int:
    """The number of the epoch that begins: above every known one, and not below the time in milliseconds."""
    known = max([w.epoch for w in watermarks] + [end.epoch for end in kafka], default=0)
    return max(known + 1, now_ms)
