"""What all calls share: settings, access rules, live state, database sessions."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request
from psycopg_pool import ConnectionPool

from connectors.postgres.connect import Connection
from stream.config.settings import Settings
from stream.web.access import AccessRules
from stream.web.live_state import LiveState
from stream.web.problems import Problem
from stream.web.sessions import lend
from stream.web.wrong_tokens import WrongTokens


@dataclass(slots=True)
class PollState:
    """How polling the database goes, for the health calls. Monotonic seconds; ``trouble``: the last error logged."""

    tried: float
    succeeded: float | None = None
    trouble: str = ""


@dataclass(slots=True)
class Context:
    """Made once with the application. ``has_feed``: counts arrive by another way than the poll (flush, topic), too.
    ``texts``: more parts of `/metrics`, in the text format of Prometheus."""

    settings: Settings
    rules: AccessRules
    live: LiveState
    poll: PollState
    pool: ConnectionPool[Connection]
    has_feed: bool = False
    wrong_tokens: WrongTokens = field(default_factory=WrongTokens)
    texts: list[Callable[[], bytes]] = field(default_factory=list)

    def session(self) -> AbstractContextManager[Connection]:
        """A database session for one call; see `stream.web.sessions.lend`."""
        return lend(self.pool)

    def loaded(self) -> LiveState:
        """The live state; Problem 503 while nothing has been read yet."""
        if not self.live.loaded:
            raise Problem(503, "Nothing has been read from the database yet. Try again.", {"Retry-After": "2"})
        return self.live


def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


#: annotation of a parameter that receives the context
Shared = Annotated[Context, Depends(_context)]
