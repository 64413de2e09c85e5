"""What the calls have in common: the settings, the live state, sessions. One object, made with the app."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request
from psycopg_pool import ConnectionPool

from connectors.postgres.connect import Connection
from stream.config.settings import Settings
from stream.web.guard import Rules
from stream.web.live import Live
from stream.web.problems import Problem
from stream.web.sessions import lend


@dataclass(slots=True)
class Following:
    """How the looking goes, for the health calls. Times are monotonic seconds; ``trouble`` is for the log alone."""

    tried: float
    succeeded: float | None = None
    trouble: str = ""


@dataclass(slots=True)
class Context:
    """``beside``: the counts arrive by another way than the database (the flush, the topic). ``texts``: what else
    `/metrics` shows, in the text format of Prometheus; the way in for the metrics of other parts."""

    settings: Settings
    rules: Rules
    live: Live
    following: Following
    pool: ConnectionPool[Connection]
    beside: bool = False
    texts: list[Callable[[], bytes]] = field(default_factory=list)

    def session(self) -> AbstractContextManager[Connection]:
        """A database session for one call; see `stream.web.sessions.lend`."""
        return lend(self.pool)

    def loaded(self) -> Live:
        """The live state; Problem 503 while nothing has been read yet."""
        if not self.live.loaded:
            raise Problem(503, "Nothing has been read from the database yet. Try again.", {"Retry-After": "2"})
        return self.live


def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


#: a call's parameter that gets the context
Shared = Annotated[Context, Depends(_context)]
