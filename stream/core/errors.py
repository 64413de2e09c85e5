"""What can go wrong, as a small hierarchy: each message says what is wrong, where, and what to do.

The interfaces turn these into one line and an exit code; nothing else in the package prints an error.
"""

from __future__ import annotations


class SentstreamError(Exception):
    """Any error of ours. ``fix`` is the next step for the reader, ``code`` the exit status of a command."""

    code = 1

    def __init__(self, what: str, fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.what} {self.fix}".rstrip() if self.fix else self.what


class ConfigurationError(SentstreamError):
    """A setting that is missing, malformed or contradicts another; the message names its key."""

    code = 2


class UnreachableError(SentstreamError):
    """A server (PostgreSQL, Kafka) that does not answer, or refuses to let us in."""

    code = 3


class OtherHistoryError(UnreachableError):
    """The database's watermarks are of another history than its WAL (a restore, a fail-over): nothing may be applied
    until a reader has begun a new epoch there. Trying again later is the cure."""


class PreconditionError(SentstreamError):
    """The database is not as ``setup`` leaves it: going on would count wrongly, so counting stops with this error."""


class ProtocolError(SentstreamError):
    """A replication message that can't be decoded. What can't be counted isn't confirmed."""


class UncountableError(SentstreamError):
    """A row whose status is none of the five, or whose campaign is unknown to the stream: counting stops."""


class FencedError(SentstreamError):
    """A flush found its watermark moved by another process: load again, go on from there."""


class PoisonError(SentstreamError):
    """A record of the changes topic that is no batch; ``where`` is topic, partition and offset."""
