"""What all commands have in common: options, settings, output, connection, errors.

A command is a plain function that takes a `Call` first and returns nothing or an exit code::

    app = typer.Typer()

    @command(app, "status", shows=("mailer_schema",))
    def status(call: Call) -> int:
        "The roles, positions, slot ... (this is the help)."
        with call.connect() as connection:
            found = read_status(connection, ...)
        if call.json:
            call.print_json(found)
        else:
            call.out.print(...)
        return 0

`command` adds the options of every command: ``--config``, ``--database-url``, ``--json``, ``-v``, and a flag for each
setting, which the help lists only where the command ``shows`` it. Errors are raised as `SentstreamError`; `main` prints
them.
"""

from __future__ import annotations

import inspect
import logging
import re
import sys
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from stream.core.errors import SentstreamError

if TYPE_CHECKING:
    import psycopg
    from rich.console import Console

    from stream.config.sources import Settings, Sources

#: a wider one would leave no room for the text beside it at 80 columns
LONGEST_METAVAR: Final = 20

#: variables that Kubernetes sets for a service named `sentstream`
_SERVICE_LINK: Final = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT(_\d+_(TCP|UDP|SCTP)(_.*)?)?)\Z")

log = logging.getLogger("sentstream.config")

Command = Callable[..., "int | None"]


@dataclass(frozen=True, slots=True)
class Shared:
    """Options given before the command's name."""

    config: str | None = None
    database_url: str | None = None
    json: bool = False
    verbose: int = 0


@dataclass
class Call:
    """One run of a command. ``service``: it runs until it is stopped, and logs meanwhile."""

    flags: Mapping[str, object] = field(default_factory=dict)
    config: str | None = None
    json: bool = False
    verbose: int = 0
    service: bool = False

    @cached_property
    def settings(self) -> Settings:
        """The effective settings; logging is configured by them. ConfigurationError where one is wrong."""
        from stream.config.sources import load
        from stream.service import logs

        settings = load(self.flags, config=self.config)
        level = settings.log_level
        if self.verbose:
            level = "debug"
        elif not self.service and settings.origin("log_level").kind == "default":
            level = "warning"  # a short command does not log that it connects
        logs.configure(level, settings.log_format, settings.secrets())
        self._warn_of_unknown_variables()
        return settings

    def _warn_of_unknown_variables(self) -> None:
        from difflib import get_close_matches

        from stream.config.settings import PREFIX, setting_names
        from stream.config.sources import unknown_variables

        for name in unknown_variables():
            if _SERVICE_LINK.search(name):
                continue
            close = get_close_matches(name, [PREFIX + known.upper() for known in setting_names()], 1, 0.8)
            text = f"{name} in the environment is no setting: ignored." + (f" Is it {close[0]}?" if close else "")
            if self.service:
                log.warning(text)
            else:
                sys.stderr.write(f"sentstream: {text}\n")

    @property
    def sources(self) -> Sources:
        """Where the settings came from, to reload them on SIGHUP."""
        from stream.config.sources import Sources, find_file

        return Sources(self.flags, find_file(self.config))

    @cached_property
    def out(self) -> Console:
        """Standard output as a rich console."""
        from stream.cli.output import console

        return console(sys.stdout)

    @cached_property
    def err(self) -> Console:
        """Standard error as a rich console: progress bars and notes."""
        from stream.cli.output import console

        return console(sys.stderr)

    def print_json(self, value: object) -> None:
        """One line of JSON on standard output, flushed: one object, or one a line where a command streams."""
        from stream.cli.output import print_json

        print_json(value)

    def connect(self, role: str = "cli", **options: Any) -> psycopg.Connection[Any]:
        """A connection to the mailer's database as ``sentstream <role>``; UnreachableError names the server."""
        from connectors.postgres.connect import connect

        return connect(self.settings.require_database(), role, **options)


