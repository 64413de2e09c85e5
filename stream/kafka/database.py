"""The worker's session with PostgreSQL, in a thread of its own, so that loads and flushes don't block the event loop.

After any error the connection is closed and the next call opens a new one: the server may have been restored meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

import psycopg

from connectors.postgres.connect import connect, writing_role
from connectors.postgres.queries.history import recent_flow
from connectors.postgres.replication import slot
from connectors.postgres.store.partitions import Store
from stream.core.errors import UnreachableError
from stream.core.flushing import Flush, FlushResult
from stream.core.partition import Loaded
from stream.core.partitioner import partition_of
from stream.kafka.options import WorkerOptions
from stream.kafka.state import WorkerState
from stream.pipeline.flush import write
from stream.service.failpoints import failpoint

log = logging.getLogger("sentstream.worker")

T = TypeVar("T")

#: (campaign, minute since 1970, mails sent in it)
Flow = tuple[int, int, int]

#: the database can't be reached, or the outcome of a transaction is unknown: load again
AWAY: Final = (UnreachableError, psycopg.Error, OSError)
#: the database refuses the values of a flush, which will not change
REFUSED: Final = (psycopg.DataError, psycopg.IntegrityError)
#: a worker that is stopped in the middle of a flush holds its locks no longer than this
_SESSION: Final = {"lock_timeout": "10s", "idle_in_transaction_session_timeout": "5s"}


class Database:
    """Loads and writes partitions, and keeps ``state`` told since when the database is away.

    ``lock``: held during a load and during a flush, so that neither sees the other half done. ``on_retry``: called for
    each flush that is tried again.
    """

    def __init__(self, options: WorkerOptions, state: WorkerState, on_retry: Callable[[], None]) -> None:
        self._options = options
        self._state = state
        self._on_retry = on_retry
        self._store = Store(options.mailer_schema, failpoint)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="database")
        self._connection: psycopg.Connection[Any] | None = None
        self.lock = asyncio.Lock()

    async def check(self) -> None:
        """Open the connection; raises where the database can't be reached."""
        await self._in_thread(self._open)

    async def load(self, number: int) -> tuple[Loaded, list[Flow], int]:
        """A partition as it stands, what its campaigns sent in the last two minutes, and where the WAL ends."""
        return await self._run(partial(self._load, number))

    async def write(self, flushes: Sequence[Flush]) -> list[FlushResult | None]:
        """Write flushes in one transaction; None for each that was fenced off. Raises one of `REFUSED` where the
        database refuses what they hold: then none is written."""
        return await self._run(partial(self._write, flushes))

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[[], T]) -> T:
        state = self._state
        try:
            result = await self._in_thread(work)
        except REFUSED:
            raise
        except AWAY as error:
            if state.database_away_since is None:
                state.database_away_since = time.monotonic()
                log.warning("waiting for the database: %s", " ".join(str(error).split()) or type(error).__name__)
            raise
        state.database_away_since = None
        return result

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _load(self, number: int) -> tuple[Loaded, list[Flow], int]:
        with self._session() as connection:
            home = partial(partition_of, partitions=self._options.partitions)
            loaded = self._store.load(connection, number, home)
            return loaded, recent_flow(connection, number), slot.clock(connection).wal_end

    def _write(self, flushes: Sequence[Flush]) -> list[FlushResult | None]:
        with self._session() as connection:
            return write(self._store, connection, flushes, self._on_retry)

    @contextlib.contextmanager
    def _session(self) -> Iterator[psycopg.Connection[Any]]:
        connection = self._open()
        try:
            yield connection
        except psycopg.Error:
            self._connection = None
            with contextlib.suppress(psycopg.Error):
                connection.close()
            raise

    def _open(self) -> psycopg.Connection[Any]:
        connection = self._connection
        if connection is None or connection.broken or connection.closed:
            role = writing_role("work", write_back=self._options.write_back)
            connection = self._connection = connect(self._options.database_url(), role, settings=_SESSION)
        return connection
