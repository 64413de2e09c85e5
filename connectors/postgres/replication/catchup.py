"""Catching up without the walsender: a far backlog is read by SQL, which is faster.

A walsender sends every message with a system call of its own. A COPY does not: the slot is copied to a temporary one,
and its changes come as rows of a COPY, some 400,000 messages a round and 4,096 a row, for each row costs us a call. A
round is held here and the next one asked for before it is handed on: so the server decodes while we fold. Consuming
the copy loses nothing, for only the real slot protects data; it is moved on at the end, to what is confirmed by then.
The slot is free meanwhile: a second reader would be wasteful and harmless, because flushes are fenced.

Source: PostgreSQL documentation, "Replication Management Functions", and "COPY" for the binary format. A round comes as
many values: none meets the limit of 1 GB, and of a huge transaction no more than `_HOLD` is held. See
docs/design/catch-up.md.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from typing import Any, Final

import psycopg
from psycopg import pq, sql

from connectors.postgres.catalog.slots import find_slot
from connectors.postgres.replication.slot import drop
from connectors.postgres.replication.walsender import NOTHING, Chunk, quoted, readable
from stream.core.position import lsn_text

log = logging.getLogger("sentstream.catchup")

#: messages of one round, which ends with a transaction
_ROUND: Final = 400_000
#: messages of one row; they are joined by the server
_ROW: Final = 4_096
#: a round that brought fewer rows was the last: the rest is the walsender's
_LAST: Final = 50_000 // _ROW
#: bytes of a round that are held until it is over; what is more is handed on as it comes
_HOLD: Final = 24 << 20
_GULP: Final = 1 << 20
#: 'PGCOPY' and its flags, before the first row; then a row: number of fields (2 bytes), length (4), the messages
_COPY_HEADER: Final = 19
_ROW_HEADER: Final = 6

_CHANGES = sql.SQL(
    "COPY (SELECT string_agg(data, '' ORDER BY n) FROM pg_logical_slot_get_binary_changes({slot}, {upto}, {most},"
    " 'proto_version', '1', 'publication_names', {publication}, 'binary', 'true')"
    " WITH ORDINALITY AS changes (lsn, xid, data, n) GROUP BY n / {row} ORDER BY n / {row}) TO STDOUT (FORMAT binary)"
)


class Catchup:
    """A source of chunks like a walsender, that ends: ``finished`` turns true where the walsender should go on."""

    def __init__(self, connection: psycopg.Connection[Any], slot: str, publication: str) -> None:
        self._connection = connection
        self._pg = connection.pgconn
        self._slot = slot
        self._copy = f"{slot[:40]}_catchup_{os.getpid()}"
        self._publication = quoted(publication)
        self._confirmed = 0
        self._state = "idle"
        self._first = True
        self._count = 0
        self._held: deque[bytes] = deque()
        self._size = 0
        self._over = False

    @property
    def finished(self) -> bool:
        """Whether the rest is the walsender's."""
        return self._over and not self._held

    def begin(self) -> int:
        """Copy the slot, and ask for the first round; the copy's confirmed LSN, where reading begins."""
        self._connection.execute("SET work_mem = '32MB'")
        self._connection.execute(
            "SELECT pg_copy_logical_replication_slot(%s::name, %s::name, true)", (self._slot, self._copy)
        )
        copied = find_slot(self._connection, self._copy)
        assert copied is not None
        self._ask()
        return copied.confirmed

    # ---- reading ------------------------------------------------------------------------------------------------

    def chunk(self, wait: float) -> Chunk:
        """Whole messages, as one block of about a megabyte; nothing where ``wait`` seconds bring none to hand on."""
        ready = self._ready
        if not self._over:
            self._receive(0.0 if ready else wait)
        if not (ready or self._ready):
            return NOTHING
        block = self._held.popleft()
        self._size -= len(block)
        return Chunk(block)

    @property
    def _ready(self) -> bool:
        """Whether what is held may be handed on: its round is over, or too large to be held."""
        return bool(self._held) and (self._state != "rows" or self._size >= _HOLD)

    def _receive(self, wait: float) -> None:
        """Take what the server has sent, up to a chunk. At the end of a round, ask for the next."""
        pg = self._pg
        if self._state == "asked":
            if pg.is_busy():
                if readable(pg.socket, wait):
                    pg.consume_input()
                return
            self._expect(pq.ExecStatus.COPY_OUT)
            self._state, self._first = "rows", True
        blocks = self._rows()
        if not blocks and self._state == "rows" and readable(pg.socket, wait):
            pg.consume_input()
            blocks = self._rows()
        if blocks:
            self._held.append(b"".join(blocks))
            self._size += len(self._held[-1])
        if self._state == "idle" and not self._over:
            self._ask()

    def _ask(self) -> None:
        row = self._connection.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
        assert row is not None
        statement = _CHANGES.format(
            slot=sql.Literal(self._copy),
            upto=sql.Literal(row[0]),
            most=sql.Literal(_ROUND),
            row=sql.Literal(_ROW),
            publication=sql.Literal(self._publication),
        )
        self._pg.send_query(statement.as_bytes(self._connection))
        self._state, self._count = "asked", 0

    def _rows(self) -> list[Any]:
        """The messages that libpq has, up to a chunk; the end of a round turns the state."""
        get, blocks, size = self._pg.get_copy_data, list[Any](), 0
        while size < _GULP:
            length, data = get(1)
            if length > 0:
                if self._first:
                    data, self._first = data[_COPY_HEADER:], False
                if len(data) > _ROW_HEADER:
                    blocks.append(data[_ROW_HEADER:])
                    self._count += 1
                size += length
            elif length == 0:
                break
            else:
                self._expect(pq.ExecStatus.COMMAND_OK)
                while self._pg.get_result() is not None:
                    pass
                self._state = "idle"
                self._over = self._count < _LAST
                break
            if readable(self._pg.socket, 0):
                self._pg.consume_input()
        return blocks

    def _expect(self, status: pq.ExecStatus) -> None:
        result = self._pg.get_result()
        if result is None or result.status != status:
            said = result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) if result is not None else None
            raise psycopg.OperationalError(f"catching up failed: {(said or b'no reason given').decode()}")

    # ---- confirming ---------------------------------------------------------------------------------------------

    def feedback(self, received: int, confirmed: int, *, ask: bool = False) -> None:
        """Remember what is confirmed; the real slot is moved at the end, for each move makes the server read again."""
        del received, ask
        self._confirmed = max(self._confirmed, confirmed)

    def close(self) -> None:
        """Move the real slot to what is confirmed, and leave; the copy goes with the session."""
        try:
            if self._state == "idle" and self._confirmed:
                drop(self._connection, self._copy)
                self._connection.execute(
                    "SELECT pg_replication_slot_advance(%s::name, %s::pg_lsn) FROM pg_replication_slots"
                    " WHERE slot_name = %s::text AND confirmed_flush_lsn < %s::pg_lsn",
                    (self._slot, lsn_text(self._confirmed), self._slot, lsn_text(self._confirmed)),
                )
        except psycopg.Error as error:
            log.debug("the slot %s was not moved: %s", self._slot, error)
        finally:
            self._connection.close()
