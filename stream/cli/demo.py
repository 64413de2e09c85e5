"""`demo`: a private PostgreSQL, a simulated mailer and sentstream itself, with live counts in the terminal.

Everything lives in one scratch directory and in child processes that don't outlive this one, however it ends. At the
end the mailer is stopped, the stream gets to the end of the WAL, and every counter is held against the queue itself.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import SIGTERM
from socket import AF_INET, AF_INET6, socket
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import psycopg
import typer

from connectors.mailer.tables import schema_sql
from connectors.postgres.connect import connect
from connectors.postgres.queries.status import read_status
from connectors.postgres.setup import Wanted, set_up
from stream.cli import words
from stream.cli.call import Call, command
from stream.cli.progress_watch import EVERY, ProgressPoller, follow, until_stopped
from stream.config.sources import Settings, child_environment
from stream.config.values import parse_duration, split_address, split_list
from stream.core.errors import ConfigurationError, SentstreamError
from stream.core.position import parse_lsn
from stream.demo import child_process
from stream.demo.mailer.history import lay_history
from stream.demo.private_postgres import PrivateServer

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer()
log = logging.getLogger("sentstream.demo")

#: seconds between two lines on the same campaign where there is no terminal
PLAIN_EVERY = 2.0
#: seconds that the stream gets to reach the end of the WAL when the mailer has stopped
SETTLE = 20.0

_EXAMPLES = """Examples:

`sentstream demo` until Ctrl-C

`sentstream demo --kafka` the Kafka shape, with a private broker

`sentstream demo --duration 30s --json` for a script; exit code 1 where a counter was wrong at the end
"""


@dataclass(frozen=True, slots=True)
class Part:
    """A child process of the demo, and where it logs."""

    name: str
    process: child_process.Child
    log: Path


@command(app, "demo", shows=("http_listen", "flush_interval", "recount_interval"), epilog=_EXAMPLES)
def demo(
    call: Call,
    kafka: Annotated[
        bool, typer.Option("--kafka", help="The Kafka shape: a private broker and the four roles.")
    ] = False,
    duration: Annotated[str | None, typer.Option(metavar="DURATION", help="End by itself after this time.")] = None,
) -> int:
    """A private PostgreSQL and a simulated mailer: see sentstream work, with nothing to set up."""
    seconds = None if duration is None else _seconds(duration)
    chosen = call.settings
    with until_stopped() as stop, ExitStack() as closing:
        directory = Path(closing.enter_context(TemporaryDirectory(prefix="sentstream-demo-")))
        with _step(call.err, "PostgreSQL"):
            server = closing.enter_context(PrivateServer())
        settings = _settings(chosen, server, _broker(call, closing) if kafka else ())
        with _step(call.err, "a mailer's database"):
            _prepare(server, settings)
        parts: list[Part] = []
        with _step(call.err, "sentstream"):
            run = closing.enter_context(_part("sentstream", _run_command(), directory, settings))
            parts.append(run)
        with _step(call.err, "the simulated mailer"):
            mailer = closing.enter_context(_part("mailer", _mailer_command(settings), directory, settings))
            parts.append(mailer)
        warden = _Warden(parts, stop, seconds)
        warden.start()
        notes = _notes(settings, parts)
        if not call.out.is_terminal:
            for note in notes:
                call.err.print(note)
        watcher = ProgressPoller(settings, notes=notes)
        follow(call, watcher, stop, every=EVERY if call.out.is_terminal or call.json else PLAIN_EVERY)
        warden.join()
        if warden.failed is not None:
            raise SentstreamError(
                f"{warden.failed.name} ended with exit code {warden.failed.process.exit_code}.",
                f"Its log ends: {_end_of(warden.failed.log)}",
            )
        mailer.process.end(SIGTERM, 10)
        wrong = _settled(call, settings)
        ended = run.process.end(SIGTERM, 20)
        if ended != 0:
            raise SentstreamError(f"sentstream ended with exit code {ended}.", f"Its log ends: {_end_of(run.log)}")
    return 1 if wrong else 0


def _settings(chosen: Settings, server: PrivateServer, brokers: tuple[str, ...]) -> Settings:
    """The caller's settings, but on the private servers, and on a port that is free."""
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
    """``wanted``, or another port of the same host where somebody listens there already."""
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


