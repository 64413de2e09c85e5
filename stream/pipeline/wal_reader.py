"""The WAL as transactions: slot, walsender, fold and alignment put together, for whichever shape reads it.

Opening takes the slot (waiting where another reader holds it), reads which transactions have written to the mailer's
tables, and then the snapshot H of the alignment, and says where reading begins. Then :meth:`WalReader.read` returns
what was folded; a small thread beside it asks the server every two seconds for its time and the end of its WAL, whether
publication and identities are still as ``setup`` made them, and periodically for a snapshot by which old transactions
are forgotten.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

import psycopg

from connectors.postgres.catalog.conformance import STANDBY, check
from connectors.postgres.catalog.slots import Slot, find_slot
from connectors.postgres.connect import connect, connect_replication
from connectors.postgres.replication import slot as slots
from connectors.postgres.replication.catchup import Catchup
from connectors.postgres.replication.walsender import PublicationMissingError, SlotBusyError, Walsender
from stream.config.sources import Settings
from stream.core.align import Alignment, Snapshot
from stream.core.entries import Transaction
from stream.core.epoch import Server
from stream.core.errors import PreconditionError, SentstreamError, UncountableError, UnreachableError
from stream.core.fold import Fold
from stream.core.pace import TICK
from stream.core.relations import Tables
from stream.service.failpoints import failpoint

log = logging.getLogger("sentstream.wal")

#: a stream that says nothing for so long is dead: a living one answers our question every two seconds. Long, for a
#: server that decodes a huge transaction may not look up for a while.
SILENCE: Final = 120.0
_SNAPSHOT_EVERY: Final = 10.0
_FEEDBACK_EVERY: Final = 1.0
_CONFIRM_EVERY: Final = 0.2


@dataclass(frozen=True, slots=True)
class WalOptions:
    """``memory``: seconds that a recount may last; what is younger than that is remembered for its alignment.
    ``catchup``: bytes of WAL behind which a permanent slot is read by SQL first; 0: never."""

    database_url: str
    slot: str = "sentstream"
    publication: str = "sentstream"
    mailer_schema: str = "public"
    temporary: bool = False
    memory: float = 300.0
    catchup: int = 0


def wal_options(settings: Settings) -> WalOptions:
    """What the settings say of reading the WAL."""
    return WalOptions(
        settings.database_url,
        settings.slot_name,
        settings.publication,
        settings.mailer_schema,
        settings.slot_kind == "temporary",
        settings.recount_timeout + settings.recount_lock_timeout,
        settings.catchup_threshold,
    )


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
        self._fold = Fold(Tables(options.mailer_schema))
        self._control: psycopg.Connection[Any] | None = None
        self._source: Walsender | Catchup | None = None
        self._alignment: Alignment | None = None
        self._watch: _Watch | None = None
        self._wal_end = 0
        self._received = self._confirmed = self._told = 0
        self._fed_at = self._heard_at = 0.0
        self._asked_at = float("-inf")
        #: who has the slot that we wait for; "" while we don't
        self.holder = ""
        self._mark: slots.Clock | None = None

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
        walsender = self._source = Walsender(connect_replication(options.database_url))
        system = walsender.identify()
        begin = self._take_slot(control, walsender, stop)
        if begin is None:
            return None
        # In this order: a writer that is not among them has ended by then, and H sees it.
        writers = slots.writers(control, options.mailer_schema)
        self._alignment = Alignment(slots.snapshot(control), [w.xid for w in writers if not w.idle])
        clock = slots.clock(control)
        self._received = self._confirmed = self._told = begin
        self._wal_end = clock.wal_end
        self._mark = clock  # the first news needs no tick
        self._heard_at = time.monotonic()
        self._watch = _Watch(control, options)
        self._watch.start()
        return Opened(begin, Server(system.identifier, system.timeline, clock.wal_end, system.forks))

    def _take_slot(self, control: psycopg.Connection[Any], walsender: Walsender, stop: threading.Event) -> int | None:
        """The slot's confirmed LSN, once it is ours; None where ``stop`` was set before."""
        options, told = self._options, 0.0
        while not stop.is_set():
            holder = self._holder(control)
            if holder is None:
                self.holder = ""
                try:
                    if options.temporary:
                        walsender.create_temporary_slot(options.slot)
                    else:
                        slot, done = slots.ensure(control, options.slot)
                        if done:
                            log.warning("%s; counts start from a new baseline", done)
                        begin = self._begin_catchup(control, slot)
                        if begin is not None:
                            walsender.close()
                            return begin
                    walsender.start(options.slot, options.publication)
                    taken = find_slot(control, options.slot)
                    if taken is None:
                        raise UnreachableError(f"the slot {options.slot} vanished as it was taken.")
                    return taken.confirmed
                except SlotBusyError as error:
                    holder = str(error)
            self.holder = holder
            if time.monotonic() - told > 60:
                told = time.monotonic()
                log.info("waiting for the slot %s: %s", options.slot, holder)
            stop.wait(0.5)
        return None

    def _begin_catchup(self, control: psycopg.Connection[Any], slot: Slot) -> int | None:
        """Read the backlog by SQL first, where the slot is far behind: the copy's confirmed LSN, else None."""
        options = self._options
        if not options.catchup:
            return None
        behind = slots.clock(control).wal_end - slot.confirmed
        if behind < options.catchup:
            return None
        source = Catchup(connect(options.database_url, "catchup"), options.slot, options.publication)
        try:
            begin = source.begin()
        except psycopg.Error as error:  # no slot left, or no right to copy: the walsender does it as well
            log.info("the backlog is read by the walsender: %s", str(error).strip().splitlines()[0])
            source.close()
            return None
        log.info("%.0f MB of WAL behind: catching up by SQL", behind / 1e6)
        self._source = source
        return begin

    def _holder(self, control: psycopg.Connection[Any]) -> str | None:
        slot = find_slot(control, self._options.slot)
        if slot is None:
            return None
        if self._options.temporary and not slot.temporary:
            raise PreconditionError(
                f"SLOT_KIND is temporary, but a permanent slot {slot.name} is there and pins WAL.",
                f"Drop it (SELECT pg_drop_replication_slot('{slot.name}')), or set SLOT_KIND=permanent.",
            )
        slots.check_ours(slot)
        if slot.active_pid is None:
            return None
        row = control.execute(
            "SELECT application_name, coalesce(host(client_addr), 'local'), backend_start::text"
            " FROM pg_stat_activity WHERE pid = %s::int",
            (slot.active_pid,),
        ).fetchone()
        who = f" ({row[0]} from {row[1]} since {row[2]})" if row else ""
        return f"it is active for PID {slot.active_pid}{who}"

    # ---- reading ------------------------------------------------------------------------------------------------

    def read(self, wait: float) -> Read:
        """What arrives within ``wait`` seconds; also keeps the server told (feedback) and asked (its position)."""
        source, alignment, watch, fold = self._source, self._alignment, self._watch, self._fold
        assert source is not None
        assert alignment is not None
        assert watch is not None
        try:
            gulp = source.gulp(wait)
        except PublicationMissingError as error:
            self._past_the_publication(error)
            raise
        now = time.monotonic()
        transactions: list[Transaction] = []
        if gulp.block:
            failpoint("before_fold")
            try:
                transactions = alignment.follow(fold.block(gulp.block))
            except (UncountableError, PreconditionError) as error:
                raise self._passable(error) from error
            failpoint("after_fold")
        if gulp.block or gulp.wal_end:
            self._heard_at = now
        elif now - self._heard_at > SILENCE and not self.catching_up:
            raise psycopg.OperationalError(f"the server has said nothing for {SILENCE:.0f} seconds")
        if fold.end > self._received:
            self._received = fold.end
        if gulp.wal_end > self._received and not fold.open:
            self._received = gulp.wal_end
        self._obey(watch, alignment)
        as_of = fold.time if transactions else 0
        if self._mark is not None and self._received >= self._mark.wal_end and not fold.open:
            as_of = max(as_of, self._mark.time)
            self._mark = None
        self._tell(source, now, gulp.wants_reply)
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

    def _obey(self, watch: _Watch, alignment: Alignment) -> None:
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
        """Keep the server told without reading on: for whoever has no room for more. Raises what the watch found."""
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


