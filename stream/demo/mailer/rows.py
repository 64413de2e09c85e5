"""Acts on single rows: picked, sent, failed, back in the queue."""

from __future__ import annotations

from typing import Final, NamedTuple

from stream.core.status import FAILED, QUEUED, SENDING, SENT
from stream.demo.mailer import statements as say
from stream.demo.mailer.act import Act, Mail
from stream.demo.mailer.workspace import Desk

#: one mail in so many is not noted in the tracking: the real mailer loses some, too
_UNTRACKED: Final = 4000


class RowAct(NamedTuple):
    """A statement on one row, the status it sets, and the status a row must have for it (None: any)."""

    statement: str
    status: int
    only_from: int | None = None


ROW_ACTS: Final = {
    "pick": RowAct(say.PICK, SENDING, QUEUED),
    "sent": RowAct(say.SENT, SENT),
    "failed": RowAct(say.FAILED, FAILED),
    "limited": RowAct(say.LIMITED, QUEUED),
}


def one_by_one(desk: Desk, act: Act) -> int:
    """Each row by a statement that is a transaction of its own, as the mailer does. Returns how many rows it took."""
    changed = 0
    for mail in act.mails:
        found = desk.session.one(ROW_ACTS[act.name].statement, (mail[1],))
        if found is None:
            return changed
        desk.expect(act.name, found, enter(desk, act.name, mail))
        changed += found
        if desk.tracking and found and act.name == "sent":
            track(desk, mail)
    return changed


def enter(desk: Desk, name: str, mail: Mail) -> int:
    """Into the book. Returns 1, or 0 where the row is gone or not as the act wants it."""
    act = ROW_ACTS[name]
    taken = desk.book.turn(*mail, act.status, act.only_from)
    if name != "pick":
        desk.end_of_way(mail)
    elif taken:
        desk.on_their_way.append(mail)
    return taken


def track(desk: Desk, mail: Mail) -> None:
    """The mailer notes that it handed the mail over."""
    if desk.rng.randrange(_UNTRACKED):
        desk.session.one(say.TRACK, (desk.uuid(), mail[1]))
