"""The role `work`: applies the records of the changes topic and writes the counts, as a Faust app.

- The agent offers each record to the state of its partition, and waits while that is not loaded or too much is pending.
- The flusher writes what changed in all partitions in one transaction, then acknowledges the records in it.
- Publications go to the topics ``progress`` and ``verdicts`` after the flush, in a task of their own.

Faust brings group membership, partitions and offsets; the counts come from PostgreSQL alone. A partition is loaded from
there when it is assigned, records are acknowledged after the flush that contains them, and each flush is fenced by the
partition's watermark. The agent raises nothing: it waits for the database, and a record that can't be decoded is
reported and its partition counted anew. See docs/design/modes.md and docs/design/faust.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from aiokafka.errors import KafkaError
from faust.exceptions import ConsumerNotStarted
from faust.types import TP

from connectors.kafka.members import started_at
from stream.core.errors import ConfigurationError, SentstreamError
from stream.kafka import faust_patches
from stream.kafka.app import Callbacks, make_app
from stream.kafka.assignment import AssignedPartition, Assignment, Record, RecordOutcome
from stream.kafka.database import Database
from stream.kafka.flusher import Flusher
from stream.kafka.loading import Loader
from stream.kafka.options import WorkerOptions
from stream.kafka.publications import Publications
from stream.kafka.state import WorkerState
from stream.metrics.observed import FlushMetrics
from stream.service import gc_tuning

log = logging.getLogger("sentstream.worker")

#: seconds that leaving may take: flush, acknowledge, commit
LEAVING: Final = 8.0
#: seconds between two questions to the broker, and for the answer to one
_BROKER_EVERY: Final = 3.0
_BROKER_PATIENCE: Final = 5.0


class Worker:
    """The Faust app and the parts it drives. Created inside the event loop that runs it."""

    def __init__(self, options: WorkerOptions, state: WorkerState | None = None) -> None:
        self.options = options
        self.state = state if state is not None else WorkerState()
        self.metrics = FlushMetrics()
        #: an error that trying again can't cure
        self.failure: BaseException | None = None
        self._failed = asyncio.Event()
        self._changed = asyncio.Event()  # a partition is loaded, has room again, or is gone
        self._leaving = asyncio.Event()
        self._scratch = tempfile.TemporaryDirectory(prefix="sentstream-work-")
        self._assignment = Assignment(options.names.changes, options.policy, options.write_back)
        self._database = Database(options, self.state, self.metrics.retried)
        self.publications = Publications(options.names, lambda: self._table, self._has)
        self._loader = Loader(options, self._database, self.publications, self.state, self._on_loaded, self._fail)
        self._flusher = Flusher(
            self._assignment,
            self._database,
            self._loader,
            self.publications,
            self.state,
            self.metrics,
            self._changed.set,
        )
        callbacks = Callbacks(
            self._agent,
            (self._flush_loop, self._publish_loop, self._broker_loop),
            self._on_assigned,
            self._on_revoked,
            self._on_shutdown,
        )
        self.app, self._table = make_app(options, self._scratch.name, callbacks)
        self._loop = asyncio.get_event_loop()
        if options.member is not None:
            faust_patches.watch_name(options.member, self._on_name_taken)

    async def run(self, stop: asyncio.Event) -> None:
        """Until ``stop`` is set; then flush, acknowledge, commit. Raises what trying again can't cure."""
        gc_tuning.apply()
        app = self.app
        app.finalize()
        await self._database.check()
        started = asyncio.ensure_future(app.start())
        try:
            waits = {asyncio.ensure_future(event.wait()) for event in (stop, self._failed)}
            crashed = asyncio.ensure_future(app.wait_until_stopped())
            done, _ = await asyncio.wait({*waits, crashed, started}, return_when=asyncio.FIRST_COMPLETED)
            if started in done and started.exception() is None:
                await asyncio.wait({*waits, crashed}, return_when=asyncio.FIRST_COMPLETED)
            for task in (*waits, crashed):
                task.cancel()
        finally:
            self._leaving.set()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(app.stop(), LEAVING * 2)
            started.cancel()
            self._database.close()
            self._loader.close()
        failure = self.failure or app.crash_reason
        if failure is None and started.done() and not started.cancelled():
            failure = started.exception()
        if isinstance(failure, (KafkaError, ConsumerNotStarted)):
            raise self.options.cluster.refused(failure) from failure
        if failure is not None:
            raise failure

    def _fail(self, error: BaseException) -> None:
        if self.failure is None:
            self.failure = error
        self._failed.set()

    async def _on_name_taken(self) -> bool:
        """Another member took our name. Where it started earlier, this worker stops; otherwise this one joins again,
        and the other learns that it is the younger. Runs in the consumer's thread."""
        options = self.options
        find = partial(started_at, options.cluster, options.names.group, options.member or "")
        try:
            other = await asyncio.get_running_loop().run_in_executor(None, find)
        except SentstreamError as error:
            log.debug("which worker has the name %s can't be told: %s", options.member, error)
            return False
        if other is None or other >= options.started_at:
            return False
        failure = ConfigurationError(
            f"Another worker runs under the same KAFKA_INSTANCE ({options.instance}), and it started earlier.",
            "Give each worker a name of its own. This one stops.",
        )
        self._loop.call_soon_threadsafe(self._fail, failure)
        return True

    # ---- assignment ---------------------------------------------------------------------------------------------

    async def _on_assigned(self, _app: Any, /, *assigned: Any, **_: Any) -> None:
        partitions, lost = self._assignment.assign(self._numbers(assigned[0]))
        self._forget(lost)
        self.state.moved_at = time.monotonic()
        log.info("partitions assigned: %s", ", ".join(map(str, self.state.partitions)) or "none")
        self._loader.start(partitions)

    async def _on_revoked(self, _app: Any, /, *revoked: Any, **_: Any) -> None:
        numbers = self._numbers(revoked[0])
        if numbers and not self._leaving.is_set():
            await self._leave()
        self._forget(self._assignment.revoke(numbers))

    def _numbers(self, tps: Any) -> list[int]:
        """The partitions of the changes topic: those of the table's changelog come too."""
        return [tp.partition for tp in tps if tp.topic == self.options.names.changes]

    def _forget(self, lost: list[int]) -> None:
        for number in lost:
            self.publications.forget(number)
            self.state.next_offsets.pop(number, None)
        self.state.partitions = self._assignment.numbers
        self._changed.set()

    def _on_loaded(self) -> None:
        self._changed.set()
        self._flusher.wake()

    def _has(self, number: int) -> Callable[[int], bool] | None:
        """Whether a partition's state has a campaign, as a function; None until the partition has a baseline."""
        held = self._assignment.get(number)
        if held is None or not held.loaded or not held.partition.based:
            return None
        return held.partition.has

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
        held = await self._ready(number)
        if held is None:
            return  # it comes again, to the partition's next owner
        outcome = held.take(record)
        if outcome is RecordOutcome.RELOAD:
            outcome = await self._reload(held, record)
        if outcome is RecordOutcome.SKIPPED:
            outcome = await self._read_again(held, record)
        if outcome is RecordOutcome.SEEN:
            record.token.ack()
            await self._read_on(held, record)
        elif outcome in (RecordOutcome.APPLIED, RecordOutcome.GAP, RecordOutcome.POISON):
            self._applied(held, record, outcome)

    def _applied(self, held: AssignedPartition, record: Record, outcome: RecordOutcome) -> None:
        state = self.state
        state.records += 1
        state.entries_bytes += len(record.value)
        if held.next_offset is not None:
            state.next_offsets[held.number] = held.next_offset
        if outcome is RecordOutcome.GAP:
            state.gaps += 1
            log.warning(
                "partition %d: something before offset %d is lost; the partition is counted anew",
                held.number,
                record.offset,
            )
        elif outcome is RecordOutcome.POISON:
            state.poison += 1
            log.error("%s", held.poisoned)
            held.poisoned = None
        if held.waiting().dirty:
            self._flusher.wake()

    async def _ready(self, number: int) -> AssignedPartition | None:
        """The partition, once it is loaded and there is room for more; None where it is not ours (any more)."""
        while True:
            held = self._assignment.get(number)
            if held is None:
                return None
            self.state.pending_bytes = self._assignment.pending_bytes
            if held.loaded and self.state.pending_bytes < self.options.room:
                return held
            self._changed.clear()
            self._flusher.wake()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), 1.0)

    async def _reload(self, held: AssignedPartition, record: Record) -> RecordOutcome:
        """After a record of an epoch that we do not know. The reader writes an epoch to PostgreSQL before any record
        carries it, so one that is unknown after loading is no reader's."""
        self.state.reloads += 1
        log.info("partition %d: a newer epoch began; loading again", held.number)
        await self._flusher.flush()
        held.loaded = False
        await self._loader.load([held])
        if not held.loaded or held.revoked:
            return RecordOutcome.TWICE
        outcome = held.take(record)
        if outcome is RecordOutcome.RELOAD:
            log.warning("a record of an epoch that PostgreSQL does not know is ignored (offset %d)", record.offset)
            held.ignore(record)
            return RecordOutcome.APPLIED
        return outcome

    async def _read_again(self, held: AssignedPartition, record: Record) -> RecordOutcome:
        """After records that were skipped on their way here: go back to them where the topic still has them."""
        expected = held.next_offset
        assert expected is not None
        tp = TP(self.options.names.changes, held.number)
        first = (await self.app.consumer.earliest_offsets(tp)).get(tp)
        if first is not None and first > expected:
            log.warning(
                "partition %d: offsets %d to %d were deleted from %s before they were read (retention.ms, or a person)",
                *(tp.partition, expected, first - 1, tp.topic),
            )
            return held.take(record, first_kept=record.offset)
        offset = held.seek_back(time.monotonic())
        if offset is not None:
            self.state.skipped += 1
            log.warning("partition %d: offset %d came, %d is next; reading again", tp.partition, record.offset, offset)
            await self.app.consumer.seek(tp, offset)
        return RecordOutcome.TWICE

    async def _read_on(self, held: AssignedPartition, record: Record) -> None:
        """After a record that was written before: the group's offset may have been moved far back."""
        offset = held.seek_forward(record, time.monotonic())
        if offset is not None:
            log.warning(
                "partition %d: offset %d was written long ago; going on at %d", held.number, record.offset, offset
            )
            await self.app.consumer.seek(TP(self.options.names.changes, held.number), offset)

    # ---- tasks --------------------------------------------------------------------------------------------------

    async def _flush_loop(self) -> None:
        try:
            await self._flusher.run(self.options.interval, self._leaving.is_set)
        except SentstreamError as error:
            self._fail(error)

    async def _publish_loop(self) -> None:
        publishing = asyncio.ensure_future(self.publications.run(lambda: faust_patches.producer_of(self.app)))
        leaving = asyncio.ensure_future(self._leaving.wait())
        try:
            await asyncio.wait({publishing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            publishing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await publishing

    async def _broker_loop(self) -> None:
        """Ask the broker now and then: that nothing arrives may mean that nothing happens, or that the broker is
        away."""
        while not self._leaving.is_set():
            asked = time.monotonic()
            try:
                found = await asyncio.wait_for(faust_patches.refresh_metadata(self.app), _BROKER_PATIENCE)
            except asyncio.TimeoutError:
                found = False
            if found and self.state.broker_away_since is not None:
                self.state.moved_at = time.monotonic()  # what waited could not move; from now on it should
            self.state.broker_away_since = None if found else self.state.broker_away_since or asked
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._leaving.wait(), _BROKER_EVERY)

    # ---- leaving ------------------------------------------------------------------------------------------------

    async def _on_shutdown(self, _app: Any, /, *_args: Any, **_: Any) -> None:
        self._leaving.set()
        await self._leave()
        log.info("flushed, acknowledged and committed")

    async def _leave(self) -> None:
        """Flush and commit offsets, within bounds: what is not committed is delivered again, which is harmless."""

        async def leave() -> None:
            await self._flusher.flush(last=True)
            await self.app.consumer.commit()
            with contextlib.suppress(Exception):  # the counts are written; publishing is best effort here
                await asyncio.wait_for(self.publications.publish(faust_patches.producer_of(self.app)), 2)

        try:
            await asyncio.wait_for(leave(), LEAVING)
        except asyncio.TimeoutError:
            log.warning("leaving without a last flush or commit: no answer within %.0f s", LEAVING)
        except SentstreamError as error:
            self._fail(error)
