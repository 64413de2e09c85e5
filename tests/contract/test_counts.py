"""Whatever the mailer, or anybody else, does to the queue in SQL, the counts follow; and the recount agrees."""

from __future__ import annotations

from itertools import permutations

import pytest

from connectors.postgres.setup import Wanted, set_up
from stream.core.report import Run
from stream.core.status import STATUSES
from tests.contract.conftest import Counting, embedded
from tests.fix_postgres import Database
from tests.postgres.running import add_campaign, add_rows, at_rest, count, kept, prepared, shown, truth
from tests.waiting import eventually


def follows(db: Database) -> None:
    """Counts and counters are those of the queue, the history adds up, and a recount finds nothing to mend."""
    eventually(lambda: (kept(db) == truth(db)) or _differs(kept(db), truth(db)), 15)
    at_rest(db)
    with db.connect() as session:
        run = count(session)
    answered(db, run)
    drifts = db.execute("SELECT campaign_id, cause, before, after FROM sentstream.verdicts WHERE verdict = 'drift'")
    assert drifts == []
    sums = dict(db.execute("SELECT campaign_id, sum(sent)::int FROM sentstream.history GROUP BY 1"))
    sent = dict(db.execute("SELECT campaign_id, sent::int FROM sentstream.progress"))
    assert {c: n for c, n in sums.items() if n} == {c: n for c, n in sent.items() if n}


def answered(db: Database, run: Run) -> None:
    """Every partition has applied the run's entry, and could compare."""
    answers = (
        "SELECT count(*) FILTER (WHERE conclusive) = (SELECT count(*) FROM sentstream.watermarks)"
        " FROM sentstream.answers WHERE run_id = %s"
    )
    eventually(lambda: db.value(answers, run.run_id), 20)


def _differs(found: object, expected: object) -> bool:
    raise AssertionError(f"{found} is not {expected}")


@pytest.fixture
def db(any_mailer_db: Database) -> Database:
    prepared(any_mailer_db)
    add_campaign(any_mailer_db, 1, queued=4, sending=3, sent_rows=5, failed=2, cancelled=1)
    add_campaign(any_mailer_db, 2, queued=2, sent_rows=7)
    return any_mailer_db


def test_rows_before_setup_are_counted_at_first_contact(db: Database, counting: Counting) -> None:
    with counting(db):
        at_rest(db)
        assert shown(db) == {1: 5, 2: 7}
        follows(db)


def test_every_status_change(db: Database, counting: Counting) -> None:
    with counting(db):
        for old, new in permutations(STATUSES, 2):
            add_rows(db, 1, old, 2)
            db.execute(
                "UPDATE email_queue SET status = %s, updated_at = now() WHERE id IN"
                " (SELECT id FROM email_queue WHERE campaign_id = 1 AND status = %s ORDER BY id DESC LIMIT 1)",
                new,
                old,
            )
        follows(db)


def test_an_update_that_leaves_the_status_alone_moves_nothing(db: Database, counting: Counting) -> None:
    with counting(db):
        db.execute("UPDATE email_queue SET scheduled_at = now(), status = status, assigned_smtp_server_uuid = 'x'")
        follows(db)


