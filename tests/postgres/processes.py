"""`sentstream run` as a process of its own, for tests that kill, stop and starve it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.command import Command
from tests.fix_postgres import Database
from tests.waiting import eventually


class Process:
    """A running command; its log is in a file."""

    def __init__(self, log: Path, *arguments: str, **settings: Any) -> None:
        self.log = log
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SENTSTREAM_")}
        environment |= {f"SENTSTREAM_{name.upper()}": str(value) for name, value in settings.items()}
        with log.open("ab") as out:
            self._child = Command(arguments, environment, out.fileno(), out.fileno())

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def alive(self) -> bool:
        return self._child.poll() is None

    @property
    def returncode(self) -> int | None:
        return self._child.poll()

    def wait(self, timeout: float = 30) -> int:
        return self._child.wait(timeout)

    def send(self, number: signal.Signals) -> None:
        self._child.send_signal(number)

    def kill(self) -> None:
        self._child.kill()
        self._child.wait()

    def says(self, text: str, timeout: float = 20) -> None:
        """Wait until the log has ``text``."""
        eventually(lambda: text in self.said or _no(f"{text!r} is not in:\n{self.said}"), timeout)

    @property
    def said(self) -> str:
        return self.log.read_text()


def _no(why: str) -> bool:
    raise AssertionError(why)


@contextmanager
def sentstream(db: Database, log: Path, *arguments: str, **settings: Any) -> Iterator[Process]:
    """`sentstream run` on ``db``, killed at the end if it still lives."""
    given = {"database_url": db.url, "slot_name": db.slot, "http_listen": "off", "reconnect_max": "0.5s", **settings}
    process = Process(log, *(arguments or ("run",)), **given)
    try:
        yield process
    finally:
        if process.alive:
            process.send(signal.SIGCONT)
            process.kill()
