"""A PostgreSQL in small, for whole worlds: the queue, the WAL as pgoutput bytes, the slot, and our own tables.

The statements of ``connectors/postgres`` are played here as they are meant: a flush is one transaction that first
moves the watermark by compare-and-swap; a raise touches the watermark, sets a floor and only raises; a new epoch is
written by compare-and-swap too. Beside that the server keeps the truth: what the counts were at each point of its WAL,
and which numbers were ever shown.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from stream.core.campaign import MailerCampaign
from stream.core.epoch import Server as Identity
from stream.core.epoch import Watermark, other_history
from stream.core.errors import FencedError
from stream.core.flushing import (
    Flush,
    FlushResult,
    HistoryKey,
    Overwritten,
    ProgressRow,
    Stored,
    with_raised,
    with_store_faults,
)
from stream.core.fold import FOLD_VERSION
from stream.core.partition import Loaded
from stream.core.position import Position
from stream.core.status import SENT
from stream.core.verdict import Verdict
from tests.core import wal
from tests.core.oracle import Act, Oracle
from tests.proofs.found import Found

NONE = (0, 0, 0, 0, 0)


@dataclass(slots=True)
class Record:
    """A transaction in the WAL."""

    lsn: int
    end: int
    time: int
    xid: int
    data: bytes


@dataclass(slots=True)
class Truth:
    """What was true behind a transaction that ended at ``end``."""

    end: int
    counts: dict[int, tuple[int, ...]]
    removed: dict[int, int]
    campaigns: frozenset[int]


@dataclass(slots=True)
class Progress:
    """A row of ``sentstream.progress``."""

    partition: int
    counts: tuple[int, int, int, int, int] = NONE
    removed: int = 0
    sent: int = 0
    written: int | None = None
    floor: int | None = None
    verified: tuple[int, int] | None = None
    unmatched: int = 0
    #: how much ``unmatched`` fell since it was last looked at: so many rows may have come for it
    matched: int = 0


@dataclass(slots=True)
class Run:
    """A row of ``sentstream.recounts``."""

    lsn: int
    counts: dict[int, tuple[int, ...]]
    epoch: int
    rebase: object = None


@dataclass(slots=True)
class Slot:
    confirmed: int
    holder: object | None = None


@dataclass(slots=True)
class Open:
    """A transaction that has its id, and does what it does when it commits."""

    xid: int
    acts: list[Act]


@dataclass(slots=True)
class Server:
    """``policy``: keep or follow. All times are microseconds."""

    policy: str = "keep"
    system: str = "one"
    timeline: int = 1
    now: int = 1_795_513_740_000_000
    lsn: int = 1000
    xid: int = 700
    ended: int = 699
    oracle: Oracle = field(default_factory=lambda: Oracle(wal.QUEUE, reuse=False))
    log: list[Record] = field(default_factory=list)
    truths: list[Truth] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    open: list[Open] = field(default_factory=list)
    slot: Slot | None = None
    watermarks: dict[int, Watermark] = field(default_factory=dict)
    progress: dict[int, Progress] = field(default_factory=dict)
    history: Counter[HistoryKey] = field(default_factory=Counter)
    runs: dict[int, Run] = field(default_factory=dict)
    #: (run, partition) -> conclusive
    answers: dict[tuple[int, int], bool] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)
    #: campaigns whose row somebody has locked
    locked: set[int] = field(default_factory=set)
    #: the point of the WAL that the number which a campaign shows is as of
    shown_at: dict[int, int] = field(default_factory=dict)
    #: by campaign: ``removed`` above what was truly removed (estimates, and what a counter showed before)
    above: dict[int, int] = field(default_factory=dict)
    #: campaigns with a new baseline that was not looked at yet
    fresh: set[int] = field(default_factory=set)
    transactions: int = 0
    ours: int = 0
    #: a trigger of the mailer: with the next of our writes it writes this counter (campaign, sent)
    trigger: tuple[int, int] | None = None

    # ---- the mailer ---------------------------------------------------------------------------------------------

    def draw(self) -> int:
        self.xid += 1
        return self.xid - 1

    def commit(self, acts: list[Act], xid: int | None = None) -> None:
        """A transaction of the mailer, or of anybody."""
        self._write(self.oracle.play(acts), self.draw() if xid is None else xid)

    def overwrite(self, campaign: int, sent: int) -> None:
        """Somebody writes the counter."""
        row = self.oracle.known[campaign]
        row["sent"] = sent
        self._write([wal.CAMPAIGNS.update(None, row)], self.draw())

    def _write(self, messages: list[bytes], xid: int) -> Record:
        lsn = self.lsn + 8
        self.lsn = end = lsn + 40
        self.transactions += 1
        record = Record(lsn, end, self.now, xid, wal.transaction(lsn, *messages, end=end, time=self.now, xid=xid))
        self.log.append(record)
        self.ends.append(end)
        self.ended = max(self.ended, xid)
        counts = self.oracle.counts()
        self.truths.append(Truth(end, counts, dict(self.oracle.removed), frozenset(self.oracle.known)))
        return record

    def truth_at(self, lsn: int) -> Truth:
        """What was true when all that ended at or before ``lsn`` had committed."""
        number = bisect_right(self.ends, lsn)
        return self.truths[number - 1] if number else Truth(0, {}, {}, frozenset())

    def snapshot(self) -> tuple[int, int, frozenset[int]]:
        xmax = self.ended + 1
        xip = frozenset(tx.xid for tx in self.open if tx.xid < xmax)
        return min(xip, default=xmax), xmax, xip

    def identity(self) -> Identity:
        return Identity(self.system, self.timeline, self.lsn)

    # ---- loading and epochs -------------------------------------------------------------------------------------

    def marks(self) -> list[Watermark]:
        return [self.watermarks[number] for number in sorted(self.watermarks)]

    def load(self, partition: int, partition_of: Callable[[int], int]) -> Loaded:
        mark = self.watermarks.get(partition)
        if mark is None or other_history(mark, self.identity()) is not None:
            raise LookupError(partition)
        rows = tuple(
            ProgressRow(c, row.counts, row.removed, row.sent, at, lsn, floor=row.floor, unmatched=row.unmatched)
            for c, row in self.progress.items()
            for at, lsn in (row.verified or (None, None),)
            if row.partition == partition
        )
        counted = self.runs[max(self.runs)].counts if self.runs else {}
        campaigns = {
            c: MailerCampaign(
                "name", row["status"], row["to_send"], row["sent"], came=bool(counted) and c not in counted
            )
            for c, row in self.oracle.known.items()
            if partition_of(c) == partition
        }
        return Loaded(mark.epoch, mark.position, mark.based, mark.as_of, rows, campaigns, mark.next_offset)

    def begin_epoch(
        self, known: list[Watermark], epoch: int, partitions: int, partition_of: Callable[[int], int], lsn: int
    ) -> None:
        if [(m.partition, m.epoch, m.position) for m in known] != [
            (m.partition, m.epoch, m.position) for m in self.marks()
        ]:
            raise FencedError("epoch")
        self.watermarks = {
            n: Watermark(n, epoch, Position(lsn), False, self.system, self.timeline, FOLD_VERSION)
            for n in range(partitions)
        }
        for campaign, row in self.progress.items():
            row.partition, row.floor = partition_of(campaign), None
        self._ours({})

    def _ours(self, writes: Mapping[int, int]) -> None:
        """A transaction of ours: it touches a watermark and writes counters."""
        self.ours += 1
        messages = [wal.WATERMARKS.update(None, {"partition": 0, "epoch": 1})]
        for campaign, sent in writes.items():
            row = self.oracle.known[campaign]
            if campaign not in self.oracle.met:
                raise Found(f"campaign {campaign} never had a queue row, and is written")
            row["sent"] = sent
            messages.insert(len(messages) // 2, wal.CAMPAIGNS.update(None, row))
        if writes and self.trigger is not None and self.trigger[0] in self.oracle.known:
            row = self.oracle.known[self.trigger[0]]
            row["sent"], self.trigger = self.trigger[1], None
            messages.append(wal.CAMPAIGNS.update(None, row))
        self._write(messages, self.draw())

    # ---- the flush ----------------------------------------------------------------------------------------------

    def flush(self, flush: Flush) -> FlushResult:  # noqa: C901 - one transaction, in its order
        """As ``connectors/postgres/store/flush.py`` does it."""
        mark = self.watermarks.get(flush.partition)
        if mark is None or (mark.epoch, mark.position) != (flush.epoch, flush.expected):
            raise FencedError("swap")
        if flush.position.lsn > self.lsn:
            raise FencedError("beyond the WAL")
        self.watermarks[flush.partition] = replace(
            mark,
            position=flush.position,
            based=flush.based,
            as_of=flush.as_of,
            next_offset=mark.next_offset if flush.next_offset is None else flush.next_offset,
        )
        behind = {c: row for c, row in self.progress.items() if row.floor is None or row.floor <= flush.position.lsn}
        flush, raised = with_raised(flush, {c: behind[c].written or 0 for c in flush.unmet if c in behind})
        held, overwritten, writes = self._due(flush)
        if flush.check:
            found: dict[int, Stored] = {
                c: (*row.counts, row.removed) for c, row in self.progress.items() if c in flush.check
            }
            flush = with_store_faults(flush, found)
        for campaign in flush.deleted:
            if campaign in behind:
                del self.progress[campaign]
            for key in [key for key in self.history if key[0] == campaign]:
                del self.history[key]
        for row in flush.rows:
            here = self.progress.setdefault(row.campaign, Progress(flush.partition))
            here.partition, here.counts, here.removed, here.sent = flush.partition, row.counts, row.removed, row.sent
            here.matched += max(0, here.unmatched - row.unmatched)
            here.unmatched = row.unmatched
            here.verified = None if row.verified_at is None else (row.verified_at, row.verified_lsn or 0)
        for key, n in flush.history:
            self.history[key] += n
        for campaign, sent in writes.items():
            if campaign in self.progress:
                self.progress[campaign].written = sent
        for campaign in flush.due:
            here_now = self.progress.get(campaign)
            counter = self.oracle.known.get(campaign, {}).get("sent")
            if here_now is not None and here_now.written is None and counter == here_now.sent:
                here_now.written = counter
        for answer in flush.answers:
            self.answers.setdefault((answer.run_id, flush.partition), answer.conclusive)
        self.verdicts += flush.verdicts
        self._shows(writes, flush.position.lsn)
        self._ours(writes)
        self.fresh |= raised.keys()
        return FlushResult(frozenset(held), tuple(overwritten), flush.verdicts, raised)

    def _due(self, flush: Flush) -> tuple[set[int], list[Overwritten], dict[int, int]]:
        held: set[int] = set()
        overwritten: list[Overwritten] = []
        writes: dict[int, int] = {}
        for campaign, sent in flush.due.items():
            row = self.progress.get(campaign)
            if row is not None and row.floor is not None and row.floor > flush.position.lsn:
                continue
            counter = self.oracle.known.get(campaign)
            if counter is None or counter["sent"] == sent:
                continue
            if campaign in self.locked:
                held.add(campaign)
                continue
            writes[campaign] = sent
            written = None if row is None or campaign in flush.deleted else row.written
            if written is not None and counter["sent"] != written:
                overwritten.append(Overwritten(campaign, counter["sent"], sent))
        return held, overwritten, writes

    def _shows(self, writes: Mapping[int, int], lsn: int) -> None:
        """A number that is shown is never older than the one it replaces."""
        for campaign in writes:
            if lsn < self.shown_at.get(campaign, 0):
                raise Found(f"campaign {campaign} shows its number of {lsn} after that of {self.shown_at[campaign]}")
            self.shown_at[campaign] = lsn

    # ---- recounts -----------------------------------------------------------------------------------------------

    def count(self) -> tuple[str, dict[int, tuple[int, ...]], int]:
        """Snapshot, counts of all campaigns, and where the WAL ended."""
        xmin, xmax, xip = self.snapshot()
        counts = self.oracle.counts()
        found = {c: (*counts.get(c, NONE), row["sent"]) for c, row in self.oracle.known.items()}
        return f"{xmin}:{xmax}:{','.join(map(str, sorted(xip)))}", found, self.lsn

    def insert_run(
        self, counted: tuple[str, dict[int, tuple[int, ...]], int], epoch: int, rebase: object = None
    ) -> int:
        snapshot, counts, lsn = counted
        run = len(self.runs) + 1
        self.runs[run] = Run(lsn, counts, epoch, rebase)
        self._write([wal.recount(run, snapshot, counts, lsn=lsn, epoch=epoch, rebase=rebase)], self.draw())
        return run

    def raise_counters(self, run_id: int, partition: int, partition_of: Callable[[int], int]) -> None:
        """As ``connectors/postgres/store/raise_counters.py`` does it."""
        run, mark = self.runs[run_id], self.watermarks.get(partition)
        if mark is None or mark.epoch != run.epoch or (mark.based and mark.position.lsn >= run.lsn):
            return
        if any(p == partition and number >= run_id and good for (number, p), good in self.answers.items()):
            return
        writes = {}
        for campaign, counted in run.counts.items():
            counter, row = self.oracle.known.get(campaign), self.progress.get(campaign)
            if partition_of(campaign) != partition or counter is None or campaign in self.locked:
                continue
            if row is None and not any(counted[:5]):
                continue
            if row is not None and row.floor is not None and row.floor > run.lsn:
                continue
            sent = counted[SENT] + (row.removed if row is not None and self.policy == "keep" else 0)
            if counter["sent"] < sent if self.policy == "keep" else counter["sent"] != sent:
                writes[campaign] = sent
                here = self.progress.setdefault(campaign, Progress(partition))
                here.floor, here.written = run.lsn, sent
        self._shows(writes, run.lsn)
        self._ours(writes)
