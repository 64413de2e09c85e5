"""The role `read`: WAL -> transactions -> batches -> Kafka -> confirm.

One thread does all of it, round after round: process acknowledgements, confirm what every partition has, read more if
there is room, send the batches. So nothing is confirmed before it is acknowledged, memory is bounded by what may be in
flight, and the server gets feedback whether or not there is room to read.

A failure ends the session. The next one begins at the slot's confirmed LSN and sends again what was not acknowledged;
workers drop repetitions. See docs/design/batches.md and docs/design/modes.md.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from connectors.kafka.cluster import BrokerUnreachableError, Cluster
from connectors.kafka.publish import Publisher, PublishError, last_ends
from connectors.kafka.topics import Names, ensure, require
from connectors.postgres.connect import connect
from connectors.postgres.store.partitions import Store
from stream.config.settings import Settings
from stream.core.batch import Batcher
from stream.core.errors import FencedError
from stream.core.pace import BEHIND_FLUSH, CUT, FAR_BEHIND, TICK
from stream.core.partitioner import partition_of
from stream.core.position import Position, lsn_text
from stream.kafka.role_metrics import reader_families, reader_health
from stream.kafka.state import ReaderState
from stream.metrics import endpoint
from stream.metrics.families import Page
from stream.pipeline.epochs import EnteredEpoch, enter_epoch
from stream.pipeline.sessions import run_sessions
from stream.pipeline.wal_options import WalOptions, wal_options
from stream.pipeline.wal_reader import Opened, WalReader
from stream.service import failpoints, gc_tuning
from stream.service.failpoints import failpoint
from stream.service.signals import CurrentSettings, until_signalled
from stream.service.watchdog import Watchdog, end_with, restart

log = logging.getLogger("sentstream.reader")

#: seconds without a round after which only a restart helps; the server may be silent for two minutes while it decodes
STUCK: Final = 180.0
#: seconds between two attempts to reach a broker, or to find a topic, at most
_BROKER_PAUSE: Final = 5.0
#: seconds that a stop waits for acknowledgements; what comes later is sent again by the next reader
_LAST_WAIT: Final = 8.0


@dataclass(frozen=True, slots=True)
class ReaderOptions:
    """``topic``: of changes; ``in_flight``: bytes not yet acknowledged at which reading pauses."""

    wal: WalOptions
    cluster: Cluster
    topic: str
    partitions: int
    in_flight: int = 32 << 20


class ReaderSession:
    """One life: ``run`` returns when ``stop`` is set, all acknowledged and confirmed, and raises what ended it
    otherwise. ``progress``: called once a round."""

    def __init__(
        self,
        options: ReaderOptions,
        stop: threading.Event,
        state: ReaderState | None = None,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        self._options = options
        self._stop = stop
        self._progress = progress
        self._reader = WalReader(options.wal)
        self.state = state if state is not None else ReaderState()
        self.opened_at: float | None = None

    def run(self) -> None:
        try:
            with _noting_the_broker(self.state):
                self._run()
        finally:
            self._reader.close()

    def _run(self) -> None:
        options, state = self._options, self.state
        state.waiting_for_slot = True
        opened = self._reader.open(self._stop)
        if opened is None:
            return
        state.waiting_for_slot = False
        entered = self._enter_epoch(opened)
        begin = Position(opened.begin)
        with Publisher(
            options.cluster,
            options.topic,
            options.partitions,
            begin,
            in_flight=options.in_flight,
            failpoint=failpoint,
        ) as publisher:
            state.sessions += 1
            state.confirmed, self.opened_at = opened.begin, time.monotonic()
            log.info(
                "reading from %s in epoch %d into %d partitions of %s, %.1f MB of WAL behind",
                lsn_text(opened.begin),
                entered.epoch,
                options.partitions,
                options.topic,
                (opened.server.wal_end - opened.begin) / 1e6,
            )
            self._loop(entered.epoch, begin, publisher)
            if publisher.drain(_LAST_WAIT):
                self._confirm(publisher)
            else:
                log.warning("stopping with %d bytes not acknowledged; they are sent again", publisher.in_flight)

    def _enter_epoch(self, opened: Opened) -> EnteredEpoch:
        options = self._options
        ends = last_ends(options.cluster, options.topic, options.partitions)
        store = Store(options.wal.mailer_schema)
        with connect(options.wal.database_url, "epoch", settings={"lock_timeout": "10s"}) as connection:
            return enter_epoch(
                store,
                connection,
                opened.server,
                opened.begin,
                options.partitions,
                partial(partition_of, partitions=options.partitions),
                ends,
            )

    def _loop(self, epoch: int, begin: Position, publisher: Publisher) -> None:
        reader, state, options = self._reader, self.state, self._options
        batcher = Batcher(epoch, begin, options.partitions, partial(partition_of, partitions=options.partitions))
        cut_at = ticked_at = time.monotonic()
        end, as_of, ticked = begin, 0, False
        while not (self._stop.is_set() or reader.finished):
            publisher.poll()
            self._confirm(publisher)
            self._progress()
            if not publisher.room:
                reader.tell()
                publisher.wait(0.1)
                continue
            now = time.monotonic()
            wait = max(0.0, (cut_at + CUT if batcher.waiting else ticked_at + TICK) - now)
            read = reader.read(min(wait, 0.25) if publisher.idle else min(wait, 0.02))
            state.caught_up = not reader.catching_up or reader.finished
            batches = batcher.add(read.transactions)
            state.entries += sum(len(transaction.entries) for transaction in read.transactions)
            if not reader.in_transaction:
                end = Position(read.end)
            as_of = read.as_of or as_of
            now = time.monotonic()
            state.behind = reader.behind
            if now - ticked_at >= TICK or (as_of and not ticked):  # the first news at once
                batches += batcher.cut(end, as_of)
                cut_at, ticked_at, ticked = now, now, True
            elif now - cut_at >= (BEHIND_FLUSH if reader.behind > FAR_BEHIND else CUT):
                batches += batcher.cut(end, as_of, idle=False)
                cut_at = now
            for batch in batches:
                publisher.send(batch)
            if batches:
                failpoint("after_send")
        for batch in batcher.cut(end, as_of):
            publisher.send(batch)

    def _confirm(self, publisher: Publisher) -> None:
        state = self.state
        state.in_flight, state.records, state.bytes = publisher.in_flight, publisher.records, publisher.bytes
        state.broker_away_since = publisher.oldest
        durable = publisher.durable.lsn
        if durable > state.confirmed:
            failpoint("before_confirm")
            self._reader.confirm(durable)
            state.confirmed = durable
            failpoint("after_confirm")


@contextmanager
def _noting_the_broker(state: ReaderState) -> Iterator[None]:
    """Keep the state told since when the broker is away: where something else ends a session, it is not known to be."""
    began, away = time.monotonic(), False
    try:
        yield
    except (BrokerUnreachableError, PublishError):
        away = True
        raise
    finally:
        state.broker_away_since = (state.broker_away_since or began) if away else None


def options_of(settings: Settings) -> ReaderOptions:
    """What the settings say of the reader."""
    names = Names(settings.kafka_topic_prefix)
    return ReaderOptions(wal_options(settings), Cluster.of(settings), names.changes, settings.kafka_partitions)


class Reader:
    """The sessions, one after the other, until ``stop`` is set."""

    def __init__(self, settings: Callable[[], Settings]) -> None:
        self._settings = settings
        self.stop = threading.Event()
        self.state = ReaderState()
        self._required = False
        #: when the loop last went round, monotonic seconds
        self.round_at = time.monotonic()

    def run(self) -> None:
        """Raises what another attempt can't cure; at the first attempt also that PostgreSQL can't be reached. A broker
        is waited for."""
        run_sessions(
            self._session,
            self.stop,
            longest_pause=self._longest_pause,
            on_pause=self._went_round,
            retried=(FencedError, PublishError, BrokerUnreachableError),
        )

    def _longest_pause(self) -> float:
        longest = self._settings().reconnect_max
        return longest if self.state.broker_away_since is None else min(longest, _BROKER_PAUSE)

    def _session(self) -> ReaderSession:
        settings = self._settings()
        if not self._required:
            with _noting_the_broker(self.state):
                require(ensure(settings, create_missing=False))
            self._required = True
        options = options_of(settings)
        if not self.state.caught_up:  # reading by SQL failed: the walsender does it as well
            options = replace(options, wal=replace(options.wal, catchup=0))
        self.state.caught_up = True
        return ReaderSession(options, self.stop, self.state, self._went_round)

    def _went_round(self) -> None:
        self.round_at = time.monotonic()

    def has_work(self) -> str | None:
        """What a reader whose loop stands still should be doing."""
        return None if self.state.waiting_for_slot else "its loop should go round several times a second"


def run(settings: Settings, reload: Callable[[], Settings] | None = None, *, parent: int = 0, stalls: int = 0) -> int:
    """The role `read`, until SIGTERM or Ctrl-C; then everything sent is acknowledged and confirmed, and it returns 0.

    ``parent``: a process with which to end; ``stalls``: how often it has started itself anew.
    """
    now = CurrentSettings(settings, reload)
    failpoints.arm(settings.failpoints)
    reader = Reader(now)
    page = Page(lambda: reader_families(reader.state, stalls))
    page.add_process()
    shown = endpoint.start(
        settings,
        page.text,
        lambda: reader_health(reader.state, reader.round_at, max(STUCK, now().stall_restart)),
    )
    if parent:
        end_with(parent)
    watchdog = Watchdog(
        lambda: reader.round_at, reader.has_work, lambda: now().stall_restart, lambda why: restart(why, stalls)
    )
    with until_signalled(reader.stop, now.reload):
        watchdog.start()
        try:
            gc_tuning.apply()
            reader.run()
        finally:
            watchdog.stop()
            if shown is not None:
                shown.close()
    log.info("acknowledged and confirmed up to %s; bye", lsn_text(reader.state.confirmed))
    return 0
