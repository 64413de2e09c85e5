"""The partitions that a worker holds: their counts, and the records that are applied and not yet written.

Pure: no Kafka, no clock. A record comes in as (offset, bytes, token), the time as an argument, and the decision goes
out as a value. The rules:

- A record below the next expected offset was applied before, and is dropped; unless it continues beyond everything that
  was applied, which means that the topic was made anew.
- A record that begins beyond the position, at an offset beyond the expected one, was delivered after others were
  skipped on the way: those are **read again before a gap is believed**. A gap at the very next offset is real.
- A record that can't be decoded is reported and passed over, and its partition is counted anew.
- A record stays pending until the flush that contains it has committed, and is applied again after a reload.

See docs/design/batches.md and docs/design/faust.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from connectors.kafka.codec import Decoder, end_of
from stream.core.errors import PoisonError
from stream.core.flushing import Flush, FlushResult
from stream.core.pace import TICK, Waiting
from stream.core.partition import Loaded, Outcome, Partition, Policy
from stream.core.position import Position, lsn_text
from stream.core.verdict import GAP, NEW_EPOCH

#: seconds between two seeks of a partition
SEEK_EVERY: Final = 2.0
#: records written already that are read and dropped; with more of them a seek passes over them
_READ_THROUGH: Final = 2000


class RecordOutcome(Enum):
    """What became of a record."""

    APPLIED = "applied"
    #: applied before, and written: acknowledge it
    SEEN = "seen"
    #: applied before, and not written yet: drop it
    TWICE = "twice"
    #: records before it were skipped on the way: seek to ``next_offset``, and drop this one
    SKIPPED = "skipped"
    #: its epoch is newer than ours: load again, then offer it again
    RELOAD = "reload"
    #: applied, but something before it is lost
    GAP = "gap"
    #: not a batch: passed over
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
        self._refused = False
        self._durable_offset: int | None = None
        self._flushed_at = float("-inf")
        self._sought_at = float("-inf")

    @property
    def partition(self) -> Partition:
        return self._partition

    @property
    def pending(self) -> int:
        """Records applied and not yet written."""
        return len(self._pending)

    # ---- loading ------------------------------------------------------------------------------------------------

    def load(self, loaded: Loaded, wal_end: int | None = None) -> list[Record]:
        """Become what PostgreSQL holds, and apply again what is pending. Returns the pending records that PostgreSQL
        has already, which may be acknowledged. ``wal_end``: where the server's WAL ends now."""
        partition = self._partition
        new_epoch = self.loaded and loaded.epoch != partition.epoch
        partition.load(loaded, NEW_EPOCH if new_epoch and not loaded.based else None)
        self.written, self._based_written = loaded.position, loaded.based
        self._taken = 0
        pending, self._pending, self.size = self._pending, deque(), 0
        self.next_offset = self._durable_offset = loaded.next_offset
        self.loaded = True
        refused, self._refused = self._refused, False
        if refused or any(self._is_beyond(record, wal_end) for record in pending):
            partition.unbase(GAP)
        done = []
        for record in pending:
            if self.next_offset is not None and record.offset < self.next_offset:
                done.append(record)
            elif self.next_offset is not None and record.offset > self.next_offset:
                break  # PostgreSQL has less than we thought: what it lacks is read again
            elif refused or self._is_beyond(record, wal_end) or self._apply(record) is RecordOutcome.RELOAD:
                self.ignore(record)
        return done

    def refuse(self, why: str) -> None:
        """PostgreSQL refuses the flush that was taken. Once the partition is loaded again, the pending records are
        passed over, and it is counted anew."""
        self._refused = True
        offsets = f"offsets {self._pending[0].offset} to {self._pending[-1].offset}" if self._pending else "no offset"
        self.poisoned = PoisonError(
            f"PostgreSQL refuses what the records of {self._topic}, partition {self.number}, {offsets}, add up to: "
            f"{why}.",
            "They are skipped, and the partition is counted anew.",
        )

    def _is_beyond(self, record: Record, wal_end: int | None) -> bool:
        """Whether a record says of this epoch what the server can't have written yet."""
        last = end_of(record.value)
        if wal_end is None or last is None or last.epoch != self._partition.epoch or last.end.lsn <= wal_end:
            return False
        self.poisoned = PoisonError(
            f"The record at {self._topic}, partition {self.number}, offset {record.offset} ends at "
            f"{lsn_text(last.end.lsn)}, beyond the server's WAL, which ends at {lsn_text(wal_end)}.",
            "It is skipped, and the partition is counted anew.",
        )
        return True

    # ---- applying -----------------------------------------------------------------------------------------------

    def take(self, record: Record, *, first_kept: int | None = None) -> RecordOutcome:
        """Apply a record, or say why not. ``first_kept``: the oldest offset that the topic still has, where the caller
        looked it up: records before it are gone, and no seek brings them back."""
        if self.next_offset is not None and record.offset < self.next_offset:
            if self._continues(record):
                self.next_offset = None  # offsets begin anew; positions go on
                return self._apply(record)
            durable = self._durable_offset
            return RecordOutcome.SEEN if durable is not None and record.offset < durable else RecordOutcome.TWICE
        skipped = self.next_offset is not None and record.offset > self.next_offset
        if skipped and first_kept is not None and first_kept >= record.offset:
            skipped = False
        return self._apply(record, skipped)

    def _continues(self, record: Record) -> bool:
        """Whether a record at an offset that was applied already ends beyond everything that was: then the topic was
        made anew, and what was lost with the old one is a gap."""
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

    def seek_back(self, now: float) -> int | None:
        """After SKIPPED: the offset to read again from; None where the last seek was a moment ago."""
        return self.next_offset if self._may_seek(now) else None

    def seek_forward(self, record: Record, now: float) -> int | None:
        """After SEEN: the offset at which to go on, where the group's offset was moved far back; None: read on."""
        expected = self.next_offset
        if expected is None or expected - record.offset < _READ_THROUGH:
            return None
        return expected if self._may_seek(now) else None

    def _may_seek(self, now: float) -> bool:
        if now - self._sought_at < SEEK_EVERY:
            return False
        self._sought_at = now
        return True

    # ---- flushing -----------------------------------------------------------------------------------------------

    def waiting(self, behind: int = 0) -> Waiting:
        """What waits to be written. A lost baseline is as urgent as a change: only once it is written is a recount
        due."""
        partition = self._partition
        return Waiting(
            partition.dirty or partition.based != self._based_written,
            partition.position != self.written or bool(self._pending),
            partition.due_at(),
            behind,
        )

    def due(self, now: float, *, tick: bool = False) -> bool:
        """Whether a flush at ``now`` includes this partition: for changes always, for a watermark alone once a tick,
        or where ``tick`` is set."""
        waiting = self.waiting()
        if waiting.dirty or (waiting.due_at is not None and waiting.due_at <= now):
            return True
        return waiting.moved and (tick or now - self._flushed_at >= TICK)

    def flush(self, now: float) -> Flush:
        """Everything that is to be written now."""
        self._flushed_at = now
        self._taken = len(self._pending)
        return self._partition.take(now, self.next_offset)

    def flushed(self, flush: Flush, result: FlushResult, now: float) -> Iterator[Record]:
        """The flush has committed: the records that it contains, in order, to be acknowledged."""
        self._partition.flushed(flush, result, now)
        self.written, self._based_written = flush.position, flush.based
        self._durable_offset = flush.next_offset
        for _ in range(self._taken):
            record = self._pending.popleft()
            self.size -= len(record.value)
            yield record
        self._taken = 0


