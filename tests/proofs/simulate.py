"""Random worlds: recounts in every interleaving of visibility, and the whole protocol with its faults. Seeded.

Half of the worlds of ``visibility`` are played as they are: no recount may ever find a drift. In the other half the
stream is damaged: every fault must be found, and nothing else. For every hundred of them one world of ``protocol`` is
played: readers, zombies, flushes, raises, epochs, one partition and several, embedded and Kafka. A seed that fails is
named; `--only SEED` plays it alone.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

from tests.proofs import protocol, visibility
from tests.proofs.found import Found

_SLICE = 500


def play(kind: str, first: int, count: int) -> tuple[Counter[str], list[str]]:
    """Play ``count`` worlds; what happened in them, and what was found."""
    figures: Counter[str] = Counter()
    found: list[str] = []
    for seed in range(first, first + count):
        try:
            if kind == "protocol":
                result: object = protocol.World(seed).play()
            else:
                result = visibility.World(seed, None, kind == "damaged").play()
        except Found as error:
            found.append(f"{kind} seed {seed}: {error}")
            continue
        figures["worlds"] += 1
        for name in result.__slots__:  # type: ignore[attr-defined]
            figures[name] += getattr(result, name)
    return figures, found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--only", type=int, help="one seed of each kind, in this process")
    given = parser.parse_args()
    if given.only is not None:
        results = [play(kind, given.only, 1) for kind in ("plain", "damaged", "protocol")]
        found = [text for _, texts in results for text in texts]
        print("\n".join(found) or "nothing found")
        return 1 if found else 0
    began = time.monotonic()
    half = given.seeds // 2
    jobs = [("plain", half), ("damaged", given.seeds - half), ("protocol", max(1, given.seeds // 100))]
    totals: dict[str, Counter[str]] = {kind: Counter() for kind, _ in jobs}
    found = []
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        waiting = []
        for kind, count in jobs:
            size = 20 if kind == "protocol" else _SLICE
            waiting += [
                (kind, pool.submit(play, kind, given.first + first, min(size, count - first)))
                for first in range(0, count, size)
            ]
        for kind, future in waiting:
            figures, texts = future.result()
            totals[kind] += figures
            found += texts
    for kind, figures in totals.items():
        print(f"{kind}: " + ", ".join(f"{n} {name}" for name, n in figures.items()), file=sys.stderr)
    print("\n".join(found[:20]), file=sys.stderr)
    worlds = sum(figures["worlds"] for figures in totals.values())
    injected, drifts = totals["damaged"]["injected"], totals["plain"]["drifts"]
    held = not found and not drifts
    print(
        f"simulate: {worlds} worlds in {time.monotonic() - began:.0f} s, {totals['plain']['recounts']} recounts "
        f"without damage: {drifts} drifts; {injected} faults injected: "
        f"{'all held' if held else f'{len(found)} NOT HELD'}"
    )
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
