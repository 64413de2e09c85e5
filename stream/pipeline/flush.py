"""Writing the flushes of several partitions as one transaction: one wait for the disk instead of a dozen.

Each flush stands in a savepoint of its own, so that a partition that another process owns by now takes nothing of the
others with it. What leaves nothing written (a deadlock, a serialization failure, a lock time-out) is tried again
here; any other database error is the caller's: the outcome is unknown then, and all partitions must be loaded again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import psycopg
from psycopg import errors as pg

from connectors.postgres.store.partitions import Store
from stream.core.errors import FencedError, PreconditionError
from stream.core.flushing import Flush, FlushResult
from stream.core.pace import Backoff

log = logging.getLogger("sentstream.writing")

#: errors that leave nothing written: the same flushes are tried again
AGAIN: Final = (pg.SerializationFailure, pg.DeadlockDetected, pg.LockNotAvailable, pg.QueryCanceled)


def write(
    store: Store,
    connection: psycopg.Connection[Any],
    flushes: Sequence[Flush],
    on_retry: Callable[[], None] = lambda: None,
) -> list[FlushResult | None]:
    """Write the flushes, one a partition, in order of partitions; what came of each, None where it was fenced off."""
    backoff = Backoff(first=0.05, most=2.0)
    while True:
        try:
            return _once(store, connection, flushes)
        except AGAIN as error:
            backoff = backoff.failed()
            on_retry()
            log.warning("a flush is tried again: %s", str(error).strip().splitlines()[0])
            time.sleep(backoff.pause)
        except pg.InsufficientPrivilege as error:
            raise PreconditionError(
                f"this role may not write what it counts: {error.diag.message_primary}.",
                "`sentstream doctor`, run as this role, says what gives the right back.",
            ) from error


def _once(store: Store, connection: psycopg.Connection[Any], flushes: Sequence[Flush]) -> list[FlushResult | None]:
    if len(flushes) == 1:
        return [_fenced(store, connection, flushes[0])]
    with connection.transaction():
        # two processes that write the same partitions wait for one another then, and never both
        in_order = sorted(flushes, key=lambda flush: flush.partition)
        results = {flush.partition: _fenced(store, connection, flush) for flush in in_order}
    return [results[flush.partition] for flush in flushes]


def _fenced(store: Store, connection: psycopg.Connection[Any], flush: Flush) -> FlushResult | None:
    try:
        return store.flush(connection, flush)
    except FencedError as error:
        log.warning("%s", error)
        return None
