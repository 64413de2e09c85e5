"""Runs uvicorn on a socket until a signal, and ends gracefully."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Final

import uvicorn

from stream.config.settings import Settings
from stream.metrics.families import Page
from stream.service.signals import leave_within
from stream.web import timeouts
from stream.web.app import Source, make_app, make_context

log = logging.getLogger(__name__)

#: seconds that open calls get to end at shutdown
GRACE: Final = 5
#: connections beside those of event streams
BESIDE_STREAMS: Final = 500


def run_server(
    settings: Settings, sock: socket.socket, *sources: Source, has_feed: bool | None = None, process: str = ""
) -> None:
    """Serve on ``sock`` in this thread until a signal. ``process``: prefix of this process' own metrics."""
    _allow_many_files()
    context = make_context(settings, has_feed=bool(sources) if has_feed is None else has_feed)
    own = Page()
    own.add_process(process)
    context.texts.append(own.text)
    config = uvicorn.Config(
        make_app(context, *sources),
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        lifespan="on",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=GRACE,
        limit_concurrency=settings.http_max_streams + BESIDE_STREAMS,
        proxy_headers=False,  # the application does it
        **timeouts.settings(),
    )
    _Server(config, context.live.close).run(sockets=[sock])


class _Server(uvicorn.Server):
    """Ends the event streams before shutdown: uvicorn would wait for them."""

    def __init__(self, config: uvicorn.Config, closing: Callable[[], None]) -> None:
        super().__init__(config)
        self._closing = closing

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._closing()
        await asyncio.sleep(0)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn raises the signal again at the end, which would turn a graceful end into a failure
        del frame
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        if not self.should_exit:
            leave_within()  # a thread may wait for a server that hangs
        self.should_exit = True


def _allow_many_files() -> None:
    """Each client is an open file, and the usual soft limit of 1,024 is too low for HTTP_MAX_STREAMS."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(65536, hard)
    if soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            log.debug("the limit of open files stays at %d", soft)
