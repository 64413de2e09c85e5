"""Short ways to make the families that our collectors yield, and to print collectors as exposition text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeAlias

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

#: yields families, at each scrape
Families: TypeAlias = Callable[[], Iterable[Metric]]


class Page:
    """What one process shows: collectors in order, printed by `text`. For any thread."""

    def __init__(self, *sources: Families) -> None:
        self.registry = CollectorRegistry()
        for source in sources:
            self.add(source)

    def add(self, source: Families) -> None:
        """One more source; called at each scrape."""
        self.registry.register(_Called(source))

    def add_process(self, namespace: str = "") -> None:
        """CPU, memory, open files, start time of this process; under ``namespace`` where two share a page."""
        ProcessCollector(namespace=namespace, registry=self.registry)
        if not namespace:
            PlatformCollector(registry=self.registry)
            GCCollector(registry=self.registry)

    def families(self) -> Iterable[Metric]:
        """All of it, to be part of another page."""
        return self.registry.collect()

    def text(self) -> bytes:
        """The text format of Prometheus."""
        return generate_latest(self.registry)


class _Called(Collector):
    def __init__(self, source: Families) -> None:
        self._source = source

    def collect(self) -> Iterator[Metric]:
        yield from self._source()


def gauge(name: str, words: str, value: float | None) -> GaugeMetricFamily:
    """A gauge; without a sample where ``value`` is None, for an unknown number is not 0."""
    family = GaugeMetricFamily(name, words)
    if value is not None:
        family.add_metric([], float(value))
    return family


def gauges(name: str, words: str, label: str, values: Mapping[str, float | None]) -> GaugeMetricFamily:
    """A gauge by one label; unknown values are left out."""
    family = GaugeMetricFamily(name, words, labels=[label])
    for key, value in values.items():
        if value is not None:
            family.add_metric([key], float(value))
    return family


def counter(name: str, words: str, value: float) -> CounterMetricFamily:
    """A counter; ``name`` without ``_total``."""
    return CounterMetricFamily(name, words, value=float(value))


def counters(name: str, words: str, label: str, values: Mapping[str, float]) -> CounterMetricFamily:
    """A counter by one label; ``name`` without ``_total``."""
    family = CounterMetricFamily(name, words, labels=[label])
    for key, value in values.items():
        family.add_metric([key], float(value))
    return family
