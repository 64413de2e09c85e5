"""The Kafka shape in threads of the test: quick to start, for the suites that every shape must pass."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from connectors.kafka.topics import ensure
from stream.config.settings import Settings
from stream.kafka.options import WorkerOptions
from stream.kafka.reader import Reader
from stream.kafka.worker import Worker
from tests.fix_postgres import Database
from tests.kafka.shape import delete_topics
from tests.postgres.running import based, reconciling, settings_for


class WorkerThread:
    """A worker with an event loop of its own."""

    def __init__(self, settings: Settings, instance: str = "") -> None:
        self._settings = settings
        self._instance = instance
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self.worker: Worker | None = None
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._main())
        except BaseException as error:
            self.failure = error
        finally:
            self._loop.close()

    async def _main(self) -> None:
        self.worker = Worker(WorkerOptions.of(self._settings, lambda: self._settings.flush_interval, self._instance))
        await self.worker.run(self._stop)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)
        assert not self._thread.is_alive()
        if self.failure is not None:
            raise self.failure


class ReaderThread:
    """A reader, session after session."""

    def __init__(self, settings: Settings) -> None:
        self.reader = Reader(lambda: settings)
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="reader", daemon=True)

    def _run(self) -> None:
        try:
            self.reader.run()
        except BaseException as error:
            self.failure = error

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.reader.stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()
        if self.failure is not None:
            raise self.failure


def kafka_values(db: Database, bootstrap: str, partitions: int = 3) -> dict[str, Any]:
    """Settings of a shape with topics of its own."""
    return {"kafka_bootstrap_servers": bootstrap, "kafka_topic_prefix": db.name, "kafka_partitions": partitions}


@contextmanager
def kafka_shape(db: Database, bootstrap: str, **values: Any) -> Iterator[WorkerThread]:
    """Reader, one worker and the reconciler; entered once all partitions are based."""
    values = {**kafka_values(db, bootstrap), **values}
    settings = settings_for(db, **values)
    assert ensure(settings) == []
    reader, worker = ReaderThread(settings), WorkerThread(settings)
    closing = ExitStack()
    closing.callback(delete_topics, settings)
    with closing, reconciling(db, follow_log=False, **values):
        reader.start()
        worker.start()
        try:
            based(db)
            yield worker
        finally:
            try:
                reader.stop()
            finally:
                worker.stop()
