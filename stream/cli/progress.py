"""`progress`: per campaign counts, percent, rate over the last minute, ETA, and how old the numbers are."""

from __future__ import annotations

from typing import Annotated

import typer

from connectors.postgres.connect import Connection
from connectors.postgres.queries.progress import find_campaigns, read_progress
from connectors.postgres.queries.status import read_status
from stream.cli.call import Call, command
from stream.cli.output import is_ascii
from stream.cli.progress_view import draw, plain_line
from stream.cli.progress_watch import ProgressPoller, follow, read_view, until_stopped
from stream.config.values import parse_duration
from stream.core.errors import ConfigurationError
from stream.core.progress import to_json

app = typer.Typer()

_EXAMPLES = """Examples:

`sentstream progress` all campaigns; `sentstream progress 7 "Spring sale"` two of them, by id and by name

`sentstream progress --watch` in place, until Ctrl-C

`sentstream progress --json | jq '.campaigns[] | {name, percent}'`
"""


@command(app, "progress", shows=("mailer_schema",), epilog=_EXAMPLES)
def progress(
    call: Call,
    campaigns: Annotated[
        list[str] | None, typer.Argument(metavar="[CAMPAIGN]...", help="Ids or exact names; default: all campaigns.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep showing, until Ctrl-C.")] = False,
    every: Annotated[str, typer.Option(metavar="DURATION", help="With --watch: time between two polls.")] = "500ms",
) -> None:
    """Counts, percent, rate over the last minute and ETA of the campaigns, and how old the numbers are."""
    settings = call.settings
    chosen = campaigns or []

    def find(connection: Connection) -> tuple[int, ...] | None:
        return find_campaigns(connection, settings.mailer_schema, chosen) if chosen else None

    if watch:
        with until_stopped() as stop:
            follow(call, ProgressPoller(settings, find), stop, every=_seconds(every))
        return
    with call.connect("progress") as connection:
        ids = find(connection)
        if call.json:
            read = read_progress(connection, settings.mailer_schema, ids)
            shadow = read_status(connection, settings.slot_name).shadow
            shown = [to_json(campaign) for campaign in read.campaigns]
            call.print_json({"now": read.now, "shadow": shadow, "campaigns": shown})
            return
        view = read_view(connection, settings, ids)
    if not call.out.is_terminal:
        for campaign in view.campaigns:
            call.out.out(plain_line(campaign, view.now))
        for note in view.notes:
            call.err.print(note, style="yellow")
        return
    for line in draw(view, call.out.width, ascii_only=is_ascii(call.out)):
        call.out.print(line)


def _seconds(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise ConfigurationError(f"--every {text!r} {error}.") from None
