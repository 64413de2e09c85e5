"""Folding as a property: whatever happens to a dict of rows, the entries of its log come to the same counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from stream.core import pgoutput
from stream.core.entries import CampaignChanged, CampaignDeleted, Move, Transaction
from stream.core.errors import SentstreamError
from stream.core.fold import Fold
from stream.core.status import NEW
from tests.core import wal
from tests.core.oracle import Act, Oracle, live, replay
from tests.core.test_fold import SHAPES
from tests.core.wal import Table

acts = st.lists(st.tuples(st.integers(0, 18), st.integers(0, 40), st.integers(0, 14)), max_size=25)
histories = st.lists(acts, min_size=1, max_size=8)
shapes = st.sampled_from(sorted(SHAPES.values(), key=str))


def logged(oracle: Oracle, history: list[list[Act]]) -> Iterator[list[bytes]]:
    """The messages of each transaction of the history, one after the other as it happens."""
    for number, transaction in enumerate(history):
        lsn = 1000 * (number + 1)
        yield [wal.begin(lsn), *oracle.play(transaction), wal.commit(lsn, lsn + 900)]


@given(shapes, histories)
def test_folded_counts_are_those_of_the_rows(shape: Table, history: list[list[Act]]) -> None:
    fold, oracle = Fold(), Oracle(shape)
    fold.block(wal.relations(shape, wal.CAMPAIGNS, wal.WATERMARKS))
    counts: dict[int, Counter[int]] = {}
    for messages in logged(oracle, history):
        for transaction in fold.block(b"".join(messages)):
            replay(counts, transaction.entries)
        assert live(counts) == oracle.counts()


@given(histories)
def test_all_shapes_fold_to_the_same_entries(history: list[list[Act]]) -> None:
    """Identity by index and FULL give the same counts; and a position depends on its transaction alone."""
    found = []
    for shape in SHAPES.values():
        fold, oracle = Fold(), Oracle(shape)
        fold.block(wal.relations(shape, wal.CAMPAIGNS, wal.WATERMARKS))
        found.append([fold.block(b"".join(messages)) for messages in logged(oracle, history)])
    assert all(each == found[0] for each in found)


@given(shapes, histories, st.lists(st.integers(1, 12), min_size=1, max_size=20))
def test_blocks_may_be_cut_between_any_two_messages(shape: Table, history: list[list[Act]], sizes: list[int]) -> None:
    whole, pieces, oracle = Fold(), Fold(), Oracle(shape)
    messages = [wal.relations(shape, wal.CAMPAIGNS, wal.WATERMARKS)]
    for transaction in logged(oracle, history):
        messages += transaction
    at_once = whole.block(b"".join(messages))
    cut: list[Transaction] = []
    number = 0
    while messages:
        size = sizes[number % len(sizes)]
        cut += pieces.block(b"".join(messages[:size]))
        del messages[:size]
        number += 1
    assert cut == at_once
    assert (pieces.end, pieces.time, pieces.open) == (whole.end, whole.time, False)


@given(shapes, histories)
def test_a_reader_that_begins_anywhere_gives_a_transaction_the_same_entries(
    shape: Table, history: list[list[Act]]
) -> None:
    """What was learned and remembered before must not show: seq depends on it."""
    lasting, oracle = Fold(), Oracle(shape)
    relations = wal.relations(shape, wal.CAMPAIGNS, wal.WATERMARKS)
    lasting.block(relations)
    for messages in logged(oracle, history):
        fresh = Fold()
        fresh.block(relations)
        data = b"".join(messages)
        assert lasting.block(data) == fresh.block(data)


@given(shapes, histories)
def test_entries_are_merged_as_far_as_barriers_allow(shape: Table, history: list[list[Act]]) -> None:
    fold, oracle = Fold(), Oracle(shape)
    fold.block(wal.relations(shape, wal.CAMPAIGNS, wal.WATERMARKS))
    for messages in logged(oracle, history):
        for transaction in fold.block(b"".join(messages)):
            assert transaction.entries
            if any(isinstance(entry, CampaignDeleted) for entry in transaction.entries):
                continue  # what was counted before it stands apart
            seen: set[tuple[int, int, int]] = set()
            for entry in transaction.entries:
                if isinstance(entry, Move):
                    key = (entry.campaign, entry.source, entry.target)
                    assert key not in seen
                    assert entry.source != entry.target
                    assert entry.n > 0
                    seen.add(key)
                elif not isinstance(entry, CampaignChanged):
                    seen.clear()


def test_no_flipped_byte_of_the_structure_passes() -> None:
    """Values that are wrong in transit are the network's to notice. But no flip of a tag, a kind or a length may hide
    a row: with any byte changed, there is an error, or each status gained as many rows as before."""
    old, new = wal.row(7, "queued"), wal.row(7, "sent")
    for shape in (SHAPES["index"], SHAPES["index, another order"], SHAPES["full"]):
        head = wal.relations(shape)
        rows = [shape.insert(old), shape.update(old, new), shape.update(new, new), shape.update(old, old)]
        data = bytearray(wal.transaction(1000, *rows, shape.delete(new), *[shape.update(new, old)] * 4))
        fold = Fold()
        fold.block(head)
        expected = _by_status(fold.block(bytes(data)))
        for at, right in enumerate(bytes(data)):
            wrongs = {right ^ 1 << bit for bit in range(8)} | {0, 255, 40, 6, right + 1 & 255, right - 1 & 255}
            for wrong in wrongs - {right}:
                data[at] = wrong
                fresh = Fold()
                fresh.block(head + wal.transaction(500, *rows))
                with suppress(SentstreamError):
                    assert _by_status(fresh.block(bytes(data))) == expected
            data[at] = right


def _by_status(found: list[Transaction]) -> list[int]:
    """What each status gained, whatever the campaign."""
    rows = [0] * 8
    for transaction in found:
        for entry in transaction.entries:
            assert isinstance(entry, Move)
            rows[entry.source] -= entry.n
            rows[entry.target] += entry.n
    return rows[:NEW]


@given(st.binary(max_size=300))
def test_any_bytes_are_only_ever_our_error(data: bytes) -> None:
    for head in (b"", wal.relations() + wal.begin(1)):
        fold = Fold()
        with suppress(SentstreamError):
            fold.block(head + data)


def test_the_epoch_of_postgresql() -> None:
    assert wal.EPOCH_2000 == pgoutput.EPOCH_2000
