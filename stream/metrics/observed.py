"""Distributions and counts that a role fills in as it works: flushes and recounts. Safe in any thread, cheap enough
for every flush."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from threading import Lock
from typing import Final

from prometheus_client import Histogram
from prometheus_client.core import Metric

from connectors.postgres.queries.metrics import CAUSES, VERDICTS
from stream.core.report import Report
from stream.metrics.families import counter, counters

_SECONDS: Final = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 15)
_CAMPAIGNS: Final = (0, 1, 2, 5, 10, 50, 200, 1000, 5000)
_COUNTING: Final = (0.01, 0.05, 0.2, 0.5, 1, 2, 5, 15, 60, 300)


class Flushes:
    """Time and size of the flushes of one process, and how often one was tried again."""

    def __init__(self) -> None:
        self._seconds = Histogram(
            "sentstream_flush_seconds", "Time of one flush, from taking to commit.", buckets=_SECONDS, registry=None
        )
        self._campaigns = Histogram(
            "sentstream_flush_campaigns", "Campaigns that one flush changed.", buckets=_CAMPAIGNS, registry=None
        )
        self._retries = 0
        self._fenced = 0

    def saw(self, seconds: float, campaigns: int) -> None:
        """A flush that committed."""
        self._seconds.observe(seconds)
        self._campaigns.observe(campaigns)

    def saw_retry(self) -> None:
        """A flush that a deadlock, a lock or a serialization failure undid; it is tried again."""
        self._retries += 1

    def saw_fence(self) -> None:
        """A flush that was refused, since somebody else owns the partition."""
        self._fenced += 1

    def families(self) -> Iterator[Metric]:
        yield from self._seconds.collect()
        yield from self._campaigns.collect()
        yield counter("sentstream_flush_retries", "Flushes that were tried again.", self._retries)
        yield counter("sentstream_flush_fenced", "Flushes refused, as somebody else owns the partition.", self._fenced)


class Recounts:
    """The runs that this process sealed."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._runs: Counter[str] = Counter()
        self._verdicts: Counter[str] = Counter(dict.fromkeys(VERDICTS, 0))
        self._causes: Counter[str] = Counter(dict.fromkeys(CAUSES, 0))
        self._failed = 0
        self._raised = 0
        self._seconds = Histogram(
            "sentstream_recount_seconds", "Time of the counting statement of a run.", buckets=_COUNTING, registry=None
        )

    def saw(self, report: Report) -> None:
        """A sealed run."""
        with self._lock:
            self._runs[report.run.trigger] += 1
            for name in VERDICTS:
                self._verdicts[name] += getattr(report.run.tally, name)
            self._causes.update(v.cause or "unknown" for v in report.verdicts if v.verdict == "drift")
        self._seconds.observe(report.run.count_ms / 1000)

    def saw_failure(self) -> None:
        """A recount that could not be made: a lock, a time-out, no connection."""
        self._failed += 1

    def saw_raises(self, campaigns: int) -> None:
        """Counters raised by a recount ahead of the stream."""
        self._raised += campaigns

    def families(self) -> Iterator[Metric]:
        with self._lock:
            runs, verdicts, causes = dict(self._runs), dict(self._verdicts), dict(self._causes)
        yield counters("sentstream_recounts", "Sealed runs by trigger.", "trigger", runs)
        yield counters("sentstream_verdicts", "Verdicts of sealed runs.", "verdict", verdicts)
        yield counters("sentstream_drifts", "Drifts of sealed runs by cause.", "cause", causes)
        yield counter("sentstream_recount_failures", "Recounts that could not be made.", self._failed)
        yield counter("sentstream_raised", "Counters raised by a recount ahead of the stream.", self._raised)
        yield from self._seconds.collect()
