"""Aligning a recount with the stream, by example. The interleavings are played in ``tests/proofs/visibility.py``."""

from __future__ import annotations

import tracemalloc
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.core.align import Alignment, Snapshot, widen
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
    Unreadable,
)
from stream.core.status import MOVED, NEW, QUEUED, REMOVED, SENDING, SENT

CYCLE = 1 << 32
SEND = Move(7, QUEUED, SENT, 1)
START = Snapshot(100, 100)


def transaction(xid: int, *entries: Entry, lsn: int = 1) -> Transaction:
    return Transaction(lsn, lsn + 1, 0, xid % CYCLE, entries)


def row(snapshot: str, counts: Mapping[int, tuple[int, ...]] | None = None, **more: Any) -> RecountRow:
    counted = {c: Counted((n[0], n[1], n[2], n[3], n[4]), n[2]) for c, n in (counts or {}).items()}
    values: dict[str, Any] = {"rebase": None, "epoch": 1, **more}
    return RecountRow(1, "manual", "test", 17, 90, snapshot, counted, **values)


def aligned(alignment: Alignment, recount: RecountRow, xid: int = 10**6) -> Recount:
    (found,) = alignment.follow([transaction(xid, recount)])
    (entry,) = found.entries
    assert isinstance(entry, Recount)
    return entry


def counts(recount: Recount) -> dict[int, tuple[int, ...]]:
    assert recount.reason is None, recount.reason
    return {campaign: counted.counts for campaign, counted in recount.expected.items()}


TEN = {7: (10, 0, 0, 0, 0)}


# ---- what a snapshot sees


def test_a_snapshot_as_postgresql_prints_it() -> None:
    assert Snapshot.parse("10:20:14,15") == Snapshot(10, 20, frozenset({14, 15}))
    assert Snapshot.parse("10:10:") == Snapshot(10, 10)
    with pytest.raises(ValueError, match="values to unpack"):
        Snapshot.parse("10")


def test_what_it_sees() -> None:
    snapshot = Snapshot(10, 14, frozenset({10, 12}))
    assert [xid for xid in range(8, 17) if snapshot.sees(xid)] == [8, 9, 11, 13]


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    xip = draw(st.frozensets(st.integers(5, 19), max_size=6))
    xmax = draw(st.integers(max(xip, default=4) + 1, 20))
    return Snapshot(min(xip, default=xmax), xmax, xip)


@given(snapshots(), snapshots())
def test_sees_all_of_is_inclusion(one: Snapshot, other: Snapshot) -> None:
    mine, theirs = ({xid for xid in range(25) if s.sees(xid)} for s in (one, other))
    assert one.sees_all_of(other) == (theirs <= mine)


@given(st.integers(3, 2**40), st.integers(-(2**31) + 1, 2**31 - 1))
def test_a_32_bit_xid_is_the_one_nearest_to_a_known_one(near: int, distance: int) -> None:
    xid = near + distance
    if xid >= 0:
        assert widen(xid % CYCLE, near) == xid


# ---- what a recount should show


def test_moves_that_the_snapshot_could_not_see_are_added() -> None:
    """Committed in the WAL before the recount, and not visible to it: in progress, or begun later."""
    alignment = Alignment(START)
    alignment.follow([transaction(101, SEND), transaction(102, SEND), transaction(110, SEND)])
    recount = aligned(alignment, row("101:110:101", TEN))
    assert counts(recount) == {7: (8, 0, 2, 0, 0)}


def test_moves_that_it_saw_are_not() -> None:
    alignment = Alignment(START)
    alignment.follow([transaction(101, SEND), transaction(102, SEND)])
    assert counts(aligned(alignment, row("103:103:", TEN))) == TEN


def test_moves_delivered_behind_it_are_not() -> None:
    alignment = Alignment(START)
    found = alignment.follow([transaction(110, row("101:110:101", TEN)), transaction(101, SEND)])
    (entry,) = found[0].entries
    assert isinstance(entry, Recount)
    assert counts(entry) == TEN
    assert found[1].entries == (SEND,)


def test_a_recount_keeps_run_trigger_time_place_and_rebase() -> None:
    recount = aligned(Alignment(START), row("101:101:", TEN, rebase=(7,)))
    assert (recount.run_id, recount.trigger, recount.started_at, recount.lsn) == (1, "manual", 17, 90)
    assert recount.rebase == (7,)


def test_every_kind_of_move_is_replayed() -> None:
    alignment = Alignment(START)
    moves = (
        Move(7, NEW, QUEUED, 5),
        Move(7, QUEUED, SENDING, 4),
        Move(7, SENDING, REMOVED, 1),
        Move(7, QUEUED, MOVED, 2),
        Move(8, NEW, QUEUED, 2),
    )
    alignment.follow([transaction(101, *moves)])
    assert counts(aligned(alignment, row("101:102:101", TEN))) == {7: (9, 3, 0, 0, 0), 8: (2, 0, 0, 0, 0)}


