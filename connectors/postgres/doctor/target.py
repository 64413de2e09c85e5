"""What the checks look at: the connection, the names that are set, the facts that setup gathers, and thresholds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import dict_row

from connectors.postgres.catalog.facts import Found, Wanted
from stream.core.finding import Finding, ok


@dataclass(frozen=True, slots=True)
class Thresholds:
    """From where on something is worth a finding."""

    #: bytes of WAL that the slot holds back
    held: int = 1 << 30
    #: seconds that a transaction may be open
    transaction: float = 300.0
    #: seconds that a prepared transaction may wait
    prepared: float = 60.0


@dataclass(frozen=True, slots=True)
class Target:
    """A database to examine. ``conn`` is in autocommit mode; ``follow``: policy REMOVED=follow; ``zone``: our
    TIMEZONE, if it is set."""

    conn: psycopg.Connection[Any]
    wanted: Wanted
    found: Found
    follow: bool = False
    thresholds: Thresholds = Thresholds()
    zone: str = ""

    def rows(self, statement: str, *parameters: object) -> list[dict[str, Any]]:
        """The rows of a query, by column name."""
        with self.conn.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(statement.encode(), parameters or None).fetchall()

    def row(self, statement: str, *parameters: object) -> dict[str, Any]:
        """The only row of a query."""
        return self.rows(statement, *parameters)[0]

    def setting(self, name: str) -> str | None:
        """A setting of the server in its unit; None where the server knows none of that name."""
        for row in self.rows("SELECT setting FROM pg_settings WHERE name = %s::text", name):
            return str(row["setting"])
        return None

    def findings_or_ok(
        self, precondition: Callable[[Found], Iterator[Finding]], code: str, all_well: str
    ) -> Iterator[Finding]:
        """What a precondition of setup says; one that is met is well by that code."""
        unmet = list(precondition(self.found))
        yield from unmet or [ok(code, all_well)]


Check = Callable[[Target], Iterator[Finding]]


def size(value: int) -> str:
    """Bytes for people: ``1.5 GB``, powers of 1024 as PostgreSQL's."""
    amount = float(value)
    for unit in ("bytes", "kB", "MB", "GB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "bytes" or amount >= 10 else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TB"
