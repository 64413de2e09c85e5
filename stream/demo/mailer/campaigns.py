"""Acts on campaigns, on subscribers and on the whole queue: the ones that change many rows by one statement."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from psycopg import Cursor
from psycopg.rows import TupleRow

from connectors.mailer.tables import QUEUE_MESSENGER
from stream.core.status import CANCELLED, QUEUED, SENDING, STATUS_BY_NAME
from stream.demo.mailer import statements as say
from stream.demo.mailer.act import Act
from stream.demo.mailer.ledger import Page
from stream.demo.mailer.session import Settle, value
from stream.demo.mailer.workspace import Desk

#: bytes of a campaign's body, written as hexadecimal: too long for its row, and not to be compressed
_BODY: Final = 5000


def add(desk: Desk, name: str, size: int, *, messenger: str = QUEUE_MESSENGER) -> Page:
    """A draft that will queue ``size`` rows."""
    page = Page(0, name, messenger=messenger, size=size)

    def work(cursor: Cursor[TupleRow]) -> Settle:
        values = (desk.uuid(), name, f"{name}: what is new", desk.rng.randbytes(_BODY).hex(), messenger)
        page.id = value(cursor.execute(say.CREATE, values))

        def settle() -> None:
            desk.book.pages[page.id] = page
            desk.pages.append(page)

        return settle

    while not desk.session.commit(work):
        pass
    return page


def start(desk: Desk, act: Act) -> int:
    """A draft or scheduled campaign is queued."""
    page = desk.book.pages[act.campaign]
    return queue_all(desk, page, desk.readers(page.size))


def queue_all(desk: Desk, page: Page, readers: Sequence[int]) -> int:
    """All rows of a campaign in one transaction, then all of them updated in the next, their status left alone."""
    status = page.status if page.status == "scheduled" else "running"  # a scheduled campaign sends, too

    def begin(cursor: Cursor[TupleRow]) -> Settle:
        cursor.execute(say.BEGIN_SENDING, (status, len(readers), page.id))

        def settle() -> None:
            page.status, page.to_send = status, len(readers)

        return settle

    def insert(cursor: Cursor[TupleRow]) -> Settle:
        ids = [row[0] for row in cursor.execute(say.QUEUE_ALL, (page.id, list(readers))).fetchall()]
        return lambda: desk.expect("start", len(ids), page.enter(ids))

    def schedule(cursor: Cursor[TupleRow]) -> Settle:
        found = cursor.execute(say.SCHEDULE_ALL, (str(desk.uuid()), page.id)).rowcount
        return lambda: desk.expect("start", found, page.counts[QUEUED])

    def use_queue(cursor: Cursor[TupleRow]) -> Settle:
        cursor.execute(say.SET_USE_QUEUE, (page.id,))
        return lambda: setattr(page, "use_queue", True)

    for stage in (begin, insert, schedule, use_queue):
        desk.session.commit(stage)
    return 2 * len(readers)


def set_status(desk: Desk, campaign: int, status: str, statement: str = say.SET_STATUS) -> int:
    """The campaign's own row only."""
    page = desk.book.pages[campaign]

    def work(cursor: Cursor[TupleRow]) -> Settle:
        cursor.execute(statement, (status, campaign))

        def settle() -> None:
            page.status, page.auto_paused = status, False

        return settle

    desk.session.commit(work)
    return 0


def stop(status: str) -> Callable[[Desk, Act], int]:
    """Paused or cancelled by a person: what is queued or on its way becomes cancelled."""

    def perform(desk: Desk, act: Act) -> int:
        set_status(desk, act.campaign, status)
        return _bulk(desk, act, say.CANCEL_ALL, (act.campaign,), (QUEUED, SENDING), CANCELLED)

    return perform


def resume(desk: Desk, act: Act) -> int:
    """Paused by a person, and now it goes on."""
    set_status(desk, act.campaign, "running")
    return _bulk(desk, act, say.RESUME_ALL, (act.campaign,), (CANCELLED,), QUEUED)


def retry(desk: Desk, act: Act) -> int:
    """The failed ones, the cancelled ones or both go again, also where the campaign was finished."""
    names = (["failed"], ["cancelled"], ["failed", "cancelled"])[act.n % 3]
    if act.n % 2:
        set_status(desk, act.campaign, "running")
    sources = [STATUS_BY_NAME[name] for name in names]
    return _bulk(desk, act, say.RETRY_ALL, (act.campaign, names), sources, QUEUED)


def _bulk(desk: Desk, act: Act, statement: str, values: Sequence[object], sources: Iterable[int], target: int) -> int:
    page = desk.book.pages[act.campaign]
    changed = 0

    def work(cursor: Cursor[TupleRow]) -> Settle:
        found = cursor.execute(statement, values).rowcount

        def settle() -> None:
            nonlocal changed
            desk.expect(act.name, found, page.turn_all(sources, target))
            changed = found

        return settle

    desk.session.commit(work)
    return changed


def direct(desk: Desk, act: Act) -> int:
    """Mails of a campaign outside the queue, which the mailer counts itself."""
    page = desk.book.pages[act.campaign]
    n = act.n % 7 + 1

    def work(cursor: Cursor[TupleRow]) -> Settle:
        cursor.execute(say.SENT_DIRECTLY, (n, page.id))

        def settle() -> None:
            page.counter += n

        return settle

    desk.session.commit(work)
    return 0


def delete_campaign(desk: Desk, act: Act) -> int:
    """The campaign goes, and its rows by cascade."""
    page = desk.book.pages[act.campaign]
    rows = len(page.rows)

    def work(cursor: Cursor[TupleRow]) -> Settle:
        cursor.execute(say.DELETE_CAMPAIGN, (page.id,))
        return lambda: desk.forget(page)

    desk.session.commit(work)
    return rows


def delete_subscribers(desk: Desk, act: Act) -> int:
    """Subscribers are deleted, and their rows in all campaigns by cascade."""
    chosen = [desk.subscribers.pop(desk.rng.randrange(len(desk.subscribers))) for _ in range(act.n)]
    changed = 0

    def work(cursor: Cursor[TupleRow]) -> Settle:
        rows = cursor.execute(say.ROWS_OF_SUBSCRIBERS, (chosen,)).fetchall()
        cursor.execute(say.DELETE_SUBSCRIBERS, (chosen,))

        def settle() -> None:
            nonlocal changed
            desk.expect(act.name, len(rows), sum(desk.book.drop(campaign, row) for row, campaign in rows))
            changed = len(rows)

        return settle

    desk.session.commit(work)
    return changed


def auto_pause(desk: Desk, _act: Act) -> int:
    """The window closed: rows stay as they are, and mails on their way go on."""
    return _all_campaigns(desk, say.AUTO_PAUSE, "running", "paused")


def auto_resume(desk: Desk, _act: Act) -> int:
    """The window opened: every paused campaign of the queue goes on, those paused by hand too."""
    return _all_campaigns(desk, say.AUTO_RESUME, "paused", "running")


def _all_campaigns(desk: Desk, statement: str, before: str, after: str) -> int:
    def work(cursor: Cursor[TupleRow]) -> Settle:
        found = len(cursor.execute(statement).fetchall())

        def settle() -> None:
            pages = [page for page in desk.book.pages.values() if page.status == before and page.use_queue]
            desk.expect(f"auto: {after}", found, len(pages))
            for page in pages:
                page.status, page.auto_paused = after, after == "paused"

        return settle

    desk.session.commit(work, whole=True)
    return 0
