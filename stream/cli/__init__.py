"""The command line. ``main`` runs one command and turns what goes wrong into one line and an exit code.

The commands are listed in ``commands.py`` and imported only when called; ``call.py`` is what they have in common.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Sequence

#: commands that run until they are told to end
_SERVICES = frozenset(("run", "read", "work", "reconcile", "serve"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``sentstream`` with ``arguments`` (default: those of the process); the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    if _SERVICES.isdisjoint(words) or threading.current_thread() is not threading.main_thread():
        return _run(arguments)
    # until the command has handlers of its own: it has begun nothing yet, so that it may simply end
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        return _run(arguments)
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(arguments: Sequence[str] | None) -> int:
    from stream.cli.commands import run

    return run(arguments)
