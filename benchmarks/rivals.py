"""Ways to keep ``campaigns.sent`` true, beside one another in one run: what the sender feels, how fresh, at what cost.

    none        pgbench alone
    row trigger, statement trigger      ``campaigns.sent`` in the mailer's own transaction
    aggregate   ``GROUP BY`` over the queue each second, from a session of its own
    cron        the same every five minutes: its cost is measured by one pass, its freshness follows from the interval
    embedded, kafka     sentstream
    debezium    Kafka Connect to Kafka, without a consumer that counts

Each round gives every way a fixed rate and then saturation, on one server, in turn; medians over the rounds, with
least and most. Afterwards each way has to be right after a TRUNCATE and after a kill -9 of its counting part. CPU is
that of the whole machine less pgbench's: run it on a quiet one. Raw figures go to ``--out``; `benchmarks.rivals_table`
draws them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks.debezium import Debezium
from benchmarks.freshness import poll
from benchmarks.scene import Scene, percentile, report, scene, until
from stream.demo.private_kafka import PrivateKafka

SEND: Final = (
    "UPDATE email_queue SET status = 'sent', sent_at = now(), updated_at = now()"
    " WHERE id = (SELECT nextval('bench_ids'));\n"
)
ROW_TRIGGER: Final = """
CREATE FUNCTION keep_count() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF NEW.status = 'sent' AND OLD.status IS DISTINCT FROM 'sent' THEN
    UPDATE campaigns SET sent = sent + 1 WHERE id = NEW.campaign_id; END IF;
  RETURN NULL; END $$;
CREATE TRIGGER keep_count AFTER UPDATE ON email_queue FOR EACH ROW EXECUTE FUNCTION keep_count()"""
STATEMENT_TRIGGER: Final = """
CREATE FUNCTION keep_count() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  UPDATE campaigns c SET sent = c.sent + d.n FROM (
    SELECT campaign_id, sum(n) AS n FROM (
      SELECT campaign_id, 1 AS n FROM new_rows WHERE status = 'sent'
      UNION ALL SELECT campaign_id, -1 FROM old_rows WHERE status = 'sent') x
    GROUP BY 1 HAVING sum(n) <> 0) d WHERE c.id = d.campaign_id;
  RETURN NULL; END $$;
CREATE TRIGGER keep_count AFTER UPDATE ON email_queue REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
  FOR EACH STATEMENT EXECUTE FUNCTION keep_count()"""
AGGREGATE: Final = """
UPDATE campaigns c SET sent = q.n FROM (
  SELECT campaign_id, count(*)::int AS n FROM email_queue WHERE status = 'sent' GROUP BY 1) q
WHERE c.id = q.campaign_id AND c.sent IS DISTINCT FROM q.n"""
WAYS: Final = ("none", "row trigger", "statement trigger", "aggregate", "embedded", "kafka", "debezium")
#: ways whose counter follows the queue
COUNTING: Final = ("row trigger", "statement trigger", "aggregate", "embedded", "kafka")
CAMPAIGNS: Final = 20


@dataclass(frozen=True, slots=True)
class Figures:
    """One way in one round. Milliseconds; CPU in seconds for a thousand mails; None: it has no such figure."""

    median_ms: float
    p99_ms: float
    fresh_p50_ms: float | None
    fresh_p99_ms: float | None
    cpu_per_thousand: float
    memory_mb: float
    wal_bytes_per_mail: float
    saturation_tps: float


class Part:
    """What a way runs beside PostgreSQL: its processes, and how to kill and start it again."""

    def __init__(self, start: Callable[[], subprocess.Popen[bytes]] | None = None) -> None:
        self._start = start
        self.process = start() if start else None

    def memory_mb(self) -> float:
        if self.process is None:
            return 0.0
        whole = psutil.Process(self.process.pid)
        return sum(one.memory_info().rss for one in (whole, *whole.children(recursive=True))) / 1e6

    def kill(self) -> None:
        """kill -9 of all of it, and a new start."""
        if self.process is None or self._start is None:
            return
        for one in psutil.Process(self.process.pid).children(recursive=True):
            one.kill()
        self.process.kill()
        self.process.wait()
        self.process = self._start()

    def end(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(40)


class Truth:
    """What was sent, cleared rows included: the queue's rows, and those that were cleared away."""

    def __init__(self, s: Scene) -> None:
        self._s = s
        s.session.execute("CREATE TABLE bench_cleared AS SELECT id, 0 AS n FROM campaigns")

    def sent(self) -> int:
        return _sent(self._s) + int(self._s.value("SELECT sum(n) FROM bench_cleared"))

    def level(self) -> None:
        """Put every counter to the truth, for ways that only add to it."""
        self._s.session.execute(
            "UPDATE campaigns c SET sent = x.n FROM (SELECT b.id, b.n + count(q.id)::int AS n FROM bench_cleared b"
            " LEFT JOIN email_queue q ON q.campaign_id = b.id AND q.status = 'sent' GROUP BY b.id, b.n) x"
            " WHERE c.id = x.id AND c.sent IS DISTINCT FROM x.n"
        )

    def clear(self) -> None:
        """The mailer's "clear queue", and new rows behind it."""
        execute = self._s.session.execute
        execute(
            "UPDATE bench_cleared b SET n = b.n + x.n FROM (SELECT campaign_id, count(*)::int AS n FROM email_queue"
            " WHERE status = 'sent' GROUP BY 1) x WHERE x.campaign_id = b.id"
        )
        execute("TRUNCATE email_queue")
        execute("ALTER SEQUENCE bench_ids RESTART")
        execute("ALTER TABLE email_queue DISABLE TRIGGER ALL")
        execute(
            "INSERT INTO email_queue (id, campaign_id, subscriber_id, status)"
            " SELECT i, 1 + i %% %s::int, 1, 'queued' FROM generate_series(1, 20000) i",
            (CAMPAIGNS,),
        )
        execute("ALTER TABLE email_queue ENABLE TRIGGER ALL")


