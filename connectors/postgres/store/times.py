"""Times as the core has them, microseconds since 1970, and as psycopg has them."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def timestamp(microseconds: int | None) -> datetime | None:
    """Microseconds since 1970 as a time; 0 and None as None."""
    return _EPOCH + timedelta(microseconds=microseconds) if microseconds else None


def microseconds(time: datetime | None) -> int:
    """A time as microseconds since 1970; None as 0."""
    return 0 if time is None else (time - _EPOCH) // timedelta(microseconds=1)
