"""The core's speed against a fixed loop of the same run, so that no change makes it slower unseen.

CPU seconds of fold, align, batch and apply over a made day of a mailer (see `benchmarks.capture`), as ratios to a pure
Python loop that never changes; both in turn, the median of several rounds. A ratio more than 15 % above the recorded
one fails: make it faster again, or record the new one with the reason in the commit.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

from benchmarks.capture import Stages, made, replay
from benchmarks.scene import report

#: ratios of the median, by Python; measured with `python -m benchmarks.core_speed`
RECORDED = {(3, 11): {"fold": 6.33, "align": 2.64, "batch": 1.30, "apply": 1.55}}
SLOWER = 1.15


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transactions", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    blocks = list(made(given.transactions))
    stages: list[Stages] = []
    loops: list[float] = []
    for _ in range(given.rounds):
        loops.append(fixed_loop(given.transactions))
        stages.append(replay(blocks))
    loop = statistics.median(loops)
    ratios = {
        name: round(statistics.median(getattr(one, name) for one in stages) / loop, 3)
        for name in ("fold", "align", "batch", "apply", "whole")
    }
    recorded = RECORDED.get((sys.version_info[0], sys.version_info[1]), {})
    bounds = {
        f"{name} at most {SLOWER:g} times {ratio:g}": ratios[name] <= ratio * SLOWER for name, ratio in recorded.items()
    }
    figures = {
        "transactions": given.transactions,
        "rounds": given.rounds,
        "loop_cpu_seconds": {"least": round(min(loops), 3), "median": round(loop, 3), "most": round(max(loops), 3)},
        "ratio_to_loop": ratios,
        "whole_least_most": [round(pick(one.whole for one in stages) / loop, 3) for pick in (min, max)],
    }
    return report("core_speed", figures, bounds)


def fixed_loop(steps: int) -> float:
    """CPU seconds of a loop of slices, lookups and appends. Never change it: all recorded ratios rest on it."""
    began = time.process_time()
    data = bytes(range(256)) * 2
    table = {data[at : at + 12]: at for at in range(256)}
    counts = [0] * 256
    out: list[tuple[int, int]] = []
    for step in range(steps):
        at = (step * 7) & 255
        found = table.get(data[at : at + 12])
        if found is not None:
            counts[found] += 1
            out.append((step, found))
        if len(out) >= 1000:
            out = []
    assert sum(counts) == steps
    return time.process_time() - began


if __name__ == "__main__":
    sys.exit(main())
