"""teardown: everything that setup made goes, everything that was there before stays or comes back."""

from __future__ import annotations

from contextlib import closing

import pytest

from connectors.postgres.setup import BlockedError, Patience, Reports, apply, plan_of, tear_down, teardown_plan_of
from stream.core.errors import PreconditionError
from tests.fix_postgres import Database
from tests.postgres.preparing import (
    differences,
    fill,
    identity,
    mailer_works,
    open_transaction,
    own_tables,
    prepare,
    run_fix,
    take_off,
    wanted,
)
from tests.postgres.test_setup import connect_reader
from tests.waiting import eventually


def everything(db: Database) -> list[object]:
    """All that setup could have touched."""
    return [
        db.execute("SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' ORDER BY 1"),
        db.execute("SELECT pubname FROM pg_publication"),
        db.execute("SELECT slot_name FROM pg_replication_slots WHERE database = current_database()"),
        db.execute(
            "SELECT relname, relkind, relreplident FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1"
        ),
        db.execute("SELECT id, status, sent, to_send, updated_at FROM campaigns ORDER BY 1"),
        db.execute("SELECT id, campaign_id, status FROM email_queue ORDER BY 1"),
    ]


@pytest.mark.parametrize("mode", ["index", "full"])
@pytest.mark.parametrize(
    "before",
    ["DEFAULT", "FULL", "NOTHING", "USING INDEX other"],
)
def test_the_old_identity_comes_back_and_the_mailer_is_as_it_was(mailer_db: Database, before: str, mode: str) -> None:
    db = mailer_db
    fill(db)
    role = db.role("LOGIN REPLICATION")
    db.execute(
        f"CREATE UNIQUE INDEX other ON email_queue (id, status); ALTER TABLE email_queue REPLICA IDENTITY {before}"
    )
    was = everything(db)
    was_identity = identity(db)
    prepare(db, identity=mode, role=role)
    assert everything(db) != was
    made = take_off(db)
    assert made.steps[0].code == "slot", "the slot goes first"
    assert identity(db) == was_identity
    assert not db.value(
        "SELECT bool_or(has_table_privilege(%s, oid, 'SELECT') OR has_any_column_privilege(%s, oid, 'UPDATE')) "
        "FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'",
        role,
        role,
    )
    assert everything(db) == was


def test_a_second_teardown_finds_nothing(any_mailer_db: Database) -> None:
    db = any_mailer_db
    fill(db)
    prepare(db)
    assert take_off(db).steps
    assert take_off(db).steps == ()
    assert take_off(db).obstacles == ()
    mailer_works(db)


def test_teardown_of_a_database_that_was_never_prepared(mailer_db: Database) -> None:
    assert take_off(mailer_db).steps == ()


def test_setup_after_teardown(any_mailer_db: Database) -> None:
    for _ in range(2):
        prepare(any_mailer_db)
        assert differences(any_mailer_db) == set()
        take_off(any_mailer_db)


def test_teardown_goes_on_where_it_stopped(mailer_db: Database) -> None:
    """Whatever was dropped by hand before, or by a teardown that died."""
    db = mailer_db
    prepare(db)
    with db.connect() as conn:
        for _ in range(5):
            apply(conn, teardown_plan_of(conn, db.slot, "sentstream", "public").steps[:1])
        assert teardown_plan_of(conn, db.slot, "sentstream", "public").steps == ()
    assert identity(db) == ("d", None)


def test_an_identity_that_somebody_set_since_stays(mailer_db: Database) -> None:
    prepare(mailer_db)
    mailer_db.execute("DROP PUBLICATION sentstream; ALTER TABLE email_queue REPLICA IDENTITY FULL")
    take_off(mailer_db)
    assert identity(mailer_db) == ("f", None)


def test_the_holder_of_the_slot_is_named_and_nothing_else_dropped(mailer_db: Database) -> None:
    db = mailer_db
    prepare(db)
    with closing(connect_reader(db)) as reader:
        eventually(lambda: db.value("SELECT active FROM pg_replication_slots WHERE slot_name = %s", db.slot))
        with db.connect() as conn:
            steps = teardown_plan_of(conn, db.slot, "sentstream", "public").steps
            with pytest.raises(BlockedError) as caught:
                apply(conn, steps, patience=Patience(slot=0.3))
        assert f"process {reader.info.backend_pid}" in caught.value.what
        assert differences(db) == set()
    take_off(db)


def test_a_lock_in_the_way_is_named(mailer_db: Database) -> None:
    db = mailer_db
    prepare(db)
    with open_transaction(db, "SELECT count(*) FROM email_queue", "pg_dump"):
        with db.connect() as conn, db.connect() as watch, pytest.raises(BlockedError) as caught:
            tear_down(conn, db.slot, "sentstream", "public", Reports(watch), Patience(locks=0.5))
        assert "pg_dump" in caught.value.what
    take_off(db)


def test_each_role_does_its_part_and_is_told_of_the_rest(mailer_db: Database) -> None:
    db = mailer_db
    owner, runner = db.role(), db.role("LOGIN REPLICATION")
    own_tables(db, owner)
    prepare(db, user=owner, part="owner", role=runner)
    prepare(db, user=runner, part="replication")
    with pytest.raises(PreconditionError, match="as a role with REPLICATION"):
        take_off(db, user=owner)
    assert differences(db) == set()
    with pytest.raises(PreconditionError, match=f"as {owner}"):
        take_off(db, user=runner)
    assert db.value("SELECT count(*) FROM pg_replication_slots WHERE slot_name = %s", db.slot) == 0
    assert differences(db) == set(), "only the slot is gone"
    take_off(db, user=owner)
    assert db.value("SELECT count(*) FROM pg_namespace WHERE nspname = 'sentstream'") == 0
    assert identity(db) == ("d", None)
    with db.connect(user=owner) as conn:
        assert plan_of(conn, wanted(db, part="owner")).obstacles == ()


def test_views_of_others_on_our_schema_are_not_dropped_with_it(mailer_db: Database) -> None:
    db = mailer_db
    prepare(db)
    db.execute("CREATE VIEW public.report AS SELECT id, sent FROM sentstream.campaign_progress")
    with db.connect() as conn:
        (obstacle,) = teardown_plan_of(conn, db.slot, "sentstream", "public").obstacles
    assert obstacle.code == "schema_used"
    with pytest.raises(PreconditionError, match=r"public\.report"):
        take_off(db)
    run_fix(db, obstacle.fix)
    take_off(db)


def test_a_publication_or_schema_that_is_not_ours_stays(mailer_db: Database) -> None:
    db = mailer_db
    db.execute("CREATE SCHEMA sentstream; CREATE TABLE sentstream.diary (day date)")
    db.execute("CREATE PUBLICATION sentstream FOR TABLE settings")
    made = take_off(db)
    assert made.steps == ()
    assert len(made.notes) == 2
