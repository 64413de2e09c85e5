"""A recount of a million rows over 50 campaigns: what it takes beside the naive GROUP BY, and what the sender feels.

pgbench marks rows `sent` at a fixed rate while a recount runs every two seconds, and while none runs, in turn. Bound:
the median of the sender's statement grows by less than 5 %. One every five minutes is what is normal.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from typing import Any

from benchmarks.scene import report, scene
from connectors.postgres.connect import connect
from connectors.postgres.store.recount import Limits, request

_SEND = "UPDATE email_queue SET status = 'sent', sent_at = now() WHERE id = (SELECT nextval('bench_ids'));\n"
_NAIVE = "SELECT campaign_id, status, count(*) FROM email_queue GROUP BY 1, 2"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rate", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=6, help="of each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two recounts")
    given = parser.parse_args()
    latency: dict[str, list[float]] = {"quiet": [], "recounting": []}
    ours: list[float] = []
    naive: list[float] = []
    with scene(fsync="on") as s:
        s.campaigns(50, given.rows)
        s.session.execute("CREATE SEQUENCE bench_ids CACHE 100")
        s.set_up()
        for _ in range(given.rounds):
            latency["quiet"].append(s.pgbench(_SEND, given.seconds, clients=1, rate=given.rate)["median"])
            stop = threading.Event()
            thread = threading.Thread(target=_recounts, args=(s.url, ours, stop, given.every))
            thread.start()
            latency["recounting"].append(s.pgbench(_SEND, given.seconds, clients=1, rate=given.rate)["median"])
            stop.set()
            thread.join()
            began = time.monotonic()
            s.session.execute("SET enable_indexonlyscan = off; SET enable_indexscan = off")
            s.session.execute(_NAIVE)
            naive.append(1000 * (time.monotonic() - began))
            s.session.execute("RESET enable_indexonlyscan; RESET enable_indexscan")
    quiet, busy = (statistics.median(latency[name]) for name in ("quiet", "recounting"))
    figures = {
        "rows": given.rows,
        "recount_ms": round(statistics.median(ours), 1),
        "naive_group_by_ms": round(statistics.median(naive), 1),
        "recounts": len(ours),
        "sender_median_ms": {"quiet": round(quiet, 3), "recounting": round(busy, 3)},
        "sender_ratio": round(busy / quiet, 3),
    }
    return report("recount", figures, {"sender's median grows by less than 5 %": busy < 1.05 * quiet})


def _recounts(url: str, took: list[float], stop: threading.Event, every: float) -> None:
    given: dict[str, Any] = {
        "mailer_schema": "public",
        "publication": "sentstream",
        "trigger": "manual",
        "requested_by": "benchmark",
        "removed_policy": "keep",
        "version": "benchmark",
        "limits": Limits(5, 5, 60),
    }
    with connect(url, "recount") as session:
        while not stop.wait(every):
            took.append(request(session, **given).count_ms)


if __name__ == "__main__":
    sys.exit(main())
