"""One run from the request to the seal: what reconciler, command line and ``run --once`` have in common."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import psycopg

from connectors.mailer.tracking import Observation, observations, read_tracking
from connectors.postgres.connect import connect
from connectors.postgres.queries.recount_state import count_unwritten, read_expected, read_recount_state
from connectors.postgres.setup.versions import release
from connectors.postgres.store import raise_counters, recount, reports
from stream.config.settings import Settings
from stream.core.errors import PreconditionError
from stream.core.pace import Backoff
from stream.core.partitioner import partition_of
from stream.core.report import Report, Run

log = logging.getLogger("sentstream.reconciler")

#: what the observations of one run may cost
OBSERVE_TIMEOUT: Final = "30s"
#: seconds that `run --once` waits for counters that could not be written
UNWRITTEN_PATIENCE: Final = 2.0
#: drifts that are logged one by one
LOGGED_DRIFTS: Final = 10


def request(
    conn: psycopg.Connection[Any],
    settings: Settings,
    trigger: str,
    requested_by: str,
    *,
    rebase: recount.Rebase = None,
    also: Sequence[str] = (),
    turn: float = 30.0,
) -> Run:
    """`recount.request` by the settings. ``turn``: seconds to wait for another recount to end."""
    return recount.request(
        conn,
        mailer_schema=settings.mailer_schema,
        publication=settings.publication,
        trigger=trigger,
        requested_by=requested_by,
        removed_policy=settings.removed,
        version=release(),
        rebase=rebase,
        also=also,
        limits=recount.Limits(turn, settings.recount_lock_timeout, settings.recount_timeout),
    )


def observe(conn: psycopg.Connection[Any], mailer_schema: str) -> list[Observation]:
    """What the mailer's other tables say that differs from our numbers; nothing where that takes too long."""
    try:
        with conn.transaction():
            conn.execute(f"SET LOCAL statement_timeout = '{OBSERVE_TIMEOUT}'")
            return observations(read_expected(conn), read_tracking(conn, mailer_schema))
    except (psycopg.errors.QueryCanceled, psycopg.errors.LockNotAvailable, psycopg.errors.ProgrammingError) as error:
        log.warning("no observations: %s", " ".join(str(error).split()))
        return []


def log_run(report: Report) -> None:
    """The one line of a run, and its drifts."""
    run, tally = report.run, report.run.tally
    log.log(
        logging.WARNING if tally.drift else logging.INFO,
        "recount trigger=%s campaigns=%d verified=%d drift=%d inconclusive=%d not_comparable=%d baseline=%d ms=%.1f"
        " run=%d lsn=%s chain=%s digest=%s",
        run.trigger,
        run.campaigns,
        tally.verified,
        tally.drift,
        tally.inconclusive,
        tally.not_comparable,
        tally.baseline,
        run.count_ms,
        run.run_id,
        run.lsn,
        run.chain_no,
        run.digest,
        extra={"run_id": run.run_id, "trigger": run.trigger, "drift": tally.drift, "digest": run.digest},
    )
    for verdict in [v for v in report.verdicts if v.verdict == "drift"][:LOGGED_DRIFTS]:
        log.warning(
            "drift of campaign %d in run %d: %s, by %s, corrected",
            verdict.campaign_id,
            run.run_id,
            verdict.cause,
            ", ".join(f"{name} {n:+d}" for name, n in (verdict.delta or {}).items()),
        )
    for reason in report.reasons:
        log.info("run %d is inconclusive: %s", run.run_id, reason)


def raise_ahead(conn: psycopg.Connection[Any], settings: Settings, run_id: int) -> raise_counters.Raised:
    """Raise ``campaigns.sent`` to what an open run counted, in partitions that are behind it or have no baseline.

    Nothing is raised in shadow mode, nor where the run was concluded. See docs/design/recount.md.
    """
    if not settings.write_back:
        return raise_counters.Raised()
    raised = raise_counters.raise_counters(conn, run_id, mailer_schema=settings.mailer_schema)
    if raised.raises:
        log.warning(
            "run %d can't be compared yet: raised campaigns.sent of %d campaigns by %d in all%s",
            run_id,
            len(raised.raises),
            sum(r.after - r.before for r in raised.raises),
            f", {len(raised.held)} more are locked" if raised.held else "",
        )
    return raised


