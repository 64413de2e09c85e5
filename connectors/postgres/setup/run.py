"""Setup and teardown from one end to the other: look, plan, apply, and look again whether it took."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.rows import tuple_row

from connectors.postgres.catalog.facts import Wanted
from connectors.postgres.catalog.look import look
from connectors.postgres.catalog.names import SCHEMA, literal
from connectors.postgres.setup.apply import BlockedError, Patience, Reports, apply
from connectors.postgres.setup.plan import Plan, plan
from connectors.postgres.setup.teardown import look_for_teardown, plan_teardown
from stream.core.errors import PreconditionError
from stream.core.finding import Part

Connection = psycopg.Connection[Any]


def plan_of(conn: Connection, wanted: Wanted) -> Plan:
    """What is missing, seen through ``conn`` (autocommit). Changes nothing."""
    return plan(look(conn, wanted), wanted)


def teardown_plan_of(
    conn: Connection, slot: str, publication: str, mailer_schema: str, part: Part | None = None
) -> Plan:
    """What there is to take off. Changes nothing."""
    found, rest = look_for_teardown(conn, slot, publication, mailer_schema)
    return plan_teardown(found, rest, slot, publication, mailer_schema, part)


def set_up(
    conn: Connection,
    wanted: Wanted,
    reports: Reports = Reports(),  # noqa: B008 - immutable
    patience: Patience = Patience(),  # noqa: B008 - immutable
) -> Plan:
    """Do what is missing; the plan that was carried out. Idempotent.

    PreconditionError when anything stands in the way (then nothing was changed) or did not take; BlockedError names
    who holds a lock; in both cases what was done stays done.
    """
    with _alone(conn):
        made = plan_of(conn, wanted)
        refuse(made)
        apply(conn, made.steps, reports, patience)
        left = plan_of(conn, wanted)
    if left.steps:
        what = "; ".join(f"{step.purpose}: {' '.join(step.statements)}" for step in left.steps)
        raise PreconditionError(
            f"Setup ran, and this is still missing: {what}.", "Let a superuser run these statements."
        )
    return made


def tear_down(
    conn: Connection,
    slot: str,
    publication: str,
    mailer_schema: str,
    reports: Reports = Reports(),  # noqa: B008 - immutable
    patience: Patience = Patience(),  # noqa: B008 - immutable
    *,
    part: Part | None = None,
) -> Plan:
    """Take off what setup made; the plan that was carried out. Idempotent.

    What this role may do is done first; PreconditionError then says what is left and which role can.
    """
    with _alone(conn):
        made = teardown_plan_of(conn, slot, publication, mailer_schema, part)
        apply(conn, made.steps, reports, patience)
    refuse(made)
    return made


@contextmanager
def _alone(conn: Connection) -> Iterator[None]:
    """One setup or teardown of a database at a time. Never waits, for a build CONCURRENTLY would wait for the waiting
    session."""
    key = f"hashtextextended({literal(SCHEMA + ' setup')}, 0)".encode()
    with conn.cursor(row_factory=tuple_row) as cursor:
        if cursor.execute(b"SELECT pg_try_advisory_lock(" + key + b")").fetchall() != [(True,)]:
            raise BlockedError(
                "Another setup or teardown of this database is at work.", "Wait for it, then run this again."
            )
    try:
        yield
    finally:
        if not conn.closed:
            conn.execute(b"SELECT pg_advisory_unlock(" + key + b")")


def refuse(made: Plan) -> None:
    """PreconditionError that tells all obstacles of a plan at once."""
    if not made.obstacles:
        return
    if len(made.obstacles) == 1:
        raise PreconditionError(made.obstacles[0].finding, made.obstacles[0].fix)
    said = " ".join(f"({number}) {obstacle}" for number, obstacle in enumerate(made.obstacles, 1))
    raise PreconditionError(f"{len(made.obstacles)} things stand in the way: {said}")
