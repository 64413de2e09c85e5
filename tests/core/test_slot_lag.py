"""Verdicts on slot and flush."""

from __future__ import annotations

from typing import Any

import pytest

from stream.core.lag import LagVerdict
from stream.core.slot_lag import FlushLag, LagJudge, SlotLag, SlotSample, WatermarkSample

AT = 1000.0


def look(at: float = AT, *, behind: int = 0, **changes: Any) -> SlotSample:
    """A healthy look: read, flushed a second ago; ``behind``: bytes."""
    end = int(at * 1000)
    values: dict[str, Any] = {
        "at": at,
        "wal": end,
        "slot": "sentstream",
        "exists": True,
        "active_pid": 7,
        "wal_status": "reserved",
        "confirmed": end - behind,
        "restart": end - behind - 100,
        "marks": (WatermarkSample(0, end - behind, based=True, as_of=at - 1, flushed_at=at - 1),),
    }
    return SlotSample(**(values | changes))


def judge() -> LagJudge:
    return LagJudge(window=60, allowed=10, allowed_bytes=1 << 30)


def standing(at: float, since: float, **changes: Any) -> SlotSample:
    """Nothing has moved since ``since``, while the WAL grew."""
    done = int(since * 1000)
    mark = WatermarkSample(0, done, based=True, as_of=since, flushed_at=since)
    return look(at, confirmed=done, restart=done, marks=(mark,), **changes)


def both(*looks: SlotSample) -> tuple[SlotLag, FlushLag]:
    judging = judge()
    found = [judging.judge(one) for one in looks]
    return found[-1]


def test_one_look_at_a_healthy_stream_is_enough() -> None:
    slot, flush = both(look())
    assert (slot.verdict, flush.verdict, slot.advice, flush.advice) == (LagVerdict.OK, LagVerdict.OK, "", "")


def test_what_has_stood_still_for_long_is_known_at_the_first_look() -> None:
    slot, flush = both(standing(AT, AT - 300))
    assert (slot.verdict, flush.verdict) == (LagVerdict.STALL, LagVerdict.STALL)
    assert "log" in slot.advice


def test_a_slot_that_nobody_reads_is_a_stop() -> None:
    slot, _ = both(standing(AT, AT - 300, active_pid=None))
    assert slot.verdict is LagVerdict.STOP
    assert "sentstream run" in slot.advice


@pytest.mark.parametrize("seconds", range(0, 300, 7))
def test_it_never_says_ok_of_something_that_stands_still(seconds: int) -> None:
    judging = judge()
    for at in range(0, seconds + 1, 2):
        slot, flush = judging.judge(standing(AT + at, AT))
    if seconds > 10:
        assert LagVerdict.OK not in (slot.verdict, flush.verdict)
    if seconds > 40:
        assert (slot.verdict, flush.verdict) == (LagVerdict.STALL, LagVerdict.STALL)


def test_catching_up_is_a_warning() -> None:
    judging = judge()
    for at in range(0, 60, 2):
        done = 500_000 + at * 5000
        mark = WatermarkSample(0, done, based=True, as_of=done / 1000, flushed_at=AT + at)
        slot, flush = judging.judge(look(AT + at, confirmed=done, marks=(mark,)))
    assert (slot.verdict, flush.verdict) == (LagVerdict.WARN, LagVerdict.WARN)


def test_a_backlog_that_is_read_by_a_copy_of_the_slot_is_no_stop() -> None:
    judging = judge()
    for at in range(0, 60, 2):
        done = 500_000 + at * 5000
        mark = WatermarkSample(0, done, based=True, as_of=done / 1000, flushed_at=AT + at)
        slot, _ = judging.judge(look(AT + at, active_pid=None, confirmed=400_000, restart=400_000, marks=(mark,)))
    assert slot.verdict is LagVerdict.WARN


def test_no_slot_and_a_lost_slot_are_a_stop() -> None:
    gone, _ = both(look(exists=False, active_pid=None, wal_status=None, confirmed=None, restart=None))
    lost, _ = both(look(wal_status="lost", confirmed=None, restart=None))
    assert (gone.verdict, lost.verdict) == (LagVerdict.STOP, LagVerdict.STOP)
    assert "setup" in gone.advice
    assert gone.bytes is None


def test_no_temporary_slot_is_a_stop_that_only_a_reader_ends() -> None:
    judging = LagJudge(window=60, allowed=10, allowed_bytes=1 << 30, temporary=True)
    gone, _ = judging.judge(look(exists=False, active_pid=None, wal_status=None, confirmed=None, restart=None))
    assert gone.verdict is LagVerdict.STOP
    assert "temporary" in gone.advice
    assert "`sentstream run`" in gone.advice
    assert "setup" not in gone.advice


def test_a_slot_near_its_limit_and_one_that_holds_much_are_warnings() -> None:
    near, _ = both(look(wal_status="unreserved"))
    much, _ = both(look(AT * 10_000_000, restart=0))
    assert (near.verdict, much.verdict) == (LagVerdict.WARN, LagVerdict.WARN)
    assert "max_slot_wal_keep_size" in near.advice


def test_a_restored_database_is_a_rewind() -> None:
    mark = WatermarkSample(0, int(AT * 1000) + 5, based=True, as_of=AT - 1, flushed_at=AT - 1)
    _, flush = both(look(marks=(mark,)))
    assert flush.verdict is LagVerdict.REWIND


def test_counts_without_a_base_are_a_warning_that_names_the_partition() -> None:
    mark = WatermarkSample(3, int(AT * 1000), based=False, as_of=AT - 1, flushed_at=AT - 1)
    _, flush = both(look(marks=(mark,)))
    assert (flush.verdict, flush.unbased) == (LagVerdict.WARN, (3,))
    assert "recount" in flush.advice


def test_nothing_flushed_ever_is_a_stop() -> None:
    _, flush = both(look(marks=()))
    assert (flush.verdict, flush.age) == (LagVerdict.STOP, None)


def test_a_first_look_without_a_past_can_not_tell() -> None:
    mark = WatermarkSample(0, 1, based=True, as_of=None, flushed_at=None)
    slot, flush = both(look(confirmed=1, active_pid=None, marks=(mark,)))
    assert (slot.verdict, flush.verdict) == (LagVerdict.UNKNOWN, LagVerdict.UNKNOWN)


def test_the_slowest_partition_counts() -> None:
    fresh = WatermarkSample(0, int(AT * 1000), based=True, as_of=AT - 1, flushed_at=AT - 1)
    old = WatermarkSample(1, 5, based=True, as_of=AT - 300, flushed_at=AT - 300)
    slot, flush = both(look(marks=(fresh, old)))
    assert (flush.verdict, flush.age, slot.seconds) == (LagVerdict.STALL, 300, 300)
