"""A sender of the simulated mailer: chooses acts, performs them, and keeps account of what it did."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from stream.demo.mailer import campaigns, rows
from stream.demo.mailer import statements as say
from stream.demo.mailer.action_mix import Act, Mix, choose, choose_mails
from stream.demo.mailer.workspace import Desk

PERFORM: Final[Mapping[str, Callable[[Desk, Act], int]]] = MappingProxyType(
    {
        **dict.fromkeys(rows.ROW_ACTS, rows.one_by_one),
        "hurry": rows.hurry,
        "savepoint": rows.savepoint,
        "abandon": rows.abandon,
        "move": rows.move,
        "create": campaigns.create,
        "schedule": lambda desk, act: campaigns.set_status(desk, act.campaign, "scheduled"),
        "start": campaigns.start,
        "pause": campaigns.stop("paused"),
        "cancel": campaigns.stop("cancelled"),
        "resume": campaigns.resume,
        "retry": campaigns.retry,
        "finish": lambda desk, act: campaigns.set_status(desk, act.campaign, "finished", say.FINISH),
        "edit": campaigns.edit,
        "direct": campaigns.direct,
        "overwrite": campaigns.overwrite,
        "delete_campaign": campaigns.delete_campaign,
        "delete_subscribers": campaigns.delete_subscribers,
        "auto_pause": campaigns.auto_pause,
        "auto_resume": campaigns.auto_resume,
        "clear": campaigns.clear,
        "delete_cancelled": campaigns.delete_cancelled,
        "crash": campaigns.crash,
    }
)


class Sender:
    """``acts``: how often each act was done; ``changes``: how many rows of the queue were changed."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.acts: dict[str, int] = {}
        self.changes = 0

    def choose(self, mix: Mix) -> Act | None:
        """The next act; None where none of the mix is possible."""
        return choose(mix, self.desk.view(), self.desk.rng)

    def perform(self, act: Act) -> int:
        """Does it. Returns how many rows it changed; raises StrayChangeError, or what PostgreSQL says."""
        changes = PERFORM[act.name](self.desk, act)
        self._count(act.name, 1, changes)
        return changes

    def perform_mails(self, mix: Mix, n: int) -> int:
        """About ``n`` acts on single rows in one transaction. Returns how many rows they changed."""
        acts = choose_mails(mix, self.desk.view(), self.desk.rng, n)
        changes = rows.together(self.desk, acts)
        for act in acts:
            self._count(act.name, 1, 0)
        self.changes += changes
        return changes

    def _count(self, name: str, times: int, changes: int) -> None:
        self.acts[name] = self.acts.get(name, 0) + times
        self.changes += changes
