"""Every counter of flushes and recounts goes up by what happened."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from prometheus_client import Metric

from stream.core.report import Report, Ruled, Run, Tally
from stream.metrics.observed import FlushMetrics, RecountMetrics


def sums(families: Callable[[], Any]) -> dict[str, float]:
    """Name -> sum over the labels, of what is not 0."""
    found: dict[str, float] = {}
    family: Metric
    for family in families():
        for sample in family.samples:
            if not sample.name.endswith(("_bucket", "_created")) and sample.value:
                found[sample.name] = found.get(sample.name, 0) + sample.value
    return found


def test_flushes_retries_and_refusals_are_counted() -> None:
    metrics = FlushMetrics()
    assert sums(metrics.families) == {}
    metrics.observe(0.25, 3)
    metrics.retried()
    metrics.fenced()
    metrics.fenced()
    assert sums(metrics.families) == {
        "sentstream_flush_seconds_count": 1,
        "sentstream_flush_seconds_sum": 0.25,
        "sentstream_flush_campaigns_count": 1,
        "sentstream_flush_campaigns_sum": 3,
        "sentstream_flush_retries_total": 1,
        "sentstream_flush_fenced_total": 2,
    }


def test_runs_verdicts_drifts_failures_and_raises_are_counted() -> None:
    metrics = RecountMetrics()
    assert sums(metrics.families) == {}
    now = datetime(2026, 11, 28, tzinfo=timezone.utc)
    run = Run(1, "start", "test", "sealed", now, "0/1", "1:1:", 1, "keep", "1", 500.0, 5, tally=Tally(2, 1, 0, 0, 3))
    drift = Ruled(7, "drift", now, "gap")
    metrics.observe(Report(run, (drift,)))
    metrics.failed()
    metrics.raised(4)
    assert sums(metrics.families) == {
        "sentstream_recounts_total": 1,
        "sentstream_verdicts_total": 6,
        "sentstream_drifts_total": 1,
        "sentstream_recount_failures_total": 1,
        "sentstream_raised_total": 4,
        "sentstream_recount_seconds_count": 1,
        "sentstream_recount_seconds_sum": 0.5,
    }
