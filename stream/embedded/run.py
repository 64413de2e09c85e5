"""The embedded shape: one process, no Kafka. Reader -> batch -> partition -> flush -> confirm.

Sessions follow one another until it is told to stop: a lost connection, a restarted server or another owner of the
watermarks ends one, and the next begins from what PostgreSQL holds. What can't be cured by trying again (a database
that is not as ``setup`` leaves it, a message that can't be decoded) ends the process, loudly.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final

import psycopg
from prometheus_client.core import Metric

from stream.config.sources import Settings
from stream.core.committed import FlushListener
from stream.core.errors import FencedError, PreconditionError, SentstreamError, UnreachableError
from stream.core.pace import Backoff
from stream.core.report import Report
from stream.embedded.session import Session, SessionOptions
from stream.metrics import endpoint
from stream.metrics.families import Page
from stream.metrics.observed import FlushMetrics
from stream.metrics.states import EmbeddedState, embedded_families, embedded_health
from stream.pipeline.wal_reader import wal_options
from stream.service import failpoints, gc_tuning
from stream.service.inbox import Inbox
from stream.service.signals import CurrentSettings, until_signalled

log = logging.getLogger("sentstream.run")

#: seconds without a round after which only a restart helps; the server may be silent for two minutes while it decodes
STUCK: Final = 180.0
#: seconds that `run --once` waits for a slot that somebody else reads: a restart there may take so long
ONCE_PATIENCE: Final = 15.0


class Embedded:
    """The sessions, one after the other. ``stop`` ends them; ``session`` is the one that runs now."""

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
        self.sessions = 0

    def run(self, *, once: bool = False) -> None:
        """Until ``stop`` is set. Raises what can't be cured by trying again; with ``once`` also a lost connection."""
        backoff = Backoff(first=0.2, most=self._settings().reconnect_max)
        while not self.stop.is_set():
            session = self.session = self._session()
            self.sessions += 1
            began = time.monotonic()
            try:
                session.run()
                continue
            except FencedError as error:
                log.warning("%s", error)
            except (UnreachableError, psycopg.Error, OSError) as error:
                if once or (session.opened_at is None and self.sessions == 1):
                    raise _unreachable(error) from error
                log.warning("%s", _plain(error))
            backoff = backoff.failed(time.monotonic() - began)
            log.info("connecting again in %.1f s", backoff.pause)
            self.state.round_at = time.monotonic()
            self.stop.wait(backoff.pause)

    def _session(self) -> Session:
        settings = self._settings()
        wal = wal_options(settings)
        if self.session is not None and not self.session.caught_up:
            wal = replace(wal, catchup=0)  # reading by SQL failed: the walsender does it as well
        options = SessionOptions(
            wal,
            settings.removed,
            settings.write_back,
            lambda: self._settings().flush_interval,
        )
        return Session(options, self._feed, self.stop, self._on_status, self._on_unbased, self.state, self.metrics)


def _unreachable(error: Exception) -> SentstreamError:
    if isinstance(error, SentstreamError):
        return error
    return UnreachableError(f"{_plain(error)}.", "Look at the server's log; `sentstream doctor` checks the rest.")


def _plain(error: Exception) -> str:
    """One line, with what to do where the server told us what is wrong."""
    if isinstance(error, psycopg.errors.DiskFull):
        said = error.diag.message_primary
        return f"the server's disk is full ({said}): free space there; nothing is confirmed until then"
    if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
        return "the server is read-only now (a standby?): DATABASE_URL must lead to the primary"
    return " ".join(str(error).split()) or type(error).__name__


def run(
    settings: Settings,
    once: bool = False,
    reload: Callable[[], Settings] | None = None,
    serve: Callable[[Settings, Inbox, Callable[[], bytes]], Any] | None = None,
    poller: Callable[[Settings], Any] | None = None,
    tell: Callable[[Report], None] = lambda _report: None,
) -> int:
    """Run until SIGTERM or Ctrl-C, then flush, confirm and return 0. With ``once``: catch up, flush, recount, and
    return 1 if the recount found a drift or could not be concluded. ``reload``: called at SIGHUP for fresh settings.
    ``serve``: starts the HTTP face beside it, with our part of `/metrics`; what its ``stop()`` ends, or None.
    ``poller``: makes the `DatabasePoller` that METRICS_LISTEN shows (it knows Kafka, which is not known here).
    ``tell``: with ``once``, gets the report of the recount."""
    now = CurrentSettings(settings, reload)
    failpoints.arm(settings.failpoints)
    inbox = Inbox()
    if once:
        return _once(now, inbox, tell)

    from stream.reconcile.reconciler import Reconciler  # noqa: PLC0415 - not for --once

    reconciler = Reconciler(now)
    embedded = Embedded(now, inbox, reconciler.saw_status, reconciler.saw_unbased)

    def families() -> Iterator[Metric]:
        yield from embedded_families(embedded.state)
        yield from embedded.metrics.families()
        yield from reconciler.metrics.families()

    page = Page(families)
    page.add_process()

    with until_signalled(embedded.stop, now.reload):
        helper = threading.Thread(target=reconciler.run, args=(embedded.stop,), name="reconciler", daemon=True)
        helper.start()
        server = serve(settings, inbox, page.text) if serve is not None else None
        shown = _show(settings, page, embedded, poller)
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


def _show(
    settings: Settings, page: Page, embedded: Embedded, poller: Callable[[Settings], Any] | None
) -> contextlib.ExitStack:
    """METRICS_LISTEN: our page, and what is true; closed at the end."""
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


def _once(now: Callable[[], Settings], inbox: Inbox, tell: Callable[[Report], None]) -> int:
    """Catch up with the WAL as it stands, flush, recount."""
    from stream.reconcile.reconciler import recount_once  # noqa: PLC0415

    embedded = Embedded(now, inbox)
    result: list[int] = []
    failure: list[BaseException] = []

    def follow() -> None:
        waited_at: float | None = None
        try:
            while not embedded.stop.is_set():
                session = embedded.session
                holder = "" if session is None else session.slot_holder
                waited_at = (waited_at or time.monotonic()) if holder else None
                if waited_at is not None and time.monotonic() - waited_at > ONCE_PATIENCE:
                    raise PreconditionError(
                        f"Somebody else reads the slot {now().slot_name}: {holder}.",
                        "What is counted there needs no `run --once` besides; `sentstream recount` counts at once.",
                    )
                if session is not None and session.opened_at is not None and session.written.lsn >= session.opened_at:
                    result.append(recount_once(now(), embedded.stop, tell))
                    return
                embedded.stop.wait(0.02)
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
