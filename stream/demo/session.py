"""The parts of the demo: settings on private servers, a mailer's database, child processes, and the final check.

Everything lives in one scratch directory and in child processes that end with this one.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import SIGTERM
from socket import AF_INET, AF_INET6, socket
from typing import Any, Final

from connectors.mailer.tables import schema_sql
from connectors.postgres.connect import Connection, connect
from connectors.postgres.queries.status import read_status
from connectors.postgres.setup import Wanted, set_up
from stream.config.sources import Settings, child_environment
from stream.config.values import split_address
from stream.core.errors import SentstreamError
from stream.core.position import parse_lsn
from stream.demo import child_process
from stream.demo.mailer.history import lay_history
from stream.demo.private_postgres import PrivateServer

#: seconds that the stream gets to reach the end of the WAL after the mailer has stopped
SETTLE: Final = 20.0


@dataclass(frozen=True, slots=True)
class Part:
    """A child process of the demo, and where it logs."""

    name: str
    process: child_process.Child
    log: Path

    def failure(self) -> SentstreamError:
        """The error for a part that ended by itself or badly."""
        return SentstreamError(
            f"{self.name} ended with exit code {self.process.exit_code}.", f"Its log ends: {_end_of(self.log)}"
        )


def settings_of(chosen: Settings, server: PrivateServer, brokers: tuple[str, ...]) -> Settings:
    """The caller's settings, on the private servers and a free port."""
    own: dict[str, Any] = {
        "database_url": server.url("mailer"),
        "kafka_bootstrap_servers": brokers,
        "kafka_security_protocol": "PLAINTEXT",
        "mailer_schema": "public",
        "http_listen": _free_address(chosen.http_listen),
        "slot_kind": "permanent",
    }
    return Settings(**{**chosen.model_dump(), **own})


def _free_address(wanted: str) -> str:
    """``wanted``, or another port of the same host where that one is taken."""
    if wanted == "off":
        return wanted
    host, port = split_address(wanted)
    family, shown = (AF_INET6, f"[{host}]") if ":" in host else (AF_INET, host)
    for attempt in (port, 0):
        with socket(family) as probe:
            try:
                probe.bind((host, attempt))
            except OSError:
                continue
            return f"{shown}:{probe.getsockname()[1]}"
    return wanted


def prepare(server: PrivateServer, settings: Settings) -> None:
    """The mailer's database and tables, and what `sentstream setup` makes."""
    with connect(server.url(), "demo") as admin:
        admin.execute("CREATE DATABASE mailer")
    with connect(settings.database_url, "demo") as session:
        session.execute(schema_sql().encode())
        lay_history(session)  # a campaign that was sent and shows 0: the first recount finds it
        set_up(session, Wanted(slot=settings.slot_name, publication=settings.publication))
    if settings.kafka:
        from connectors.kafka.topics import ensure, require  # noqa: PLC0415 - only with the extra [kafka]

        require(ensure(settings))


def run_command() -> list[str]:
    """What counts in the demo."""
    return [sys.executable, "-m", "stream.cli", "run", "--no-view"]


def mailer_command(settings: Settings) -> list[str]:
    """The simulated mailer."""
    return [sys.executable, "-m", "stream.demo.mailer", "--database-url", settings.database_url]


@contextmanager
def part(name: str, argv: list[str], directory: Path, settings: Settings) -> Iterator[Part]:
    """A child process with the demo's settings; it ends with the demo."""
    empty = directory / "sentstream.toml"
    empty.touch()
    environment: Mapping[str, str] = child_environment(settings, config=empty)
    output = directory / f"{name}.log"
    process = child_process.start(
        argv, log=output, directory=Path.cwd(), environment=environment, remove_when_orphaned=directory
    )
    try:
        yield Part(name, process, output)
    finally:
        if process.exit_code is None:
            process.end(SIGTERM, 15)


class Monitor(threading.Thread):
    """Stops the demo when its time is up, or when a part has ended by itself (``failed``)."""

    def __init__(self, parts: Sequence[Part], stop: threading.Event, seconds: float | None) -> None:
        super().__init__(name="monitor", daemon=True)
        self._parts = parts
        self._stop_event = stop
        self._until = None if seconds is None else time.monotonic() + seconds
        self.failed: Part | None = None

    def run(self) -> None:
        while not self._stop_event.wait(0.2):
            self.failed = next((part for part in self._parts if part.process.exit_code is not None), None)
            if self.failed is not None or (self._until is not None and time.monotonic() >= self._until):
                self._stop_event.set()


def count_wrong(settings: Settings) -> tuple[int, int]:
    """Wait for the stream to reach the end of the WAL; how many counters there are, and how many are wrong."""
    with connect(settings.database_url, "demo") as session:
        _wait_for_end(session, settings.slot_name)
        counted = session.execute(
            "SELECT count(*), count(*) FILTER (WHERE NOT coalesce(d.explained_by_removed, true)) "
            "FROM sentstream.campaign_progress c LEFT JOIN sentstream.discrepancies d USING (id)"
        ).fetchone()
    campaigns, wrong = counted or (0, 0)
    return int(campaigns), int(wrong)


def _wait_for_end(session: Connection, slot_name: str) -> None:
    """Wait until every partition has reached the present end of the WAL. SentstreamError after SETTLE seconds."""
    end = read_status(session, slot_name).wal_lsn or "0/0"
    deadline = time.monotonic() + SETTLE
    while True:
        marks = read_status(session, slot_name).watermarks
        if marks and all(mark.based and parse_lsn(mark.lsn) >= parse_lsn(end) for mark in marks):
            return
        if time.monotonic() > deadline:
            raise SentstreamError(
                f"The stream did not reach the end of the WAL ({end}) within {SETTLE:.0f} s.",
                "`sentstream demo -v` keeps more in the log.",
            )
        time.sleep(0.05)


def _end_of(path: Path, lines: int = 5) -> str:
    return " / ".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]) or "(it is empty)"
