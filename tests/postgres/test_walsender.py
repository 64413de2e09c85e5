"""What the server refuses is told apart by SQLSTATE: its words may be in any language."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg import pq

from connectors.postgres.replication.walsender import PublicationMissingError, Walsender
from stream.core.errors import PreconditionError


class Refusal:
    """A result of libpq with an SQLSTATE and words of another language."""

    status = pq.ExecStatus.FATAL_ERROR

    def __init__(self, state: bytes) -> None:
        self.state = state

    def error_field(self, field: pq.DiagnosticField) -> bytes:
        words = "Publikation »sentstream« existiert nicht".encode()
        return self.state if field == pq.DiagnosticField.SQLSTATE else words


class Connection:
    """A connection whose server refuses everything."""

    def __init__(self, state: bytes) -> None:
        self.pgconn = self
        self._refusal = Refusal(state)

    def exec_(self, _: bytes) -> Refusal:
        return self._refusal

    def get_copy_data(self, _: int) -> tuple[int, bytes]:
        return -1, b""

    def get_result(self) -> Refusal:
        return self._refusal


def walsender(state: bytes) -> Walsender:
    connection: Any = Connection(state)
    return Walsender(connection)


def test_a_publication_that_is_missing_where_the_slot_reads() -> None:
    with pytest.raises(PublicationMissingError):
        walsender(b"42704").chunk(0)
    with pytest.raises(psycopg.OperationalError):
        walsender(b"57P01").chunk(0)


def test_a_slot_that_is_missing() -> None:
    with pytest.raises(PreconditionError, match="sentstream setup"):
        walsender(b"42704").start("slot", "publication")
