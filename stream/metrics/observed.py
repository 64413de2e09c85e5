"""Flushes and recounts of one process, as Prometheus metrics of a registry of their own. Safe in any thread."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram

from connectors.postgres.queries.metrics import CAUSES, VERDICTS
from stream.core.report import Report

_SECONDS: Final = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 15)
_CAMPAIGNS: Final = (0, 1, 2, 5, 10, 50, 200, 1000, 5000)
_COUNTING: Final = (0.01, 0.05, 0.2, 0.5, 1, 2, 5, 15, 60, 300)


class FlushMetrics:
    """Time and size of flushes, retries and refusals."""

    def __init__(self) -> None:
        own = CollectorRegistry()
        self._seconds = Histogram(
            "sentstream_flush_seconds", "Time of one flush, from taking to commit.", buckets=_SECONDS, registry=own
        )
        self._campaigns = Histogram(
            "sentstream_flush_campaigns", "Campaigns that one flush changed.", buckets=_CAMPAIGNS, registry=own
        )
        self._retries = Counter("sentstream_flush_retries", "Flushes that were tried again.", registry=own)
        self._fenced = Counter(
            "sentstream_flush_fenced", "Flushes refused, as another process owns the partition.", registry=own
        )
        self.families = own.collect

    def observe(self, seconds: float, campaigns: int) -> None:
        """A flush that committed."""
        self._seconds.observe(seconds)
        self._campaigns.observe(campaigns)

    def retried(self) -> None:
        """A flush that a deadlock, a lock or a serialization failure undid; it is tried again."""
        self._retries.inc()

    def fenced(self) -> None:
        """A flush that was refused: another process owns the partition."""
        self._fenced.inc()


class RecountMetrics:
    """The runs that this process sealed, and what it raised."""

    def __init__(self) -> None:
        own = CollectorRegistry()
        self._runs = Counter("sentstream_recounts", "Sealed runs by trigger.", ["trigger"], registry=own)
        self._verdicts = Counter("sentstream_verdicts", "Verdicts of sealed runs.", ["verdict"], registry=own)
        self._drifts = Counter("sentstream_drifts", "Drifts of sealed runs by cause.", ["cause"], registry=own)
        self._failures = Counter("sentstream_recount_failures", "Recounts that could not be made.", registry=own)
        self._raised = Counter("sentstream_raised", "Counters raised by a recount ahead of the stream.", registry=own)
        self._seconds = Histogram(
            "sentstream_recount_seconds", "Time of the counting statement of a run.", buckets=_COUNTING, registry=own
        )
        for verdict in VERDICTS:
            self._verdicts.labels(verdict)
        for cause in CAUSES:
            self._drifts.labels(cause)
        self.families = own.collect

    def observe(self, report: Report) -> None:
        """A sealed run."""
        self._runs.labels(report.run.trigger).inc()
        for verdict in VERDICTS:
            self._verdicts.labels(verdict).inc(getattr(report.run.tally, verdict))
        for found in report.verdicts:
            if found.verdict == "drift":
                self._drifts.labels(found.cause or "unknown").inc()
        self._seconds.observe(report.run.count_ms / 1000)

    def failed(self) -> None:
        """A recount that could not be made: a lock, a time-out, no connection."""
        self._failures.inc()

    def raised(self, campaigns: int) -> None:
        """Counters raised by a recount ahead of the stream."""
        self._raised.inc(campaigns)
