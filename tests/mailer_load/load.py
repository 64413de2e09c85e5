"""The simulated mailer at a rate: several senders, each with a connection and campaigns of its own, one book.

A sender changes only rows of its own campaigns, so the senders need not wait for each other; acts on the whole queue
(TRUNCATE, the window's pause) and the reading of the truth wait until all stand still. So the truth stays exact with
any number of connections; what is no longer the same by the same seed is the order among senders.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Final

import psycopg

from stream.demo.mailer import campaigns as acts_on
from stream.demo.mailer import statements as say
from stream.demo.mailer.act import Act
from stream.demo.mailer.ledger import Truth
from stream.demo.mailer.session import Session, value
from stream.demo.mailer.workspace import Desk, read_book
from tests.mailer_load.action_mix import MIXES, SINGLE_ROW, WHOLE_QUEUE, Mix
from tests.mailer_load.sender import Sender

#: a sender that has fallen behind its rate by more than this many seconds does not try to make up for it
_BEHIND: Final = 1.0
#: seconds until a sender that found nothing possible looks again
_NOTHING_TO_DO: Final = 0.01


class Gate:
    """Many may pass together, or one alone."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._inside = 0
        self._alone = False

    @contextmanager
    def together(self) -> Iterator[None]:
        with self._condition:
            while self._alone:
                self._condition.wait()
            self._inside += 1
        try:
            yield
        finally:
            with self._condition:
                self._inside -= 1
                self._condition.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._condition:
            while self._alone:
                self._condition.wait()
            self._alone = True
            while self._inside:
                self._condition.wait()
        try:
            yield
        finally:
            with self._condition:
                self._alone = False
                self._condition.notify_all()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The truth at a moment when no transaction of the simulator was open, and where the WAL stood then."""

    truth: Truth
    lsn: str
    seconds: float


class Load:
    """``rate``: changed rows a second by acts on single rows, of all senders together (None: as fast as it goes); bulk
    acts come on top. ``group``: how many of these share a transaction. ``campaigns``, ``size``: how many, rows of one.

        with Load(url, rate=1000, connections=2) as load:   # prepares campaigns
            load.run(seconds=10)
            load.snapshot().truth.live()
    """

    def __init__(
        self,
        url: str,
        *,
        rate: float | None = None,
        seed: int = 0,
        schema: str = "public",
        mix: Mix = MIXES["all"],
        connections: int = 2,
        group: int = 1,
        campaigns: int = 6,
        size: int = 1000,
        tracking: bool = False,
    ) -> None:
        self.mix = mix
        self._url = url
        self._rate = rate
        self._group = group
        self._gate = Gate()
        self._stop = threading.Event()
        self._errors: list[BaseException] = []
        self._threads: list[threading.Thread] = []
        self._began = time.monotonic()
        self._reader = psycopg.connect(url, autocommit=True)
        first = Session(psycopg.connect(url, autocommit=True), schema=schema, url=url)
        self._book, _, mark = read_book(first.cursor)
        tag = f"l{seed}.{mark}"
        sessions = [first]
        sessions += [
            Session(psycopg.connect(url, autocommit=True), schema=schema, url=url) for _ in range(connections - 1)
        ]
        self._senders = [
            Sender(
                Desk(
                    session,
                    self._book,
                    Random(f"{tag}.{number}"),
                    tag=f"{tag}.{number}",
                    room=max(1, campaigns // connections),
                    size=size,
                    tracking=tracking,
                )
            )
            for number, session in enumerate(sessions)
        ]
        for number, page in enumerate(self._book.pages.values()):
            self._senders[number % connections].desk.adopt([page])

    def __enter__(self) -> Load:
        self.prepare()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def prepare(self) -> None:
        """Each sender makes and queues campaigns until it has enough."""
        for sender in self._senders:
            desk = sender.desk
            while len(desk.pages) < desk.room:
                page = acts_on.add(desk, f"Campaign {len(desk.pages) + 1} of {desk.tag}", desk.size)
                sender.perform(Act("start", page.id))

    def start(self) -> None:
        """Begins to send, in threads; returns at once."""
        self._stop.clear()
        self._began = time.monotonic()
        for number, sender in enumerate(self._senders):
            thread = threading.Thread(target=self._work, args=(sender,), name=f"sender {number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """Ends sending between two acts, and raises what a sender died of."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        if self._errors:
            raise self._errors[0]

    def run(self, seconds: float) -> None:
        """Sends for so long."""
        self.start()
        self.wait(seconds)
        self.stop()

    def wait(self, seconds: float) -> None:
        """Until so much time has passed, or a sender has died."""
        self._stop.wait(seconds)

    @property
    def losses(self) -> int:
        """How often connections were lost and found again."""
        return sum(sender.desk.session.losses for sender in self._senders)

    @property
    def running(self) -> bool:
        """Whether every sender is at work."""
        return bool(self._threads) and not self._stop.is_set()

    @property
    def changes(self) -> int:
        """Rows of the queue changed so far."""
        return sum(sender.changes for sender in self._senders)

    def close(self) -> None:
        """Stops, and ends its connections."""
        try:
            self.stop()
        finally:
            self._reader.close()
            for sender in self._senders:
                sender.desk.session.close()

    def snapshot(self) -> Snapshot:
        """The truth, once every sender stands still between two acts (a moment: they go on at once)."""
        acts: dict[str, int] = {}
        with self._gate.alone():
            lsn = self._lsn()
            for sender in self._senders:
                for name, times in sender.acts.items():
                    acts[name] = acts.get(name, 0) + times
            return Snapshot(self._book.truth(self.changes, acts), lsn, time.monotonic() - self._began)

    def _lsn(self) -> str:
        try:
            return str(value(self._reader.execute(say.WHERE_WAL_STANDS)))
        except psycopg.OperationalError:  # lost while it was not used: the senders find theirs again, too
            self._reader = psycopg.connect(self._url, autocommit=True)
            return str(value(self._reader.execute(say.WHERE_WAL_STANDS)))

    def _work(self, sender: Sender) -> None:
        try:
            self._send(sender)
        except BaseException as error:  # told by stop()
            self._errors.append(error)
            self._stop.set()

    def _send(self, sender: Sender) -> None:
        per_row = 0.0 if self._rate is None else len(self._senders) / self._rate
        due = time.monotonic()
        while not self._stop.is_set():
            due += per_row * self._step(sender)
            ahead = due - time.monotonic()
            if ahead > 0:
                self._stop.wait(ahead)
            elif ahead < -_BEHIND:
                due = time.monotonic()

    def _step(self, sender: Sender) -> int:
        """One act, or a group of them. Returns how many rows count for the rate."""
        act = sender.choose(self.mix)
        if act is None:
            self._stop.wait(_NOTHING_TO_DO)
            return 0
        if act.name in WHOLE_QUEUE:
            with self._gate.alone():
                sender.perform(act)
            return 0
        with self._gate.together():
            if act.name not in SINGLE_ROW:
                sender.perform(act)
                return 0
            if self._group > 1:
                return max(1, sender.perform_mails(self.mix, self._group))
            return max(1, sender.perform(act))
