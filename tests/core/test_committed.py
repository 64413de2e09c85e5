"""What a committed flush says: merging two of them, and the core's flush with its times."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from stream.core.committed import CampaignRow, CommittedFlush, merged, of_flush
from stream.core.flushing import Flush, ProgressRow
from stream.core.position import Position
from stream.core.verdict import Verdict

NOW = datetime(2026, 3, 1, tzinfo=timezone.utc)


def row(campaign: int, sent: int = 0) -> CampaignRow:
    return CampaignRow(campaign, "Sale", "running", 100, (100 - sent, 0, sent, 0, 0), 0, sent)


def flush(at: int, *rows: CampaignRow, **more: object) -> CommittedFlush:
    values: dict[str, object] = {"epoch": 1, "partition": 0, "as_of": NOW, "based": True, **more}
    return CommittedFlush(position=Position(at), rows=rows, **values)  # type: ignore[arg-type]


def test_two_flushes_in_one_are_the_two_of_them() -> None:
    one = flush(1, row(7, 1), row(8, 1), whole=True)
    both = merged(one, flush(2, row(7, 2), deleted=(8,)))
    assert ({it.campaign_id: it.sent for it in both.rows}, both.deleted, both.whole) == ({7: 2}, (8,), True)
    again = merged(both, flush(3, row(8, 3)))
    assert (again.deleted, again.position) == ((), Position(3))
    whole = merged(again, flush(4, row(9, 4), whole=True, verdicts=(Verdict(1, 9, "drift"),)))
    assert [it.campaign_id for it in whole.rows] == [9]


def test_a_core_flush_is_told_with_its_times() -> None:
    at = int(NOW.timestamp() * 1e6)
    rows = (ProgressRow(7, (1, 2, 3, 4, 5), 6, 9, at, 16, "Sale", "running", 30),)
    told_ = of_flush(Flush(2, 5, Position(1), Position(2), True, at + 250_000, rows, (8,)))
    assert told_ == CommittedFlush(
        5,
        2,
        Position(2),
        NOW + timedelta(milliseconds=250),
        True,
        (CampaignRow(7, "Sale", "running", 30, (1, 2, 3, 4, 5), 6, 9, NOW, 16),),
        (8,),
    )
