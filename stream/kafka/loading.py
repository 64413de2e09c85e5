"""Loading partitions: from PostgreSQL when they are assigned and whenever the outcome of a flush is unknown.

After a load a partition is published whole; then the topic of progress is read once, for campaigns that it still shows
and that are gone (``stream.core.tombstones``).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from connectors.kafka.live_keys import live_campaigns
from connectors.postgres.store.times import timestamp
from stream.core.committed import CommittedFlush, of_progress
from stream.core.pace import Backoff
from stream.core.partition import Loaded
from stream.core.position import lsn_text
from stream.kafka.assignment import AssignedPartition
from stream.kafka.database import AWAY, Database, Flow
from stream.kafka.options import WorkerOptions
from stream.kafka.publications import Publications
from stream.kafka.state import WorkerState

log = logging.getLogger("sentstream.worker")


class Loader:
    """``on_loaded``: called after each load; ``fail``: called with an error that trying again can't cure."""

    def __init__(
        self,
        options: WorkerOptions,
        database: Database,
        publications: Publications,
        state: WorkerState,
        on_loaded: Callable[[], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        self._options = options
        self._database = database
        self._publications = publications
        self._state = state
        self._on_loaded = on_loaded
        self._fail = fail
        self._tasks: set[asyncio.Task[None]] = set()
        self._topic_thread = ThreadPoolExecutor(1, thread_name_prefix="topic")  # reads one partition at a time
        self._topic_unread = False
        self._closed = False

    def start(self, partitions: Iterable[AssignedPartition]) -> None:
        """Load these partitions, in a task."""
        self._spawn(self.load(partitions))

    def again(self, partitions: Iterable[AssignedPartition]) -> None:
        """Load these once more, in a task; what is pending is applied again then."""
        partitions = list(partitions)
        for held in partitions:
            held.loaded = False
        self._state.reloads += len(partitions)
        self.start(partitions)

    async def load(self, partitions: Iterable[AssignedPartition]) -> None:
        """Load these partitions; returns when all that are still ours are loaded."""
        backoff = Backoff(first=0.2, most=self._options.reconnect_max)
        waiting = list(partitions)
        while True:
            waiting = [held for held in waiting if not (held.revoked or held.loaded)]
            try:
                async with self._database.lock:
                    while waiting:
                        loaded, flows, wal_end = await self._database.load(waiting[0].number)
                        self._loaded(waiting.pop(0), loaded, flows, wal_end)
                return
            except LookupError as error:
                if type(error) is not LookupError:  # an IndexError or KeyError is a fault, not a missing watermark
                    self._fail(error)
                    return
                log.info("%s yet: the reader writes it when it begins", error)
            except AWAY:
                pass  # the database has logged it
            except Exception as error:  # an exception in a task of its own would go unnoticed
                self._fail(error)
                return
            backoff = backoff.failed()
            await asyncio.sleep(backoff.pause)

    def close(self) -> None:
        self._closed = True
        self._topic_thread.shutdown(wait=False, cancel_futures=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _loaded(self, held: AssignedPartition, loaded: Loaded, flows: list[Flow], wal_end: int) -> None:
        if held.revoked:
            return
        for record in held.load(loaded, wal_end):
            record.token.ack()
        if held.poisoned is not None:
            self._state.poison += 1
            log.error("%s", held.poisoned)
            held.poisoned = None
        rows = tuple(of_progress(row) for row in held.partition.snapshot())
        whole = CommittedFlush(
            loaded.epoch, held.number, loaded.position, timestamp(loaded.as_of), loaded.based, rows, whole=True
        )
        self._publications.add(whole, flows)
        self._spawn(self._read_topic(held))
        log.debug(
            "partition %d loaded: epoch %d, written up to %s, %s, next offset %s, %d campaigns",
            held.number,
            loaded.epoch,
            lsn_text(loaded.position.lsn),
            "has a baseline" if loaded.based else "has no baseline yet",
            loaded.next_offset,
            len(rows),
        )
        self._on_loaded()

    async def _read_topic(self, held: AssignedPartition) -> None:
        """Report which campaigns the topic of progress shows. Best effort: after a failure the next load tries
        again."""
        options = self._options
        read = partial(
            live_campaigns,
            options.cluster,
            options.names.progress,
            held.number,
            options.partitions,
            give_up=lambda: self._closed or held.revoked,
        )
        try:
            shown = await asyncio.get_running_loop().run_in_executor(self._topic_thread, read)
        except Exception as error:  # any error of a Kafka client
            if not (self._closed or held.revoked or self._topic_unread):
                self._topic_unread = True
                log.warning(
                    "partition %d of %s can't be searched for campaigns that are gone: %s",
                    held.number,
                    options.names.progress,
                    " ".join(str(error).split()) or type(error).__name__,
                )
            return
        self._topic_unread = False
        if not held.revoked:
            self._publications.shown(held.number, shown)