SCENARIOS: dict[str, list[str]] = {
    "insert_and_delete": [
        "INSERT INTO email_queue (campaign_id, subscriber_id) SELECT 1, 1 FROM generate_series(1, 500)",
        "DELETE FROM email_queue WHERE campaign_id = 1 AND status IN ('queued', 'sent') AND id % 2 = 0",
    ],
    "deleted_subscriber_takes_his_rows": [
        "INSERT INTO subscribers (id, email) VALUES (2, 'two@example.org')",
        "INSERT INTO email_queue (campaign_id, subscriber_id, status) SELECT 2, 2, 'sent' FROM generate_series(1, 9)",
        "DELETE FROM subscribers WHERE id = 2",
    ],
    "truncate": ["TRUNCATE email_queue"],
    "truncate_cascade": ["TRUNCATE email_queue CASCADE"],
    "truncate_of_subscribers_cascades": ["TRUNCATE subscribers CASCADE"],
    "truncate_restart_and_go_on": [
        "TRUNCATE email_queue RESTART IDENTITY",
        "INSERT INTO email_queue (campaign_id, subscriber_id, status) SELECT 1, 1, 'sent' FROM generate_series(1, 3)",
    ],
    "insert_truncate_insert_in_one_transaction_is_one_row": [
        "BEGIN; INSERT INTO email_queue (campaign_id, subscriber_id) VALUES (1, 1); TRUNCATE email_queue;"
        " INSERT INTO email_queue (campaign_id, subscriber_id) VALUES (1, 1); COMMIT"
    ],
    "two_updates_of_one_row_in_one_transaction": [
        "BEGIN; UPDATE email_queue SET status = 'sending' WHERE campaign_id = 1 AND status = 'queued';"
        " UPDATE email_queue SET status = 'sent' WHERE campaign_id = 1 AND status = 'sending'; COMMIT"
    ],
    "savepoint_rolled_back": [
        "BEGIN; UPDATE email_queue SET status = 'sent' WHERE campaign_id = 1 AND status = 'queued'; SAVEPOINT s;"
        " DELETE FROM email_queue; ROLLBACK TO s; INSERT INTO email_queue (campaign_id, subscriber_id) VALUES (2, 1);"
        " COMMIT"
    ],
    "transaction_rolled_back": ["BEGIN; DELETE FROM email_queue; ROLLBACK"],
    "campaign_deleted_with_its_rows": ["DELETE FROM campaigns WHERE id = 1"],
    "campaign_deleted_after_changes_in_one_transaction": [
        "BEGIN; UPDATE email_queue SET status = 'sent' WHERE campaign_id = 1;"
        " INSERT INTO email_queue (campaign_id, subscriber_id) VALUES (1, 1);"
        " DELETE FROM campaigns WHERE id = 1; COMMIT"
    ],
    "rows_move_to_another_campaign": [
        "UPDATE email_queue SET campaign_id = 2 WHERE campaign_id = 1 AND status = 'sent'"
    ],
    "campaign_id_and_status_change_at_once": [
        "UPDATE email_queue SET campaign_id = 2, status = 'sent' WHERE campaign_id = 1 AND status = 'queued'"
    ],
    "primary_key_changes": ["UPDATE email_queue SET id = id + 1000000 WHERE campaign_id = 1"],
    "copy_in": [
        "CREATE TABLE copied AS SELECT 1 AS campaign_id, 1 AS subscriber_id, 'sent'::text AS status"
        " FROM generate_series(1, 50); INSERT INTO email_queue (campaign_id, subscriber_id, status)"
        " SELECT * FROM copied"
    ],
    "a_column_is_added_in_mid_stream": [
        "UPDATE email_queue SET status = 'sent' WHERE campaign_id = 1 AND status = 'queued'",
        "ALTER TABLE email_queue ADD COLUMN note text DEFAULT 'x'",
        "UPDATE email_queue SET status = 'failed', note = 'y' WHERE campaign_id = 1 AND status = 'sending'",
    ],
    "the_table_is_rewritten": [
        "VACUUM FULL email_queue",
        "UPDATE email_queue SET status = 'sent' WHERE campaign_id = 2",
        "CLUSTER email_queue USING email_queue_pkey",
        "UPDATE email_queue SET status = 'queued' WHERE campaign_id = 1 AND status = 'cancelled'",
    ],
    "an_unpublished_column_is_retyped": [
        "ALTER TABLE email_queue ALTER COLUMN retry_count TYPE bigint",
        "UPDATE email_queue SET status = 'sent', retry_count = 5000000000 WHERE campaign_id = 1",
    ],
    "on_conflict_do_update": [
        "INSERT INTO email_queue (id, campaign_id, subscriber_id, status)"
        " SELECT id, 2, 1, 'failed' FROM email_queue WHERE campaign_id = 1"
        " ON CONFLICT (id) DO UPDATE SET campaign_id = excluded.campaign_id, status = excluded.status"
    ],
    "long_name_that_is_toasted": [
        "UPDATE campaigns SET body = (SELECT string_agg(md5(i::text), '') FROM generate_series(1, 5000) i)",
        "UPDATE campaigns SET status = 'paused'",
        "UPDATE email_queue SET status = 'sent' WHERE campaign_id = 2",
    ],
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_counts_follow(db: Database, counting: Counting, name: str) -> None:
    with counting(db):
        for statement in SCENARIOS[name]:
            db.execute(statement)
        follows(db)


def test_counts_follow_one_thing_after_the_other(db: Database, counting: Counting) -> None:
    with counting(db):
        for statements in SCENARIOS.values():
            for statement in statements:
                db.execute(statement)
            follows(db)
            db.execute("INSERT INTO subscribers (id, email) VALUES (1, 'one@example.org') ON CONFLICT DO NOTHING")
            for campaign in {1, 2} - shown(db).keys():
                add_campaign(db, campaign)
            for status in STATUSES:
                add_rows(db, 1, status, 2)
                add_rows(db, 2, status, 3)


@pytest.mark.parametrize("name", ["truncate", "insert_and_delete", "rows_move_to_another_campaign", "copy_in"])
def test_identity_full_gives_the_same_counts(any_mailer_db: Database, counting: Counting, name: str) -> None:
    db = prepared(any_mailer_db, identity="full")
    add_campaign(db, 1, queued=4, sent_rows=6)
    add_campaign(db, 2, queued=4, sent_rows=1)
    with counting(db):
        for statement in SCENARIOS[name]:
            db.execute(statement)
        follows(db)


def test_a_restore_and_a_new_key_count_nothing_twice(db: Database) -> None:
    """The campaign comes with its counter, then come the rows that this counter has counted."""
    db.execute("CREATE TABLE kept_campaigns AS TABLE campaigns; CREATE TABLE kept_queue AS TABLE email_queue")
    with embedded(db):
        at_rest(db)
        db.execute("UPDATE kept_campaigns k SET sent = c.sent FROM campaigns c WHERE c.id = k.id")
        db.execute("TRUNCATE campaigns, email_queue CASCADE")
        db.execute("INSERT INTO campaigns SELECT * FROM kept_campaigns")
        db.execute("INSERT INTO email_queue SELECT * FROM kept_queue")
        follows(db)
        assert shown(db) == {1: 5, 2: 7}
        db.execute(
            "ALTER TABLE email_queue DROP CONSTRAINT email_queue_campaign_id_fkey,"
            " ADD FOREIGN KEY (campaign_id) REFERENCES campaigns ON DELETE CASCADE ON UPDATE CASCADE"
        )
        db.execute("UPDATE campaigns SET id = 77 WHERE id = 2")
        eventually(lambda: shown(db) == {1: 5, 77: 7})
        follows(db)


def test_released_columns_may_be_of_any_type(any_mailer_db: Database) -> None:
    """With the lists off all columns come, such as a uuid in binary."""
    db = prepared(any_mailer_db)
    db.execute("ALTER TABLE campaigns ADD odd uuid, ADD odder jsonb, ADD oddest point")
    add_campaign(db, 1, queued=4, sent_rows=6)
    with embedded(db):
        with db.connect() as session:
            set_up(session, Wanted(slot=db.slot, release=True))
        db.execute(
            "UPDATE campaigns SET odd = '8b8b8b8b-8b8b-8b8b-8b8b-8b8b8b8b8b8b', odder = '[1e400]', oddest = '(1,2)',"
            " name = 'renamed'"
        )
        db.execute("UPDATE email_queue SET status = 'sent'")
        follows(db)
        prepared(db)
        follows(db)


def test_status_of_a_fixed_length(any_mailer_db: Database) -> None:
    db = any_mailer_db
    db.execute("ALTER TABLE email_queue ALTER COLUMN status TYPE char(20)")
    prepared(db)
    add_campaign(db, 1, queued=4, sent_rows=6)
    with embedded(db):
        db.execute("UPDATE email_queue SET status = 'failed' WHERE status = 'queued'")
        follows(db)


def test_int_to_bigint_under_full(any_mailer_db: Database, counting: Counting) -> None:
    db = prepared(any_mailer_db, identity="full")
    add_campaign(db, 1, queued=4, sent_rows=6)
    with counting(db):
        db.execute("ALTER TABLE email_queue DROP CONSTRAINT email_queue_campaign_id_fkey")
        db.execute("ALTER TABLE email_queue ALTER COLUMN campaign_id TYPE bigint")
        db.execute("UPDATE email_queue SET status = 'sent' WHERE status = 'queued'")
        follows(db)


def test_copy_from_stdin(db: Database, counting: Counting) -> None:
    with counting(db):
        with (
            db.connect() as session,
            session.cursor().copy("COPY email_queue (campaign_id, subscriber_id, status) FROM STDIN") as copy,
        ):
            for _ in range(300):
                copy.write_row((1, 1, "sent"))
        follows(db)


def test_removed_keep_shows_what_was_sent(db: Database, counting: Counting) -> None:
    with counting(db):
        at_rest(db)
        db.execute("DELETE FROM email_queue WHERE campaign_id = 1 AND status = 'queued'")
        db.execute("TRUNCATE email_queue")
        follows(db)
        assert shown(db) == {1: 5, 2: 7}
        assert dict(db.execute("SELECT campaign_id, removed::int FROM sentstream.progress")) == {1: 5, 2: 7}


def test_removed_follow_shows_the_live_count(db: Database, counting: Counting) -> None:
    with counting(db, removed="follow"):
        at_rest(db)
        db.execute("DELETE FROM email_queue WHERE campaign_id = 1 AND status = 'sent'")
        eventually(lambda: shown(db) == {1: 0, 2: 7})
        db.execute("TRUNCATE email_queue")
        eventually(lambda: shown(db) == {1: 0, 2: 0})


def test_a_campaign_without_queue_rows_is_never_written(db: Database, counting: Counting) -> None:
    add_campaign(db, 3, sent=77)
    before = db.execute("SELECT xmin, ctid, sent FROM campaigns WHERE id = 3")
    with counting(db):
        follows(db)
        add_rows(db, 1, "sent", 5)
        follows(db)
    assert db.execute("SELECT xmin, ctid, sent FROM campaigns WHERE id = 3") == before
    assert db.execute("SELECT 1 FROM sentstream.progress WHERE campaign_id = 3") == []


def test_updated_at_is_not_touched(db: Database, counting: Counting) -> None:
    before = db.execute("SELECT id, updated_at FROM campaigns ORDER BY 1")
    with counting(db):
        add_rows(db, 1, "sent", 5)
        follows(db)
    assert db.execute("SELECT id, updated_at FROM campaigns ORDER BY 1") == before


def test_a_counter_above_the_live_count_does_not_fall(db: Database, counting: Counting) -> None:
    db.execute("UPDATE campaigns SET sent = 100 WHERE id = 1")
    with counting(db):
        add_rows(db, 1, "sent", 2)
        eventually(lambda: shown(db)[1] == 102)
        follows(db)


def test_a_campaign_first_met_in_the_stream_keeps_what_it_shows(db: Database, counting: Counting) -> None:
    add_campaign(db, 3, sent=40)
    with counting(db):
        add_rows(db, 3, "sent", 2)
        eventually(lambda: shown(db)[3] == 42)
        follows(db)


def test_a_counter_overwritten_by_somebody_is_put_right_within_two_seconds(db: Database, counting: Counting) -> None:
    with counting(db):
        at_rest(db)
        db.execute("UPDATE campaigns SET sent = 4711 WHERE id = 1")
        eventually(lambda: shown(db)[1] == 5, 2 if counting is embedded else 10)
        with db.connect() as session:
            run = count(session)
        answered(db, run)
        rows = db.execute(
            "SELECT campaign_id, verdict, cause, corrected FROM sentstream.verdicts"
            " WHERE run_id = %s AND verdict = 'drift'",
            run.run_id,
        )
        assert rows == [(1, "drift", "counter_overwritten", True)]


def test_a_counter_that_was_right_from_the_start_and_is_overwritten_is_a_drift(
    db: Database, counting: Counting
) -> None:
    """We never had to write it: it was found right when its campaign was met in the stream."""
    with counting(db):
        add_campaign(db, 3)
        add_rows(db, 3, "queued", 2)
        eventually(lambda: kept(db).get(3) == (2, 0, 0, 0, 0))
        db.execute("UPDATE campaigns SET sent = 77 WHERE id = 3")
        eventually(lambda: shown(db)[3] == 0)
        with db.connect() as session:
            run = count(session)
        answered(db, run)
        causes = db.execute("SELECT campaign_id, cause FROM sentstream.verdicts WHERE verdict = 'drift'")
        assert causes == [(3, "counter_overwritten")]


def test_shadow_mode_writes_no_counter(db: Database, counting: Counting) -> None:
    with counting(db, write_back=False):
        add_rows(db, 1, "sent", 2)
        eventually(lambda: db.value("SELECT sent FROM sentstream.progress WHERE campaign_id = 1") == 7)
        assert shown(db) == {1: 0, 2: 0}
