"""Polls progress and shows it on a terminal, as plain lines, or as JSON lines.

When a poll fails, the last numbers stay on the screen: the state says DISCONNECTED, their age grows, and the next poll
connects again.
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
from connectors.postgres.queries.status import Status, read_status
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

#: seconds between two polls
EVERY = 0.5
SHADOW_NOTE = "Shadow mode: campaigns.sent is not written (WRITE_BACK=false)."


def read_view(
    connection: Connection, settings: Settings, ids: Sequence[int] | None = None, notes: tuple[str, ...] = ()
) -> View:
    """Read the campaigns ``ids`` (None: all) and how far the stream is."""
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
        last_run=words.run_text(status.last_run, status),
        notes=(*notes, SHADOW_NOTE) if status.shadow and SHADOW_NOTE not in notes else notes,
    )


@dataclass
class ProgressPoller:
    """Polls, and survives a database that goes away. Belongs to one thread."""

    settings: Settings
    find: Callable[[Connection], Sequence[int] | None] = lambda _connection: None
    notes: tuple[str, ...] = ()
    _connection: Connection | None = field(default=None, init=False)
    _last: View | None = field(default=None, init=False)
    _seen_at: float = field(default=0.0, init=False)

    def poll(self) -> View | None:
        """The current view, or the last one with the error in ``trouble``; the first error is raised."""
        try:
            if self._connection is None:
                self._connection = connect(self.settings.require_database(), "view")
            self._last = read_view(self._connection, self.settings, self.find(self._connection), self.notes)
        except (SentstreamError, psycopg.Error) as error:
            self.close()
            if self._last is None:
                raise
            elapsed = timedelta(seconds=time.monotonic() - self._seen_at)
            return replace(self._last, now=self._last.now + elapsed, trouble=str(error))
        self._seen_at = time.monotonic()
        return self._last

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def follow(call: Call, poller: ProgressPoller, stop: threading.Event, *, every: float = EVERY) -> None:
    """Show progress until ``stop`` is set: in place on a terminal, otherwise each change as a line."""
    if call.json:
        _print_changes(poller, stop, every, lambda campaign, _view: call.print_json(to_json(campaign)))
    elif call.out.is_terminal:
        _live(call.out, call.err, poller, stop, every)
    else:
        _print_changes(poller, stop, every, lambda campaign, view: call.out.out(plain_line(campaign, view.now)))


@contextmanager
def following(call: Call, poller: ProgressPoller, *, every: float = EVERY) -> Iterator[None]:
    """`follow` in a thread beside the body."""
    stop = threading.Event()
    thread = threading.Thread(target=_patient, args=(call, poller, stop, every), name="view", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)


@contextmanager
def until_stopped() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set."""
    stop = threading.Event()

    def handle(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _live(console: Console, err: Console, poller: ProgressPoller, stop: threading.Event, every: float) -> None:
    """Draw in place. Log lines on the same terminal scroll by above."""
    with Live(
        console=console,
        auto_refresh=False,
        vertical_overflow="crop",
        redirect_stdout=False,
        redirect_stderr=err.is_terminal,
    ) as live:
        while not stop.is_set():
            view = poller.poll()
            if view is not None:
                lines = draw(view, console.width, console.height - 1, ascii_only=is_ascii(console))
                live.update(Group(*lines), refresh=True)
            stop.wait(every)
    poller.close()


def _patient(call: Call, poller: ProgressPoller, stop: threading.Event, every: float) -> None:
    """`follow` beside a role that is starting: errors are retried. Where standard output can't be written any more, the
    view ends and the role goes on."""
    while not stop.is_set():
        try:
            follow(call, poller, stop, every=every)
        except (SentstreamError, psycopg.Error):
            stop.wait(1)
        except (ReaderGone, OutputError) as error:
            log.warning("%s The counts are no longer printed.", error)
            discard()
            return


def _print_changes(
    poller: ProgressPoller, stop: threading.Event, every: float, show: Callable[[CampaignProgress, View], None]
) -> None:
    """Print each campaign once, then whenever its numbers change (a new age alone is no change)."""
    shown: dict[int, CampaignProgress] = {}
    while not stop.is_set():
        view = poller.poll()
        if view is None or view.trouble:
            stop.wait(every)
            continue
        for campaign in view.campaigns:
            lasting = replace(campaign, as_of=None, lsn=None, position=None, eta=None, verified_at=None)
            if shown.get(campaign.campaign_id) != lasting:
                shown[campaign.campaign_id] = lasting
                show(campaign, view)
        stop.wait(every)
    poller.close()


def _lag_bytes(status: Status) -> int | None:
    return None if status.slot is None else status.slot.bytes
