"""Database sessions for calls: a small pool, so that calls that ask too much wait for each other and nothing else does.

A call that gets no session within a few seconds is refused. Event streams need no session.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from psycopg_pool import ConnectionPool, PoolTimeout

from connectors.postgres.connect import Connection, connect
from stream.config.settings import Settings
from stream.core.errors import UnreachableError
from stream.web.problems import Problem

log = logging.getLogger(__name__)

MAX_SESSIONS: Final = 4
#: seconds a call waits for a session, and the longest statement of one
WAIT: Final = 3.0
STATEMENT_TIMEOUT: Final = "15s"
#: seconds after which an unused session is closed
MAX_IDLE: Final = 60.0


def open_pool(settings: Settings) -> ConnectionPool[Connection]:
    """A pool without sessions; the first call opens one."""

    class Session(psycopg.Connection[Any]):
        @classmethod
        def connect(cls, *_: Any, **__: Any) -> Connection:  # type: ignore[override]
            return connect(settings.require_database(), "http", settings={"statement_timeout": STATEMENT_TIMEOUT})

    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)  # each caller logs its own failure
    return ConnectionPool(
        connection_class=Session,
        min_size=0,
        max_size=MAX_SESSIONS,
        open=True,
        check=ConnectionPool.check_connection,
        timeout=WAIT,
        max_idle=MAX_IDLE,
        reconnect_timeout=WAIT,
    )


@contextmanager
def lend(pool: ConnectionPool[Connection]) -> Iterator[Connection]:
    """A session in autocommit mode. Problem 503 where none is free in time; UnreachableError where it breaks."""
    try:
        with pool.connection() as connection:
            yield connection
    except PoolTimeout:
        raise Problem(
            503,
            "No session with the database is free: too many calls ask at once, or it can't be reached. "
            "Try again in a moment.",
            {"Retry-After": "2"},
        ) from None
    except psycopg.OperationalError as error:
        log.warning("A call's session failed: %s", error)
        raise UnreachableError("The database did not answer.", "Try again in a moment.") from error
