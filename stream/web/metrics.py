"""`/metrics` in the text format of Prometheus: metrics of the HTTP server, and the texts of other parts.

``context.texts`` holds functions that return more exposition text (of another registry, of the parent process). Names
there must differ from those here, which all begin with ``sentstream_http_``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from fastapi import APIRouter, Request
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stream.web.context import Shared
from stream.web.live_state import LiveState

log = logging.getLogger(__name__)

router = APIRouter(tags=["operations"])


class Metrics:
    """The registry of one server: calls by route, and the state of the streams."""

    def __init__(self, live: LiveState) -> None:
        self.registry = CollectorRegistry()
        self.calls = Counter(
            "sentstream_http_requests",
            "Calls by route and status.",
            ["route", "method", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "sentstream_http_request_seconds",
            "Time to the last byte, event streams aside.",
            ["route"],
            buckets=(0.005, 0.02, 0.1, 0.5, 2, 10),
            registry=self.registry,
        )
        self.registry.register(_State(live))


class _State(Collector):
    """Reads the live state at each scrape."""

    def __init__(self, live: LiveState) -> None:
        self._live = live

    def collect(self) -> Iterable[Metric]:
        live = self._live
        ages = [(live.now() - mark.as_of).total_seconds() for mark in live.log.marks.values() if mark.as_of is not None]
        yield GaugeMetricFamily("sentstream_http_event_streams", "Open event streams.", live.streams)
        yield GaugeMetricFamily("sentstream_http_events_published", "Number of the newest event.", live.log.last)
        yield GaugeMetricFamily("sentstream_http_campaigns", "Campaigns that are served.", len(live.log.campaigns))
        yield GaugeMetricFamily(
            "sentstream_http_as_of_age_seconds", "Age of the oldest partition's as_of.", max(ages, default=float("nan"))
        )


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def metrics(request: Request, shared: Shared) -> Response:
    """Prometheus."""
    own: Metrics = request.app.state.metrics
    texts = [generate_latest(own.registry)]
    for more in shared.texts:
        try:
            texts.append(more())
        except Exception:  # one part that fails must not hide the others
            log.exception("Some metrics can't be read")
    return Response(b"".join(texts), media_type=None, headers={"Content-Type": CONTENT_TYPE_LATEST})


class CountingMiddleware:
    """ASGI middleware that counts calls by the path of their route, which bounds the number of series."""

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: Iterable[BaseRoute]) -> None:
        self._app = app
        self._metrics = metrics
        self._routes = list(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        route = self._route(scope)

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.calls.labels(route, _method(scope["method"]), str(message["status"])).inc()
            await send(message)

        if route.endswith("/events"):
            await self._app(scope, receive, counting)
            return
        with self._metrics.seconds.labels(route).time():
            await self._app(scope, receive, counting)

    def _route(self, scope: Scope) -> str:
        for route in self._routes:
            path = getattr(route, "path", None)
            if path is not None and route.matches(scope)[0] is not Match.NONE:
                return str(path)
        return "other"


def _method(method: str) -> str:
    return method if method in ("GET", "HEAD", "POST", "OPTIONS") else "other"
