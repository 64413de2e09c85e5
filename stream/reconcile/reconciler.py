"""The reconciler: counts when the schedule says so, then follows every run until it is sealed.

A thin loop over one connection. ``stream/core/schedule.py`` and ``stream/core/window.py`` decide what is due;
``connectors/postgres/store`` counts, raises and seals. One poll, some times a second:

    facts   -> agenda -> due triggers -> one recount
    runs    -> inconclusive without a baseline, or not answered in time: raise campaigns.sent
               settled: observations, seal, one log line, a notification of drift
    stream  -> notifications of stall and recovery
    hourly  -> retention

A thread of ``run`` in the embedded mode, a process of its own in the Kafka mode (``main``). See docs/design/recount.md.
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
from connectors.postgres.store import reports
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
from stream.reconcile.runs import log_run, observe, raise_ahead, request
from stream.reconcile.webhook import Notifier
from stream.service.signals import CurrentSettings, until_signalled

log = logging.getLogger("sentstream.reconciler")

#: seconds between two polls: while something is under way, and at rest
BUSY_POLL: Final = 0.1
POLL: Final = 1.0
#: seconds between two readings of the statuses (where the WAL does not tell them) and of paused campaigns that drain
STATUS_POLL: Final = 5.0
#: `as_of` may be this old (s) while the stream counts as up; older than STALLED is a stall
UP: Final = 5.0
STALLED: Final = 30.0
#: seconds between two observations: for triggers that come often, and for the others
OBSERVE_EVERY: Final = 60.0
OBSERVE_LEAST: Final = 5.0
#: with the stream down a closing window is counted again halfway to its next repetition: fifteen seconds are promised
#: as the greatest age of the counter, and counting and raising take their time
HALFWAY: Final = 7.0
PRUNE_EVERY: Final = 3600.0
#: runs sealed in one poll: after an outage there may be thousands, and counting goes on
SEALS: Final = 20
#: drifts that one notification carries
NOTIFIED_DRIFTS: Final = 50


def utc_now() -> datetime:
    return datetime.now(timezone.utc)


class Reconciler:
    """Run it in a thread. ``settings``: the current ones; ``wall``: the clock by which the send window is judged,
    ``seconds`` that of pauses; ``follow_log``: a stream in this process reports changes of status (`saw_status`)."""

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
        self._notifier = Notifier(lambda: settings().secret("notify_url"))
        self._wake = threading.Event()
        self._reported: deque[tuple[int, str, str]] = deque()
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
        self._logged: dict[str, str] = {}
        self.state = ReconcilerState()
        self.metrics = RecountMetrics()

    # ---- what other threads report ------------------------------------------------------------------------------

    def saw_status(self, campaign: int, old: str, new: str) -> None:
        """A campaign's status changed, as the WAL shows it. From any thread; never blocks."""
        self._reported.append((campaign, old, new))
        self._wake.set()

    def saw_unbased(self) -> None:
        """A partition is not based any more, which the watermarks may not show yet. From any thread; never blocks."""
        self._unbased = True
        self._wake.set()

    # ---- the loop -----------------------------------------------------------------------------------------------

    def run(self, stop: threading.Event) -> None:
        """Until ``stop`` is set. A lost connection is opened again, and an unexpected exception aborts only the current
        poll: only a setting that is wrong is raised."""
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
                    self._log_once("session", f"the reconciler tries again: {_plain(error)}", known=known)
                    backoff = backoff.failed()
                    stop.wait(backoff.pause)
        finally:
            self._notifier.close()

    def _session(self, conn: psycopg.Connection[Any], stop: threading.Event) -> None:
        while not stop.is_set():
            busy = self.poll(conn)
            self.state.connected, self.state.round_at = True, time.monotonic()
            self._log_once("session", "")
            deadline = time.monotonic() + (BUSY_POLL if busy else POLL)
            while not stop.is_set() and (left := deadline - time.monotonic()) > 0:
                if self._wake.wait(min(left, 0.25)):
                    self._wake.clear()
                    stop.wait(0.02)  # a burst of reports is one poll
                    break

    def poll(self, conn: psycopg.Connection[Any]) -> bool:
        """Read the state once, and do what is due; whether the next poll should be soon."""
        settings, now = self._settings(), self._seconds()
        seen = recount_state.read_recount_state(conn)
        up = _age_within(seen.as_of_age, UP)
        facts = self._facts(conn, settings, seen, up, now)
        self._read_statuses(conn, settings, up, now)
        self._check_window(conn, settings, up, now)
        self._agenda = schedule.noticed(self._agenda, facts, now)
        triggers = schedule.due(self._agenda, facts, settings.recount_interval, now)
        if triggers:
            self._count(conn, settings, triggers, facts)
        waiting = self._follow_runs(conn, settings, up)
        self._notify_of_stream(seen, now)
        self._prune(conn, settings, now)
        starting = seen.partitions > 0 and not self._agenda.started
        return waiting or starting or self._agenda.events_since is not None

    def _facts(
        self, conn: psycopg.Connection[Any], settings: Settings, seen: recount_state.RecountState, up: bool, now: float
    ) -> Facts:
        sending = None
        if seen.partitions and self._turn("draining", now, STATUS_POLL):
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

    def _read_statuses(self, conn: psycopg.Connection[Any], settings: Settings, up: bool, now: float) -> None:
        """Changes of status: from the WAL, or from the table while the stream is down."""
        first = not self._statuses
        if (first or not self._follow_log or not up) and self._turn("statuses", now, STATUS_POLL):
            statuses = recount_state.read_statuses(conn, settings.mailer_schema)
            if not first:
                changed = ((c, self._statuses.get(c, ""), new) for c, new in statuses.items())
                self._reported.extend(change for change in changed if change[1] != change[2])
            else:
                self._statuses = statuses
        while self._reported:
            campaign, old, new = self._reported.popleft()
            if self._statuses.get(campaign) == new:
                continue  # reported twice
            self._statuses[campaign] = new
            self._agenda = schedule.saw_status(self._agenda, old, new, now)

    def _check_window(self, conn: psycopg.Connection[Any], settings: Settings, up: bool, now: float) -> None:
        if not self._turn("window", now, POLL * 0.9):
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
            self._log_once("window", str(error))
            return always_open()
        self._log_once("window", "")
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
            self._log_once("recount", f"no recount ({', '.join(triggers)}): {error}")
            return
        self._log_once("recount", "")
        self._agenda = schedule.counted(self._agenda, facts, now)
        log.debug("run %d counted at %s in %.1f ms (%s)", run.run_id, run.lsn, run.count_ms, ", ".join(triggers))

    # ---- runs ---------------------------------------------------------------------------------------------------

    def _follow_runs(self, conn: psycopg.Connection[Any], settings: Settings, up: bool) -> bool:
        """Raise what can't wait, seal what is settled; whether an answer may come soon.

        A run that no partition without a baseline can conclude raises at once, before it is sealed. Otherwise the
        newest run raises when the oldest one without an answer has waited for too long: a newer one does not start the
        wait anew. With the stream down before a pause there is no time to wait.
        """
        newest, oldest = reports.newest_open(conn), reports.oldest_open(conn)
        if newest is None or oldest is None:
            self._raised.clear()
            return False
        if newest.inconclusive:
            self._raise(conn, settings, newest)
        if oldest.settled or oldest.age > settings.report_retention:
            self._seal(conn, settings)
            oldest = reports.oldest_open(conn)
        if oldest is None or oldest.settled:
            return True
        urgent = newest.trigger == "before_pause" and not up
        if not newest.settled and (urgent or not _age_within(oldest.age, settings.recount_patience)):
            self._raise(conn, settings, newest)
        return _age_within(newest.age, settings.recount_patience * 2)

    def _raise(self, conn: psycopg.Connection[Any], settings: Settings, newest: reports.OpenRun) -> None:
        """Once a run; again after a second for campaigns that another transaction had locked."""
        now = self._seconds()
        if now < self._raised.get(newest.run_id, 0.0):
            return
        raised = raise_ahead(conn, settings, newest.run_id)
        self._raised = {newest.run_id: now + 1.0 if raised.held else float("inf")}
        self.metrics.raised(len(raised.raises))

    def _seal(self, conn: psycopg.Connection[Any], settings: Settings) -> None:
        observer, abandon = self._observer(conn, settings), settings.report_retention
        for report in reports.seal_settled(conn, observe=observer, abandon_after=abandon, most=SEALS):
            self._report(report)

    def _report(self, report: Report) -> None:
        """The run's log line, and a notification of drift."""
        log_run(report)
        self.metrics.observe(report)
        if report.run.tally.drift:
            drifts = [v.as_json() for v in report.verdicts if v.verdict == "drift"]
            run = {**report.run.as_json(), "observations": len(report.run.observations)}
            self._notifier.notify("drift", {"run": run, "drifts": drifts[:NOTIFIED_DRIFTS]})

    def _observer(self, conn: psycopg.Connection[Any], settings: Settings) -> Callable[[Run], Sequence[dict[str, Any]]]:
        def observe_run(run: Run) -> Sequence[dict[str, Any]]:
            now, frequent = self._seconds(), run.trigger in ("before_pause", "drain", "gap")
            if now - self._observed_at < (OBSERVE_EVERY if frequent else OBSERVE_LEAST):
                return ()
            self._observed_at = now
            found = observe(conn, settings.mailer_schema)
            fresh = news(found, self._observed)
            self._observed = tuple(found)
            return [observation.as_json() for observation in fresh]

        return observe_run

    # ---- the stream, and retention ------------------------------------------------------------------------------

    def _notify_of_stream(self, seen: recount_state.RecountState, now: float) -> None:
        """A notification of a stall and of its end. A stream that is just starting is not called stalled."""
        if not seen.partitions or now - self._began < STALLED:
            return
        age = seen.as_of_age
        words = {"as_of": None if seen.as_of is None else seen.as_of.isoformat(), "age_seconds": age and round(age, 1)}
        if not self._stalled and not _age_within(age, STALLED):
            self._stalled = True
            log.warning("the stream stands still: nothing applied after %s", seen.as_of or "its beginning")
            self._notifier.notify("stall", words)
        elif self._stalled and _age_within(age, UP):
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

    def _log_once(self, what: str, words: str, *, known: bool = True) -> None:
        """Log a problem once, not at every poll; "" means that it is over. A fault of ours comes with its traceback."""
        if self._logged.get(what, "") != words:
            self._logged[what] = words
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
    limit = settings.recount_timeout + settings.stall_restart  # a poll that counts takes as long as the count may
    shown = endpoint.start(settings, page.text, lambda: reconciler_health(reconciler.state, limit))
    return shown or contextlib.nullcontext()


def _plain(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _age_within(age: float | None, limit: float) -> bool:
    """Whether something is as young as that. A negative age is that of a clock that was put back: the time since is
    unknown then, and treated as long."""
    return age is not None and abs(age) <= limit
