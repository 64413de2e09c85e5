"""Freshness through Kafka: time from a change's commit to the new campaigns.sent being visible to another session.

The same measurement as `benchmarks.freshness`, with reader, worker, reconciler and a broker of their own on this
machine. Bound: no stall over a second; with --debezium, p99 no worse than Debezium's own from commit to Kafka in
the same run.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.debezium import Debezium
from benchmarks.freshness import measure
from benchmarks.scene import report
from connectors.kafka.broker import PrivateKafka


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=int, default=5000, help="changes a second")
    parser.add_argument("--seconds", type=float, default=20, help="600 for the ten minutes of the docs")
    parser.add_argument("--partitions", type=int, default=12)
    parser.add_argument("--debezium", action="store_true", help="fetch and run Debezium as well")
    given = parser.parse_args()
    with PrivateKafka() as kafka:
        ours = measure(
            given.rate, given.seconds, kafka_bootstrap_servers=kafka.bootstrap, kafka_partitions=given.partitions
        )
        theirs = Debezium(kafka.bootstrap).freshness(given.rate, given.seconds) if given.debezium else None
    bounds = {"no stall over a second": ours["max_ms"] <= 1000}
    figures = {"rate": given.rate, "seconds": given.seconds, "sentstream": ours}
    if theirs is not None:
        figures["debezium"] = theirs
        bounds["p99 no worse than Debezium's to Kafka"] = ours["p99_ms"] <= theirs["p99_ms"]
    return report("kafka_freshness", figures, bounds)


if __name__ == "__main__":
    sys.exit(main())
