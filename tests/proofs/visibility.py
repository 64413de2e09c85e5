"""PostgreSQL's visibility in small: seeded worlds in which recounts meet every interleaving that alignment must bear.

What is modelled, because it matters: a transaction draws its id, changes rows under row locks, writes its commit record
into the WAL, and only later becomes visible and lets its locks go. A snapshot has xmin, xmax (one above the newest id
that has *ended*) and what runs between. Ids are 64 bits wide in snapshots and 32 in the WAL. Two-phase commits and long
transactions are transactions that stay for long; a crash of the server ends all others. TRUNCATE excludes everybody; a
deleted campaign excludes whoever touches it. The reader may be behind, begin again at an earlier place, find its slot
made anew at the end of the WAL, forget, and run out of memory, at any time.

Counts are additive and rows are locked until their transaction is visible, so what a snapshot counts is the sum of what
it sees: the model needs no row versions, and a world costs less than a millisecond.

Two things are held against the truth of the WAL: what every recount should show, and the verdicts of a partition
behind it. ``rules`` takes rules out, one at a time: each must then be seen to be needed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Final

from stream.core.align import Alignment, Snapshot
from stream.core.batch import Batcher
from stream.core.entries import (
    CampaignChanged,
    CampaignDeleted,
    Counted,
    Entry,
    Move,
    Recount,
    RecountRow,
    Transaction,
    Truncate,
)
from stream.core.flushing import FlushResult
from stream.core.partition import Loaded, Partition
from stream.core.position import Position
from stream.core.status import MOVED, NEW, REMOVED
from tests.proofs.found import Found

CYCLE: Final = 1 << 32
Counts = dict[int, list[int]]
#: (campaign, status); None: not there
Place = tuple[int, int] | None

#: rules of the runtime that a world can be played without; those of the core are taken out by ``mutants``
WRITERS_AFTER_SLOT: Final = "the writers of our tables are read after the slot was taken"
WRITERS_BEFORE_H: Final = "the writers of our tables are read before the snapshot H"


@dataclass(slots=True, eq=False)
class Tx:
    xid: int
    entries: list[Entry] = field(default_factory=list)
    #: rows that it holds locked: where they were, where they are
    rows: list[list[Place]] = field(default_factory=list)
    touched: set[int] = field(default_factory=set)
    deletes: int | None = None
    prepared: bool = False
    recount: bool = False
    #: its commit record is in the WAL
    written: bool = False


@dataclass(slots=True)
class Tally:
    """What happened in a world."""

    recounts: int = 0
    conclusive: int = 0
    #: conclusive ones that needed moves which their snapshot could not see
    unseen: int = 0
    restarts: int = 0
    drifts: int = 0
    injected: int = 0


class World:
    """One world. ``play`` runs it; :exc:`Found` where a recount is not exactly right."""

    def __init__(self, seed: int, without: str | None = None, inject: bool = False) -> None:
        rng = self.rng = Random(seed)
        self.without = without
        self.inject = inject
        self.tally = Tally()
        base = rng.choice((3, 700, CYCLE - 12, CYCLE - 3, 3 * CYCLE - 8, 2**40 + 5))
        self.next = base + rng.randrange(10)
        self.ended = self.next - 1
        self.running: dict[int, Tx] = {}
        self.open: list[Tx] = []
        self.exclusive: Tx | None = None
        self.counting: Tx | None = None
        self.waiting: Snapshot | None = None
        self.wal: list[Transaction] = []
        #: by place in the WAL: what every campaign should show there (recounts only)
        self.truth: dict[int, Counts] = {}
        campaigns = range(1, 2 + rng.randrange(3))
        self.free: Counts = {c: [rng.randrange(4) for _ in range(5)] for c in campaigns}
        self.visible: Counts = {c: list(counts) for c, counts in self.free.items()}
        self.delivered: Counts = {c: list(counts) for c, counts in self.free.items()}
        self.truncated = 0
        self.last_campaign = len(campaigns)
        self.snapshots: list[Snapshot] = []
        #: the recount of some worlds takes its snapshot before the lock: exact all the same, for TRUNCATE is replayed
        self.lock_later = rng.random() < 0.25
        self.restless = rng.choice((0.0, 0.005, 0.03))
        self.runs = 0
        self.most = rng.choice((4, 12, 10_000, 10_000))
        #: transactions open at one time; TRUNCATE finds its moment only where they are few
        self.crowd = rng.choice((2, 4, 7))
        self.read = 0
        self.begin = 0
        self.fault: dict[int, list[int]] = {}
        self.expected_drifts = 0
        self.partition = Partition()
        self.partition.load(Loaded(1, Position(0), False, 0, (), {}))
        self._take_slot()

    # ---- transactions -------------------------------------------------------------------------------------------

    def draw(self) -> int:
        xid, self.next = self.next, self.next + 1
        return xid

    def snapshot(self) -> Snapshot:
        xmax = self.ended + 1
        xip = frozenset(xid for xid in self.running if xid < xmax)
        xmin = min(self.running, default=xmax)
        return Snapshot(min(xmin, xmax), xmax, xip)

    def start(self) -> Tx:
        tx = Tx(self.draw())
        self.running[tx.xid] = tx
        self.open.append(tx)
        return tx

    def act(self, tx: Tx) -> None:
        """A change of a row, under its lock."""
        rng = self.rng
        if tx.prepared or tx.written or tx.recount or self.exclusive not in (None, tx):
            return
        kind = rng.random()
        if kind < 0.04:
            self._truncate(tx)
        elif kind < 0.09:
            self._delete_campaign(tx)
        elif kind < 0.13:
            self._create_campaign(tx)
        else:
            self._change_row(tx, kind)

    def _usable(self, tx: Tx, campaign: int) -> bool:  # noqa: ARG002
        return all(other.deletes != campaign for other in self.open)

    def _change_row(self, tx: Tx, kind: float) -> None:
        rng = self.rng
        campaign = rng.choice(list(self.free)) if self.free else 0
        if not campaign or not self._usable(tx, campaign):
            return
        status, counts = rng.randrange(5), self.free[campaign]
        if kind < 0.35:
            tx.rows.append([None, (campaign, status)])
            self._moved(tx, None, (campaign, status))
            return
        mine = [row for row in tx.rows if row[1] is not None and row[1][0] == campaign]
        if mine and rng.random() < 0.4:
            row = rng.choice(mine)
        else:
            old = rng.randrange(5)
            if not counts[old]:
                return
            counts[old] -= 1
            row = [(campaign, old), (campaign, old)]
            tx.rows.append(row)
        new: Place = (campaign, status)
        if kind > 0.93:
            new = None
        elif kind > 0.88:
            other = rng.choice(list(self.free))
            if self._usable(tx, other):
                new = (other, status)
        self._moved(tx, row[1], new)
        row[1] = new

    def _moved(self, tx: Tx, old: Place, new: Place) -> None:
        if old is not None:
            tx.touched.add(old[0])
        if new is not None:
            tx.touched.add(new[0])
        if old == new:
            return
        if old is None:
            assert new is not None
            tx.entries.append(Move(new[0], NEW, new[1], 1))
        elif new is None:
            tx.entries.append(Move(old[0], old[1], REMOVED, 1))
        elif old[0] == new[0]:
            tx.entries.append(Move(old[0], old[1], new[1], 1))
        else:
            tx.entries += [Move(old[0], old[1], MOVED, 1), Move(new[0], NEW, new[1], 1)]

    def _truncate(self, tx: Tx) -> None:
        if tx.rows or tx.touched or any(other.rows or other.touched for other in self.open if other is not tx):
            return
        if self.counting is not None or self.exclusive is not None:
            return
        self.exclusive = tx
        tx.entries.append(Truncate())

    def _clear_queue(self, tx: Tx) -> None:
        self._truncate(tx)
        if self.exclusive is tx and self.rng.random() < 0.5:
            self.write_commit(tx)
            self.end(tx)

    def _delete_campaign(self, tx: Tx) -> None:
        campaign = self.rng.choice(list(self.free)) if len(self.free) > 1 else 0
        if not campaign or tx.deletes is not None or any(campaign in other.touched for other in self.open):
            return
        if not self._usable(tx, campaign) or self.exclusive is tx:
            return
        tx.deletes = campaign
        tx.touched.add(campaign)
        tx.entries.insert(0, CampaignDeleted(campaign))

    def _create_campaign(self, tx: Tx) -> None:
        if self.last_campaign > 8:
            return
        self.last_campaign += 1
        campaign = self.last_campaign
        tx.entries.append(CampaignChanged(campaign, "A", "draft", 0, 0))
        for _ in range(self.rng.randrange(3)):
            tx.rows.append([None, (campaign, 0)])
            tx.entries.append(Move(campaign, NEW, 0, 1))

    # ---- ends of transactions -----------------------------------------------------------------------------------

    def write_commit(self, tx: Tx) -> None:
        """The commit record is in the WAL: it may be delivered. It is not visible yet."""
        tx.written = True
        if tx.recount:
            self.truth[len(self.wal)] = {c: list(counts) for c, counts in self.delivered.items()}
        _apply(self.delivered, tx.entries)
        lsn = 100 * (len(self.wal) + 1)
        self.wal.append(Transaction(lsn, lsn + 50, len(self.wal), tx.xid % CYCLE, tuple(tx.entries)))

    def end(self, tx: Tx) -> None:
        """It becomes visible, or is rolled back, and lets its locks go."""
        del self.running[tx.xid]
        self.open.remove(tx)
        self.ended = max(self.ended, tx.xid)
        if self.exclusive is tx:
            self.exclusive = None
        if self.counting is tx:
            self.counting = None
        if tx.written:
            _apply(self.visible, tx.entries)
            if tx.deletes is not None:
                self.free.pop(tx.deletes, None)
            for entry in tx.entries:
                if isinstance(entry, Truncate):
                    self.truncated += 1
                    for counts in self.free.values():
                        counts[:] = [0] * 5
                elif isinstance(entry, CampaignChanged):
                    self.free.setdefault(entry.campaign, [0] * 5)
        for before, after in tx.rows:
            place = after if tx.written else before
            if place is not None and place[0] in self.free:
                self.free[place[0]][place[1]] += 1

    def crash(self) -> None:
        """The server crashes: what is not written is lost, what is written (or prepared) is not."""
        for tx in [tx for tx in self.open if not tx.prepared]:
            self.end(tx)
        self.waiting = None
        self.restart()

    # ---- recounts -----------------------------------------------------------------------------------------------

    def recount(self) -> None:
        """The next step of a recount: lock, snapshot and count; then the INSERT. Its commit is that of others."""
        if self.counting is None and self.waiting is None:
            if self.lock_later:
                self.waiting = self.snapshot()
                self._counted_at = ({c: list(n) for c, n in self.visible.items()}, self.truncated)
            elif self.exclusive is None:
                self._count(self.snapshot(), self.visible)
        elif self.waiting is not None and self.exclusive is None:
            counts, truncated = self._counted_at
            if truncated != self.truncated:  # TRUNCATE is not MVCC-safe
                counts = {c: [0] * 5 for c in counts}
            self._count(self.waiting, counts)
            self.waiting = None

    def _count(self, snapshot: Snapshot, counts: Counts) -> None:
        self.runs += 1
        tx = self.counting = self.start()
        tx.recount = True
        counted = {c: Counted((n[0], n[1], n[2], n[3], n[4]), 0) for c, n in counts.items()}
        text = f"{snapshot.xmin}:{snapshot.xmax}:{','.join(map(str, sorted(snapshot.xip)))}"
        tx.entries.append(RecountRow(self.runs, "manual", "", 0, 0, text, counted, None, 1))

    # ---- the reader ---------------------------------------------------------------------------------------------

    def restart(self) -> None:
        """Another reader begins: where the last one was or before, or where a slot that was made anew begins."""
        self.tally.restarts += 1
        early = self._committing() if self.without == WRITERS_AFTER_SLOT else None
        if early is not None:
            self._some_steps()
        lost = self.rng.random() < 0.3
        self.begin = len(self.wal) if lost else self.rng.randrange(max(0, self.read - 6), self.read + 1)
        self._take_slot(early)

    def _committing(self) -> list[int]:
        """Writers of our tables that are not seen to be idle: those whose commit record is written, and some others.
        Another database's, and those that have written nothing here, hold no lock of our tables."""
        return [tx.xid % CYCLE for tx in self._writers() if tx.written or self.rng.random() < 0.5]

    def _writers(self) -> list[Tx]:
        return [tx for tx in self.open if tx.entries and not tx.recount]

    def _settle(self) -> None:
        """Later the reader looks again: those that are idle are not committing."""
        idle = [tx.xid % CYCLE for tx in self._writers() if not tx.written]
        self._some_steps()
        self.alignment.settle(idle, self.snapshot())

    def _take_slot(self, early: list[int] | None = None) -> None:
        self._some_steps()
        seen = self.snapshot() if self.without == WRITERS_BEFORE_H else None
        if seen is not None:
            self._some_steps()
        unsettled = self._committing() if early is None else early
        self._some_steps()
        self.alignment = Alignment(seen or self.snapshot(), unsettled, self.most)
        begin = Position(self.wal[self.begin].lsn if self.begin < len(self.wal) else 100 * (len(self.wal) + 1))
        self.batcher = Batcher(1, begin)
        self.read = self.begin

    def _some_steps(self) -> None:
        for _ in range(self.rng.choice((0, 1, 3, 9))):
            self.step_of_others()

    def step_read(self) -> None:
        chunk = self.wal[self.read : self.read + 1 + self.rng.randrange(5)]
        first, self.read = self.read, self.read + len(chunk)
        found = self.alignment.follow(chunk)
        for number, transaction in enumerate(found, first):
            for entry in transaction.entries:
                if isinstance(entry, Recount):
                    self._check(entry, number)
        self._fold(found)

    def _check(self, recount: Recount, place: int) -> None:
        (row,) = [entry for entry in self.wal[place].entries if isinstance(entry, RecountRow)]
        truth = self.truth[place]
        self.tally.recounts += 1
        if recount.reason is not None:
            return
        self.tally.conclusive += 1
        self.tally.unseen += row.counts != recount.expected
        expected = {c: list(counted.counts) for c, counted in recount.expected.items()}
        if expected != truth:
            raise Found(f"recount {recount.run_id} expects {expected}, the WAL says {truth}")

    # ---- what is behind the reader ------------------------------------------------------------------------------

    def _fold(self, transactions: list[Transaction]) -> None:
        state = self.partition
        if self.inject:
            sound = state.based and self.batcher._parts[0].begin <= state.position
            if not sound:
                self.fault.clear()
            transactions = [self._injected(transaction, sound) for transaction in transactions]
        for batch in [*self.batcher.add(transactions), *self.batcher.cut()]:
            state.apply(batch)
        flush = state.take(0.0)
        state.flushed(flush, FlushResult(), 0.0)
        for verdict in flush.verdicts:
            if verdict.verdict == "drift":
                self.tally.drifts += 1
                if not self.inject:
                    raise Found(f"false drift: {verdict}")

    def _injected(self, transaction: Transaction, sound: bool) -> Transaction:
        """Now and then an entry is lost on the way, or applied twice; what that must come to is kept in ``fault``.
        Not while the state is not based: then there is nothing to compare."""
        rng, out = self.rng, []
        new = sound and self.partition.position <= (transaction.lsn, 0)
        for entry in transaction.entries:
            out.append(entry)
            if not new:
                continue
            if isinstance(entry, Truncate):
                self.fault.clear()
            elif isinstance(entry, CampaignDeleted):
                self.fault.pop(entry.campaign, None)
            elif isinstance(entry, Recount):
                self._expect_drift(entry)
            elif isinstance(entry, Move) and rng.random() < 0.06:
                sign = rng.choice((-1, 1))
                out = out[:-1] if sign < 0 else [*out, entry]
                fault = self.fault.setdefault(entry.campaign, [0] * 8)
                fault[entry.source] -= sign
                fault[entry.target] += sign
                self.tally.injected += 1
        return transaction._replace(entries=tuple(out))

    def _expect_drift(self, recount: Recount) -> None:
        """The recount is about to be applied: the state must differ where faults are, and nowhere else."""
        if recount.reason is not None:
            return
        wrong = {c for c, fault in self.fault.items() if any(fault[:5]) and c in recount.expected}
        self.fault.clear()
        for campaign, counted in recount.expected.items():
            known = self.partition._campaigns.get(campaign)
            shown = known.counts if known is not None else (0, 0, 0, 0, 0)
            if (shown != counted.counts) != (campaign in wrong):
                raise Found(f"run {recount.run_id}, campaign {campaign}: faults in {wrong}, the state shows {shown}")
        self.expected_drifts += len(wrong)

    # ---- time ---------------------------------------------------------------------------------------------------

    def step_of_others(self) -> None:
        """Something happens on the server."""
        rng = self.rng
        kind = rng.random()
        if kind < 0.12:
            if len(self.open) < self.crowd:
                self.start()
        elif kind < 0.15:
            if len(self.open) < self.crowd:
                self._clear_queue(self.start())
        elif kind < 0.55 and self.open:
            self.act(rng.choice(self.open))
        elif kind < 0.70:
            self.recount()
        elif self.open:
            self._towards_its_end(rng.choice(self.open))

    def _towards_its_end(self, tx: Tx) -> None:
        kind = self.rng.random()
        if tx.written:
            self.end(tx)
        elif tx.prepared and kind < 0.7:
            return
        elif kind < 0.1:
            self.end(tx)  # rolled back
        elif kind < 0.2 and not tx.recount:
            tx.prepared = True
        else:
            self.write_commit(tx)
            if kind > 0.75:
                self.end(tx)

    def step(self) -> None:
        kind = self.rng.random()
        if kind < 0.68:
            self.step_of_others()
        elif kind < 0.86:
            self.step_read() if not self.inject else self._read_one_by_one()
        elif kind < 0.91:
            self.snapshots.append(self.snapshot())
        elif kind < 0.92:
            self._settle()
        elif kind < 0.95 and self.snapshots:
            self.alignment.forget(self.rng.choice(self.snapshots))
        elif kind < 0.95 + self.restless:
            self.restart()
        elif kind > 1 - self.restless / 4:
            self.crash()

    def _read_one_by_one(self) -> None:
        for _ in range(1 + self.rng.randrange(4)):
            if self.read < len(self.wal):
                found = self.alignment.follow([self.wal[self.read]])
                for entry in found[0].entries:
                    if isinstance(entry, Recount):
                        self._check(entry, self.read)
                self.read += 1
                self._fold(found)

    def play(self, steps: int = 90) -> Tally:
        for _ in range(steps):
            self.step()
        self._come_to_rest()
        return self.tally

    def _come_to_rest(self) -> None:
        """All transactions end, and a recount is taken: it must be conclusive, and what it finds exact."""
        for tx in list(self.open):
            if not tx.written and not tx.recount:
                self.write_commit(tx)
            self.end(tx)
        self.waiting = None
        conclusive = self.tally.conclusive
        self.recount()
        self.recount()
        assert self.counting is not None
        self.write_commit(self.counting)
        self.end(self.counting)
        while self.read < len(self.wal):
            self._read_one_by_one() if self.inject else self.step_read()
        if self.tally.conclusive == conclusive or not self.partition.based:
            raise Found("a recount at rest is inconclusive")
        state = {row.campaign: list(row.counts) for row in self.partition.snapshot() if any(row.counts)}
        truth = {c: counts for c, counts in self.delivered.items() if any(counts)}
        if self.tally.drifts != self.expected_drifts:
            raise Found(f"{self.expected_drifts} faults were to be found, {self.tally.drifts} were")
        if state != truth:
            raise Found(f"at rest the state is {state}, the queue {truth}")


def _apply(counts: Counts, entries: list[Entry]) -> None:
    for entry in entries:
        if isinstance(entry, Move):
            row = counts[entry.campaign]
            if entry.source < NEW:
                row[entry.source] -= 1
            if entry.target < NEW:
                row[entry.target] += 1
        elif isinstance(entry, CampaignChanged):
            counts.setdefault(entry.campaign, [0] * 5)
        elif isinstance(entry, CampaignDeleted):
            counts.pop(entry.campaign, None)
        elif isinstance(entry, Truncate):
            for row in counts.values():
                row[:] = [0] * 5
