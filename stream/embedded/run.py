"""`run` without Kafka: one process. Reader -> batch -> partition -> flush -> confirm, with the reconciler beside it."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final

from prometheus_client.core import Metric

from stream.config.sources import Settings
from stream.core.committed import FlushListener
from stream.core.errors import PreconditionError
from stream.core.report import Report
from stream.embedded.session import Session, SessionOptions
from stream.metrics import endpoint
from stream.metrics.families import Page
from stream.metrics.observed import FlushMetrics
from stream.metrics.states import EmbeddedState, embedded_families, embedded_health
from stream.pipeline.sessions import run_sessions
from stream.pipeline.wal_options import wal_options
from stream.reconcile.reconciler import Reconciler
from stream.reconcile.runs import recount_once
from stream.service import failpoints, gc_tuning
from stream.service.inbox import Inbox
from stream.service.signals import CurrentSettings, until_signalled

log = logging.getLogger("sentstream.run")

#: seconds without a round after which only a restart helps; the server may be silent for two minutes while it decodes
STUCK: Final = 180.0
#: seconds that `run --once` waits for a slot that another process reads: a restart there may take so long
ONCE_PATIENCE: Final = 15.0


class Embedded:
    """The sessions, one after the other. ``stop`` ends them; ``session`` is the newest."""

    def __init__(
        self,
        settings: Callable[[], Settings],
        feed: FlushListener,
        on_status: Callable[[int, str, str], None] = lambda *_: None,
        on_unbased: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._feed = feed
        self._on_status = on_status
        self._on_unbased = on_unbased
        self.stop = threading.Event()
        self.state = EmbeddedState()
        self.metrics = FlushMetrics()
        self.session: Session | None = None

    def run(self, *, once: bool = False) -> None:
        """Until ``stop`` is set. Raises as `run_sessions` does."""
        run_sessions(
            self._new_session,
            self.stop,
            longest_pause=lambda: self._settings().reconnect_max,
            on_pause=self.state.went_round,
            once=once,
        )

    def _new_session(self) -> Session:
        settings = self._settings()
        wal = wal_options(settings)
        if self.session is not None and not self.session.caught_up:
            wal = replace(wal, catchup=0)  # reading by SQL failed: the walsender does it as well
        options = SessionOptions(wal, settings.removed, settings.write_back, lambda: self._settings().flush_interval)
        self.session = Session(
            options, self._feed, self.stop, self._on_status, self._on_unbased, self.state, self.metrics
        )
        return self.session


def run(
    settings: Settings,
    once: bool = False,
    reload: Callable[[], Settings] | None = None,
    serve: Callable[[Settings, Inbox, Callable[[], bytes]], Any] | None = None,
    poller: Callable[[Settings], Any] | None = None,
    on_report: Callable[[Report], None] = lambda _report: None,
) -> int:
    """Run until SIGTERM or Ctrl-C, then flush, confirm and return 0. With ``once``: catch up, flush, recount, and
    return 1 if the recount found a drift or could not be concluded.

    ``reload``: called at SIGHUP for fresh settings. ``serve``: starts the HTTP server beside it, with our part of
    `/metrics`; ends by its ``stop()``. ``poller``: makes the `DatabasePoller` that METRICS_LISTEN shows (it knows
    Kafka, which is not known here). ``on_report``: with ``once``, gets the report of the recount."""
    current = CurrentSettings(settings, reload)
    failpoints.arm(settings.failpoints)
    inbox = Inbox()
    if once:
        return _once(current, inbox, on_report)
    reconciler = Reconciler(current)
    embedded = Embedded(current, inbox, reconciler.saw_status, reconciler.saw_unbased)

    def families() -> Iterator[Metric]:
        yield from embedded_families(embedded.state)
        yield from embedded.metrics.families()
        yield from reconciler.metrics.families()

    page = Page(families)
    page.add_process()
    with until_signalled(embedded.stop, current.reload):
        helper = threading.Thread(target=reconciler.run, args=(embedded.stop,), name="reconciler", daemon=True)
        helper.start()
        server = serve(settings, inbox, page.text) if serve is not None else None
        shown = _show_metrics(settings, page, embedded, poller)
        gc_tuning.apply()
        try:
            embedded.run()
        finally:
            shown.close()
            embedded.stop.set()
            helper.join(timeout=10)
            if server is not None:
                server.stop()
    log.info("flushed and confirmed up to %s; bye", embedded.session.written if embedded.session else "nothing")
    return 0


def _show_metrics(
    settings: Settings, page: Page, embedded: Embedded, poller: Callable[[Settings], Any] | None
) -> contextlib.ExitStack:
    """METRICS_LISTEN: the process's page and what is read from the database; closed at the end."""
    ending = contextlib.ExitStack()
    if settings.metrics_address is None:
        return ending
    whole = Page(page.families)
    if poller is not None:
        polling = poller(settings)
        whole.add(polling.view.families)
        polling.start()
        ending.callback(polling.stop)
    limit = max(STUCK, settings.stall_restart)
    ending.enter_context(endpoint.Endpoint(settings, whole.text, lambda: embedded_health(embedded.state, limit)))
    return ending


def _once(settings: Callable[[], Settings], inbox: Inbox, on_report: Callable[[Report], None]) -> int:
    """Catch up with the WAL as it stands, flush, recount."""
    embedded = Embedded(settings, inbox)
    result: list[int] = []
    failure: list[BaseException] = []

    def follow() -> None:
        try:
            if _wait_until_caught_up(embedded, settings().slot_name):
                result.append(recount_once(settings(), embedded.stop, on_report))
        except BaseException as error:  # raised again below, in the main thread
            failure.append(error)
        finally:
            embedded.stop.set()

    with until_signalled(embedded.stop):
        follower = threading.Thread(target=follow, name="once", daemon=True)
        follower.start()
        gc_tuning.apply()
        embedded.run(once=True)
        embedded.stop.set()
        follower.join(timeout=10)
    if failure:
        raise failure[0]
    return result[0] if result else 130


def _wait_until_caught_up(embedded: Embedded, slot: str) -> bool:
    """Whether the backlog is written; False where it was stopped. PreconditionError where another reader keeps the
    slot."""
    waited_since: float | None = None
    while not embedded.stop.is_set():
        session = embedded.session
        if session is not None:
            if session.is_live and session.written.lsn >= (session.backlog_end or 0):
                return True  # not before: what is counted while the backlog is read by SQL can't be concluded
            waited_since = (waited_since or time.monotonic()) if session.slot_holder else None
            if waited_since is not None and time.monotonic() - waited_since > ONCE_PATIENCE:
                raise PreconditionError(
                    f"Another process reads the slot {slot}: {session.slot_holder}.",
                    "What is counted there needs no `run --once` besides; `sentstream recount` counts at once.",
                )
        embedded.stop.wait(0.02)
    return False
