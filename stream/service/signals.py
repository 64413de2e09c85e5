"""SIGTERM and Ctrl-C mean "flush, confirm, say so, exit 0"; SIGHUP means "read the settings again"."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from stream.config.sources import Settings
from stream.core.errors import SentstreamError

log = logging.getLogger("sentstream.signals")

Handler = Callable[[int, "FrameType | None"], Any]


class CurrentSettings:
    """The settings in force: called, it returns those of the start, or since a SIGHUP those read then.

    ``reload``: reads them; None where they can't change. What can't be read leaves the old ones in force.
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
    """SIGTERM and SIGINT set ``stop``, SIGHUP calls ``on_hup``; as they were before, afterwards. Of the main thread."""

    def __init__(self, stop: threading.Event, on_hup: Handler = lambda *_: None) -> None:
        self._handlers: dict[int, Handler] = {
            signal.SIGTERM: lambda *_: stop.set(),
            signal.SIGINT: lambda *_: stop.set(),
            signal.SIGHUP: on_hup,
        }
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number, handler in self._handlers.items():
            self._before[number] = signal.signal(number, handler)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
