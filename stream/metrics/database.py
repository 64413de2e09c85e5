"""The state of counting as metric families: sums of PostgreSQL and the lag, as of the last poll.

Ages go on between polls, and when polls fail: a database that is away makes everything older, never "fine".
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric

from connectors.postgres.queries.metrics import StoreMetrics, WatermarkMetrics
from connectors.postgres.setup.versions import release
from stream.config.settings import Settings
from stream.core.lag import LagVerdict
from stream.metrics.families import gauge, gauges

#: what ``pg_replication_slots.wal_status`` may be
WAL_STATUSES: Final = ("reserved", "extended", "unreserved", "lost")
_CONSUMER: Final = ("cluster_name", "group", "topic", "partition", "member_host", "consumer_id", "client_id")


class DatabaseView:
    """Holds the last poll; `families` shows it. ``lag``: the newest lag, or None. The poller calls `saw` and `failed`.
    For any thread.
    """

    def __init__(
        self,
        settings: Settings,
        lag: Callable[[], Mapping[str, Any] | None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._lag = lag
        self._now = now
        self._seen: tuple[float, StoreMetrics] | None = None
        self._up = False

    def saw(self, read: StoreMetrics) -> None:
        """A poll that succeeded."""
        self._seen, self._up = (self._now(), read), True

    def failed(self) -> None:
        """A poll that did not."""
        self._up = False

    def families(self) -> Iterator[Metric]:
        """All of them, in order of docs/operations/metrics.md."""
        yield self._info()
        yield gauge("sentstream_database_up", "Whether the last poll of the database succeeded.", self._up)
        seen = self._seen
        if seen is not None:
            since = self._now() - seen[0]
            yield gauge("sentstream_database_look_age_seconds", "Time since the last poll that succeeded.", since)
            yield from _counts(seen[1])
            yield from _positions(seen[1], since)
            yield from _recounts(seen[1], since)
        lag = self._lag()
        if lag is not None:
            yield from _lag(lag)
            yield from _groups(lag["groups"], self._settings.kafka_topic_prefix)

    def _info(self) -> Metric:
        settings = self._settings
        words = {
            "version": release(),
            "shape": "kafka" if settings.kafka else "embedded",
            "removed": settings.removed,
            "write_back": str(settings.write_back).lower(),
            "slot": settings.slot_name,
        }
        return InfoMetricFamily("sentstream", "What runs, and how it is set.", value=words)


def _counts(found: StoreMetrics) -> Iterator[Metric]:
    yield gauge("sentstream_campaigns", "Campaigns that are counted.", found.campaigns)
    yield gauges("sentstream_queue_rows", "Rows of the queue by status, over all campaigns.", "status", found.rows)
    yield gauge("sentstream_sent", "Sum of campaigns.sent as it should show, over all campaigns.", found.sent)
    yield gauge("sentstream_removed", "Rows that were sent when deleted or truncated.", found.removed)


def _positions(found: StoreMetrics, since: float) -> Iterator[Metric]:
    marks = found.marks
    yield gauge("sentstream_wal_position_bytes", "End of the server's WAL, as bytes.", found.wal)
    yield gauge("sentstream_partitions", "Partitions of the campaigns.", len(marks))
    yield gauge(
        "sentstream_unbased_partitions", "Partitions that wait for a baseline.", sum(not m.based for m in marks)
    )
    yield gauge("sentstream_epoch", "The newest epoch.", max((m.epoch for m in marks), default=None))
    yield _by_partition("sentstream_position_bytes", "Position in the WAL up to which counts are written.", marks, _lsn)
    yield _by_partition(
        "sentstream_as_of_age_seconds",
        "Age of the commit time up to which all is counted.",
        marks,
        lambda mark: None if mark.as_of_age is None else mark.as_of_age + since,
    )
    yield _by_partition(
        "sentstream_flush_age_seconds",
        "Time since the partition was last flushed.",
        marks,
        lambda mark: None if mark.flush_age is None else mark.flush_age + since,
    )


def _lsn(mark: WatermarkMetrics) -> float:
    return mark.lsn


def _by_partition(
    name: str, words: str, marks: Sequence[WatermarkMetrics], of: Callable[[WatermarkMetrics], float | None]
) -> Metric:
    return gauges(name, words, "partition", {str(mark.partition): of(mark) for mark in marks})


def _recounts(found: StoreMetrics, since: float) -> Iterator[Metric]:
    run = found.last_run
    yield gauge(
        "sentstream_verification_age_seconds",
        "Time since the start of the newest recount that compared every campaign.",
        None if found.proved_age is None else found.proved_age + since,
    )
    yield gauge(
        "sentstream_recount_age_seconds",
        "Time since the newest run was sealed.",
        None if run is None else run.age + since,
    )
    yield gauge(
        "sentstream_recount_last_seconds",
        "Time that the newest run's counting took.",
        None if run is None else run.count_seconds,
    )
    yield gauges(
        "sentstream_recount_last_campaigns",
        "Campaigns of the newest run by verdict.",
        "verdict",
        run.tally if run else {},
    )
    yield gauge("sentstream_recounts_open", "Runs that are not sealed.", found.open_runs)
    open_age = None if found.open_age is None else found.open_age + since
    yield gauge("sentstream_recount_open_age_seconds", "Age of the oldest run that is not sealed.", open_age)
    words = "Campaigns found drifting within the last hour, by cause; all are corrected."
    yield gauges("sentstream_drift_campaigns", words, "cause", found.drift)


def _lag(lag: Mapping[str, Any]) -> Iterator[Metric]:
    slot, flush = lag["slot"], lag["flush"]
    exists = slot["bytes"] is not None
    yield gauge("sentstream_slot_exists", "Whether there is a slot of that name.", exists)
    yield gauge("sentstream_slot_active", "Whether the slot is being read.", slot["active"])
    yield gauge("sentstream_slot_lag_bytes", "WAL that the slot has not confirmed.", slot["bytes"])
    yield gauge("sentstream_slot_lag_seconds", "Age of the oldest as_of.", slot["seconds"])
    yield gauge("sentstream_slot_held_bytes", "WAL that the server keeps for the slot.", slot["held_bytes"])
    yield gauge(
        "sentstream_slot_safe_wal_bytes",
        "How much WAL may still be written before the server gives the slot up; absent: without limit.",
        slot["safe_wal_size"],
    )
    status = {name: name == slot["wal_status"] for name in WAL_STATUSES} if exists else {}
    yield gauges("sentstream_slot_wal_status", "1 for the slot's wal_status.", "status", status)
    yield gauge(
        "sentstream_flush_lag_seconds",
        "Time since the flush of the partition that waits longest.",
        flush["age_seconds"],
    )
    parts = {"all": lag["verdict"], "slot": slot["verdict"], "flush": flush["verdict"]}
    if lag["groups"]:
        parts["group"] = _worst(lag["groups"])
    elif lag.get("groups_error"):
        parts["group"] = LagVerdict.UNKNOWN.value
    family = GaugeMetricFamily("sentstream_lag_verdict", "1 for the verdict of `lag`.", labels=["part", "verdict"])
    for part, said in parts.items():
        for verdict in LagVerdict:
            family.add_metric([part, verdict.value], float(verdict.value == said))
    yield family


def _worst(groups: Sequence[Mapping[str, Any]]) -> str:
    from stream.core.lag import worst  # noqa: PLC0415

    return worst(LagVerdict(group["verdict"]) for group in groups).value


def _groups(groups: Sequence[Mapping[str, Any]], cluster: str) -> Iterator[Metric]:
    """The names and labels of kafka-lag-exporter, so that its dashboards and rules fit. ``cluster``: topic prefix."""
    if not groups:
        return
    offset = GaugeMetricFamily("kafka_consumergroup_group_offset", "Committed offset.", labels=_CONSUMER)
    lag = GaugeMetricFamily("kafka_consumergroup_group_lag", "Records not yet committed.", labels=_CONSUMER)
    seconds = GaugeMetricFamily("kafka_consumergroup_group_lag_seconds", "Age of the oldest of them.", labels=_CONSUMER)
    latest = GaugeMetricFamily(
        "kafka_partition_latest_offset", "End of the partition.", labels=["cluster_name", "topic", "partition"]
    )
    for line in groups:
        where = [cluster, line["topic"], str(line["partition"])]
        member = [line["host"] or "", line["consumer_id"] or "", ""]
        labels = [cluster, line["group"], *where[1:], *member]
        latest.add_metric(where, line["log_end_offset"])
        for family, value in ((offset, line["current_offset"]), (lag, line["lag"]), (seconds, line["seconds"])):
            if value is not None:
                family.add_metric(labels, float(value))
    yield from (offset, lag, seconds, latest)
    group = [cluster, groups[0]["group"]]
    lags = [line["lag"] for line in groups if line["lag"] is not None]
    ages = [line["seconds"] for line in groups if line["seconds"] is not None]
    for name, words, value in (
        ("kafka_consumergroup_group_max_lag", "Greatest lag of a partition.", max(lags, default=None)),
        ("kafka_consumergroup_group_max_lag_seconds", "Greatest age of a partition.", max(ages, default=None)),
        (
            "kafka_consumergroup_group_sum_lag",
            "Records not yet committed, all partitions.",
            sum(lags) if lags else None,
        ),
    ):
        total = GaugeMetricFamily(name, words, labels=["cluster_name", "group"])
        if value is not None:
            total.add_metric(group, float(value))
        yield total
