"""When a recount is due, and why. Pure: time, settings and facts are passed in, what is due comes out.

    saw_status, closing   what happened              -> agenda
    noticed               what the facts of now mean -> agenda
    due                   which triggers are due     -> begin one run for all of them
    counted, failed       what came of it            -> agenda

Levels and events: a partition that is not based, an inconclusive run and a paused campaign with rows still `sending`
are levels, asked for again as long as they last (a request can get lost); a closing window and a change of status are
events, kept until a run was counted after them. Every run counts everything: triggers that fall together are one run.

Seconds are those of one monotonic clock; only `Facts.run_age` is measured by the database's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

Trigger = Literal[
    "manual", "before_pause", "paused", "cancelled", "finished", "resumed", "drain", "start", "gap", "interval"
]

#: where several fall together, the first of these names the run
ORDER: Final[tuple[Trigger, ...]] = (
    "manual",
    "before_pause",
    "paused",
    "cancelled",
    "finished",
    "resumed",
    "drain",
    "start",
    "gap",
    "interval",
)

#: changes of status that fall this close together are one run: an auto-pause touches every campaign
GATHER: Final = 0.25
#: a recount may take one part in ten of the time; these two do not wait for that
SHARE: Final = 10.0
UNHURRIED: Final = 1.0
URGENT: Final = frozenset(("before_pause", "start"))
#: longest pause between two runs while a partition is not based; with a run still on its way to it, and while a
#: long transaction keeps runs inconclusive, longer
GAP_PAUSE: Final = 15.0
PENDING_PAUSE: Final = 60.0
INCONCLUSIVE_PAUSE: Final = 60.0
FAILURE_PAUSE: Final = 60.0
#: longest pause after a failed run where one is due before a pause: the counter may be 15 s old then, and counting and
#: raising take their time
URGENT_PAUSE: Final = 3.0
#: the mailer goes on for up to an hour after a pause; rows that a killed sender left `sending` stay so for good
#: a run that was counted before the reader took its slot can't be concluded: the first waits this long for the stream
START_PATIENCE: Final = 5.0
DRAIN_FIRST: Final = 15.0
DRAIN_MOST: Final = 300.0
DRAIN_END: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known now.

    ``partitions``: watermarks there are (0: no stream has ever run); ``based``: all of them; ``alive``: the stream was
    heard of in the last seconds; ``pending``: a run is on its way to a partition that is not based; ``run_age``:
    seconds since the newest run was counted, by any requester; ``cost``: seconds it took; ``inconclusive``: its trigger
    where a partition could not conclude it; ``sending``: paused campaigns with rows `sending`, None where it is not
    looked.
    """

    partitions: int
    based: bool
    alive: bool = True
    pending: bool = False
    run_age: float | None = None
    cost: float = 0.0
    inconclusive: Trigger | None = None
    sending: frozenset[int] | None = None


@dataclass(frozen=True, slots=True)
class Repeat:
    """Something that is asked for again, at growing distance."""

    pause: float = 0.0
    at: float = float("-inf")

    def within(self, most: float) -> float:
        """When, if no pause may be longer than ``most``."""
        return self.at - max(0.0, self.pause - most)

    def again(self, now: float, first: float, most: float, growth: float = 2.0) -> Repeat:
        pause = min(most, self.pause * growth if self.pause else first)
        return Repeat(pause, now + pause)


@dataclass(frozen=True, slots=True)
class Drain:
    """A paused campaign whose last mails still go out. ``ended``: they have gone out; one more run says so."""

    since: float
    repeat: Repeat
    ended: bool = False

    def due(self, now: float) -> bool:
        return self.ended or (now >= self.repeat.at and now - self.since <= DRAIN_END)


@dataclass(frozen=True, slots=True)
class Agenda:
    """What is to be done. ``events``: triggers since the last run, with the time of the first; ``last``: when the last
    run of ours began; ``since``: when it first knew of a stream; ``ready``: the stream was heard of, or waited for long
    enough; ``alone``: no stream had run when it last looked."""

    since: float | None = None
    ready: bool = False
    alone: bool = False
    started: bool = False
    events: frozenset[Trigger] = frozenset()
    events_since: float | None = None
    last: float | None = None
    gap: Repeat = Repeat()
    inconclusive: Repeat = Repeat()
    failure: Repeat = Repeat()
    drains: Mapping[int, Drain] = field(default_factory=dict)


def saw_status(agenda: Agenda, old: str, new: str, now: float) -> Agenda:
    """A campaign's status changed."""
    if new in ("paused", "cancelled", "finished"):
        return _event(agenda, new, now)  # type: ignore[arg-type]
    if new == "running" and old in ("paused", "cancelled", "finished"):
        return _event(agenda, "resumed", now)
    return agenda


