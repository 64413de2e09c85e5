"""What a terminal can do: its width, colour or none, and whether it writes more than ASCII."""

from __future__ import annotations

from typing import TextIO

from rich.console import Console


def console(stream: TextIO) -> Console:
    """A console on ``stream``. Colour only on a terminal, never where NO_COLOR is set (rich looks)."""
    return Console(file=stream, highlight=False, emoji=False, markup=False, soft_wrap=not stream.isatty())


def is_ascii(console: Console) -> bool:
    """Whether block characters can't be written there (``LANG=C``)."""
    return not console.encoding.lower().startswith("utf")
