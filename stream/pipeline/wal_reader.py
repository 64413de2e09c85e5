"""The WAL as transactions: slot, walsender, fold and alignment put together, for both modes.

Opening takes the slot (waiting where another reader holds it), reads which transactions have written to the mailer's
tables, and then the snapshot H of the alignment, and says where reading begins. Then :meth:`WalReader.read` returns
what was folded. :mod:`stream.pipeline.server_watch` asks the server beside it.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import Any, Final

import psycopg

from connectors.postgres.catalog.conformance import STANDBY
from connectors.postgres.connect import connect, connect_replication
from connectors.postgres.replication import slot as slots
from connectors.postgres.replication.catchup import Catchup
from connectors.postgres.replication.walsender import PublicationMissingError, Walsender
from stream.core.align import Alignment
from stream.core.entries import Transaction
from stream.core.epoch import Server
from stream.core.errors import PreconditionError, SentstreamError, UncountableError, UnreachableError
from stream.core.fold import Fold
from stream.core.pace import TICK
from stream.core.relations import Tables
from stream.pipeline.server_watch import ServerWatch, conform
from stream.pipeline.slot_taker import SlotTaker
from stream.pipeline.wal_options import WalOptions
from stream.service.failpoints import failpoint

log = logging.getLogger("sentstream.wal")

#: a stream that says nothing for so long is dead: a living one answers our question every two seconds. Long, for a
#: server that decodes a huge transaction may not look up for a while.
SILENCE: Final = 120.0
_FEEDBACK_EVERY: Final = 1.0
_CONFIRM_EVERY: Final = 0.2

_ROLES: Final = """
SELECT c.oid::bigint, CASE WHEN c.relname = 'email_queue' THEN 'queue' ELSE c.relname::text END
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE (n.nspname, c.relname) IN ((%(mailer)s::name, 'email_queue'), (%(mailer)s::name, 'campaigns'),
                                 ('sentstream', 'watermarks'), ('sentstream', 'recounts'))"""


@dataclass(frozen=True, slots=True)
class Opened:
    """``begin``: the slot's confirmed LSN, where reading begins; ``server``: who it is, and where its WAL ends."""

    begin: int
    server: Server


@dataclass(frozen=True, slots=True)
class Read:
    """``transactions``: those that moved something; ``end``: all that committed before it has been read; ``as_of``: the
    time up to which all is contained, microseconds since 1970, 0 where nothing new is known."""

    transactions: list[Transaction]
    end: int
    as_of: int


