"""More acts on campaigns and on the whole queue: forms saved, counters overwritten, the queue cleared, a crash."""

from __future__ import annotations

from typing import Final

from psycopg import Cursor
from psycopg.rows import TupleRow

from connectors.mailer.tables import QUEUE_MESSENGER
from stream.core.status import CANCELLED
from stream.demo.mailer.act import Act
from stream.demo.mailer.campaigns import add
from stream.demo.mailer.session import Settle
from stream.demo.mailer.workspace import Desk

#: one campaign in so many sends outside the queue
_DIRECT: Final = 8

_EDIT: Final = """
UPDATE campaigns SET name = %s::text, subject = %s::text, to_send = %s::int, updated_at = now() WHERE id = %s::int
"""
_OVERWRITE: Final = "UPDATE campaigns SET sent = %s::int, updated_at = now() WHERE id = %s::int"
_CLEAR: Final = "TRUNCATE email_queue"
_CLEAR_CASCADE: Final = "TRUNCATE email_queue CASCADE"
_DELETE_CANCELLED: Final = "DELETE FROM email_queue WHERE status = 'cancelled'"


def create(desk: Desk, act: Act) -> int:
    """A draft."""
    messenger = QUEUE_MESSENGER if desk.rng.randrange(_DIRECT) else "email"
    add(desk, f"Campaign {len(desk.book.pages) + 1} of {desk.tag}", act.n, messenger=messenger)
    return 0


def edit(desk: Desk, act: Act) -> int:
    """Somebody saves the campaign's form."""
    page = desk.book.pages[act.campaign]
    name, to_send = f"{page.name.partition(' (')[0]} (edited {act.n})", page.to_send + act.n % 2

    def work(cursor: Cursor[TupleRow]) -> Settle:
        cursor.execute(_EDIT, (name, f"{name}: what is new", to_send, page.id))

        def settle() -> None:
            page.name, page.to_send = name, to_send

        return settle

    desk.session.commit(work)
    return 0


def overwrite(desk: Desk, act: Act) -> int:
    """Somebody else writes the counter of a campaign with a queue: wrong, and to be put right."""
    desk.session.one(_OVERWRITE, (act.n, act.campaign))
    return 0


def clear(desk: Desk, act: Act) -> int:
    """The button that empties the queue. Mails on their way will find no row."""
    rows = sum(len(page.rows) for page in desk.book.pages.values())

    def work(cursor: Cursor[TupleRow]) -> Settle:
        cursor.execute(_CLEAR_CASCADE if act.n % 2 else _CLEAR)
        return desk.book.truncate

    desk.session.commit(work, whole=True)
    return rows


def delete_cancelled(desk: Desk, act: Act) -> int:
    """What the same button does in test mode besides."""
    changed = 0

    def work(cursor: Cursor[TupleRow]) -> Settle:
        found = cursor.execute(_DELETE_CANCELLED).rowcount

        def settle() -> None:
            nonlocal changed
            taken = sum(page.drop_status(CANCELLED) for page in desk.book.pages.values())
            desk.expect(act.name, found, taken)
            changed = found

        return settle

    desk.session.commit(work, whole=True)
    return changed


def crash(desk: Desk, _act: Act) -> int:
    """The mailer dies and comes back: nobody ends what was on its way, so rows stay `sending`."""
    desk.on_their_way.clear()
    desk.done.clear()
    return 0
