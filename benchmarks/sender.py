"""What the sender feels: the latency of its statement with no sentstream, with sentstream, and with a row trigger; and
with `pg_recvlogical -f /dev/null`, which is what any reader of the log costs.

At a fixed rate pgbench marks rows `sent`, one a transaction. The settings follow one another in rounds on one server;
in each round a median is compared with that of none, and the median of these ratios counts. Then each at saturation.
Bound: with sentstream the median is at most 3 % above none.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
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
_WAYS = ("none", "sentstream", "pg_recvlogical", "trigger")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=5, help="of each setting in a round")
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    at_rate: dict[str, list[dict[str, float]]] = {way: [] for way in _WAYS}
    saturated: dict[str, list[float]] = {way: [] for way in _WAYS}
    with scene(fsync="on") as s:
        s.campaigns(20, int((given.rate * given.seconds * given.rounds + 200_000) * len(_WAYS)))
        s.session.execute("CREATE SEQUENCE bench_ids CACHE 100")
        s.set_up()
        for _ in range(given.rounds):
            for way in _WAYS:
                with _setting(s, way):
                    at_rate[way].append(s.pgbench(_SEND, given.seconds, clients=2, rate=given.rate))
        for _ in range(3):
            for way in _WAYS:
                with _setting(s, way):
                    saturated[way].append(s.pgbench(_SEND, given.seconds, clients=4)["tps"])
    none = [run["median"] for run in at_rate["none"]]
    ratio = {
        way: statistics.median(run["median"] / base for run, base in zip(runs, none, strict=True))
        for way, runs in at_rate.items()
    }
    figures = {
        "rate": given.rate,
        "statement_ms": {
            way: {which: round(statistics.median(run[which] for run in runs), 3) for which in ("median", "p99")}
            for way, runs in at_rate.items()
        },
        "median_ratio_to_none": {way: round(value, 3) for way, value in ratio.items()},
        "saturation_tps": {way: round(statistics.median(values)) for way, values in saturated.items()},
    }
    bounds = {"median at most 3 % more": ratio["sentstream"] <= 1.03}
    return report("sender", figures, bounds)


@contextmanager
def _setting(s: Scene, way: str) -> Iterator[None]:
    if way == "sentstream":
        with s.sentstream():
            until(lambda: s.value("SELECT bool_and(based) FROM sentstream.watermarks"))
            behind = "SELECT pg_current_wal_insert_lsn() - confirmed_flush_lsn < 1000000 FROM pg_replication_slots"
            until(lambda: s.value(behind))
            until(lambda: s.value("SELECT bool_and(active) FROM pg_replication_slots"))
            yield
        return
    if way == "pg_recvlogical":
        with _recvlogical(s):
            yield
        return
    if way == "trigger":
        s.session.execute(_TRIGGER.encode())
    try:
        yield
    finally:
        if way == "trigger":
            s.session.execute("DROP FUNCTION keep_count CASCADE")


@contextmanager
def _recvlogical(s: Scene) -> Iterator[None]:
    child = subprocess.Popen(s.recvlogical())
    try:
        until(lambda: s.value("SELECT active FROM pg_replication_slots WHERE slot_name = 'reader'"))
        yield
    finally:
        child.terminate()
        child.wait(30)
        s.drop_reader()


if __name__ == "__main__":
    sys.exit(main())
