"""Cross-checks with the mailer's other tables, and what its stats page shows."""

from __future__ import annotations

import pytest
from psycopg import Connection
from psycopg.rows import TupleRow

from connectors.mailer.stats import CampaignRow, Reactions, read_campaigns, read_reactions
from connectors.mailer.tracking import Observation, Tracking, news, observations, read_tracking

Conn = Connection[TupleRow]

AZURE = ("azure_message_tracking", "azure_delivery_events", "azure_engagement_events")


def make_campaign(conn: Conn, campaign: int, *, sent: int = 0, messenger: str = "automatic") -> None:
    conn.execute(
        "INSERT INTO campaigns (id, name, sent, messenger) VALUES (%s, 'c', %s, %s)", (campaign, sent, messenger)
    )


def make_subscribers(conn: Conn, n: int) -> None:
    conn.execute("INSERT INTO subscribers (email) SELECT 's' || n FROM generate_series(1, %s) n", (n,))


def queue(conn: Conn, campaign: int, status: str, n: int) -> None:
    conn.execute("INSERT INTO email_queue (campaign_id, subscriber_id, status) "
                 "SELECT %s, n, %s FROM generate_series(1, %s) n", (campaign, status, n))  # fmt: skip


def track(conn: Conn, campaign: int, n: int) -> None:
    conn.execute("INSERT INTO azure_message_tracking (azure_message_id, campaign_id, subscriber_id) "
                 "SELECT md5(%s || '.' || n)::uuid, %s, n FROM generate_series(1, %s) n",
                 (str(campaign), campaign, n))  # fmt: skip


def event(conn: Conn, campaign: int, n: int, table: str = "azure_delivery_events", what: str = "Delivered") -> None:
    column = "status" if table == "azure_delivery_events" else "engagement_type"
    conn.execute(f"INSERT INTO {table} (azure_message_id, campaign_id, subscriber_id, {column}) "
                 "SELECT md5(%s || '.' || n)::uuid, %s, n, %s FROM generate_series(1, %s) n",
                 (str(campaign), campaign, what, n))  # fmt: skip


def observe(conn: Conn, counted: dict[int, int]) -> list[tuple[int, str, int, int]]:
    found = observations(counted, read_tracking(conn, "public"))
    return [(o.campaign_id, o.kind, o.expected, o.actual) for o in found]


def test_the_case_that_started_it_all_tells_the_whole_story(conn: Conn) -> None:
    make_subscribers(conn, 20_323)
    make_campaign(conn, 7, sent=0)
    queue(conn, 7, "sent", 20_323)
    track(conn, 7, 20_318)
    event(conn, 7, 1_282)
    assert observe(conn, {7: 20_323}) == [(7, "tracked", 20_323, 20_318), (7, "delivered", 20_323, 1_282)]


def test_equal_numbers_are_no_observation(conn: Conn) -> None:
    make_subscribers(conn, 5)
    make_campaign(conn, 1, sent=5)
    track(conn, 1, 5)
    event(conn, 1, 5)
    event(conn, 1, 3, "azure_engagement_events", "Open")
    assert observe(conn, {1: 5}) == []


def test_a_mail_reported_twice_was_delivered_once_and_a_bounce_is_no_delivery(conn: Conn) -> None:
    make_subscribers(conn, 5)
    make_campaign(conn, 1)
    track(conn, 1, 5)
    event(conn, 1, 4)
    event(conn, 1, 4)
    event(conn, 1, 5, what="Bounced")
    assert observe(conn, {1: 5}) == [(1, "delivered", 5, 4)]


def test_more_mails_opened_than_delivered_is_told(conn: Conn) -> None:
    make_subscribers(conn, 5)
    make_campaign(conn, 1)
    track(conn, 1, 5)
    event(conn, 1, 1)
    event(conn, 1, 2, "azure_engagement_events", "Open")
    event(conn, 1, 2, "azure_engagement_events", "Click")
    assert observe(conn, {1: 5}) == [(1, "delivered", 5, 1), (1, "engaged", 1, 2)]


def test_a_campaign_outside_the_queue_is_compared_by_its_own_counter(conn: Conn) -> None:
    make_subscribers(conn, 10)
    make_campaign(conn, 1, sent=10, messenger="email")
    make_campaign(conn, 2, sent=9, messenger="email")
    track(conn, 1, 8)
    track(conn, 2, 9)
    assert observe(conn, {}) == [(1, "unqueued_tracked", 10, 8)]


