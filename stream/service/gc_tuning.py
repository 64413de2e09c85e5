"""The garbage collector, set for a process that reads a log.

Decoding makes many small containers that live for a moment and are freed without the collector's help; walking the
heap for each seven hundred of them took a third of the time in which a backlog is drained (`benchmarks.drain`).
Source: Python documentation, ``gc.freeze`` and ``gc.set_threshold``.
"""

from __future__ import annotations

import gc


def apply() -> None:
    """Call it once, before the work begins: what is there now stays out of collections, and those come more rarely."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)
