"""setup: what it makes, that it makes it once, and that the mailer goes on meanwhile."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from contextlib import closing

import psycopg
import pytest

from connectors.postgres import setup
from connectors.postgres.replication.slot import ensure
from connectors.postgres.setup import BlockedError, Blocker, Patience, Reports, Step, countable_from, script, set_up
from connectors.postgres.setup.versions import migrations
from stream.core.position import parse_lsn
from stream.demo.installations import find_installations
from tests.fix_postgres import Database
from tests.postgres.preparing import (
    differences,
    fill,
    identity,
    in_background,
    leave_invalid_index,
    mailer_works,
    missing,
    obstacle_codes,
    open_transaction,
    prepare,
    run_fix,
    to_version_1,
    waits_for_lock,
    wanted,
)
from tests.waiting import eventually

LISTED = {
    "email_queue": ["id", "campaign_id", "status"],
    "campaigns": ["id", "name", "status", "to_send", "sent"],
    "watermarks": ["partition", "epoch"],
}


def lists(db: Database) -> dict[str, list[str] | None]:
    """Column lists of the publication, as the server tells them; None where all columns are published."""
    rows = db.execute(
        """
        SELECT c.relname, CASE WHEN r.prattrs IS NOT NULL THEN
                   ARRAY(SELECT a.attname::text FROM pg_attribute a
                         WHERE a.attrelid = c.oid AND a.attnum = ANY (r.prattrs::int2[]) ORDER BY a.attnum) END
        FROM pg_publication_rel r JOIN pg_class c ON c.oid = r.prrelid ORDER BY 1
        """
    )
    return dict(rows)


def test_setup_makes_all_of_it(any_mailer_db: Database) -> None:
    db = any_mailer_db
    fill(db)
    made = prepare(db)
    assert [step.code for step in made.steps][-1] == "slot"
    assert differences(db) == set()
    assert identity(db) == ("i", "email_queue_sentstream")
    assert identity(db, "campaigns")[0] == "d"
    have = lists(db)
    assert {table: sorted(have[table] or []) for table in LISTED} == {t: sorted(c) for t, c in LISTED.items()}
    assert set(have) == {*LISTED, "recounts"}
    assert db.execute("SELECT plugin, temporary FROM pg_replication_slots WHERE slot_name = %s", db.slot) == [
        ("pgoutput", False)
    ]
    assert db.value("SELECT max(version) FROM sentstream.schema_version") == migrations()[-1].version
    mailer_works(db)


def test_a_failover_slot_where_the_server_knows_them(any_mailer_db: Database) -> None:
    prepare(any_mailer_db)
    slot = any_mailer_db.value(
        "SELECT to_jsonb(s) FROM pg_replication_slots s WHERE slot_name = %s", any_mailer_db.slot
    )
    assert slot.get("failover") == (True if any_mailer_db.version >= 17 else None)


def test_a_second_setup_finds_nothing_to_do(any_mailer_db: Database) -> None:
    prepare(any_mailer_db)
    again = prepare(any_mailer_db)
    assert again.steps == ()
    assert missing(any_mailer_db).done


def test_setup_goes_on_where_it_stopped(mailer_db: Database) -> None:
    """After every step it may die: the next one finishes."""
    total = len(missing(mailer_db).steps)
    for _ in range(total):
        with mailer_db.connect() as conn:
            steps = setup.plan_of(conn, wanted(mailer_db)).steps
            setup.apply(conn, steps[:1])
    assert missing(mailer_db).done
    assert differences(mailer_db) == set()


@pytest.mark.system
@pytest.mark.versions
def test_the_dry_run_applied_by_psql_gives_the_same(make_database: Callable[..., Database]) -> None:
    ours, theirs = make_database(mailer=True), make_database(mailer=True)
    role = theirs.role("LOGIN REPLICATION")  # goes with the database that is dropped last
    prepare(ours, role=role)
    with theirs.connect() as conn:
        text = script(setup.plan_of(conn, wanted(theirs, role=role)).steps, database=theirs.name)
    psql = next(found.bindir / "psql" for found in find_installations() if (found.bindir / "psql").exists())
    done = subprocess.run([psql, "-X", "-q", "-d", theirs.url], input=text, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert missing(theirs, role=role).done
    assert catalog(theirs) == catalog(ours)


def catalog(db: Database) -> list[object]:
    """Everything that setup makes or changes."""
    return [
        lists(db),
        identity(db),
        db.execute(
            "SELECT relname, relkind, relacl FROM pg_class WHERE relnamespace = 'sentstream'::regnamespace ORDER BY 1"
        ),
        db.execute("SELECT relname, relacl FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1"),
        db.execute("SELECT attacl FROM pg_attribute WHERE attrelid = 'campaigns'::regclass AND attname = 'sent'"),
        db.execute("SELECT indexdef FROM pg_indexes WHERE indexname = 'email_queue_sentstream'"),
        db.execute("SELECT key, value FROM sentstream.setup_state WHERE key <> 'countable_from' ORDER BY 1"),
        db.execute("SELECT version, release FROM sentstream.schema_version ORDER BY 1"),
    ]


def test_an_invalid_leftover_of_the_index_is_rebuilt(any_mailer_db: Database) -> None:
    db = any_mailer_db
    fill(db)
    leave_invalid_index(db)
    assert db.value("SELECT indisvalid FROM pg_index WHERE indexrelid = 'email_queue_sentstream'::regclass") is False
    codes = [step.code for step in prepare(db).steps]
    assert codes[codes.index("index") - 1] == "index_invalid"
    assert differences(db) == set()


def test_an_index_that_is_being_built_is_left_to_its_builder(mailer_db: Database) -> None:
    db = mailer_db

    def build() -> None:
        with db.connect() as conn:
            conn.execute("SET application_name = 'builder'")
            conn.execute(
                "CREATE UNIQUE INDEX CONCURRENTLY email_queue_sentstream ON email_queue (campaign_id, status, id)"
            )

    fill(db)
    with open_transaction(db, "UPDATE email_queue SET priority = 1") as blocker, in_background(build):
        waits_for_lock(db, "builder")
        assert "index_building" in obstacle_codes(db)
        blocker.rollback()
    assert prepare(db).obstacles == ()


def test_who_blocks_the_index_is_named_with_what_ends_it(mailer_db: Database) -> None:
    db = mailer_db
    fill(db)
    seen: list[Blocker] = []
    with open_transaction(db, "UPDATE email_queue SET priority = 1") as blocker:
        with db.connect() as conn, db.connect() as watch, pytest.raises(BlockedError) as caught:
            set_up(conn, wanted(db), Reports(watch, wait=seen.append), Patience(long=1.0))
        pid = blocker.info.backend_pid
        assert [found.pid for found in seen] == [pid]
        for word in (f"process {pid}", "listmonk", "UPDATE email_queue SET priority = 1", "since 2"):
            assert word in caught.value.what
        assert f"SELECT pg_terminate_backend({pid});" in caught.value.fix
        run_fix(db, seen[0].fix)
    prepare(db)
    assert differences(db) == set()


def test_a_table_lock_is_waited_for_seconds_only_and_its_holder_named(mailer_db: Database) -> None:
    db = mailer_db
    db.execute("CREATE UNIQUE INDEX email_queue_sentstream ON email_queue (campaign_id, status, id)")
    with open_transaction(db, "SELECT count(*) FROM email_queue", "pg_dump") as blocker:
        with db.connect() as conn, db.connect() as watch, pytest.raises(BlockedError) as caught:
            set_up(conn, wanted(db), Reports(watch), Patience(locks=0.5))
        assert f"process {blocker.info.backend_pid}" in caught.value.what
        assert "pg_dump" in caught.value.what
        blocker.rollback()
    assert prepare(db).steps[0].code == "identity"  # the schema was done and stayed


def test_two_setups_at_once_do_not_meet(mailer_db: Database) -> None:
    db = mailer_db
    fill(db)

    def on_step(step: Step) -> None:
        if step.code == "index":
            with pytest.raises(BlockedError, match="at work"):
                prepare(db)

    with db.connect() as conn:
        set_up(conn, wanted(db), Reports(step=on_step))
    assert prepare(db).steps == ()


def test_a_prepared_transaction_in_the_way_of_the_slot_is_named(mailer_db: Database) -> None:
    db = mailer_db
    fill(db)
    prepare(db, part="owner")
    gid = f"left behind {db.name}"
    with db.connect(autocommit=False) as conn:
        conn.execute("UPDATE email_queue SET priority = 2")
        conn.execute(f"PREPARE TRANSACTION '{gid}'".encode())
    try:
        with db.connect() as conn, db.connect() as watch, pytest.raises(BlockedError) as caught:
            set_up(conn, wanted(db, part="replication"), Reports(watch), Patience(long=1.0))
        assert gid in caught.value.what
        assert f"ROLLBACK PREPARED '{gid}';" in caught.value.fix
    finally:
        db.execute(f"ROLLBACK PREPARED '{gid}'")
    prepare(db, part="replication")


def test_full_and_a_column_list_never_meet_and_the_mailer_goes_on(any_mailer_db: Database) -> None:
    """Between any two steps of a switch the mailer's updates work; there and back."""
    db = any_mailer_db
    fill(db)
    prepare(db)
    for mode in ("full", "index", "full", "index"):

        def on_step(_: Step) -> None:
            mailer_works(db)
            assert "full_with_list" not in differences(db)

        with db.connect() as conn:
            set_up(conn, wanted(db, identity=mode), Reports(step=on_step))
        assert identity(db)[0] == {"full": "f", "index": "i"}[mode]
        mailer_works(db)
        assert differences(db) == set()
        assert (lists(db)["email_queue"] is None) == (mode == "full")
        assert missing(db).done, "a setup without a wish keeps the mode"