class Assignment:
    """All partitions of one worker, by number."""

    def __init__(self, topic: str, policy: Policy = "keep", write_back: bool = True) -> None:
        self._topic = topic
        self._policy = policy
        self._write_back = write_back
        self._decoder = Decoder()
        self._held: dict[int, AssignedPartition] = {}

    def __iter__(self) -> Iterator[AssignedPartition]:
        return iter(list(self._held.values()))

    def get(self, number: int) -> AssignedPartition | None:
        """The partition while it is ours."""
        return self._held.get(number)

    @property
    def numbers(self) -> tuple[int, ...]:
        return tuple(sorted(self._held))

    @property
    def pending_bytes(self) -> int:
        """Bytes of records that are applied and not yet written."""
        return sum(held.size for held in self._held.values())

    def assign(self, numbers: Iterable[int]) -> tuple[list[AssignedPartition], list[int]]:
        """The worker holds exactly these partitions from now on: each in a new state, to be loaded; and which it lost
        by that."""
        wanted = set(numbers)
        lost = self.revoke(self._held)
        for number in sorted(wanted):
            self._held[number] = AssignedPartition(number, self._topic, self._decoder, self._policy, self._write_back)
        return list(self._held.values()), [number for number in lost if number not in wanted]

    def revoke(self, numbers: Iterable[int]) -> list[int]:
        """Give these partitions up; which of them were held."""
        gone = [number for number in list(numbers) if number in self._held]
        for number in gone:
            self._held.pop(number).revoked = True
        return gone

    def waiting(self) -> Waiting:
        """What waits to be written, in all partitions that are loaded."""
        waits = [held.waiting() for held in self._held.values() if held.loaded]
        due = [wait.due_at for wait in waits if wait.due_at is not None]
        return Waiting(any(w.dirty for w in waits), any(w.moved for w in waits), min(due, default=None))

    def flush(self, now: float, *, last: bool = False) -> list[tuple[AssignedPartition, Flush]]:
        """What one transaction at ``now`` writes; ``last``: including watermarks that moved within the tick."""
        due = [held for held in self._held.values() if held.loaded and held.due(now, tick=last)]
        return [(held, held.flush(now)) for held in due]
