"""conformance: each difference made real on a prepared database, and seen inside a recount's transaction too."""

from __future__ import annotations

import psycopg
import pytest

from connectors.postgres.setup import check
from tests.fix_postgres import Database
from tests.postgres.preparing import differences, fill, identity, mailer_works, missing, prepare, run_fix

CHANGES = {
    "identity_default": "ALTER TABLE email_queue REPLICA IDENTITY DEFAULT",
    "identity_nothing": "ALTER TABLE email_queue REPLICA IDENTITY NOTHING",
    "identity_index_missing": "DROP INDEX email_queue_sentstream",
    "identity_other_index": "CREATE UNIQUE INDEX other ON email_queue (id, status, campaign_id); "
    "ALTER TABLE email_queue REPLICA IDENTITY USING INDEX other",
    "full_with_list": "ALTER TABLE email_queue REPLICA IDENTITY FULL",
    "publication_missing": "DROP PUBLICATION sentstream",
    "publication_actions": "ALTER PUBLICATION sentstream SET (publish = 'insert, update')",
    "publication_others": "ALTER PUBLICATION sentstream ADD TABLE settings",
    "publication_filter": "ALTER PUBLICATION sentstream SET TABLE email_queue WHERE (status = 'sent'), campaigns, "
    "sentstream.watermarks, sentstream.recounts",
    "columns_unlisted": "ALTER PUBLICATION sentstream SET TABLE email_queue (id, campaign_id, status), "
    "campaigns (id, name), sentstream.watermarks, sentstream.recounts",
    "table_unpublished": "ALTER PUBLICATION sentstream DROP TABLE campaigns",
    "campaigns_identity": "ALTER TABLE campaigns REPLICA IDENTITY NOTHING",
    "table_missing": "DROP TABLE email_queue",
    "schema_missing": "DROP SCHEMA sentstream CASCADE",
}


@pytest.mark.parametrize("code", CHANGES)
def test_a_difference_is_seen(mailer_db: Database, code: str) -> None:
    prepare(mailer_db)
    mailer_db.execute(CHANGES[code])
    assert code in differences(mailer_db)


@pytest.mark.parametrize(
    "code", sorted(set(CHANGES) - {"table_missing", "schema_missing", "publication_others", "campaigns_identity"})
)
def test_setup_puts_a_difference_right(mailer_db: Database, code: str) -> None:
    prepare(mailer_db)
    fill(mailer_db)
    mailer_db.execute(CHANGES[code])
    assert not missing(mailer_db).done
    prepare(mailer_db)
    assert differences(mailer_db) == set()
    mailer_works(mailer_db)


@pytest.mark.parametrize("code", ["publication_actions", "publication_others", "campaigns_identity"])
def test_a_fix_that_is_sql_removes_the_difference(mailer_db: Database, code: str) -> None:
    prepare(mailer_db)
    mailer_db.execute(CHANGES[code])
    with mailer_db.connect() as conn:
        (difference,) = check(conn, "sentstream", "public")
    run_fix(mailer_db, difference.fix)
    assert differences(mailer_db) == set()


def test_a_listed_column_dropped_with_cascade_silently_unpublishes_the_table(mailer_db: Database) -> None:
    prepare(mailer_db)
    mailer_db.execute("ALTER TABLE campaigns DROP COLUMN to_send CASCADE")
    assert {"table_unpublished", "column_missing"} <= differences(mailer_db)


def test_released_columns_and_a_longer_list_are_no_differences(mailer_db: Database) -> None:
    """Neither counts wrongly: the reader goes by names."""
    prepare(mailer_db, release=True)
    assert differences(mailer_db) == set()
    mailer_db.execute(
        "ALTER PUBLICATION sentstream SET TABLE email_queue (id, campaign_id, status, sent_at), campaigns, "
        "sentstream.watermarks, sentstream.recounts"
    )
    assert differences(mailer_db) == set()


def test_a_table_rewritten_or_extended_is_no_difference(mailer_db: Database) -> None:
    prepare(mailer_db)
    mailer_db.execute("ALTER TABLE email_queue ADD COLUMN note text; ALTER TABLE campaigns DROP COLUMN subject")
    mailer_db.execute("CLUSTER email_queue USING email_queue_pkey")
    mailer_db.execute("REINDEX INDEX CONCURRENTLY email_queue_sentstream")
    assert differences(mailer_db) == set()
    assert identity(mailer_db) == ("i", "email_queue_sentstream")


def test_a_recount_sees_what_its_snapshot_sees(mailer_db: Database) -> None:
    """In REPEATABLE READ, whatever others change meanwhile: the answer belongs to the counts beside it."""
    prepare(mailer_db)
    with mailer_db.connect() as conn:
        conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        conn.execute("SELECT 1 FROM campaigns")
        mailer_db.execute("DROP PUBLICATION sentstream")
        assert check(conn, "sentstream", "public") == []
        conn.execute("COMMIT")
        assert [difference.code for difference in check(conn, "sentstream", "public")] == ["publication_missing"]


def test_no_right_is_needed_to_look(mailer_db: Database) -> None:
    prepare(mailer_db)
    role = mailer_db.role()
    with mailer_db.connect(user=role) as conn:
        assert check(conn, "sentstream", "public") == []
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute("SELECT 1 FROM email_queue")