def test_full_from_the_start(mailer_db: Database) -> None:
    fill(mailer_db)
    prepare(mailer_db, identity="full")
    assert identity(mailer_db) == ("f", None)
    assert lists(mailer_db)["email_queue"] is None
    assert differences(mailer_db) == set()
    mailer_works(mailer_db)


def test_a_migration_of_the_mailer_goes_through_released_columns(any_mailer_db: Database) -> None:
    db = any_mailer_db
    fill(db)
    prepare(db)
    with pytest.raises(psycopg.Error, match="publication"):
        db.execute("ALTER TABLE email_queue ALTER COLUMN campaign_id TYPE bigint")
    made = prepare(db, release=True)
    assert any("migration" in note for note in made.notes)
    assert differences(db) == set(), "released columns count right"
    assert missing(db).steps, "--check tells that the lists are off"
    for column in ("email_queue ALTER COLUMN campaign_id", "campaigns ALTER COLUMN sent", "campaigns ALTER COLUMN id"):
        db.execute(f"ALTER TABLE {column} TYPE bigint")
    assert differences(db) == set()
    mailer_works(db)
    prepare(db)
    assert lists(db)["email_queue"] == ["id", "campaign_id", "status"]
    assert differences(db) == set()
    assert db.execute("SELECT sent, queue_sent FROM sentstream.campaign_progress") == [(2, 0)]


