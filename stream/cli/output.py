"""Standard output of the commands: consoles, JSON, and what happens where it can't be written.

A text that the encoding lacks is replaced, never an error. A full disk or a closed descriptor is an `OutputError`; a
reader that left (`| head`) is `ReaderGone`, which ends a command with 141 as the signal would.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, TypeVar

from stream.core.errors import ConfigurationError
from stream.core.progress import time_text

if TYPE_CHECKING:
    from rich.console import Console

#: 128 and the number of SIGPIPE, as a shell reports it
READER_GONE = 141

_T = TypeVar("_T")


class OutputError(ConfigurationError):
    """Standard output can't be written."""


class ReaderGone(Exception):  # noqa: N818 - no error of the command
    """The program that read standard output has ended. No OSError: click and rich would exit with 1."""


class _Output(io.TextIOWrapper):
    """Standard output whose errors are `OutputError` and `ReaderGone`."""

    def write(self, text: str) -> int:
        return _checked(lambda: super(_Output, self).write(text))

    def flush(self) -> None:
        _checked(super().flush)


def prepare() -> None:
    """Replace this process' standard streams by ones that behave as above; streams that a test has set stay."""
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    if sys.stdout is None:  # closed by the caller: a descriptor that refuses to be written takes its place
        buffer = io.BufferedWriter(io.FileIO(os.open(os.devnull, os.O_RDONLY), "w"))
        sys.stdout = _Output(buffer, encoding="utf-8")
    elif sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        encoding, buffered_by_line = sys.stdout.encoding, sys.stdout.line_buffering
        sys.stdout = _Output(sys.stdout.detach(), encoding=encoding, errors="replace", line_buffering=buffered_by_line)


def discard() -> None:
    """Send what is still buffered nowhere, so that the interpreter's last flush does not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def console(stream: TextIO) -> Console:
    """A console on ``stream``. Colour only on a terminal, and not where NO_COLOR is set (rich reads it)."""
    from rich.console import Console

    return Console(file=stream, highlight=False, emoji=False, markup=False, soft_wrap=not stream.isatty())


def is_ascii(console: Console) -> bool:
    """Whether block characters can't be written there (``LANG=C``)."""
    return not console.encoding.lower().startswith("utf")


def json_text(value: object, encoding: str = "utf-8") -> str:
    """JSON of dataclasses, times (RFC 3339 in UTC) and paths; with escapes where ``encoding`` is not Unicode."""
    import orjson

    text = orjson.dumps(value, default=_plain, option=orjson.OPT_PASSTHROUGH_DATETIME).decode()
    if encoding.lower().startswith("utf"):
        return text
    import json

    return json.dumps(json.loads(text), separators=(",", ":"))


def print_json(value: object) -> None:
    """One line of JSON on standard output, flushed."""
    sys.stdout.write(json_text(value, sys.stdout.encoding or "utf-8") + "\n")
    sys.stdout.flush()


def _checked(write: Callable[[], _T]) -> _T:
    try:
        return write()
    except BrokenPipeError:
        raise ReaderGone("The reader of standard output has ended.") from None
    except OSError as error:
        raise OutputError(f"Standard output can't be written: {error.strerror}.") from None


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return time_text(value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"no JSON for {type(value).__name__}")
