"""The names of all metrics that we export, from the collectors themselves, filled with one of everything."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prometheus_client.core import Metric

from connectors.postgres.queries.metrics import CAUSES, VERDICTS, LastRun, StoreMetrics, WatermarkMetrics
from stream.config.settings import Settings
from stream.core.status import STATUSES
from stream.kafka.role_metrics import reader_families, worker_families
from stream.kafka.state import ReaderState, WorkerState
from stream.metrics.database import DatabaseView
from stream.metrics.families import Page
from stream.metrics.observed import FlushMetrics, RecountMetrics
from stream.metrics.states import EmbeddedState, ReconcilerState, embedded_families, reconciler_families
from stream.web.live_state import LiveState
from stream.web.metrics import Metrics

LAG: dict[str, Any] = {
    "verdict": "OK",
    "slot": {
        "name": "sentstream",
        "bytes": 1,
        "seconds": 1.0,
        "wal_status": "reserved",
        "active": True,
        "held_bytes": 1,
        "safe_wal_size": 1,
        "verdict": "OK",
        "advice": "",
    },
    "groups": [
        {
            "group": "sentstream-work",
            "topic": "sentstream.changes",
            "partition": 0,
            "current_offset": 1,
            "log_end_offset": 1,
            "lag": 0,
            "seconds": 0.0,
            "consumer_id": "a",
            "host": "b",
            "verdict": "OK",
        }
    ],
    "flush": {"age_seconds": 1.0, "partitions": 1, "unbased": [], "verdict": "OK", "advice": ""},
}

FIGURES = StoreMetrics(
    1,
    1,
    dict.fromkeys(STATUSES, 1),
    1,
    1,
    (WatermarkMetrics(0, 1, 1, True, 1, 1.0, 1.0),),
    LastRun(1, 1.0, 1.0, 1, dict.fromkeys(VERDICTS, 1)),
    1.0,
    1,
    1.0,
    dict.fromkeys(CAUSES, 1),
)


def database(lag: Any = LAG) -> Page:
    """What is true."""
    view = DatabaseView(Settings(), lambda: lag)
    view.saw(FIGURES)
    return Page(view.families)


def roles() -> dict[str, Page]:
    """What each process says of itself."""
    flushes, recounts = FlushMetrics(), RecountMetrics()
    pages = {
        "run": Page(lambda: embedded_families(EmbeddedState()), flushes.families, recounts.families),
        "read": Page(lambda: reader_families(ReaderState(), 0)),
        "work": Page(lambda: worker_families(_worker(), 0), flushes.families),
        "reconcile": Page(lambda: reconciler_families(ReconcilerState()), recounts.families),
    }
    for page in pages.values():
        page.add_process()
    return pages


def families() -> dict[str, Metric]:
    """name (as in a query, without the suffixes of histograms) -> family."""
    http = Page()
    http.add_process("sentstream_http")
    found: dict[str, Metric] = {}
    registry = Metrics(LiveState(10)).registry
    sources: Iterable[Iterable[Metric]] = (
        database().families(),
        *(page.families() for page in roles().values()),
        http.families(),
        registry.collect(),
    )
    for source in sources:
        for family in source:
            found[family.name + ("_total" if family.type == "counter" else "")] = family
    return found


def names() -> set[str]:
    """Every name that a query may use: those of histograms with their suffixes."""
    found = {"up", "ALERTS"}
    for name, family in families().items():
        found.add(name)
        if family.type == "histogram":
            found |= {f"{name}_bucket", f"{name}_count", f"{name}_sum"}
        if family.type == "info":
            found.add(f"{name}_info")
    return found


def _worker() -> WorkerState:
    return WorkerState()


__all__ = ["FIGURES", "LAG", "database", "families", "names", "roles"]