def test_under_full_a_column_of_the_queue_is_retyped_just_so(any_mailer_db: Database) -> None:
    """No list holds it, and no view of ours depends on it."""
    db = any_mailer_db
    fill(db)
    prepare(db, identity="full")
    db.execute("ALTER TABLE email_queue ALTER COLUMN campaign_id TYPE bigint")
    db.execute("ALTER TABLE email_queue ALTER COLUMN status TYPE text")
    assert differences(db) == set()
    assert missing(db).done


def test_a_dropped_identity_index_is_replaced_and_the_mailer_rescued_at_once(mailer_db: Database) -> None:
    db = mailer_db
    fill(db)
    prepare(db)
    db.execute("DROP INDEX email_queue_sentstream")
    with pytest.raises(psycopg.Error, match="replica identity"):
        mailer_works(db)
    before = db.value("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = %s", db.slot)

    def on_step(step: Step) -> None:
        if step.code == "index":
            mailer_works(db)

    with db.connect() as conn:
        made = set_up(conn, wanted(db), Reports(step=on_step))
        since = countable_from(conn)
    assert made.steps[0].code == "identity_rescue"
    assert differences(db) == set()
    after = db.value("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = %s", db.slot)
    assert db.value("SELECT %s::pg_lsn > %s::pg_lsn AND %s::pg_lsn >= %s::pg_lsn", after, before, after, since)


def test_a_slot_that_stands_before_the_publication_is_made_again(mailer_db: Database) -> None:
    """By whoever has the right for it: the owner's part only notes the point."""
    db = mailer_db
    prepare(db)
    db.execute("DROP PUBLICATION sentstream")
    prepare(db, part="owner")
    assert [step.code for step in missing(db, part="replication").steps] == ["slot_spent", "slot"]
    prepare(db, part="replication")
    assert missing(db).done
    db.execute("SELECT pg_logical_emit_message(true, 'x', 'y')")
    # a slot from before the publication fails here
    db.execute(
        "SELECT FROM pg_logical_slot_peek_binary_changes(%s, NULL, NULL, 'proto_version', '1', "
        "'publication_names', 'sentstream')",
        db.slot,
    )


