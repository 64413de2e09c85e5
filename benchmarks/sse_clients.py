"""A thousand clients on the event streams, with thousands of changes a second underneath.

    python -m benchmarks.sse_clients --clients 1000 --rate 5000 --seconds 15

Real parts on one machine: a private PostgreSQL, `sentstream run` (which serves in a process beside the one that
counts), a writer that changes rows at a fixed rate, and a process with the clients: a fifth of them follow all
campaigns, the others one each. Shown without clients and with them, by turns:

  late     a client's event: from the commit time it tells (`as_of`) to its arrival; that includes the flush
  flush    from the commit time to the flush's own time in PostgreSQL, which is what the counting path feels
  cpu      seconds of CPU in a second: the counting process, the serving one
  memory   of the serving process at the end, and the most it had

The clients stand for other machines: their process gives way to the others (nice). Bounds: no client is ever more than
a second behind; the median of `flush` grows by less than 5 % (median of the turns).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import threading
import time
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import psycopg

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from connectors.mailer.tables import schema_sql  # noqa: E402
from connectors.postgres.connect import connect  # noqa: E402
from connectors.postgres.setup import Wanted, set_up  # noqa: E402
from stream.demo.private_postgres import PrivateServer  # noqa: E402

_AS_OF = re.compile(rb'"as_of":"([^"]+)"')
FILL = """
INSERT INTO campaigns (id, name, status, to_send)
    SELECT n, 'Campaign ' || n, 'running', {rows} FROM generate_series(1, {campaigns}) n;
