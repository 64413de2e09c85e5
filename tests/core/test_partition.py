"""The state of a partition, by example: the four rules, the two policies, recounts, and what a flush takes along."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

import pytest

from stream.core.batch import Batch
from stream.core.campaign import MailerCampaign
from stream.core.entries import CampaignChanged, CampaignDeleted, Counted, Entry, Move, Recount, Truncate
from stream.core.flushing import Answer, Flush, FlushResult, Overwritten, ProgressRow
from stream.core.partition import Loaded, Outcome, Partition, Policy
from stream.core.position import Position
from stream.core.status import FAILED, MOVED, NEW, QUEUED, REMOVED, SENDING, SENT
from stream.core.verdict import Verdict, named

MINUTE = 29_925_228
EPOCH = 5
NONE = (0, 0, 0, 0, 0)


def loaded(
    lsn: int = 100,
    rows: Mapping[int, tuple[tuple[int, int, int, int, int], int]] | None = None,
    campaigns: Mapping[int, int] | None = None,
    *,
    based: bool = True,
    epoch: int = EPOCH,
) -> Loaded:
    """``rows``: counts and removed; ``campaigns``: what ``campaigns.sent`` shows."""
    progress = tuple(
        ProgressRow(c, counts, removed, counts[SENT] + removed) for c, (counts, removed) in (rows or {}).items()
    )
    known = {c: MailerCampaign(f"campaign {c}", "running", 100, sent) for c, sent in (campaigns or {}).items()}
    return Loaded(epoch, Position(lsn), based, MINUTE * 60_000_000, progress, known)


def partition(state: Loaded | None = None, policy: Policy = "keep", write_back: bool = True) -> Partition:
    made = Partition(0, policy, write_back)
    made.load(state if state is not None else loaded(rows={7: ((10, 0, 5, 0, 0), 0)}, campaigns={7: 5}))
    return made


def batch(begin: int, *entries: Entry, end: int = 0, epoch: int = EPOCH, minute: int = MINUTE, as_of: int = 1) -> Batch:
    """One transaction at ``begin`` holds the entries; the batch ends ten further on."""
    placed = tuple((begin, seq, entry) for seq, entry in enumerate(entries))
    return Batch(0, epoch, Position(begin), Position(end or begin + 10), as_of, placed, minute)


def recount(expected: Mapping[int, tuple[int, ...]], run: int = 1, **more: Any) -> Recount:
    """``expected``: five counts, and what the counter showed where that matters."""
    counted = {c: Counted((n[0], n[1], n[2], n[3], n[4]), n[5] if len(n) > 5 else n[2]) for c, n in expected.items()}
    return Recount(run, "manual", 17, 90, counted, **more)


def flush(state: Partition, now: float = 1.0, **result: Any) -> Flush:
    """A flush that commits."""
    made = state.take(now)
    state.flushed(made, FlushResult(**result), now)
    return made


def counts(state: Partition) -> dict[int, tuple[int, ...]]:
    return {row.campaign: (*row.counts, row.removed) for row in state.snapshot()}


SEND = Move(7, QUEUED, SENT, 1)


# ---- rules 1 to 3: epochs, repetitions, gaps, prefixes


def test_an_older_epoch_is_ignored_and_a_newer_one_asks_for_a_load() -> None:
    state = partition()
    assert state.apply(batch(100, SEND, epoch=EPOCH - 1)) is Outcome.OLD_EPOCH
    assert state.apply(batch(100, SEND, epoch=EPOCH + 1)) is Outcome.NEW_EPOCH
    assert (state.position, counts(state)) == ((100, 0), {7: (10, 0, 5, 0, 0, 0)})


def test_a_repeated_batch_is_ignored() -> None:
    state = partition()
    assert state.apply(batch(100, SEND)) is Outcome.APPLIED
    assert state.apply(batch(100, SEND)) is Outcome.REPEATED
    assert state.apply(batch(50, SEND, end=110)) is Outcome.REPEATED
    assert counts(state)[7] == (9, 0, 6, 0, 0, 0)


def test_of_a_batch_that_begins_before_the_position_only_the_rest_is_applied() -> None:
    """A reader that began again cuts batches elsewhere, even inside a transaction."""
    state = partition()
    state.apply(Batch(0, EPOCH, Position(100), Position(100, 2), 1, ((100, 0, SEND), (100, 1, SEND)), MINUTE))
    assert state.position == (100, 2)
    assert state.apply(batch(100, SEND, SEND, SEND, SEND)) is Outcome.APPLIED
    assert counts(state)[7] == (6, 0, 9, 0, 0, 0)


def test_a_batch_that_begins_beyond_the_position_is_a_gap() -> None:
    state = partition()
    assert state.apply(batch(101, SEND)) is Outcome.GAP
    assert not state.based
    assert state.gaps == 1
    assert state.position == (111, 0)


def test_a_boundary_between_transactions_is_the_next_lsn_and_zero() -> None:
    state = partition()
    assert state.apply(batch(100, end=105)) is Outcome.APPLIED
    assert state.apply(batch(105, SEND)) is Outcome.APPLIED
    assert counts(state)[7] == (9, 0, 6, 0, 0, 0)


def test_as_of_is_kept_where_a_batch_does_not_know_it() -> None:
    state = partition()
    state.apply(batch(100, as_of=77))
    state.apply(batch(110, as_of=0))
    assert state.as_of == 77


# ---- rule 4: while not based


def unbased() -> Partition:
    state = partition()
    state.apply(batch(101, SEND))
    return state


def is_based(state: Partition) -> bool:
    return state.based


def test_while_not_based_moves_are_dropped_and_nothing_is_written_but_the_watermark() -> None:
    state = unbased()
    state.apply(batch(111, SEND, Truncate(), CampaignChanged(7, "A", "paused", 1, 77)))
    assert counts(state) == {7: (10, 0, 5, 0, 0, 0)}
    assert not state.dirty
    assert state.due_at() is None
    assert flush(state) == Flush(0, EPOCH, Position(100), Position(121), False, 1)


def test_a_recount_bases_the_partition_and_sets_every_row() -> None:
    state = unbased()
    state.apply(batch(111, recount({7: (1, 2, 3, 4, 5), 8: (1, 0, 0, 0, 0)}), Move(8, QUEUED, SENT, 1)))
    assert is_based(state)
    assert counts(state) == {7: (1, 2, 3, 4, 5, 2), 8: (0, 0, 1, 0, 0, 0)}
    made = flush(state)
    assert made.due == {7: 5, 8: 1}
    assert made.answers == (Answer(1, True, None, 0, 0, 0, 2),)


def test_an_inconclusive_recount_bases_nothing() -> None:
    state = unbased()
    state.apply(batch(111, recount({}, reason="too old")))
    assert not state.based
    made = flush(state)
    assert made.answers == (Answer(1, False, "too old", inconclusive=1),)
    assert not made.rows


def test_an_inconclusive_recount_says_nothing_of_the_counts_and_makes_every_campaign_due() -> None:
    """A run may have raised a counter ahead of the stream; the entry is behind its floor, conclusive or not."""
    state = partition()
    state.apply(batch(100, recount({}, reason="too old")))
    made = flush(state)
    assert made.due == {7: 5}
    assert counts(state) == {7: (10, 0, 5, 0, 0, 0)}


def test_what_was_shown_does_not_fall_at_a_baseline() -> None:
    state = unbased()
    state.apply(batch(111, recount({7: (10, 0, 2, 0, 0, 5)})))
    (verdict,) = flush(state).verdicts
    assert verdict == Verdict(
        1,
        7,
        "baseline",
        "rows_vanished_unwatched",
        named(NONE) | {"queued": 10, "sent": 5, "removed": 0, "counter": 5},
        named(NONE) | {"queued": 10, "sent": 2, "removed": 3, "counter": 5},
        True,
        True,
    )


def test_first_contact_takes_what_the_counter_shows_above_the_live_count_as_removed() -> None:
    state = partition(loaded(campaigns={7: 20, 8: 0, 9: 300}, based=False))
    state.apply(batch(100, recount({7: (0, 0, 5, 0, 0, 20), 8: (0, 0, 6, 0, 0, 0), 9: (0, 0, 0, 0, 0, 300)})))
    made = flush(state)
    assert made.due == {7: 20, 8: 6}
    assert [(v.campaign, v.verdict, v.cause, v.estimated) for v in made.verdicts] == [
        (7, "baseline", "rows_vanished_unwatched", True),
        (8, "baseline", None, False),
    ]


def test_a_new_epoch_names_itself_as_the_cause() -> None:
    state = Partition(0)
    state.load(loaded(rows={7: ((10, 0, 5, 0, 0), 0)}, based=False), "new_epoch")
    state.apply(batch(100, recount({7: (10, 0, 5, 0, 0)})))
    (verdict,) = flush(state).verdicts
    assert (verdict.verdict, verdict.cause, verdict.estimated) == ("baseline", "new_epoch", False)


def test_a_campaign_that_goes_while_not_based_is_gone() -> None:
    """And one of the same number that comes later begins at nothing."""
    state = partition(loaded(rows={7: ((0, 0, 5, 0, 0), 4)}, campaigns={7: 9}))
    state.unbase("gap")
    state.apply(batch(100, CampaignDeleted(7), CampaignChanged(7, "again", "draft", 1, 0)))
    state.apply(batch(110, recount({7: (1, 0, 0, 0, 0)})))
    made = flush(state)
    assert counts(state) == {7: (1, 0, 0, 0, 0, 0)}
    assert made.deleted == (7,)
    assert made.due == {7: 0}


# ---- removed rows


def test_keep_a_deleted_row_does_not_unsend_a_mail() -> None:
    state = partition()
    state.apply(batch(100, Move(7, SENT, REMOVED, 2), Move(7, QUEUED, REMOVED, 3)))
    assert counts(state)[7] == (7, 0, 3, 0, 0, 2)
    assert state.sent(7) == 5
    assert flush(state).history == ()


def test_follow_a_deleted_row_is_gone() -> None:
    state = partition(policy="follow")
    state.apply(batch(100, Move(7, SENT, REMOVED, 2)))
    assert counts(state)[7] == (10, 0, 3, 0, 0, 0)
    assert flush(state).history == (((7, MINUTE, "flow"), -2),)


@pytest.mark.parametrize(("policy", "sent", "removed"), [("keep", 5, 5), ("follow", 0, 0)])
def test_clear_queue(policy: Literal["keep", "follow"], sent: int, removed: int) -> None:
    state = partition(policy=policy)
    state.apply(batch(100, Truncate(), Move(7, NEW, QUEUED, 1)))
    assert counts(state)[7] == (1, 0, 0, 0, 0, removed)
    assert state.sent(7) == sent
    assert sum(n for _, n in flush(state).history) == sent - 5


@pytest.mark.parametrize("policy", ["keep", "follow"])
def test_a_sent_row_moved_to_another_campaign_is_no_removal(policy: Literal["keep", "follow"]) -> None:
    state = partition(policy=policy)
    state.apply(batch(100, Move(7, SENT, MOVED, 1), Move(8, NEW, SENT, 1)))
    assert counts(state) == {7: (10, 0, 4, 0, 0, 0), 8: (0, 0, 1, 0, 0, 0)}
    assert dict(flush(state).history) == {(7, MINUTE, "flow"): -1, (8, MINUTE, "flow"): 1}


def test_follow_forgets_what_keep_had_kept() -> None:
    """Whoever turns the policy sees the live count from the next start on."""
    state = partition(loaded(rows={7: ((0, 0, 5, 0, 0), 4)}, campaigns={7: 9}), policy="follow")
    assert state.sent(7) == 5
    made = flush(state)
    assert made.due == {7: 5}
    assert made.history == (((7, MINUTE, "correction"), -4),)
    assert made.rows[0].removed == 0


def test_truncate_of_campaigns_takes_all() -> None:
    state = partition(loaded(rows={7: (NONE, 4)}, campaigns={7: 4, 8: 1}))
    state.apply(batch(100, Truncate("campaigns")))
    made = flush(state)
    assert (made.deleted, made.due, counts(state)) == ((7,), {}, {})


# ---- campaigns


def test_a_campaign_without_queue_rows_is_never_written() -> None:
    state = partition(loaded(campaigns={8: 300}))
    state.apply(batch(100, CampaignChanged(8, "A", "running", 10, 301), recount({8: (*NONE, 301)})))
    made = flush(state)
    assert (made.rows, made.due, made.history, made.verdicts) == ((), {}, (), ())


def test_what_a_counter_shows_before_the_first_row_is_kept() -> None:
    state = partition(loaded(campaigns={8: 300}))
    state.apply(batch(100, Move(8, NEW, QUEUED, 5), Move(8, QUEUED, SENT, 1)))
    made = flush(state)
    assert made.due == {8: 301}
    assert dict(made.history) == {(8, MINUTE, "baseline"): 300, (8, MINUTE, "flow"): 1}


def test_a_campaign_created_again_begins_at_nothing_and_its_history_too() -> None:
    state = partition(loaded(rows={7: ((0, 0, 5, 0, 0), 4)}, campaigns={7: 9}))
    state.apply(batch(100, CampaignDeleted(7), CampaignChanged(7, "again", "draft", 1, 0), Move(7, NEW, SENT, 1)))
    made = flush(state)
    assert made.deleted == (7,)  # the old history goes with it, before the new is written
    assert made.due == {7: 1}
    assert [(row.campaign, row.counts, row.removed, row.name) for row in made.rows] == [
        (7, (0, 0, 1, 0, 0), 0, "again")
    ]
    assert made.history == (((7, MINUTE, "flow"), 1),)


def test_a_deleted_campaign_takes_its_history_with_it() -> None:
    state = partition()
    state.apply(batch(100, SEND, Move(8, NEW, SENT, 1)))
    state.apply(batch(110, CampaignDeleted(7)))
    made = flush(state)
    assert (made.deleted, made.due, [row.campaign for row in made.rows]) == ((7,), {8: 1}, [8])
    assert made.history == (((8, MINUTE, "flow"), 1),)


def test_name_status_and_to_send_follow_the_stream() -> None:
    state = partition()
    state.apply(batch(100, CampaignChanged(7, None, "paused", 44, 5)))
    (row,) = flush(state).rows
    assert (row.name, row.status, row.to_send) == ("campaign 7", "paused", 44)
    assert state.status_changes == [(7, "running", "paused")]


def test_rows_that_come_back_as_sent_were_counted_by_the_counter_that_stood_there() -> None:
    """A restore, or a new key of a campaign; until the mailer sends itself."""
    state = partition()
    state.apply(batch(100, CampaignChanged(8, "Eight", "running", 9, 5)))
    state.apply(batch(110, Move(8, NEW, QUEUED, 2), Move(8, NEW, SENT, 3)))
    state.apply(batch(120, Move(8, NEW, SENT, 1)))
    assert (counts(state)[8], state.sent(8)) == ((2, 0, 4, 0, 0, 1), 5)
    state.apply(batch(130, Move(8, QUEUED, SENT, 1), Move(8, NEW, SENT, 1)))
    assert (counts(state)[8], state.sent(8)) == ((1, 0, 6, 0, 0, 1), 7)
    assert sum(n for (campaign, _, _), n in flush(state).history if campaign == 8) == 7


def test_what_a_counter_has_counted_is_known_after_a_load_as_well() -> None:
    """The session may be renewed after the campaign came, and between its rows."""
    known = {8: MailerCampaign("Eight", "running", 10, 10, came=True)}
    state = partition(Loaded(EPOCH, Position(100), True, 0, (), known))
    state.apply(batch(100, Move(8, NEW, SENT, 4)))
    assert state.sent(8) == 10
    (row,) = flush(state).rows
    assert (row.counts[SENT], row.removed, row.unmatched) == (4, 6, 6)
    state.load(Loaded(EPOCH, Position(110), True, 0, (row,), known))
    state.apply(batch(110, Move(8, NEW, SENT, 6)))
    assert (state.sent(8), flush(state).rows[0].unmatched) == (10, 0)


def test_rows_of_a_campaign_that_was_there_before_are_sent_beside_what_its_counter_shows() -> None:
    state = partition(loaded(campaigns={8: 40}))
    state.apply(batch(100, Move(8, NEW, SENT, 2)))
    assert state.sent(8) == 42


def test_a_foreign_write_of_the_counter_makes_the_campaign_due_at_most_once_a_second() -> None:
    state = partition()
    state.apply(batch(100, CampaignChanged(7, None, "running", 1, 99)))
    assert state.due_at() == 0.0
    assert flush(state, 10.0).due == {7: 5}
    state.apply(batch(110, CampaignChanged(7, None, "running", 1, 98)))
    assert state.due_at() == 11.0
    assert flush(state, 10.5).due == {}
    assert flush(state, 11.0).due == {7: 5}
    assert state.due_at() is None


def test_our_own_flush_coming_back_asks_for_no_other() -> None:
    state = partition()
    state.apply(batch(100, SEND))
    assert flush(state, 10.0).due == {7: 6}
    state.apply(batch(110, SEND))
    assert flush(state, 10.1).due == {7: 7}
    state.apply(batch(120, CampaignChanged(7, "campaign 7", "running", 100, 6)))  # the first of the two
    assert (state.dirty, state.due_at()) == (False, 11.1)
    state.apply(batch(130, CampaignChanged(7, "campaign 7", "running", 100, 7)))
    assert (state.dirty, state.due_at()) == (False, None)


def test_a_counter_that_is_written_inside_our_own_flush_is_put_right() -> None:
    """By a trigger: it puts ours back, or writes another campaign's; and again, until the trigger is gone."""
    state = partition()
    state.apply(batch(100, SEND))
    assert flush(state, 10.0).due == {7: 6}
    for at, now in ((110, 11.0), (120, 12.0)):
        state.apply(batch(at, CampaignChanged(7, "campaign 7", "running", 100, 5)))
        assert state.due_at() == now
        assert flush(state, now).due == {7: 6}


