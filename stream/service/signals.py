"""SIGTERM and Ctrl-C mean "flush, confirm, say so, exit 0"; SIGHUP means "read the settings again".

A server that hangs must not keep a role from ending: `LEAVE_WITHIN` seconds after the signal the process exits. What it
had not confirmed by then is read again by the next one.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

from stream.config.sources import Settings
from stream.core.errors import SentstreamError

log = logging.getLogger("sentstream.signals")

#: seconds from the signal to the end, whatever is waited for: below every limit in deploy/
LEAVE_WITHIN: Final = 15.0

Handler = Callable[[int, "FrameType | None"], Any]


class CurrentSettings:
    """Called, it returns the settings: those of the start, or those read at the last SIGHUP.

    ``reload``: reads them; None where they can't change. Where they can't be read, the old ones stay.
    """

    def __init__(self, settings: Settings, reload: Callable[[], Settings] | None = None) -> None:
        self._settings = settings
        self._reload = reload

    def __call__(self) -> Settings:
        return self._settings

    def reload(self, *_: object) -> None:
        """The handler of SIGHUP."""
        if self._reload is None:
            return
        try:
            self._settings = self._reload()
        except SentstreamError as error:
            log.error("settings were not read again: %s", error)
        else:
            log.info("settings were read again")


class until_signalled:  # noqa: N801 - used as a function
    """SIGTERM and SIGINT set ``stop``, SIGHUP calls ``on_hup``; as they were before, afterwards. Of the main thread.

    ``within``: seconds that the end may take; None: as long as it takes.
    """

    def __init__(
        self, stop: threading.Event, on_hup: Handler = lambda *_: None, within: float | None = LEAVE_WITHIN
    ) -> None:
        self._stop = stop
        self._within = within
        self._leaving: threading.Timer | None = None
        self._handlers: dict[int, Handler] = {
            signal.SIGTERM: self._told_to_stop,
            signal.SIGINT: self._told_to_stop,
            signal.SIGHUP: on_hup,
        }
        self._before: dict[int, Any] = {}

    def _told_to_stop(self, *_: object) -> None:
        self._stop.set()
        if self._within is not None and self._leaving is None:
            self._leaving = leave_within(self._within)

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number, handler in self._handlers.items():
            self._before[number] = signal.signal(number, handler)

    def __exit__(self, *_: object) -> None:
        if self._leaving is not None:
            self._leaving.cancel()
        for number, handler in self._before.items():
            signal.signal(number, handler)


def leave_within(seconds: float = LEAVE_WITHIN) -> threading.Timer:
    """End this process after that time, unless the timer is cancelled."""
    timer = threading.Timer(seconds, _leave)
    timer.daemon = True
    timer.start()
    return timer


def _leave() -> None:
    log.warning("leaving at once: a server does not answer; what is not confirmed is read again, which is harmless")
    for handler in logging.getLogger().handlers:
        handler.flush()
    os._exit(0)
