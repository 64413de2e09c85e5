"""What the tests of setup, doctor and teardown share: wishes for a database, and looks at what came of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from connectors.postgres import connect
from connectors.postgres.doctor import Thresholds, examine
from connectors.postgres.setup import Plan, Reports, Wanted, check, plan_of, set_up, tear_down
from stream.core.finding import Finding
from tests.fix_postgres import Database
from tests.waiting import eventually

USUAL = Thresholds()


def wanted(db: Database, **wishes: Any) -> Wanted:
    """The default wishes, with the database's own slot name."""
    return Wanted(**{"slot": db.slot, **wishes})


def prepare(db: Database, *, user: str = "", **wishes: Any) -> Plan:
    """Run setup, as the superuser or as ``user``."""
    with db.connect(user=user) as conn, db.connect() as watch:
        return set_up(conn, wanted(db, **wishes), Reports(watch))


def to_version_2(db: Database) -> None:
    """Take off what the schema has had since its third version, its views aside."""
    db.execute(
        "ALTER TABLE sentstream.recounts DROP CONSTRAINT recounts_counts, DROP CONSTRAINT recounts_rebase,"
        " DROP CONSTRAINT recounts_snapshot, DROP CONSTRAINT recounts_policy, DROP CONSTRAINT recounts_numbers;"
        " ALTER TABLE sentstream.progress DROP COLUMN unmatched;"
        " DELETE FROM sentstream.schema_version WHERE version > 2"
    )


def to_version_1(db: Database) -> None:
    """Take off what the schema has had since its second version."""
    to_version_2(db)
    db.execute(
        "DROP VIEW sentstream.campaign_progress, sentstream.discrepancies; DROP FUNCTION sentstream.live_counts,"
        " sentstream.mailer_campaigns; DELETE FROM sentstream.schema_version WHERE version > 1;"
        " ALTER TABLE sentstream.progress ALTER campaign_id TYPE integer;"
        " ALTER TABLE sentstream.verdicts ALTER campaign_id TYPE integer;"
        " ALTER TABLE sentstream.history ALTER campaign_id TYPE integer"
    )


def missing(db: Database, *, user: str = "", **wishes: Any) -> Plan:
    """What setup would do."""
    with db.connect(user=user) as conn:
        return plan_of(conn, wanted(db, **wishes))


def obstacle_codes(db: Database, *, user: str = "", **wishes: Any) -> set[str]:
    """Codes of what is in setup's way."""
    return {obstacle.code for obstacle in missing(db, user=user, **wishes).obstacles}


def take_off(db: Database, *, user: str = "", schema: str = "public") -> Plan:
    """Run teardown."""
    with db.connect(user=user) as conn, db.connect() as watch:
        return tear_down(conn, db.slot, "sentstream", schema, Reports(watch))


def differences(db: Database, schema: str = "public") -> set[str]:
    """Codes of what conformance finds."""
    with db.connect() as conn:
        return {difference.code for difference in check(conn, "sentstream", schema)}


def findings(
    db: Database, *, user: str = "", follow: bool = False, thresholds: Thresholds = USUAL, **wishes: Any
) -> dict[str, Finding]:
    """The doctor's findings that are not ok, by code."""
    with db.connect(user=user) as conn:
        found = examine(conn, wanted(db, **wishes), follow=follow, thresholds=thresholds)
    return {finding.code: finding for finding in found if finding.severity != "ok"}


def run_fix(db: Database, fix: str) -> None:
    """Run a fix that is SQL, statement by statement (ALTER SYSTEM goes into no transaction), as the superuser."""
    statements = [part.strip() for part in fix.partition(" --")[0].split(";") if part.strip()]
    assert statements
    with db.connect() as conn:
        for statement in statements:
            conn.execute(statement.encode())


def fill(db: Database, schema: str = "public") -> int:
    """A campaign with four rows of the queue (two of them sent); its id."""
    with db.connect() as conn:
        conn.execute(f'SET search_path = "{schema}"'.encode())
        subscriber = conn.execute(
            "INSERT INTO subscribers (email) VALUES (gen_random_uuid()::text) RETURNING id"
        ).fetchone()
        campaign = conn.execute(
            "INSERT INTO campaigns (name, status, to_send, sent) VALUES ('spring', 'running', 4, 2) RETURNING id"
        ).fetchone()
        assert subscriber is not None
        assert campaign is not None
        for status in ("sent", "sent", "queued", "failed"):
            conn.execute(
                "INSERT INTO email_queue (campaign_id, subscriber_id, status) VALUES (%s, %s, %s)",
                (campaign[0], subscriber[0], status),
            )
    return int(campaign[0])


def mailer_works(db: Database, schema: str = "public") -> None:
    """The mailer's own statements succeed: fails with the server's error where identity and lists are at odds."""
    with db.connect() as conn:
        conn.execute(f'UPDATE "{schema}".email_queue SET last_error = last_error'.encode())
        conn.execute(f'UPDATE "{schema}".campaigns SET updated_at = updated_at'.encode())


def identity(db: Database, table: str = "email_queue") -> tuple[str, str | None]:
    """relreplident, and the index that is the identity."""
    ((letter, index),) = db.execute(
        "SELECT c.relreplident::text, (SELECT i.relname::text FROM pg_index d JOIN pg_class i ON i.oid = d.indexrelid "
        "WHERE d.indrelid = c.oid AND d.indisreplident) FROM pg_class c WHERE c.relname = %s",
        table,
    )
    return letter, index


def own_tables(db: Database, owner: str) -> None:
    """Give the mailer's tables to ``owner``, who may create in the database, as on a managed server."""
    for (table,) in db.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"):
        db.execute(f'ALTER TABLE public."{table}" OWNER TO {owner}')
    db.execute(f"GRANT CREATE ON DATABASE {db.name} TO {owner}; GRANT CREATE ON SCHEMA public TO {owner}")


@contextmanager
def open_transaction(
    db: Database, statement: str, application: str = "listmonk", user: str = ""
) -> Iterator[connect.Connection]:
    """A session of the mailer's that has run ``statement`` and left its transaction open."""
    conn = db.connect(autocommit=False, user=user)
    try:
        conn.execute("SELECT set_config('application_name', %s, false)", (application,))
        conn.execute(statement.encode())
        yield conn
    finally:
        conn.close()


def leave_invalid_index(db: Database) -> None:
    """What a build CONCURRENTLY leaves that was interrupted; needs a row in the queue."""
    with open_transaction(db, "UPDATE email_queue SET priority = 1"), db.connect() as conn:
        conn.execute("SET lock_timeout = '100ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            conn.execute(
                "CREATE UNIQUE INDEX CONCURRENTLY email_queue_sentstream ON email_queue (campaign_id, status, id)"
            )


@contextmanager
def in_background(work: Callable[[], object]) -> Iterator[threading.Thread]:
    """``work`` in a thread, joined at the end; its error, if any, fails the test."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield thread
    thread.join(30)
    assert not thread.is_alive()
    if failed:
        raise failed[0]


def waits_for_lock(db: Database, application: str) -> None:
    """Return when the session of that application name waits for a lock."""
    eventually(
        lambda: db.value(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND wait_event_type = 'Lock'",
            application,
        )
    )
