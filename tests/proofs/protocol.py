"""The whole protocol in seeded worlds: readers, zombies, partitions, flushes, recounts, and everything that goes wrong.

Every decision is taken by the code that ships (fold, alignment, batches, partition, epochs, pace, and the worker's
``AssignedPartition``); only the servers are small ones (``server``, and topics that are lists). A world plays a few
hundred steps in a random order: crashes of anything, a slot lost or advanced, a restore from an older backup, another
number of partitions, records lost on the way or by retention, answers to a commit that never arrive, locked campaigns,
overwritten counters, raises ahead of the stream.

    at every flush       the counts are those of the queue at that point of the WAL, and the history adds up to them
    at every write       no campaign without rows, never an older number over a newer one
    at every verdict     no drift but the counters that were overwritten
    at rest              every partition is based, every counter right, and nothing more is written but the tick

:exc:`Found` says which was broken. A world without losses also keeps ``removed`` exact.
"""

from __future__ import annotations

import copy
from collections import deque
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from connectors.kafka.codec import Decoder, encode, end_of
from stream.core.align import Alignment, Snapshot
from stream.core.batch import Batcher
from stream.core.epoch import KafkaEnd, next_epoch, reason_for_new_epoch
from stream.core.errors import FencedError
from stream.core.flushing import Flush
from stream.core.fold import FOLD_VERSION, Fold
from stream.core.pace import TICK, FlushPace, Waiting
from stream.core.partition import Outcome, Partition
from stream.core.partitioner import partition_of
from stream.core.position import Position
from stream.core.status import SENT
from stream.core.verdict import NEW_EPOCH
from stream.kafka.assignment import AssignedPartition, Record, RecordOutcome
from tests.core import wal
from tests.core.oracle import Act
from tests.proofs.found import Found
from tests.proofs.server import Progress, Run, Server, Slot

_RELATIONS: Final = wal.relations()
_INTERVAL: Final = 0.1


@dataclass(slots=True)
class Figures:
    """What happened in a world."""

    steps: int = 0
    flushes: int = 0
    fenced: int = 0
    gaps: int = 0
    epochs: int = 0
    recounts: int = 0
    raised: int = 0
    baselines: int = 0
    overwritten: int = 0


class Wal:
    """The reading side of a replication connection: slot, fold and alignment, as in ``pipeline/wal_reader.py``."""

    def __init__(self, world: World) -> None:
        self.world, self.server = world, world.server
        slot = self.server.slot
        assert slot is not None
        slot.holder = self
        self.begin = self.received = slot.confirmed
        # Here a transaction writes its record and becomes visible in one step, so none can be committing.
        self.alignment = Alignment(self._snapshot(), (), world.memory)
        self.fold = Fold()
        self.fold.block(_RELATIONS)
        self.number = sum(1 for record in self.server.log if record.lsn < self.begin)
        self.identity = self.server.identity()
        self._half = b""

    def _snapshot(self) -> Snapshot:
        return Snapshot(*self.server.snapshot())

    @property
    def alive(self) -> bool:
        slot = self.server.slot
        return self.world.server is self.server and slot is not None and slot.holder is self

    @property
    def behind(self) -> bool:
        return self.received < self.server.lsn

    def read(self) -> tuple[list[Any], int, int]:
        """Some transactions, the end up to which all is contained, and as of when. A transaction may come in halves."""
        rng, server = self.world.rng, self.server
        block, self._half = self._half, b""
        for record in server.log[self.number : self.number + rng.randrange(5)]:
            block += record.data
            self.number += 1
        if block and rng.random() < 0.1:
            cut = block.rfind(b"C")
            if len(block) - cut == 26:
                block, self._half = block[:cut], block[cut:]
        found = self.alignment.follow(self.fold.block(block))
        self.received = max(self.received, self.fold.end)
        as_of = self.fold.time if found else 0
        if self.number == len(server.log) and not self.fold.open:
            self.received, as_of = max(self.received, server.lsn), server.now
        return found, self.received, as_of

    def confirm(self, lsn: int) -> None:
        slot = self.server.slot
        if self.alive and slot is not None:
            slot.confirmed = max(slot.confirmed, lsn)


