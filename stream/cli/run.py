"""`run`: the whole of sentstream by one command, embedded or, with Kafka, as four roles."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Annotated

import typer

from stream.cli.call import Call, command
from stream.cli.extras import require_extra
from stream.config.sources import Settings, reload
from stream.core.errors import ConfigurationError
from stream.core.report import Report
from stream.service import logs

app = typer.Typer()
log = logging.getLogger("sentstream.run")

_EXAMPLES = """Examples:

`sentstream run` until Ctrl-C or SIGTERM, which flush, confirm, and exit with 0

`sentstream run --once` catch up, flush, recount, exit: for cron. Exit code 1 where the recount found a drift

`sentstream run --json | jq -c '{campaign_id, sent}'` counts as they change, as `progress --watch --json`

`sentstream run --write-back false` shadow mode: only shows what it would write

`kill -HUP PID` reads intervals and allowances again
"""


@command(app, "run", shows="all", service=True, epilog=_EXAMPLES)
def run(
    call: Call,
    once: Annotated[
        bool, typer.Option("--once", help="Catch up with the WAL as it stands, flush, recount, exit.")
    ] = False,
    view: Annotated[bool, typer.Option("--view/--no-view", help="Show live counts, on a terminal or as JSON.")] = True,
) -> int:
    """Keep campaigns.sent true: read the WAL, count, write back, prove. Until it is stopped, or --once."""
    settings = call.settings
    settings.require_database()
    if settings.kafka:
        return _with_kafka(call, once)
    from stream.embedded import run

    if once:
        return run.run(settings, once=True, on_report=_telling(call))
    from stream.metrics.poller import DatabasePoller
    from stream.web import server

    if not view or not (call.json or call.out.is_terminal):
        return run.run(settings, reload=reloading(call), serve=server.start, poller=DatabasePoller)

    from stream.cli.progress_watch import ProgressPoller, following

    with following(call, ProgressPoller(settings, notes=notes(settings))):
        return run.run(settings, reload=reloading(call), serve=server.start, poller=DatabasePoller)


def _telling(call: Call) -> Callable[[Report], None]:
    """Prints the report of --once with --json, as `recount --json` does; otherwise the log line is enough."""
    if not call.json:
        return lambda _report: None
    from stream.cli.recount import report_json

    return lambda report: call.print_json(report_json(report))


def reloading(call: Call) -> Callable[[], Settings]:
    """The function that a role calls on SIGHUP: reloads the settings and logs what changed."""
    current = call.settings

    def again() -> Settings:
        nonlocal current
        found = reload(current, call.sources)
        for name in found.changed:
            log.info("%s is now %s", name.upper(), found.settings.shown(name))
        for name in found.need_restart:
            log.warning("%s changed, but stays %s until a restart", name.upper(), found.settings.shown(name))
        if "log_level" in found.changed and not call.verbose:
            logs.set_level(found.settings.log_level)
        current = found.settings
        return current

    return again


def notes(settings: Settings) -> tuple[str, ...]:
    """Lines below the campaigns in the terminal."""
    lines = []
    if settings.http_address is not None:
        lines.append(f"Dashboard: http://{settings.http_listen}/")
    if not settings.write_back:
        from stream.cli.progress_watch import SHADOW_NOTE

        lines.append(SHADOW_NOTE)
    return tuple(lines)


def _with_kafka(call: Call, once: bool) -> int:
    if once:
        raise ConfigurationError(
            "--once works without Kafka only: the roles of the Kafka mode have no common end.",
            "Unset KAFKA_BOOTSTRAP_SERVERS for this command; moving between the modes begins a new epoch.",
        )
    call.settings.require_kafka()
    require_extra("kafka")
    from stream.kafka import supervisor

    return supervisor.run(call.settings)