@contextmanager
def running(s: Scene, truth: Truth, way: str, kafka: PrivateKafka | None, debezium: Debezium | None) -> Iterator[Part]:
    """The way at work: set up, started, and ended after the block."""
    with ExitStack() as ending:
        part = Part()
        if way not in ("embedded", "kafka"):
            truth.level()
        if way.endswith("trigger"):
            s.session.execute((ROW_TRIGGER if way == "row trigger" else STATEMENT_TRIGGER).encode())
            ending.callback(lambda: s.session.execute("DROP FUNCTION keep_count CASCADE"))
        elif way == "aggregate":
            part = Part(lambda: _python(_LOOP, s.url))
            ending.callback(part.end)
        elif way in ("embedded", "kafka"):
            settings = {} if kafka is None or way == "embedded" else {"kafka_bootstrap_servers": kafka.bootstrap}
            part = Part(lambda: s.start_sentstream(**settings))
            ending.callback(part.end)
            until(s.based)
            until(lambda: s.value("SELECT bool_and(active) FROM pg_replication_slots WHERE slot_name = 'sentstream'"))
            until(lambda: s.value(_CAUGHT_UP))
        elif way == "debezium":
            assert debezium is not None
            s.session.execute("SELECT pg_create_logical_replication_slot('reader', 'pgoutput')")
            ending.callback(s.drop_reader)
            part.process = ending.enter_context(debezium.running(s))
            until(lambda: s.value("SELECT active FROM pg_replication_slots WHERE slot_name = 'reader'"), 120)
        if way in COUNTING:  # it is at work when a mail is counted
            s.pgbench(SEND, 1, clients=1, rate=20)
            until(lambda: _shown(s) == truth.sent(), 60)
        yield part


_CAUGHT_UP: Final = (
    "SELECT pg_current_wal_insert_lsn() - confirmed_flush_lsn < 1000000 FROM pg_replication_slots"
    " WHERE slot_name = 'sentstream'"
)
_LOOP: Final = f"""
import sys, time, psycopg
with psycopg.connect(sys.argv[1], autocommit=True) as c:
    while True:
        c.execute({AGGREGATE!r}); time.sleep(1)
"""


