"""Runs one reading session after the other: what ends one of them, what ends all, and the pause in between.

A lost connection, a restarted server or another owner of the watermarks ends a session, and the next begins from what
PostgreSQL holds. What another attempt can't cure (a database that is not as ``setup`` leaves it, a message that can't
be decoded) is raised.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import psycopg

from stream.core.errors import FencedError, SentstreamError, UnreachableError
from stream.core.pace import Backoff

log = logging.getLogger("sentstream.sessions")


class Session(Protocol):
    """``opened_at``: when it took the slot, monotonic seconds; None before. ``run`` returns when told to stop."""

    opened_at: float | None

    def run(self) -> None: ...


def run_sessions(
    new_session: Callable[[], Session],
    stop: threading.Event,
    *,
    longest_pause: Callable[[], float],
    on_pause: Callable[[], None] = lambda: None,
    once: bool = False,
    retried: tuple[type[SentstreamError], ...] = (FencedError,),
) -> None:
    """Until ``stop`` is set. The first session that can't be opened is raised as `UnreachableError`: that is a
    mistake in the settings more often than an outage; with ``once`` also a session that was lost.

    ``longest_pause``: RECONNECT_MAX; ``on_pause``: called before each pause; ``retried``: errors of ours that a new
    session cures.
    """
    backoff, first = Backoff(first=0.2), True
    while not stop.is_set():
        session: Session | None = None
        try:
            session = new_session()
            session.run()
            first = False
            continue
        except retried as error:
            log.warning("%s", error)
        except (UnreachableError, psycopg.Error, OSError) as error:
            if stop.is_set():
                log.warning("ended while this stood in the way: %s", _plain(error))
                return
            if once or (first and (session is None or session.opened_at is None)):
                raise _unreachable(error) from error
            log.warning("%s", _plain(error))
        first = False
        opened_at = session.opened_at if session is not None else None
        lived = 0.0 if opened_at is None else time.monotonic() - opened_at
        backoff = replace(backoff, most=longest_pause()).failed(lived)
        log.info("connecting again in %.1f s", backoff.pause)
        on_pause()
        stop.wait(backoff.pause)


def _unreachable(error: Exception) -> SentstreamError:
    if isinstance(error, SentstreamError):
        return error
    return UnreachableError(f"{_plain(error)}.", "Look at the server's log; `sentstream doctor` checks the rest.")


def _plain(error: Exception) -> str:
    """One line, with what to do where the server said what is wrong."""
    if isinstance(error, psycopg.errors.DiskFull):
        said = error.diag.message_primary
        return f"the server's disk is full ({said}): free space there; nothing is confirmed until then"
    if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
        return "the server is read-only now (a standby?): DATABASE_URL must lead to the primary"
    return " ".join(str(error).split()) or type(error).__name__
