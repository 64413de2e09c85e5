"""Flushing: writes what changed in all partitions in one transaction, then acknowledges the records it contains."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from stream.core.committed import of_flush
from stream.core.flushing import Flush, FlushResult
from stream.core.pace import FlushPace
from stream.kafka.assignment import AssignedPartition, Assignment
from stream.kafka.database import AWAY, REFUSED, Database
from stream.kafka.loading import Loader
from stream.kafka.publications import Publications
from stream.kafka.state import WorkerState
from stream.metrics.observed import FlushMetrics

log = logging.getLogger("sentstream.worker")

Taken = tuple[AssignedPartition, Flush]


class Flusher:
    """``on_flushed``: called after each flush, as pending records were let go."""

    def __init__(
        self,
        assignment: Assignment,
        database: Database,
        loader: Loader,
        publications: Publications,
        state: WorkerState,
        metrics: FlushMetrics,
        on_flushed: Callable[[], None],
    ) -> None:
        self._assignment = assignment
        self._database = database
        self._loader = loader
        self._publications = publications
        self._state = state
        self._metrics = metrics
        self._on_flushed = on_flushed
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Something is to be written: the loop looks at once."""
        self._woken.set()

    async def run(self, interval: Callable[[], float], over: Callable[[], bool]) -> None:
        """Flush whenever a flush is due, until ``over``. ``interval``: seconds between two."""
        pace = FlushPace(interval())
        while not over():
            now = time.monotonic()
            waiting = self._assignment.waiting()
            if pace.due(now, waiting):
                pace = FlushPace(interval(), now)
                await self.flush()
                continue
            self._woken.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._woken.wait(), pace.wait(now, waiting))

    async def flush(self, *, last: bool = False) -> None:
        """One flush, where anything is due. ``last``: including watermarks that moved within the tick.

        Where its outcome is unknown, or a partition was fenced off, partitions are loaded again.
        """
        async with self._database.lock:
            began = time.monotonic()
            taken = self._assignment.flush(began, last=last)
            if not taken:
                return
            try:
                taken, results = await self._write(taken)
            except AWAY:
                self._loader.again(self._assignment)
                return
            now = time.monotonic()
            self._state.flushes += 1
            self._state.moved_at = now
            self._metrics.observe(now - began, sum(len(flush.rows) for _, flush in taken))
            fenced = []
            for (held, flush), result in zip(taken, results, strict=True):
                if result is None:
                    self._metrics.fenced()
                    fenced.append(held)
                else:
                    self._written(held, flush, result, now)
            self._state.pending_bytes = self._assignment.pending_bytes
            self._loader.again(fenced)
        self._on_flushed()

    async def _write(self, taken: list[Taken]) -> tuple[list[Taken], list[FlushResult | None]]:
        """Write these flushes together. Where the database refuses what they hold, write each alone, and pass over the
        records of those that are refused. Returns the others, and their results."""
        try:
            return taken, await self._database.write([flush for _, flush in taken])
        except REFUSED as error:
            if len(taken) == 1:
                held, _ = taken[0]
                held.refuse(error.diag.message_primary or str(error))
                self._loader.again([held])
                return [], []
        written: list[Taken] = []
        results: list[FlushResult | None] = []
        for one in taken:
            more, found = await self._write([one])
            written += more
            results += found
        return written, results

    def _written(self, held: AssignedPartition, flush: Flush, result: FlushResult, now: float) -> None:
        for record in held.flushed(flush, result, now):
            record.token.ack()
        flows = [(campaign, minute, n) for (campaign, minute, kind), n in flush.history if kind == "flow"]
        self._publications.add(of_flush(flush), flows)
        for it in result.overwritten:
            log.warning(
                "campaigns.sent of campaign %d was overwritten with %d; it shows %d again",
                it.campaign,
                it.found,
                it.written,
            )
