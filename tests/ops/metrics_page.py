"""Prints docs/operations/metrics.md: ``python -m tests.ops.metrics_page > docs/operations/metrics.md``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import Metric

from stream.metrics.families import Page
from stream.web.live_state import LiveState
from stream.web.metrics import Metrics
from tests.ops import exported

_HEAD = """# Metrics

<!-- Made by `python -m tests.ops.metrics_page > docs/operations/metrics.md`; a test holds it to the code. -->

`GET /metrics` of the HTTP API (HTTP_LISTEN: `run`, `serve`) shows *what is true*, read from PostgreSQL and Kafka every
few seconds, and what its own process does; embedded, also what the counting process does. METRICS_LISTEN shows what
`run`, `read`, `work` or `reconcile` does, and its `/livez` and `/readyz`; of `run` embedded also what is true.

No series is by campaign: 10,000 campaigns cost a scrape what ten do. Labels are status, cause, verdict, trigger, route
and partition. Unknown is no sample, not 0. Ages go on while the database is away.

Consumer lag has the names of kafka-lag-exporter; `cluster_name` is KAFKA_TOPIC_PREFIX.

With a token, `/metrics` needs it, as in [prometheus.yml](../../deploy/prometheus/prometheus.yml).
Alerts: [rules.yml](../../deploy/prometheus/rules.yml), a page each in [runbooks](runbooks).
Dashboard: [sentstream.json](../../deploy/grafana/sentstream.json).
"""


def text() -> str:
    """The page."""
    return "\n".join([_HEAD, *_sections()]) + "\n"


def _sections() -> Iterator[str]:
    yield from _table("What is true (HTTP API)", exported.database().families())
    titles = {
        "run": "`run`, embedded",
        "read": "`read`",
        "work": "`work`",
        "reconcile": "`reconcile`",
    }
    for role, page in exported.roles().items():
        ours = [family for family in page.families() if family.name.startswith("sentstream")]
        yield from _table(titles[role], ours)
    yield from _table("The HTTP process", Metrics(LiveState(1)).registry.collect())
    process = Page()
    process.add_process()
    yield from _table("Every process (embedded, that of HTTP as `sentstream_http_process_...`)", process.families())


def _table(title: str, families: Iterable[Metric]) -> Iterator[str]:
    yield f"## {title}\n"
    yield "| name | type | meaning |\n|---|---|---|"
    for family in families:
        suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
        labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
        shown = "{" + ", ".join(labels) + "}" if labels else ""
        yield f"| `{family.name}{suffix}{shown}` | {family.type} | {family.documentation} |"
    yield ""


if __name__ == "__main__":
    print(text(), end="")