class Embedded:
    """One life of the embedded shape, as in ``stream/embedded/session.py``. ``zombie``: it can only flush."""

    def __init__(self, world: World) -> None:
        self.world, self.server = world, world.server
        self.wal = Wal(world)
        known = self.server.marks()
        because = None
        if reason_for_new_epoch(known, self.wal.identity, 1, FOLD_VERSION) is not None:
            world.new_epoch(known, (), 1, self.wal.begin)
            because = NEW_EPOCH if known else None
        self.partition = Partition(0, world.policy)  # type: ignore[arg-type]
        loaded = self.server.load(0, lambda _: 0)
        self.partition.load(loaded, because)
        self.written = loaded.position
        self.batcher = Batcher(self.partition.epoch, Position(self.wal.begin), most=world.most)
        self.pace = FlushPace(_INTERVAL)
        self.zombie = False

    @property
    def alive(self) -> bool:
        return self.world.server is self.server and (self.zombie or self.wal.alive)

    def read(self) -> None:
        if self.zombie:
            return
        transactions, end, as_of = self.wal.read()
        batches = self.batcher.add(transactions)
        if not self.wal.fold.open or transactions:
            batches += self.batcher.cut(None if self.wal.fold.open else Position(end), as_of)
        for batch in batches:
            outcome = self.partition.apply(batch)
            self.world.figures.gaps += outcome is Outcome.GAP
            if outcome is Outcome.NEW_EPOCH:
                raise FencedError("epoch")

    def waiting(self) -> Waiting:
        return Waiting(self.partition.dirty, self.partition.position != self.written, self.partition.due_at())

    def flush(self) -> None:
        now = self.world.clock
        if not self.pace.due(now, self.waiting()):
            return
        self.pace = self.pace.flushed(now)
        flush = self.partition.take(now)
        result = self.world.write(flush, self.partition)
        self.partition.flushed(flush, result, now)
        self.written = flush.position
        self.wal.confirm(flush.position.lsn)

    def step(self) -> None:
        self.read() if self.world.rng.random() < 0.6 else self.flush()

    @property
    def idle(self) -> bool:
        waiting = self.waiting()
        return not (self.wal.behind or waiting.dirty or waiting.due_at is not None)


@dataclass(slots=True)
class Lane:
    """Records of one reader on their way to a partition of the topic, and the end that is durable there."""

    durable: Position
    flying: deque[tuple[bytes, Position]] = field(default_factory=deque)


class Reader:
    """One life of the reader of the Kafka shape, as ``stream/kafka/reader.py`` plays it."""

    def __init__(self, world: World) -> None:
        self.world, self.server = world, world.server
        self.wal = Wal(world)
        known, ends = self.server.marks(), world.last_ends()
        n = world.partitions
        if reason_for_new_epoch(known, self.wal.identity, n, FOLD_VERSION, ends) is not None:
            world.new_epoch(known, ends, n, self.wal.begin)
        begin = Position(self.wal.begin)
        epoch = self.server.marks()[0].epoch
        self.lanes = [Lane(begin) for _ in range(n)]
        self.batcher = Batcher(epoch, begin, n, world.partition_of, world.most)
        self.end, self.as_of, self.ticked = begin, 0, world.clock

    @property
    def alive(self) -> bool:
        return self.wal.alive

    def read(self) -> None:
        transactions, end, as_of = self.wal.read()
        batches = self.batcher.add(transactions)
        if not self.wal.fold.open:
            self.end = Position(end)
        self.as_of = max(self.as_of, as_of)
        if self.world.clock - self.ticked >= TICK:
            batches += self.batcher.cut(self.end, self.as_of)
            self.ticked = self.world.clock
        elif self.world.rng.random() < 0.7:
            batches += self.batcher.cut(self.end, self.as_of, idle=False)
        for batch in batches:
            self.lanes[batch.partition].flying.append((encode(batch), batch.end))

    def deliver(self) -> None:
        """The brokers take some records, and say so."""
        for number, lane in enumerate(self.lanes):
            while lane.flying and self.world.rng.random() < 0.7:
                data, end = lane.flying.popleft()
                self.world.topic(number).append(data)
                lane.durable = end
        self.wal.confirm(min(lane.durable for lane in self.lanes).lsn)

    def step(self) -> None:
        self.read() if self.world.rng.random() < 0.5 else self.deliver()

    @property
    def idle(self) -> bool:
        return not (self.wal.behind or self.batcher.waiting or any(lane.flying for lane in self.lanes))