class NeverCountedError(PreconditionError):
    """A recount was asked for where no stream has ever run."""


def require_stream(conn: psycopg.Connection[Any]) -> None:
    """NeverCountedError where no stream has ever run: no partition would answer the run."""
    if not read_recount_state(conn).partitions:
        raise NeverCountedError(
            "No stream has ever counted here, so there is nothing to compare with.",
            "Start `sentstream run` (or `sentstream run --once`): it counts at start.",
        )


def completed(
    conn: psycopg.Connection[Any], report: Report, counted: Mapping[int, Sequence[int]], chosen: Sequence[int] = ()
) -> Report:
    """`Report.completed` by the partitions there are; ``counted``: see `reports.read_counted`."""
    partitions = read_recount_state(conn).partitions or 1
    return report.completed(counted, lambda campaign: partition_of(campaign, partitions), chosen)


def recount_once(
    settings: Settings, stop: threading.Event, on_report: Callable[[Report], None] = lambda _report: None
) -> int:
    """Count, wait for the stream's verdict, seal; repeat while inconclusive, for a while. ``on_report``: gets the
    report of the last run, as far as it got.

    The exit code of ``run --once``: 0 if all is verified or met for the first time, and shown; 1 otherwise; 130 if
    stopped."""
    with connect(settings.require_database(), "recount") as conn:
        backoff = Backoff(first=0.5, most=4.0)
        while True:
            run = request(conn, settings, "manual", "run --once")
            report = conclude(conn, settings, run.run_id, stop, settings.recount_timeout)
            if report is None and stop.is_set():
                return 130
            if report is None or not report.run.tally.inconclusive or backoff.failures >= 5:
                found = report or reports.read_report(conn, run.run_id)
                on_report(completed(conn, found, reports.read_counted(conn, run.run_id)))
                proved = report is not None and report.run.tally.proved
                return 0 if proved and _shown(conn, settings, stop) else 1
            backoff = backoff.failed()
            if stop.wait(backoff.pause):
                return 130


def _shown(conn: psycopg.Connection[Any], settings: Settings, stop: threading.Event) -> bool:
    """Whether ``campaigns.sent`` shows what was counted; waits a little, for a row may be locked for a moment."""
    if not settings.write_back:
        return True
    deadline = time.monotonic() + UNWRITTEN_PATIENCE
    while (unwritten := count_unwritten(conn, settings.mailer_schema)) and time.monotonic() < deadline:
        if stop.wait(0.1):
            break
    if unwritten:
        log.error(
            "campaigns.sent of %d campaigns does not show what was counted; `sentstream doctor` says why", unwritten
        )
    return not unwritten


def conclude(
    conn: psycopg.Connection[Any],
    settings: Settings,
    run_id: int,
    stop: threading.Event,
    timeout: float,
    others: float = 0,
) -> Report | None:
    """Wait until the run is settled, and see that it is sealed; its report, None after ``timeout`` seconds.

    ``others``: seconds that are left to a reconciler to seal it, before we do. The process that seals a run logs its
    line: here that may be older runs as well, for runs are sealed in order.
    """
    deadline = time.monotonic() + timeout
    while not reports.is_settled(conn, run_id):
        if time.monotonic() > deadline or stop.wait(0.05):
            return None
    deadline = time.monotonic() + others
    while True:
        report = reports.read_report(conn, run_id)
        if report.run.sealed:
            return report
        if time.monotonic() >= deadline:
            raise_ahead(conn, settings, run_id)
            for sealed in reports.seal_settled(
                conn, observe=lambda _: [o.as_json() for o in observe(conn, settings.mailer_schema)]
            ):
                log_run(sealed)
            return reports.read_report(conn, run_id)
        stop.wait(0.05)
