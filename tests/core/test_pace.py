"""When to flush, and how long to wait: never busy, never late."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from stream.core.pace import BEHIND_FLUSH, FAR_BEHIND, TICK, Backoff, FlushPace, Waiting

PACE = FlushPace(0.1, last=10.0)


def test_changes_are_flushed_by_the_interval() -> None:
    waiting = Waiting(dirty=True, moved=True)
    assert not PACE.due(10.09, waiting)
    assert PACE.due(10.11, waiting)


def test_a_watermark_alone_is_flushed_on_the_tick_or_our_own_flush_would_ask_for_the_next() -> None:
    waiting = Waiting(dirty=False, moved=True)
    assert not PACE.due(10.0 + TICK - 0.01, waiting)
    assert PACE.due(10.0 + TICK, waiting)


def test_nothing_new_is_never_flushed() -> None:
    assert not PACE.due(10_000.0, Waiting(dirty=False, moved=False))


def test_far_behind_flushes_are_fewer() -> None:
    waiting = Waiting(dirty=True, moved=True, behind=FAR_BEHIND + 1)
    assert not PACE.due(10.0 + BEHIND_FLUSH - 0.01, waiting)
    assert PACE.due(10.0 + BEHIND_FLUSH, waiting)
    assert FlushPace(3.0, 10.0).due(12.0, waiting) is False


def test_a_locked_campaign_is_tried_again_when_its_time_has_come() -> None:
    waiting = Waiting(dirty=False, moved=False, due_at=10.5)
    assert not PACE.due(10.4, waiting)
    assert PACE.due(10.5, waiting)
    assert PACE.wait(10.2, waiting) == 0.3000000000000007


def test_the_first_flush_waits_for_nothing() -> None:
    assert FlushPace(0.1).due(0.0, Waiting(dirty=True, moved=True))


def test_flushed_begins_the_next_interval() -> None:
    assert PACE.flushed(11.0) == FlushPace(0.1, 11.0)


moments = st.sampled_from([n / 20 for n in range(61)])  # three seconds
behinds = st.sampled_from([0, FAR_BEHIND, FAR_BEHIND + 1])
waitings = st.builds(Waiting, st.booleans(), st.booleans(), st.one_of(st.none(), moments.map(lambda n: n + 9)), behinds)


@settings(max_examples=300)
@given(st.sampled_from([0.05, 0.1, 3.0]), moments, waitings)
def test_wait_is_until_due_and_not_a_moment_busy(interval: float, since: float, waiting: Waiting) -> None:
    pace, now = FlushPace(interval, 10.0), 10.0 + since
    wait = pace.wait(now, waiting)
    assert 0 <= wait <= TICK
    assert pace.due(now, waiting) == (wait == 0)
    if wait:
        assert not pace.due(now + wait - 1e-6, waiting)
        later = now + wait + 1e-6
        assert pace.due(later, waiting) or pace.wait(later, waiting) > 0.01


def test_pauses_grow_to_their_most_and_a_success_begins_anew() -> None:
    backoff, pauses = Backoff(0.2, 1.0), []
    for _ in range(5):
        backoff = backoff.failed()
        pauses.append(backoff.pause)
    assert pauses == [0.2, 0.4, 0.8, 1.0, 1.0]
    assert backoff.succeeded() == Backoff(0.2, 1.0)
    assert backoff.failed(lived=0.5).failures == backoff.failures + 1
    assert Backoff().pause == 0
    assert Backoff(failures=10_000).pause == 15.0


def test_a_session_that_lived_for_seconds_after_a_long_trouble_does_not_lengthen_the_pause() -> None:
    trouble = Backoff(0.2, 30.0, failures=8)
    assert trouble.failed().pause > trouble.pause
    assert trouble.failed(lived=4).pause == 0.2
