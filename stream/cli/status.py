"""`status`: roles, positions, the slot, the last flush, the last verification."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import typer
from rich.text import Text

from connectors.postgres.queries.status import SlotStatus, Status, WatermarkStatus, read_status
from stream.cli import words
from stream.cli.call import Call, command

app = typer.Typer()

#: partitions shown, those furthest behind: in the Kafka mode there may be many
SHOWN_PARTITIONS = 5


@command(app, "status", epilog="Example: `sentstream status --json | jq .healthy`")
def status(call: Call) -> int:
    """Roles alive, positions, slot, last flush, last verification. Exit code 1 where the counts are not live."""
    settings = call.settings
    with call.connect("status") as connection:
        found = read_status(connection, settings.slot_name)
    if call.json:
        call.print_json({**asdict(found), "alive": found.alive, "healthy": found.healthy, "shadow": found.shadow})
        return 0 if found.healthy else 1
    for line in _lines(found, settings.slot_name, settings.slot_kind == "temporary"):
        call.out.print(line)
    return 0 if found.healthy else 1


def _lines(found: Status, slot_name: str, temporary: bool) -> Iterator[Text]:
    yield _line("counts", *_verdict(found))
    yield _line("campaigns", words.number(found.campaigns))
    for mark in sorted(found.watermarks, key=_age, reverse=True)[:SHOWN_PARTITIONS]:
        yield _line(f"partition {mark.partition}", *_mark(mark))
    hidden = len(found.watermarks) - SHOWN_PARTITIONS
    if hidden > 0:
        yield _line("", f"and {words.count_of(hidden, 'partition')} that are further on", "dim")
    yield _line("slot", *_slot(found.slot, slot_name, temporary))
    yield _line("verified", words.run_text(found.last_run, found))
    if found.old_transaction is not None:
        yield _line("blocked by", words.transaction_text(found.old_transaction), "yellow")
    if found.open_runs:
        yield _line("", f"{words.count_of(found.open_runs, 'recount')} not sealed yet", "dim")
    if not found.roles:
        yield _line("roles", "none connected: start `sentstream run`", "yellow")
    for number, role in enumerate(found.roles):
        since = "" if role.since is None else f", connected for {words.span((found.now - role.since).total_seconds())}"
        yield _line("roles" if number == 0 else "", f"{words.safe(role.role)} (process {role.pid}{since})")
    yield _line("server", f"PostgreSQL {found.server_version}, WAL at {found.wal_lsn}")
    yield _line("schema", f"version {found.schema_version}")


def _line(title: str, text: str, style: str = "") -> Text:
    line = Text(f"{title:<13}", style="bold")
    line.append(text, style=style or "none")
    return line


def _verdict(found: Status) -> tuple[str, str]:
    if not found.watermarks:
        return "not started: no epoch has begun. Start `sentstream run`.", "yellow"
    if found.healthy and found.shadow:
        return "live, in shadow mode: campaigns.sent is not written (WRITE_BACK=false)", "yellow"
    if found.healthy:
        return "live", "green"
    if not all(mark.based for mark in found.watermarks):
        return "no baseline yet: a recount is due, and comes as long as `run` or `reconcile` runs", "yellow"
    oldest = max((mark.age_seconds for mark in found.watermarks if mark.age_seconds is not None), default=0.0)
    doing = "it flushes, and is catching up" if found.alive else "nothing has been flushed lately: is it running?"
    return f"stale: as of {words.span(oldest)} ago; {doing}", "yellow"


def _mark(mark: WatermarkStatus) -> tuple[str, str]:
    if not mark.based:
        return f"epoch {mark.epoch}, at {mark.lsn}, no baseline yet", "yellow"
    age = "never" if mark.age_seconds is None else f"{words.span(mark.age_seconds)} ago"
    flushed = "never" if mark.flushed_seconds is None else f"{words.span(mark.flushed_seconds)} ago"
    text = f"as of {age}, flushed {flushed}, epoch {mark.epoch}, at {mark.lsn}"
    return text, "" if mark.age_seconds is not None and mark.age_seconds <= 5 else "yellow"


def _age(mark: WatermarkStatus) -> float:
    return float("inf") if mark.age_seconds is None else mark.age_seconds


def _slot(slot: SlotStatus | None, name: str, temporary: bool) -> tuple[str, str]:
    if slot is None and temporary:
        return f"{name} is temporary: `sentstream run` (Kafka mode: `read`) makes it when it starts", "yellow"
    if slot is None:
        return f"{name} does not exist: run `sentstream setup`", "red"
    reader = f"read by process {slot.pid}" if slot.active else "no process reads it"
    behind = "" if slot.bytes is None else f", {words.size(slot.bytes)} behind"
    held = "" if slot.held_bytes is None else f", holds {words.size(slot.held_bytes)} of WAL"
    state = "" if slot.wal_status in (None, "reserved") else f", WAL status {slot.wal_status}"
    return f"{slot.name}: {reader}{behind}{held}{state}", "" if slot.active and not state else "yellow"
