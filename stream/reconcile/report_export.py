"""Reports as CSV: a line for each verdict, and one for each run without verdicts.

A text that a spreadsheet would take for a formula gets an apostrophe in front.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from typing import Any, Final

from stream.core.report import COUNTS, VERDICTS, Report, Ruled, rfc3339

RUN_COLUMNS: Final = (
    "run_id", "started_at", "finished_at", "status", "trigger", "requested_by", "lsn", "campaigns", *VERDICTS,
    "count_ms", "digest",
)  # fmt: skip
VERDICT_COLUMNS: Final = (
    "campaign_id", "verdict", "cause", "corrected", "estimated",
    *(f"{moment}_{name}" for moment in ("before", "after", "delta") for name in COUNTS),
)  # fmt: skip
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


def as_csv(reports: Iterable[Report]) -> Iterator[str]:
    """Lines with their ends (CRLF, RFC 4180), the names first."""
    yield _line((*RUN_COLUMNS, *VERDICT_COLUMNS))
    for report in reports:
        run = _run(report)
        for verdict in report.verdicts or (None,):
            yield _line((*run, *_verdict(verdict)))


def _run(report: Report) -> tuple[Any, ...]:
    run = report.run
    finished = "" if run.finished_at is None else rfc3339(run.finished_at)
    return (
        run.run_id, rfc3339(run.started_at), finished, run.status, run.trigger, run.requested_by, run.lsn,
        run.campaigns, *run.tally.as_json().values(), round(run.count_ms, 3), run.digest or "",
    )  # fmt: skip


def _verdict(verdict: Ruled | None) -> tuple[Any, ...]:
    if verdict is None:
        return ("",) * len(VERDICT_COLUMNS)
    values = (
        "" if counts is None else counts.get(name, "")
        for counts in (verdict.before, verdict.after, verdict.delta)
        for name in COUNTS
    )
    flags = (str(verdict.corrected).lower(), str(verdict.estimated).lower())
    return (verdict.campaign_id, verdict.verdict, verdict.cause or "", *flags, *values)


def _line(values: Iterable[Any]) -> str:
    out = io.StringIO()
    csv.writer(out).writerow([_plain(value) for value in values])
    return out.getvalue()


def _plain(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
