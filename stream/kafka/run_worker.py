"""Running the role `work`: signals, liveness, and the worker's name among those of its host."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from connectors.kafka.cluster import BrokerUnreachableError, Cluster
from connectors.kafka.group_lag import LagReader
from connectors.kafka.topics import Names, ensure, require
from stream.config.settings import Settings
from stream.core.pace import Backoff
from stream.kafka.instance_name import InstanceName
from stream.kafka.options import WorkerOptions
from stream.kafka.role_metrics import worker_families, worker_health
from stream.kafka.state import WorkerState
from stream.kafka.worker import Worker
from stream.metrics import endpoint
from stream.metrics.families import Page
from stream.service import failpoints
from stream.service.signals import CurrentSettings
from stream.service.watchdog import Watchdog, end_with, restart

log = logging.getLogger("sentstream.worker")

#: seconds that the event loop may stand still before only a restart helps
STUCK: Final = 60.0
#: seconds that stopping may take in all
_LAST_EXIT: Final = 15.0


class StallProbe:
    """Whether a worker that does not move has work: asked of the broker by a client of its own, as the worker's may be
    what stalls."""

    def __init__(self, settings: Settings, state: WorkerState) -> None:
        names = Names(settings.kafka_topic_prefix)
        self._lag = LagReader(Cluster.of(settings), names.group, names.changes)
        self._state = state

    def has_work(self) -> str | None:
        """What there is to do; None where there is nothing, or where the worker waits for the database."""
        if self._state.database_away_since is not None:
            return None
        if self._state.pending_bytes:
            return "records wait to be written"
        if not self._state.partitions:
            free = self._lag.without_owner()
            return f"no worker holds the partitions {', '.join(map(str, free))}" if free else None
        for line in self._lag.read():
            if line.partition not in self._state.partitions:
                continue
            mine = self._state.next_offsets.get(line.partition, line.current_offset or 0)
            if line.log_end_offset < mine:
                return f"partition {line.partition} ends at {line.log_end_offset}, before {mine}: it was made anew"
            if line.log_end_offset > mine:
                return f"partition {line.partition} holds records up to {line.log_end_offset}, it is at {mine}"
        return None


def run(settings: Settings, reload: Callable[[], Settings] | None = None, *, parent: int = 0, stalls: int = 0) -> int:
    """The role `work`, until SIGTERM or Ctrl-C; then it flushes, acknowledges, commits, and returns 0.

    ``parent``: a process with which to end; ``stalls``: how often it has started itself anew.
    """
    failpoints.arm(settings.failpoints)
    with InstanceName(settings) as instance:
        try:
            asyncio.run(_run(settings, reload, instance.name, parent, stalls))
        except BrokerUnreachableError as error:  # it went away as the app started, which can't be started twice
            restart(str(error), stalls)
    log.info("flushed, acknowledged and committed; bye")
    return 0


async def _run(
    settings: Settings, reload: Callable[[], Settings] | None, instance: str, parent: int, stalls: int
) -> None:
    now = CurrentSettings(settings, reload)
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def on_stop() -> None:
        stop.set()
        # without its broker Faust takes half a minute to stop
        timer = threading.Timer(_LAST_EXIT, _exit_now)
        timer.daemon = True
        timer.start()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_stop)
    loop.add_signal_handler(signal.SIGHUP, now.reload)
    if parent:
        end_with(parent)
    worker = Worker(WorkerOptions.of(settings, lambda: now().flush_interval, instance))
    state = worker.state
    watchdog = Watchdog(
        lambda: state.moved_at,
        StallProbe(settings, state).has_work,
        lambda: now().stall_restart,
        lambda why: restart(why, stalls),
    )
    watchdog.start()
    page = Page(lambda: worker_families(state, stalls), worker.metrics.families)
    page.add_process()
    heartbeat = _Heartbeat()
    beating = asyncio.ensure_future(heartbeat.run())
    shown = endpoint.start(settings, page.text, lambda: worker_health(state, heartbeat.at, STUCK))
    try:
        if await _topics_found(settings, state, stop):
            log.info("worker %s joins the group %s", instance, worker.options.names.group)
            await worker.run(stop)
    finally:
        beating.cancel()
        watchdog.stop()
        if shown is not None:
            shown.close()


async def _topics_found(settings: Settings, state: WorkerState, stop: asyncio.Event) -> bool:
    """Wait for a broker, then require the topics as planned; False where ``stop`` was set before a broker answered."""
    loop = asyncio.get_running_loop()
    backoff = Backoff(first=0.2, most=min(5.0, settings.reconnect_max))
    while not stop.is_set():
        try:
            require(await loop.run_in_executor(None, partial(ensure, settings, create_missing=False)))
        except BrokerUnreachableError as error:
            state.broker_away_since = state.broker_away_since or time.monotonic()
            backoff = backoff.failed()
            log.warning("waiting for Kafka, next attempt in %.1f s: %s", backoff.pause, error)
        else:
            state.broker_away_since = None
            return True
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(stop.wait(), backoff.pause)
    return False


class _Heartbeat:
    """When the event loop last ran a task. Whether records are processed is the watchdog's question."""

    def __init__(self) -> None:
        self.at = time.monotonic()

    async def run(self) -> None:
        while True:
            self.at = time.monotonic()
            await asyncio.sleep(1.0)


def _exit_now() -> None:
    log.warning("exiting now: the broker does not answer; what is not committed is delivered again, which is harmless")
    for handler in logging.getLogger().handlers:
        handler.flush()
    os._exit(0)
