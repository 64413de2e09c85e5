"""Random histories of SQL transactions, run on the server: at every checkpoint the counts equal ``GROUP BY``."""

from __future__ import annotations

from contextlib import ExitStack

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stream.core.status import STATUSES
from tests.fix_postgres import Database
from tests.postgres.running import add_campaign, based, kept, prepared, running, truth
from tests.waiting import eventually

CAMPAIGNS = st.integers(1, 4)
STATUS = st.sampled_from(STATUSES)
ROWS = st.integers(1, 4)

insert = st.builds(
    lambda c, s, n: (
        f"INSERT INTO email_queue (campaign_id, subscriber_id, status)"
        f" SELECT {c}, 1, '{s}' FROM generate_series(1, {n}) WHERE EXISTS (SELECT FROM campaigns WHERE id = {c})"
    ),
    CAMPAIGNS,
    STATUS,
    ROWS,
)
update = st.builds(
    lambda c, a, b, n: (
        f"UPDATE email_queue SET status = '{b}' WHERE id IN (SELECT id FROM email_queue"
        f" WHERE campaign_id = {c} AND status = '{a}' ORDER BY id LIMIT {n})"
    ),
    CAMPAIGNS,
    STATUS,
    STATUS,
    ROWS,
)
bulk = st.builds(lambda c, s: f"UPDATE email_queue SET status = '{s}' WHERE campaign_id = {c}", CAMPAIGNS, STATUS)
move = st.builds(
    lambda a, b, n: (
        f"UPDATE email_queue SET campaign_id = {b} WHERE EXISTS (SELECT FROM campaigns WHERE id = {b})"
        f" AND id IN (SELECT id FROM email_queue WHERE campaign_id = {a} ORDER BY id LIMIT {n})"
    ),
    CAMPAIGNS,
    CAMPAIGNS,
    ROWS,
)
delete = st.builds(
    lambda c, n: (
        f"DELETE FROM email_queue WHERE id IN"
        f" (SELECT id FROM email_queue WHERE campaign_id = {c} ORDER BY id DESC LIMIT {n})"
    ),
    CAMPAIGNS,
    ROWS,
)
truncate = st.just("TRUNCATE email_queue")
campaign = st.builds(lambda c: f"DELETE FROM campaigns WHERE id = {c}", CAMPAIGNS)
again = st.builds(
    lambda c: f"INSERT INTO campaigns (id, name, status) VALUES ({c}, 'again', 'running') ON CONFLICT DO NOTHING",
    CAMPAIGNS,
)
statement = st.one_of(insert, insert, insert, update, update, update, bulk, move, delete, truncate, campaign, again)
#: statements, with a savepoint that is rolled back in the middle or not, and an end
transaction = st.tuples(
    st.lists(statement, min_size=1, max_size=5),
    st.lists(statement, max_size=3),
    st.sampled_from(["COMMIT", "COMMIT", "COMMIT", "ROLLBACK"]),
)


def run(session: psycopg.Connection[tuple[object, ...]], history: tuple[list[str], list[str], str]) -> None:
    statements, undone, end = history
    session.execute("BEGIN")
    for text in statements:
        session.execute(text.encode())
    if undone:
        session.execute("SAVEPOINT s")
        for text in undone:
            session.execute(text.encode())
        session.execute("ROLLBACK TO SAVEPOINT s")
    session.execute(end.encode())


def same(db: Database) -> bool:
    found, expected = kept(db), truth(db)
    assert found == expected
    return True


@pytest.mark.parametrize("identity", ["index", "full"])
def test_random_histories(mailer_db: Database, identity: str) -> None:
    db = prepared(mailer_db, identity=identity)
    for number in range(1, 5):
        add_campaign(db, number, queued=2, sent_rows=1)
    with ExitStack() as stack:
        stack.enter_context(running(db))
        session = stack.enter_context(db.connect())
        based(db)

        @settings(
            max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
        )
        @given(st.lists(transaction, min_size=1, max_size=6))
        def check(history: list[tuple[list[str], list[str], str]]) -> None:
            for one in history:
                run(session, one)
            eventually(lambda: same(db), 30)

        check()
    drifts = db.execute("SELECT campaign_id, cause, before, after FROM sentstream.verdicts WHERE verdict = 'drift'")
    assert drifts == []
