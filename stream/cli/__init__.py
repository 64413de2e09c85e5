"""The command line. ``main`` runs one command and turns what goes wrong into one line and an exit code.

The commands are listed in ``commands.py`` and imported only when called; ``call.py`` is what they have in common.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``sentstream`` with ``arguments`` (default: those of the process); the exit code."""
    from stream.cli.commands import run

    return run(arguments)
