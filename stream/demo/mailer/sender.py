"""A sender of the simulated mailer: performs acts, and keeps account of what it did."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from stream.demo.mailer import campaigns, rows
from stream.demo.mailer import statements as say
from stream.demo.mailer.act import Act
from stream.demo.mailer.workspace import Desk

#: how each act is done; returns how many rows of the queue it changed
Performers = Mapping[str, Callable[[Desk, Act], int]]

PERFORM: Final[Performers] = MappingProxyType(
    {
        **dict.fromkeys(rows.ROW_ACTS, rows.one_by_one),
        "start": campaigns.start,
        "pause": campaigns.stop("paused"),
        "resume": campaigns.resume,
        "retry": campaigns.retry,
        "finish": lambda desk, act: campaigns.set_status(desk, act.campaign, "finished", say.FINISH),
        "direct": campaigns.direct,
        "delete_campaign": campaigns.delete_campaign,
        "delete_subscribers": campaigns.delete_subscribers,
        "auto_pause": campaigns.auto_pause,
        "auto_resume": campaigns.auto_resume,
    }
)


class Sender:
    """``acts``: how often each act was done; ``changes``: how many rows of the queue were changed."""

    def __init__(self, desk: Desk, performers: Performers = PERFORM) -> None:
        self.desk = desk
        self.acts: dict[str, int] = {}
        self.changes = 0
        self._performers = performers

    def perform(self, act: Act) -> int:
        """Does it. Returns how many rows it changed; raises StrayChangeError, or what PostgreSQL says."""
        changes = self._performers[act.name](self.desk, act)
        self.count(act.name, changes)
        return changes

    def count(self, name: str, changes: int) -> None:
        """One act more, and the rows that it changed."""
        self.acts[name] = self.acts.get(name, 0) + 1
        self.changes += changes