INSERT INTO subscribers (id, email) SELECT n, n || '@example.org' FROM generate_series(1, {rows}) n;
INSERT INTO email_queue (campaign_id, subscriber_id, scheduled_at)
    SELECT c, n, now() FROM generate_series(1, {rows}) n, generate_series(1, {campaigns}) c;
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rate", type=int, default=5000, help="changed rows a second")
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--campaigns", type=int, default=50)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--follow", nargs=4, metavar=("URL", "CLIENTS", "SECONDS", "CAMPAIGNS"), help=argparse.SUPPRESS)
    given, _ = parser.parse_known_args()
    if given.follow:
        os.nice(10)
        url, clients, seconds, campaigns = given.follow
        print(json.dumps(asyncio.run(follow(url, int(clients), float(seconds), int(campaigns)))))
        return 0
    with PrivateServer() as server:
        database = prepare(server, given.campaigns)
        environment = {**os.environ, "SENTSTREAM_DATABASE_URL": database, "SENTSTREAM_HTTP_LISTEN": "127.0.0.1:0"}
        run = subprocess.Popen(
            [sys.executable, "-m", "stream.cli", "run"], env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        try:
            url = address(run)
            wait_for_counts(database, given.campaigns)
            turns = [
                (measure(database, run.pid, url, 0, given), measure(database, run.pid, url, given.clients, given))
                for _ in range(given.turns)
            ]
        finally:
            run.terminate()
            run.wait(30)
    for alone, crowded in turns:
        show(given, alone, crowded)
    slower = median(median(crowded["flush"]) / median(alone["flush"]) for alone, crowded in turns) - 1
    bounds = {
        "no client was more than a second behind": max(crowded["heard"]["worst"] for _, crowded in turns) <= 1,
        f"counting slowed by less than 5 % ({slower:+.1%})": slower < 0.05,
    }
    for bound, held in bounds.items():
        print(f"{'held' if held else 'NOT HELD'}: {bound}")
    return 0 if all(bounds.values()) else 1


def prepare(server: PrivateServer, campaigns: int) -> str:
    with connect(server.url(), "benchmark") as admin:
        admin.execute("CREATE DATABASE benchmark")
    url = server.url("benchmark")
    with connect(url, "benchmark") as session:
        session.execute(schema_sql().encode())
        session.execute(FILL.format(rows=1000, campaigns=campaigns).encode())
        session.execute("ANALYZE")
        set_up(session, Wanted())
    return url


def address(run: subprocess.Popen[str]) -> str:
    assert run.stderr is not None
    for line in run.stderr:
        found = re.search(r"The dashboard is at (http://\S+)/", line)
        if found is not None:
            threading.Thread(target=lambda: [None for _ in run.stderr or ()], daemon=True).start()
            return found[1]
    raise SystemExit("sentstream did not start")


def wait_for_counts(url: str, campaigns: int) -> None:
    with connect(url, "benchmark") as session:
        deadline = time.monotonic() + 60
        while session.execute("SELECT count(*) FROM sentstream.progress").fetchone() != (campaigns,):
            if time.monotonic() > deadline:
                raise SystemExit("no baseline within a minute")
            time.sleep(0.1)


def measure(url: str, pid: int, http: str, clients: int, given: argparse.Namespace) -> dict[str, Any]:
    """One run: clients first, then the writer, for so many seconds."""
    stop = threading.Event()
    follower = None
    if clients:
        words = [http, str(clients), str(given.seconds + 3), str(given.campaigns)]
        follower = subprocess.Popen(
            [sys.executable, __file__, "--follow", *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        time.sleep(3)
    counting = psutil.Process(pid)
    serving = next(it for it in counting.children() if "stream.web.child_main" in it.cmdline())
    written: list[int] = []
    writer = threading.Thread(target=write, args=(url, given.rate, given.campaigns, stop, written))
    writer.start()
    time.sleep(1)
    before = [sum(it.cpu_times()[:2]) for it in (counting, serving)]
    flush, peak, began = [], 0, time.monotonic()
    with connect(url, "benchmark") as session:
        while time.monotonic() - began < given.seconds:
            row = session.execute(
                "SELECT extract(epoch FROM flushed_at - as_of)::float8 FROM sentstream.watermarks"
            ).fetchone()
            assert row is not None
            flush.append(row[0])
            peak = max(peak, serving.memory_info().rss)
            time.sleep(0.05)
    took = time.monotonic() - began
    after = [sum(it.cpu_times()[:2]) for it in (counting, serving)]
    stop.set()
    writer.join()
    heard = json.loads(follower.communicate(timeout=60)[0]) if follower is not None else None
    return {
        "rate": sum(written) / (took + 1),
        "flush": flush,
        "cpu": [(b - a) / took for a, b in zip(before, after, strict=True)],
        "memory": [serving.memory_info().rss, peak],
        "heard": heard,
    }


def write(url: str, rate: int, campaigns: int, stop: threading.Event, written: list[int]) -> None:
    """Change rows at a rate, in transactions of a fiftieth of a second; each row goes round the statuses."""
    step = max(1, rate // 50)
    with psycopg.connect(url, autocommit=True) as session:
        rows = campaigns * 1000
        at, due = 0, time.monotonic()
        while not stop.is_set():
            session.execute(
                "UPDATE email_queue SET status = CASE status WHEN 'queued' THEN 'sending' WHEN 'sending' THEN 'sent'"
                " ELSE 'queued' END WHERE id BETWEEN %s AND %s",
                (at + 1, at + step),
            )
            written.append(step)
            at = (at + step) % (rows - step)
            due += 0.02
            time.sleep(max(0.0, due - time.monotonic()))


async def follow(url: str, clients: int, seconds: float, campaigns: int) -> dict[str, Any]:
    """The clients: how late events came (of each client the median and the worst), and how many bytes."""
    host, _, port = url.removeprefix("http://").partition(":")
    end = time.monotonic() + seconds
    paths = [f"/api/campaigns/{1 + n % campaigns}/events" if n % 5 else "/api/events" for n in range(clients)]
    results = await asyncio.gather(*(one_client(host, int(port), path, end) for path in paths))
    late = sorted(value for times, _ in results for value in times)
    worst = sorted(max(times, default=float("inf")) for times, _ in results)
    return {
        "events": len(late),
        "megabytes": sum(size for _, size in results) / 1e6,
        "median": late[len(late) // 2] if late else None,
        "p99": late[len(late) * 99 // 100] if late else None,
        "worst": worst[-1],
        "silent": sum(1 for times, _ in results if not times),
    }


async def one_client(host: str, port: int, path: str, end: float) -> tuple[list[float], int]:
    reader, writer = await asyncio.open_connection(host, port, limit=1 << 22)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    late: list[float] = []
    size, begun = 0, time.monotonic() + 4  # the snapshot, and the writer's first second, aside
    try:
        while (left := end - time.monotonic()) > 0:
            try:
                piece = await asyncio.wait_for(reader.read(1 << 18), left)
            except asyncio.TimeoutError:
                break
            if not piece:
                break
            size += len(piece)
            at = piece.rfind(b'"as_of":"')
            found = _AS_OF.match(piece, at) if at >= 0 else None
            if found is not None and time.monotonic() > begun:
                told = datetime.fromisoformat(found[1].decode().replace("Z", "+00:00"))
                late.append((datetime.now(timezone.utc) - told).total_seconds())
    finally:
        writer.close()
    return late, size


def show(given: argparse.Namespace, alone: dict[str, Any], crowded: dict[str, Any]) -> None:
    heard = crowded["heard"]
    print(f"{'':22}{'no clients':>14}{f'{given.clients} clients':>16}")
    for name, index in (("flush p50 ms", 0.5), ("flush p99 ms", 0.99)):
        values = [sorted(run["flush"])[int(len(run["flush"]) * index)] * 1000 for run in (alone, crowded)]
        print(f"{name:22}{values[0]:14.0f}{values[1]:16.0f}")
    for name, place in (("cpu counting", 0), ("cpu serving", 1)):
        print(f"{name:22}{alone['cpu'][place]:14.2f}{crowded['cpu'][place]:16.2f}")
    print(f"{'changes a second':22}{alone['rate']:14.0f}{crowded['rate']:16.0f}")
    print(f"{'serving MB (most)':22}{alone['memory'][1] / 1e6:14.0f}{crowded['memory'][1] / 1e6:16.0f}")
    late = [f"{heard[name] * 1000:.0f} ms" for name in ("median", "p99", "worst")]
    print(f"late: median {late[0]}, p99 {late[1]}, worst event of any client {late[2]};", end=" ")
    print(f"{heard['events']} pieces, {heard['megabytes']:.0f} MB, {heard['silent']} clients heard nothing")
    slower = median(crowded["flush"]) / median(alone["flush"]) - 1
    print(f"counting path: {slower * 100:+.1f} % (median flush)")


if __name__ == "__main__":
    sys.exit(main())