def command(
    app: typer.Typer,
    name: str,
    *,
    shows: Collection[str] | Literal["all"] = (),
    service: bool = False,
    epilog: str | None = None,
    hidden: bool = False,
) -> Callable[[Command], Command]:
    """Register a function as command ``name`` of ``app``; its first parameter gets the `Call`.

    ``shows``: the settings whose flags the help lists ("all": each of them); the others are accepted, too.
    """

    def register(function: Command) -> Command:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        taken = {parameter.name for parameter in own}
        added = [parameter for parameter in (*_common(), *_settings(shows)) if parameter.name not in taken]
        setting_names = {parameter.name for parameter in added} & set(_setting_names())

        def invoke(**values: Any) -> None:
            shared = values.pop("context").obj or Shared()
            flags = {key: values.pop(key) for key in setting_names}
            if shared.database_url is not None and flags.get("database_url") is None:
                flags["database_url"] = shared.database_url
            call = Call(
                flags=flags,
                config=values.pop("config") or shared.config,
                json=values.pop("json") or shared.json,
                verbose=values.pop("verbose") + shared.verbose,
                service=service,
            )
            raise typer.Exit(function(call, **values) or 0)

        context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        keyword_only = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in (*own, *added)]
        invoke.__signature__ = inspect.Signature([context, *keyword_only])  # type: ignore[attr-defined]
        invoke.__annotations__ = {}
        invoke.__doc__ = function.__doc__
        invoke.__name__ = function.__name__
        app.command(name, epilog=epilog, hidden=hidden)(invoke)
        return function

    return register


def group(app: typer.Typer, name: str, words: str) -> typer.Typer:
    """A command with commands of its own, such as ``report list``."""
    inner = typer.Typer(help=words, no_args_is_help=True)
    app.add_typer(inner, name=name)
    return inner


def report_error(error: BaseException, words: Sequence[str]) -> int:
    """Print ``error`` as one masked line on standard error; its exit code. ``-vv``: with a traceback."""
    from stream.core.masking import mask_passwords

    if "-vv" in words or sum(word in ("-v", "--verbose") for word in words) > 1:
        text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        sys.stderr.write(mask_passwords(text))
    expected = isinstance(error, SentstreamError)
    text = str(error) if expected else f"{type(error).__name__}: {error}"
    line = " ".join(mask_passwords(text).split())
    if not expected:
        line += " (a fault of sentstream's: please report it, with what -vv shows)"
    sys.stderr.write(f"sentstream: {line}\n")
    return error.code if isinstance(error, SentstreamError) else 1


def version_text() -> str:
    """``sentstream 1.2.3``."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"sentstream {version('sentstream')}"
    except PackageNotFoundError:
        return "sentstream (from a source tree)"


def _common() -> Iterable[inspect.Parameter]:
    """The options of every command."""
    kind = inspect.Parameter.KEYWORD_ONLY
    config = Annotated[str | None, typer.Option("--config", help="Configuration file; default: ./sentstream.toml.")]
    json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
    verbose = Annotated[
        int, typer.Option("--verbose", "-v", count=True, show_default=False, help="Say more; -vv: tracebacks.")
    ]
    yield inspect.Parameter("config", kind, default=None, annotation=config)
    yield inspect.Parameter("json", kind, default=False, annotation=json)
    yield inspect.Parameter("verbose", kind, default=0, annotation=verbose)


def _settings(shows: Collection[str] | Literal["all"]) -> Iterable[inspect.Parameter]:
    """A flag for each setting. Values stay text: `stream.config` parses them, with the same error messages."""
    from stream.config.settings import flag_name, setting_choices, setting_group, setting_kind, setting_text

    for name in _setting_names():
        shown = shows == "all" or name in shows or name == "database_url"
        choices = "true|false" if setting_kind(name) == "switch" else "|".join(setting_choices(name))
        long = len(choices) > LONGEST_METAVAR
        option = typer.Option(
            flag_name(name),
            help=f"{setting_text(name)} One of {choices.replace('|', ', ')}." if long else setting_text(name),
            hidden=not shown,
            rich_help_panel=f"Settings: {setting_group(name)}" if name != "database_url" else None,
            metavar=choices if choices and not long else setting_kind(name).upper(),
            show_default=False,
        )
        annotation = Annotated[str | None, option]
        yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _setting_names() -> tuple[str, ...]:
    from stream.config.settings import setting_names

    return setting_names()