class Worker:
    """Some partitions in one worker's hands, as in ``stream/kafka/worker.py``. Several may have the same (zombies)."""

    def __init__(self, world: World, numbers: list[int]) -> None:
        self.world, self.server = world, world.server
        self.states = {n: AssignedPartition(n, "t", world.decoder, world.policy) for n in numbers}  # type: ignore[arg-type]
        self.at: dict[int, int] = {}
        self.stale = False

    @property
    def alive(self) -> bool:
        return not self.stale

    def load(self, state: AssignedPartition) -> None:
        try:
            loaded = self.world.server.load(state.number, self.world.partition_of)
        except LookupError:
            return
        state.load(loaded, self.server.lsn)
        expected = state.next_offset
        log = self.world.topic(state.number)
        self.at[state.number] = log.first if expected is None else max(expected, log.first)

    def take(self, state: AssignedPartition) -> None:
        """The next record of a partition."""
        log, number = self.world.topic(state.number), state.number
        offset = self.at[number] = max(self.at[number], log.first)
        if self.world.rng.random() < 0.02:
            offset += 1  # lost on the way here (docs/design/faust.md)
        data = log.get(offset)
        if data is None:
            return
        self.at[number] = offset + 1
        record = Record(offset, data)
        took = state.take(record)
        if took is RecordOutcome.RELOAD:
            self.load(state)
            self.at[number] = offset + 1
            if not state.loaded:
                return
            took = state.take(record)
            if took is RecordOutcome.RELOAD:
                state.ignore(record)
        if took is RecordOutcome.SKIPPED:
            assert state.next_offset is not None
            if log.first > state.next_offset:
                took = state.take(record, first_kept=offset)
            else:
                self.at[number] = state.next_offset
        self.world.figures.gaps += took is RecordOutcome.GAP

    def flush(self, state: AssignedPartition) -> None:
        now = self.world.clock
        if not state.due(now):
            return
        flush = state.flush(now)
        try:
            result = self.world.write(flush, state.partition)
        except (FencedError, UnknownError):
            state.loaded = False
            return
        list(state.flushed(flush, result, now))

    def step(self) -> None:
        rng = self.world.rng
        state = rng.choice(list(self.states.values()))
        if not state.loaded:
            self.load(state)
        elif rng.random() < 0.65:
            self.take(state)
        else:
            self.flush(state)

    @property
    def idle(self) -> bool:
        for number, state in self.states.items():
            waiting = state.waiting()
            if not state.loaded or waiting.dirty or waiting.due_at is not None:
                return False
            if self.at[number] < self.world.topic(number).end:
                return False
        return True


class UnknownError(Exception):
    """The answer to a commit never arrived."""


class Topic:
    """A partition of the changes topic."""

    def __init__(self) -> None:
        self.first = 0
        self.records: list[bytes] = []

    @property
    def end(self) -> int:
        return self.first + len(self.records)

    def append(self, data: bytes) -> None:
        self.records.append(data)

    def get(self, offset: int) -> bytes | None:
        return self.records[offset - self.first] if self.first <= offset < self.end else None

    def forget(self, n: int) -> None:
        """Retention takes the oldest records."""
        n = min(n, len(self.records))
        del self.records[:n]
        self.first += n


