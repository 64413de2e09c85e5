"""A partition in a worker's hands: what is pending is never lost, and a gap is read again before it is believed."""

from __future__ import annotations

from connectors.kafka.codec import Decoder, encode
from stream.core.batch import Batch
from stream.core.entries import Counted, Move
from stream.core.flushing import Flush, FlushResult, ProgressRow
from stream.core.partition import Loaded
from stream.core.position import Position
from stream.core.status import QUEUED, SENT
from stream.kafka.assignment import AssignedPartition, Record, RecordOutcome
from tests.kafka.batches import EPOCH, move_batch, recount_batch

SEND = Move(7, QUEUED, SENT, 1)


def loaded(lsn: int, next_offset: int | None, *, based: bool = True, epoch: int = EPOCH, sent: int = 0) -> Loaded:
    rows = (ProgressRow(7, (100 - sent, 0, sent, 0, 0), 0, sent),) if based else ()
    return Loaded(epoch, Position(lsn), based, 0, rows, {}, next_offset)


def state(lsn: int = 100, next_offset: int | None = 10, *, based: bool = True) -> AssignedPartition:
    assigned = AssignedPartition(3, "t", Decoder())
    assigned.load(loaded(lsn, next_offset, based=based))
    return assigned


def record(offset: int, batch: Batch) -> Record:
    return Record(offset, encode(batch))


def sent(assigned: AssignedPartition) -> int:
    return assigned.partition.sent(7)


def flush(assigned: AssignedPartition, now: float = 1.0) -> tuple[Flush, list[int]]:
    """A flush that commits; the offsets to acknowledge."""
    made = assigned.flush(now)
    return made, [it.offset for it in assigned.flushed(made, FlushResult(), now)]


def test_records_are_acknowledged_in_order_after_the_flush_that_contains_them() -> None:
    assigned = state()
    for offset in range(10, 13):
        assert assigned.take(record(offset, move_batch(offset * 10, offset * 10 + 10, SEND))) is RecordOutcome.APPLIED
    made = assigned.flush(1.0)
    assert (
        assigned.take(record(13, move_batch(130, 140, SEND))) is RecordOutcome.APPLIED
    )  # while the flush is under way
    assert made.next_offset == 13
    assert made.due == {7: 3}
    assert [it.offset for it in assigned.flushed(made, FlushResult(), 1.0)] == [10, 11, 12]
    assert assigned.pending == 1
    assert flush(assigned)[1] == [13]
    assert assigned.size == 0


def test_a_record_seen_before_is_let_go_only_when_it_is_written() -> None:
    assigned = state()
    first = record(10, move_batch(100, 110, SEND))
    assert assigned.take(first) is RecordOutcome.APPLIED
    assert assigned.take(first) is RecordOutcome.TWICE
    flush(assigned)
    assert assigned.take(first) is RecordOutcome.SEEN
    assert sent(assigned) == 1


def test_a_gap_at_an_offset_beyond_the_expected_one_is_read_again_first() -> None:
    assigned = state()
    assert assigned.take(record(12, move_batch(120, 130, SEND))) is RecordOutcome.SKIPPED
    assert assigned.partition.based
    assert assigned.next_offset == 10
    for offset in range(10, 13):
        assert assigned.take(record(offset, move_batch(offset * 10, offset * 10 + 10, SEND))) is RecordOutcome.APPLIED
    assert sent(assigned) == 3
    assert assigned.partition.gaps == 0


def test_a_gap_at_the_very_next_offset_is_real() -> None:
    assigned = state()
    assert assigned.take(record(10, move_batch(120, 130, SEND))) is RecordOutcome.GAP
    assert not assigned.partition.based
    made, acknowledged = flush(assigned)
    assert (made.based, acknowledged, made.rows) == (False, [10], ())


def test_a_gap_that_the_log_no_longer_holds_is_real() -> None:
    assigned = state()
    assert assigned.take(record(12, move_batch(120, 130, SEND)), first_kept=12) is RecordOutcome.GAP


def test_a_lost_base_is_written_at_once() -> None:
    """A recount is due only once PostgreSQL knows that the partition is not based."""
    assigned = state()
    flush(assigned)
    assigned.take(record(10, move_batch(120, 130, SEND)))
    assert assigned.waiting().dirty
    flush(assigned)
    assert not assigned.waiting().dirty


def test_skipped_offsets_without_a_gap_are_no_matter() -> None:
    """A record that is missing from the topic, and carried nothing that the next one does not carry."""
    assigned = state()
    assert assigned.take(record(12, move_batch(100, 130, SEND))) is RecordOutcome.APPLIED


def test_poison_is_passed_over_and_the_partition_is_counted_anew() -> None:
    assigned = state()
    assert assigned.take(Record(10, b"not JSON")) is RecordOutcome.POISON
    assert not assigned.partition.based
    assert "offset 10" in str(assigned.poisoned)
    assert assigned.take(record(11, move_batch(100, 110, SEND))) is RecordOutcome.APPLIED
    assert (
        assigned.take(record(12, recount_batch(110, 120, {7: Counted((1, 0, 99, 0, 0), 99)}))) is RecordOutcome.APPLIED
    )
    assert assigned.partition.based
    made, acknowledged = flush(assigned)
    assert acknowledged == [10, 11, 12]
    assert made.due == {7: 99}