def test_a_foreign_write_that_leaves_the_counter_as_we_show_it_makes_nothing_due() -> None:
    state = partition()
    state.apply(batch(100, CampaignChanged(7, None, "paused", 1, 5)))
    assert state.due_at() is None


def test_an_overwritten_counter_is_reported_by_the_next_run_as_put_right_already() -> None:
    state = partition()
    state.apply(batch(100, CampaignChanged(7, None, "running", 1, 99)))
    flush(state, overwritten=(Overwritten(7, 99, 5),))
    state.apply(batch(110, recount({7: (10, 0, 5, 0, 0)})))
    made = flush(state)
    assert made.verdicts == (
        Verdict(1, 7, "drift", "counter_overwritten", {"counter": 99}, {"counter": 5}, corrected=True),
    )
    assert made.answers == (Answer(1, True, None, 0, 1, 0, 0),)
    state.apply(batch(120, recount({7: (10, 0, 5, 0, 0)}, run=2)))
    assert flush(state).verdicts == ()


# ---- recounts


def test_equal_is_verified() -> None:
    state = partition()
    state.apply(batch(100, SEND, recount({7: (9, 0, 6, 0, 0)})))
    made = flush(state)
    assert made.answers == (Answer(1, True, None, 1),)
    assert [(v.verdict, v.delta) for v in made.verdicts] == [("verified", {})]
    assert (made.rows[0].verified_at, made.rows[0].verified_lsn) == (17, 90)


