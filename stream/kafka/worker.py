"""The role `work`: Kafka -> counts -> `campaigns.sent`, as a Faust app.

    the agent        takes each record to the state of its partition, and waits while that is not loaded or has no
    room the flush loop   takes what changed in all partitions, writes it in one transaction (in a thread),
    acknowledges publications     the table, ``progress`` and ``verdicts``, after the flush and apart from it

Faust brings the group, the partitions and the offsets; what counts is believed from PostgreSQL alone. So a
partition is loaded from there when it is assigned, records are acknowledged after the flush that contains them, and
the flush is fenced by the partition's watermark. Nothing raises out of the agent: the database is waited for, a
poisonous record is reported and its partition counted anew. FAUST.md says what was seen of Faust; ``faust_fixes``
puts its faults right.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import faust
import psycopg
from faust.types import TP

from connectors.kafka.cluster import Cluster
from connectors.kafka.codec import Decoder
from connectors.kafka.live_keys import living_campaigns
from connectors.kafka.topics import RECORD_LIMIT, Names
from connectors.postgres.connect import connect
from connectors.postgres.store.partitions import Store
from connectors.postgres.store.times import timestamp
from stream.core.committed import CommittedFlush, of_flush, of_progress
from stream.core.errors import SentstreamError, UnreachableError
from stream.core.flushing import Flush, FlushResult
from stream.core.pace import Backoff, FlushPace, Waiting
from stream.core.partition import Loaded, Policy
from stream.core.partitioner import partition_of
from stream.core.position import lsn_text
from stream.kafka import faust_patches
from stream.kafka.assignment import AssignedPartition, Record, RecordOutcome
from stream.kafka.publications import Publications
from stream.kafka.state import WorkerState
from stream.metrics.observed import FlushMetrics
from stream.pipeline.flush import write
from stream.service import gc_tuning
from stream.service.failpoints import failpoint

log = logging.getLogger("sentstream.worker")

#: seconds between two seeks back to where a gap begins
_SEEK_EVERY: Final = 2.0
#: records seen already that are read and dropped rather than jumped over
_JUMP: Final = 2000
#: seconds that leaving may take: flush, acknowledge, commit
LEAVING: Final = 8.0
#: a worker that is stopped in the middle of a flush holds the locks of it no longer than this
_SESSION: Final = {"lock_timeout": "10s", "idle_in_transaction_session_timeout": "5s"}
#: records that wait for a partition to be loaded are few, but of up to half a megabyte
_BUFFER: Final = 32


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """``instance``: name of a static member, empty: none; ``room``: bytes of records applied and not yet written at
    which a worker stops taking more; ``interval``: seconds between flushes while counts change."""

    database_url: str
    cluster: Cluster
    names: Names = field(default_factory=Names)
    partitions: int = 12
    mailer_schema: str = "public"
    policy: Policy = "keep"
    write_back: bool = True
    instance: str = ""
    room: int = 64 << 20
    reconnect_max: float = 30.0
    interval: Callable[[], float] = lambda: 0.1

    @property
    def member(self) -> str | None:
        """The static member's name in its group. A member that comes back under its name gets the partitions that it
        had, without a rebalance: where their number changed it must be another, or the new ones have no owner."""
        return f"{self.instance}.{self.partitions}" if self.instance else None


class Worker:
    """The Faust app and what it holds. Made inside the event loop that runs it."""

    def __init__(self, options: WorkerOptions, state: WorkerState | None = None) -> None:
        self.options = options
        self.state = state if state is not None else WorkerState()
        self.metrics = FlushMetrics()
        #: set by what can't be cured by trying again
        self.failure: BaseException | None = None
        self.failed = asyncio.Event()
        self._decoder = Decoder()
        self._store = Store(options.mailer_schema, failpoint)
        self._assigned: dict[int, AssignedPartition] = {}
        self._loads: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()  # a partition is loaded, has room again, or is gone
        self._work = asyncio.Event()  # the flush loop has a reason to look
        self._seeks: dict[int, float] = {}
        self._database = ThreadPoolExecutor(1, thread_name_prefix="database")
        self._topic = ThreadPoolExecutor(1, thread_name_prefix="topic")  # one partition of the topic is read at a time
        self._topic_unread = False
        self._connection: psycopg.Connection[Any] | None = None
        self._writing = asyncio.Lock()
        self._leaving = False
        self._left = asyncio.Event()
        self.app = self._app()
        self.publications = Publications(options.names, lambda: self._table, self._has)

    # ---- the app ------------------------------------------------------------------------------------------------

    def _app(self) -> faust.App:
        options = self.options
        # Faust makes its folders even where nothing is kept in them; by default in the current directory
        self._scratch = tempfile.TemporaryDirectory(prefix="sentstream-work-")
        app = faust.App(
            options.names.group,
            **options.cluster.faust(),
            **faust_patches.settings(),
            autodiscover=False,
            store="memory://",
            datadir=self._scratch.name,
            broker_client_id="sentstream-work",
            broker_session_timeout=10,
            broker_heartbeat_interval=2,
            broker_request_timeout=30,
            broker_commit_interval=0.5,
            broker_max_poll_records=200,
            consumer_max_fetch_size=1 << 20,
            consumer_auto_offset_reset="earliest",
            consumer_group_instance_id=options.member,
            producer_linger=0.005,
            producer_compression_type="lz4",
            producer_acks=-1,
            producer_max_request_size=RECORD_LIMIT,
            stream_buffer_maxsize=_BUFFER,
            stream_wait_empty=False,
            stream_recovery_delay=0,
            table_standby_replicas=0,
            reply_create_topic=False,
            topic_allow_declare=False,  # setup makes the topics, as far as anybody may
            topic_disable_leader=True,
            web_enabled=False,
        )
        faust_patches.install(app)
        changes = app.topic(options.names.changes, key_type=bytes, value_type=bytes, value_serializer="raw")
        progress = app.topic(options.names.progress, key_type=bytes, value_type=bytes, value_serializer="raw")
        self._table = app.Table(
            "progress",
            partitions=options.partitions,
            key_type=bytes,
            value_type=bytes,
            use_partitioner=True,
            changelog_topic=progress,
        )
        app.agent(changes, concurrency=1, name="changes")(self._agent)
        app.task(self._flush_loop)
        app.task(self._publish_loop)
        app.on_partitions_assigned.connect(self._on_assigned)
        app.on_partitions_revoked.connect(self._on_revoked)
        app.on_before_shutdown.connect(self._on_shutdown)
        return app

    async def run(self, stop: asyncio.Event) -> None:
        """Until ``stop`` is set; then flush, acknowledge, commit. Raises what can't be cured by trying again."""
        gc_tuning.apply()
        app = self.app
        app.finalize()
        await self._first_contact()
        started = asyncio.ensure_future(app.start())
        try:
            waits = {asyncio.ensure_future(e.wait()) for e in (stop, self.failed)}
            crashed = asyncio.ensure_future(app.wait_until_stopped())
            done, _ = await asyncio.wait({*waits, crashed, started}, return_when=asyncio.FIRST_COMPLETED)
            if started in done and started.exception() is None:
                await asyncio.wait({*waits, crashed}, return_when=asyncio.FIRST_COMPLETED)
            for task in (*waits, crashed):
                task.cancel()
        finally:
            self._leaving = True
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(app.stop(), LEAVING * 2)
            started.cancel()
            self._database.shutdown(wait=False, cancel_futures=True)
            self._topic.shutdown(wait=False, cancel_futures=True)
        failure = self.failure or app.crash_reason
        if failure is None and started.done() and not started.cancelled():
            failure = started.exception()
        if failure is not None:
            raise failure

    async def _first_contact(self) -> None:
        """A database that can't be reached, or is not set up, is told before the group is joined."""
        await self._in_database(self._connect)

    # ---- assignment ---------------------------------------------------------------------------------------------

    async def _on_assigned(self, _app: Any, /, *assigned: Any, **_: Any) -> None:
        numbers = sorted(tp.partition for tp in assigned[0] if tp.topic == self.options.names.changes)
        options = self.options
        for number in numbers:
            before = self._assigned.get(number)
            if before is not None:
                before.revoked = True
            self._assigned[number] = AssignedPartition(
                number, options.names.changes, self._decoder, options.policy, options.write_back
            )
        for number in set(self._assigned) - set(numbers):
            self._give_up(number)
        self.state.partitions = tuple(numbers)
        self.state.moved_at = time.monotonic()
        self._changed.set()
        log.info("partitions assigned: %s", ", ".join(map(str, numbers)) or "none")
        self._spawn(self._load([self._assigned[number] for number in numbers]))

    async def _on_revoked(self, _app: Any, /, *revoked: Any, **_: Any) -> None:
        numbers = [tp.partition for tp in revoked[0] if tp.topic == self.options.names.changes]
        if numbers and not self._leaving:
            await self._leave()
        for number in numbers:
            self._give_up(number)
        self.state.partitions = tuple(sorted(self._assigned))
        self._changed.set()

    def _give_up(self, number: int) -> None:
        state = self._assigned.pop(number, None)
        if state is not None:
            state.revoked = True
            self.publications.forget(number)
            self.state.next_offsets.pop(number, None)

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._loads.add(task)
        task.add_done_callback(self._loads.discard)

    async def _load(self, states: list[AssignedPartition]) -> None:
        """Load partitions from the store of record, for as long as it takes and they are ours."""
        backoff = Backoff(first=0.2, most=self.options.reconnect_max)
        waiting = list(states)
        while waiting:
            waiting = [state for state in waiting if not state.revoked and not state.loaded]
            try:
                async with self._writing:
                    while waiting:
                        loaded, flows = await self._in_database(partial(self._read, waiting[0].number))
                        self._loaded(waiting.pop(0), loaded, flows)
                return
            except LookupError as error:
                if type(error) is not LookupError:  # an IndexError or KeyError is a fault, not a missing watermark
                    self._fail(error)
                    return
                log.info("%s yet: the reader writes it as it begins", error)
            except (UnreachableError, psycopg.Error, OSError) as error:
                self._away(error)
            except Exception as error:  # in a task of its own nobody else would hear of it
                self._fail(error)
                return
            backoff = backoff.failed()
            await asyncio.sleep(backoff.pause)

    def _loaded(self, state: AssignedPartition, loaded: Loaded, flows: list[tuple[int, int, int]]) -> None:
        if state.revoked:
            return
        self.state.database_away_since = None
        self._acknowledge(state.load(loaded))
        partition = state.partition
        rows = tuple(of_progress(row) for row in partition.snapshot())
        whole = CommittedFlush(
            loaded.epoch, state.number, loaded.position, timestamp(loaded.as_of), loaded.based, rows, whole=True
        )
        self.publications.add(whole, flows)
        self._spawn(self._read_topic(state))
        log.debug(
            "partition %d loaded: epoch %d, written up to %s, %s, next offset %s, %d campaigns",
            state.number,
            loaded.epoch,
            lsn_text(loaded.position.lsn),
            "based" if loaded.based else "not based yet",
            loaded.next_offset,
            len(rows),
        )
        self._changed.set()
        self._work.set()

    # ---- what the topic shows -----------------------------------------------------------------------------------

    async def _read_topic(self, state: AssignedPartition) -> None:
        """After a partition was published whole: which campaigns does the topic show? Some may be gone, and whoever
        owed their tombstone died. See ``stream.core.tombstones``. Nothing waits for this, and where it fails the next
        whole publication tries again."""
        options = self.options
        read = partial(
            living_campaigns,
            options.cluster,
            options.names.progress,
            state.number,
            options.partitions,
            give_up=lambda: self._leaving or state.revoked,
        )
        try:
            shown = await asyncio.get_running_loop().run_in_executor(self._topic, read)
        except Exception as error:  # whatever a client raises
            if not (self._leaving or state.revoked or self._topic_unread):
                self._topic_unread = True
                log.warning(
                    "whether partition %d of %s still shows campaigns that are gone can't be told yet: %s",
                    state.number,
                    options.names.progress,
                    " ".join(str(error).split()) or type(error).__name__,
                )
            return
        self._topic_unread = False
        if not state.revoked:
            self.publications.shown(state.number, shown)

    def _has(self, number: int) -> Callable[[int], bool] | None:
        """Whether a partition's state has a campaign; None while nobody can tell who lives."""
        state = self._assigned.get(number)
        if state is None or not state.loaded or not state.partition.based:
            return None
        return state.partition.has

    # ---- records ------------------------------------------------------------------------------------------------

    async def _agent(self, stream: Any) -> None:
        async for event in stream.noack().events():
            message = event.message
            record = Record(message.offset, message.value or b"", event)
            try:
                await self._take(message.partition, record)
            except asyncio.CancelledError:
                raise
            except Exception as error:  # Faust would acknowledge the record and go on without it
                self._fail(error)
                await asyncio.Event().wait()

    async def _take(self, number: int, record: Record) -> None:
        state = await self._ready(number)
        if state is None:
            return  # it comes again, to whoever has the partition
        took = state.take(record)
        if took is RecordOutcome.RELOAD:
            took = await self._newer(state, record)
        if took is RecordOutcome.SKIPPED:
            took = await self._read_again(state, record)
        if took is RecordOutcome.SEEN:
            self._acknowledge([record])
            await self._jump(state, record)
        elif took in (RecordOutcome.APPLIED, RecordOutcome.GAP, RecordOutcome.POISON):
            self.state.records += 1
            self.state.entries_bytes += len(record.value)
            if state.next_offset is not None:
                self.state.next_offsets[number] = state.next_offset
            if took is RecordOutcome.GAP:
                self.state.gaps += 1
                log.warning(
                    "partition %d: something before offset %d is lost; the partition is counted anew",
                    number,
                    record.offset,
                )
            elif took is RecordOutcome.POISON:
                self.state.poison += 1
                log.error("%s", state.poisoned)
            if state.waiting().dirty:
                self._work.set()

    async def _ready(self, number: int) -> AssignedPartition | None:
        """The partition's state, once it is loaded and has room; None where it is not ours (any more)."""
        while True:
            state = self._assigned.get(number)
            if state is None or state.revoked:
                return None
            if state.loaded and self._pending() < self.options.room:
                return state
            self._changed.clear()
            self._work.set()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), 1.0)

    def _pending(self) -> int:
        self.state.pending_bytes = sum(state.size for state in self._assigned.values())
        return self.state.pending_bytes

    async def _newer(self, state: AssignedPartition, record: Record) -> RecordOutcome:
        """A record of an epoch that we do not know: it is in PostgreSQL before it is in Kafka, or it is nobody's."""
        self.state.reloads += 1
        log.info("partition %d: a newer epoch began; loading again", state.number)
        await self._flush()
        state.loaded = False
        await self._load([state])
        if not state.loaded or state.revoked:
            return RecordOutcome.TWICE
        took = state.take(record)
        if took is RecordOutcome.RELOAD:
            log.warning("a record of an epoch that PostgreSQL does not know is ignored (offset %d)", record.offset)
            state.ignore(record)
            return RecordOutcome.APPLIED
        return took

    async def _read_again(self, state: AssignedPartition, record: Record) -> RecordOutcome:
        """Records were skipped on their way here. Where the log still has them, go back; where not, they are lost."""
        expected = state.next_offset
        assert expected is not None
        now = time.monotonic()
        if now - self._seeks.get(state.number, 0.0) < _SEEK_EVERY:
            return RecordOutcome.TWICE
        tp = TP(self.options.names.changes, state.number)
        consumer = self.app.consumer
        first = (await consumer.earliest_offsets(tp)).get(tp)
        if first is not None and first > expected:
            return state.take(record, first_kept=record.offset)
        self.state.skipped += 1
        self._seeks[state.number] = now
        log.warning("partition %d: offset %d came, %d is next; reading again", state.number, record.offset, expected)
        await self._seek(tp, expected)
        return RecordOutcome.TWICE

    async def _jump(self, state: AssignedPartition, record: Record) -> None:
        """Far behind what is written already (somebody moved the group's offsets back): go on where PostgreSQL
        says."""
        expected = state.next_offset
        if expected is None or expected - record.offset < _JUMP:
            return
        now = time.monotonic()
        if now - self._seeks.get(state.number, 0.0) < _SEEK_EVERY:
            return
        self._seeks[state.number] = now
        log.warning(
            "partition %d: offset %d was written long ago; going on at %d", state.number, record.offset, expected
        )
        await self._seek(TP(self.options.names.changes, state.number), expected)

    async def _seek(self, tp: TP, offset: int) -> None:
        consumer = self.app.consumer
        await consumer.seek(tp, offset)
        faust_patches.committed_up_to(consumer, tp, offset)

    # ---- flushing -----------------------------------------------------------------------------------------------

    async def _flush_loop(self) -> None:
        pace = FlushPace(self.options.interval())
        while not self._leaving:
            now = time.monotonic()
            waiting = self._waiting()
            if not pace.due(now, waiting):
                self._work.clear()
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._work.wait(), pace.wait(now, waiting))
                continue
            pace = FlushPace(self.options.interval(), now)
            try:
                await self._flush()
            except SentstreamError as error:
                self._fail(error)
                return

    def _waiting(self) -> Waiting:
        waits = [state.waiting() for state in self._assigned.values() if state.loaded]
        due = [wait.due_at for wait in waits if wait.due_at is not None]
        return Waiting(any(w.dirty for w in waits), any(w.moved for w in waits), min(due, default=None))

    async def _flush(self, *, last: bool = False) -> None:
        """Write what changed, in all partitions, and acknowledge what that contains. ``last``: also watermarks
        alone."""
        async with self._writing:
            now = time.monotonic()
            states = []
            flushes: list[Flush] = []
            for state in self._assigned.values():
                if not state.loaded:
                    continue
                if state.due(now, tick=last):
                    states.append(state)
                    flushes.append(state.flush(now))
            if not flushes:
                return
            try:
                results = await self._in_database(partial(self._write, flushes))
            except (UnreachableError, psycopg.Error, OSError) as error:
                self._away(error)
                self._again(list(self._assigned.values()))
                return
            self.state.flushes += 1
            self.state.flush_seconds = time.monotonic() - now
            self.metrics.observe(self.state.flush_seconds, sum(len(flush.rows) for flush in flushes))
            self.state.database_away_since = None
            self.state.moved_at = time.monotonic()
            fenced = []
            for state, flush, result in zip(states, flushes, results, strict=True):
                if result is None:
                    self.metrics.fenced()
                    fenced.append(state)
                else:
                    self._flushed(state, flush, result)
            self._pending()
            if fenced:
                self.state.fenced += len(fenced)
                self._again(fenced)
        self._changed.set()

    def _flushed(self, state: AssignedPartition, flush: Flush, result: FlushResult) -> None:
        self._acknowledge(state.flushed(flush, result, time.monotonic()))
        flows = [(campaign, minute, n) for (campaign, minute, kind), n in flush.history if kind == "flow"]
        self.publications.add(of_flush(flush), flows)
        for it in result.overwritten:
            log.warning(
                "campaigns.sent of campaign %d was overwritten with %d; it shows %d again",
                it.campaign,
                it.found,
                it.written,
            )

    def _acknowledge(self, records: Iterable[Record]) -> None:
        for record in records:
            record.token.ack()

    def _again(self, states: list[AssignedPartition]) -> None:
        """Load these again; what is pending is applied again then."""
        for state in states:
            state.loaded = False
        self.state.reloads += len(states)
        self._spawn(self._load(states))

    # ---- the database, in its thread ----------------------------------------------------------------------------

    async def _in_database(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._database, work)

    def _connect(self) -> psycopg.Connection[Any]:
        connection = self._connection
        if connection is None or connection.broken or connection.closed:
            connection = connect(self.options.database_url, "work", settings=_SESSION)
            self._connection = connection
        return connection

    def _read(self, number: int) -> tuple[Loaded, list[tuple[int, int, int]]]:
        connection = self._connect()
        try:
            loaded = self._store.load(connection, number, partial(partition_of, partitions=self.options.partitions))
            flows = connection.execute(
                "SELECT h.campaign_id, (extract(epoch FROM h.minute) / 60)::bigint, h.sent FROM sentstream.history h"
                " JOIN sentstream.progress p USING (campaign_id) WHERE h.kind = 'flow' AND p.partition = %s::int"
                " AND h.minute >= now() - interval '2 minutes' ORDER BY h.minute",
                (number,),
            ).fetchall()
            return loaded, flows
        except psycopg.Error:
            self._drop_connection()
            raise

    def _write(self, flushes: list[Flush]) -> list[FlushResult | None]:
        connection = self._connect()
        try:
            return write(self._store, connection, flushes, self.metrics.retried)
        except psycopg.Error:
            self._drop_connection()
            raise

    def _drop_connection(self) -> None:
        """After an error nothing is taken for granted: the server may have been restored meanwhile."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg.Error):
                connection.close()

    def _away(self, error: Exception) -> None:
        if self.state.database_away_since is None:
            self.state.database_away_since = time.monotonic()
            log.warning("the database is waited for: %s", " ".join(str(error).split()) or type(error).__name__)

    # ---- leaving ------------------------------------------------------------------------------------------------

    async def _on_shutdown(self, _app: Any, /, *_args: Any, **_: Any) -> None:
        self._leaving = True
        self._left.set()
        await self._leave()
        log.info("flushed, acknowledged and committed")

    async def _leave(self) -> None:
        """Flush and commit offsets, within bounds: what is not committed comes again, which is harmless."""

        async def leave() -> None:
            await self._flush(last=True)
            await self.app.consumer.commit()
            with contextlib.suppress(Exception):  # the counts are written; what is published lags at most
                await asyncio.wait_for(self.publications.publish(faust_patches.producer_of(self.app)), 2)

        try:
            await asyncio.wait_for(leave(), LEAVING)
        except asyncio.TimeoutError:
            log.warning("leaving without a last flush or commit: no answer within %.0f s", LEAVING)
        except SentstreamError as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if self.failure is None:
            self.failure = error
        self.failed.set()

    async def _publish_loop(self) -> None:
        publishing = asyncio.ensure_future(self.publications.run(lambda: faust_patches.producer_of(self.app)))
        leaving = asyncio.ensure_future(self._left.wait())
        try:
            await asyncio.wait({publishing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            publishing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await publishing