def closing(agenda: Agenda, now: float) -> Agenda:
    """The send window is about to close, or has closed a moment ago with the stream down (``window.look``)."""
    return _event(agenda, "before_pause", now)


def _event(agenda: Agenda, trigger: Trigger, now: float) -> Agenda:
    since = now if agenda.events_since is None else agenda.events_since
    return replace(agenda, events=agenda.events | {trigger}, events_since=since)


def noticed(agenda: Agenda, facts: Facts, now: float) -> Agenda:
    """The agenda by the facts of now: what is cured is no longer asked for, what drains is watched."""
    if not facts.partitions:
        agenda = replace(agenda, alone=True)
    elif not agenda.ready:
        since = now if agenda.since is None else agenda.since
        # a reader writes the first watermarks once it has its slot: where they appear, a stream runs
        ready = facts.alive or agenda.alone or now - since >= START_PATIENCE
        agenda = replace(agenda, since=since, ready=ready, alone=False)
    if facts.based and agenda.gap != Repeat():
        agenda = replace(agenda, gap=Repeat())
    if facts.inconclusive is None and agenda.inconclusive != Repeat():
        agenda = replace(agenda, inconclusive=Repeat())
    if facts.sending is None or not (facts.sending or agenda.drains):
        return agenda
    drains = {}
    for campaign in facts.sending:
        known = agenda.drains.get(campaign)
        drains[campaign] = Drain(now, Repeat().again(now, DRAIN_FIRST, DRAIN_MOST)) if known is None else known
    for campaign, drain in agenda.drains.items():
        if campaign not in facts.sending and now - drain.since <= DRAIN_END:
            drains[campaign] = replace(drain, ended=True)
    return replace(agenda, drains=drains)


def due(agenda: Agenda, facts: Facts, interval: float, now: float) -> tuple[Trigger, ...]:
    """The triggers that are due, the one that names the run first; empty: nothing is.

    ``interval``: RECOUNT_INTERVAL. Nothing is due before a stream has ever run: there is nothing to compare with, and
    no floor could be set.
    """
    urgent = "before_pause" in agenda.events
    if not facts.partitions or now < (agenda.failure.within(URGENT_PAUSE) if urgent else agenda.failure.at):
        return ()
    found = set(_levels(agenda, facts, interval, now)) if agenda.ready else set()
    if agenda.events_since is not None and (now - agenda.events_since >= GATHER or agenda.events & URGENT or found):
        found |= agenda.events
    if not found:
        return ()
    if agenda.last is not None and not found & URGENT and now - agenda.last < max(UNHURRIED, SHARE * facts.cost):
        return ()
    return ordered(found)


def ordered(triggers: Iterable[Trigger]) -> tuple[Trigger, ...]:
    """Each once, the one that names the run first."""
    return tuple(sorted(set(triggers), key=ORDER.index))


def _levels(agenda: Agenda, facts: Facts, interval: float, now: float) -> Iterable[Trigger]:
    if not agenda.started:
        yield "start"
    if not facts.based:
        on_its_way = facts.pending and agenda.last is not None and now - agenda.last < PENDING_PAUSE
        if now >= agenda.gap.at and not on_its_way:
            yield "gap"
    elif facts.inconclusive is not None and now >= agenda.inconclusive.at:
        yield facts.inconclusive
    if any(drain.due(now) for drain in agenda.drains.values()):
        yield "drain"
    # a negative age is that of a clock that was put back
    if agenda.started and (facts.run_age is None or abs(facts.run_age) >= interval):
        yield "interval"


def counted(agenda: Agenda, facts: Facts, now: float) -> Agenda:
    """A run was counted, for any reason: it serves all that was due. ``now``: when it began."""
    drains = {}
    for campaign, drain in agenda.drains.items():
        if not drain.ended:
            repeat = drain.repeat.again(now, DRAIN_FIRST, DRAIN_MOST, 1.5) if drain.due(now) else drain.repeat
            drains[campaign] = replace(drain, repeat=repeat)
    return Agenda(
        started=True,
        last=now,
        gap=Repeat() if facts.based else agenda.gap.again(now, 1.0, GAP_PAUSE),
        inconclusive=Repeat()
        if facts.inconclusive is None
        else agenda.inconclusive.again(now, 1.0, INCONCLUSIVE_PAUSE),
        drains=drains,
    )


def failed(agenda: Agenda, now: float) -> Agenda:
    """A run could not be counted: what was due stays due, after a growing pause."""
    return replace(agenda, failure=agenda.failure.again(now, 1.0, FAILURE_PAUSE))
