"""Rows of ``recounts`` that any role with INSERT may write: what can't be read is inconclusive, and never a stop."""

from __future__ import annotations

from typing import Any

import pytest

from stream.core.align import Alignment, Snapshot
from stream.core.entries import Counted, Recount
from stream.core.fold import Fold
from tests.core import wal

GOOD = {"7": [1, 2, 3, 4, 5, 3]}


def recount_of(values: dict[str, Any]) -> Recount:
    fold, alignment = Fold(), Alignment(Snapshot(100, 100))
    fold.block(wal.relations())
    row = {
        "run_id": 1,
        "trigger": "manual",
        "requested_by": "x",
        "started_at": wal.EPOCH_2000,
        "lsn": 1,
        "snapshot": "101:101:",
        "counts": GOOD,
        "rebase": None,
        "epoch": 1,
        "removed_policy": "keep",
        **values,
    }
    (found,) = alignment.follow(fold.block(wal.transaction(1000, wal.RECOUNTS.insert(row), xid=110)))
    (entry,) = found.entries
    assert isinstance(entry, Recount)
    return entry


def test_a_row_that_can_be_read() -> None:
    entry = recount_of({"rebase": [7, -1]})
    assert (entry.reason, entry.expected, entry.rebase) == (None, {7: Counted((1, 2, 3, 4, 5), 3)}, (7, -1))
    assert recount_of({"rebase": "all"}).rebase == "all"


@pytest.mark.parametrize(
    "values",
    [
        {"counts": None},
        {"counts": []},
        {"counts": {"1": [0]}},
        {"counts": {"1": [0, 0, 1.5, 0, 0, 0]}},
        {"counts": {"1": [0, 0, True, 0, 0, 0]}},
        {"counts": {"1": [0, 0, -1, 0, 0, 0]}},
        {"counts": {"1": [0, 0, 2**63 - 1, 0, 0, 0]}},
        {"counts": {"1": [0, 0, 10**40, 0, 0, 0]}},
        {"counts": {"1": [0, 0, 1, 0, 0, 2**63]}},
        {"counts": {"x": [0] * 6}},
        {"counts": {"9" * 30: [0] * 6}},
        {"counts": {"01": [0] * 6}},
        {"rebase": ["x", {}]},
        {"rebase": {}},
        {"rebase": 7},
        {"rebase": [2**63]},
        {"started_at": 2**63 - 1},
        {"started_at": -1},
        {"snapshot": None},
        {"snapshot": "1:2"},
    ],
)
def test_what_cannot_be_read_is_inconclusive_and_rebases_nothing(values: dict[str, Any]) -> None:
    entry = recount_of(values)
    assert entry.reason
    assert (entry.run_id, entry.expected) == (1, {})
    if "snapshot" not in values:
        assert entry.rebase is None
