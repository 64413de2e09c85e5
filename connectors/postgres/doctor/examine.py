"""Running the checks: one that may not look says so as a finding, and the others go on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import psycopg

from connectors.postgres.catalog.facts import Wanted
from connectors.postgres.catalog.look import look
from connectors.postgres.catalog.names import quoted
from connectors.postgres.doctor import access, counters, mailer, publication, server, slot, transactions
from connectors.postgres.doctor.target import Check, Target, Thresholds
from stream.core.errors import UnreachableError
from stream.core.finding import Finding, critical, warning

CHECKS: tuple[Check, ...] = (
    *server.CHECKS,
    *access.CHECKS,
    *mailer.CHECKS,
    *counters.CHECKS,
    *publication.CHECKS,
    *slot.CHECKS,
    *transactions.CHECKS,
)


def examine(
    conn: psycopg.Connection[Any],
    wanted: Wanted,
    *,
    follow: bool = False,
    thresholds: Thresholds = Thresholds(),  # noqa: B008 - immutable
    checks: Sequence[Check] = CHECKS,
    zone: str = "",
) -> list[Finding]:
    """All findings about the database behind ``conn`` (autocommit), in the order of the checks. Changes nothing.

    UnreachableError when the connection breaks meanwhile.
    """
    target = Target(conn, wanted, look(conn, wanted), follow, thresholds, zone)
    findings: list[Finding] = []
    for check in checks:
        findings += run_check(check, target)
        if conn.closed:
            raise UnreachableError("The connection was lost during the examination.", "Run `sentstream doctor` again.")
    return findings


def run_check(check: Check, target: Target) -> Iterator[Finding]:
    """The findings of one check; what keeps it from looking is one, too."""
    name = check.__name__
    try:
        yield from check(target)
    except psycopg.errors.InsufficientPrivilege as error:
        user = quoted(target.found.user)
        yield warning(
            f"{name}_unseen",
            f"Role {user} may not look at this ({name.replace('_', ' ')}): {error.diag.message_primary}.",
            f"`sentstream setup --part owner --role {user}` gives it what running needs; or run doctor as the owner.",
        )
    except psycopg.errors.QueryCanceled as error:
        yield warning(
            f"{name}_unseen",
            f"Looking took too long ({name.replace('_', ' ')}): {error.diag.message_primary}.",
            "Try again when the server is less busy.",
        )
    except psycopg.Error as error:
        yield critical(
            f"{name}_failed",
            f"Looking failed ({name.replace('_', ' ')}): {error.diag.message_primary or error}.",
            "Look into the server's log.",
        )
