"""What a recount's flush finds in the store itself."""

from __future__ import annotations

from stream.core.flushing import Answer, Flush, ProgressRow, with_store_faults
from stream.core.position import Position
from stream.core.verdict import Verdict, named

SAME = named([1, 0, 2, 0, 0], 3)
ROWS = tuple(ProgressRow(c, (1, 0, 2, 0, 0), 3, 5) for c in (7, 8))
STORED = {7: (1, 0, 2, 0, 0, 3), 8: (1, 0, 2, 0, 0, 3)}
FLUSH = Flush(
    0,
    1,
    Position(1),
    Position(2),
    True,
    0,
    rows=ROWS,
    verdicts=tuple(Verdict(4, c, "verified", None, SAME, SAME) for c in (7, 8)),
    answers=(Answer(3, True, None, 2), Answer(4, True, None, 2)),
    check=STORED,
)


def test_a_store_as_we_left_it_changes_nothing() -> None:
    assert with_store_faults(FLUSH, STORED) is FLUSH


def test_without_a_recount_nobody_asks() -> None:
    plain = Flush(0, 1, Position(1), Position(2), True, 0, rows=ROWS)
    assert with_store_faults(plain, {}) is plain


def test_a_row_changed_behind_our_back_is_lost_state_and_corrected() -> None:
    found = with_store_faults(FLUSH, {**STORED, 8: (0, 0, 9, 0, 0, 3)})
    fault = Verdict(4, 8, "drift", "lost_state", named([0, 0, 9, 0, 0], 3), SAME, corrected=True)
    assert found.verdicts == (FLUSH.verdicts[0], fault)
    assert found.answers == (Answer(3, True, None, 2), Answer(4, True, None, 1, 1))


def test_a_row_that_vanished_is_lost_state() -> None:
    found = with_store_faults(FLUSH, {7: STORED[7]})
    assert found.verdicts[-1] == Verdict(4, 8, "drift", "lost_state", {}, SAME, corrected=True)


def test_removed_is_looked_at_too() -> None:
    assert with_store_faults(FLUSH, {**STORED, 8: (1, 0, 2, 0, 0, 4)}).verdicts[-1].delta == {"removed": -1}


def test_a_campaign_that_drifted_already_drifts_once() -> None:
    drift = Verdict(4, 8, "drift", "missed_change", named([0] * 5), SAME, corrected=True)
    flush = Flush(
        0, 1, Position(1), Position(2), True, 0, ROWS, verdicts=(drift,), answers=(Answer(4, True),), check=STORED
    )
    assert with_store_faults(flush, {**STORED, 8: (0, 0, 9, 0, 0, 3)}) is flush


def test_a_campaign_that_is_gone_meanwhile_is_no_fault() -> None:
    flush = Flush(0, 1, Position(1), Position(2), True, 0, ROWS[:1], answers=(Answer(4, True),), check=STORED)
    assert with_store_faults(flush, {7: STORED[7]}) is flush


def test_empty_is_a_watermark_and_nothing_else() -> None:
    assert Flush(0, 1, Position(1), Position(2), True, 0).empty
    assert not FLUSH.empty
    assert not Flush(0, 1, Position(1), Position(2), True, 0, due={7: 1}).empty