def test_a_first_count_is_not_verified() -> None:
    state = partition(loaded(based=False))
    state.apply(batch(110, recount({7: (9, 0, 6, 0, 0)})))
    assert [(row.verified_at, row.verified_lsn) for row in flush(state).rows] == [(None, None)]
    state.apply(batch(120, recount({7: (9, 0, 6, 0, 0)}, run=2)))
    assert [(row.verified_at, row.verified_lsn) for row in flush(state).rows] == [(17, 90)]


def test_a_verified_verdict_is_kept_only_where_counts_changed_since() -> None:
    state = partition()
    state.apply(batch(100, SEND, recount({7: (9, 0, 6, 0, 0)}), recount({7: (9, 0, 6, 0, 0)}, run=2)))
    assert [v.run_id for v in flush(state).verdicts] == [1]


def test_different_is_drift_and_corrected_and_every_campaign_is_due() -> None:
    state = partition(loaded(rows={7: ((10, 0, 5, 0, 0), 1), 8: ((1, 0, 1, 0, 0), 0)}, campaigns={7: 6, 8: 1}))
    state.apply(batch(100, recount({7: (9, 0, 6, 0, 0), 8: (1, 0, 1, 0, 0)})))
    made = flush(state)
    assert [(v.campaign, v.verdict, v.cause, v.delta, v.corrected) for v in made.verdicts] == [
        (7, "drift", "missed_change", {"queued": -1, "sent": 1}, True)
    ]
    assert made.answers == (Answer(1, True, None, 1, 1),)
    assert made.due == {7: 7, 8: 1}
    assert made.history == (((7, MINUTE, "correction"), 1),)
    assert counts(state)[7] == (9, 0, 6, 0, 0, 1)


