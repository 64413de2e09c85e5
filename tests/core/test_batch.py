"""Cutting transactions into batches: each entry once, in its place, whatever the cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.core.batch import MINUTE, Batch, Batcher
from stream.core.entries import (
    CampaignChanged,
    CampaignDeleted,
    Counted,
    Entry,
    Move,
    Recount,
    Transaction,
    Truncate,
    Unreadable,
)
from stream.core.position import Position
from stream.core.status import NEW, QUEUED

NONE = (0, 0, 0, 0, 0)


def move(campaign: int, n: int = 1) -> Move:
    return Move(campaign, NEW, QUEUED, n)


def transaction(lsn: int, *entries: Entry, time: int = MINUTE) -> Transaction:
    return Transaction(lsn, lsn + 10, time, 1, entries)


def modulo(partitions: int) -> Batcher:
    return Batcher(1, Position(5), partitions, lambda campaign: campaign % partitions)


def test_a_batch_says_what_all_lies_in_it() -> None:
    batcher = Batcher(7, Position(5))
    assert batcher.add([transaction(100, move(1), move(2)), transaction(200, move(3), time=MINUTE + 5)]) == []
    assert batcher.waiting == 3
    (batch,) = batcher.cut(Position(300), MINUTE + 9)
    entries = ((100, 0, move(1)), (100, 1, move(2)), (200, 0, move(3)))
    assert batch == Batch(0, 7, Position(5), Position(300), MINUTE + 9, entries, 1)
    assert batcher.waiting == 0


def test_an_idle_database_makes_batches_without_entries() -> None:
    batcher = Batcher(7, Position(5))
    assert batcher.cut(Position(8), 99) == [Batch(0, 7, Position(5), Position(8), 99)]
    assert batcher.cut(Position(9)) == [Batch(0, 7, Position(8), Position(9), 99)]


def test_an_end_that_is_older_than_a_commit_is_taken_for_it() -> None:
    batcher = Batcher(7, Position(5))
    batcher.add([transaction(100, move(1), time=MINUTE)])
    (batch,) = batcher.cut(Position(50), MINUTE - 3)
    assert (batch.end, batch.as_of) == (Position(110), MINUTE)


def test_a_batch_that_ends_before_it_begins_is_none() -> None:
    with pytest.raises(ValueError, match="before it begins"):
        Batch(0, 1, Position(5), Position(4), 0)


def test_the_commit_minute_closes_a_batch() -> None:
    batcher = modulo(2)
    closed = batcher.add([transaction(100, move(1)), transaction(200, move(2), time=2 * MINUTE)])
    assert [(b.partition, b.begin, b.end, b.minute, len(b.entries)) for b in closed] == [(1, (5, 0), (110, 0), 1, 1)]
    again = batcher.cut()
    assert [(b.partition, b.begin, b.minute, len(b.entries)) for b in again] == [(0, (5, 0), 2, 1), (1, (110, 0), 2, 0)]


def test_a_giant_transaction_is_split_at_a_seq() -> None:
    batcher = Batcher(1, Position(5), most=3)
    closed = batcher.add([transaction(100, *(move(n) for n in range(1, 8)))])
    assert [(b.begin, b.end) for b in closed] == [((5, 0), (100, 3)), ((100, 3), (100, 6))]
    (last,) = batcher.cut()
    assert (last.begin, last.end, len(last.entries)) == ((100, 6), (110, 0), 1)


def test_as_of_is_a_time_up_to_which_all_is_contained() -> None:
    """A batch that is cut inside a transaction does not contain it whole: it is as of the one before."""
    batcher = Batcher(1, Position(5), most=2)
    batcher.add([transaction(50, move(1), time=MINUTE)])
    first, second = batcher.add([transaction(100, move(1), move(2), move(3), time=MINUTE + 7)])
    assert (first.end, first.as_of) == ((100, 1), MINUTE)
    assert (second.end, second.as_of) == ((110, 0), MINUTE + 7)


def test_as_of_follows_a_clock_that_was_put_back() -> None:
    batcher, hour = Batcher(1, Position(5)), 3600 * 10**6
    (batch,) = batcher.cut(Position(10), 2 * hour)
    assert batch.as_of == 2 * hour
    assert batcher.cut(Position(20), 2 * hour - 10**6)[0].as_of == 2 * hour, "a keepalive sent before a commit"
    assert batcher.cut(Position(30), hour)[0].as_of == hour


def test_moves_and_campaigns_go_to_their_partition_and_the_rest_to_all() -> None:
    batcher = modulo(2)
    changed, deleted = CampaignChanged(1, "A", "running", 5, 0), CampaignDeleted(2)
    batcher.add([transaction(100, deleted, changed, move(1), Truncate(), move(2))])
    even, odd = batcher.cut()
    assert even.entries == ((100, 0, deleted), (100, 3, Truncate()), (100, 4, move(2)))
    assert odd.entries == ((100, 1, changed), (100, 2, move(1)), (100, 3, Truncate()))


def test_each_partition_gets_its_share_of_a_recount_and_an_inconclusive_one_whole() -> None:
    batcher = modulo(3)
    expected = {n: Counted((n, 0, 0, 0, 0), 0) for n in range(1, 8)}
    batcher.add([transaction(100, Recount(1, "manual", 9, 3, expected, (4, 5)))])
    batcher.add([transaction(200, Recount(2, "manual", 9, 3, {}, "all", "too old"))])
    shares = [[placed[2] for placed in batch.entries] for batch in batcher.cut()]
    for number, (share, inconclusive) in enumerate(shares):
        mine = {n: counted for n, counted in expected.items() if n % 3 == number}
        assert share == Recount(1, "manual", 9, 3, mine, (4, 5))
        assert inconclusive == Recount(2, "manual", 9, 3, {}, "all", "too old")


def test_what_could_not_be_read_is_a_gap_in_every_partition() -> None:
    """Nothing tells what it did to the counts, so all count anew; what follows in its transaction is kept."""
    batcher = modulo(2)
    batches = batcher.add([transaction(100, move(1)), transaction(200, Unreadable("public.x"), move(2))])
    batches += batcher.cut(Position(300))
    assert [(b.partition, b.begin, b.end, b.entries) for b in batches] == [
        (0, (5, 0), (200, 0), ()),
        (1, (5, 0), (200, 0), ((100, 0, move(1)),)),
        (0, (200, 1), (300, 0), ((200, 1, move(2)),)),
        (1, (200, 1), (300, 0), ()),
    ]


sizes = st.lists(st.integers(1, 9), min_size=1, max_size=30)


@given(sizes, st.integers(1, 3), st.integers(1, 12), st.lists(st.integers(0, 3), min_size=1, max_size=8))
def test_batches_tile_the_wal_and_hold_each_entry_once(
    sizes: list[int], partitions: int, most: int, gulps: list[int]
) -> None:
    batcher = Batcher(1, Position(5), partitions, lambda campaign: campaign % partitions, most)
    transactions = [
        transaction(100 * (n + 1), *(move(c) for c in range(size)), time=MINUTE * (n // 4))
        for n, size in enumerate(sizes)
    ]
    waiting, batches, chunk = list(transactions), [], 0
    while waiting:
        size = gulps[chunk % len(gulps)]
        batches += batcher.add(waiting[:size]) if size else batcher.cut()
        del waiting[:size]
        chunk += 1
        if chunk > 200:
            break
    batches += batcher.add(waiting)
    batches += batcher.cut(Position(10**6), 10**12)
    for number in range(partitions):
        mine = [batch for batch in batches if batch.partition == number]
        assert mine[0].begin == (5, 0)
        assert mine[-1].end == (10**6, 0)
        assert [batch.end for batch in mine[:-1]] == [batch.begin for batch in mine[1:]]
        placed = [(Position(lsn, seq), entry) for batch in mine for lsn, seq, entry in batch.entries]
        assert placed == [
            (Position(t.lsn, seq), entry)
            for t in transactions
            for seq, entry in enumerate(t.entries)
            if isinstance(entry, Move) and entry.campaign % partitions == number
        ]
        for batch in mine:
            assert all(batch.begin <= (lsn, seq) < batch.end for lsn, seq, _ in batch.entries)
            minutes = {t.time // MINUTE for t in transactions for lsn, _, _ in batch.entries if t.lsn == lsn}
            assert minutes <= {batch.minute}
            whole = [t.time for t in transactions if Position(t.end) <= batch.end]
            assert batch.as_of in (10**12, max(whole, default=0))
