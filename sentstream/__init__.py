"""sentstream keeps ``campaigns.sent`` true for a mailer that queues its mail in PostgreSQL.

The code is in two packages beside this one: ``connectors`` talks to PostgreSQL, Kafka and the mailer, ``stream``
decides and runs. Other programs may rely on what this package exports, and on nothing else of the three.
"""

from __future__ import annotations

from stream.core.errors import SentstreamError

__all__ = ["SentstreamError", "__version__"]

__version__: str


def __getattr__(name: str) -> str:
    """``__version__``, looked up when asked for: reading the installed metadata takes longer than the rest."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415

    try:
        return version("sentstream")
    except PackageNotFoundError:  # a source tree that was not installed
        return "0+unknown"