def test_a_campaign_deleted_by_such_a_transaction_is_taken_out() -> None:
    alignment = Alignment(START)
    alignment.follow([transaction(101, SEND), transaction(102, CampaignDeleted(7))])
    assert counts(aligned(alignment, row("101:103:101,102", TEN))) == {}


def test_one_that_it_made_is_put_in_with_its_counter() -> None:
    alignment = Alignment(START)
    alignment.follow(
        [transaction(101, CampaignChanged(8, "A", "draft", 1, 3), CampaignChanged(7, None, "paused", 1, 4))]
    )
    recount = aligned(alignment, row("101:102:101", TEN))
    assert recount.expected == {7: Counted((10, 0, 0, 0, 0), 4), 8: Counted((0, 0, 0, 0, 0), 3)}


def test_a_truncate_by_such_a_transaction_empties() -> None:
    """It can't happen where the lock comes first; all the same it is replayed."""
    for table, expected in (("queue", {7: (0, 0, 0, 0, 0), 8: (1, 0, 0, 0, 0)}), ("campaigns", {8: (1, 0, 0, 0, 0)})):
        alignment = Alignment(START)
        alignment.follow([transaction(101, Truncate(table), Move(8, NEW, QUEUED, 1))])  # type: ignore[arg-type]
        assert counts(aligned(alignment, row("101:102:101", TEN))) == expected


def test_xids_wrap_around() -> None:
    """The log has 32 bits of them, a snapshot 64."""
    near = 3 * CYCLE - 2
    alignment = Alignment(Snapshot(near, near))
    alignment.follow([transaction(near + n, SEND) for n in range(5)])
    recount = aligned(alignment, row(f"{near + 1}:{near + 4}:{near + 1},{near + 3}", TEN), xid=near + 9)
    assert counts(recount) == {7: (7, 0, 3, 0, 0)}


# ---- what may be forgotten, and what is conclusive


def test_what_the_snapshot_at_start_sees_is_never_stored() -> None:
    """So a backlog costs no memory."""
    alignment = Alignment(Snapshot(150, 160, frozenset({150, 155})))
    alignment.follow([transaction(xid, SEND) for xid in (90, 140, 151, 155, 159, 160, 170)])
    assert len(alignment) == 3


def test_a_backlog_is_in_the_counts_already() -> None:
    alignment = Alignment(Snapshot(199, 200, frozenset({199})))
    alignment.follow([transaction(xid, SEND) for xid in (90, 140, 180)])
    assert counts(aligned(alignment, row("201:201:", TEN))) == TEN


def test_a_transaction_that_may_have_committed_before_the_slot_was_taken_must_be_seen() -> None:
    """It is never delivered here, and was still invisible: nothing could replay it."""
    for snapshot in ("98:99:98", "98:200:98,150", "98:105:98"):
        recount = aligned(Alignment(Snapshot(90, 99, frozenset({98})), [98]), row(snapshot, TEN))
        assert "transaction 98" in (recount.reason or "")
        assert recount.expected == {}
    assert aligned(Alignment(Snapshot(98, 99, frozenset({98})), [98]), row("101:102:101", TEN)).reason is None


def test_an_old_transaction_that_has_not_written_to_our_tables_blocks_no_recount() -> None:
    """Open for days, or prepared, in any database: what it may still do comes later, in this reader's own stream."""
    alignment = Alignment(Snapshot(50, 100, frozenset({50})))
    assert counts(aligned(alignment, row("50:120:50", TEN), xid=121)) == TEN
    alignment.follow([transaction(50, SEND)])
    assert counts(aligned(alignment, row("50:130:50", TEN), xid=131)) == {7: (9, 0, 1, 0, 0)}


def test_a_transaction_that_comes_in_this_stream_is_settled() -> None:
    alignment = Alignment(Snapshot(98, 99, frozenset({98})), [98])
    alignment.follow([transaction(98, SEND)])
    assert not alignment.unsettled
    assert counts(aligned(alignment, row("98:120:98", TEN))) == {7: (9, 0, 1, 0, 0)}


def test_a_transaction_that_was_seen_idle_is_settled_unless_it_has_ended_meanwhile() -> None:
    for now, settled in ((Snapshot(98, 120, frozenset({98})), True), (Snapshot(120, 120), False)):
        alignment = Alignment(Snapshot(98, 99, frozenset({98})), [98])
        alignment.settle([98], now)
        assert (aligned(alignment, row("98:120:98", TEN)).reason is None) == settled


