"""A mailer to watch: newsletters that begin, go out at a changing pace, are paused, retried and finished.

Once a ``tick`` everything that is due by the clock happens: mails are picked, end a moment later as sent, failed or
back in the queue, are tracked, delivered and read; people do things; the send window closes for a minute now and then.
The clock is passed in, so a test can let an hour pass in a second.
"""

from __future__ import annotations

import heapq
import json
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from random import Random
from typing import Final

import psycopg

from connectors.mailer.tables import SETTING_SEND_TIME_END, SETTING_SEND_TIME_START
from connectors.mailer.window import read_window
from stream.core.status import CANCELLED, FAILED, QUEUED, SENDING
from stream.core.window import SendWindow, always_open
from stream.demo.mailer import campaigns, newsletters
from stream.demo.mailer import statements as say
from stream.demo.mailer.act import Act, Mail
from stream.demo.mailer.history import lay_history
from stream.demo.mailer.ledger import Page, Truth
from stream.demo.mailer.newsletters import Newsletter
from stream.demo.mailer.sender import Sender
from stream.demo.mailer.session import Session
from stream.demo.mailer.ticker import Ticker
from stream.demo.mailer.workspace import Desk, read_book

#: seconds between two ticks
TICK: Final = 0.1
#: campaigns that are kept; the oldest finished ones go
_KEPT: Final = 14
#: how mails end: in a hundred thousand
_FAILED, _LIMITED = 1300, 500
#: seconds between two looks at the window (the mailer's ticker is once a minute: this is its phase in the minute)
_MINUTE, _PHASE = 60, 20
#: seconds between small acts of people, and until the first closing of the window and between two of them
_PEOPLE: Final = 37.0
_FIRST_CLOSING, _CLOSINGS = 150.0, 900.0
#: seconds that the window stays closed
_CLOSED_FOR: Final = 40.0


@dataclass(slots=True)
class _Running:
    """A campaign on the stage: its newsletter, since when it goes out, and what it still owes of its pace."""

    page: Page
    newsletter: Newsletter
    since: float
    phase: float
    owed: float = 0.0


@dataclass(slots=True)
class _Plan:
    """What is to come, by the demo's clock."""

    waiting: list[Newsletter] = field(default_factory=lambda: list(newsletters.OPENING))
    number: int = 0
    people: float = _PEOPLE
    reactions: float = 1.0
    close: float = _FIRST_CLOSING
    reopen: float = 0.0
    pause: float = newsletters.PAUSE_AT
    resume: float = newsletters.RESUME_AT


