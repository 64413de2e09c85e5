"""A row of ``sentstream.recounts`` as it stands in the WAL, read into a value.

Any role with INSERT on that table can write a row, so nothing of it is taken on trust: what can't be read, or lies out
of bounds, makes the run inconclusive and never stops the stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from .entries import Counted, RecountRow

#: more rows than a queue can hold; sums of such counts still fit the columns they are written to
_MOST_ROWS: Final = 1 << 48
_BIGINT: Final = 1 << 63
#: the end of the year 9999, in microseconds since 1970: what a date can show
_END_OF_TIME: Final = 253_402_300_800_000_000


def read_recount(row: Mapping[str, Any]) -> RecountRow:
    """The recount that a row holds; ``row`` by column name. ``fault`` says what of it can't be read."""
    fault = None
    counts: dict[int, Counted] = {}
    rebase: tuple[int, ...] | Literal["all"] | None = None
    try:
        counts = _counts(row["counts"])
        rebase = _rebase(row.get("rebase"))
        started_at, lsn = _time(row.get("started_at") or 0), row.get("lsn") or 0
    except ValueError as error:
        fault, counts, rebase, started_at, lsn = str(error), {}, None, 0, 0
    return RecountRow(
        run_id=row["run_id"],
        trigger=row.get("trigger") or "manual",
        requested_by=row.get("requested_by") or "",
        started_at=started_at,
        lsn=lsn,
        snapshot=row["snapshot"] or "",
        counts=counts,
        rebase=rebase,
        epoch=row.get("epoch") or 0,
        fault=fault,
    )


def _counts(value: Any) -> dict[int, Counted]:
    if not isinstance(value, dict):
        raise ValueError("its counts are no object")
    return {_campaign(number): _counted(number, counted) for number, counted in value.items()}


def _campaign(text: Any) -> int:
    try:
        number = int(text)
    except (TypeError, ValueError):
        raise ValueError(f"its counts or its rebase name a campaign {text!r:.40}") from None
    if not -_BIGINT <= number < _BIGINT or str(number) != str(text):
        raise ValueError(f"its counts or its rebase name a campaign {text!r:.40}")
    return number


def _counted(number: str, value: Any) -> Counted:
    if not isinstance(value, list) or len(value) != 6 or not all(type(n) is int for n in value):
        raise ValueError(f"its counts of campaign {number:.40} are not six integers")
    queued, sending, sent, failed, cancelled, shown = value
    if not all(0 <= n < _MOST_ROWS for n in value[:5]) or not -_BIGINT <= shown < _BIGINT:
        raise ValueError(f"its counts of campaign {number:.40} lie out of bounds")
    return Counted((queued, sending, sent, failed, cancelled), shown)


def _rebase(value: Any) -> tuple[int, ...] | Literal["all"] | None:
    if value is None:
        return None
    if value == "all":
        return "all"
    if not isinstance(value, list) or not all(type(n) is int for n in value):
        raise ValueError("its rebase is neither a list of campaigns nor all of them")
    return tuple(map(_campaign, value)) or None


def _time(value: int) -> int:
    if not 0 <= value < _END_OF_TIME:
        raise ValueError("the time at which it began lies out of bounds")
    return value
