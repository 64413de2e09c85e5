"""When a recount is due: every trigger, levels that last, events that are kept, and never a storm."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.core import schedule
from stream.core.schedule import Agenda, Facts, Trigger, closing, counted, due, failed, noticed, saw_status

INTERVAL = 300.0
CALM = Facts(partitions=1, based=True, run_age=1.0, cost=0.05)
#: an agenda whose first run was counted at 0
STARTED = counted(noticed(Agenda(), CALM, 0.0), CALM, 0.0)


def asked(agenda: Agenda, facts: Facts, now: float, interval: float = INTERVAL) -> tuple[Trigger, ...]:
    return due(noticed(agenda, facts, now), facts, interval, now)


def test_it_counts_at_start() -> None:
    assert asked(Agenda(), CALM, 100.0) == ("start",)
    assert asked(STARTED, CALM, 100.0) == ()


def test_the_first_run_waits_for_the_stream_but_not_for_ever() -> None:
    down = replace(CALM, alive=False, based=False)
    agenda = noticed(Agenda(), down, 100.0)
    assert due(agenda, down, INTERVAL, 100.0) == ()
    assert asked(agenda, replace(down, alive=True), 101.0) == ("start", "gap")
    assert asked(agenda, down, 100.0 + schedule.START_PATIENCE) == ("start", "gap")


def test_a_stream_that_begins_while_we_look_is_counted_at_once() -> None:
    nobody, first = Facts(partitions=0, based=True), replace(CALM, alive=False, based=False)
    agenda = noticed(noticed(Agenda(), nobody, 100.0), nobody, 101.0)
    assert asked(agenda, first, 101.1) == ("start", "gap")


def test_nothing_is_due_before_a_stream_has_ever_run() -> None:
    nobody = Facts(partitions=0, based=True)
    assert asked(Agenda(), nobody, 1000.0) == ()


def test_it_counts_by_the_interval_whoever_counted_last() -> None:
    assert asked(STARTED, replace(CALM, run_age=299.9), 1000.0) == ()
    assert asked(STARTED, replace(CALM, run_age=300.0), 1000.0) == ("interval",)
    assert asked(STARTED, replace(CALM, run_age=20.0), 1000.0, interval=10.0) == ("interval",)


def test_a_clock_that_was_put_back_does_not_suspend_the_interval() -> None:
    assert asked(STARTED, replace(CALM, run_age=-3600.0), 1000.0) == ("interval",)


@pytest.mark.parametrize(
    ("old", "new", "trigger"),
    [
        ("running", "paused", "paused"),
        ("running", "cancelled", "cancelled"),
        ("paused", "cancelled", "cancelled"),
        ("running", "finished", "finished"),
        ("paused", "running", "resumed"),
        ("cancelled", "running", "resumed"),
        ("finished", "running", "resumed"),
    ],
)
def test_it_counts_when_a_campaign_pauses_resumes_finishes_or_is_cancelled(
    old: str, new: str, trigger: Trigger
) -> None:
    agenda = saw_status(STARTED, old, new, 100.0)
    assert asked(agenda, CALM, 100.0 + schedule.GATHER) == (trigger,)


@pytest.mark.parametrize(
    ("old", "new"), [("draft", "running"), ("", "running"), ("draft", "scheduled"), ("scheduled", "running")]
)
def test_a_campaign_that_begins_is_no_reason(old: str, new: str) -> None:
    assert asked(saw_status(STARTED, old, new, 100.0), CALM, 200.0) == ()


def test_changes_that_fall_together_are_one_run() -> None:
    agenda = STARTED
    for n in range(40):
        agenda = saw_status(agenda, "running", "paused", 100.0 + n * 0.005)
    agenda = saw_status(agenda, "running", "finished", 100.21)
    assert asked(agenda, CALM, 100.24) == ()
    assert asked(agenda, CALM, 100.25) == ("paused", "finished")
    assert asked(counted(agenda, CALM, 100.25), CALM, 105.0) == ()


def test_before_a_pause_it_does_not_wait_for_others() -> None:
    agenda = closing(replace(STARTED, last=99.9), 100.0)
    assert asked(agenda, replace(CALM, cost=5.0), 100.0) == ("before_pause",)


def test_an_event_that_comes_while_a_run_is_counted_is_not_lost() -> None:
    agenda = counted(saw_status(STARTED, "running", "paused", 100.0), CALM, 100.4)
    agenda = saw_status(agenda, "paused", "running", 100.5)
    assert asked(agenda, CALM, 102.0) == ("resumed",)


def test_while_a_partition_is_not_based_it_asks_again_and_again() -> None:
    facts = replace(CALM, based=False)
    agenda, times, now = STARTED, [], 100.0
    while now < 200.0:
        if asked(agenda, facts, now):
            assert asked(agenda, facts, now) == ("gap",)
            times.append(now)
            agenda = counted(noticed(agenda, facts, now), facts, now)
        now += 0.25
    pauses = [b - a for a, b in pairwise(times)]
    assert pauses == [1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0, 15.0, 15.0]
    assert asked(agenda, CALM, 300.0) == ()
    assert asked(noticed(agenda, CALM, 300.0), facts, 300.25) == ("gap",)  # a new gap starts anew


def test_with_a_run_on_its_way_it_is_patient() -> None:
    facts = replace(CALM, based=False, pending=True)
    agenda = counted(STARTED, facts, 100.0)
    assert asked(agenda, facts, 159.0) == ()
    assert asked(agenda, facts, 160.0) == ("gap",)
    assert asked(agenda, replace(facts, pending=False), 102.0) == ("gap",)  # it passed by without an answer


def test_an_inconclusive_run_is_repeated_under_its_own_name() -> None:
    facts = replace(CALM, inconclusive="paused")
    assert asked(STARTED, facts, 100.0) == ("paused",)
    agenda = counted(noticed(STARTED, facts, 100.0), facts, 100.0)
    assert asked(agenda, facts, 100.9) == ()
    assert asked(agenda, facts, 101.0) == ("paused",)
    assert asked(agenda, CALM, 101.0) == ()


def test_a_paused_campaign_with_rows_sending_is_counted_again_for_up_to_an_hour() -> None:
    facts = replace(CALM, sending=frozenset((7,)))
    agenda, times, now = STARTED, [], 0.0
    while now < 5000.0:
        if asked(agenda, facts, now):
            assert asked(agenda, facts, now) == ("drain",)
            times.append(now)
            agenda = counted(noticed(agenda, facts, now), facts, now)
        else:
            agenda = noticed(agenda, facts, now)
        now += 1.0
    pauses = [b - a for a, b in pairwise(times)]
    assert times[0] == schedule.DRAIN_FIRST
    assert pauses == sorted(pauses)
    assert max(pauses) == schedule.DRAIN_MOST
    assert 3300 < times[-1] <= 3600
    assert len(times) < 25


def test_what_has_drained_is_counted_once_more() -> None:
    draining, drained = replace(CALM, sending=frozenset((7,))), replace(CALM, sending=frozenset())
    agenda = noticed(STARTED, draining, 100.0)
    assert due(agenda, draining, INTERVAL, 105.0) == ()
    agenda = noticed(agenda, drained, 106.0)
    assert due(agenda, drained, INTERVAL, 106.0) == ("drain",)
    assert asked(counted(agenda, drained, 106.0), drained, 200.0) == ()


def test_nobody_looked_means_nothing_new() -> None:
    agenda = noticed(STARTED, replace(CALM, sending=frozenset((7,))), 100.0)
    assert noticed(agenda, CALM, 101.0) == agenda


def test_a_recount_takes_at_most_a_tenth_of_the_time() -> None:
    agenda = saw_status(replace(STARTED, last=100.0), "running", "paused", 100.1)
    slow = replace(CALM, cost=3.0)
    assert asked(agenda, slow, 129.9) == ()
    assert asked(agenda, slow, 130.0) == ("paused",)


def test_before_a_pause_it_tries_again_within_seconds_however_often_it_failed() -> None:
    agenda = closing(STARTED, 100.0)
    for _ in range(8):
        agenda = failed(agenda, 100.0)
    assert asked(agenda, replace(CALM, run_age=400.0), 102.0) == ()
    assert asked(agenda, CALM, 100.0 + schedule.URGENT_PAUSE) == ("before_pause",)
    assert asked(failed(agenda, 103.0), CALM, 103.0 + schedule.URGENT_PAUSE) == ("before_pause",)
    calm = failed(replace(agenda, events=frozenset(("paused",))), 103.0)
    assert asked(calm, CALM, 103.0 + schedule.URGENT_PAUSE) == ()


def test_after_a_failure_it_tries_again_and_forgets_nothing() -> None:
    agenda = saw_status(STARTED, "running", "paused", 100.0)
    agenda = failed(agenda, 101.0)
    assert asked(agenda, CALM, 101.9) == ()
    assert asked(agenda, CALM, 102.0) == ("paused",)
    again = failed(agenda, 102.0)
    assert asked(again, CALM, 103.9) == ()
    assert asked(again, CALM, 104.0) == ("paused",)
    assert counted(again, CALM, 104.0).failure == schedule.Repeat()


class World:
    """A reconciler's days, played fast: what happens to it, and when it counted."""

    def __init__(self) -> None:
        self.agenda, self.now, self.fails = Agenda(), 0.0, False
        self.facts = Facts(partitions=1, based=True, cost=0.05)
        self.runs: list[tuple[float, tuple[Trigger, ...]]] = []
        self.owed: set[str] = set()

    def status(self, new: str) -> None:
        self.agenda = saw_status(self.agenda, "running", new, self.now)
        self.owed.add(new)

    def closing(self, _: object) -> None:
        self.agenda = closing(self.agenda, self.now)
        self.owed.add("before_pause")

    def based(self, value: bool) -> None:
        self.facts = replace(self.facts, based=value)

    def sending(self, campaigns: frozenset[int]) -> None:
        self.facts = replace(self.facts, sending=campaigns)

    def inconclusive(self, value: bool) -> None:
        self.facts = replace(self.facts, inconclusive="interval" if value else None)

    def failing(self, value: bool) -> None:
        self.fails = value

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.tick()
            self.now += 0.25

    def tick(self) -> None:
        self.facts = replace(self.facts, run_age=self.now - self.runs[-1][0] if self.runs else None)
        self.agenda = noticed(self.agenda, self.facts, self.now)
        found = due(self.agenda, self.facts, INTERVAL, self.now)
        if found and self.fails:
            self.agenda = failed(self.agenda, self.now)
        elif found:
            self.runs.append((self.now, found))
            self.agenda = counted(self.agenda, self.facts, self.now)
            self.owed -= set(found)


happenings = st.one_of(
    st.tuples(st.just("status"), st.sampled_from(["paused", "cancelled", "finished"])),
    st.tuples(st.just("closing"), st.none()),
    st.tuples(st.just("based"), st.booleans()),
    st.tuples(st.just("sending"), st.frozensets(st.integers(1, 3))),
    st.tuples(st.just("inconclusive"), st.booleans()),
    st.tuples(st.just("failing"), st.booleans()),
    st.tuples(st.just("wait"), st.floats(0.01, 30)),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(happenings, max_size=60))
def test_no_event_is_lost_and_no_storm_breaks_out(history: list[tuple[str, Any]]) -> None:
    """Whatever happens: every event is counted after it, runs keep their distance, what is not based is never left."""
    world = World()
    for what, value in [*history, ("failing", False), ("wait", schedule.FAILURE_PAUSE + 2)]:
        getattr(world, what)(value)
    assert not world.owed
    for (first, _), (second, found) in pairwise(world.runs):
        assert second - first >= schedule.UNHURRIED or set(found) & schedule.URGENT
    if not world.facts.based:
        assert world.now - world.runs[-1][0] <= schedule.GAP_PAUSE + 1
