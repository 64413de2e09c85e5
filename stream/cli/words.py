"""Formats numbers, times and names for people: short, unambiguous, safe on a terminal."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Final

from rich.cells import cell_len, set_cell_size

if TYPE_CHECKING:
    from connectors.postgres.queries.old_transaction import OldTransaction
    from connectors.postgres.queries.status import LastRun, Status

_CONTROL: Final = dict.fromkeys((*range(32), *range(127, 160), 0x200E, 0x200F, *range(0x202A, 0x202F), 0x2066, 0x2067,
                                 0x2068, 0x2069), "\N{REPLACEMENT CHARACTER}")  # fmt: skip


def number(value: int) -> str:
    """``20,323``."""
    return f"{value:,}"


def rate(per_minute: float) -> str:
    """``51.2/min``, ``1,200/min``; a dash for 0."""
    if per_minute <= 0:
        return "-"
    return f"{per_minute:,.0f}/min" if per_minute >= 100 else f"{per_minute:.1f}/min"


def percent(value: float | None) -> str:
    """``52.0 %``; a dash where there is nothing to send."""
    return "-" if value is None else f"{value:.1f} %"


def size(count: int) -> str:
    """``0 B``, ``12 kB``, ``1.5 GB`` (powers of 1024)."""
    amount, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while abs(amount) >= 1024 and len(units) > 1:
        amount /= 1024
        units.pop(0)
    return f"{amount:.0f} {units[0]}" if units[0] == "B" or abs(amount) >= 10 else f"{amount:.1f} {units[0]}"


def span(seconds: float) -> str:
    """``0.2 s``, ``45 s``, ``5 min``, ``2 h 05``, ``3 d``."""
    if seconds < 0:
        return "0.0 s"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02}"
    return f"{round(minutes / 1440)} d"


def ago(time: datetime | None, now: datetime) -> str:
    """``5 min ago``; ``never`` without a time."""
    return "never" if time is None else f"{span((now - time).total_seconds())} ago"


def clock(time: datetime) -> str:
    """``12:00:31 UTC``."""
    return time.astimezone(timezone.utc).strftime("%H:%M:%S UTC")


def moment(time: datetime | None) -> str:
    """``2026-03-01 12:00:31 UTC``; a dash without a time."""
    return "-" if time is None else time.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def count_of(count: int, one: str, many: str = "") -> str:
    """``1 campaign``, ``3 campaigns``."""
    return f"{number(count)} {one if count == 1 else many or one + 's'}"


def run_text(run: LastRun | None, status: Status) -> str:
    """``run 17: verified 5, 2 min ago``; only what is not 0."""
    if run is None:
        return "not verified yet"
    kinds = {name: getattr(run, name) for name in ("verified", "drift", "inconclusive", "not_comparable", "baseline")}
    found = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in kinds.items() if count)
    return f"run {run.run_id}: {found or 'no campaigns'}, {ago(run.finished_at or run.started_at, status.now)}"


def transaction_text(old: OldTransaction) -> str:
    """Whose transaction keeps recounts inconclusive, for how long, and how it ends."""
    age = "" if old.age_seconds is None else f" for {span(old.age_seconds)}"
    if old.gid is not None:
        return (
            f"prepared transaction '{safe(old.gid)}' of {safe(old.role)} in database {safe(old.database)} was left "
            f"behind{age}: recounts can't be concluded before COMMIT PREPARED or ROLLBACK PREPARED"
        )
    return (
        f"process {old.pid} ({safe(old.application) or 'no application name'}, role {safe(old.role)}, database "
        f"{safe(old.database)}) has a writing transaction open{age}: recounts can't be concluded before it ends"
    )


def safe(text: str) -> str:
    """``text`` without characters that move the cursor, change colours or turn the writing direction."""
    return text.translate(_CONTROL)


def fitted(text: str, width: int) -> str:
    """``text``, made safe, in exactly ``width`` columns; cut with an ellipsis where it is longer."""
    text = safe(text)
    if cell_len(text) <= width:
        return set_cell_size(text, width)
    return set_cell_size(set_cell_size(text, width - 1).rstrip() + "…", width)


def ascii_text(text: str) -> str:
    """``text`` for a terminal that has ASCII only, one character for one."""
    return "".join(letter if letter.isascii() else _PLAIN_LETTERS.get(letter, "?") for letter in text)


_PLAIN_LETTERS: Final = {"·": "|", "…": "~"}
