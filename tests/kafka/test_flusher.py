"""What a flush tells of itself: a worker that has written everything has nothing that waits."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from connectors.kafka.codec import encode
from stream.core.entries import Move
from stream.core.flushing import Flush, FlushResult
from stream.core.status import QUEUED, SENT
from stream.kafka.assignment import Assignment, Record, RecordOutcome
from stream.kafka.flusher import Flusher
from stream.kafka.state import WorkerState
from stream.metrics.observed import FlushMetrics
from tests.kafka.batches import move_batch
from tests.kafka.test_assignment import loaded


class Token:
    def ack(self) -> None:
        """Faust's event."""


class Written:
    """A database that takes every flush, and whatever else a flusher talks to."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()

    async def write(self, flushes: Sequence[Flush]) -> list[FlushResult]:
        return [FlushResult() for _ in flushes]

    def again(self, _partitions: Any) -> None:
        """Loads nothing."""

    def add(self, *_what: Any) -> None:
        """Publishes nothing."""


def test_after_a_flush_no_bytes_wait_or_the_watchdog_would_take_a_broker_that_is_away_for_a_stall() -> None:
    async def main() -> int:
        assignment, state, rest = Assignment("t"), WorkerState(), Written()
        ((held,), _) = assignment.assign([3])
        held.load(loaded(100, 10))
        record = Record(10, encode(move_batch(100, 110, Move(7, QUEUED, SENT, 1))), Token())
        assert held.take(record) is RecordOutcome.APPLIED
        state.pending_bytes = assignment.pending_bytes
        assert state.pending_bytes > 0
        flusher = Flusher(assignment, rest, rest, rest, state, FlushMetrics(), lambda: None)  # type: ignore[arg-type]
        await flusher.flush()
        return state.pending_bytes

    assert asyncio.run(main()) == 0
