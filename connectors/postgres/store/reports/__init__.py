"""Runs of the recount and their reports: reading, sealing into the chain, verifying the chain, retention."""

from connectors.postgres.store.reports.prune import prune_history, prune_reports
from connectors.postgres.store.reports.read import (
    NoRunError,
    OpenRun,
    is_settled,
    newest_open,
    oldest_open,
    read_counted,
    read_counts,
    read_head,
    read_open,
    read_report,
    read_reports,
    read_runs,
)
from connectors.postgres.store.reports.seal import seal_settled
from connectors.postgres.store.reports.verify import verify

__all__ = [
    "NoRunError",
    "OpenRun",
    "is_settled",
    "newest_open",
    "oldest_open",
    "prune_history",
    "prune_reports",
    "read_counted",
    "read_counts",
    "read_head",
    "read_open",
    "read_report",
    "read_reports",
    "read_runs",
    "seal_settled",
    "verify",
]
