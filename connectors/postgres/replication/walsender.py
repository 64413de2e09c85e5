"""Reading the WAL from a walsender, in chunks: drain the socket, return one block.

A walsender sends every message with a system call of its own, and wakes a reader that waits for each. So: wait until
there is something to read, let a little more arrive, take all of it, and hand it on as one block. What is read and
what is confirmed are kept apart: feedback goes out between chunks, at least once a second, and never waits for a flush.

Source: PostgreSQL documentation, "Streaming Replication Protocol". See docs/design/catch-up.md.
"""

from __future__ import annotations

import logging
import select
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import pq

from stream.core.errors import PreconditionError, ProtocolError, UnreachableError
from stream.core.position import parse_lsn

log = logging.getLogger("sentstream.wal")

_FEEDBACK: Final = struct.Struct(">cQQQqB")
_KEEPALIVE: Final = struct.Struct(">cQqB")
#: 'w', start, end and send time stand before the pgoutput message
_HEADER: Final = 25
#: seconds for more to arrive once something has. A walsender whose reader sleeps drains a backlog faster than one whose
#: reader takes each message, and the mailer's sessions feel it less (`benchmarks.drain`, `benchmarks.sender`)
_FILL: Final = 0.02
#: bytes taken at one go, so that feedback and stop are not kept waiting
_GULP: Final = 1 << 20
_EPOCH_2000: Final = 946_684_800.0


@dataclass(frozen=True, slots=True)
class Chunk:
    """``block``: pgoutput messages, one after the other. ``wal_end``: of the last keepalive behind them, 0 if none: all
    that was committed before it has been delivered. ``wants_reply``: the server asked for feedback."""

    block: bytes = b""
    wal_end: int = 0
    wants_reply: bool = False


NOTHING: Final = Chunk()


@dataclass(frozen=True, slots=True)
class System:
    """IDENTIFY_SYSTEM: which cluster, on which timeline. ``forks``: the earlier timelines of its history, each with the
    LSN up to which the history is shared."""

    identifier: str
    timeline: int
    forks: Mapping[int, int]


class PublicationMissingError(PreconditionError):
    """The WAL that is read comes from a time when the publication did not exist: the slot can't get past it."""


class SlotBusyError(UnreachableError):
    """The slot is used by another session: wait, its holder is named."""


