"""Following progress: look again and again, and show it on a terminal, as plain lines, or as JSON lines.

A look that fails keeps the last numbers on the screen, marked as what they are: the state says DISCONNECTED, their age
grows, and the next look connects anew.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING

import psycopg
from rich.console import Group
from rich.live import Live

from connectors.postgres.connect import Connection, connect
from connectors.postgres.queries.progress import read_progress
from connectors.postgres.queries.status import LastRun, Status, read_status
from stream.cli import words
from stream.cli.output import OutputError, ReaderGone, discard, is_ascii
from stream.cli.progress_view import View, draw, plain_line
from stream.core.errors import SentstreamError
from stream.core.progress import CampaignProgress, to_json

if TYPE_CHECKING:
    from rich.console import Console

    from stream.cli.call import Call
    from stream.config.sources import Settings

log = logging.getLogger("sentstream.view")

#: seconds between two looks
EVERY = 0.5


def look(
    connection: Connection, settings: Settings, ids: Sequence[int] | None = None, notes: tuple[str, ...] = ()
) -> View:
    """One look at the database: the campaigns ``ids`` (None: all), and how far the stream is."""
    status = read_status(connection, settings.slot_name)
    read = read_progress(connection, settings.mailer_schema, ids)
    ages = [mark.as_of for mark in status.watermarks]
    known = [as_of for as_of in ages if as_of is not None]
    return View(
        now=read.now,
        campaigns=read.campaigns,
        started=bool(status.watermarks),
        based=all(mark.based for mark in status.watermarks),
        as_of=min(known) if len(known) == len(ages) and known else None,
        lag_bytes=_lag_bytes(status),
        last_run=run_text(status.last_run, status),
        notes=notes,
    )


def run_text(run: LastRun | None, status: Status) -> str:
    """``run 17: verified 5, 2 min ago``; only what is not 0."""
    if run is None:
        return "not verified yet"
    kinds = {name: getattr(run, name) for name in ("verified", "drift", "inconclusive", "not_comparable", "baseline")}
    found = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in kinds.items() if count)
    return f"run {run.run_id}: {found or 'no campaigns'}, {words.ago(run.finished_at or run.started_at, status.now)}"


@dataclass
class ProgressPoller:
    """Looks, and survives a database that goes away. Belongs to one thread."""

    settings: Settings
    find: Callable[[Connection], Sequence[int] | None] = lambda _connection: None
    notes: tuple[str, ...] = ()
    _connection: Connection | None = field(default=None, init=False)
    _last: View | None = field(default=None, init=False)
    _seen_at: float = field(default=0.0, init=False)

    def look(self) -> View | None:
        """What there is now; what there was with the trouble of now; None where nothing was ever seen."""
        try:
            if self._connection is None:
                self._connection = connect(self.settings.require_database(), "view")
            self._last = look(self._connection, self.settings, self.find(self._connection), self.notes)
        except (SentstreamError, psycopg.Error) as error:
            self.close()
            if self._last is None:
                raise
            elapsed = timedelta(seconds=time.monotonic() - self._seen_at)
            return replace(self._last, now=self._last.now + elapsed, trouble=str(error))
        self._seen_at = time.monotonic()
        return self._last

    def close(self) -> None:
        """Let the connection go."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def follow(call: Call, watcher: ProgressPoller, stop: threading.Event, *, every: float = EVERY) -> None:
    """Show what ``watcher`` sees until ``stop`` is set: on a terminal in place, else what changed, line by line."""
    if call.json:
        _stream(watcher, stop, every, lambda campaign, _view: call.print_json(to_json(campaign)))
    elif call.out.is_terminal:
        _live(call.out, call.err, watcher, stop, every)
    else:
        _stream(watcher, stop, every, lambda campaign, view: call.out.out(plain_line(campaign, view.now)))


@contextmanager
def following(call: Call, watcher: ProgressPoller, *, every: float = EVERY) -> Iterator[None]:
    """`follow` in a thread beside the body."""
    stop = threading.Event()
    thread = threading.Thread(target=_patient, args=(call, watcher, stop, every), name="view", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)


@contextmanager
def until_stopped() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set: for what runs until it is stopped."""
    stop = threading.Event()

    def handle(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _live(console: Console, err: Console, watcher: ProgressPoller, stop: threading.Event, every: float) -> None:
    """Draw in place. What is logged to a terminal meanwhile scrolls by above; what goes elsewhere is left alone."""
    with Live(
        console=console,
        auto_refresh=False,
        vertical_overflow="crop",
        redirect_stdout=False,
        redirect_stderr=err.is_terminal,
    ) as live:
        while not stop.is_set():
            view = watcher.look()
            if view is not None:
                lines = draw(view, console.width, console.height - 1, ascii_only=is_ascii(console))
                live.update(Group(*lines), refresh=True)
            stop.wait(every)
    watcher.close()


def _patient(call: Call, watcher: ProgressPoller, stop: threading.Event, every: float) -> None:
    """`follow` beside a role that is starting: errors are retried. Where standard output can't be written any more, the
    view ends and the role goes on."""
    while not stop.is_set():
        try:
            follow(call, watcher, stop, every=every)
        except (SentstreamError, psycopg.Error):
            stop.wait(1)
        except (ReaderGone, OutputError) as error:
            log.warning("%s The counts are no longer printed.", error)
            discard()
            return


def _stream(
    watcher: ProgressPoller, stop: threading.Event, every: float, say: Callable[[CampaignProgress, View], None]
) -> None:
    """Say each campaign once, then whenever its numbers change (its age alone is no change)."""
    said: dict[int, CampaignProgress] = {}
    while not stop.is_set():
        view = watcher.look()
        if view is None or view.trouble:
            stop.wait(every)
            continue
        for campaign in view.campaigns:
            lasting = replace(campaign, as_of=None, lsn=None, position=None, eta=None, verified_at=None)
            if said.get(campaign.campaign_id) != lasting:
                said[campaign.campaign_id] = lasting
                say(campaign, view)
        stop.wait(every)
    watcher.close()


def _lag_bytes(status: Status) -> int | None:
    return None if status.slot is None else status.slot.bytes
