"""Freshness: time from a change's commit to the new campaigns.sent being visible to another session.

pgbench turns rows `sent`, one a transaction, at a fixed rate; the server keeps commit times
(track_commit_timestamp). A session polls campaigns.sent and notes when it saw which number. The k-th commit is
fresh when a number >= k was seen. Bounds, with the default FLUSH_INTERVAL of 100 ms: p50 within 1.5 intervals, p99
within 4.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from bisect import bisect_left
from typing import Any

import psutil

from benchmarks.scene import Scene, percentile, report, scene, until
from connectors.postgres.connect import connect

SEND = "UPDATE email_queue SET status = 'sent', sent_at = now() WHERE id = (SELECT nextval('bench_ids'));\n"
_INTERVAL_MS = 100


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", default="1000,5000", help="changes a second, with commas")
    parser.add_argument("--seconds", type=float, default=20)
    given = parser.parse_args()
    figures, bounds = {}, {}
    for rate in (int(word) for word in given.rates.split(",")):
        result = measure(rate, given.seconds)
        figures[f"{rate}/s"] = result
        bounds[f"p50 within 1.5 intervals at {rate}/s"] = result["p50_ms"] <= 1.5 * _INTERVAL_MS
        bounds[f"p99 within 4 intervals at {rate}/s"] = result["p99_ms"] <= 4 * _INTERVAL_MS
    return report("freshness", figures, bounds)


def measure(rate: int, seconds: float, **settings: Any) -> dict[str, Any]:
    """``settings``: other settings of sentstream. ``memory_mb``: of each process, at each tenth of the time,
    and the most."""
    with scene(track_commit_timestamp="on") as s:
        s.campaigns(1, int(rate * seconds * 1.3))
        s.session.execute("CREATE SEQUENCE bench_ids CACHE 1")
        s.set_up()
        with s.sentstream(**settings) as child:
            until(s.based)
            seen: list[tuple[float, int]] = []
            memory: dict[str, list[float]] = {}
            stop = threading.Event()
            poller = threading.Thread(target=poll, args=(s.url, seen, stop))
            poller.start()
            threading.Thread(target=_weigh, args=(child.pid, memory, stop), daemon=True).start()
            began = s.value("SELECT clock_timestamp()")
            figures = s.pgbench(SEND, seconds, clients=4, rate=rate)
            until(lambda: s.value("SELECT sent FROM campaigns") == _sent(s))
            stop.set()
            poller.join()
        commits = s.commits_since(began)
    numbers = [number for _, number in seen]
    waits = [1000 * (seen[bisect_left(numbers, k)][0] - at) for k, at in enumerate(commits, 1)]
    return {
        "changes": len(commits),
        "achieved_per_second": round(figures["tps"]),
        "p50_ms": round(percentile(waits, 50), 1),
        "p99_ms": round(percentile(waits, 99), 1),
        "max_ms": round(max(waits), 1),
        "memory_mb": {
            role: {"tenths": [values[len(values) * n // 10] for n in range(10)] + values[-1:], "most": max(values)}
            for role, values in sorted(memory.items())
        },
    }


def _sent(s: Scene) -> int:
    return int(s.value("SELECT count(*) FROM email_queue WHERE status = 'sent'"))


def poll(url: str, seen: list[tuple[float, int]], stop: threading.Event) -> None:
    """Note each new sum of the counters, and the server's time at which it was seen."""
    last = -1
    with connect(url, "poller") as session:
        while not stop.is_set():
            row = session.execute(
                "SELECT coalesce(sum(sent), 0)::bigint, extract(epoch FROM clock_timestamp())::float8 FROM campaigns"
            ).fetchone()
            assert row is not None
            if row[0] > last:
                last = row[0]
                seen.append((row[1], row[0]))
            time.sleep(0.002)


def _weigh(pid: int, memory: dict[str, list[float]], stop: threading.Event) -> None:
    """Note each second what every process of ours holds, in MB, by the command it was started with."""
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    while not stop.wait(1):
        for process in processes:
            try:
                words = process.cmdline()
                role = words[words.index("stream.cli") + 1] if "stream.cli" in words else words[0]
                memory.setdefault(role, []).append(round(process.memory_info().rss / 1e6, 1))
            except psutil.NoSuchProcess:
                memory.setdefault("ended", []).append(0.0)


if __name__ == "__main__":
    sys.exit(main())
