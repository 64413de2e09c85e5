"""How values of settings are written: durations, sizes, lists, addresses, and secrets that never show.

Each ``parse_`` raises ValueError whose text continues the sentence "KEY 'value' ...": "must be a duration such as ...".
"""

from __future__ import annotations

import math
import re
from urllib.parse import urlsplit

_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*([a-zA-Z]*)\s*\Z")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SECOND_WORDS = {
    "": "s",
    "sec": "s",
    "secs": "s",
    "second": "s",
    "seconds": "s",
    "min": "m",
    "mins": "m",
    "minute": "m",
    "minutes": "m",
    "hour": "h",
    "hours": "h",
    "day": "d",
    "days": "d",
}
_BYTES = {"": 1, "b": 1, "kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30, "tb": 1 << 40}
#: a century: anything above is a typing error, and would overflow timers
_LONGEST = 100 * 366 * 86400.0


class SecretText(str):
    """A text whose repr is masked, so that it can't slip into a log by way of a container's repr."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'" if self else "''"


def parse_duration(value: object) -> float:
    """Seconds of ``100ms``, ``5s``, ``5m``, ``2h``, ``400d``, ``400 days`` or a number of seconds. Above 0."""
    problem = "must be a duration above 0 such as 100ms, 5s, 5m, 400d or a number of seconds"
    if isinstance(value, bool):
        raise ValueError(problem)
    if isinstance(value, (int, float)):
        seconds = float(value)
    else:
        match = _NUMBER.match(str(value))
        if match is None:
            raise ValueError(problem)
        word = match[2].lower()
        unit = _SECONDS.get(_SECOND_WORDS.get(word, word))
        if unit is None:
            raise ValueError(problem)
        # dividing keeps 100ms at 0.1, where multiplying by 0.001 does not
        seconds = float(match[1]) / 1000 if unit == 0.001 else float(match[1]) * unit
    if not math.isfinite(seconds) or seconds <= 0:
        raise ValueError(problem)
    if seconds > _LONGEST:
        raise ValueError("must be shorter than a hundred years")
    return seconds


def show_duration(seconds: float) -> str:
    """The shortest writing that `parse_duration` reads as the same number: ``100ms``, ``5s``, ``5m``, ``400d``."""
    for unit in ("d", "h", "m", "s"):
        size = _SECONDS[unit]
        if seconds >= size and (seconds / size).is_integer():
            return f"{int(seconds / size)}{unit}"
    milliseconds = seconds * 1000
    if seconds < 1 and round(milliseconds) >= 1 and round(milliseconds) / 1000 == seconds:
        return f"{round(milliseconds)}ms"
    text = format(seconds, ".17f").rstrip("0").rstrip(".")
    short = format(seconds, "f").rstrip("0").rstrip(".")
    return (short if float(short or 0) == seconds else text) + "s"


def parse_size(value: object) -> int:
    """Bytes of ``64MB``, ``1GB``, ``500kB`` (powers of 1024, as PostgreSQL's) or a number of bytes. 0 or above."""
    problem = "must be a size such as 500kB, 64MB, 1GB or a number of bytes"
    if isinstance(value, bool):
        raise ValueError(problem)
    if isinstance(value, int):
        size: float = value
    else:
        match = _NUMBER.match(str(value))
        unit = None if match is None else _BYTES.get(match[2].lower())
        if match is None or unit is None:
            raise ValueError(problem)
        size = float(match[1]) * unit if "." in match[1] else int(match[1]) * unit
    if size < 0 or size >= 1 << 63:
        raise ValueError(problem)
    return int(size)


def show_size(size: int) -> str:
    """The largest unit that divides it: ``64MB``; `parse_size` reads it back."""
    for unit in ("TB", "GB", "MB", "kB"):
        whole = _BYTES[unit.lower()]
        if size and size % whole == 0:
            return f"{size // whole}{unit}"
    return f"{size}B" if size else "0"


def split_list(value: object) -> tuple[str, ...]:
    """The words of a comma-separated text, or of a list."""
    if isinstance(value, str):
        return tuple(word.strip() for word in value.split(",") if word.strip())
    if isinstance(value, (list, tuple)) and all(isinstance(word, str) for word in value):
        return tuple(word.strip() for word in value if word.strip())
    raise ValueError("must be a comma-separated text or a list of texts")


def split_address(value: str) -> tuple[str, int]:
    """Host and port of ``host:port`` or ``[::1]:port``; ValueError otherwise."""
    problem = "must be host:port, such as 127.0.0.1:8087 or [::1]:8087"
    host, colon, port = value.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(problem)
    if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ValueError(problem)
    return host, int(port)


def mask_url(url: str) -> str:
    """Scheme and host alone: the path of a webhook is often its secret."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{host}{port}/***" if host else "***"
