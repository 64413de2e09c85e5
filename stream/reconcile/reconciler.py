"""The reconciler: counts when the schedule says so, then looks after every run until it is sealed, whoever began it.

A thin loop over one connection. What is due is decided by ``stream/core/schedule.py`` and ``stream/core/window.py``;
the counting, the raising and the chain are ``connectors/postgres/{recount,raising,reports}.py``. A look, some times a
second:

    facts   -> agenda -> due triggers -> one recount
    runs    -> settled: observations, seal, one log line, news of drift
               not answered in time: raise campaigns.sent (DESIGN 4), once
    stream  -> news of stall and recovery
    hourly  -> retention

Embedded it is a thread of ``run``; in the Kafka shape a process of its own (``main``).
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any, Final

import psycopg

from connectors.mailer.tracking import Observation, news
from connectors.mailer.window import read_window
from connectors.postgres.connect import connect
from connectors.postgres.queries import recount_state
from connectors.postgres.store import raise_counters, recount, reports
from stream.config.settings import Settings
from stream.core import schedule
from stream.core.errors import ConfigurationError, SentstreamError
from stream.core.pace import Backoff
from stream.core.report import Report, Run
from stream.core.schedule import Agenda, Facts, Trigger
from stream.core.window import SendWindow, Watch, always_open, begin, look
from stream.metrics import endpoint
from stream.metrics.families import Page
from stream.metrics.observed import RecountMetrics
from stream.metrics.states import ReconcilerState, reconciler_families, reconciler_health
from stream.reconcile.runs import conclude, log_run, observe, recount_once, request
from stream.reconcile.webhook import Notifier
from stream.service.signals import CurrentSettings, until_signalled

log = logging.getLogger("sentstream.reconciler")

#: seconds between two looks: while something is under way, and at rest
BUSY_LOOK: Final = 0.1
LOOK: Final = 1.0
#: seconds between two looks at the statuses (where the log does not tell them) and at what drains
STATUS_LOOK: Final = 5.0
#: `as_of` may be this old (s) while the stream counts as up; older than STALLED is news
UP: Final = 5.0
STALLED: Final = 30.0
#: seconds between two observations: for triggers that come often, and for the others
OBSERVE_EVERY: Final = 60.0
OBSERVE_LEAST: Final = 5.0
#: with the stream down a closing window is counted again halfway to its next repetition: fifteen seconds are promised
#: as the greatest age of the counter, and counting and raising take their time
HALFWAY: Final = 7.0
PRUNE_EVERY: Final = 3600.0
#: runs sealed at one look: after an outage there may be thousands, and counting goes on
SEALS: Final = 20
#: drifts that a message to NOTIFY_URL carries
TOLD_DRIFTS: Final = 50

__all__ = ["Reconciler", "conclude", "main", "recount_once", "request"]


def utc_now() -> datetime:
    return datetime.now(timezone.utc)


class Reconciler:
    """Run it in a thread. ``settings``: those in force now (they may be read again); ``wall``: the clock by which the
    send window is judged, ``seconds`` that of pauses; ``follow_log``: a stream in this process tells changes of status
    (`saw_status`)."""

    def __init__(
        self,
        settings: Callable[[], Settings],
        *,
        wall: Callable[[], datetime] = utc_now,
        seconds: Callable[[], float] = time.monotonic,
        follow_log: bool = True,
    ) -> None:
        self._settings = settings
        self._wall = wall
        self._seconds = seconds
        self._follow_log = follow_log
        self._notifier = Notifier(lambda: settings().notify_url)
        self._wake = threading.Event()
        self._heard: deque[tuple[int, str, str]] = deque()
        self._unbased = False
        self._agenda = Agenda()
        self._watch: Watch | None = None
        self._statuses: dict[int, str] = {}
        self._next: dict[str, float] = {}
        self._raised: dict[int, float] = {}
        self._observed: tuple[Observation, ...] = ()
        self._observed_at = float("-inf")
        self._stalled = False
        self._began = seconds()
        self._closing_again: float | None = None
        self._said: dict[str, str] = {}
        self.state = ReconcilerState()
        self.metrics = RecountMetrics()

    # ---- what others tell it ------------------------------------------------------------------------------------

    def saw_status(self, campaign: int, old: str, new: str) -> None:
        """A campaign's status changed, as the log shows it. From any thread; never blocks."""
        self._heard.append((campaign, old, new))
        self._wake.set()

    def saw_unbased(self) -> None:
        """A partition is not based any more, which the watermarks may not show yet. From any thread; never blocks."""
        self._unbased = True
        self._wake.set()

    def request_now(
        self, requested_by: str, rebase: recount.Rebase = None, trigger: Trigger = "manual", timeout: float = 30.0
    ) -> Run:
        """Count now, in the caller's thread, on a connection of its own; the open run, which the loop looks after."""
        settings = self._settings()
        with connect(settings.require_database(), "recount") as conn:
            run = request(conn, settings, trigger, requested_by, rebase=rebase, turn=timeout)
        self._wake.set()
        return run

    # ---- the loop -----------------------------------------------------------------------------------------------

    def run(self, stop: threading.Event) -> None:
        """Until ``stop`` is set. A lost connection is opened again, and a fault of ours ends one look and no more: only
        a setting that is wrong is raised."""
        backoff = Backoff(first=0.5, most=self._settings().reconnect_max)
        try:
            while not stop.is_set():
                try:
                    with connect(self._settings().require_database(), "reconciler") as conn:
                        backoff = backoff.succeeded()
                        self._session(conn, stop)
                except ConfigurationError:
                    raise
                except Exception as error:
                    known = isinstance(error, (SentstreamError, psycopg.Error, OSError))
                    self._say("session", f"the reconciler tries again: {_plain(error)}", known=known)
                    backoff = backoff.failed()
                    stop.wait(backoff.pause)
        finally:
            self._notifier.close()

    def _session(self, conn: psycopg.Connection[Any], stop: threading.Event) -> None:
        while not stop.is_set():
            busy = self.poll(conn)
            self.state.connected, self.state.round_at = True, time.monotonic()
            self._say("session", "")
            deadline = time.monotonic() + (BUSY_LOOK if busy else LOOK)
            while not stop.is_set() and (left := deadline - time.monotonic()) > 0:
                if self._wake.wait(min(left, 0.25)):
                    self._wake.clear()
                    stop.wait(0.02)  # a flood of news is one look
                    break

    def poll(self, conn: psycopg.Connection[Any]) -> bool:
        """Look once, and do what is due; whether something is under way, so that the next look should be soon."""
        settings, now = self._settings(), self._seconds()
        seen = recount_state.read_recount_state(conn)
        up = seen.as_of_age is not None and seen.as_of_age <= UP
        facts = self._facts(conn, settings, seen, up, now)
        self._hear(conn, settings, up, now)
        self._look_at_window(conn, settings, up, now)
        self._agenda = schedule.noticed(self._agenda, facts, now)
        triggers = schedule.due(self._agenda, facts, settings.recount_interval, now)
        if triggers:
            self._count(conn, settings, triggers, facts)
        waiting = self._look_after_runs(conn, settings, up)
        self._look_at_stream(seen, now)
        self._prune(conn, settings, now)
        starting = seen.partitions > 0 and not self._agenda.started
        return waiting or starting or self._agenda.events_since is not None

    def _facts(
        self, conn: psycopg.Connection[Any], settings: Settings, seen: recount_state.RecountState, up: bool, now: float
    ) -> Facts:
        sending = None
        if seen.partitions and self._turn("draining", now, STATUS_LOOK):
            sending = recount_state.read_draining(conn, settings.mailer_schema, stream_up=up and seen.based)
        known: Trigger | None = next((t for t in schedule.ORDER if t == seen.trigger), None)
        return Facts(
            seen.partitions,
            seen.based and not self._unbased,
            up or self._unbased,
            seen.pending,
            seen.run_age,
            seen.cost,
            known if seen.inconclusive else None,
            sending,
        )

    def _turn(self, what: str, now: float, every: float) -> bool:
        """Whether it is time for ``what`` again."""
        if now < self._next.get(what, float("-inf")):
            return False
        self._next[what] = now + every
        return True

    # ---- events -------------------------------------------------------------------------------------------------

    def _hear(self, conn: psycopg.Connection[Any], settings: Settings, up: bool, now: float) -> None:
        """Changes of status: from the log, or by looking where it does not tell them (now)."""
        first = not self._statuses
        if (first or not self._follow_log or not up) and self._turn("statuses", now, STATUS_LOOK):
            statuses = recount_state.read_statuses(conn, settings.mailer_schema)
            if not first:
                changed = ((c, self._statuses.get(c, ""), new) for c, new in statuses.items())
                self._heard.extend(change for change in changed if change[1] != change[2])
            else:
                self._statuses = statuses
        while self._heard:
            campaign, old, new = self._heard.popleft()
            if self._statuses.get(campaign) == new:
                continue  # told twice
            self._statuses[campaign] = new
            self._agenda = schedule.saw_status(self._agenda, old, new, now)

    def _look_at_window(self, conn: psycopg.Connection[Any], settings: Settings, up: bool, now: float) -> None:
        if not self._turn("window", now, LOOK * 0.9):
            return
        window = self._window(conn, settings)
        wall = self._wall()
        if self._watch is None:
            # what a restart has missed is due, as long as the mailer may not have paused yet
            self._watch = replace(begin(window, wall), looked=wall - timedelta(seconds=30))
        self._watch, closing = look(self._watch, window, wall, stream_up=up)
        again = self._closing_again is not None and now >= self._closing_again
        if closing is None and not again:
            return
        self._agenda = schedule.closing(self._agenda, now)
        self._closing_again = now + HALFWAY if closing is not None and not up else None

    def _window(self, conn: psycopg.Connection[Any], settings: Settings) -> SendWindow:
        try:
            window = read_window(conn, settings.mailer_schema, zone=settings.timezone)
        except ConfigurationError as error:
            self._say("window", str(error))
            return always_open()
        self._say("window", "")
        return window

    # ---- counting -----------------------------------------------------------------------------------------------

    def _count(
        self, conn: psycopg.Connection[Any], settings: Settings, triggers: tuple[Trigger, ...], facts: Facts
    ) -> None:
        now = self._seconds()
        self._unbased = False
        try:
            run = request(conn, settings, triggers[0], "reconciler", also=triggers[1:], turn=5.0)
        except SentstreamError as error:
            self._agenda = schedule.failed(self._agenda, now)
            self.metrics.failed()
            self._unbased = self._unbased or not facts.based
            self._say("recount", f"no recount ({', '.join(triggers)}): {error}")
            return
        self._say("recount", "")
        self._agenda = schedule.counted(self._agenda, facts, now)
        log.debug("run %d counted at %s in %.1f ms (%s)", run.run_id, run.lsn, run.count_ms, ", ".join(triggers))

    # ---- runs ---------------------------------------------------------------------------------------------------

    def _look_after_runs(self, conn: psycopg.Connection[Any], settings: Settings, up: bool) -> bool:
        """Seal what is settled, raise what waits too long; whether a run is young enough to be answered soon."""
        oldest, abandon = reports.oldest_open(conn), settings.report_retention
        if oldest is None:
            self._raised.clear()
            return False
        if oldest.settled or oldest.age > abandon:
            observer = self._observer(conn, settings)
            for report in reports.seal_settled(conn, observe=observer, abandon_after=abandon, most=SEALS):
                self._report(report)
        newest = reports.newest_open(conn)
        if newest is None:
            return False
        if settings.write_back:
            self._raise(conn, settings, newest, up)
        return oldest.settled or newest.age < settings.recount_patience * 2

    def _raise(self, conn: psycopg.Connection[Any], settings: Settings, newest: reports.OpenRun, up: bool) -> None:
        """The newest run alone: it counted last. Where the stream is down before a pause there is no time to wait."""
        now = self._seconds()
        patience = 0.0 if newest.trigger == "before_pause" and not up else settings.recount_patience
        if newest.settled or newest.age < patience or now < self._raised.get(newest.run_id, 0.0):
            return
        raised = raise_counters.raise_counters(conn, newest.run_id, mailer_schema=settings.mailer_schema)
        self._raised = {newest.run_id: now + 1.0 if raised.held else float("inf")}
        self.metrics.raised(len(raised.raises))
        if raised.raises:
            log.warning(
                "run %d is not comparable yet (the stream is %s): raised campaigns.sent of %d campaigns by %d in all%s",
                newest.run_id,
                "behind" if up else "down",
                len(raised.raises),
                sum(r.after - r.before for r in raised.raises),
                f", {len(raised.held)} more are locked" if raised.held else "",
            )

    def _report(self, report: Report) -> None:
        """The run's log line, and news of drift."""
        log_run(report)
        self.metrics.observe(report)
        if report.run.tally.drift:
            drifts = [v.as_json() for v in report.verdicts if v.verdict == "drift"]
            run = {**report.run.as_json(), "observations": len(report.run.observations)}
            self._notifier.notify("drift", {"run": run, "drifts": drifts[:TOLD_DRIFTS]})

    def _observer(self, conn: psycopg.Connection[Any], settings: Settings) -> Callable[[Run], Sequence[dict[str, Any]]]:
        def observe_run(run: Run) -> Sequence[dict[str, Any]]:
            now, frequent = self._seconds(), run.trigger in ("before_pause", "drain", "gap")
            if now - self._observed_at < (OBSERVE_EVERY if frequent else OBSERVE_LEAST):
                return ()
            self._observed_at = now
            found = observe(conn, settings.mailer_schema)
            told = news(found, self._observed)
            self._observed = tuple(found)
            return [observation.as_json() for observation in told]

        return observe_run

    # ---- the stream, and retention ------------------------------------------------------------------------------

    def _look_at_stream(self, seen: recount_state.RecountState, now: float) -> None:
        """News of a stall and of its end. A stream that is just starting is not called stalled."""
        if not seen.partitions or now - self._began < STALLED:
            return
        age = seen.as_of_age
        words = {"as_of": None if seen.as_of is None else seen.as_of.isoformat(), "age_seconds": age and round(age, 1)}
        if not self._stalled and (age is None or age > STALLED):
            self._stalled = True
            log.warning("the stream stands still: nothing applied after %s", seen.as_of or "its beginning")
            self._notifier.notify("stall", words)
        elif self._stalled and age is not None and age <= UP:
            self._stalled = False
            log.info("the stream goes on")
            self._notifier.notify("recovery", words)

    def _prune(self, conn: psycopg.Connection[Any], settings: Settings, now: float) -> None:
        if not self._turn("prune", now, PRUNE_EVERY):
            return
        runs = reports.prune_reports(conn, settings.report_retention)
        minutes = reports.prune_history(conn, settings.history_retention)
        if runs or minutes:
            self._next["prune"] = now + 10.0  # there may be more
            log.info("retention: %d runs lost their counts, %d minutes of history were folded", runs, minutes)

    def _say(self, what: str, words: str, *, known: bool = True) -> None:
        """Log a problem once, not at every look; "" means that it is over. A fault of ours comes with its traceback."""
        if self._said.get(what, "") != words:
            self._said[what] = words
            if words:
                log.error("%s", words, exc_info=not known)


def main(settings: Settings, reload: Callable[[], Settings] | None = None) -> int:
    """The role ``reconcile``: until SIGTERM or Ctrl-C. SIGHUP reads the settings again."""
    now, stop = CurrentSettings(settings, reload), threading.Event()
    log.info("reconciling every %g s", settings.recount_interval)
    reconciler = Reconciler(now, follow_log=False)
    with until_signalled(stop, now.reload), _shown(settings, reconciler):
        reconciler.run(stop)
    log.info("bye")
    return 0


def _shown(settings: Settings, reconciler: Reconciler) -> contextlib.AbstractContextManager[object]:
    """METRICS_LISTEN, for the role."""
    page = Page(lambda: reconciler_families(reconciler.state), reconciler.metrics.families)
    page.add_process()
    limit = settings.recount_timeout + settings.stall_restart  # a look that counts takes as long as the count may
    shown = endpoint.start(settings, page.text, lambda: reconciler_health(reconciler.state, limit))
    return shown or contextlib.nullcontext()


def _plain(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