class Demo:
    """``speed``: a factor on every pace; ``scale``: on every size.

    ``run`` goes by the clock; a test calls ``tick`` itself."""

    #: mails a second at speed 1, about
    PACE: Final = 50.0

    def __init__(
        self, url: str, seed: int = 0, *, schema: str = "public", speed: float = 1.0, scale: float = 1.0
    ) -> None:
        session = Session(psycopg.connect(url, autocommit=True), schema=schema, url=url)
        book, subscribers, mark = read_book(session.cursor)
        if not book.pages:
            lay_history(session.cursor.connection, schema)
            book, subscribers, mark = read_book(session.cursor)
        self.rng = Random(f"d{seed}.{mark}")
        self.desk = Desk(session, book, self.rng, tag=f"d{seed}.{mark}", room=_KEPT, tracking=True)
        self.desk.adopt(book.pages.values(), subscribers)
        self._sender = Sender(self.desk)
        self._schema = schema
        self._speed = speed
        self._scale = scale
        self._plan = _Plan()
        self._stage: dict[int, _Running] = {}
        self._ends: list[tuple[float, Mail]] = []
        self._ticker = Ticker()
        self._now = 0.0
        self._looked = -1
        ((self._tracked,),) = session.rows(say.LAST_TRACKED) or [(0,)]
        for page in book.pages.values():
            if page.counts[QUEUED]:
                self._enter_stage(page, Newsletter(page.name, page.size, 10.0, 0), 0.0)

    def run(self, stop: threading.Event) -> None:
        """Until ``stop`` is set."""
        began = time.monotonic()
        while not stop.wait(TICK):
            self.tick(time.monotonic() - began, datetime.now(timezone.utc))

    def close(self) -> None:
        """Ends its connection."""
        self.desk.session.close()

    def truth(self) -> Truth:
        """What is true now."""
        return self.desk.book.truth(self._sender.changes, self._sender.acts)

    def tick(self, now: float, wall: datetime) -> None:
        """Everything that is due. ``now``: seconds since the start, never less than before; ``wall``: the instant."""
        elapsed, self._now = min(now - self._now, 1.0), now
        self._begin_newsletters(now)
        self._end_mails(now)
        self._send(now, elapsed)
        self._finish(now)
        self._window(now, wall)
        self._people(now, elapsed)
        if now >= self._plan.reactions:
            self._plan.reactions = now + 1.0
            self._react()

    def _begin_newsletters(self, now: float) -> None:
        if self._ticker.closed:
            return
        due = [letter for letter in self._plan.waiting if letter.begins <= now]
        for letter in due:
            page = campaigns.add(self.desk, letter.name, max(1, int(letter.readers * self._scale)))
            self._do(Act("start", page.id))
            self._enter_stage(page, letter, now)
            self._plan.waiting.remove(letter)
        if not self._plan.waiting:
            self._plan.waiting.append(newsletters.later(self._plan.number, self.rng, now))
            self._plan.number += 1

    def _enter_stage(self, page: Page, letter: Newsletter, now: float) -> None:
        self._stage[page.id] = _Running(page, letter, now, self.rng.uniform(0, 6.3))

    def _send(self, now: float, elapsed: float) -> None:
        """Picks what each running campaign owes of its pace; each mail ends a moment later."""
        for running in self._stage.values():
            if running.page.status != "running":
                continue
            pace = newsletters.pace(running.newsletter.rate, now - running.since, running.phase) * self._speed
            running.owed += pace * elapsed
            mails = [(running.page.id, row) for row in running.page.next_queued(int(running.owed))]
            running.owed -= int(running.owed)
            if mails:
                self._do(Act("pick", mails=tuple(mails)))
                for mail in mails:
                    heapq.heappush(self._ends, (now + self.rng.uniform(0.2, 1.6), mail))

    def _end_mails(self, now: float) -> None:
        """Mails on their way end, also where their row was changed meanwhile."""
        while self._ends and self._ends[0][0] <= now:
            _, mail = heapq.heappop(self._ends)
            dice = self.rng.randrange(100_000)
            name = "failed" if dice < _FAILED else "limited" if dice < _FAILED + _LIMITED else "sent"
            self._do(Act(name, mails=(mail,)))

    def _finish(self, now: float) -> None:
        for running in list(self._stage.values()):
            page = running.page
            left = page.counts[QUEUED] + page.counts[SENDING] + page.counts[CANCELLED]
            if page.status == "running" and not left and now > running.since + 2:
                self._do(Act("finish", page.id))
                del self._stage[page.id]
                self._make_room()

    def _make_room(self) -> None:
        """The oldest finished campaign goes, so that a demo of a week does not fill the disk. The catalogue stays."""
        pages = self.desk.pages
        over = [page for page in pages if page.status == "finished" and page.name != newsletters.HISTORY_NAME]
        if len(pages) > _KEPT and over:
            self._do(Act("delete_campaign", min(over, key=lambda page: page.id).id))

    def _window(self, now: float, wall: datetime) -> None:
        """Sets a window that closes within two minutes, and takes it off again some time later."""
        minute, second = divmod(wall.timestamp(), _MINUTE)
        if self._plan.reopen and now >= self._plan.reopen:
            self._set_window("", "")
            self._plan.reopen, self._plan.close = 0.0, now + _CLOSINGS
        if not self._plan.reopen and now >= self._plan.close:
            end = wall.astimezone(self._read_window().zone) + timedelta(seconds=_MINUTE)
            self._plan.close = now + _CLOSINGS
            if "00:01" < f"{end:%H:%M}" < "23:59":  # at midnight it would not close, or never have been open
                self._set_window("00:00", f"{end:%H:%M}")
                closing = 2 * _MINUTE - wall.second
                self._plan.reopen = now + closing + _PHASE + _CLOSED_FOR
        if second >= _PHASE and minute > self._looked:
            self._looked = int(minute)
            self._look_at_window(wall)
        elif self._ticker.closed and not self._plan.reopen:
            self._look_at_window(wall)  # opened by hand: the mailer is told

    def _look_at_window(self, wall: datetime) -> None:
        window = self._read_window()
        self._ticker, name = self._ticker.look(window, wall)
        if name:
            self._do(Act(name))

    def _read_window(self) -> SendWindow:
        return self.desk.session.ask(lambda conn: read_window(conn, self._schema), always_open())

    def _set_window(self, start: str, end: str) -> None:
        for key, text in ((SETTING_SEND_TIME_START, start), (SETTING_SEND_TIME_END, end)):
            self.desk.session.one(say.SET_SETTING, (key, json.dumps(text)))

    def _people(self, now: float, elapsed: float) -> None:
        """Pause one, resume it later; retry failures; save a form; a reader leaves; a mail outside the queue."""
        plan = self._plan
        if self.rng.random() < elapsed:
            self._outside_the_queue()
        if now >= plan.pause:
            plan.pause = now + 2 * newsletters.RESUME_AT
            self._pause()
        if now >= plan.resume:
            plan.resume = now + 2 * newsletters.RESUME_AT
            self._resume()
        if now < plan.people:
            return
        plan.people = now + _PEOPLE * self.rng.uniform(0.5, 1.5)
        finished = [page for page in self.desk.pages if page.status == "finished" and page.counts[FAILED]]
        if finished:
            page = self.rng.choice(finished)
            self._do(Act("retry", page.id, n=3))  # the failed ones, and it runs again
            self._enter_stage(page, Newsletter(page.name, page.size, 6.0, 0), now)
        if len(self.desk.subscribers) > 100:
            self._do(Act("delete_subscribers", n=2))

    def _pause(self) -> None:
        """The one that is meant, else any that still has much to send."""
        candidates = [
            run.page for run in self._stage.values() if run.page.status == "running" and run.page.counts[QUEUED]
        ]
        meant = [page for page in candidates if page.name == newsletters.PAUSED]
        if candidates:
            self._do(Act("pause", max(meant or candidates, key=lambda page: page.counts[QUEUED]).id))

    def _resume(self) -> None:
        for running in list(self._stage.values()):
            if running.page.counts[CANCELLED]:
                self._do(Act("resume", running.page.id))

    def _outside_the_queue(self) -> None:
        for page in self.desk.pages:
            if page.name == newsletters.OUTSIDE_THE_QUEUE:
                self._do(Act("direct", page.id, n=0))

    def _react(self) -> None:
        """Mails that were handed over are delivered, opened and clicked."""
        found = self.desk.session.rows(say.NEWLY_TRACKED, (self._tracked,))
        if not found:
            return
        self._tracked = found[-1][0]
        delivered = [row[0] for row in found if self.rng.random() < 0.985]
        opened = [tracked for tracked in delivered if self.rng.random() < 0.21]
        clicked = [tracked for tracked in opened if self.rng.random() < 0.17]
        for statement, ids in (
            (say.DELIVERED, delivered), (say.OPENED, opened), (say.CLICKED, clicked),
            (say.VIEWS, opened), (say.CLICKS, clicked),
        ):  # fmt: skip
            self.desk.session.one(statement, (ids,))

    def _do(self, act: Act) -> None:
        self._sender.perform(act)
