"""Draining a backlog of single-row transactions, WAL to campaigns.sent, beside `pg_recvlogical -f /dev/null`, by TCP.

Every reader gets a fresh copy of one slot, in turn: pg_recvlogical, sentstream by the walsender, sentstream catching up
by SQL. The time of sentstream is that of its counting process, from the first connection to the last flush; memory is
its peak over what it has when idle. Bound: by the walsender no slower than pg_recvlogical, and less than 64 MB.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.scene import Scene, report, scene, until

_GENERATE = """
CREATE PROCEDURE backlog(rows int) LANGUAGE plpgsql AS $$ DECLARE b int := 1; BEGIN
  WHILE b <= rows LOOP
    FOR i IN b .. least(b + 999, rows) LOOP
      UPDATE email_queue SET status = 'sending', updated_at = now() WHERE id = i; COMMIT; END LOOP;
    FOR i IN b .. least(b + 999, rows) LOOP
      UPDATE email_queue SET status = 'sent', sent_at = now(), updated_at = now() WHERE id = i; COMMIT; END LOOP;
    b := b + 1000;
  END LOOP; END $$"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transactions", type=int, default=400_000)
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    rows = given.transactions // 2
    with scene() as s:
        s.campaigns(50, rows)
        s.set_up()
        with s.sentstream():
            until(s.based)
        s.session.execute(_GENERATE.encode())
        s.session.execute("SET synchronous_commit = off")
        s.session.execute("CALL backlog(%s::int)", (rows,))
        s.session.execute("CHECKPOINT")
        end = s.value("SELECT pg_current_wal_insert_lsn()::text")
        ours = s.session.execute("SELECT epoch, lsn::text, seq FROM sentstream.watermarks").fetchone()
        assert ours is not None
        s.session.execute("CREATE TABLE saved AS SELECT * FROM sentstream.progress")
        times: dict[str, list[float]] = {"pg_recvlogical": [], "walsender": [], "sql": []}
        memory: dict[str, list[float]] = {"walsender": [], "sql": []}
        for _ in range(given.runs):
            times["pg_recvlogical"].append(_recvlogical(s, end))
            for way, threshold in (("walsender", "0"), ("sql", "1MB")):
                seconds, grown = _sentstream(s, end, threshold, rows)
                times[way].append(seconds)
                memory[way].append(grown)
                _again(s, ours[1], ours[2])
    medians = {way: round(statistics.median(values), 2) for way, values in times.items()}
    bounds = {
        "walsender no slower than pg_recvlogical": medians["walsender"] <= medians["pg_recvlogical"],
        "memory under 64 MB": max(max(values) for values in memory.values()) < 64,
    }
    figures = {
        "transactions": given.transactions,
        "seconds": {way: [round(v, 2) for v in values] for way, values in times.items()},
        "median_seconds": medians,
        "ratio_to_pg_recvlogical": {w: round(v / medians["pg_recvlogical"], 2) for w, v in medians.items()},
        "memory_mb": {way: [round(v, 1) for v in values] for way, values in memory.items()},
    }
    return report("drain", figures, bounds)


def _recvlogical(s: Scene, end: str) -> float:
    command = s.recvlogical(f"--endpos={end}")
    began = time.monotonic()
    subprocess.run(command, check=True)
    seconds = time.monotonic() - began
    s.drop_reader()
    return seconds


def _sentstream(s: Scene, end: str, threshold: str, rows: int) -> tuple[float, float]:
    """Seconds from the reader's first connection to the flush of the backlog's end, and MB of memory grown."""
    s.session.execute("SELECT pg_copy_logical_replication_slot('sentstream', 'reader')")
    settings = {"slot_name": "reader", "catchup_threshold": threshold, "recount_interval": "1h"}
    with s.sentstream(**settings) as child:
        connected = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'sentstream control'"
        until(lambda: s.value(connected), every=0.005)
        began, idle = time.monotonic(), _memory(child.pid, "VmRSS")
        until(lambda: s.value("SELECT lsn >= %s::pg_lsn FROM sentstream.watermarks", end), every=0.02)
        seconds, grown = time.monotonic() - began, _memory(child.pid, "VmHWM") - idle
        sent = s.value("SELECT sum(sent) FROM campaigns")
        if sent != rows:
            raise RuntimeError(f"{sent} counted, {rows} sent")
    s.drop_reader()
    return seconds, grown


def _again(s: Scene, lsn: str, seq: int) -> None:
    """Put the store back to where the slot is, for the next run."""
    s.session.execute("UPDATE sentstream.watermarks SET lsn = %s::pg_lsn, seq = %s, based = true", (lsn, seq))
    s.session.execute("DELETE FROM sentstream.progress")
    s.session.execute("INSERT INTO sentstream.progress SELECT * FROM saved")
    s.session.execute("TRUNCATE sentstream.history")
    s.session.execute("UPDATE campaigns SET sent = 0")


def _memory(pid: int, what: str) -> float:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in status if line.startswith(what))


if __name__ == "__main__":
    sys.exit(main())