def test_rows_of_a_campaign_that_the_stream_did_not_know_are_a_missed_change() -> None:
    state = partition(loaded(campaigns={8: 0}))
    state.apply(batch(100, recount({8: (1, 0, 2, 0, 0, 0)})))
    (verdict,) = flush(state).verdicts
    assert (verdict.verdict, verdict.cause) == ("drift", "missed_change")


def test_the_row_of_a_campaign_that_is_not_mentioned_goes() -> None:
    state = partition()
    state.apply(batch(100, recount({})))
    made = flush(state)
    assert (made.deleted, counts(state)) == ((7,), {})


def test_rebase_sets_removed_to_zero_where_it_is_asked() -> None:
    for rebase, left in (("all", [0, 0]), ((7,), [0, 3]), ((), [2, 3]), (None, [2, 3])):
        state = partition(loaded(rows={7: (NONE, 2), 8: (NONE, 3)}, campaigns={7: 2, 8: 3}))
        state.apply(batch(100, recount({7: (*NONE, 2), 8: (*NONE, 3)}, rebase=rebase)))
        assert [row.removed for row in state.snapshot()] == left
        made = flush(state)
        assert sum(n for _, n in made.history) == sum(left) - 5
        assert list(made.due.values()) == left


def test_what_damages_the_counts_in_memory_is_told_as_lost_state() -> None:
    state = partition()
    state.apply(batch(100, SEND))
    state._campaigns[7].places[SENT] += 5
    state.apply(batch(110, recount({7: (9, 0, 6, 0, 0)})))
    made = flush(state)
    assert [(v.verdict, v.cause) for v in made.verdicts] == [("drift", "lost_state")]
    assert made.history == (((7, MINUTE, "flow"), 1),)  # it had told the truth


