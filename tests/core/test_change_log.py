"""The change log: newest state by order of change, resumable, bounded."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import datetime, timezone

from hypothesis import given
from hypothesis import strategies as st

from stream.core.change_log import (
    MARK_EVERY,
    REMEMBERED,
    ROUND,
    CampaignGone,
    CampaignState,
    Change,
    ChangeLog,
)
from stream.core.committed import CampaignRow, CommittedFlush
from stream.core.position import Position
from stream.core.verdict import Verdict

NOW = datetime(2026, 3, 1, tzinfo=timezone.utc)


def encode(number: int, change: Change, _: ChangeLog) -> bytes:
    return f"{number} {type(change).__name__}".encode()


def row(campaign: int, sent: int = 0, name: str = "Sale", status: str = "running") -> CampaignRow:
    return CampaignRow(campaign, name, status, 100, (100 - sent, 0, sent, 0, 0), 0, sent)


def flush(at: int, *rows: CampaignRow, **more: object) -> CommittedFlush:
    values: dict[str, object] = {"epoch": 1, "partition": 0, "as_of": NOW, "based": True, **more}
    return CommittedFlush(position=Position(at), rows=rows, **values)  # type: ignore[arg-type]


def sent_of(log: ChangeLog) -> dict[int, int]:
    return {number: campaign.row.sent for number, campaign in log.campaigns.items()}


def told(log: ChangeLog, since: int, campaign: int | None = None) -> list[object]:
    """What a client is told, as campaign ids, names and verdict texts."""
    words: list[object] = []
    for event in log.since(since, campaign):
        change = event.change
        if isinstance(change, CampaignState):
            words.append((change.row.campaign_id, change.row.sent))
        elif isinstance(change, CampaignGone):
            words.append(("gone", change.campaign_id))
        elif isinstance(change, Verdict):
            words.append(change.verdict)
        else:
            words.append(("mark", change.partition))
    return words


def test_each_campaign_is_told_once_however_often_it_changed() -> None:
    log = ChangeLog(encode)
    for at in range(1, 50):
        log.flushed(flush(at, row(7, at)))
    log.publish(0)
    assert told(log, 0) == [(7, 49), ("mark", 0)]


def test_no_campaign_is_told_more_often_than_every_quarter_of_a_second() -> None:
    log = ChangeLog(encode)
    rounds = []
    for step in range(100):  # ten seconds in tenths
        log.flushed(flush(step + 1, row(7, step)))
        if log.publish(step / 10):
            rounds.append(step / 10)
    assert all(later - earlier >= ROUND for earlier, later in itertools.pairwise(rounds))
    assert len(rounds) > 30


def test_the_first_change_after_a_rest_is_told_at_once() -> None:
    log = ChangeLog(encode)
    log.flushed(flush(1, row(7, 1)))
    assert log.wait(100.0) == 0
    assert log.publish(100.0) is not None
    assert log.wait(100.0) is None
    log.flushed(flush(2, row(7, 2)))
    assert log.wait(100.1) == ROUND - 0.1 or abs((log.wait(100.1) or 0) - (ROUND - 0.1)) < 1e-9
    assert log.publish(100.1) is None
    assert log.publish(100.0 + ROUND) is not None


def test_resume_tells_what_changed_since_and_nothing_else() -> None:
    log = ChangeLog(encode)
    log.flushed(flush(1, row(7), row(8), row(9)))
    log.publish(0)
    seen = log.last
    log.flushed(flush(2, row(8, 5)))
    log.flushed(flush(3, deleted=(9,)))
    log.publish(10)
    assert log.resumable(seen)
    assert told(log, seen) == [(8, 5), ("gone", 9), ("mark", 0)]
    assert told(log, log.last) == []


def test_one_campaigns_stream_hears_of_itself_its_partition_and_its_verdicts() -> None:
    log = ChangeLog(encode)
    log.flushed(flush(1, row(7, 1), row(8, 1), verdicts=(Verdict(1, 8, "drift"),)))
    log.flushed(flush(1, row(9, 1), partition=1, verdicts=(Verdict(1, 9, "verified"),)))
    log.publish(0)
    assert told(log, 0, 8) == [(8, 1), ("mark", 0), "drift"]
    assert told(log, 0, 9) == [(9, 1), ("mark", 1), "verified"]


def test_an_older_flush_changes_nothing_that_is_newer() -> None:
    log = ChangeLog(encode)
    log.flushed(flush(9, row(7, 9)))
    log.flushed(flush(5, row(7, 5), row(8, 5), whole=True))  # a slow look at the store
    assert sent_of(log) == {7: 9, 8: 5}, "what it alone knows is taken"
    assert log.marks[0].position == Position(9)
    log.flushed(flush(1, row(7, 1), epoch=2))
    assert sent_of(log) == {7: 1, 8: 5}, "a newer epoch may begin at a smaller LSN"
    log.flushed(flush(99, row(7, 99)))
    assert sent_of(log) == {7: 1, 8: 5}, "an older epoch is over"


def test_a_slow_look_does_not_bring_back_what_is_gone_nor_take_away_what_is_new() -> None:
    log = ChangeLog(encode)
    log.flushed(flush(1, row(7)))
    log.flushed(flush(9, row(6), deleted=(7,)))
    log.flushed(flush(5, row(7, 5), whole=True))
    assert set(log.campaigns) == {6}
    log.flushed(flush(10, row(7, 1)))
    assert set(log.campaigns) == {6, 7}


def test_a_verdict_in_an_older_flush_is_told_all_the_same() -> None:
    log = ChangeLog(encode)
    log.flushed(flush(9))
    log.flushed(flush(5, verdicts=(Verdict(1, 7, "drift"),)))
    log.publish(0)
    assert "drift" in told(log, 0)


def test_a_whole_flush_takes_away_what_is_missing_in_its_partition_alone() -> None:
    log = ChangeLog(encode)
    log.flushed(flush(1, row(7), row(8)))
    log.flushed(flush(1, row(9), partition=1))
    log.outside([row(10)])
    log.flushed(flush(2, row(7), whole=True))
    assert set(log.campaigns) == {7, 9, 10}


def test_a_name_that_is_not_known_keeps_the_one_that_is() -> None:
    log = ChangeLog(encode)
    log.outside([row(7, name="Spring", status="paused")])
    log.flushed(flush(1, row(7, 3, name="", status="")))
    assert (log.campaigns[7].row.name, log.campaigns[7].row.status) == ("Spring", "paused")
    log.outside([row(7, 99, name="Summer")])
    assert log.campaigns[7].row.name == "Summer"
    assert sent_of(log) == {7: 3}, "counts are the stream's"


def test_equal_rows_are_no_news() -> None:
    log = ChangeLog(encode)
    log.flushed(flush(1, row(7, 3)))
    log.publish(0)
    log.flushed(flush(1, row(7, 3)))
    assert log.wait(10) is None


def test_marks_alone_are_told_once_a_second() -> None:
    log = ChangeLog(encode)
    log.flushed(flush(1))
    assert log.publish(0) is not None
    log.flushed(flush(2))
    assert log.publish(ROUND) is None
    assert log.wait(ROUND) == MARK_EVERY - ROUND
    assert log.publish(MARK_EVERY) is not None


def test_losing_the_base_and_growing_stale_are_told_at_once() -> None:
    log = ChangeLog(encode)
    log.flushed(flush(1))
    log.publish(0)
    log.flushed(flush(2, based=False))
    assert log.publish(ROUND) is not None
    log.aged(lambda mark: mark.position == Position(2))
    assert log.marks[0].stale
    assert log.publish(2 * ROUND) is not None
    log.flushed(flush(3, based=False))
    assert log.marks[0].stale, "until time has been looked at again"


def test_a_rate_that_is_not_named_is_none() -> None:
    log = ChangeLog(encode)
    log.flushed(flush(1, row(7), row(8)))
    log.rates({7: 12.0, 99: 1.0})
    log.publish(0)
    assert log.campaigns[7].rate == 12.0
    log.rates({})
    assert log.campaigns[7].rate == 0.0
    assert log.publish(1) is not None


def test_a_verdict_that_comes_twice_is_told_once() -> None:
    log = ChangeLog(encode)
    verdict = Verdict(4, 7, "drift", "missed_change")
    log.flushed(flush(1, verdicts=(verdict,)))
    log.publish(0)
    log.flushed(flush(2, verdicts=(replace(verdict),)))
    log.publish(10)
    assert told(log, 0).count("drift") == 1


def test_memory_is_bounded_and_who_missed_something_forgotten_is_told_so() -> None:
    log = ChangeLog(encode)
    log.flushed(flush(1, row(7)))
    log.publish(0)
    seen = log.last
    for run in range(REMEMBERED + 50):
        log.flushed(flush(2 + run, verdicts=(Verdict(run, 7, "drift"),)))
        log.publish(1.0 + run)
    assert not log.resumable(seen)
    assert log.resumable(log.last)
    assert len(log.since(0)) <= REMEMBERED + 2
    for number in range(100, 100 + REMEMBERED + 50):
        log.flushed(flush(5000 + number, row(number)))
        log.flushed(flush(5000 + number, deleted=(number,)))
        log.publish(5000.0 + number)
    assert len(log.since(0)) <= 2 * REMEMBERED + 2


def test_no_number_of_another_process_can_be_gone_on_from() -> None:
    log = ChangeLog(encode)
    log.flushed(flush(1, row(7)))
    log.publish(0)
    assert not log.resumable(log.last + 1)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["flush", "delete", "verdict", "outside", "publish", "join"]),
            st.integers(1, 5),
            st.integers(0, 100),
        ),
        max_size=60,
    )
)
def test_whoever_follows_ends_up_with_what_is_true(steps: list[tuple[str, int, int]]) -> None:
    log = ChangeLog(encode)
    clients: list[tuple[int, dict[int, int]]] = []
    clock = 0.0
    for at, (step, campaign, sent) in enumerate([*steps, ("publish", 1, 0)], 1):
        if step == "flush":
            log.flushed(flush(at, row(campaign, sent)))
        elif step == "delete":
            log.flushed(flush(at, deleted=(campaign,)))
        elif step == "outside":
            log.outside([row(campaign + 10, sent)])
        elif step == "verdict":
            log.flushed(flush(at, verdicts=(Verdict(at, campaign, "drift"),)))
        elif step == "join":
            clients.append((log.last, dict(sent_of(log))))
        else:
            clock += 1
            log.publish(clock)
    for number, known in clients:
        for event in log.since(number):
            if isinstance(event.change, CampaignState):
                known[event.change.row.campaign_id] = event.change.row.sent
            elif isinstance(event.change, CampaignGone):
                known.pop(event.change.campaign_id, None)
        assert known == sent_of(log)
