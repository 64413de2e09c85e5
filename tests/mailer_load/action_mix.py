"""Which act comes next, and on what: a pure choice by weights, from what the ledger says is possible.

``sender.py`` performs it. Nothing here reads a database or a clock: the same seed and the same ledger always make the
same choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from types import MappingProxyType
from typing import Final

from connectors.mailer.tables import QUEUE_MESSENGER
from stream.core.errors import ConfigurationError
from stream.core.status import CANCELLED, FAILED, QUEUED, SENDING
from stream.demo.mailer.act import Act, Mail
from stream.demo.mailer.ledger import SENDING_STATUSES, Page
from stream.demo.mailer.workspace import Desk


@dataclass(frozen=True, slots=True)
class View:
    """What one sender may choose from: the pages it owns, its mails on their way, and those lately done with."""

    pages: Sequence[Page]
    on_their_way: Sequence[Mail]
    done: Sequence[Mail]
    subscribers: int
    #: how many campaigns it keeps at most
    room: int
    #: rows that a new campaign queues, about
    size: int


def view_of(desk: Desk) -> View:
    """What its next act may be chosen from."""
    return View(desk.pages, desk.on_their_way, desk.done, len(desk.subscribers), desk.room, desk.size)


def _any_page(view: View, rng: Random, fits: Callable[[Page], bool]) -> Page | None:
    """One of the pages that fit: first by a few tries, so that a choice among thousands stays cheap."""
    if not view.pages:
        return None
    for _ in range(4):
        page = rng.choice(view.pages)
        if fits(page):
            return page
    fitting = [page for page in view.pages if fits(page)]
    return rng.choice(fitting) if fitting else None


def _sends(page: Page) -> bool:
    return page.status in SENDING_STATUSES and page.counts[QUEUED] > 0


def _pick(view: View, rng: Random) -> Act | None:
    if len(view.on_their_way) > 400:
        return None
    page = _any_page(view, rng, _sends)
    if page is None:
        return None
    return Act("pick", mails=tuple((page.id, row) for row in page.next_queued(rng.randint(1, 10))))


def _finish_mail(name: str, again: float) -> Callable[[View, Random], Act | None]:
    """A mail on its way ends so; now and then one with which the mailer was done already."""

    def choose_mail(view: View, rng: Random) -> Act | None:
        if view.done and (rng.random() < again or (name == "limited" and not view.on_their_way)):
            return Act(name, mails=(rng.choice(view.done),))
        return Act(name, mails=(rng.choice(view.on_their_way),)) if view.on_their_way else None

    return choose_mail


def _on_rows(name: str, n: int) -> Callable[[View, Random], Act | None]:
    """An act on the next ``n`` queued rows of one campaign."""

    def choose_rows(view: View, rng: Random) -> Act | None:
        page = _any_page(view, rng, lambda page: page.counts[QUEUED] >= n)
        rows = [] if page is None else page.next_queued(n)
        return Act(name, page.id, tuple((page.id, row) for row in rows)) if page and len(rows) == n else None

    return choose_rows


def _on_campaign(name: str, fits: Callable[[Page], bool]) -> Callable[[View, Random], Act | None]:
    """An act on one campaign that fits; ``n`` is a throw of the dice for acts with variants."""

    def choose_campaign(view: View, rng: Random) -> Act | None:
        page = _any_page(view, rng, fits)
        return None if page is None else Act(name, page.id, n=rng.randrange(100))

    return choose_campaign


def _always(name: str) -> Callable[[View, Random], Act | None]:
    return lambda _view, rng: Act(name, n=rng.randrange(100))


def _create(view: View, rng: Random) -> Act | None:
    if len(view.pages) >= view.room:
        return None
    return Act("create", n=max(1, int(view.size * rng.choice((0.1, 0.5, 1.0, 1.0, 2.0)))))


def _delete_campaign(view: View, rng: Random) -> Act | None:
    """Most often one that is over."""
    if len(view.pages) <= max(1, view.room // 2):
        return None
    over = _any_page(view, rng, _over) if rng.random() < 0.8 else None
    page = over or _any_page(view, rng, lambda _page: True)
    return None if page is None else Act("delete_campaign", page.id)


def _delete_subscribers(view: View, rng: Random) -> Act | None:
    return Act("delete_subscribers", n=rng.randint(1, 3)) if view.subscribers > 10 else None


def _move(view: View, rng: Random) -> Act | None:
    source = _any_page(view, rng, lambda page: bool(page.rows))
    target = _any_page(view, rng, lambda page: page is not source)
    if source is None or target is None:
        return None
    row = next(iter(source.rows)) if rng.random() < 0.5 else next(reversed(source.rows))
    return Act("move", target.id, ((source.id, row),))


def _queueable(page: Page) -> bool:
    return page.status in ("draft", "scheduled") and not page.ever_queued and page.messenger == QUEUE_MESSENGER


def _active(page: Page) -> bool:
    return page.status in SENDING_STATUSES and page.ever_queued


def _over(page: Page) -> bool:
    return page.status in ("finished", "cancelled") or (page.ever_queued and not page.rows)


def _exhausted(page: Page) -> bool:
    return _active(page) and not page.counts[QUEUED] and not page.counts[SENDING]


#: every act of the mailer, and how its object is found
ACTS: Final[Mapping[str, Callable[[View, Random], Act | None]]] = MappingProxyType(
    {
        # single rows
        "pick": _pick,  # queued -> sending, only where still queued
        "sent": _finish_mail("sent", again=0.02),  # whatever the row was before, and so the next two
        "failed": _finish_mail("failed", again=0.1),
        "limited": _finish_mail("limited", again=0.1),
        "hurry": _on_rows("hurry", 1),  # two updates of one row in one transaction
        "savepoint": _on_rows("savepoint", 2),  # the second one is rolled back
        "abandon": _on_rows("abandon", 1),  # all is rolled back, inserts too
        "move": _move,  # a row goes to another campaign (the mailer does not do that)
        # campaigns
        "create": _create,
        "schedule": _on_campaign("schedule", lambda page: page.status == "draft" and page.messenger == QUEUE_MESSENGER),
        "start": _on_campaign("start", _queueable),  # bulk: INSERT of all, then UPDATE of all that leaves the status
        "pause": _on_campaign("pause", lambda page: page.status == "running" and page.ever_queued),
        "cancel": _on_campaign("cancel", _active),
        "resume": _on_campaign("resume", lambda page: page.status == "paused"),
        "retry": _on_campaign("retry", lambda page: page.counts[FAILED] + page.counts[CANCELLED] > 0),
        "finish": _on_campaign("finish", _exhausted),
        "edit": _on_campaign("edit", lambda _page: True),
        "direct": _on_campaign("direct", lambda page: page.messenger != QUEUE_MESSENGER),  # a mail outside the queue
        "overwrite": _on_campaign("overwrite", lambda page: page.ever_queued),  # somebody else writes campaigns.sent
        "delete_campaign": _delete_campaign,
        "delete_subscribers": _delete_subscribers,
        # everything
        "auto_pause": _always("auto_pause"),
        "auto_resume": _always("auto_resume"),
        "clear": _always("clear"),  # TRUNCATE
        "delete_cancelled": _always("delete_cancelled"),
        "crash": _always("crash"),  # what was being sent stays `sending`
    }
)

#: acts that touch campaigns of every sender: one at a time, while the others stand still
WHOLE_QUEUE: Final = frozenset({"auto_pause", "auto_resume", "clear", "delete_cancelled"})
#: acts on one row by one statement, which may share a transaction with others like them
SINGLE_ROW: Final = frozenset({"pick", "sent", "failed", "limited"})

Mix = Mapping[str, float]

#: named mixes. `all`: everything the mailer does. `mail`: rows sent one by one, for ever (rate limits bring them back).
MIXES: Final[Mapping[str, Mix]] = MappingProxyType(
    {
        "all": {
            "pick": 120, "sent": 520, "failed": 30, "limited": 30, "hurry": 15, "savepoint": 8, "abandon": 8,
            "create": 12, "schedule": 2, "start": 20, "pause": 6, "cancel": 4, "resume": 8, "retry": 8, "finish": 8,
            "edit": 6, "direct": 6, "delete_campaign": 6, "delete_subscribers": 4, "auto_pause": 0.5, "auto_resume": 3,
            "clear": 0.2, "delete_cancelled": 2, "crash": 0.5,
        },
        "mail": {"pick": 20, "sent": 90, "failed": 4, "limited": 6},
    }
)  # fmt: skip


def parse_mix(text: str) -> Mix:
    """A mix by name (``all``), as weights (``pick=10,sent=9``), or one changed (``all,move=5,clear=0``).

    ConfigurationError where a name or a number is none."""
    mix: dict[str, float] = {}
    for word in filter(None, (part.strip() for part in text.split(","))):
        name, equals, weight = word.partition("=")
        if not equals and name in MIXES:
            mix.update(MIXES[name])
        elif equals and name in ACTS and weight.replace(".", "", 1).isdigit():
            mix[name] = float(weight)
        else:
            raise ConfigurationError(
                f"--mix: {word!r} is neither a mix nor an act with a weight.",
                f"Mixes: {', '.join(MIXES)}. Acts: {', '.join(ACTS)}.",
            )
    return _checked(mix)


def choose(mix: Mix, view: View, rng: Random) -> Act | None:
    """The next act: names are drawn by weight until one is possible. None where no act of the mix is."""
    left = dict(mix)
    while left:
        (name,) = rng.choices(list(left), list(left.values()))
        act = ACTS[name](view, rng)
        if act is not None:
            return act
        del left[name]
    return None


def choose_mails(mix: Mix, view: View, rng: Random, n: int) -> list[Act]:
    """About ``n`` changes of single rows by the weights of ``mix``, to share a transaction; fewer if there are none."""
    rows = {name: weight for name, weight in mix.items() if name in SINGLE_ROW}
    acts: list[Act] = []
    taken: set[Mail] = set()
    changes = tries = 0
    while changes < n and tries < 2 * n and rows:
        tries += 1
        act = choose(rows, view, rng)
        if act is None:
            break
        mails = tuple(mail for mail in act.mails if mail not in taken)[: n - changes]
        if mails:
            acts.append(Act(act.name, mails=mails))
            taken.update(mails)
            changes += len(mails)
    return acts


def _checked(mix: dict[str, float]) -> Mix:
    kept = {name: weight for name, weight in mix.items() if weight > 0}
    if not kept:
        raise ConfigurationError("--mix names no act with a weight above 0.", f"Mixes: {', '.join(MIXES)}.")
    return kept
