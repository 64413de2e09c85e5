"""One session of the embedded mode: takes the slot, loads the partition, then two threads work until one of them fails.

    this thread    WAL -> transactions -> batch -> partition (under the lock), feedback
    flush thread   takes what changed (under the lock), writes it in one transaction, says what may be confirmed

A failure of either ends the session; its memory is dropped, and the next one begins at the slot's confirmed LSN with
what PostgreSQL holds. So a lost answer to a commit, a restored database or another owner of the watermark need no case
of their own. See docs/design/modes.md.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import psycopg

from connectors.postgres.connect import connect, writing_role
from connectors.postgres.store.partitions import Store
from connectors.postgres.store.times import timestamp
from stream.core.batch import Batcher
from stream.core.committed import CommittedFlush, FlushListener, of_flush, of_progress
from stream.core.entries import Transaction
from stream.core.errors import FencedError
from stream.core.flushing import Flush
from stream.core.pace import FlushPace, Waiting
from stream.core.partition import Outcome, Partition, Policy
from stream.core.position import Position, lsn_text
from stream.core.verdict import NEW_EPOCH
from stream.metrics.observed import FlushMetrics
from stream.metrics.states import EmbeddedState
from stream.pipeline.epochs import enter_epoch
from stream.pipeline.flush import write
from stream.pipeline.wal_options import WalOptions
from stream.pipeline.wal_reader import Opened, WalReader
from stream.service.failpoints import failpoint

log = logging.getLogger("sentstream.session")

_READ_WAIT = 0.25
#: how long a process that is stopped in the middle of a flush holds its locks
_SESSION = {"lock_timeout": "10s", "idle_in_transaction_session_timeout": "5s"}


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """``interval``: seconds between flushes while counts change (FLUSH_INTERVAL)."""

    wal: WalOptions
    policy: Policy = "keep"
    write_back: bool = True
    interval: Callable[[], float] = lambda: 0.1


class Session:
    """``run`` returns when ``stop`` is set, and raises what ended the session otherwise.

    ``on_status``: called with (campaign, status before, status now) as the WAL shows them; ``on_unbased``: called when
    a baseline is due. Both are called from the reading thread and must not block.
    """

    def __init__(
        self,
        options: SessionOptions,
        feed: FlushListener,
        stop: threading.Event,
        on_status: Callable[[int, str, str], None] = lambda *_: None,
        on_unbased: Callable[[], None] = lambda: None,
        state: EmbeddedState | None = None,
        metrics: FlushMetrics | None = None,
    ) -> None:
        self._options = options
        self._feed = feed
        self._state = EmbeddedState() if state is None else state
        self._metrics = FlushMetrics() if metrics is None else metrics
        self._stop = stop
        self._on_status = on_status
        self._on_unbased = on_unbased
        self._reader = WalReader(options.wal)
        self._store = Store(options.wal.mailer_schema, failpoint)
        self._partition = Partition(0, options.policy, options.write_back)
        self._lock = threading.Lock()
        self._work = threading.Event()  # wakes the flush thread
        self._ended = threading.Event()
        self._failure: BaseException | None = None
        #: when it took the slot, monotonic seconds, and where the server's WAL ended then; None before
        self.opened_at: float | None = None
        self.backlog_end: int | None = None
        #: the position last written
        self.written = Position(0)
        #: false while, or if it ended while, a backlog was read by SQL
        self.caught_up = True
        self.flushes = 0

    @property
    def is_live(self) -> bool:
        """Whether it has the slot and reads from the walsender: a backlog is read by SQL before that."""
        return self.opened_at is not None and not self._reader.catching_up

    @property
    def slot_holder(self) -> str:
        """The holder of the slot that we wait for; "" while we don't wait for it."""
        return self._reader.holder

    def run(self) -> None:
        try:
            opened = self._reader.open(self._stop)
            if opened is None:
                return
            role = writing_role("flush", write_back=self._options.write_back)
            with connect(self._options.wal.database_url, role, settings=_SESSION) as connection:
                self._load(connection, opened)
                flusher = threading.Thread(target=self._flush_loop, args=(connection,), name="flush", daemon=True)
                flusher.start()
                try:
                    self._read_loop(opened)
                finally:
                    self._state.connected = False
                    self._ended.set()
                    self._work.set()
                    flusher.join(timeout=10)
                if self._failure is not None:
                    raise self._failure
        finally:
            self._reader.close()

    # ---- beginning ----------------------------------------------------------------------------------------------

    def _load(self, connection: psycopg.Connection[Any], opened: Opened) -> None:
        store = self._store
        entered = enter_epoch(store, connection, opened.server, opened.begin, 1, _one)
        because = NEW_EPOCH if entered.began and not entered.first else None
        loaded = store.load(connection, 0, _one)
        self._partition.load(loaded, because)
        self.written = loaded.position
        if opened.begin > loaded.position.lsn:
            log.warning(
                "the slot begins at %s, beyond %s, up to where counts are written: a new baseline is due",
                lsn_text(opened.begin),
                lsn_text(loaded.position.lsn),
            )
        self.backlog_end = opened.server.wal_end
        self.opened_at = time.monotonic()
        self._state.sessions += 1
        self._state.connected = True
        self._tell_all(loaded.as_of)
        log.info(
            "reading from %s in epoch %d, %s of WAL behind; %d campaigns loaded, written up to %s, %s",
            lsn_text(opened.begin),
            loaded.epoch,
            f"{(opened.server.wal_end - opened.begin) / 1e6:.1f} MB",
            len(loaded.rows),
            lsn_text(loaded.position.lsn),
            "based" if loaded.based else "not based yet",
        )

    def _tell_all(self, as_of: int) -> None:
        partition = self._partition
        rows = tuple(of_progress(row) for row in partition.snapshot())
        self._feed.flushed(
            CommittedFlush(partition.epoch, 0, partition.position, timestamp(as_of), partition.based, rows, whole=True)
        )

    # ---- reading ------------------------------------------------------------------------------------------------

    def _read_loop(self, opened: Opened) -> None:
        reader, partition = self._reader, self._partition
        batcher = Batcher(partition.epoch, Position(opened.begin))
        told_unbased = False
        while not (self._stop.is_set() or self._ended.is_set() or reader.finished):
            read = reader.read(_READ_WAIT)
            self.caught_up = not reader.catching_up or reader.finished
            batches = batcher.add(read.transactions)
            self._saw(read.transactions, len(batches))
            if not reader.in_transaction or read.transactions:
                batches += batcher.cut(None if reader.in_transaction else Position(read.end), read.as_of)
            if not batches:
                continue
            failpoint("before_apply")
            with self._lock:
                for batch in batches:
                    if partition.apply(batch) is Outcome.NEW_EPOCH:
                        raise FencedError("a newer epoch began.")
                changes, partition.status_changes = partition.status_changes, []
                wake = partition.dirty or self._arrived
                unbased = not partition.based
            if wake:
                self._work.set()
            if unbased and not told_unbased:
                self._on_unbased()
            told_unbased = unbased
            for change in changes:
                self._on_status(*change)

    def _saw(self, transactions: list[Transaction], batches: int) -> None:
        """For metrics and health."""
        state = self._state
        state.round_at = time.monotonic()
        state.behind = self._reader.behind
        state.entries += sum(len(transaction.entries) for transaction in transactions)
        state.batches += batches

    # ---- flushing -----------------------------------------------------------------------------------------------

    def _flush_loop(self, connection: psycopg.Connection[Any]) -> None:
        try:
            pace = FlushPace(self._options.interval())
            while not self._ended.is_set():
                now = time.monotonic()
                with self._lock:
                    waiting = self._waiting()
                if not pace.due(now, waiting):
                    self._work.wait(pace.wait(now, waiting))
                    self._work.clear()
                    continue
                pace = FlushPace(self._options.interval(), now)
                self._flush(connection)
            with self._lock:
                waiting = self._waiting()
            if waiting.dirty or waiting.moved:
                self._flush(connection)  # the last one, on the way out
        except BaseException as error:  # raised again by the reading thread
            if self._ended.is_set():
                log.warning("the last flush was not written: %s", error)
            if self._failure is None:
                self._failure = error
            self._ended.set()

    @property
    def _arrived(self) -> bool:
        """Whether the backlog is read, and not written yet. That counts as a change: fresh starts and `run --once` wait
        for it."""
        return self.written.lsn < (self.backlog_end or 0) <= self._partition.position.lsn

    def _waiting(self) -> Waiting:
        partition = self._partition
        return Waiting(
            partition.dirty or self._arrived,
            partition.position != self.written,
            partition.due_at(),
            self._reader.behind,
        )

    def _flush(self, connection: psycopg.Connection[Any]) -> None:
        began = time.monotonic()
        with self._lock:
            flush = self._partition.take(began)
        (result,) = write(self._store, connection, [flush], self._metrics.retried)
        if result is None:
            self._metrics.fenced()
            raise FencedError("another process moved the watermark.", "The partition is loaded again.")
        with self._lock:
            self._partition.flushed(flush, result, time.monotonic())
        self.written = flush.position
        self.flushes += 1
        self._metrics.observe(time.monotonic() - began, len(flush.rows))
        self._state.confirmed = flush.position.lsn
        failpoint("before_confirm")
        self._reader.confirm(flush.position.lsn)
        failpoint("after_confirm")
        self._say(flush, result.verdicts)
        for overwritten in result.overwritten:
            log.warning(
                "campaigns.sent of campaign %d was overwritten with %d; it shows %d again",
                overwritten.campaign,
                overwritten.found,
                overwritten.written,
            )

    def _say(self, flush: Flush, verdicts: tuple[Any, ...]) -> None:
        if not (flush.empty and flush.as_of == 0):
            self._feed.flushed(of_flush(replace(flush, verdicts=verdicts)))


def _one(campaign: int) -> int:
    """Embedded, there is one partition."""
    del campaign
    return 0
