"""The plan as a script for a DBA: the very statements that setup would run, for psql as it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from connectors.postgres.catalog.names import quoted
from connectors.postgres.setup.apply import LOCK_TIMEOUT, PATIENT_TIMEOUT
from connectors.postgres.setup.plan import Step

_WHO = {
    "owner": "as the owner of the mailer's tables",
    "replication": "as a role with REPLICATION",
}


def script(steps: Sequence[Step], *, database: str, command: str = "setup") -> str:
    """SQL text, runnable by ``psql -d DATABASE -f``. Empty of statements where nothing is to do."""
    return "\n".join(_lines(steps, database, command)) + "\n"


def _lines(steps: Sequence[Step], database: str, command: str) -> Iterator[str]:
    yield f"-- sentstream {command}: run in database {quoted(database)}"
    yield "\\set ON_ERROR_STOP on"
    if not steps:
        yield "-- nothing to do"
        return
    part = ""
    for step in steps:
        if step.part != part:
            part = step.part
            yield f"\n-- part {part}: {_WHO[part]}"
        yield f"\n-- {step.purpose}"
        if step.alone:
            yield f"SET lock_timeout = {round(PATIENT_TIMEOUT * 1000)};"
            yield from step.statements
            yield "RESET lock_timeout;"
        else:
            yield "BEGIN;"
            yield f"SET LOCAL lock_timeout = {round(LOCK_TIMEOUT * 1000)};"
            yield from step.statements
            yield "COMMIT;"
