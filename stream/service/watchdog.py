"""Liveness by progress: a role that stands still while there is work restarts itself, logs it, and counts it.

"The process is up" says nothing: consumers stall, and clients don't come back after an outage. So a thread beside the
role checks how long ago it last made progress, and, where that is long, whether there was work. Then the process
replaces itself (same arguments, same process id: its supervisor notices nothing); what it held in memory is read again
from the last confirmed position.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

log = logging.getLogger("sentstream.liveness")

#: the hidden option that carries the number of stalls over to the new process
OPTION: Final = "--stalls"


class Watchdog(threading.Thread):
    """``moved_at``: when the role last made progress, monotonic seconds; ``has_work``: what it should have done since,
    called only when in doubt, may take a while and may raise (then it is unknown, and nothing happens); ``allowed``:
    seconds."""

    def __init__(
        self,
        moved_at: Callable[[], float],
        has_work: Callable[[], str | None],
        allowed: Callable[[], float],
        on_stall: Callable[[str], None],
    ) -> None:
        super().__init__(name="liveness", daemon=True)
        self._moved_at = moved_at
        self._has_work = has_work
        self._allowed = allowed
        self._on_stall = on_stall
        self._ended = threading.Event()

    def stop(self) -> None:
        self._ended.set()

    def run(self) -> None:
        while not self._ended.wait(min(5.0, self._allowed() / 4)):
            still = time.monotonic() - self._moved_at()
            if still < self._allowed():
                continue
            try:
                work = self._has_work()
            except Exception as error:  # a broker or database that can't be asked: then it is not the role that stalls
                log.debug("can't tell whether there is work: %s", error)
                continue
            if work is not None and not self._ended.is_set():
                self._on_stall(f"it has stood still for {still:.0f} s, and {work}")
                return


def restart(why: str, stalls: int) -> None:
    """Replace this process by a new one with the same arguments. Does not return."""
    log.error("restarting (stall %d): %s", stalls + 1, why)
    for handler in logging.getLogger().handlers:
        handler.flush()
    arguments = without_stalls(sys.orig_argv[1:])
    os.execv(sys.executable, [sys.executable, *arguments, OPTION, str(stalls + 1)])  # noqa: S606


def without_stalls(arguments: Sequence[str]) -> list[str]:
    """The arguments without the option of an earlier restart."""
    kept = list(arguments)
    while OPTION in kept:
        at = kept.index(OPTION)
        del kept[at : at + 2]
    return kept


def end_with(parent: int) -> None:
    """Get a SIGTERM when the process ``parent``, which started us, is gone: no other process would end us."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        log.warning("the process that started this one is gone; ending too")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()
