"""What a transaction of the mailer comes to: a few entries, in order.

An entry is a value; its position in the WAL stands beside it in the batch, as ``(lsn, seq, entry)``, so that one
``Move`` object can serve every transaction that makes the same move. See docs/design/counting.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, TypeAlias

from .status import SENT

#: queued, sending, sent, failed, cancelled
Counts = tuple[int, int, int, int, int]


#: of the eight places in the checksum that every move keeps beside the counts
WEIGHTS: Final = (1_000_003, 7_919, 104_729, 1_009, 15_485_863, 0, 0, 0)


def checksum(counts: Sequence[int]) -> int:
    """A second way to the same five counts: where it disagrees with them, the state in memory was damaged."""
    return sum(weight * n for weight, n in zip(WEIGHTS, counts[:5], strict=False))


@dataclass(frozen=True, slots=True)
class Move:
    """``n`` rows of ``campaign`` went from place ``source`` to place ``target`` (numbers of ``status.PLACES``)."""

    campaign: int
    source: int
    target: int
    n: int
    #: one bit for each (source, target): which moves a campaign has seen since its last recount
    bit: int = field(init=False, repr=False, compare=False)
    #: what the move adds to ``checksum`` of a campaign's counts
    weight: int = field(init=False, repr=False, compare=False)
    #: what the move adds to the campaign's rows that are ``sent``
    sent: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "bit", 1 << (self.source * 8 + self.target))
        object.__setattr__(self, "weight", self.n * (WEIGHTS[self.target] - WEIGHTS[self.source]))
        object.__setattr__(self, "sent", self.n * ((self.target == SENT) - (self.source == SENT)))


@dataclass(frozen=True, slots=True)
class Truncate:
    """TRUNCATE of the queue (all rows of all campaigns), or of ``campaigns`` (which takes the queue with it)."""

    table: Literal["queue", "campaigns"] = "queue"


@dataclass(frozen=True, slots=True)
class CampaignChanged:
    """A campaign row was written, by the mailer, by us or by others. ``name``: None where the log says "unchanged"."""

    campaign: int
    name: str | None
    status: str
    to_send: int
    sent: int


@dataclass(frozen=True, slots=True)
class CampaignDeleted:
    """A campaign went; the moves of its rows in the same transaction were dropped."""

    campaign: int


@dataclass(frozen=True, slots=True)
class Unreadable:
    """What a transaction did to the counts is not known: it changed a published table under a name that is none of
    ours (the queue, renamed), or rows outlived their campaign. The batcher makes a gap of it, so that every partition
    counts anew."""

    why: str


class Counted(NamedTuple):
    """A campaign as a recount found it: the five live counts, and what ``campaigns.sent`` showed."""

    counts: Counts
    shown: int


@dataclass(frozen=True, slots=True)
class RecountRow:
    """A row of ``sentstream.recounts`` as it stands in the WAL: counts by the snapshot, not yet aligned.

    ``fault``: what of it can't be read; it then carries no counts.
    """

    run_id: int
    trigger: str
    requested_by: str
    started_at: int  # microseconds since 1970
    lsn: int
    snapshot: str
    counts: Mapping[int, Counted]
    rebase: tuple[int, ...] | Literal["all"] | None
    epoch: int
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Recount:
    """A recount aligned with the stream: what every campaign should show at this point of the WAL.

    Where ``reason`` is given the recount is inconclusive: it says why, carries no counts, and is repeated.
    """

    run_id: int
    trigger: str
    started_at: int  # microseconds since 1970
    lsn: int
    expected: Mapping[int, Counted]
    rebase: tuple[int, ...] | Literal["all"] | None = None
    reason: str | None = None


Entry: TypeAlias = Move | Truncate | CampaignChanged | CampaignDeleted | RecountRow | Recount | Unreadable
#: an entry and where it stands
Placed = tuple[int, int, Entry]


class Transaction(NamedTuple):
    """A committed transaction, folded. ``lsn``: of its commit record; ``end``: where the next may begin;
    ``time``: of the commit, microseconds since 1970; ``xid``: 32 bits, as the log has it."""

    lsn: int
    end: int
    time: int
    xid: int
    entries: tuple[Entry, ...]
