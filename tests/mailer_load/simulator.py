"""The simulated mailer for tests: one connection, step by step, the same by the same seed.

simulator = Simulator(url, seed=7)
simulator.run(1000)
assert not simulator.differences()
simulator.truth().sent("keep")      # what campaigns.sent should be
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from random import Random
from typing import Any

import psycopg
from psycopg import Connection

from connectors.mailer.window import read_window
from stream.core.status import STATUS_BY_NAME
from stream.demo.mailer import campaigns
from stream.demo.mailer.act import Act
from stream.demo.mailer.ledger import Counts, Truth
from stream.demo.mailer.session import Session
from stream.demo.mailer.ticker import Ticker
from stream.demo.mailer.workspace import Desk, read_book
from tests.mailer_load.action_mix import ACTS, MIXES, Mix, view_of
from tests.mailer_load.sender import Sender


class Simulator:
    """A mailer on a database with its tables (``schema.sql``); what stands in them already it takes over.

    ``where``: a URL (then a lost connection is found again) or a connection in autocommit mode, its own from here on.
    ``campaigns``: how many it keeps at most; ``size``: rows of one, about; ``tracking``: also notes each mail in
    ``azure_message_tracking``. With one simulator on a fresh database the same seed does the same.
    """

    def __init__(
        self,
        where: str | Connection[Any],
        seed: int = 0,
        *,
        schema: str = "public",
        mix: Mix = MIXES["all"],
        campaigns: int = 6,
        size: int = 200,
        tracking: bool = False,
    ) -> None:
        url = where if isinstance(where, str) else ""
        conn = psycopg.connect(where, autocommit=True) if isinstance(where, str) else where
        self.mix = mix
        self._schema = schema
        self._ticker = Ticker()
        self._session = Session(conn, schema=schema, url=url)
        self._book, subscribers, mark = read_book(self._session.cursor)
        tag = f"s{seed}.{mark}"
        self.desk = Desk(self._session, self._book, Random(tag), tag=tag, room=campaigns, size=size, tracking=tracking)
        self.desk.adopt(self._book.pages.values(), subscribers)
        self._sender = Sender(self.desk)

    def __enter__(self) -> Simulator:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends its connection."""
        self._session.close()

    @property
    def changes(self) -> int:
        """Rows of the queue changed so far."""
        return self._sender.changes

    @property
    def losses(self) -> int:
        """How often it lost its connection and came back."""
        return self._session.losses

    def step(self) -> str:
        """One act, chosen by the weights of its mix. Returns its name; empty where none is possible."""
        act = self._sender.choose(self.mix)
        if act is None:
            return ""
        self._sender.perform(act)
        return act.name

    def run(self, steps: int) -> None:
        """That many acts."""
        for _ in range(steps):
            self.step()

    def act(self, name: str, campaign: int | None = None, n: int | None = None) -> bool:
        """One act by its name (see ACTS), on the given campaign or one that fits; ``n``: how many or which variant.

        False: there is nothing now that it could be done to. KeyError: no such act.
        """
        view = view_of(self.desk)
        if campaign is not None:
            mails = [mail for mail in view.on_their_way if mail[0] == campaign]
            done = [mail for mail in view.done if mail[0] == campaign]
            view = replace(view, pages=[self._book.pages[campaign]], on_their_way=mails, done=done)
        found = ACTS[name](view, self.desk.rng)
        if found is None:
            return False
        if n is not None:
            found = Act(found.name, found.campaign, found.mails, n)
        self._sender.perform(found)
        return True

    def tick(self, at: str | datetime) -> str:
        """The mailer looks at its send window, as it does once a minute. Returns the act that followed, or nothing.

        ``at``: an instant with a time zone; as text in ISO form. The window is read from the settings as they stand.
        """
        now = datetime.fromisoformat(at) if isinstance(at, str) else at
        self._ticker, name = self._ticker.look(read_window(self._session.cursor.connection, self._schema), now)
        if name:
            self._sender.perform(Act(name))
        return name

    def create(self, size: int, name: str = "", *, start: bool = True) -> int:
        """A campaign with ``size`` rows, queued unless ``start`` is false. Returns its id."""
        page = campaigns.add(self.desk, name or f"Campaign {len(self._book.pages) + 1} of {self.desk.tag}", size)
        if start:
            self._sender.perform(Act("start", page.id))
        return page.id

    def truth(self) -> Truth:
        """What is true now, by the simulator's own book."""
        return self._book.truth(self._sender.changes, self._sender.acts)

    def forget_removed(self) -> None:
        """From here on somebody watches: rows removed before are known to nobody, and left out of the truth."""
        self._book.forget_removed()

    def differences(self) -> Mapping[int, tuple[Counts, Counts]]:
        """Campaigns of which the table says otherwise: (truth, table). Empty: the truth is true."""
        cursor = self._session.cursor
        table: dict[int, list[int]] = {}
        for campaign, status, n in cursor.execute(
            "SELECT campaign_id, status, count(*) FROM email_queue GROUP BY 1, 2"
        ).fetchall():
            table.setdefault(campaign, [0] * 5)[STATUS_BY_NAME[status]] = n
        truth = self.truth().live()
        empty: Counts = (0, 0, 0, 0, 0)
        pairs = {c: (truth.get(c, empty), _five(table.get(c, [0] * 5))) for c in truth.keys() | table.keys()}
        return {campaign: pair for campaign, pair in sorted(pairs.items()) if pair[0] != pair[1]}


def _five(counts: list[int]) -> Counts:
    queued, sending, sent, failed, cancelled = counts
    return (queued, sending, sent, failed, cancelled)
