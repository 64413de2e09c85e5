"""doctor: each finding made real and seen, and its fix, where it is SQL, removes it. Here: what one database shows."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest

from connectors.mailer.tables import schema_sql
from connectors.postgres.doctor import CHECKS, Thresholds, examine
from connectors.postgres.doctor.counters import counters_above
from connectors.postgres.doctor.examine import run_check
from connectors.postgres.doctor.target import Target
from connectors.postgres.setup import look
from stream.core.errors import PreconditionError, UncountableError
from stream.core.finding import Finding
from tests.fix_postgres import Database
from tests.postgres.preparing import (
    differences,
    fill,
    findings,
    leave_invalid_index,
    obstacle_codes,
    open_transaction,
    prepare,
    run_fix,
    wanted,
)
from tests.postgres.running import add_campaign, count, prepared, running, shown
from tests.postgres.test_setup_conformance import CHANGES
from tests.waiting import eventually

#: what a private server shows in any state: its configuration has no limit for slots
ALWAYS = {"max_slot_wal_keep_size"}


def found(db: Database, **given: object) -> set[str]:
    return set(findings(db, **given)) - ALWAYS  # type: ignore[arg-type]


def cured(db: Database, code: str, **given: object) -> None:
    """The finding is there, its fix is SQL, and running that removes it."""
    run_fix(db, findings(db, **given)[code].fix)  # type: ignore[arg-type]
    assert code not in findings(db, **given)  # type: ignore[arg-type]


def test_a_prepared_database_has_no_findings(any_mailer_db: Database) -> None:
    fill(any_mailer_db)
    prepare(any_mailer_db)
    assert found(any_mailer_db) == set()


def test_every_check_says_something_on_a_healthy_database(mailer_db: Database) -> None:
    prepare(mailer_db)
    for check in CHECKS:
        with mailer_db.connect() as conn:
            assert examine(conn, wanted(mailer_db), checks=[check]), check.__name__


def test_every_fix_says_what_to_do(pg: Database) -> None:
    for finding in findings(pg).values():
        assert finding.fix
        assert finding.finding.endswith(".")


def test_a_database_that_is_not_set_up(mailer_db: Database) -> None:
    assert found(mailer_db) == {
        "schema_missing",
        "publication_missing",
        "identity_default",
        "index_missing",
        "slot_missing",
    }
    prepare(mailer_db)
    assert found(mailer_db) == set()


def test_a_database_without_the_mailer(pg: Database) -> None:
    assert "table_missing" in found(pg)


@pytest.mark.parametrize("code", sorted(set(CHANGES) - {"table_missing", "schema_missing"}))
def test_what_conformance_finds_is_critical(mailer_db: Database, code: str) -> None:
    prepare(mailer_db)
    mailer_db.execute(CHANGES[code])
    finding = findings(mailer_db)[code]
    assert finding.severity == "critical"


def test_an_invalid_index(mailer_db: Database) -> None:
    db = mailer_db
    fill(db)
    leave_invalid_index(db)
    assert findings(db)["index_invalid"].severity == "critical"
    prepare(db)
    assert found(db) == set()


def test_released_columns(mailer_db: Database) -> None:
    prepare(mailer_db, release=True)
    assert found(mailer_db) == {"columns_released"}
    prepare(mailer_db)
    assert found(mailer_db) == set()


def test_blocked_columns_are_told(mailer_db: Database) -> None:
    """And are really blocked."""
    prepare(mailer_db)
    with mailer_db.connect() as conn:
        told = {finding.code: finding for finding in examine(conn, wanted(mailer_db))}["blocked_columns"]
    assert told.severity == "ok"
    assert "email_queue (id, campaign_id, status)" in told.finding
    with pytest.raises(psycopg.Error):
        mailer_db.execute("ALTER TABLE campaigns ALTER COLUMN to_send TYPE bigint")


def test_an_older_and_a_newer_schema(mailer_db: Database) -> None:
    prepare(mailer_db)
    mailer_db.execute("DELETE FROM sentstream.schema_version WHERE version > 1")
    assert found(mailer_db) == {"schema_old"}
    mailer_db.execute("INSERT INTO sentstream.schema_version VALUES (99, now(), '9')")
    assert found(mailer_db) == {"schema_newer"}


def test_a_publication_of_others_at_odds_with_our_identity(mailer_db: Database) -> None:
    prepare(mailer_db)
    mailer_db.execute("CREATE PUBLICATION warehouse FOR TABLE email_queue (id, last_error)")
    assert found(mailer_db) == {"publication_conflict"}


def test_the_mailers_tables(mailer_db: Database) -> None:
    prepare(mailer_db)
    mailer_db.execute("ALTER TABLE email_queue DROP CONSTRAINT email_queue_status_check")
    fill(mailer_db)
    mailer_db.execute("UPDATE email_queue SET status = 'bounced' WHERE status = 'failed'")
    assert found(mailer_db) == {"status_unknown"}


def test_rows_without_a_campaign(mailer_db: Database) -> None:
    """`run` refuses to count them, so doctor and setup do not call them good."""
    db = mailer_db
    campaign = fill(db)
    prepare(db)
    db.execute("ALTER TABLE email_queue DROP CONSTRAINT email_queue_campaign_id_fkey")
    db.execute("DELETE FROM campaigns")
    assert f"{campaign} (4 rows)" in findings(db)["campaign_missing"].finding
    assert obstacle_codes(db) == {"campaign_missing"}
    with db.connect() as conn, pytest.raises(UncountableError):
        count(conn)
    cured(db, "campaign_missing")
    assert found(db) == set()


def test_an_unlogged_queue(mailer_db: Database) -> None:
    mailer_db.execute("ALTER TABLE email_queue SET UNLOGGED")
    cured(mailer_db, "table_unlogged")


def test_a_partitioned_queue(mailer_db: Database) -> None:
    mailer_db.execute("CREATE TABLE old_queue () INHERITS (email_queue)")
    assert "table_partitioned" in found(mailer_db)


def test_columns_and_settings_that_only_show(mailer_db: Database) -> None:
    prepare(mailer_db)
    mailer_db.execute("ALTER TABLE campaigns DROP COLUMN auto_paused; DROP TABLE settings")
    assert found(mailer_db) == {"mailer_columns", "mailer_settings"}
    assert findings(mailer_db)["mailer_columns"].severity == "warning"


def test_settings_that_do_not_say_when_the_window_ends(mailer_db: Database) -> None:
    db = mailer_db
    role = db.role("LOGIN REPLICATION")
    prepare(db, role=role)
    assert found(db, user=role) == set()
    db.execute("""UPDATE settings SET value = '"noon"' WHERE key = 'app.send_time_end'""")
    finding = findings(db)["mailer_settings"]
    assert finding.severity == "warning"
    assert "app.send_time_end" in finding.finding
    assert "HH:MM" in finding.fix
    db.execute("""UPDATE settings SET value = '"17:30"' WHERE key = 'app.send_time_end'""")
    db.execute("ALTER TABLE settings ENABLE ROW LEVEL SECURITY")
    assert found(db) == set()
    cured(db, "mailer_settings", user=role)
    db.execute(f"REVOKE SELECT ON settings FROM {role}")
    cured(db, "mailer_settings", user=role)
    db.execute("ALTER TABLE settings DROP COLUMN value")
    assert "no column value" in findings(db)["mailer_settings"].finding


def test_row_security_that_hides_rows(mailer_db: Database) -> None:
    db = mailer_db
    role = db.role("LOGIN REPLICATION")
    fill(db)
    prepare(db, role=role)
    db.execute("ALTER TABLE email_queue ENABLE ROW LEVEL SECURITY")
    assert "row_security" not in findings(db), "the owner sees everything"
    assert findings(db, user=role)["row_security"].severity == "critical"
    with db.connect(user=role) as conn, pytest.raises(psycopg.errors.InsufficientPrivilege):
        conn.execute("SELECT count(*) FROM email_queue")
    cured(db, "row_security", user=role)
    assert found(db, user=role) == set()


def test_a_role_and_a_database_that_may_only_read(mailer_db: Database) -> None:
    db = mailer_db
    role = db.role("LOGIN REPLICATION")
    prepare(db, role=role)
    db.execute(f"ALTER ROLE {role} SET default_transaction_read_only = on")
    db.execute(f"ALTER ROLE {role} IN DATABASE {db.name} SET default_transaction_read_only = on")
    assert found(db) == set()
    assert findings(db, user=role)["default_transaction_read_only"].severity == "critical"
    with db.connect(user=role) as conn, pytest.raises(PreconditionError, match=r"read-only.*sentstream doctor"):
        count(conn)
    cured(db, "default_transaction_read_only", user=role)
    db.execute(f"ALTER DATABASE {db.name} SET default_transaction_read_only = on")
    fix = findings(db)["default_transaction_read_only"].fix
    with db.connect() as conn:
        conn.execute("SET default_transaction_read_only = off")
        conn.execute(fix.encode())
    assert found(db) == set()


def test_a_database_without_an_encoding(pg: Database) -> None:
    name = f"{pg.name}_ascii"
    pg.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING SQL_ASCII LOCALE 'C'")
    try:
        finding = findings(Database(pg.server, name))["server_encoding"]
        assert finding.severity == "warning"
        assert "not UTF-8" in finding.finding
    finally:
        pg.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_names_that_are_no_utf8(pg: Database) -> None:
    name = f"{pg.name}_1252"
    pg.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING WIN1252 LOCALE 'C'")
    db = Database(pg.server, name)
    try:
        db.execute(schema_sql())
        db.execute(
            "INSERT INTO campaigns (id, name, sent) SELECT g, 'n' || g || chr(233), 5 FROM generate_series(1, 20) g"
        )
        assert "campaign_names" not in findings(db)
        for campaign in (7, 20):
            db.execute("UPDATE campaigns SET name = convert_from('\\x81', 'WIN1252') WHERE id = %s", campaign)
        assert "campaigns 7, 20 hold bytes of WIN1252" in findings(db)["campaign_names"].finding
        assert not [code for code in findings(db) if code.endswith(("_failed", "_unseen"))]
        cured(db, "campaign_names")
    finally:
        pg.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_a_role_without_rights(mailer_db: Database) -> None:
    db = mailer_db
    role = db.role("LOGIN")
    fill(db)
    prepare(db)
    codes = found(db, user=role)
    assert {"rights", "replication_right"} <= codes
    assert any(code.endswith("_unseen") for code in codes), "a check that may not look says so"
    cured(db, "replication_right", user=role)
    cured(db, "rights", user=role)
    assert found(db, user=role) == set()


def test_shadow_mode_needs_no_right_to_write(mailer_db: Database) -> None:
    db = mailer_db
    role = db.role("LOGIN REPLICATION")
    prepare(db, role=role, write_back=False)
    assert found(db, user=role, write_back=False) == set()
    assert "UPDATE (sent)" in findings(db, user=role)["rights"].finding


TRIGGERS = {
    "on_the_queue": "CREATE FUNCTION count_sent() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
    "UPDATE campaigns SET updated_at = now(), sent = sent + 1 WHERE id = NEW.campaign_id; RETURN NEW; END $$; "
    "CREATE TRIGGER counting AFTER UPDATE ON email_queue FOR EACH ROW EXECUTE FUNCTION count_sent()",
    "on_campaigns": "CREATE FUNCTION keep_sent() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
    "NEW.sent := OLD.sent; RETURN NEW; END $$; "
    "CREATE TRIGGER keeping BEFORE UPDATE ON campaigns FOR EACH ROW EXECUTE FUNCTION keep_sent()",
}


@pytest.mark.parametrize("which", TRIGGERS)
def test_a_trigger_that_writes_the_counter(mailer_db: Database, which: str) -> None:
    prepare(mailer_db)
    mailer_db.execute(TRIGGERS[which])
    assert findings(mailer_db)["counter_trigger"].severity == "critical"
    cured(mailer_db, "counter_trigger")
    assert found(mailer_db) == set()


FUNCTIONS = {
    "plain": "CREATE FUNCTION sync_counts() RETURNS void LANGUAGE sql AS "
    "$$ UPDATE public.campaigns c SET sent = (SELECT count(*) FROM email_queue WHERE campaign_id = c.id) $$",
    "with a parsed body": "CREATE FUNCTION sync_counts() RETURNS void LANGUAGE sql BEGIN ATOMIC "
    "UPDATE public.campaigns c SET sent = 0; END",
    "procedure": "CREATE PROCEDURE sync_counts(which int) LANGUAGE plpgsql AS "
    "$$ BEGIN UPDATE campaigns SET sent=0 WHERE id=which; END $$",
}


@pytest.mark.parametrize("which", FUNCTIONS)
def test_a_function_that_writes_the_counter(mailer_db: Database, which: str) -> None:
    prepare(mailer_db)
    mailer_db.execute(FUNCTIONS[which])
    assert findings(mailer_db)["counter_function"].severity == "warning"
    cured(mailer_db, "counter_function")


def test_functions_that_do_not_write_the_counter_are_left_alone(mailer_db: Database) -> None:
    mailer_db.execute(
        "CREATE FUNCTION a() RETURNS void LANGUAGE sql AS $$ UPDATE campaigns SET status = 'paused' $$; "
        "CREATE FUNCTION b() RETURNS bigint LANGUAGE sql AS $$ SELECT count(*) FROM campaigns WHERE sent = 5 $$; "
        "CREATE FUNCTION c() RETURNS void LANGUAGE sql AS $$ UPDATE email_queue SET sent_at = now() $$"
    )
    assert not {"counter_function", "counter_trigger"} & found(mailer_db)


def test_a_counter_that_somebody_else_overwrote(mailer_db: Database) -> None:
    db = mailer_db
    prepare(db)
    db.execute(
        "INSERT INTO sentstream.recounts "
        "(trigger, requested_by, lsn, snapshot, epoch, removed_policy, version, count_ms) "
        "VALUES ('interval', 'x', '0/0', '1:1:', 1, 'keep', '0', 1); "
        "INSERT INTO sentstream.verdicts (run_id, campaign_id, verdict, cause) "
        "VALUES (1, 7, 'drift', 'counter_overwritten')"
    )
    assert found(db) == {"counter_overwritten"}


def test_counters_above_the_live_count(mailer_db: Database) -> None:
    db = mailer_db
    campaign = fill(db)
    prepare(db)
    db.execute("UPDATE campaigns SET sent = 20")
    finding = findings(db)["counters_above"]
    assert finding.severity == "warning"
    assert f"{campaign} (spring: 18 more)" in finding.finding
    assert "fall" in findings(db, follow=True)["counters_above"].finding
    db.execute("INSERT INTO sentstream.progress (campaign_id, partition, removed) VALUES (%s, 0, 18)", campaign)
    assert found(db) == set(), "deletions explain it"


def test_a_slot_of_another_database(make_database: Callable[..., Database]) -> None:
    ours, other = make_database(mailer=True), make_database()
    prepare(ours, part="owner")
    other.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", ours.slot)
    assert found(ours) == {"slot_foreign"}


@pytest.mark.system
def test_a_slot_of_another_plugin(mailer_db: Database) -> None:
    prepare(mailer_db, part="owner")
    mailer_db.execute("SELECT pg_create_logical_replication_slot(%s, 'test_decoding')", mailer_db.slot)
    assert "test_decoding" in findings(mailer_db)["slot_foreign"].finding


def test_a_slot_that_is_older_than_its_publication(mailer_db: Database) -> None:
    prepare(mailer_db)
    mailer_db.execute("DROP PUBLICATION sentstream")
    prepare(mailer_db, part="owner")
    assert found(mailer_db) == {"slot_stale"}
    prepare(mailer_db, part="replication")
    assert found(mailer_db) == set()


def test_a_permanent_slot_beside_a_temporary_one(mailer_db: Database) -> None:
    prepare(mailer_db)
    assert found(mailer_db, temporary_slot=True) == {"slot_unneeded"}


def test_disk_held_by_the_slot(mailer_db: Database) -> None:
    db = mailer_db
    prepare(db)
    db.execute("SELECT pg_logical_emit_message(false, 'x', repeat('y', 2000000))")
    finding = findings(db, thresholds=Thresholds(held=1_000_000))["slot_disk"]
    assert finding.severity == "warning"
    assert "it is not read" in finding.finding


def test_a_prepared_transaction_left_behind(mailer_db: Database) -> None:
    db = mailer_db
    fill(db)
    prepare(db, part="owner")
    gid = f"it's {db.name}"
    with db.connect(autocommit=False) as conn:
        conn.execute("UPDATE email_queue SET priority = 2")
        conn.execute("PREPARE TRANSACTION '" + gid.replace("'", "''") + "'")
    finding = findings(db, thresholds=Thresholds(prepared=0))["prepared_transactions"]
    assert finding.severity == "critical", "no slot can be made"
    run_fix(db, finding.fix)
    assert "prepared_transactions" not in findings(db, thresholds=Thresholds(prepared=0))


def test_a_transaction_that_is_open_for_long(mailer_db: Database) -> None:
    db = mailer_db
    fill(db)
    prepare(db)
    with open_transaction(db, "UPDATE email_queue SET priority = 2") as conn:
        finding = findings(db, thresholds=Thresholds(transaction=0))["long_transaction"]
        assert f"Process {conn.info.backend_pid} (listmonk" in finding.finding
        run_fix(db, f"SELECT pg_terminate_backend({conn.info.backend_pid});")
        assert f"SELECT pg_terminate_backend({conn.info.backend_pid});" in finding.fix


def test_a_young_transaction_counts_while_recounts_are_inconclusive(mailer_db: Database) -> None:
    """Also where a role may not see for how long it has been open; its session, database and statement are named."""
    db = mailer_db
    role = db.role("LOGIN REPLICATION")
    fill(db)
    prepare(db, role=role)
    db.execute("INSERT INTO sentstream.watermarks VALUES (0, 1, '0/1', 0, false, now(), NULL, '1', 1, 1, now())")
    with open_transaction(db, "UPDATE email_queue SET priority = 2", "report") as conn:
        (finding,) = [it for it in told(db, role) if f"Process {conn.info.backend_pid} " in it.finding]
        for word in ("report", db.name, "a time not shown to this role", "last statement: not shown"):
            assert word in finding.finding.replace("<insufficient privilege>", "not shown")
        db.execute(f"GRANT pg_read_all_stats TO {role}")
        assert all(f"Process {conn.info.backend_pid} " not in it.finding for it in told(db, role)), "under 5 s"
        db.execute("UPDATE sentstream.watermarks SET based = true")
        db.execute(f"REVOKE pg_read_all_stats FROM {role}")
        assert all(f"Process {conn.info.backend_pid} " not in it.finding for it in told(db, role))
    with open_transaction(db, "UPDATE email_queue SET priority = 3") as conn:
        shown = findings(db, thresholds=Thresholds(transaction=0))["long_transaction"].finding
        assert "last statement: UPDATE email_queue SET priority = 3" in shown


def told(db: Database, role: str) -> list[Finding]:
    with db.connect(user=role) as conn:
        return [it for it in examine(conn, wanted(db), checks=CHECKS) if it.code == "long_transaction"]


GUARDS = {
    "trigger": "CREATE FUNCTION guard() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
    "IF NEW.sent > 1 THEN RAISE SQLSTATE '09000'; END IF; RETURN NEW; END $$; "
    "CREATE TRIGGER guarding BEFORE UPDATE ON campaigns FOR EACH ROW EXECUTE FUNCTION guard()",
    "deferred trigger": "CREATE FUNCTION guard() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
    "IF NEW.sent > 1 THEN RAISE EXCEPTION 'no'; END IF; RETURN NULL; END $$; CREATE CONSTRAINT TRIGGER guarding AFTER "
    "UPDATE OF sent ON campaigns DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION guard()",
    "constraint": "ALTER TABLE campaigns ADD CONSTRAINT guarding CHECK (sent <= 1)",
    "rule": "CREATE RULE guarding AS ON UPDATE TO campaigns WHERE NEW.sent > 1 DO INSTEAD NOTHING",
}


@pytest.mark.parametrize("kind", GUARDS)
def test_what_keeps_a_counter_from_being_written_is_named(mailer_db: Database, kind: str) -> None:
    db = mailer_db
    campaign = fill(db)
    prepare(db)
    db.execute("UPDATE campaigns SET sent = 0")
    db.execute(GUARDS[kind])
    assert "counter_refused" not in findings(db), "as long as nothing is refused, a trigger is the mailer's own affair"
    db.execute("INSERT INTO sentstream.watermarks VALUES (0, 1, '0/1', 0, true, now(), NULL, '1', 1, 1, now())")
    db.execute(
        "INSERT INTO sentstream.progress (campaign_id, partition, queue_sent, sent) VALUES (%s, 0, 2, 2)", campaign
    )
    finding = findings(db)["counter_refused"]
    assert finding.severity == "critical"
    assert f"{campaign} (0 shown, 2 counted)" in finding.finding
    assert "guarding of public.campaigns" in finding.finding
    assert ("COMMIT" in finding.finding) == (kind == "deferred trigger")
    run_fix(db, finding.fix)
    db.execute("UPDATE campaigns SET sent = 2")
    assert found(db) == set()


def test_a_refusal_that_a_flush_met_is_found(mailer_db: Database) -> None:
    """Of a running sentstream, which counts on: one campaign of two is refused."""
    db = prepared(mailer_db)
    db.execute("ALTER TABLE campaigns ADD CONSTRAINT guarding CHECK (id <> 1 OR sent <= 20)")
    for campaign in (1, 2):
        add_campaign(db, campaign, queued=5, sent_rows=30)
    with running(db):
        eventually(lambda: shown(db)[2] == 30, 30)
        finding = eventually(lambda: findings(db).get("counter_refused"), 30)
    assert finding is not None
    assert "1 (0 shown, 30 counted)." in finding.finding
    assert "constraint guarding of public.campaigns CHECK" in finding.finding


def test_a_check_that_takes_too_long_says_so(mailer_db: Database) -> None:
    db = mailer_db
    prepare(db)
    with db.connect() as conn:
        target = Target(conn, wanted(db), look(conn, wanted(db)))
        conn.execute("SET statement_timeout = '200ms'")
        with open_transaction(db, "LOCK TABLE email_queue IN ACCESS EXCLUSIVE MODE"):
            (finding,) = run_check(counters_above, target)
    assert (finding.code, finding.severity) == ("counters_above_unseen", "warning")


def test_differences_are_what_the_doctor_says(mailer_db: Database) -> None:
    """One truth: conformance."""
    prepare(mailer_db)
    mailer_db.execute(CHANGES["publication_actions"])
    assert differences(mailer_db) == found(mailer_db)
