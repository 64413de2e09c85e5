"""What people see: a terminal of any width, with colour or without; plain lines where there is none."""

from __future__ import annotations

from typing import TextIO

from rich.console import Console


def console(stream: TextIO) -> Console:
    """A console on ``stream``. Colour only on a terminal, never where NO_COLOR is set (rich looks)."""
    return Console(file=stream, highlight=False, emoji=False, markup=False, soft_wrap=not stream.isatty())