def test_a_campaign_that_nobody_tracked_differs_where_others_are_tracked(conn: Conn) -> None:
    make_subscribers(conn, 10)
    make_campaign(conn, 1)
    make_campaign(conn, 2)
    track(conn, 1, 10)
    assert observe(conn, {1: 10, 2: 4}) == [(2, "tracked", 4, 0)]


@pytest.mark.parametrize("state", ["", f"DROP TABLE {', '.join(AZURE)}"], ids=["empty", "missing"])
def test_tables_that_say_nothing_are_compared_with_nothing(conn: Conn, state: str) -> None:
    make_campaign(conn, 1, sent=3)
    make_campaign(conn, 2, sent=3, messenger="email")
    if state:
        conn.execute(state)
    assert read_tracking(conn, "public") == Tracking({1: 3, 2: 3})
    assert observe(conn, {1: 5}) == []


def test_a_campaign_that_is_gone_is_left_out() -> None:
    assert observations({1: 5}, Tracking({}, tracked={1: 4})) == []


def test_tables_that_we_may_not_read_leave_the_transaction_whole(conn: Conn) -> None:
    make_subscribers(conn, 2)
    make_campaign(conn, 1)
    track(conn, 1, 2)
    conn.execute("CREATE ROLE half_reader; GRANT SELECT ON campaigns TO half_reader")
    with conn.transaction():
        conn.execute("SET LOCAL ROLE half_reader")
        assert read_tracking(conn, "public") == Tracking({1: 0})
        assert read_reactions(conn, "public") == {}
    conn.execute("DROP OWNED BY half_reader; DROP ROLE half_reader")


def test_nothing_is_written(conn: Conn) -> None:
    make_campaign(conn, 1, sent=3)
    with conn.transaction():
        conn.execute("SET TRANSACTION READ ONLY")
        read_tracking(conn, "public")
        read_reactions(conn, "public")
        read_campaigns(conn, "public")


def test_news_are_the_observations_that_changed() -> None:
    old, same = Observation(1, "tracked", 5, 4), Observation(2, "tracked", 9, 1)
    new = Observation(1, "tracked", 6, 4)
    assert news([new, same], [old, same]) == [new]
    assert new.as_json() == {"campaign_id": 1, "kind": "tracked", "expected": 6, "actual": 4}


def test_views_clicks_and_delivered_mails_by_campaign(conn: Conn) -> None:
    make_subscribers(conn, 4)
    make_campaign(conn, 1)
    make_campaign(conn, 2)
    make_campaign(conn, 3)
    conn.execute("INSERT INTO campaign_views (campaign_id) VALUES (1), (1), (2)")
    conn.execute("INSERT INTO link_clicks (campaign_id) VALUES (1), (NULL)")
    track(conn, 2, 4)
    conn.execute(
        "INSERT INTO azure_delivery_events (azure_message_id, campaign_id, subscriber_id, status)"
        " VALUES (gen_random_uuid(), 2, 1, 'Delivered'), (gen_random_uuid(), 2, 2, 'Delivered'),"
        " (gen_random_uuid(), 2, 3, 'Bounced'), (gen_random_uuid(), NULL, 4, 'Delivered')"
    )
    assert read_reactions(conn, "public") == {1: Reactions(2, 1, 0), 2: Reactions(1, 0, 2)}


def test_campaign_rows_are_those_of_the_statuses_asked_for(conn: Conn) -> None:
    make_campaign(conn, 1, sent=3)
    make_campaign(conn, 2)
    conn.execute("UPDATE campaigns SET status = 'running', use_queue = true, to_send = NULL WHERE id = 2")
    (row,) = read_campaigns(conn, "public", ("running", "paused"))
    assert (row.id, row.status, row.to_send, row.messenger, row.use_queue, row.auto_paused) == (
        2, "running", 0, "automatic", True, False)  # fmt: skip
    assert [r.id for r in read_campaigns(conn, "public")] == [1, 2]


def test_columns_that_a_mailer_lacks_become_null(conn: Conn) -> None:
    make_campaign(conn, 1, sent=3)
    conn.execute("ALTER TABLE campaigns DROP COLUMN auto_paused, DROP COLUMN auto_paused_at, DROP COLUMN use_queue, "
                 "DROP COLUMN messenger, DROP COLUMN created_at, DROP COLUMN updated_at")  # fmt: skip
    assert read_campaigns(conn, "public") == [
        CampaignRow(1, "c", "draft", 0, 3, None, None, None, None, None, None, None)
    ]
