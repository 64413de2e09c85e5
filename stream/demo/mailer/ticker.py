"""The mailer's look at its send window: once a minute, and what follows from it. Pure.

It pauses what is running when it finds the window closed, and when it finds it open again lets every paused campaign go
on. What it found at its last look is all it remembers.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from stream.core.window import SendWindow, is_open


@dataclass(frozen=True, slots=True)
class Ticker:
    """``closed``: what the last look found."""

    closed: bool = False

    def look(self, window: SendWindow, at: datetime) -> tuple[Ticker, str]:
        """What to do at that instant: ``auto_pause``, ``auto_resume`` or nothing (an empty text)."""
        closed = not is_open(window, at)
        if closed:
            return Ticker(closed=True), "auto_pause"
        return Ticker(closed=False), "auto_resume" if self.closed else ""
