"""Batches tile the stream: wherever they are cut, every entry is in exactly one of them."""

from __future__ import annotations

import pytest

from stream.core.batch import MINUTE, Batcher
from stream.core.entries import Move, Transaction
from stream.core.position import Position


@pytest.mark.parametrize("partitions", [1, 3])
@pytest.mark.parametrize(("most", "per_minute"), [(7, 1000), (1000, 7), (7, 11)])
def test_no_entry_is_lost_where_a_batch_closes_in_the_middle_of_a_gulp(
    partitions: int, most: int, per_minute: int
) -> None:
    batcher = Batcher(1, Position(0), partitions, lambda campaign: campaign % partitions, most)
    transactions = [
        Transaction(10 * n, 10 * n + 5, n // per_minute * MINUTE, n, (Move(n % 5, 0, 1, 1),)) for n in range(1, 101)
    ]
    batches = [*batcher.add(transactions), *batcher.cut()]
    entries = sorted(placed[0] for batch in batches for placed in batch.entries)
    assert entries == [10 * n for n in range(1, 101)]
    for number in range(partitions):
        mine = [batch for batch in batches if batch.partition == number]
        assert [batch.end for batch in mine[:-1]] == [batch.begin for batch in mine[1:]]
