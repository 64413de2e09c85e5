"""`recount`: recount now, wait for the verdicts, print them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Final

import psycopg
import typer

from stream.cli import words
from stream.cli.call import Call, command
from stream.core.report import COUNTS, VERDICTS, Report, Ruled

app = typer.Typer()

_EXAMPLES = """Examples:

`sentstream recount` counts every campaign, `sentstream recount 7 "Spring sale"` shows these two

`sentstream recount 7 --rebase` also sets removed of campaign 7 to 0: its counter becomes the live count

`sentstream recount --json | jq .counts`
"""

#: seconds that a reconciler gets to seal the run before this command does
SEAL_GRACE: Final = 3.0


@command(app, "recount", shows=("recount_patience", "recount_timeout", "removed"), epilog=_EXAMPLES)
def recount(
    call: Call,
    campaigns: Annotated[
        list[str] | None, typer.Argument(metavar="[CAMPAIGN]...", help="What is printed (and rebased): ids or names.")
    ] = None,
    rebase: Annotated[
        bool, typer.Option("--rebase", help="Set `removed` to 0: the counter becomes the live count, and may fall.")
    ] = False,
    wait: Annotated[float, typer.Option(help="Seconds to wait for a stream that is alive but behind.")] = 60.0,
) -> int:
    """Recount now and print the verdicts. Exit code 1 on drift, and where it could not be concluded."""
    from connectors.postgres.queries.errors import reading
    from connectors.postgres.queries.progress import find_campaigns

    settings = call.settings
    with reading("The runs"), call.connect("recount") as conn:
        chosen = find_campaigns(conn, settings.mailer_schema, campaigns) if campaigns else ()
        report = _counted(conn, call, (list(chosen) or "all") if rebase else None, wait)
        raised = sum(verdict.verdict == "not_comparable" for verdict in report.verdicts)
        report = _completed(conn, call, report, chosen)
    if call.json:
        call.print_json(report_json(report, raised))
    else:
        for line in lines(report, raised):
            call.out.print(line)
    return 0 if _is_good(report, chosen) else 1


def _counted(conn: psycopg.Connection[Any], call: Call, rebase: Any, wait: float) -> Report:
    """The report, sealed or still open; counters are raised where the verdicts don't come in time."""
    from connectors.postgres.store import raise_counters, reports
    from stream.reconcile.runs import conclude, request, require_stream

    settings = call.settings
    require_stream(conn)
    run = request(conn, settings, "manual", _requester(), rebase=rebase)
    call.err.print(f"run {run.run_id}: {words.count_of(run.campaigns, 'campaign')} counted in {run.count_ms:.0f} ms")
    never = threading.Event()
    report = conclude(conn, settings, run.run_id, never, settings.recount_patience, SEAL_GRACE)
    if report is None:
        if settings.write_back:
            raise_counters.raise_counters(conn, run.run_id, mailer_schema=settings.mailer_schema)
        deadline = time.monotonic() + wait - settings.recount_patience
        while report is None and time.monotonic() < deadline and _is_up(conn):
            call.err.print("the stream is behind; still waiting")
            report = conclude(conn, settings, run.run_id, never, 5.0, SEAL_GRACE)
    return report or reports.read_report(conn, run.run_id)


def _is_up(conn: psycopg.Connection[Any]) -> bool:
    """Whether a stream flushes, even if it is behind."""
    row = conn.execute(
        "SELECT bool_or(flushed_at > clock_timestamp() - interval '10 seconds') FROM sentstream.watermarks"
    ).fetchone()
    return bool(row and row[0])


def _requester() -> str:
    """The requester, for the report: ``cli root@host``."""
    import getpass
    import socket

    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "?"
    return f"cli {user}@{socket.gethostname()}"


def _completed(conn: psycopg.Connection[Any], call: Call, report: Report, chosen: Sequence[int]) -> Report:
    """With a verdict on each campaign that was named; a word on those that sentstream does not count."""
    from connectors.postgres.store.reports import read_counted
    from stream.reconcile.runs import completed

    counted = read_counted(conn, report.run.run_id)
    for campaign in chosen:
        if campaign not in counted:
            call.err.print(f"campaign {campaign} has no rows in the queue: sentstream does not count it, so no verdict")
    return completed(conn, report, counted, chosen)


def report_json(report: Report, raised: int = 0) -> dict[str, Any]:
    """A run's report for programs. ``raised``: campaigns whose counter was raised, for the stream was not there."""
    return {**report.as_json(), "raised": raised}


def _is_good(report: Report, chosen: Sequence[int]) -> bool:
    tally = report.run.tally
    if not report.run.sealed or tally.inconclusive or tally.not_comparable:
        return False
    if chosen:
        return all(verdict.verdict != "drift" for verdict in report.verdicts)
    return not tally.drift


def lines(report: Report, raised: int = 0) -> Iterator[str]:
    """A report for people."""
    run = report.run
    also = f", also {', '.join(run.also)}" if run.also else ""
    yield f"run {run.run_id} ({run.trigger}{also}) by {words.safe(run.requested_by)}, {words.moment(run.started_at)}"
    plan = {True: ", by the index alone", False: ", by reading the table", None: ""}[run.index_only]
    lag = "" if run.lag_bytes is None else f"; the stream was {words.size(max(0, run.lag_bytes))} of WAL behind"
    yield f"  counted {words.count_of(run.campaigns, 'campaign')} at {run.lsn} in {run.count_ms:.1f} ms{plan}{lag}"
    if not run.sealed:
        yield "  not comparable yet: the stream is behind or down (`sentstream status`, `sentstream lag`)"
        yield f"  raised campaigns.sent of {words.count_of(raised, 'campaign')} to what was counted"
        return
    tally = ", ".join(f"{name.replace('_', ' ')} {getattr(run.tally, name)}" for name in VERDICTS)
    yield f"  {tally}"
    for reason in report.reasons:
        yield f"  inconclusive: {reason}; it is repeated"
    for verdict in report.verdicts:
        yield f"  {verdict_line(verdict)}"
    for o in run.observations:
        kind = str(o["kind"]).replace("_", " ")
        yield f"  observed: campaign {o['campaign_id']} {kind} {o['actual']:,}, expected {o['expected']:,}"
    yield f"  place {run.chain_no} of the chain, digest {run.digest}"


def verdict_line(verdict: Ruled) -> str:
    """``campaign 7: drift, missed change, corrected: queued -1, sent +1 (now queued 3, sent 4)``; where nothing could
    be told, ``campaign 7: inconclusive``."""
    parts = [verdict.verdict.replace("_", " ")]
    if verdict.cause:
        parts.append(verdict.cause.replace("_", " "))
    if verdict.corrected and verdict.verdict == "drift":
        parts.append("corrected")
    if verdict.estimated:
        parts.append("removed is an estimate")
    change, after = verdict.delta or {}, verdict.after or {}
    delta = ", ".join(f"{name} {change[name]:+,}" for name in COUNTS if change.get(name))
    now = ", ".join(f"{name} {after[name]:,}" for name in COUNTS if after.get(name)) or "nothing"
    end = "" if verdict.after is None else f" (now {now})"
    return f"campaign {verdict.campaign_id}: {', '.join(parts)}{f': {delta}' if delta else ''}{end}"