class World:
    """One world: ``play`` runs it."""

    def __init__(self, seed: int) -> None:
        rng = self.rng = Random(seed)
        self.figures = Figures()
        self.decoder = Decoder()
        self.policy = rng.choice(("keep", "keep", "follow"))
        self.kafka = rng.random() < 0.6
        self.partitions = rng.choice((1, 2, 3)) if self.kafka else 1
        self.most = rng.choice((2, 5000, 5000))
        self.memory = rng.choice((6, 250_000, 250_000))
        #: how much goes wrong: nothing, what must lose nothing, or anything
        self.trouble = rng.choice(("none", "crashes", "crashes", "anything", "anything"))
        self.clock = 1000.0
        self.server = Server(self.policy)
        self.topics: dict[int, Topic] = {}
        self.reader: Reader | Embedded | None = None
        self.zombies: list[Embedded | Worker] = []
        self.leftover: list[tuple[int, deque[tuple[bytes, Position]]]] = []
        self.workers: list[Worker] = []
        self.backups: list[Server] = []
        self.counted: Any = None
        self.snapshots: list[Snapshot] = []
        #: whether something may have gone by unseen
        self.lossy = False
        for _ in range(rng.randrange(4)):
            self.mail()
        self.server.slot = Slot(self.server.lsn)
        if rng.random() < 0.3:
            for campaign in list(self.server.oracle.known):
                if campaign in self.server.oracle.met and rng.random() < 0.5:
                    self.server.overwrite(campaign, rng.randrange(9))
                    self.lossy = True  # what it shows above the live count becomes ``removed``

    # ---- what others need ---------------------------------------------------------------------------------------

    def partition_of(self, campaign: int) -> int:
        return partition_of(campaign, self.partitions)

    def topic(self, number: int) -> Topic:
        return self.topics.setdefault(number, Topic())

    def last_ends(self) -> list[KafkaEnd]:
        ends = []
        for number in range(self.partitions):
            records = self.topic(number).records
            end = end_of(records[-1]) if records else None
            if end is not None:
                ends.append(end)
        return ends

    def new_epoch(self, known: Any, ends: Any, partitions: int, begin: int) -> None:
        self.figures.epochs += 1
        epoch = next_epoch(known, int(self.clock), ends)
        self.server.begin_epoch(known, epoch, partitions, self.partition_of if partitions > 1 else lambda _: 0, begin)

    def write(self, flush: Flush, partition: Partition) -> Any:
        """A flush on its way to the server, held against the truth where it arrives."""
        server, rng = self.server, self.rng
        fate = rng.random()
        if self.trouble != "none" and fate < 0.03:
            raise UnknownError  # it did not arrive
        try:
            result = server.flush(flush)
        except FencedError:
            self.figures.fenced += 1
            raise
        self.figures.flushes += 1
        self.figures.overwritten += len(result.overwritten)
        self._check_flush(flush, result.verdicts, partition)
        if self.trouble != "none" and fate > 0.97:
            raise UnknownError  # it did, but its answer does not
        return result

    # ---- invariants ---------------------------------------------------------------------------------------------

    def _check_flush(self, flush: Flush, verdicts: Any, partition: Partition) -> None:  # noqa: ARG002
        server = self.server
        for verdict in verdicts:
            if verdict.verdict == "baseline":
                self.figures.baselines += 1
                server.fresh.add(verdict.campaign)
            if verdict.verdict == "drift" and verdict.cause != "counter_overwritten":
                raise Found(f"false drift at {flush.position}: {verdict}")
        if any(answer.conclusive and server.runs[answer.run_id].rebase for answer in flush.answers):
            server.fresh |= server.progress.keys()
        if not flush.based:
            return
        for campaign, row in server.progress.items():
            if row.partition != flush.partition:
                continue
            history = sum(n for key, n in server.history.items() if key[0] == campaign)
            if history != row.sent and not flush.position.seq:
                raise Found(f"campaign {campaign}: its history says {history}, progress {row.sent}")
            if row.sent != row.counts[SENT] + row.removed and not flush.position.seq:
                raise Found(f"campaign {campaign}: {row}")
        if flush.position.seq or flush.expected == flush.position:
            return
        self._check_counts(flush)

    def _check_counts(self, flush: Flush) -> None:
        server = self.server
        truth = server.truth_at(flush.position.lsn)
        mine = {c for c in truth.campaigns if self.partition_of(c) == flush.partition}
        for campaign in mine:
            row = server.progress.get(campaign)
            counts = row.counts if row is not None else (0, 0, 0, 0, 0)
            if counts != truth.counts.get(campaign, (0, 0, 0, 0, 0)):
                raise Found(f"at {flush.position} campaign {campaign} has {counts}, not {truth.counts.get(campaign)}")
            if row is not None:
                self._check_removed(campaign, row.removed, truth.removed.get(campaign, 0), row)
                row.matched = 0
        for campaign, row in server.progress.items():
            if row.partition == flush.partition and campaign not in truth.campaigns and any(row.counts):
                raise Found(f"at {flush.position} campaign {campaign} is gone, and has {row.counts}")

    def _check_removed(self, campaign: int, removed: int, truth: int, row: Progress) -> None:
        """Exact from the baseline on; and exactly what was removed, where nothing went by unseen. Where a run had
        raised the counter before, what happened between its count and the baseline went by: ``removed`` is an
        estimate."""
        if self.policy == "follow":
            if removed:
                raise Found(f"campaign {campaign} keeps {removed} removed rows, the policy is to follow")
            return
        if row.floor is not None and not (row.sent or any(row.counts)):
            return  # put there by a raise: the campaign was not met yet
        above = removed - truth
        known = self.server.above.get(campaign)
        if campaign in self.server.fresh or (known is None and (self.lossy or above <= 0 or row.floor is not None)):
            self.server.above[campaign] = above
            self.server.fresh.discard(campaign)
        elif known is not None and known - row.matched <= above <= known:
            self.server.above[campaign] = above
        else:
            raise Found(f"campaign {campaign}: removed went from {known} to {above} above the truth, unasked")

    # ---- the mailer's side --------------------------------------------------------------------------------------

    def acts(self) -> list[Act]:
        rng = self.rng
        kinds = (0, 0, 1, 3, 4, 5, 6, 6, 7, 8, 9, 9, 10, 11, 12, 13)
        rare = (14, 14, 15)
        return [
            (rng.choice(rare) if rng.random() < 0.04 else rng.choice(kinds), rng.randrange(40), rng.randrange(15))
            for _ in range(rng.choice((1, 1, 1, 2, 3, 8)))
        ]

    def mail(self) -> None:
        """The mailer does something; maybe it only begins to."""
        rng, server = self.rng, self.server
        kind = rng.random()
        if kind < 0.1 and len(server.open) < 2:
            from tests.proofs.server import Open

            server.open.append(Open(server.draw(), self.acts()))
        elif kind < 0.25 and server.open:
            tx = server.open.pop(rng.randrange(len(server.open)))
            server.commit(tx.acts, tx.xid)
        elif kind < 0.3:
            server.lsn += 16  # somebody else's
        else:
            server.commit(self.acts())

    def overwrite(self) -> None:
        server, rng = self.server, self.rng
        known = [c for c in server.oracle.known if c in server.oracle.met]
        if known:
            campaign = rng.choice(known)
            if campaign not in server.progress:
                self.lossy = True
            if rng.random() < 0.3:
                server.trigger = (campaign, rng.randrange(12))
            else:
                server.overwrite(campaign, rng.randrange(12))

    def lock(self) -> None:
        server = self.server
        if server.locked and self.rng.random() < 0.5:
            server.locked.clear()
        elif server.oracle.known:
            server.locked.add(self.rng.choice(list(server.oracle.known)))

    # ---- the reconciler -----------------------------------------------------------------------------------------

    def reconcile(self) -> None:
        """Count, or insert what was counted, or raise by an open run; its requests may be lost at any point."""
        rng, server = self.rng, self.server
        if self.counted is not None and self.counted[0] is server:
            _, epoch, counted = self.counted
            self.counted = None
            if rng.random() < 0.9:
                self.figures.recounts += 1
                server.insert_run(counted, epoch, "all" if self.lossy and rng.random() < 0.05 else None)
        elif server.watermarks and (rng.random() < 0.5 or not server.runs):
            self.counted = (server, server.marks()[0].epoch, server.count())
        elif server.runs and server.watermarks:
            before = server.ours
            run = max(server.runs)
            for partition in sorted(server.watermarks):
                server.raise_counters(run, partition, self.partition_of)
            self.figures.raised += server.ours - before

    # ---- trouble ------------------------------------------------------------------------------------------------

    def crash(self, knows: bool = False) -> None:
        """The reader dies, or its connection is cut and it does not know yet (unless it ``knows``)."""
        reader, rng = self.reader, self.rng
        if reader is None:
            return
        if self.server.slot is not None and self.server.slot.holder is reader.wal:
            self.server.slot.holder = None
        if isinstance(reader, Embedded):
            if rng.random() < 0.5 and not knows:
                reader.zombie = True
                self.zombies.append(reader)
        else:
            for number, lane in enumerate(reader.lanes):
                if lane.flying and rng.random() < 0.5:
                    self.leftover.append((number, lane.flying))
        self.reader = None

    def crash_worker(self) -> None:
        if self.workers:
            worker = self.workers.pop(self.rng.randrange(len(self.workers)))
            if self.rng.random() < 0.5:
                self.zombies.append(worker)

    def lose_slot(self) -> None:
        """It is dropped, or invalidated, or somebody moves it on."""
        slot, server = self.server.slot, self.server
        self.lossy = True
        self.crash()
        if slot is not None and self.rng.random() < 0.4:
            slot.confirmed = self.rng.randrange(slot.confirmed, server.lsn + 1)
            server.slot = Slot(slot.confirmed)
        else:
            server.slot = None

    def restore(self) -> None:
        """The database is put back to an older state."""
        if not self.backups:
            return
        kind = self.rng.random()
        server = copy.deepcopy(self.rng.choice(self.backups))
        server.now, server.locked = self.server.now, set()
        self.lossy = True
        self.crash()
        self.counted = None
        if kind < 0.4:
            server.timeline = self.server.timeline + 1
            server.slot = None
        elif kind < 0.6:
            server.system, server.slot = f"{self.server.system}'", None
        else:
            self.leftover.clear()  # put back in place: nothing tells what was on its way from what is new
        self.server = server
        for zombie in self.zombies:
            if isinstance(zombie, Embedded):
                zombie.zombie = False  # its connection is gone
        self.open_reader()

    def repartition(self) -> None:
        if self.kafka:
            self.crash()
            self.leftover.clear()
            self.partitions = self.rng.choice((1, 2, 3))
            self.lossy = True  # the slot is ahead of what the workers had written
            for worker in self.workers:
                worker.stale = True
            self.workers.clear()

    def retain(self) -> None:
        if self.topics:
            self.lossy = True
            self.topic(self.rng.choice(list(self.topics))).forget(self.rng.randrange(1, 9))

    # ---- time ---------------------------------------------------------------------------------------------------

    def open_reader(self) -> None:
        server = self.server
        if server.slot is None:
            self.lossy = True
            server.slot = Slot(server.lsn)
        if server.slot.holder is not None:
            return
        try:
            self.reader = Reader(self) if self.kafka else Embedded(self)
        except FencedError:
            server.slot.holder = None

    def open_worker(self) -> None:
        if self.kafka and not self.workers:
            numbers = list(range(self.partitions))
            self.rng.shuffle(numbers)
            cut = self.rng.randrange(len(numbers))
            self.workers = [Worker(self, group) for group in (numbers[:cut], numbers[cut:]) if group]
        elif self.kafka:
            have = {n for worker in self.workers for n in worker.states}
            missing = [n for n in range(self.partitions) if n not in have]
            if missing:
                self.workers.append(Worker(self, missing))

    def turn(self, actor: Any) -> None:
        """One step of an actor; what ends its life ends it."""
        try:
            actor.step()
        except (FencedError, UnknownError):
            if actor is self.reader:
                self.crash(knows=True)

    def run_something(self) -> None:
        rng = self.rng
        if self.reader is not None and not self.reader.alive:
            self.crash()
        if self.reader is None:
            if rng.random() < 0.3:
                self.open_reader()
        elif rng.random() < 0.5:
            self.turn(self.reader)
        if self.kafka:
            self.open_worker()
            if self.workers and rng.random() < 0.7:
                self.turn(rng.choice(self.workers))
        if self.zombies and rng.random() < 0.15:
            self.haunt()
        if self.leftover and rng.random() < 0.3:
            number, flying = self.leftover[0]
            self.topic(number).append(flying.popleft()[0])
            if not flying:
                self.leftover.pop(0)

    def haunt(self) -> None:
        """A zombie goes on as if nothing had happened."""
        zombie = self.rng.choice(self.zombies)
        gone = isinstance(zombie, Embedded) and not zombie.alive
        if gone or (isinstance(zombie, Worker) and not zombie.alive) or self.rng.random() < 0.2:
            self.zombies.remove(zombie)
            return
        try:
            zombie.flush() if isinstance(zombie, Embedded) else zombie.step()
        except (FencedError, UnknownError):
            self.zombies.remove(zombie)

    def step(self) -> None:
        rng = self.rng
        self.figures.steps += 1
        self.clock += rng.choice((0.01, 0.05, 0.2, 0.7))
        self.server.now += 7_000_000 if rng.random() < 0.3 else 40_000
        kind = rng.random()
        if kind < 0.25:
            self.mail()
        elif kind < 0.75:
            self.run_something()
        elif kind < 0.87:
            self.reconcile()
        elif kind < 0.89:
            self.remember()
        elif self.trouble != "none":
            self.trouble_step(rng.random())

    def remember(self) -> None:
        self.snapshots.append(Snapshot(*self.server.snapshot()))
        if self.reader is not None and self.rng.random() < 0.5:
            self.reader.wal.alignment.forget(self.rng.choice(self.snapshots))

    def trouble_step(self, kind: float) -> None:
        if kind < 0.15:
            self.crash()
        elif kind < 0.25:
            self.crash_worker()
        elif kind < 0.35:
            self.lock()
        elif kind < 0.42:
            self.overwrite()
        elif self.trouble != "anything":
            return
        elif kind < 0.48:
            self.lose_slot()
        elif kind < 0.56:
            if len(self.backups) < 3:
                self.backups.append(self._backup())
        elif kind < 0.59:
            self.restore()
        elif kind < 0.62:
            self.repartition()
        elif kind < 0.66:
            self.retain()

    def _backup(self) -> Server:
        holder = self.server.slot.holder if self.server.slot is not None else None
        if self.server.slot is not None:
            self.server.slot.holder = None
        backup = copy.deepcopy(self.server)
        if self.server.slot is not None:
            self.server.slot.holder = holder
        return backup

    def play(self, steps: int = 250) -> Figures:
        for _ in range(steps):
            self.step()
        self.come_to_rest()
        return self.figures

    # ---- at rest ------------------------------------------------------------------------------------------------

    def come_to_rest(self) -> None:
        """Nothing goes wrong any more. All is right after a while, and then nothing is written but the tick."""
        self.trouble, self.zombies, self.leftover = "none", [], []
        server = self.server
        for tx in server.open:
            server.commit(tx.acts, tx.xid)
        server.open.clear()
        server.locked.clear()
        for _ in range(400):
            if self.settled():
                break
            self._quiet_round()
        else:
            raise Found(f"it does not come to rest: {self.why()}")
        self._check_rest()
        self._check_silence()

    def _quiet_round(self) -> None:
        self.clock += 0.12
        self.server.now += 120_000
        if self.reader is None or not self.reader.alive:
            self.crash()
            self.open_reader()
        for _ in range(3):
            for actor in (self.reader, *self.workers):
                if actor is not None:
                    self.turn(actor)
        if self.kafka:
            self.open_worker()
        if self.recount_due():
            self.reconcile()

    def recount_due(self) -> bool:
        """As long as any watermark is not based; and the last run must have been conclusive."""
        server = self.server
        if self.counted is not None:
            return True
        if not server.watermarks or not server.runs:
            return bool(server.watermarks)
        run = max(server.runs)
        if server.runs[run].epoch != server.marks()[0].epoch:
            return True
        if any(not mark.based for mark in server.marks()):
            return all((run, n) in server.answers for n in server.watermarks) or self.rng.random() < 0.05
        return any(not server.answers.get((run, n), True) for n in server.watermarks)

    def settled(self) -> bool:
        server = self.server
        marks = server.marks()
        return (
            len(marks) == self.partitions
            and all(mark.based for mark in marks)
            and not self.recount_due()
            and all((max(server.runs), n) in server.answers for n in server.watermarks)
            and self.reader is not None
            and self.reader.idle
            and all(worker.idle for worker in self.workers)
            and all(mark.position.lsn >= self.last_of_others() for mark in marks)
        )

    def last_of_others(self) -> int:
        """Where the last transaction ended that moved something."""
        return max((truth.end for truth in self.server.truths[-1:]), default=0) if not self.server.ours else 0

    def why(self) -> str:
        server = self.server
        run: Run | None = server.runs.get(max(server.runs)) if server.runs else None
        return f"{server.marks()} {run} {server.answers} {self.reader} {[w.idle for w in self.workers]}"

    def _check_rest(self) -> None:
        server = self.server
        truth = server.oracle.counts()
        for campaign, counter in server.oracle.known.items():
            row = server.progress.get(campaign)
            counts = row.counts if row is not None else (0, 0, 0, 0, 0)
            if counts != truth.get(campaign, (0, 0, 0, 0, 0)):
                raise Found(f"at rest campaign {campaign} has {counts}, the queue {truth.get(campaign)}")
            if row is not None and counter["sent"] != row.sent:
                raise Found(f"at rest campaign {campaign} shows {counter['sent']}, not {row.sent}")
            if row is not None and self.policy == "follow" and row.sent != row.counts[SENT]:
                raise Found(f"at rest campaign {campaign} shows {row.sent}, the policy is to follow")
        gone = server.progress.keys() - server.oracle.known.keys()
        if any(server.progress[campaign].sent for campaign in gone):  # a raise may have left an empty row
            raise Found(f"at rest progress has rows of campaigns {gone}, which are gone")

    def _check_silence(self) -> None:
        """Our own flush, coming back, asks for no other: at rest there is one a tick and partition."""
        server, before, began = self.server, self.server.ours, self.clock
        for _ in range(100):
            self._quiet_round()
        allowed = (int((self.clock - began) / TICK) + 2) * self.partitions
        if server.ours - before > allowed:
            raise Found(f"{server.ours - before} flushes at rest, {allowed} are enough")
        self._check_rest()