def test_a_column_dropped_with_cascade_and_put_back_is_published_again(mailer_db: Database) -> None:
    db = mailer_db
    prepare(db)
    db.execute("ALTER TABLE campaigns DROP COLUMN to_send CASCADE")
    assert {"table_unpublished", "column_missing"} <= differences(db)
    assert "column_missing" in obstacle_codes(db)
    db.execute("ALTER TABLE campaigns ADD COLUMN to_send int DEFAULT 0")
    prepare(db)
    assert differences(db) == set()


def test_a_temporary_slot_needs_none_made(mailer_db: Database) -> None:
    db = mailer_db
    prepare(db)
    assert [step.code for step in missing(db, temporary_slot=True).steps] == ["slot_unneeded"]
    prepare(db, temporary_slot=True)
    assert db.value("SELECT count(*) FROM pg_replication_slots WHERE slot_name = %s", db.slot) == 0
    assert missing(db, temporary_slot=True).done


def test_a_slot_in_use_that_has_to_go_has_its_holder_named(mailer_db: Database) -> None:
    db = mailer_db
    prepare(db)
    with closing(connect_reader(db)) as reader:
        eventually(lambda: db.value("SELECT active FROM pg_replication_slots WHERE slot_name = %s", db.slot))
        with db.connect() as conn, pytest.raises(BlockedError) as caught:
            setup.apply(conn, spent_steps(db), patience=Patience(slot=0.3))
        assert f"process {reader.info.backend_pid}" in caught.value.what
        assert "sentstream reader" in caught.value.what


def connect_reader(db: Database, slot: str = "") -> psycopg.Connection[tuple[object, ...]]:
    from connectors.postgres.connect import connect_replication

    conn = connect_replication(db.url)
    options = "proto_version '1', publication_names 'sentstream'"
    conn.pgconn.send_query(f"START_REPLICATION SLOT {slot or db.slot} LOGICAL 0/0 ({options})".encode())
    return conn


def spent_steps(db: Database) -> tuple[Step, ...]:
    return (Step("slot_spent", "Drop the slot", "replication", (f"SELECT pg_drop_replication_slot('{db.slot}');",)),)


def test_a_mailer_in_a_schema_with_a_strange_name(pg: Database) -> None:
    from connectors.mailer.tables import schema_sql

    schema = 'Mail "er; drop'
    quoted = '"Mail ""er; drop"'
    pg.execute(f"CREATE SCHEMA {quoted}; SET search_path = {quoted}; {schema_sql()}")
    role = pg.role("LOGIN REPLICATION")
    prepare(pg, mailer_schema=schema, role=role)
    assert differences(pg, schema) == set()
    assert missing(pg, mailer_schema=schema, role=role).done
    assert pg.execute("SELECT * FROM sentstream.discrepancies") == []
    with pg.connect(user=role) as conn:
        conn.execute(f"SELECT count(*) FROM {quoted}.email_queue".encode())


def test_the_schema_grows_from_an_earlier_version(mailer_db: Database) -> None:
    """With it the rights of the roles that an earlier setup was told of."""
    db = mailer_db
    role = db.role("LOGIN REPLICATION")
    prepare(db, role=role)
    to_version_1(db)
    made = prepare(db)
    assert [step.code for step in made.steps] == ["schema"] * (len(migrations()) - 1) + ["rights"]
    with db.connect(user=role) as conn:
        conn.execute("SELECT * FROM sentstream.campaign_progress")
    assert missing(db).done


def test_an_existing_empty_schema_of_the_owners_is_taken(mailer_db: Database) -> None:
    """Where a DBA makes the schema because the owner may not create in the database."""
    mailer_db.execute("CREATE SCHEMA sentstream")
    prepare(mailer_db)
    assert differences(mailer_db) == set()


def test_percent_is_clamped_and_null_without_anything_to_send(mailer_db: Database) -> None:
    db = mailer_db
    prepare(db)
    db.execute(
        "INSERT INTO campaigns (id, name, to_send, sent) VALUES (1, 'third', 3, 1), (2, 'over', 2, 5), "
        "(3, 'none', 0, 0), (4, 'none, and sent', 0, 7), (5, 'negative', 10, -3), (6, 'null', NULL, NULL), "
        "(7, 'big', 2147483647, 2147483647)"
    )
    got = dict(db.execute("SELECT id, progress_pct::float8 FROM sentstream.campaign_progress"))
    assert got == {1: 33.3, 2: 100.0, 3: None, 4: None, 5: 0.0, 6: None, 7: 100.0}


