"""The change log behind server-sent events: what is true now, and what changed since an id.

A flush says what it wrote (:class:`Flushed`); the log keeps only the newest row of each campaign, in order of change.
So "what changed since" is the tail of that order, memory is bounded by the number of campaigns and never by the number of
changes, and a client that was away for an hour gets each campaign once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from threading import Lock
from typing import Protocol

from stream.core.position import Position


@dataclass(frozen=True, slots=True)
class Row:
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
class Ruling:
    """A verdict on one campaign in one run, as written to ``sentstream.verdicts``."""

    run_id: int
    campaign_id: int
    verdict: str
    cause: str | None = None
    before: Mapping[str, int] | None = None
    after: Mapping[str, int] | None = None
    delta: Mapping[str, int] | None = None
    corrected: bool = False


@dataclass(frozen=True, slots=True)
class Flushed:
    """One committed flush of one partition: the watermark it wrote, and the campaigns that it changed.

    ``rows``: whole rows of the changed campaigns only; after a load, all of the partition's. ``deleted``: campaigns that
    are gone. ``based`` false: the counts in ``rows`` are not to be believed yet.
    """

    epoch: int
    partition: int
    position: Position
    as_of: datetime | None
    based: bool
    rows: tuple[Row, ...] = ()
    deleted: tuple[int, ...] = ()
    verdicts: tuple[Ruling, ...] = ()


class Flushes(Protocol):
    """Where a runtime says what it has flushed. Called from the flush thread after the commit; never blocks, never raises."""

    def flushed(self, what: Flushed) -> None: ...


class Nobody:
    """A feed that nobody reads."""

    def flushed(self, what: Flushed) -> None:
        del what


@dataclass(slots=True)
class Inbox:
    """The hand-over between the flush thread and whoever serves: bounded, for a newer row of a campaign replaces the older."""

    _lock: Lock = field(default_factory=Lock)
    _waiting: dict[int, Flushed] = field(default_factory=dict)

    def flushed(self, what: Flushed) -> None:
        with self._lock:
            self._waiting[what.partition] = what