class Walsender:
    """A replication connection (``replication=database``), from START_REPLICATION to its end."""

    #: a walsender goes on until it is left
    finished = False

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self._pg = connection.pgconn

    def identify(self) -> System:
        """The server's system identifier, its timeline, and where that forked from earlier ones."""
        result = self._command("IDENTIFY_SYSTEM")
        timeline = int(result.get_value(0, 1) or 0)
        return System((result.get_value(0, 0) or b"").decode(), timeline, self._forks(timeline))

    def _forks(self, timeline: int) -> dict[int, int]:
        """What the timeline's history file says; the first timeline has none, and a file may have been removed."""
        if timeline <= 1:
            return {}
        result = self._pg.exec_(f"TIMELINE_HISTORY {timeline}".encode())
        if result.status != pq.ExecStatus.TUPLES_OK:
            log.info("the history of timeline %d can't be read: %s", timeline, _message(result))
            return {}
        lines = (result.get_value(0, 1) or b"").decode(errors="replace").splitlines()
        words = [line.split() for line in lines if line.strip() and not line.startswith("#")]
        return {int(number): parse_lsn(lsn) for number, lsn, *_ in words}

    def create_temporary_slot(self, slot: str) -> None:
        """A slot that lives as long as this connection."""
        self._command(f"CREATE_REPLICATION_SLOT {quoted(slot)} TEMPORARY LOGICAL pgoutput (SNAPSHOT 'nothing')")

    def start(self, slot: str, publication: str) -> None:
        """START_REPLICATION at the slot's confirmed position.

        :exc:`SlotBusyError` where another session has it; :exc:`PreconditionError` where it can't be read from.
        """
        options = f"proto_version '1', publication_names {literal(quoted(publication))}, binary 'true'"
        result = self._pg.exec_(
            f"START_REPLICATION SLOT {quoted(slot)} LOGICAL 0/0 ({options})".encode(),
        )
        if result.status == pq.ExecStatus.COPY_BOTH:
            return
        self._refused(slot, result)

    def _refused(self, slot: str, result: pq.abc.PGresult) -> None:
        said = _message(result)
        state = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
        if state == "55006":  # object_in_use: replication slot "x" is active for PID n
            raise SlotBusyError(f"{said}.", "It is taken over as soon as that session ends.")
        if state == "42704":  # undefined_object: the slot
            raise PreconditionError(f"{said}.", "Run `sentstream setup`.")
        raise PreconditionError(
            f"the slot {slot} can't be read from: {said}.", "`sentstream doctor` says what is wrong with it."
        )

    def _command(self, command: str) -> pq.abc.PGresult:
        result = self._pg.exec_(command.encode())
        if result.status not in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK):
            raise UnreachableError(
                f"{command.split(maxsplit=1)[0]} failed: {_message(result)}.", "Run `sentstream doctor`."
            )
        return result

    # ---- reading ------------------------------------------------------------------------------------------------

    def chunk(self, wait: float) -> Chunk:
        """What arrives within ``wait`` seconds, as one block; nothing where nothing does.

        :exc:`psycopg.OperationalError` where the connection breaks, :exc:`ProtocolError` for an unknown message.
        """
        pg = self._pg
        size, chunk = self._take()
        if size:  # left over in libpq's buffer
            return chunk
        if not readable(pg.socket, wait):
            return NOTHING
        time.sleep(_FILL)
        taken = 0
        while taken < _GULP:
            pg.consume_input()
            taken += 16 << 10
            if not readable(pg.socket, 0):
                break
        return self._take()[1]

    def _take(self) -> tuple[int, Chunk]:
        """All whole messages that libpq has, up to a chunk."""
        get = self._pg.get_copy_data
        blocks: list[Any] = []
        add = blocks.append
        wal_end, wants_reply, size = 0, False, 0
        while size < _GULP:
            length, data = get(1)
            if length > 0:
                kind = data[0]
                if kind == 0x77:  # w: WAL data
                    add(data[_HEADER:])
                    size += length
                elif kind == 0x6B:  # k: keepalive
                    _, wal_end, _, reply = _KEEPALIVE.unpack_from(data)
                    wants_reply = wants_reply or bool(reply)
                    size += 1
                else:
                    raise ProtocolError(f"unknown replication message of kind {kind:#x}.")
            elif length == 0:
                break
            else:
                self._ended()
        return len(blocks) + bool(wal_end), Chunk(b"".join(blocks), wal_end, wants_reply)

    def _ended(self) -> None:
        """The server ended the stream: say why, as it does."""
        result = self._pg.get_result()
        said = _message(result) if result is not None else ""
        state = result.error_field(pq.DiagnosticField.SQLSTATE) if result is not None else None
        if state == b"42704":  # undefined_object: once a stream runs, only the publication is looked up by name
            raise PublicationMissingError(f"{said}, or did not where the slot reads.", "Run `sentstream setup`.")
        raise psycopg.OperationalError(said or "the server ended the replication stream")

    # ---- feedback -----------------------------------------------------------------------------------------------

    def feedback(self, received: int, confirmed: int, *, ask: bool = False) -> None:
        """Tell the server what was received and what is confirmed (durable here). ``ask``: answer with a keepalive."""
        now = int((time.time() - _EPOCH_2000) * 1e6)
        received = max(received, confirmed)
        message = _FEEDBACK.pack(b"r", received, confirmed, confirmed, now, ask)
        self._pg.put_copy_data(message)
        self._pg.flush()

    def close(self) -> None:
        self._connection.close()


def readable(fd: int, wait: float) -> bool:
    """Whether there is something to read within ``wait`` seconds."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(max(0, int(wait * 1000))))


def _message(result: pq.abc.PGresult) -> str:
    primary = result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY)
    return (primary or b"no reason given").decode(errors="replace")


def quoted(identifier: str) -> str:
    """An identifier for a replication command, which takes no parameters."""
    return '"' + identifier.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A string for a replication command."""
    return "'" + text.replace("'", "''") + "'"