def test_what_damages_the_store_is_told_as_lost_state_by_the_next_load() -> None:
    """Counts that do not add up to what they were written with."""
    row = ProgressRow(7, (10, 0, 9, 0, 0), 0, 5)
    state = partition(Loaded(EPOCH, Position(100), True, 0, (row,), {7: MailerCampaign("A", "running", 1, 5)}))
    state.apply(batch(100, recount({7: (10, 0, 5, 0, 0)})))
    (verdict,) = flush(state).verdicts
    assert (verdict.verdict, verdict.cause) == ("drift", "lost_state")


def test_a_recount_asks_the_store_whether_it_holds_what_was_written() -> None:
    state = partition()
    state.apply(batch(100, SEND))
    assert flush(state).check is None
    state.apply(batch(110, SEND, recount({7: (8, 0, 7, 0, 0)})))
    assert flush(state).check == {7: (9, 0, 6, 0, 0, 0)}
    assert flush(state).check is None


# ---- flushing


def test_a_flush_takes_what_changed_and_the_next_one_nothing() -> None:
    state = partition()
    assert (state.dirty, state.apply(batch(100, SEND)), state.dirty) == (False, Outcome.APPLIED, True)
    made = flush(state)
    assert made == Flush(
        0,
        EPOCH,
        Position(100),
        Position(110),
        True,
        1,
        rows=(ProgressRow(7, (9, 0, 6, 0, 0), 0, 6, None, None, "campaign 7", "running", 100),),
        history=(((7, MINUTE, "flow"), 1),),
        due={7: 6},
    )
    assert not state.dirty
    assert flush(state) == Flush(0, EPOCH, Position(110), Position(110), True, 1)


