"""What the sender feels: the latency of its statement with no sentstream, with sentstream, and with a row trigger.

At a fixed rate pgbench marks rows `sent`, one a transaction; the three settings follow one another in rounds on one
server, and medians of the rounds are compared. Then each at saturation. Bound: with sentstream the median is at most
3 % above.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.scene import Scene, report, scene, until

_SEND = "UPDATE email_queue SET status = 'sent', sent_at = now() WHERE id = (SELECT nextval('bench_ids'));\n"
_TRIGGER = """
CREATE FUNCTION keep_count() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF NEW.status = 'sent' AND OLD.status IS DISTINCT FROM 'sent' THEN
    UPDATE campaigns SET sent = sent + 1 WHERE id = NEW.campaign_id; END IF;
  RETURN NULL; END $$;
CREATE TRIGGER keep_count AFTER UPDATE ON email_queue FOR EACH ROW EXECUTE FUNCTION keep_count()"""
_WAYS = ("none", "sentstream", "trigger")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=8, help="of each round")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    at_rate: dict[str, list[dict[str, float]]] = {way: [] for way in _WAYS}
    saturated: dict[str, list[float]] = {way: [] for way in _WAYS}
    with scene(fsync="on") as s:
        s.campaigns(20, int((given.rate * given.seconds * given.rounds + 200_000) * 3))
        s.session.execute("CREATE SEQUENCE bench_ids CACHE 100")
        s.set_up()
        for _ in range(given.rounds):
            for way in _WAYS:
                with _setting(s, way):
                    at_rate[way].append(s.pgbench(_SEND, given.seconds, clients=2, rate=given.rate))
        for _ in range(3):
            for way in _WAYS:
                with _setting(s, way):
                    saturated[way].append(s.pgbench(_SEND, given.seconds / 2, clients=4)["tps"])
    median = {way: statistics.median(run["median"] for run in runs) for way, runs in at_rate.items()}
    figures = {
        "rate": given.rate,
        "statement_ms": {
            way: {"median": round(median[way], 3), "p99": round(statistics.median(r["p99"] for r in runs), 3)}
            for way, runs in at_rate.items()
        },
        "median_ratio_to_none": {way: round(median[way] / median["none"], 3) for way in _WAYS},
        "saturation_tps": {way: round(statistics.median(values)) for way, values in saturated.items()},
    }
    return report("sender", figures, {"median at most 3 % more": median["sentstream"] <= 1.03 * median["none"]})


@contextmanager
def _setting(s: Scene, way: str) -> Iterator[None]:
    if way == "sentstream":
        with s.sentstream():
            until(lambda: s.value("SELECT bool_and(based) FROM sentstream.watermarks"))
            behind = "SELECT pg_current_wal_insert_lsn() - confirmed_flush_lsn < 1000000 FROM pg_replication_slots"
            until(lambda: s.value(behind))
            yield
        return
    if way == "trigger":
        s.session.execute(_TRIGGER.encode())
    try:
        yield
    finally:
        if way == "trigger":
            s.session.execute("DROP FUNCTION keep_count CASCADE")


if __name__ == "__main__":
    sys.exit(main())
