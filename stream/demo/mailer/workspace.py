"""What one sender of the simulated mailer works on: its session, its campaigns and readers, its mails on their way.

Only the sender changes the rows of its campaigns, so the ledger predicts how many rows each statement takes. Each time
PostgreSQL's number is compared with it. A difference is an error: another program wrote to the queue, and the truth is
lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from random import Random
from typing import Final
from uuid import UUID

from psycopg import Cursor
from psycopg.rows import TupleRow

from connectors.mailer.tables import QUEUE_MESSENGER
from stream.core.errors import SentstreamError
from stream.core.status import STATUS_BY_NAME
from stream.demo.mailer import statements as say
from stream.demo.mailer.act import Mail
from stream.demo.mailer.ledger import Book, Page
from stream.demo.mailer.session import Session, Settle

#: how many mails that are done with are remembered, to be done again now and then
_DONE_KEPT: Final = 5000
#: one reader in so many is on two lists, and gets two rows
_ON_TWO_LISTS: Final = 40


class StrayChangeError(SentstreamError):
    """The queue is not as the ledger says: another program wrote to it, so the simulator's truth is lost."""


class Desk:
    """``tag``: makes its readers' addresses its own. ``room``: how many campaigns it keeps; ``size``: rows of one,
    about; ``tracking``: whether each mail handed over is noted in azure_message_tracking."""

    def __init__(
        self,
        session: Session,
        book: Book,
        rng: Random,
        *,
        tag: str = "s",
        room: int = 6,
        size: int = 200,
        tracking: bool = False,
    ) -> None:
        self.session = session
        self.book = book
        self.rng = rng
        self.tag = tag
        self.room = room
        self.size = size
        self.tracking = tracking
        self.pages: list[Page] = []
        self.on_their_way: list[Mail] = []
        self.done: deque[Mail] = deque(maxlen=_DONE_KEPT)
        self.subscribers: list[int] = []
        self._addresses = 0
        session.read_again = self._read_again

    def adopt(self, pages: Iterable[Page], subscribers: Iterable[int] = ()) -> None:
        """Takes campaigns (and subscribers) that were there before, and are in the book already."""
        self.pages.extend(pages)
        self.subscribers.extend(subscribers)

    def expect(self, act: str, found: int, meant: int) -> None:
        """PostgreSQL's number of rows against the book's."""
        if found != meant:
            raise StrayChangeError(
                f"The act {act!r} took {found} rows where the simulator's book says {meant}: "
                "another program writes to the queue.",
                "Let the simulator be the only mailer of that database.",
            )

    def end_of_way(self, mail: Mail) -> None:
        """The mail is done with."""
        if mail in self.on_their_way:
            place = self.on_their_way.index(mail)
            self.on_their_way[place] = self.on_their_way[-1]
            self.on_their_way.pop()
        self.done.append(mail)

    def readers(self, n: int) -> list[int]:
        """``n`` of its subscribers, some of them twice; new ones are made where there are too few."""
        if len(self.subscribers) < n:
            self.new_subscribers(n - len(self.subscribers))
        readers = self.rng.sample(self.subscribers, n)
        twice = n // _ON_TWO_LISTS
        return readers[: n - twice] + readers[:twice]

    def new_subscribers(self, n: int) -> None:
        """Makes ``n`` subscribers of its own."""

        def work(cursor: Cursor[TupleRow]) -> Settle:
            first = self._addresses + 1
            self._addresses += n
            rows = cursor.execute(say.NEW_SUBSCRIBERS, (self.tag, first, first + n - 1)).fetchall()
            return lambda: self.subscribers.extend(row[0] for row in rows)

        while not self.session.commit(work):
            pass

    def uuid(self) -> UUID:
        """As random as the seed allows."""
        return UUID(int=self.rng.getrandbits(128), version=4)

    def _read_again(self, cursor: Cursor[TupleRow], whole: bool) -> None:
        """The campaigns and rows as the tables have them; what was on its way is not known any more.

        A row that is gone was deleted by the transaction in doubt, and stands in the book as it was then."""
        self.on_their_way.clear()
        pages = list(self.book.pages.values()) if whole else list(self.pages)
        now = {row[0]: row for row in cursor.execute(say.CAMPAIGNS_NOW).fetchall()}
        rows = _read_rows(cursor, [page.id for page in pages])
        there = {row for of_page in rows.values() for row in of_page}
        for page in pages:
            if page.id not in now:
                self.forget(page)
                continue
            _, page.name, page.status, page.use_queue, page.auto_paused, page.to_send, _, counter = now[page.id]
            page.replace(rows[page.id], there)
            if page.messenger != QUEUE_MESSENGER:
                page.counter = counter

    def forget(self, page: Page) -> None:
        """The campaign was deleted."""
        self.book.pages.pop(page.id, None)
        if page in self.pages:
            self.pages.remove(page)


def read_book(cursor: Cursor[TupleRow]) -> tuple[Book, Sequence[int], str]:
    """A ledger of what is in the tables (without rows that were removed before), the subscribers, and a mark.

    The mark is another text whenever the tables are: with it a second simulator makes other names and uuids."""
    book = Book()
    for row in cursor.execute(say.CAMPAIGNS_NOW).fetchall():
        campaign, name, status, use_queue, auto_paused, to_send, messenger, sent = row
        page = Page(campaign, name, status, messenger, to_send, to_send, use_queue, auto_paused)
        page.counter = sent
        book.pages[campaign] = page
    for campaign, rows in _read_rows(cursor, list(book.pages)).items():
        book.pages[campaign].replace(rows)
    subscribers = [row[0] for row in cursor.execute(say.SUBSCRIBERS_NOW).fetchall()]
    ((mark,),) = cursor.execute(say.MARK).fetchall()
    return book, subscribers, str(mark)


def _read_rows(cursor: Cursor[TupleRow], campaigns: Sequence[int]) -> dict[int, dict[int, int]]:
    """Status by row, by campaign."""
    rows: dict[int, dict[int, int]] = {campaign: {} for campaign in campaigns}
    for row, campaign, status in cursor.execute(say.ROWS_OF_CAMPAIGNS, (list(campaigns),)).fetchall():
        rows[campaign][row] = STATUS_BY_NAME[status]
    return rows
