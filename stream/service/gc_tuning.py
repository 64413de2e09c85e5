"""GC tuning for long-running readers.

Decoding makes many small containers that live for a moment and are freed without the collector's help; walking the
heap for each seven hundred of them took a third of the time of draining a backlog (`benchmarks.drain`).
Source: Python documentation, ``gc.freeze`` and ``gc.set_threshold``.
"""

from __future__ import annotations

import gc


def apply() -> None:
    """Call once, before the work begins: objects that exist now stay out of collections, and those come more rarely."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)
