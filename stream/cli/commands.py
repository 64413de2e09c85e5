"""The list of commands, and running one.

A module of commands holds ``app = typer.Typer()`` with its commands in it (see `stream.cli.call.command`). Only modules
whose command is named on the command line are imported; the help takes the others' descriptions from this list.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from stream.cli import output
from stream.cli.call import Shared, report_error, version_text
from stream.cli.extras import missing_extra
from stream.core.errors import ConfigurationError, SentstreamError

START: Final = "Getting started"
COUNT: Final = "Counting"
LOOK: Final = "Looking"
PROVE: Final = "Proving"
ROLES: Final = "The four roles of the Kafka mode"


@dataclass(frozen=True, slots=True)
class Entry:
    """A command: its module, and its description in the list of commands."""

    name: str
    module: str
    panel: str
    text: str


COMMANDS: Final = (
    Entry("demo", "demo", START, "A private PostgreSQL and a simulated mailer: see it work, with nothing to set up."),
    Entry("doctor", "doctor", START, "Check every precondition; each finding comes with its fix."),
    Entry("setup", "setup", START, "Prepare the mailer's database: index, publication, schema, slot."),
    Entry("teardown", "setup", START, "Drop all that setup made; leave the mailer's data alone."),
    Entry("config", "config", START, "The effective settings and where each comes from."),
    Entry("run", "run", COUNT, "Keep campaigns.sent true: the whole of sentstream by one command."),
    Entry("read", "kafka", ROLES, "The reader: WAL to Kafka."),
    Entry("work", "kafka", ROLES, "A worker: Kafka to campaigns.sent."),
    Entry("reconcile", "kafka", ROLES, "The reconciler: recounts on schedule, and their reports."),
    Entry("serve", "serve", ROLES, "The HTTP API and the dashboard."),
    Entry("progress", "progress", LOOK, "Counts, percent, rate and ETA of the campaigns."),
    Entry("explain", "explain", LOOK, "In plain words: why a campaign's number is what it is."),
    Entry("status", "status", LOOK, "Roles, positions, slot, last flush, last verification."),
    Entry("lag", "lag_command", LOOK, "How far behind, with a verdict."),
    Entry("support", "support", LOOK, "One file for a bug report; secrets masked."),
    Entry("recount", "recount", PROVE, "Count everything again now, and print the verdicts."),
    Entry("report", "report", PROVE, "Reconciliation reports: list, show, export, verify."),
)


class _RootGroup(TyperGroup):
    """The list of commands as plain text: rich's Markdown would take most of the time of ``sentstream --help``."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super(TyperGroup, self).format_help(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        shown = {name for name in self.list_commands(ctx) if not self.commands[name].hidden}
        for panel in dict.fromkeys(entry.panel for entry in COMMANDS):
            with formatter.section(panel):
                formatter.write_dl([(it.name, it.text) for it in COMMANDS if it.panel == panel and it.name in shown])


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. Nothing but the message of an error is printed, unless ``-vv`` is given."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    output.prepare()
    try:
        code = _invoke(words)
        sys.stdout.flush()
        return code
    except output.ReaderGone:
        output.discard()
        return output.READER_GONE
    except output.OutputError as error:
        output.discard()
        return report_error(error, words)


def _invoke(words: list[str]) -> int:
    if not words:
        _invoke(["--help"])
        return ConfigurationError.code
    try:
        typer.main.get_command(assemble(words)).main(words, prog_name="sentstream")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    except KeyboardInterrupt:
        return 130
    except ModuleNotFoundError as error:
        return report_error(missing_extra(error) or error, words)
    except (output.ReaderGone, output.OutputError):
        raise
    except SentstreamError as error:
        return report_error(error, words)
    except Exception as error:  # an unexpected exception is one line, too
        return report_error(error, words)
    return 0


def assemble(words: Sequence[str], *, everything: bool = False) -> typer.Typer:
    """The application, with the modules of the commands that occur in ``words`` (or ``everything``) imported."""
    everything = everything or "_SENTSTREAM_COMPLETE" in os.environ  # the shell asks; no setting of ours
    root = typer.Typer(
        name="sentstream",
        cls=_RootGroup,
        help=_HELP,
        epilog=_EPILOG,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
        add_completion=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    root.callback()(_root)
    wanted = [entry for entry in COMMANDS if everything or entry.name in words]
    for entry in COMMANDS:
        if entry not in wanted or not _add_real(root, entry):
            _add_placeholder(root, entry, missing=entry in wanted)
    return root


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(version_text())
        raise typer.Exit


def _root(
    context: typer.Context,
    config: Annotated[str | None, typer.Option(help="Configuration file; default: ./sentstream.toml.")] = None,
    database_url: Annotated[str | None, typer.Option(help="The mailer's database, as a libpq URL.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, show_default=False, help="Say more; -vv: tracebacks.")
    ] = 0,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    del version
    context.obj = Shared(config=config, database_url=database_url, json=json, verbose=verbose)


def _add_real(root: typer.Typer, entry: Entry) -> bool:
    """Add the command from its module; False where this installation lacks the module."""
    name = f"stream.cli.{entry.module}"
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            return False
        raise
    for command in module.app.registered_commands:
        if command.name == entry.name:
            command.rich_help_panel, command.short_help = entry.panel, entry.text
            root.registered_commands.append(command)
            return True
    for group in module.app.registered_groups:
        if group.name == entry.name:
            group.rich_help_panel, group.short_help = entry.panel, entry.text
            root.registered_groups.append(group)
            return True
    return False


def _add_placeholder(root: typer.Typer, entry: Entry, *, missing: bool) -> None:
    def stand_in() -> None:
        raise SentstreamError(f"`sentstream {entry.name}` is not in this installation.", "Install the whole package.")

    hidden = missing or importlib.util.find_spec(f"stream.cli.{entry.module}") is None
    root.command(entry.name, help=entry.text, rich_help_panel=entry.panel, hidden=hidden)(stand_in)


_HELP = "Keeps `campaigns.sent` true, to the second, for a mailer that queues its mail in PostgreSQL."

_EPILOG = """Try it: `sentstream demo`

Beside a mailer: `export SENTSTREAM_DATABASE_URL=postgresql://user@host/database`, then `sentstream doctor`,
`sentstream setup`, `sentstream run`, and in another terminal `sentstream progress --watch`.

Exit codes: 0 good; 1 something found; 2 usage or configuration; 3 a server can't be reached; 130 interrupted.
"""
