"""Verdicts on a lag: never OK for what stands still behind its goal, and never an alarm for what is at it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.core.lag import LagVerdict, LagWindow, Sample, judge, worst

WINDOW, ALLOWED = 60.0, 10.0


def over(*looks: tuple[float, int | None, int, float | None, bool | None]) -> LagVerdict:
    samples = [Sample(*look) for look in looks]
    return judge(samples, now=samples[-1].at, window=WINDOW, allowed=ALLOWED)


def minute(done: list[int], goal: list[int], seconds: list[float], present: bool = True) -> LagVerdict:
    samples = [Sample(at * 5.0, d, g, s, present) for at, (d, g, s) in enumerate(zip(done, goal, seconds, strict=True))]
    return judge(samples, now=samples[-1].at, window=WINDOW, allowed=ALLOWED)


def test_idle_and_healthy_is_ok() -> None:
    assert minute([7] * 12, [7] * 12, [0] * 12) is LagVerdict.OK


def test_idle_and_dead_is_a_stop() -> None:
    assert minute([7] * 12, [7] * 12, [0] * 12, present=False) is LagVerdict.STOP


def test_catching_up_is_a_warning() -> None:
    assert minute(list(range(0, 1200, 100)), [5000] * 12, [300 - 20 * i for i in range(12)]) is LagVerdict.WARN


def test_stuck_at_a_high_lag_is_a_stall() -> None:
    assert minute([100] * 12, [5000] * 12, [300 + 5 * i for i in range(12)]) is LagVerdict.STALL


def test_stuck_with_nothing_new_coming_is_a_stall() -> None:
    """Burrow's rules call a lag that does not grow fine where it was once zero."""
    assert minute([100] * 12, [100] + [101] * 11, [0] + [5.0 * i for i in range(11)]) is LagVerdict.STALL


def test_stopped_halfway_through_the_window_is_a_stall() -> None:
    assert minute([0, 100, 200, *[300] * 9], [5000] * 12, [300.0] * 12) is LagVerdict.STALL


def test_a_consumer_that_left_is_a_stop() -> None:
    assert minute([100] * 12, [5000] * 12, [300.0] * 12, present=False) is LagVerdict.STOP


def test_offsets_moved_back_are_a_rewind_until_made_up_for() -> None:
    assert minute([900, 900, 0, 100], [1000] * 4, [1, 1, 900, 800]) is LagVerdict.REWIND
    assert minute([900, 900, 0, 950], [1000] * 4, [1, 1, 900, 1]) is LagVerdict.OK


def test_a_topic_made_anew_is_a_rewind() -> None:
    assert minute([900, 900], [1000, 3], [1, 0]) is LagVerdict.REWIND


def test_offsets_that_were_dropped_are_a_rewind() -> None:
    assert over((0, 5, 9, 1, True), (5, None, 9, None, True)) is LagVerdict.REWIND


def test_a_group_that_never_committed_is_a_stop_in_time() -> None:
    assert over((0, None, 9, None, None)) is LagVerdict.UNKNOWN
    assert over((0, None, 9, None, None), (31, None, 9, None, None)) is LagVerdict.STOP


def test_one_look_at_a_high_lag_says_nothing() -> None:
    assert over((0, 5, 900, 300.0, True)) is LagVerdict.UNKNOWN


def test_old_looks_say_nothing() -> None:
    assert judge([Sample(0, 5, 5, 0, True)], now=100, window=WINDOW, allowed=ALLOWED) is LagVerdict.UNKNOWN


looks = st.lists(
    st.tuples(st.floats(0.5, 8), st.integers(0, 50), st.integers(0, 50), st.floats(0, 100)), min_size=1, max_size=40
)


@given(looks, st.integers(0, 100), st.integers(1, 1000), st.floats(10.1, 1e5))
def test_never_ok_for_what_stands_still_at_a_high_lag(
    past: list[tuple[float, int, int, float]], done: int, lag: int, seconds: float
) -> None:
    """Whatever came before: half a window without a move, and something older than allowed waits."""
    window = LagWindow(WINDOW)
    at = 0.0
    for step, moved, ahead, age in past:
        at += step
        window.add(Sample(at, min(done, moved), min(done, moved) + ahead, age, True))
    for _ in range(14):
        at += 5
        window.add(Sample(at, done, done + lag, seconds, True))
    assert window.verdict(now=at, allowed=ALLOWED) is LagVerdict.STALL


@given(looks)
def test_never_an_alarm_for_what_reached_its_goal(past: list[tuple[float, int, int, float]]) -> None:
    window = LagWindow(WINDOW)
    at, done = 0.0, 0
    for step, moved, ahead, age in past:
        at, done = at + step, done + moved
        window.add(Sample(at, done, done + ahead, age, True))
    window.add(Sample(at + 1, done, done, 0, True))
    assert window.verdict(now=at + 1, allowed=ALLOWED) is LagVerdict.OK


@given(looks, st.floats(0, 200))
def test_the_window_keeps_only_its_time(past: list[tuple[float, int, int, float]], gap: float) -> None:
    window = LagWindow(WINDOW)
    at = 0.0
    for step, moved, ahead, age in past:
        at += step
        window.add(Sample(at, moved, moved + ahead, age))
    window.add(Sample(at + gap, 1, 1))
    assert all(at + gap - sample.at <= WINDOW for sample in window.samples)


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([], "UNKNOWN"),
        (["OK", "WARN"], "WARN"),
        (["OK", "UNKNOWN"], "UNKNOWN"),
        (["STOP", "STALL", "OK"], "STOP"),
        (["REWIND", "WARN"], "REWIND"),
    ],
)
def test_the_worst_of_several(verdicts: list[str], expected: str) -> None:
    assert worst(LagVerdict(verdict) for verdict in verdicts).value == expected


def test_a_follower_that_is_gone_is_said_to_be_gone_before_half_the_window_is_over() -> None:
    window = LagWindow(60)
    for at in range(0, 13, 2):
        window.add(Sample(at, 5, 5 + at, 1.0, at < 1))
        assert window.verdict(now=at, allowed=10) is not LagVerdict.STALL
    assert window.verdict(now=12, allowed=10) is LagVerdict.STOP
