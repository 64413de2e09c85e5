"""`demo`: a private PostgreSQL, a simulated mailer and sentstream itself, with live counts in the terminal.

At the end the mailer is stopped, the stream reaches the end of the WAL, and every counter is compared with the queue.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from signal import SIGTERM
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from stream.cli import words
from stream.cli.call import Call, command
from stream.cli.progress_watch import EVERY, ProgressPoller, follow, until_stopped
from stream.config.sources import Settings
from stream.config.values import parse_duration, split_list
from stream.core.errors import ConfigurationError
from stream.demo import session
from stream.demo.private_postgres import PrivateServer

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer()

#: seconds between two lines on the same campaign where there is no terminal
PLAIN_EVERY = 2.0

_EXAMPLES = """Examples:

`sentstream demo` until Ctrl-C

`sentstream demo --kafka` the Kafka mode, with a private broker

`sentstream demo --duration 30s --json` for a script; exit code 1 where a counter was wrong at the end
"""


@command(app, "demo", shows=("http_listen", "flush_interval", "recount_interval"), epilog=_EXAMPLES)
def demo(
    call: Call,
    kafka: Annotated[
        bool, typer.Option("--kafka", help="The Kafka mode: a private broker and the four roles.")
    ] = False,
    duration: Annotated[str | None, typer.Option(metavar="DURATION", help="End after this time.")] = None,
) -> int:
    """A private PostgreSQL and a simulated mailer: see sentstream work, with nothing to set up."""
    seconds = None if duration is None else _seconds(duration)
    chosen = call.settings
    with until_stopped() as stop, ExitStack() as closing:
        directory = Path(closing.enter_context(TemporaryDirectory(prefix="sentstream-demo-")))
        with _step(call.err, "PostgreSQL"):
            server = closing.enter_context(PrivateServer())
        settings = session.settings_of(chosen, server, _broker(call, closing) if kafka else ())
        with _step(call.err, "a mailer's database"):
            session.prepare(server, settings)
        with _step(call.err, "sentstream"):
            run = closing.enter_context(session.part("sentstream", session.run_command(), directory, settings))
        with _step(call.err, "the simulated mailer"):
            mailer = closing.enter_context(
                session.part("mailer", session.mailer_command(settings), directory, settings)
            )
        monitor = session.Monitor([run, mailer], stop, seconds)
        monitor.start()
        notes = _notes(settings, [run, mailer])
        if not call.out.is_terminal:
            for note in notes:
                call.err.print(note)
        poller = ProgressPoller(settings, notes=notes)
        follow(call, poller, stop, every=EVERY if call.out.is_terminal or call.json else PLAIN_EVERY)
        monitor.join()
        if monitor.failed is not None:
            raise monitor.failed.failure()
        mailer.process.end(SIGTERM, 10)
        campaigns, wrong = session.count_wrong(settings)
        if wrong:
            call.err.print(
                f"{words.count_of(wrong, 'counter')} of {campaigns} differ from the queue.", style="bold red"
            )
        else:
            shown = words.count_of(campaigns, "campaign")
            call.err.print(f"The mailer is stopped; campaigns.sent is right for all {shown}.")
        if run.process.end(SIGTERM, 20) != 0:
            raise run.failure()
    return 1 if wrong else 0


def _broker(call: Call, closing: ExitStack) -> tuple[str, ...]:
    with _step(call.err, "Kafka (the first time its packages are fetched)"):
        from stream.demo.private_kafka import PrivateKafka

        broker = closing.enter_context(PrivateKafka())
    return split_list(broker.bootstrap)


def _notes(settings: Settings, parts: list[session.Part]) -> tuple[str, ...]:
    where = [] if settings.http_address is None else [f"Dashboard: http://{settings.http_listen}/"]
    logs = ", ".join(str(part.log) for part in parts)
    return (
        *where,
        f"Database: {settings.shown('database_url')}",
        f"Logs: {logs}",
        "Ctrl-C ends it and removes everything.",
    )


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
