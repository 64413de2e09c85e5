"""One partition in the hands of a worker: its counts, and the records that are applied but not yet written.

No Kafka and no clock in here: a record comes as (offset, bytes, token), and what to do with it comes back as a value.
The rules of DESIGN 3 and FAUST.md:

    a record below the next expected offset was applied already: let go of it (unless it says what nobody knows yet:
    the topic was made anew)
    one that begins beyond the position, at an offset beyond the expected one: records were skipped on the way here,
    and not in the log; **a gap is read again first**. Only a gap at the very next offset is real
    one that is no batch: reported, passed over, and the partition is counted anew
    what is applied stays pending until the flush that contains it has committed, and is applied again after a reload
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from connectors.kafka.codec import Decoder, end_of
from stream.core.errors import PoisonError
from stream.core.flushing import Flush, FlushResult
from stream.core.pace import TICK, Waiting
from stream.core.partition import Loaded, Outcome, Partition, Policy
from stream.core.position import Position
from stream.core.verdict import GAP, NEW_EPOCH


class RecordOutcome(Enum):
    """What became of a record."""

    APPLIED = "applied"
    #: applied before, and written: acknowledge it
    SEEN = "seen"
    #: applied before, and still to be written: drop it
    TWICE = "twice"
    #: records before it were skipped on the way: seek to ``next_offset``, and drop this one
    SKIPPED = "skipped"
    #: its epoch is newer than ours: load again, then offer it again
    RELOAD = "reload"
    #: applied, but something before it is lost
    GAP = "gap"
    #: no batch: passed over
    POISON = "poison"


@dataclass(frozen=True, slots=True)
class Record:
    """A record of the changes topic. ``token``: what the runtime acknowledges it by."""

    offset: int
    value: bytes
    token: Any = None


class AssignedPartition:
    """The state of one assignment of a partition, from its load to its revocation."""

    def __init__(
        self, number: int, topic: str, decoder: Decoder, policy: Policy = "keep", write_back: bool = True
    ) -> None:
        self.number = number
        self.loaded = False
        self.revoked = False
        self.next_offset: int | None = None
        self.size = 0
        self.poisoned: PoisonError | None = None
        self.written = Position(0)
        self._topic = topic
        self._decoder = decoder
        self._partition = Partition(number, policy, write_back)
        self._pending: deque[Record] = deque()
        self._taken = 0
        self._based_written = False
        self._durable_offset: int | None = None
        self._flushed_at = float("-inf")

    @property
    def partition(self) -> Partition:
        return self._partition

    @property
    def pending(self) -> int:
        """Records applied and not yet written."""
        return len(self._pending)

    # ---- loading ------------------------------------------------------------------------------------------------

    def load(self, loaded: Loaded) -> list[Record]:
        """Become what PostgreSQL holds, and apply what is pending again. Returns what need not be kept any more:
        pending records that PostgreSQL has already, which may be acknowledged."""
        partition = self._partition
        new_epoch = self.loaded and loaded.epoch != partition.epoch
        partition.load(loaded, NEW_EPOCH if new_epoch and not loaded.based else None)
        self.written, self._based_written = loaded.position, loaded.based
        self._taken = 0
        pending, self._pending, self.size = self._pending, deque(), 0
        self.next_offset = self._durable_offset = loaded.next_offset
        self.loaded = True
        done = []
        for record in pending:
            if self.next_offset is not None and record.offset < self.next_offset:
                done.append(record)
            elif self.next_offset is not None and record.offset > self.next_offset:
                break  # PostgreSQL has less than we thought: what it lacks is read again
            elif self._apply(record) is RecordOutcome.RELOAD:
                self.ignore(record)
        return done

    # ---- applying -----------------------------------------------------------------------------------------------

    def take(self, record: Record, *, first_kept: int | None = None) -> RecordOutcome:
        """Apply a record, or say why not. ``first_kept``: the oldest offset that the log still has, where the caller
        has looked: what was expected before it is gone, and no seek brings it back."""
        if self.next_offset is not None and record.offset < self.next_offset:
            if self._is_news(record):
                self.next_offset = None  # offsets mean nothing any more; positions still do
                return self._apply(record)
            durable = self._durable_offset
            return RecordOutcome.SEEN if durable is not None and record.offset < durable else RecordOutcome.TWICE
        skipped = self.next_offset is not None and record.offset > self.next_offset
        if skipped and first_kept is not None and first_kept >= record.offset:
            skipped = False
        return self._apply(record, skipped)

    def _is_news(self, record: Record) -> bool:
        """Whether a record at an offset that was applied already goes on beyond all that was: then the topic was made
        anew, and what was lost with the old one is a gap."""
        last = end_of(record.value)
        partition = self._partition
        return last is not None and (last.epoch, last.end) > (partition.epoch, partition.position)

    def _apply(self, record: Record, skipped: bool = False) -> RecordOutcome:
        partition = self._partition
        try:
            batch = self._decoder.decode(record.value, self._topic, self.number, record.offset)
        except PoisonError as error:
            if skipped:
                return RecordOutcome.SKIPPED
            self.poisoned = error
            partition.unbase(GAP)
            self._keep(record)
            return RecordOutcome.POISON
        if skipped and batch.epoch == partition.epoch and batch.begin > partition.position:
            return RecordOutcome.SKIPPED
        outcome = partition.apply(batch)
        if outcome is Outcome.NEW_EPOCH:
            return RecordOutcome.RELOAD
        partition.status_changes.clear()
        self._keep(record)
        return RecordOutcome.GAP if outcome is Outcome.GAP else RecordOutcome.APPLIED

    def ignore(self, record: Record) -> None:
        """Pass over a record whose epoch PostgreSQL does not know even after loading."""
        self._keep(record)

    def _keep(self, record: Record) -> None:
        self._pending.append(record)
        self.size += len(record.value)
        self.next_offset = record.offset + 1

    # ---- flushing -----------------------------------------------------------------------------------------------

    def waiting(self, behind: int = 0) -> Waiting:
        """What waits to be written. A base that was lost is as urgent as a change: a recount is due only then."""
        partition = self._partition
        return Waiting(
            partition.dirty or partition.based != self._based_written,
            partition.position != self.written or bool(self._pending),
            partition.due_at(),
            behind,
        )

    def due(self, now: float, *, tick: bool = False) -> bool:
        """Whether a flush that happens now should take this partition along: for changes always, for a watermark
        alone once in a tick, or where ``tick`` says so."""
        waiting = self.waiting()
        if waiting.dirty or (waiting.due_at is not None and waiting.due_at <= now):
            return True
        return waiting.moved and (tick or now - self._flushed_at >= TICK)

    def flush(self, now: float) -> Flush:
        """All that is to be written now."""
        self._flushed_at = now
        self._taken = len(self._pending)
        return self._partition.take(now, self.next_offset)

    def flushed(self, flush: Flush, result: FlushResult, now: float) -> Iterator[Record]:
        """The flush has committed; the records that it contains, in order, to be acknowledged."""
        self._partition.flushed(flush, result, now)
        self.written, self._based_written = flush.position, flush.based
        self._durable_offset = flush.next_offset
        for _ in range(self._taken):
            record = self._pending.popleft()
            self.size -= len(record.value)
            yield record
        self._taken = 0
