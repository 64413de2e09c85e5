"""schema.sql makes what tables.py says we rely on, in any schema, and does what MAILER says of the mailer's."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import TupleRow

from connectors.mailer import catalog, tables

Conn = Connection[TupleRow]


def scalar(conn: Conn, query: str) -> object:
    row = conn.execute(query).fetchone()
    assert row is not None
    return row[0]


@pytest.mark.parametrize("table", tables.TABLES, ids=lambda table: table.name)
def test_every_column_we_use_is_there_with_a_type_we_take(conn: Conn, table: tables.Table) -> None:
    present = catalog.readable_columns(conn, "public", table.name)
    for column in table.columns:
        assert present.get(column.name) in column.types, column


def test_campaign_statuses_are_those_of_the_enum(conn: Conn) -> None:
    labels = scalar(conn, "SELECT enum_range(NULL::campaign_status)::text[]")
    assert labels == list(tables.CAMPAIGN_STATUSES)


def test_it_goes_to_any_schema_by_search_path(conn: Conn) -> None:
    conn.execute('CREATE SCHEMA "Mail er"; SET search_path = "Mail er"')
    conn.execute(tables.schema_sql())
    assert catalog.is_readable(conn, "Mail er", tables.EMAIL_QUEUE)
    assert scalar(conn, "SELECT count(*) FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace "
                        "WHERE t.typname = 'campaign_status' AND n.nspname = 'Mail er'") == 1  # fmt: skip


def test_a_status_outside_the_five_is_refused(conn: Conn) -> None:
    conn.execute("INSERT INTO campaigns (name) VALUES ('c'); INSERT INTO subscribers (email) VALUES ('s')")
    with pytest.raises(psycopg.errors.CheckViolation):
        conn.execute("INSERT INTO email_queue (campaign_id, subscriber_id, status) VALUES (1, 1, 'bounced')")


@pytest.mark.parametrize("parent", ["campaigns", "subscribers"])
def test_rows_go_with_their_campaign_or_subscriber(conn: Conn, parent: str) -> None:
    conn.execute("INSERT INTO campaigns (name) VALUES ('c'); INSERT INTO subscribers (email) VALUES ('s')")
    conn.execute("INSERT INTO email_queue (campaign_id, subscriber_id) VALUES (1, 1), (1, 1)")
    conn.execute("INSERT INTO azure_message_tracking (azure_message_id, campaign_id, subscriber_id) "
                 "VALUES (gen_random_uuid(), 1, 1)")  # fmt: skip
    conn.execute("INSERT INTO campaign_views (campaign_id, subscriber_id) VALUES (1, 1)")
    conn.execute(f"DELETE FROM {parent}")
    assert scalar(conn, "SELECT count(*) FROM email_queue") == 0
    assert scalar(conn, "SELECT count(*) FROM azure_message_tracking") == 0
    views_left = {"campaigns": 0, "subscribers": 1}
    assert scalar(conn, "SELECT count(*) FROM campaign_views") == views_left[parent]


def test_updated_at_is_indexed_so_that_setting_it_would_end_hot_updates(conn: Conn) -> None:
    assert scalar(
        conn, "SELECT count(*) FROM pg_indexes WHERE tablename = 'campaigns' AND indexdef LIKE '%(updated_at)'"
    )


def test_a_column_we_may_not_read_counts_as_missing(conn: Conn) -> None:
    conn.execute("CREATE ROLE reader_of_some; GRANT SELECT (id, name) ON campaigns TO reader_of_some")
    conn.execute("SET ROLE reader_of_some")
    assert catalog.readable_columns(conn, "public", "campaigns").keys() == {"id", "name"}
    assert catalog.readable_columns(conn, "public", "email_queue") == {}
    assert catalog.readable_columns(conn, "nowhere", "campaigns") == {}
    conn.execute("RESET ROLE; DROP OWNED BY reader_of_some; DROP ROLE reader_of_some")