def test_records_that_postgresql_refuses_are_passed_over_and_the_partition_is_counted_anew() -> None:
    assigned = state()
    for offset in (10, 11):
        assigned.take(record(offset, move_batch(offset * 10, offset * 10 + 10, SEND)))
    assigned.flush(1.0)
    assigned.refuse("bigint out of range")
    assert "offsets 10 to 11" in str(assigned.poisoned)
    assert assigned.load(loaded(100, 10)) == []
    assert not assigned.partition.based
    assert assigned.take(record(12, move_batch(120, 130, SEND))) is RecordOutcome.GAP
    made, acknowledged = flush(assigned)
    assert (made.rows, made.based, acknowledged) == ((), False, [10, 11, 12])
    assigned.load(loaded(130, 13))  # once more: nothing is refused any more
    assert assigned.take(record(13, move_batch(130, 140, SEND))) is RecordOutcome.APPLIED
    assert assigned.partition.based


def test_a_batch_that_ends_beyond_the_servers_wal_is_poison_and_nothing_before_it_counts() -> None:
    """It was forged, or the database was restored to a time before it: then those before it may be lost as well."""
    assigned = state()
    assert assigned.take(record(10, move_batch(100, 110, SEND))) is RecordOutcome.APPLIED
    assert assigned.take(record(11, move_batch(110, 10_000, SEND))) is RecordOutcome.APPLIED
    assigned.flush(1.0)
    assigned.load(loaded(100, 10), wal_end=500)  # the flush was refused
    assert "beyond the server's WAL" in str(assigned.poisoned)
    assert not assigned.partition.based
    assert sent(assigned) == 0
    assert assigned.partition.position == Position(110)
    assert flush(assigned)[1] == [10, 11]


def test_after_a_reload_what_is_pending_is_applied_again() -> None:
    """The outcome of a commit is unknown: it may have been written, or not."""
    for written, acknowledged in ((False, []), (True, [10, 11])):
        assigned = state()
        for offset in (10, 11):
            assigned.take(record(offset, move_batch(offset * 10, offset * 10 + 10, SEND)))
        assigned.flush(1.0)
        assigned.take(record(12, move_batch(120, 130, SEND)))
        done = assigned.load(loaded(120, 12, sent=2) if written else loaded(100, 10))
        assert [it.offset for it in done] == acknowledged
        assert sent(assigned) == 3
        assert assigned.next_offset == 13
        assert flush(assigned)[1] == [offset for offset in (10, 11, 12) if offset not in acknowledged]


def test_where_postgresql_has_less_than_was_read_the_rest_is_read_again() -> None:
    assigned = state(lsn=130, next_offset=13)
    assigned.take(record(13, move_batch(130, 140, SEND)))
    assert assigned.load(loaded(100, 10)) == []
    assert (assigned.pending, assigned.next_offset) == (0, 10)
    assert assigned.take(record(14, move_batch(140, 150, SEND))) is RecordOutcome.SKIPPED


def test_a_topic_made_anew_is_not_taken_for_records_seen_before() -> None:
    """Its offsets begin at 0 again, far below the next one expected."""
    assigned = state(lsn=100, next_offset=1_000_000)
    assert assigned.take(record(0, move_batch(90, 100, SEND))) is RecordOutcome.SEEN
    assert assigned.take(record(1, move_batch(100, 110, SEND))) is RecordOutcome.APPLIED
    assert assigned.take(record(2, move_batch(150, 160, SEND))) is RecordOutcome.GAP
    made, acknowledged = flush(assigned)
    assert (made.next_offset, acknowledged) == (3, [1, 2])


def test_an_older_epoch_is_passed_over_and_a_newer_one_asks_for_a_load() -> None:
    assigned = state()
    assert assigned.take(record(10, move_batch(1, 2, SEND, epoch=EPOCH - 1))) is RecordOutcome.APPLIED
    assert sent(assigned) == 0
    newer = record(11, move_batch(5, 6, SEND, epoch=EPOCH + 1))
    assert assigned.take(newer) is RecordOutcome.RELOAD
    assigned.load(loaded(5, None, based=False, epoch=EPOCH + 1))
    assert assigned.take(newer) is RecordOutcome.APPLIED
    assert assigned.partition.epoch == EPOCH + 1
    assert flush(assigned)[1] == [10, 11]


def test_a_new_slot_with_smaller_lsns_is_applied_not_dropped() -> None:
    """A restore from an older base backup: positions start anew in a new epoch."""
    assigned = state(lsn=5_000_000, next_offset=10)
    newer = record(10, recount_batch(200, 300, {7: Counted((0, 0, 5, 0, 0), 5)}, epoch=EPOCH + 1))
    assert assigned.take(newer) is RecordOutcome.RELOAD
    assigned.load(loaded(200, None, based=False, epoch=EPOCH + 1))
    assert assigned.take(newer) is RecordOutcome.APPLIED
    assert assigned.partition.based
    assert sent(assigned) == 5


def test_a_watermark_alone_is_written_once_a_tick() -> None:
    assigned = state()
    assigned.take(record(10, move_batch(100, 110)))
    flush(assigned, now=10.0)
    assigned.take(record(11, move_batch(110, 120)))
    assert not assigned.due(11.0)
    assert assigned.due(11.0, tick=True)
    assert assigned.due(12.1)