def test_the_swap_expects_what_was_loaded_or_written_last() -> None:
    state = partition()
    state.apply(batch(100, SEND))
    first = state.take(1.0)
    state.apply(batch(110, SEND))
    assert first.expected == (100, 0)
    state.flushed(first, FlushResult(), 1.0)
    assert state.take(2.0).expected == (110, 0)


def test_after_a_load_every_campaign_whose_counter_differs_is_due() -> None:
    rows = {n: ((0, 0, n, 0, 0), 1) for n in (5, 6, 7)}
    state = partition(loaded(rows=rows, campaigns={5: 6, 6: 0}))
    assert flush(state).due == {6: 7}


def test_a_load_forgets_what_was_not_written() -> None:
    state = partition()
    state.apply(batch(100, SEND, recount({7: (0, 0, 1, 0, 0)})))
    state.load(loaded(rows={7: ((10, 0, 5, 0, 0), 0)}, campaigns={7: 5}))
    assert not state.dirty
    assert flush(state).empty


def test_rows_that_an_interim_raise_put_there_are_no_contact() -> None:
    """Not based: the campaign was never met. Based: it is a campaign with no rows yet."""
    state = partition(loaded(rows={7: (NONE, 0)}, campaigns={7: 50}, based=False))
    state.apply(batch(100, recount({7: (0, 0, 20, 0, 0, 50)})))
    assert counts(state)[7] == (0, 0, 20, 0, 0, 30)
    state = partition(loaded(rows={7: (NONE, 0)}, campaigns={7: 50}))
    state.apply(batch(100, Move(7, NEW, SENT, 50)))
    assert counts(state)[7] == (0, 0, 50, 0, 0, 0)