def _python(program: str, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", program, *words])


def measured(s: Scene, way: str, part: Part, rate: int, seconds: float, debezium: Debezium | None) -> Figures:
    """A fixed rate, with freshness, CPU, memory and WAL; then saturation."""
    s.session.execute("CHECKPOINT")
    seen: list[tuple[float, int]] = []
    stop = threading.Event()
    poller = threading.Thread(target=poll, args=(s.url, seen, stop))
    first = _sent(s)
    began = s.value("SELECT clock_timestamp()")
    wal = s.value("SELECT pg_current_wal_insert_lsn()::text")
    if way in COUNTING:
        poller.start()
    busy = _busy()
    latency = s.pgbench(SEND, seconds, clients=2, rate=rate)
    cpu = _busy() - busy - latency["cpu"]
    memory = part.memory_mb()
    mails = _sent(s) - first
    written = float(s.value("SELECT pg_current_wal_insert_lsn() - %s::pg_lsn", wal))
    fresh: list[float] = []
    if way in COUNTING:
        until(lambda: bool(seen) and seen[-1][1] >= first + mails, 60)
        stop.set()
        poller.join()
        fresh = _waits(seen, s.commits_since(began), first)
    elif way == "debezium" and debezium is not None:
        fresh = debezium.waits(s.commits_since(began))
    saturated = s.pgbench(SEND, seconds / 2, clients=4)["tps"]
    return Figures(
        round(latency["median"], 3),
        round(latency["p99"], 3),
        round(percentile(fresh, 50), 1) if fresh else None,
        round(percentile(fresh, 99), 1) if fresh else None,
        round(1000 * cpu / mails, 3),
        round(memory, 1),
        round(written / mails, 1),
        round(saturated),
    )


def _busy() -> float:
    """CPU seconds that this machine has worked."""
    times = psutil.cpu_times()
    return float(times.user + times.system + times.nice + times.softirq + times.irq)


def _waits(seen: list[tuple[float, int]], commits: list[float], first: int) -> list[float]:
    """Milliseconds from each commit until a sum that contains it was seen."""
    numbers = [number for _, number in seen]
    return [1000 * (seen[bisect_left(numbers, first + k)][0] - at) for k, at in enumerate(commits, 1)]


def _sent(s: Scene) -> int:
    return int(s.value("SELECT count(*) FROM email_queue WHERE status = 'sent'"))


def faults(way: str, kafka: PrivateKafka | None, debezium: Debezium | None) -> dict[str, bool | None]:
    """Whether the way is right after a kill -9 and after a TRUNCATE, on a server of its own; None: it doesn't count."""
    if way not in COUNTING:
        return {"kill": None, "truncate": None}
    with scene() as s:
        truth = prepared(s, 20_000)
        with running(s, truth, way, kafka, debezium) as part:
            return {"kill": right_after(s, truth, part.kill), "truncate": right_after(s, truth, truth.clear)}


def prepared(s: Scene, rows: int) -> Truth:
    """The mailer's tables filled, and sentstream set up."""
    s.campaigns(CAMPAIGNS, rows)
    s.session.execute("CREATE SEQUENCE bench_ids CACHE 100")
    s.set_up()
    return Truth(s)


def right_after(s: Scene, truth: Truth, fault: Callable[[], None]) -> bool:
    """Whether the counters are what they should be within 20 s after ``fault`` and some more mails."""
    s.pgbench(SEND, 1, clients=2, rate=500)
    fault()
    s.pgbench(SEND, 1, clients=2, rate=500)
    try:
        until(lambda: _shown(s) == truth.sent(), 20, every=0.1)
    except RuntimeError:
        return False
    return True


def _shown(s: Scene) -> int:
    return int(s.value("SELECT coalesce(sum(sent), 0)::bigint FROM campaigns"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=10, help="at the fixed rate; half of it at saturation")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--out", type=Path, default=Path("out/rivals.json"))
    given = parser.parse_args()
    ways = given.ways.split(",")
    with ExitStack() as ending:
        kafka = ending.enter_context(PrivateKafka()) if {"kafka", "debezium"} & {*ways} else None
        debezium = Debezium(kafka.bootstrap) if kafka is not None and "debezium" in ways else None
        s = ending.enter_context(scene(track_commit_timestamp="on", fsync="on"))
        rows = int((given.rate * given.seconds + 40_000 * given.seconds / 10) * given.rounds * len(ways) * 1.2)
        truth = prepared(s, rows)
        results: dict[str, list[Figures]] = {way: [] for way in ways}
        for number in range(given.rounds):
            for way in ways:
                with running(s, truth, way, kafka, debezium) as part:
                    results[way].append(measured(s, way, part, given.rate, given.seconds, debezium))
                print(f"round {number + 1}: {way} {results[way][-1]}", file=sys.stderr)
        right = {way: faults(way, kafka, debezium) for way in ways}
    figures = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "rate": given.rate,
        "seconds": given.seconds,
        "rounds": given.rounds,
        "right_after": right,
        "medians": {way: _median(runs) for way, runs in results.items()},
        "runs": {way: [asdict(run) for run in runs] for way, runs in results.items()},
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(figures, indent=1) + "\n")
    ours = [way for way in ways if way in ("embedded", "kafka")]
    bounds = {f"{way} right after {fault}": right[way][fault] is True for way in ours for fault in right[way]}
    return report("rivals", {key: value for key, value in figures.items() if key != "runs"}, bounds)


def _median(runs: list[Figures]) -> dict[str, float | None]:
    rows = [asdict(run) for run in runs]
    medians: dict[str, float | None] = {}
    for name in rows[0]:
        values = [row[name] for row in rows if row[name] is not None]
        medians[name] = round(statistics.median(values), 3) if values else None
    return medians


def _commit() -> str:
    done: Any = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return str(done.stdout).strip()


if __name__ == "__main__":
    sys.exit(main())
