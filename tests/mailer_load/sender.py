"""A sender that chooses what it does, among everything that a mailer may do."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from stream.demo.mailer import campaigns as demo_campaigns
from stream.demo.mailer import sender
from stream.demo.mailer.act import Act
from stream.demo.mailer.workspace import Desk
from tests.mailer_load import campaigns, rows
from tests.mailer_load.action_mix import Mix, choose, choose_mails, view_of

PERFORM: Final[sender.Performers] = MappingProxyType(
    {
        **sender.PERFORM,
        "hurry": rows.hurry,
        "savepoint": rows.savepoint,
        "abandon": rows.abandon,
        "move": rows.move,
        "create": campaigns.create,
        "schedule": lambda desk, act: demo_campaigns.set_status(desk, act.campaign, "scheduled"),
        "cancel": demo_campaigns.stop("cancelled"),
        "edit": campaigns.edit,
        "overwrite": campaigns.overwrite,
        "clear": campaigns.clear,
        "delete_cancelled": campaigns.delete_cancelled,
        "crash": campaigns.crash,
    }
)


class Sender(sender.Sender):
    """Performs every act of `PERFORM`."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk, PERFORM)

    def choose(self, mix: Mix) -> Act | None:
        """The next act; None where none of the mix is possible."""
        return choose(mix, view_of(self.desk), self.desk.rng)

    def perform_mails(self, mix: Mix, n: int) -> int:
        """About ``n`` acts on single rows in one transaction. Returns how many rows they changed."""
        acts = choose_mails(mix, view_of(self.desk), self.desk.rng, n)
        changes = rows.together(self.desk, acts)
        for act in acts:
            self.count(act.name, 0)
        self.changes += changes
        return changes