def test_a_count_from_before_the_reader_is_inconclusive_and_blames_no_transaction() -> None:
    recount = aligned(Alignment(Snapshot(101, 101)), row("99:99:", TEN))
    assert recount.reason == "the queue was counted (by snapshot 99:99) before this reader started (at 101:101)"


def test_a_count_that_does_not_see_all_that_was_forgotten_by_is_inconclusive() -> None:
    alignment = Alignment(START)
    alignment.follow([transaction(105, SEND)])
    alignment.forget(Snapshot(106, 106))
    recount = aligned(alignment, row("101:106:101", TEN))
    assert "earlier than the reader still remembers" in (recount.reason or "")


def test_what_h_sees_is_forgotten_and_the_rest_kept() -> None:
    alignment = Alignment(START)
    alignment.follow([transaction(xid, SEND) for xid in (101, 102, 103)])
    alignment.forget(Snapshot(102, 104, frozenset({102})))
    assert len(alignment) == 1
    assert counts(aligned(alignment, row("102:105:102", TEN))) == {7: (9, 0, 1, 0, 0)}


def test_forgetting_takes_no_memory_for_what_is_kept() -> None:
    """It happens every few seconds under load, with up to 250,000 transactions kept: nothing of them is copied."""
    alignment, move = Alignment(START), Move(1, QUEUED, SENT, 1)
    alignment.follow([transaction(200 + n, move) for n in range(50_000)])
    tracemalloc.start()
    try:
        alignment.forget(Snapshot(300, 300))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(alignment) == 50_000 - 100
    assert peak < 20 * len(alignment)  # a reference each


def test_h_never_goes_back() -> None:
    alignment = Alignment(Snapshot(110, 110))
    alignment.forget(Snapshot(105, 120, frozenset({105})))
    alignment.follow([transaction(107, SEND)])
    assert len(alignment) == 0
    assert aligned(alignment, row("105:120:105", TEN)).reason is not None


def test_where_memory_forces_more_verdicts_are_inconclusive_until_the_next() -> None:
    alignment = Alignment(START, most=4)
    alignment.follow([transaction(xid, SEND, Move(7, QUEUED, SENDING, 1)) for xid in (101, 102, 103)])
    assert len(alignment) == 4
    assert "still open" in (aligned(alignment, row("101:104:101", TEN)).reason or "")
    assert "than what the reader still remembers" in (aligned(alignment, row("101:101:", TEN)).reason or "")
    assert aligned(alignment, row("102:104:102", TEN)).reason is None


def test_one_transaction_that_is_larger_than_memory() -> None:
    alignment = Alignment(START, most=4)
    alignment.follow([transaction(101, *[SEND] * 9)])
    assert len(alignment) == 0
    assert aligned(alignment, row("101:102:101", TEN)).reason is not None
    assert counts(aligned(alignment, row("102:102:", TEN))) == TEN


def test_a_row_of_another_history_is_inconclusive() -> None:
    """Rows of recounts that somebody copies in have snapshots of their own: of another server, or of another time."""
    alignment = Alignment(START)
    recount = aligned(alignment, row("5000:5000:", TEN), xid=120)
    assert "another history" in (recount.reason or "")
    alignment.follow([transaction(121, SEND)])
    assert counts(aligned(alignment, row("121:122:121", TEN), xid=123)) == {7: (9, 0, 1, 0, 0)}


@pytest.mark.parametrize("snapshot", ["", "nonsense", "1:2", "a:b:c", "1:2:x"])
def test_a_snapshot_that_is_none_is_inconclusive(snapshot: str) -> None:
    assert "no snapshot" in (aligned(Alignment(START), row(snapshot, TEN)).reason or "")


def test_other_entries_of_a_recounts_transaction_stay() -> None:
    found = Alignment(START).follow([transaction(105, SEND, row("101:101:", TEN), SEND)])
    assert [type(entry) for entry in found[0].entries] == [Move, Recount, Move]


def test_and_are_remembered_for_the_next() -> None:
    alignment = Alignment(START)
    alignment.follow([transaction(105, SEND, row("101:101:", TEN))])
    assert counts(aligned(alignment, row("105:106:105", TEN))) == {7: (9, 0, 1, 0, 0)}


def test_a_run_is_inconclusive_where_it_would_need_what_could_not_be_read() -> None:
    alignment = Alignment(START)
    alignment.follow([transaction(101, Unreadable("public.x"))])
    assert "public.x" in (aligned(alignment, row("101:102:101", TEN)).reason or "")
    assert counts(aligned(alignment, row("102:102:", TEN))) == TEN
