"""`lag`: how far slot, topics and flush are behind, with a verdict each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Final

import typer
from rich.table import Table
from rich.text import Text

from stream.cli import words
from stream.cli.call import Call, command
from stream.cli.progress_watch import until_stopped
from stream.metrics.lag import LagReading

app = typer.Typer()

#: seconds between two polls with `--watch`
EVERY: Final = 2.0

_STYLES: Final = {"OK": "green", "WARN": "yellow", "UNKNOWN": "dim"}  # the others: bold red
#: the columns of `kafka-consumer-groups --describe`, seconds and the verdict
_COLUMNS: Final = ("topic", "partition", "current_offset", "log_end_offset", "lag", "seconds", "consumer_id", "host")


@command(
    app,
    "lag",
    shows=("slot_name", "lag_window", "lag_allowed", "slot_allowed", "kafka_bootstrap_servers"),
    epilog="Example: `sentstream lag --json | jq .slot.bytes`",
)
def lag(
    call: Call,
    watch: Annotated[bool, typer.Option("--watch", help="Poll every two seconds, until Ctrl-C.")] = False,
) -> int:
    """How far the slot, the topics and the flush are behind. Exit code 1 unless all is OK.

    Verdicts: OK; WARN: behind, and catching up; STALL: running, without progress; STOP: not running;
    REWIND: it moved back; UNKNOWN: too few samples.
    """
    with LagReading(call.settings) as reading, call.connect("lag") as connection, until_stopped() as stop:
        while True:
            found = reading.poll(connection)
            if call.json:
                call.print_json(found)
            else:
                for line in _lines(found):
                    call.out.print(line, soft_wrap=isinstance(line, Text))
            if not watch:
                return 0 if found["verdict"] == "OK" else 1
            if stop.wait(EVERY):
                return 0


def _lines(found: Mapping[str, Any]) -> Iterator[Text | Table]:
    slot, flush, groups = found["slot"], found["flush"], found["groups"]
    yield _line("slot", slot["verdict"], _slot(slot))
    yield from _advice(slot["advice"])
    if groups:
        yield _line("groups", _worst(groups), words.safe(groups[0]["group"]))
        yield _table(groups)
    elif found["groups_error"]:
        yield _line("groups", "UNKNOWN", words.safe(found["groups_error"]))
    age = "never" if flush["age_seconds"] is None else f"{words.span(flush['age_seconds'])} ago"
    unbased = f", {words.count_of(len(flush['unbased']), 'partition')} without a baseline" if flush["unbased"] else ""
    yield _line("flush", flush["verdict"], f"last {age}{unbased}")
    yield from _advice(flush["advice"])


def _slot(slot: Mapping[str, Any]) -> str:
    if slot["bytes"] is None:
        return f"{slot['name']} is not there"
    safe = "" if slot["safe_wal_size"] is None else f" ({words.size(slot['safe_wal_size'])} left)"
    age = "?" if slot["seconds"] is None else words.span(slot["seconds"])
    read = "read" if slot["active"] else "no process reads it"
    return (
        f"{slot['name']}: {words.size(slot['bytes'])} to read, {age} old, {read}, "
        f"holds {words.size(slot['held_bytes'] or 0)} of WAL{safe}, {slot['wal_status']}"
    )


def _worst(groups: Sequence[Mapping[str, Any]]) -> str:
    from stream.core.lag import LagVerdict, worst

    return worst(LagVerdict(group["verdict"]) for group in groups).value


def _table(groups: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for column in _COLUMNS:
        table.add_column(column.upper().replace("_", "-"), overflow="fold")
    table.add_column("VERDICT")
    for group in groups:
        values = ["-" if group[column] is None else words.safe(str(group[column])) for column in _COLUMNS]
        table.add_row(*values, Text(group["verdict"], style=_style(group["verdict"])))
    return table


def _line(title: str, verdict: str, text: str) -> Text:
    line = Text(f"{title:<8}", style="bold")
    line.append(f"{verdict:<9}", style=_style(verdict))
    line.append(text, style="none")
    return line


def _advice(text: str) -> Iterator[Text]:
    if text:
        yield Text(f"{'':<17}{text}", style="yellow")


def _style(verdict: str) -> str:
    return _STYLES.get(verdict, "bold red")
