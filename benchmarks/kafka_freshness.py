"""Freshness through Kafka: time from a change's commit to the new campaigns.sent being visible to another session.

The same measurement as `benchmarks.freshness`, with reader, worker, reconciler and a broker of their own on this
machine. Bounds: no stall over a second; reader and worker hold at most 16 MB more at the end than after a fifth of
the time, and no process of ours was started anew; with --debezium, p99 no worse than Debezium's own from commit to
Kafka in the same run.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.debezium import Debezium
from benchmarks.freshness import measure
from benchmarks.scene import report
from stream.demo.private_kafka import PrivateKafka


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=int, default=5000, help="changes a second")
    parser.add_argument("--seconds", type=float, default=20, help="600 for the ten minutes of the docs")
    parser.add_argument("--partitions", type=int, default=12)
    parser.add_argument("--debezium", action="store_true", help="fetch and run Debezium as well")
    parser.add_argument("--debezium-seconds", type=float, help="how long Debezium is measured, if not as long")
    given = parser.parse_args()
    with PrivateKafka() as kafka:
        ours = measure(
            given.rate, given.seconds, kafka_bootstrap_servers=kafka.bootstrap, kafka_partitions=given.partitions
        )
        seconds = given.debezium_seconds or given.seconds
        theirs = Debezium(kafka.bootstrap).freshness(given.rate, seconds) if given.debezium else None
    memory = ours["memory_mb"]
    bounds = {
        "no stall over a second": ours["max_ms"] <= 1000,
        "memory of reader and worker flat": "ended" not in memory
        and all(memory[role]["tenths"][-1] - memory[role]["tenths"][2] <= 16 for role in ("read", "work")),
    }
    figures = {"rate": given.rate, "seconds": given.seconds, "sentstream": ours}
    if theirs is not None:
        figures["debezium"] = theirs
        bounds["p99 no worse than Debezium's to Kafka"] = ours["p99_ms"] <= theirs["p99_ms"]
    return report("kafka_freshness", figures, bounds)


if __name__ == "__main__":
    sys.exit(main())
