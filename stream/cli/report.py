"""`report`: the reconciliation reports. List, show, export to hand on, and verify the chain of their digests."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

import typer

from stream.cli import words
from stream.cli.call import Call, command, group
from stream.cli.output import json_text
from stream.cli.recount import lines
from stream.core.digest import Checked, canonical
from stream.core.errors import ConfigurationError
from stream.core.report import Report, Run, rfc3339

if TYPE_CHECKING:
    import psycopg

app = typer.Typer()
report = group(app, "report", "Reconciliation reports: list, show, export, verify.")

_EXPORTED = 1000
_MAX_ID = 2**63 - 1
_MAX_LIMIT = 1_000_000
_Campaign = Annotated[str | None, typer.Option("--campaign", metavar="CAMPAIGN", help="Its id or exact name.")]


@command(report, "list", epilog="Examples: `sentstream report list --campaign 7`, `sentstream report list --drift`")
def report_list(
    call: Call,
    campaign: _Campaign = None,
    drift: Annotated[bool, typer.Option("--drift", help="Only runs that found a drift.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=_MAX_LIMIT, help="Runs shown, the newest first.")] = 20,
    before: Annotated[
        int | None, typer.Option(min=1, max=_MAX_ID, metavar="RUN", help="Only older runs: the next page.")
    ] = None,
) -> None:
    """The runs, newest first. With --campaign those that kept a verdict on it: not verified, or its counts changed."""
    from connectors.postgres.queries.errors import reading
    from connectors.postgres.store.reports import read_runs

    with reading("The reports"), call.connect("report") as conn:
        chosen = _campaign(conn, call, campaign)
        runs = read_runs(conn, limit=limit, before=before, campaign=chosen, with_drift=drift)
    if call.json:
        call.print_json({"runs": [run.as_json() for run in runs]})
        return
    if not runs:
        call.out.print(_none(campaign, narrowed=drift or before is not None))
        return
    call.out.print(_columns("run", "time", "trigger", "verified", "drift", "inconcl.", "not comp.", "baseline", "ms"))
    for run in runs:
        call.out.print(_row(run), style="bold red" if run.tally.drift else None)


def _none(campaign: str | None, *, narrowed: bool) -> str:
    """Why nothing is listed. ``narrowed``: other runs may be there."""
    if campaign is not None:
        name = words.safe(campaign)
        such = "No such run" if narrowed else "No run"
        return f"{such} names campaign {name}: only what is not verified is kept, and verdicts on counts that changed."
    return "No such runs." if narrowed else "No runs. `sentstream recount` makes one."


def _row(run: Run) -> str:
    if not run.sealed:
        return _columns(
            run.run_id, words.moment(run.started_at)[:19], run.trigger, "open", "", "", "", "", f"{run.count_ms:.0f}"
        )
    return _columns(
        run.run_id, words.moment(run.started_at)[:19], run.trigger, *run.tally.as_json().values(), f"{run.count_ms:.0f}"
    )


def _columns(*values: Any) -> str:
    widths = (6, 20, 13, 9, 6, 9, 10, 9, 6)
    cells = [
        str(v).ljust(w) if n in (1, 2) else str(v).rjust(w) for n, (v, w) in enumerate(zip(values, widths, strict=True))
    ]
    return f"{cells[0]}  {''.join(cells[1:3])}{''.join(cells[3:])}".rstrip()


@command(report, "show", epilog="Example: `sentstream report show 12 --canonical | sha256sum` is the run's digest")
def report_show(
    call: Call,
    run: Annotated[int, typer.Argument(min=1, max=_MAX_ID, metavar="RUN", help="Number of the run.")],
    canonical_: Annotated[
        bool, typer.Option("--canonical", help="Print the very bytes that the digest is computed from.")
    ] = False,
) -> None:
    """One run: what it found of whom, why, and what it did not cover."""
    from connectors.postgres.queries.errors import reading
    from connectors.postgres.store.reports import read_report

    with reading("The reports"), call.connect("report") as conn:
        found = read_report(conn, run)
    if canonical_:
        if not found.run.sealed:
            raise ConfigurationError(f"Run {run} is not sealed yet, so it has no digest.", "Wait for its verdict.")
        sys.stdout.buffer.write(canonical(found.run.words()))
        sys.stdout.flush()
        return
    if call.json:
        call.print_json(found.as_json())
        return
    for line in lines(found):
        call.out.print(line)
    for item in found.run.not_covered:
        call.out.print(f"  not covered: {words.safe(str(item['what']))} ({words.safe(str(item['why']))})")
    if found.run.pruned_at is not None:
        call.out.print("  counts and verdicts are gone by REPORT_RETENTION; their digests stay")
    call.out.print(f"  bound to {found.run.previous_digest}" if found.run.sealed else "  open")


@command(
    report,
    "export",
    epilog="Examples: `sentstream report export --format html --output reports.html`, "
    "`sentstream report export --format csv --campaign 7 > campaign-7.csv`",
)
def report_export(
    call: Call,
    format_: Annotated[
        Literal["json", "csv", "html"], typer.Option("--format", help="html: a page to hand on.")
    ] = "json",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; default: standard output.")
    ] = None,
    campaign: _Campaign = None,
    limit: Annotated[int, typer.Option(min=1, max=_MAX_LIMIT, help="Runs exported, the newest.")] = _EXPORTED,
) -> None:
    """Reports as JSON, CSV or one HTML page with a chart of drift over time."""
    from connectors.postgres.queries.errors import reading
    from connectors.postgres.store import reports
    from stream.reconcile.report_export import as_csv
    from stream.reconcile.report_html import as_page

    with reading("The reports"), call.connect("report") as conn:
        chosen = _campaign(conn, call, campaign)
        found = list(_newest(conn, limit, chosen))
        head, names, source = reports.read_head(conn), _names(conn, call), conn.info.dbname
    if chosen is not None:
        found = [one.only([chosen]) for one in found]
    now = datetime.now(timezone.utc)
    with _opened(output) as out:
        if format_ == "csv":
            out.writelines(as_csv(found))
        elif format_ == "html":
            page = as_page(found, made_at=now, source=source, head=head, name_of=lambda c: names.get(c, ""))
            out.write(page)
        else:
            place, digest = head
            shown = {"exported_at": rfc3339(now), "head": {"chain_no": place, "digest": digest}}
            out.write(json_text({**shown, "runs": [one.as_json() for one in found]}, out.encoding) + "\n")
    if output is not None:
        call.err.print(f"{words.count_of(len(found), 'run')} written to {output}")


def _newest(conn: psycopg.Connection[Any], limit: int, campaign: int | None) -> Iterator[Report]:
    """Reports, newest first, read by the page."""
    from connectors.postgres.store.reports import read_reports, read_runs

    before = None
    while limit > 0:
        runs = read_runs(conn, limit=min(limit, 200), before=before, campaign=campaign)
        if not runs:
            return
        yield from reversed(read_reports(conn, [run.run_id for run in runs]))
        limit -= len(runs)
        before = runs[-1].run_id


def _names(conn: psycopg.Connection[Any], call: Call) -> dict[int, str]:
    from psycopg import sql

    table = sql.Identifier(call.settings.mailer_schema, "campaigns")
    return dict(conn.execute(sql.SQL("SELECT id::bigint, name::text FROM {}").format(table)).fetchall())


@contextmanager
def _opened(path: Path | None) -> Iterator[TextIO]:
    if path is None:
        yield sys.stdout
        sys.stdout.flush()
        return
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            yield file
    except OSError as error:
        raise ConfigurationError(f"{path} can't be written: {error.strerror}.", "Choose another --output.") from None


@command(report, "verify", epilog="Example: `sentstream report verify --anchor $(cat digest-noted-last-month)`")
def report_verify(
    call: Call,
    anchor: Annotated[
        str | None, typer.Option(metavar="DIGEST", help="A digest noted elsewhere, which must be in the chain.")
    ] = None,
) -> int:
    """Walk the chain of digests: is every report the one that was sealed? Exit code 1 and the first break if not."""
    from rich.progress import Progress

    from connectors.postgres.queries.errors import reading
    from connectors.postgres.store.reports import verify

    if anchor is not None:
        anchor = anchor.strip().lower()
        if len(anchor) != 64 or set(anchor) - set("0123456789abcdef"):
            raise ConfigurationError(
                "--anchor must be a digest: 64 hexadecimal digits.", "The log has one with each run."
            )
    with (
        reading("The reports"),
        call.connect("report") as conn,
        Progress(console=call.err, transient=True, disable=not call.err.is_terminal) as bar,
    ):
        task = bar.add_task("runs")
        checked = verify(
            conn, anchor=anchor, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
    if call.json:
        call.print_json(_checked_json(checked))
    else:
        for line in _checked_lines(checked):
            call.out.print(line)
    return 1 if checked.broken else 0


def _checked_json(checked: Checked) -> dict[str, Any]:
    broken = checked.broken
    return {
        "ok": broken is None,
        "runs": checked.runs,
        "pruned": checked.pruned,
        "head": checked.head,
        "anchored": checked.anchored,
        "broken": broken
        and {"run_id": broken.run_id, "chain_no": broken.number, "kind": broken.kind, "what": broken.what},
    }


def _checked_lines(checked: Checked) -> Iterator[str]:
    if checked.broken is not None:
        yield f"BROKEN at place {checked.broken.number}: {checked.broken.what}"
        yield f"{words.count_of(checked.runs, 'run')} before it held."
        return
    pruned = (
        f" ({words.number(checked.pruned)} of them without counts and verdicts, by REPORT_RETENTION)"
        if checked.pruned
        else ""
    )
    yield f"The chain holds: {words.count_of(checked.runs, 'run')}{pruned}."
    if checked.anchored:
        yield "The digest noted elsewhere is in it."
    yield f"Head {checked.head}: note it outside this database; `sentstream report verify --anchor` asks for it."


def _campaign(conn: psycopg.Connection[Any], call: Call, word: str | None) -> int | None:
    """The campaign that ``word`` means. A number may also be one that is gone: reports outlive their campaigns."""
    from connectors.postgres.queries.progress import find_campaign
    from connectors.postgres.store.reports import read_runs

    if word is None:
        return None
    try:
        return find_campaign(conn, call.settings.mailer_schema, word)
    except ConfigurationError:
        number = int(word) if word.isascii() and word.isdigit() and len(word) < 20 else 0
        if not 0 < number < 2**63 or not read_runs(conn, limit=1, campaign=number):
            raise
        return number


__all__: Sequence[str] = ("app",)
