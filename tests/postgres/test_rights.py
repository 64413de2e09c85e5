"""Least rights: an owner who may not replicate sets up, a role that owns nothing runs everything afterwards."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.fix_postgres import Database
from tests.postgres.preparing import differences, fill, findings, own_tables, prepare

DOCS = Path(__file__).parents[2] / "docs" / "rights.md"


@pytest.fixture
def two_roles(any_mailer_db: Database) -> tuple[Database, str, str]:
    """A database set up by its owner, who may not replicate, and a runner who has REPLICATION and owns nothing."""
    db = any_mailer_db
    owner, runner = db.role("LOGIN"), db.role("LOGIN REPLICATION")
    own_tables(db, owner)
    fill(db)
    prepare(db, user=owner, part="owner", role=runner)
    prepare(db, user=runner, part="replication")
    return db, owner, runner


def command(db: Database, role: str, *words: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    """`sentstream ...` as that role."""
    given = {"DATABASE_URL": db.url_of(role), "SLOT_NAME": db.slot, "HTTP_LISTEN": "off", **settings}
    return subprocess.run(
        [sys.executable, "-m", "stream.cli", *words],
        env={"PATH": "/usr/bin:/bin"} | {f"SENTSTREAM_{key}": value for key, value in given.items()},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_setup_works_split_between_two_roles(two_roles: tuple[Database, str, str]) -> None:
    db, owner, runner = two_roles
    assert differences(db) == set()
    for role, part in ((owner, "owner"), (runner, "replication"), (owner, "all"), (runner, "all")):
        done = command(db, role, "setup", "--check", "--part", part)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_runner_has_what_running_needs(two_roles: tuple[Database, str, str]) -> None:
    db, _, runner = two_roles
    assert set(findings(db, user=runner)) <= {"max_slot_wal_keep_size"}


def test_counting_works_as_the_runner(two_roles: tuple[Database, str, str]) -> None:
    """Baseline, a backlog, a wrong counter, recount, and what people look at."""
    db, _, runner = two_roles
    db.execute("UPDATE campaigns SET sent = 0")
    for _ in range(2):
        done = command(db, runner, "run", "--once")
        assert done.returncode == 0, done.stderr
        db.execute("UPDATE email_queue SET status = 'sent' WHERE status = 'queued'")
    done = command(db, runner, "run", "--once")
    assert done.returncode == 0, done.stderr
    assert db.execute("SELECT sent FROM campaigns") == [(3,)]
    done = command(db, runner, "progress", "--json")
    assert done.returncode == 0, done.stderr
    assert '"sent":3' in done.stdout


def test_shadow_mode_works_without_the_right_to_write(any_mailer_db: Database) -> None:
    db = any_mailer_db
    owner, runner = db.role("LOGIN"), db.role("LOGIN REPLICATION")
    own_tables(db, owner)
    fill(db)
    db.execute("UPDATE campaigns SET sent = 1")
    prepare(db, user=owner, part="owner", role=runner, write_back=False)
    prepare(db, user=runner, part="replication", write_back=False)
    with db.connect(user=runner) as conn, pytest.raises(psycopg.errors.InsufficientPrivilege):
        conn.execute("UPDATE campaigns SET sent = 2")
    done = command(db, runner, "run", "--once", WRITE_BACK="false")
    assert done.returncode == 0, done.stderr
    assert db.execute("SELECT c.sent, p.sent FROM campaigns c JOIN sentstream.progress p ON p.campaign_id = c.id") == [
        (1, 2)
    ]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE campaigns SET name = 'x'",
        "UPDATE campaigns SET updated_at = now()",
        "DELETE FROM campaigns",
        "UPDATE email_queue SET status = 'sent'",
        "DELETE FROM email_queue",
        "TRUNCATE email_queue",
        "INSERT INTO settings (key) VALUES ('x')",
        "SELECT * FROM subscribers",
        "UPDATE sentstream.setup_state SET value = '1'",
        "DELETE FROM sentstream.schema_version",
        "DROP TABLE sentstream.progress",
        "ALTER PUBLICATION sentstream DROP TABLE campaigns",
        "CREATE TABLE sentstream.more (x int)",
    ],
)
def test_what_the_runner_may_not_do(mailer_db: Database, statement: str) -> None:
    db = mailer_db
    runner = db.role("LOGIN REPLICATION")
    prepare(db, role=runner)
    with db.connect(user=runner) as conn, pytest.raises(psycopg.errors.InsufficientPrivilege):
        conn.execute(statement.encode())


def test_the_documented_rights_are_those_that_setup_grants(mailer_db: Database) -> None:
    """The SQL of the page, run for one role, gives the same as setup for another."""
    db = mailer_db
    granted, documented = db.role("LOGIN REPLICATION"), db.role("LOGIN REPLICATION")
    prepare(db, role=granted)
    text = DOCS.read_text(encoding="utf-8")
    (block,) = re.findall(r"<!-- grants -->\n```sql\n(.*?)```", text, re.DOTALL)
    db.execute(block.replace("sentstream_runner", documented))

    def rights(role: str) -> list[tuple[Any, ...]]:
        return db.execute(
            """
            SELECT c.oid::regclass::text, p, has_table_privilege(%s, c.oid, p) FROM pg_class c,
                   unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) p
            WHERE c.relnamespace IN ('public'::regnamespace, 'sentstream'::regnamespace) AND c.relkind IN ('r', 'v')
            UNION ALL
            SELECT attname, 'UPDATE', has_column_privilege(%s, 'campaigns'::regclass, attname, 'UPDATE')
            FROM pg_attribute WHERE attrelid = 'campaigns'::regclass AND attnum > 0 ORDER BY 1, 2
            """,
            role,
            role,
        )

    assert rights(documented) == rights(granted)


def test_a_missing_right_is_said_with_its_fix(mailer_db: Database) -> None:
    """As people meet it: by doctor, and by run."""
    db = mailer_db
    runner = db.role("LOGIN REPLICATION")
    prepare(db, role=runner)
    db.execute(f"REVOKE UPDATE (sent) ON campaigns FROM {runner}")
    done = command(db, runner, "doctor", "--json")
    assert done.returncode == 1
    (finding,) = [finding for finding in json.loads(done.stdout) if finding["severity"] == "critical"]
    assert finding["code"] == "rights"
    assert finding["fix"] == f"GRANT UPDATE (sent) ON public.campaigns TO {runner};"
    fill(db)
    db.execute("UPDATE campaigns SET sent = 0")
    done = command(db, runner, "run", "--once")  # counting goes on without the right
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "campaigns.sent can't be written" in done.stderr
    assert db.value("SELECT sent FROM sentstream.progress") == 2
    assert db.value("SELECT sent FROM campaigns") == 0
    assert "`sentstream doctor`" in done.stderr
