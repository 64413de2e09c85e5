"""One connection of the simulated mailer: transactions that enter the book once they are committed.

When the connection is lost in the middle of a transaction, it is not known whether that was committed. The session
connects again, makes sure that its old backend has ended, and reads the tables again: no other process changes those
rows, so a difference is what that transaction did. (Its id would not tell: after a crash PostgreSQL assigns ids again
that no WAL record holds.)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final, TypeVar

import psycopg
from psycopg import Connection, Cursor, sql
from psycopg.rows import TupleRow, tuple_row

from stream.core.errors import UnreachableError
from stream.demo.mailer import statements as say

T = TypeVar("T")

#: enters a committed transaction into the book
Settle = Callable[[], None]
#: runs the statements of a transaction
Work = Callable[[Cursor[TupleRow]], Settle]

#: deadlocks and serialization failures in a row before an act is given up
_RETRIES: Final = 20


class Session:
    """``conn`` is in autocommit mode, and used by this session only.

    ``url``: where to connect again when the connection is lost; empty: then its loss is an error. ``patience``: seconds
    until a server that stays away is an error, too. ``read_again``: called after a loss, to read what the tables say
    (of every sender's campaigns, where its second value is true).
    """

    def __init__(self, conn: Connection[Any], *, schema: str, url: str = "", patience: float = 60.0) -> None:
        self.read_again: Callable[[Cursor[TupleRow], bool], None] = lambda _cursor, _whole: None
        self.losses = 0
        self._url = url
        self._schema = schema
        self._patience = patience
        self._conn: Connection[Any]
        self._backend: tuple[int, datetime]
        self.cursor: Cursor[TupleRow]
        self._use(conn)

    def close(self) -> None:
        """Ends the connection."""
        self._conn.close()

    def commit(self, work: Work, *, whole: bool = False) -> bool:
        """Runs ``work`` in a transaction, and what it returns once that is committed; for a transaction that ``work``
        rolls back itself, nothing. ``whole``: it changes campaigns of every sender, while all of them stand still.

        True: it went as told. False: the connection was lost; the tables were read again, and tell what became of it.
        """
        for attempt in range(_RETRIES + 1):
            settle = None
            try:
                with self._conn.transaction():
                    settle = work(self.cursor)
            except (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure):
                if attempt == _RETRIES:
                    raise
                continue
            except psycopg.OperationalError as error:
                self._come_back(error, whole=whole)
                return False
            except psycopg.Rollback:  # comes out where the connection was lost before the rollback
                self._come_back(psycopg.OperationalError("the connection was lost"), whole=whole)
                return False
            if settle is not None:
                settle()
            return True
        raise AssertionError("unreachable")

    def one(self, statement: str, values: Sequence[object]) -> int | None:
        """One statement that is a transaction of its own. Returns how many rows it took; None as `commit`'s False."""
        try:
            return self.cursor.execute(statement, values, prepare=True).rowcount
        except psycopg.OperationalError as error:
            self._come_back(error)
            return None

    def rows(self, statement: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """What a query finds; nothing where the connection was lost meanwhile."""
        return self.ask(lambda _conn: self.cursor.execute(statement, values or None).fetchall(), [])

    def ask(self, question: Callable[[Connection[Any]], T], lost: T) -> T:
        """What ``question`` finds by this connection; ``lost`` where it was lost meanwhile."""
        try:
            return question(self._conn)
        except psycopg.OperationalError as error:
            self._come_back(error)
            return lost

    def _come_back(self, error: psycopg.OperationalError, *, whole: bool = False) -> None:
        if not self._conn.closed or not self._url:
            raise error
        self.losses += 1
        deadline = time.monotonic() + self._patience
        old = self._backend
        while True:
            try:
                self._conn.close()
                self._use(psycopg.connect(self._url, autocommit=True))
                while self.cursor.execute(say.END_BACKEND, old).fetchone() is not None:
                    time.sleep(0.02)
                self.read_again(self.cursor, whole)
            except psycopg.OperationalError as again:
                if time.monotonic() > deadline:
                    raise UnreachableError(
                        f"The simulated mailer lost PostgreSQL and did not find it again: {again}.",
                        "Start the server again.",
                    ) from error
                time.sleep(0.1)
            else:
                return

    def _use(self, conn: Connection[Any]) -> None:
        self._conn = conn
        self.cursor = conn.cursor(row_factory=tuple_row)
        ((pid, started),) = self.cursor.execute(say.BACKEND).fetchall()
        self._backend = (pid, started)
        self.cursor.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(self._schema)))


def value(cursor: Cursor[TupleRow]) -> Any:
    """The one value that a query gives."""
    row = cursor.fetchone()
    assert row is not None
    return row[0]
