"""Catch-up through Kafka: a backlog of single-row transactions, WAL to campaigns.sent, broker and all on this
machine.

Beside it in the same run, each on a fresh copy of one slot: `pg_recvlogical -f /dev/null` over TCP, and with
--debezium Debezium through Kafka Connect, which only writes to Kafka. The time of sentstream is from the reader's
first connection to the flush of the backlog's end by the worker, which waits already. Bounds: 1.5 times as fast as
pg_recvlogical, 3 times as fast as Debezium.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import time
from contextlib import ExitStack
from typing import Any

from benchmarks.debezium import Debezium
from benchmarks.drain import _GENERATE, _again, _memory, _recvlogical
from benchmarks.scene import Scene, report, scene, until
from connectors.kafka.topics import ensure
from stream.config.settings import Settings
from stream.demo.private_kafka import PrivateKafka

_runs = itertools.count(1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transactions", type=int, default=400_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--partitions", type=int, default=12)
    parser.add_argument("--debezium", action="store_true", help="fetch and run Debezium as well")
    given = parser.parse_args()
    rows = given.transactions // 2
    times: dict[str, list[float]] = {"pg_recvlogical": [], "sentstream": []}
    memory: dict[str, list[float]] = {"read": [], "work": []}
    with ExitStack() as closing:
        kafka = closing.enter_context(PrivateKafka())
        debezium = Debezium(kafka.bootstrap) if given.debezium else None
        s = closing.enter_context(scene())
        s.campaigns(50, rows)
        s.set_up()
        first = settings(s, kafka, given.partitions)
        ensure(Settings(**first))
        with s.sentstream("work", **first):
            with s.sentstream("reconcile", **first), s.sentstream("read", **first):
                until(lambda: s.based() and s.value("SELECT count(*) FROM sentstream.watermarks") == given.partitions)
            confirmed = "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'sentstream'"
            until(lambda: s.value(f"SELECT min(lsn) >= ({confirmed}) FROM sentstream.watermarks"))
        s.session.execute(_GENERATE.encode())
        s.session.execute("SET synchronous_commit = off")
        s.session.execute("CALL backlog(%s::int)", (rows,))
        s.session.execute("CHECKPOINT")
        end = s.value("SELECT pg_current_wal_insert_lsn()::text")
        s.session.execute("CREATE TABLE saved AS SELECT * FROM sentstream.progress")
        s.session.execute("CREATE TABLE marks AS SELECT * FROM sentstream.watermarks")
        for _ in range(given.runs):
            settled()
            times["pg_recvlogical"].append(_recvlogical(s, end))
            if debezium is not None:
                settled()
                times.setdefault("debezium", []).append(debezium.drain(s, given.transactions))
            again(s)
            settled()
            seconds, grown = drained(s, kafka, given.partitions, end, rows)
            times["sentstream"].append(seconds)
            for role, value in grown.items():
                memory[role].append(value)
    medians = {way: round(statistics.median(values), 2) for way, values in times.items()}
    ours = medians["sentstream"]
    bounds = {"1.5 times as fast as pg_recvlogical": medians["pg_recvlogical"] >= 1.5 * ours}
    if "debezium" in medians:
        bounds["3 times as fast as Debezium"] = medians["debezium"] >= 3 * ours
    figures = {
        "transactions": given.transactions,
        "partitions": given.partitions,
        "seconds": {way: [round(v, 2) for v in values] for way, values in times.items()},
        "median_seconds": medians,
        "times_as_fast_as": {way: round(value / ours, 2) for way, value in medians.items()},
        "memory_grown_mb": {role: [round(v, 1) for v in values] for role, values in memory.items()},
    }
    return report("kafka_drain", figures, bounds)


def settled() -> None:
    """What the run before has left to be written to disk is not this one's."""
    os.sync()
    time.sleep(2)


def settings(s: Scene, kafka: PrivateKafka, partitions: int) -> dict[str, Any]:
    """Settings of a pipeline with topics of its own."""
    return {
        "database_url": s.url,
        "kafka_bootstrap_servers": kafka.bootstrap,
        "kafka_topic_prefix": f"drain{next(_runs)}",
        "kafka_partitions": partitions,
        "recount_interval": "1h",
    }


def drained(s: Scene, kafka: PrivateKafka, partitions: int, end: str, rows: int) -> tuple[float, dict[str, float]]:
    """Seconds from the reader's first connection to the flush of the backlog's end, and MB grown by role."""
    s.session.execute("SELECT pg_copy_logical_replication_slot('sentstream', 'reader')")
    given = {**settings(s, kafka, partitions), "slot_name": "reader"}
    ensure(Settings(**given))
    with s.sentstream("work", **given) as worker:
        ready = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'sentstream work' AND query ~ 'history'"
        until(lambda: s.value(ready))
        time.sleep(2)
        idle = _memory(worker.pid, "VmRSS")
        with s.sentstream("read", **given) as reader:
            connected = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'sentstream control'"
            until(lambda: s.value(connected), every=0.005)
            began, start = time.monotonic(), _memory(reader.pid, "VmRSS")
            until(lambda: s.value("SELECT min(lsn) >= %s::pg_lsn FROM sentstream.watermarks", end), every=0.05)
            seconds = time.monotonic() - began
            grown = {
                "read": _memory(reader.pid, "VmHWM") - start,
                "work": _memory(worker.pid, "VmHWM") - idle,
            }
        sent = s.value("SELECT sum(sent) FROM campaigns")
        if sent != rows:
            raise RuntimeError(f"{sent} counted, {rows} sent")
    s.drop_reader()
    return seconds, grown


def again(s: Scene) -> None:
    """Put the store back to where the slot is, for the next run."""
    _again(s, "0/0", 0)
    s.session.execute("DELETE FROM sentstream.watermarks")
    s.session.execute("INSERT INTO sentstream.watermarks SELECT * FROM marks")
    s.session.execute("UPDATE sentstream.watermarks SET next_offset = NULL, based = true")


if __name__ == "__main__":
    sys.exit(main())