def test_a_campaign_whose_row_is_locked_stays_due() -> None:
    state = partition()
    state.apply(batch(100, SEND))
    flush(state, 10.0, held=frozenset({7}))
    assert (state.dirty, state.due_at()) == (False, 10.5)
    assert flush(state, 10.4).due == {}
    assert flush(state, 10.5).due == {7: 6}
    assert state.due_at() is None


def test_shadow_mode_writes_no_counter() -> None:
    state = partition(write_back=False)
    state.apply(batch(100, SEND, CampaignChanged(7, None, "running", 1, 99)))
    made = flush(state)
    assert (made.due, len(made.rows), state.due_at()) == ({}, 1, None)


def test_shadow_mode_claims_no_correction_of_a_counter() -> None:
    state = partition(write_back=False)
    state.apply(batch(101, SEND))  # a gap
    state.apply(batch(111, recount({7: (0, 0, 5, 0, 0, 2), 8: (0, 0, 5, 0, 0, 5)})))
    verdicts = flush(state).verdicts
    assert [(v.campaign, v.after["counter"], v.corrected) for v in verdicts if v.after] == [(7, 2, False), (8, 5, True)]


def test_history_is_by_commit_minute_and_its_sum_is_sent() -> None:
    state = partition()
    state.apply(batch(100, SEND, Move(7, SENT, FAILED, 3)))
    state.apply(batch(110, Move(7, QUEUED, SENT, 4), Move(7, QUEUED, SENDING, 4), minute=MINUTE + 1))
    assert dict(flush(state).history) == {(7, MINUTE, "flow"): -2, (7, MINUTE + 1, "flow"): 4}
    assert state.sent(7) == 5 - 2 + 4


def test_only_entries_of_a_batch_are_applied() -> None:
    with pytest.raises(TypeError, match="no entry"):
        partition().apply(Batch(0, EPOCH, Position(100), Position(110), 1, ((100, 0, "nonsense"),), 1))  # type: ignore[arg-type]


def test_moves_may_add_up_to_nothing() -> None:
    state = partition()
    moves = Counter({(QUEUED, SENDING): 2, (SENDING, QUEUED): 2})
    state.apply(batch(100, *(Move(7, a, b, n) for (a, b), n in moves.items())))
    assert counts(state)[7] == (10, 0, 5, 0, 0, 0)
