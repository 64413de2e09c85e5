"""A steady load for a while: memory stays flat, no flush is late, and the counts are right at the end."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from benchmarks.scene import report, scene, until

_CYCLE = (
    "\\set id random(1, 200000)\n"
    "UPDATE email_queue SET status = (CASE status WHEN 'queued' THEN 'sending' WHEN 'sending' THEN 'sent'"
    " ELSE 'queued' END) WHERE id = :id;\n"
)
_WRONG = """
SELECT count(*) FROM campaigns c JOIN sentstream.progress p ON p.campaign_id = c.id
WHERE c.sent <> p.removed + (SELECT count(*) FROM email_queue q WHERE q.campaign_id = c.id AND q.status = 'sent')"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rate", type=int, default=1000)
    given = parser.parse_args()
    memory: list[float] = []
    ages: list[float] = []
    with scene() as s:
        s.campaigns(50, 200_000)
        s.set_up()
        with s.sentstream(recount_interval="20s") as child:
            until(s.based)
            end = time.monotonic() + 60 * given.minutes
            while time.monotonic() < end:
                s.pgbench(_CYCLE, min(10.0, max(1.0, end - time.monotonic())), clients=2, rate=given.rate)
                status = Path(f"/proc/{child.pid}/status").read_text().splitlines()
                memory.append(next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS")))
                ages.append(
                    float(s.value("SELECT extract(epoch FROM now() - max(flushed_at)) FROM sentstream.watermarks"))
                )
            until(lambda: s.value(_WRONG) == 0, 30)
            drifts = s.value("SELECT count(*) FROM sentstream.verdicts WHERE verdict = 'drift'")
            runs = s.value("SELECT count(*) FROM sentstream.recounts WHERE status = 'sealed'")
    half = memory[len(memory) // 2 :]
    figures = {
        "minutes": given.minutes,
        "rate": given.rate,
        "memory_mb": {"first": round(memory[0], 1), "most": round(max(memory), 1), "last": round(memory[-1], 1)},
        "oldest_flush_s": round(max(ages), 2),
        "recounts": runs,
        "drifts": drifts,
    }
    bounds = {
        "no drift": drifts == 0,
        "no flush older than 3 s": max(ages) < 3,
        "memory grows by less than 64 MB": max(memory) - memory[0] < 64 and max(half) - half[0] < 16,
    }
    return report("soak", figures, bounds)


if __name__ == "__main__":
    sys.exit(main())
