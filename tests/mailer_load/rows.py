"""More acts on rows: several in one transaction, and what a transaction makes possible."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import psycopg
from psycopg import Cursor
from psycopg.rows import TupleRow

from stream.demo.mailer import statements as say
from stream.demo.mailer.act import Act, Mail
from stream.demo.mailer.rows import ROW_ACTS, enter
from stream.demo.mailer.session import Settle
from stream.demo.mailer.workspace import Desk

_MOVE: Final = "UPDATE email_queue SET campaign_id = %s::int WHERE id = %s::bigint"


def together(desk: Desk, acts: Iterable[Act]) -> int:
    """Several such acts in one transaction, sent as a pipeline. Returns how many rows they took."""
    mails: dict[str, list[Mail]] = {name: [] for name in ROW_ACTS}
    for act in acts:
        mails[act.name].extend(act.mails)
    plan = [(name, those) for name, those in mails.items() if those]
    changed = 0

    def work(cursor: Cursor[TupleRow]) -> Settle:
        counts: list[int] = []
        for name, those in plan:
            cursor.executemany(ROW_ACTS[name].statement, [(row,) for _, row in those])
            counts.append(cursor.rowcount)

        def settle() -> None:
            nonlocal changed
            for (name, those), found in zip(plan, counts, strict=True):
                desk.expect(name, found, sum(enter(desk, name, mail) for mail in those))
                changed += found

        return settle

    if plan:
        desk.session.commit(work)
    return changed


def hurry(desk: Desk, act: Act) -> int:
    """Two updates of one row in one transaction."""
    (mail,) = act.mails

    def work(cursor: Cursor[TupleRow]) -> Settle:
        first = cursor.execute(say.PICK, (mail[1],)).rowcount
        second = cursor.execute(say.SENT, (mail[1],)).rowcount

        def settle() -> None:
            desk.expect(act.name, first, enter(desk, "pick", mail))
            desk.expect(act.name, second, enter(desk, "sent", mail))

        return settle

    desk.session.commit(work)
    return 2


def savepoint(desk: Desk, act: Act) -> int:
    """One row is picked, and another one sent, but that is taken back."""
    kept, taken_back = act.mails

    def work(cursor: Cursor[TupleRow]) -> Settle:
        found = cursor.execute(say.PICK, (kept[1],)).rowcount
        cursor.execute("SAVEPOINT second_thoughts")
        cursor.execute(say.SENT, (taken_back[1],))
        cursor.execute("ROLLBACK TO SAVEPOINT second_thoughts")
        return lambda: desk.expect(act.name, found, enter(desk, "pick", kept))

    desk.session.commit(work)
    return 1


def abandon(desk: Desk, act: Act) -> int:
    """A transaction that changes and inserts, and is rolled back."""
    ((campaign, row),) = act.mails
    readers = desk.readers(3)

    def work(cursor: Cursor[TupleRow]) -> Settle:
        cursor.execute(say.SENT, (row,))
        cursor.execute(say.QUEUE_ALL, (campaign, readers))
        cursor.execute(say.CANCEL_ALL, (campaign,))
        raise psycopg.Rollback

    desk.session.commit(work)
    return 0


def move(desk: Desk, act: Act) -> int:
    """A row goes to another campaign: it leaves the old one without being removed."""
    (mail,) = act.mails
    source, row = mail
    moved = (act.campaign, row)

    def work(cursor: Cursor[TupleRow]) -> Settle:
        found = cursor.execute(_MOVE, (act.campaign, row)).rowcount

        def settle() -> None:
            desk.expect(act.name, found, desk.book.move(row, source, act.campaign))
            desk.on_their_way[:] = [moved if way == mail else way for way in desk.on_their_way]
            for place, done in enumerate(desk.done):
                if done == mail:
                    desk.done[place] = moved

        return settle

    desk.session.commit(work)
    return 1