def test_discrepancies_come_from_the_queue_itself(mailer_db: Database) -> None:
    db = mailer_db
    campaign = fill(db)
    prepare(db)
    assert db.execute("SELECT * FROM sentstream.discrepancies") == []
    # whatever we counted, the view looks at the rows
    db.execute(
        "INSERT INTO sentstream.progress (campaign_id, partition, queue_sent, sent) VALUES (%s, 0, 99, 99)", campaign
    )
    assert db.execute("SELECT * FROM sentstream.discrepancies") == []
    db.execute("UPDATE campaigns SET sent = 0")
    assert db.execute("SELECT * FROM sentstream.discrepancies") == [(campaign, "spring", 0, 2, 2, 0, False)]
    db.execute("DELETE FROM email_queue")
    db.execute("UPDATE campaigns SET sent = 2")
    db.execute("UPDATE sentstream.progress SET removed = 2")
    assert db.execute("SELECT * FROM sentstream.discrepancies") == [(campaign, "spring", 2, 0, -2, 2, True)]


def test_discrepancies_read_the_index_alone(mailer_db: Database) -> None:
    db = mailer_db
    fill(db)
    prepare(db)
    with db.connect() as conn:
        conn.execute("INSERT INTO subscribers (email) SELECT g::text FROM generate_series(1, 100) g")
        conn.execute(
            "INSERT INTO email_queue (campaign_id, subscriber_id, status, last_error) "
            "SELECT 1, s.id, 'sent', repeat('x', 200) FROM subscribers s, generate_series(1, 100)"
        )
        conn.execute("VACUUM ANALYZE email_queue")
        plan = conn.execute("EXPLAIN (FORMAT json) SELECT * FROM sentstream.discrepancies").fetchone()
    text = json.dumps(plan)
    assert '"Index Only Scan"' in text
    assert "email_queue_sentstream" in text


def test_the_reader_makes_a_slot_again_that_stands_before_a_repair(mailer_db: Database) -> None:
    """Where only the owner's part of setup was run: advancing would leave transactions that span the point."""
    db = mailer_db
    prepare(db)
    with db.connect() as conn:
        assert ensure(conn, db.slot)[1] is None
        db.execute("DROP PUBLICATION sentstream")
        prepare(db, part="owner")
        slot, done = ensure(conn, db.slot)
        assert done is not None
        assert slot.confirmed >= parse_lsn(countable_from(conn) or "")
        assert ensure(conn, db.slot)[1] is None
    assert missing(db).done


#: a note that says which history it belongs to, as another part of the WAL, server or timeline would have written it
OTHERS = {
    "beyond the end of the WAL": "value || jsonb_build_object('lsn', 'FFFF/0')",
    "of another server": "value || jsonb_build_object('system', '1', 'lsn', pg_current_wal_insert_lsn())",
    "of a later timeline": "value || jsonb_build_object('timeline', 99, 'lsn', pg_current_wal_insert_lsn())",
    "of an earlier release": "to_jsonb(pg_current_wal_insert_lsn()::text)",
}


@pytest.mark.parametrize("which", OTHERS)
def test_a_point_noted_in_another_history_says_nothing_here(mailer_db: Database, which: str) -> None:
    """A database that was dumped and restored elsewhere brings its setup_state along. Its slot is whole: setup notes
    the point anew and leaves the slot as it is."""
    db = mailer_db
    prepare(db)
    at = "SELECT confirmed_flush_lsn, xmin FROM pg_replication_slots WHERE slot_name = %s"
    before = db.execute(at, db.slot)
    db.execute("SELECT pg_logical_emit_message(false, 'x', 'y')")
    db.execute(f"UPDATE sentstream.setup_state SET value = {OTHERS[which]} WHERE key = 'countable_from'")
    with db.connect() as conn:
        assert countable_from(conn) is None
        assert ensure(conn, db.slot)[1] is None
        assert [step.code for step in prepare(db).steps] == ["countable_note"]
        assert countable_from(conn) is not None
        assert ensure(conn, db.slot)[1] is None
    assert db.execute(at, db.slot) == before
    assert missing(db).done