def conform(connection: psycopg.Connection[Any], options: WalOptions) -> None:
    """:exc:`PreconditionError` where publication or identities are not as ``setup`` made them."""
    differences = check(connection, options.publication, options.mailer_schema)
    if differences:
        raise PreconditionError("; ".join(difference.finding for difference in differences), differences[0].fix)


class _Watch(threading.Thread):
    """Asks the server, so that the reading thread never waits for an answer."""

    def __init__(self, control: psycopg.Connection[Any], options: WalOptions) -> None:
        super().__init__(name="watch", daemon=True)
        self._connection = control
        self._options = options
        self._stopped = threading.Event()
        self._clocks: deque[slots.Clock] = deque(maxlen=1)
        self._seen: deque[Snapshot] = deque(maxlen=1)
        self._snapshots: deque[tuple[float, Snapshot]] = deque()
        self._settled: deque[tuple[list[int], Snapshot]] = deque(maxlen=1)
        #: whether the alignment waits to learn which writers were not committing when it began
        self.unsettled = False
        self.failure: Exception | None = None

    def take_clock(self) -> slots.Clock | None:
        return self._clocks.popleft() if self._clocks else None

    def take_seen(self) -> Snapshot | None:
        return self._seen.popleft() if self._seen else None

    def take_settled(self) -> tuple[list[int], Snapshot] | None:
        return self._settled.popleft() if self._settled else None

    def stop(self) -> None:
        self._stopped.set()
        self._connection.cancel_safe(timeout=1)
        self.join(timeout=5)

    def run(self) -> None:
        asked = conformed = float("-inf")
        # Twice a tick: what a flush writes every tick is then at most one and a half ticks old, and never stale.
        while not self._stopped.wait(TICK / 2):
            try:
                now = time.monotonic()
                if now - conformed >= TICK * 0.9:
                    conformed = now
                    conform(self._connection, self._options)
                self._clocks.append(slots.clock(self._connection))
                if self.unsettled:
                    idle = [w.xid for w in slots.writers(self._connection, self._options.mailer_schema) if w.idle]
                    self._settled.append((idle, slots.snapshot(self._connection)))
                if now - asked >= _SNAPSHOT_EVERY:
                    asked = now
                    self._remember(now)
            except Exception as error:  # handed to the reading thread, which ends on it
                if not self._stopped.is_set():
                    self.failure = error
                return

    def _remember(self, now: float) -> None:
        """H becomes the newest snapshot that is older than any recount may last."""
        self._snapshots.append((now, slots.snapshot(self._connection)))
        old = None
        while self._snapshots and now - self._snapshots[0][0] > self._options.memory:
            old = self._snapshots.popleft()[1]
        if old is not None:
            self._seen.append(old)