class WalReader:
    """One life of a replication connection."""

    def __init__(self, options: WalOptions) -> None:
        self._options = options
        self._fold = Fold()
        self._control: psycopg.Connection[Any] | None = None
        self._source: Walsender | Catchup | None = None
        self._alignment: Alignment | None = None
        self._watch: ServerWatch | None = None
        self._wal_end = 0
        self._received = self._confirmed = self._told = 0
        self._fed_at = self._heard_at = 0.0
        self._asked_at = float("-inf")
        self._taker: SlotTaker | None = None
        self._mark: slots.Clock | None = None

    @property
    def holder(self) -> str:
        """Which session has the slot that we wait for; "" while we don't wait."""
        return self._taker.holder if self._taker is not None else ""

    @property
    def behind(self) -> int:
        """Bytes of WAL not read yet, by the server's last word."""
        return max(0, self._wal_end - self._received)

    @property
    def catching_up(self) -> bool:
        """Whether the backlog is read by SQL."""
        return isinstance(self._source, Catchup)

    @property
    def finished(self) -> bool:
        """Whether this reader has done what it can: after a backlog was read by SQL, the next one reads live."""
        return self._source is not None and self._source.finished

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is half read."""
        return self._fold.open

    # ---- opening ------------------------------------------------------------------------------------------------

    def open(self, stop: threading.Event) -> Opened | None:
        """Take the slot; None where ``stop`` was set while another reader held it.

        :exc:`PreconditionError` where the database is not as ``setup`` leaves it, :exc:`UnreachableError` where it is
        a standby.
        """
        options = self._options
        control = self._control = connect(options.database_url, "control", settings={"statement_timeout": "30s"})
        if control.info.parameter_status("in_hot_standby") == "on":
            raise UnreachableError(STANDBY.finding, STANDBY.fix)
        conform(control, options)
        self._fold = Fold(Tables(options.mailer_schema, roles=_read_roles(control, options.mailer_schema)))
        walsender = self._source = Walsender(connect_replication(options.database_url))
        system = walsender.identify()
        self._taker = SlotTaker(options, control, walsender)
        taken = self._taker.take(stop)
        if taken is None:
            return None
        self._source, begin = taken.source, taken.begin
        # In this order: a writer that is not among them has ended by then, and H sees it.
        writers = slots.writers(control, options.mailer_schema)
        self._alignment = Alignment(slots.snapshot(control), [w.xid for w in writers if not w.idle])
        clock = slots.clock(control)
        self._received = self._confirmed = self._told = begin
        self._wal_end = clock.wal_end
        self._mark = clock  # the first news needs no tick
        self._heard_at = time.monotonic()
        self._watch = ServerWatch(control, options)
        self._watch.start()
        return Opened(begin, Server(system.identifier, system.timeline, clock.wal_end, system.forks))

    # ---- reading ------------------------------------------------------------------------------------------------

    def read(self, wait: float) -> Read:
        """What arrives within ``wait`` seconds; also keeps the server told (feedback) and asked (its position)."""
        source, alignment, watch, fold = self._source, self._alignment, self._watch, self._fold
        assert source is not None
        assert alignment is not None
        assert watch is not None
        try:
            chunk = source.chunk(wait)
        except PublicationMissingError as error:
            self._past_the_publication(error)
            raise
        now = time.monotonic()
        transactions: list[Transaction] = []
        if chunk.block:
            failpoint("before_fold")
            try:
                transactions = alignment.follow(fold.block(chunk.block))
            except (UncountableError, PreconditionError) as error:
                raise self._passable(error) from error
            failpoint("after_fold")
        if chunk.block or chunk.wal_end:
            self._heard_at = now
        elif now - self._heard_at > SILENCE and not self.catching_up:
            raise psycopg.OperationalError(f"the server has said nothing for {SILENCE:.0f} seconds")
        if fold.end > self._received:
            self._received = fold.end
        if chunk.wal_end > self._received and not fold.open:
            self._received = chunk.wal_end
        self._obey(watch, alignment)
        as_of = fold.time if transactions else 0
        if self._mark is not None and self._received >= self._mark.wal_end and not fold.open:
            as_of = max(as_of, self._mark.time)
            self._mark = None
        self._tell(source, now, chunk.wants_reply)
        return Read(transactions, self._received, as_of)

    def _passable(self, error: SentstreamError) -> SentstreamError:
        """With the way past it: a correction takes nothing out of the WAL, which would be read again."""
        over = f"SELECT pg_replication_slot_advance('{self._options.slot}', pg_current_wal_insert_lsn());"
        past = f"pass over what is in the WAL with {over} and start again: everything is counted anew then."
        if isinstance(error, UncountableError):
            fix = f"Nothing from its transaction on is confirmed. Correct all such rows, {past}"
        else:
            fix = f"{error.fix} Where `setup` has nothing to do any more, {past}"
        return type(error)(error.what, fix)

    def _past_the_publication(self, error: PublicationMissingError) -> None:
        """The publication was made anew, and the slot stands before that: it can only be given up and made anew as
        well, which the gap rule then cures. Where there still is no publication, that is the error."""
        options = self._options
        assert self._source is not None
        self._source.close()
        with connect(options.database_url, "control") as connection:
            conform(connection, options)
            if not options.temporary:
                slots.drop(connection, options.slot)
        raise UnreachableError(f"{error.what} The slot {options.slot} is made anew.") from error

    def _obey(self, watch: ServerWatch, alignment: Alignment) -> None:
        """Take over what the watch has found since."""
        if watch.failure is not None:
            raise watch.failure
        clock = watch.take_clock()
        if clock is not None:
            self._wal_end = clock.wal_end
            if self._mark is None:
                self._mark = clock
        seen = watch.take_seen()
        if seen is not None:
            alignment.forget(seen)
        settled = watch.take_settled()
        if settled is not None:
            alignment.settle(*settled)
        watch.unsettled = alignment.unsettled

    def _tell(self, source: Walsender | Catchup, now: float, wants_reply: bool) -> None:
        ask = self._mark is not None and now - self._asked_at >= TICK / 4
        since = now - self._fed_at
        if not (
            ask or wants_reply or since >= _FEEDBACK_EVERY or (self._confirmed > self._told and since >= _CONFIRM_EVERY)
        ):
            return
        source.feedback(self._received, self._confirmed, ask=ask)
        self._told, self._fed_at = self._confirmed, now
        if ask:
            self._asked_at = now

    def tell(self) -> None:
        """Send feedback without reading on, where there is no room for more. Raises what the watch found."""
        assert self._source is not None
        assert self._watch is not None
        if self._watch.failure is not None:
            raise self._watch.failure
        self._tell(self._source, time.monotonic(), False)

    def confirm(self, lsn: int) -> None:
        """All below ``lsn`` is durable; the next feedback tells the server. May be called from another thread."""
        self._confirmed = max(self._confirmed, lsn)

    def close(self) -> None:
        """Tell the server what is confirmed, and leave. Never raises."""
        if self._watch is not None:
            self._watch.stop()
        try:
            if self._source is not None:
                if self._confirmed > self._told:
                    self._source.feedback(self._received, self._confirmed)
                self._source.close()
        except psycopg.Error as error:
            log.debug("closing the replication connection: %s", error)
        if self._control is not None:
            self._control.close()


def _read_roles(connection: psycopg.Connection[Any], mailer_schema: str) -> dict[int, str]:
    """oid -> role of the tables that are read: they keep it whatever their name is for a moment."""
    return dict(connection.execute(_ROLES, {"mailer": mailer_schema}).fetchall())
