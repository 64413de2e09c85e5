"""Logging: to standard error, as text for people or as JSON for machines, one record a line, no secret in any.

Secrets are masked in the formatter, after arguments, extra fields and tracebacks are rendered: a filter on messages
alone would miss those. ``extra={"run_id": 7}`` becomes a field of the JSON line.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final, TextIO

import orjson

from stream.core.masking import mask_passwords, mask_values

OURS: Final = ("stream", "connectors", "sentstream")
#: Kafka's clients log each attempt to connect; what matters of that we log ourselves, once and with what to do
CLIENTS: Final = ("kafka", "aiokafka", "faust", "mode", "stream.kafka.faust_patches")
#: replacing a word of one or two letters would garble every line, and protect nothing
SHORTEST_SECRET: Final = 3

_CONTROL: Final = {number: f"\\x{number:02x}" for number in (*range(32), 127) if number not in (9, 10)} | {
    number: f"\\x{number:02x}" for number in range(0x80, 0xA0)
}
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


if TYPE_CHECKING:
    _StreamHandler = logging.StreamHandler[TextIO]
else:
    _StreamHandler = logging.StreamHandler  # not subscriptable before Python 3.11


def configure(
    level: str = "info", form: str = "text", secrets: Iterable[str] = (), stream: TextIO | None = None
) -> logging.Handler:
    """Configure logging, or configure it again. ``level``: least severity of our own records (others': warning; Kafka's
    clients are silent, unless ``level`` is debug).

    ``secrets``: words that are masked wherever they occur. Returns the handler (whose level stays free for the caller).
    """
    formatter = JsonLines(secrets) if form == "json" else TextLines(secrets, tracebacks=level == "debug")
    handler = _Handler(stream)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    set_level(level)
    logging.captureWarnings(capture=True)
    return handler


def set_level(level: str) -> None:
    """Set the least severity of our own records, and with it whether Kafka's clients are logged."""
    for name in OURS:
        logging.getLogger(name).setLevel(level.upper())
    for name in CLIENTS:
        logging.getLogger(name).setLevel(logging.WARNING if level == "debug" else logging.CRITICAL)


class _Handler(_StreamHandler):
    """A type of ours, so that configuring again removes it alone. Without a stream it writes to what ``sys.stderr`` is
    at that moment: a live view replaces that, and log lines then scroll by above it.
    """

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__(sys.stderr if stream is None else stream)
        self._follows = stream is None

    def emit(self, record: logging.LogRecord) -> None:
        if self._follows:
            self.stream = sys.stderr
        super().emit(record)


class _Masking(logging.Formatter):
    """Masks secrets after arguments and tracebacks are rendered."""

    def __init__(self, secrets: Iterable[str]) -> None:
        super().__init__()
        self._secrets = sorted({word for word in secrets if len(word) >= SHORTEST_SECRET}, key=len, reverse=True)

    def masked(self, text: str) -> str:
        """``text`` without a secret."""
        for word in self._secrets:
            text = text.replace(word, "***")
        return mask_passwords(text)


class TextLines(_Masking):
    """``12:00:01.250 INFO  embedded: message``; a traceback follows only where ``tracebacks`` is set."""

    def __init__(self, secrets: Iterable[str], *, tracebacks: bool = False) -> None:
        super().__init__(secrets)
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, timezone.utc).isoformat(" ", "milliseconds")[:-6]
        who = record.name.rpartition(".")[2] if record.name.startswith(OURS) else record.name
        # names of campaigns reach the log: no line break or escape of theirs may pass for a record of ours
        message = record.getMessage().translate(_CONTROL).replace("\n", "\\n")
        text = f"{when}Z {record.levelname:<7} {who}: {message}"
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            text += f": {type(error).__name__}: {error}".translate(_CONTROL).replace("\n", "\\n")
            if self._tracebacks:
                text += "\n" + self.formatException(record.exc_info).translate(_CONTROL)
        return self.masked(text)


class JsonLines(_Masking):
    """``{"time": ..., "level": ..., "logger": ..., "message": ...}``, the record's extra fields, and ``exception``."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")[:-6] + "Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields.update({name: value for name, value in vars(record).items() if name not in _STANDARD})
        if record.exc_info and record.exc_info[1] is not None:
            fields["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(mask_values(fields, self.masked), option=orjson.OPT_NON_STR_KEYS).decode()