def _prepare(server: PrivateServer, settings: Settings) -> None:
    """The mailer's database and tables, and what `sentstream setup` makes."""
    with connect(server.url(), "demo") as admin:
        admin.execute("CREATE DATABASE mailer")
    with connect(settings.database_url, "demo") as session:
        session.execute(schema_sql().encode())
        lay_history(session)  # a campaign that was sent and shows 0: what the first recount finds
        set_up(session, Wanted(slot=settings.slot_name, publication=settings.publication))
    if settings.kafka:
        from connectors.kafka.topics import ensure, require

        require(ensure(settings))


def _broker(call: Call, closing: ExitStack) -> tuple[str, ...]:
    with _step(call.err, "Kafka (the first time its packages are fetched)"):
        from stream.demo.private_kafka import PrivateKafka

        broker = closing.enter_context(PrivateKafka())
    return split_list(broker.bootstrap)


def _run_command() -> list[str]:
    return [sys.executable, "-m", "stream.cli", "run", "--no-view"]


def _mailer_command(settings: Settings) -> list[str]:
    return [sys.executable, "-m", "stream.demo.mailer", "--database-url", settings.database_url]


@contextmanager
def _part(name: str, argv: list[str], directory: Path, settings: Settings) -> Iterator[Part]:
    """A child process with the demo's settings; it is ended with the demo."""
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


class _Warden(threading.Thread):
    """Ends the demo when its time is up, or when a part of it has ended by itself (``failed``)."""

    def __init__(self, parts: list[Part], stop: threading.Event, seconds: float | None) -> None:
        super().__init__(name="warden", daemon=True)
        self._parts = parts
        self._stop_event = stop
        self._until = None if seconds is None else time.monotonic() + seconds
        self.failed: Part | None = None

    def run(self) -> None:
        while not self._stop_event.wait(0.2):
            self.failed = next((part for part in self._parts if part.process.exit_code is not None), None)
            if self.failed is not None or (self._until is not None and time.monotonic() >= self._until):
                self._stop_event.set()


def _settled(call: Call, settings: Settings) -> int:
    """Let the stream reach the end of the WAL, hold every counter against the queue; how many are wrong."""
    with connect(settings.database_url, "demo") as session:
        _wait_for_end(session, settings.slot_name)
        counted = session.execute(
            "SELECT count(*), count(*) FILTER (WHERE NOT coalesce(d.explained_by_removed, true)) "
            "FROM sentstream.campaign_progress c LEFT JOIN sentstream.discrepancies d USING (id)"
        ).fetchone()
    campaigns, wrong = counted or (0, 0)
    if wrong:
        call.err.print(f"{words.count_of(wrong, 'counter')} of {campaigns} differ from the queue.", style="bold red")
    else:
        call.err.print(
            f"The mailer is stopped; campaigns.sent is right for all {words.count_of(campaigns, 'campaign')}."
        )
    return int(wrong)


def _wait_for_end(session: psycopg.Connection[Any], slot_name: str) -> None:
    """Wait until every partition is true up to what the WAL holds now. SentstreamError after SETTLE seconds."""
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


def _notes(settings: Settings, parts: list[Part]) -> tuple[str, ...]:
    where = [] if settings.http_address is None else [f"Dashboard: http://{settings.http_listen}/"]
    logs = ", ".join(str(part.log) for part in parts)
    return (
        *where,
        f"Database: {settings.shown('database_url')}",
        f"Logs: {logs}",
        "Ctrl-C ends it and removes everything.",
    )


def _end_of(path: Path, lines: int = 5) -> str:
    return " / ".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]) or "(it is empty)"


@contextmanager
def _step(err: Console, what: str) -> Iterator[None]:
    """Say on standard error what is being started, and how long it took."""
    began = time.monotonic()
    err.print(f"Starting {what} ...", end=" ")
    yield
    err.print(f"{words.span(time.monotonic() - began)}", style="dim")


def _seconds(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise ConfigurationError(f"--duration {text!r} {error}.") from None
