"""Following the store of record: what changed is seen, and only that."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from connectors.postgres.connect import Connection
from connectors.postgres.queries.changes import CAMPAIGNS_EVERY, RATES_EVERY, Changes, Follower
from stream.core.position import Position, parse_lsn
from tests.fix_postgres import Database
from tests.interfaces.fix_counted import counted, prepared

TOUCH = "UPDATE sentstream.watermarks SET seq = seq + 1"


@pytest.fixture
def database(mailer_db: Database) -> Database:
    """7, 8 and 9 in the queue, 10 and 11 outside of it."""
    return counted(prepared(mailer_db))


@pytest.fixture
def session(database: Database) -> Iterator[Connection]:
    with database.connect() as opened:
        yield opened


class Looking:
    """Looks with a clock of its own; by default neither campaigns nor rates are due again."""

    def __init__(self, session: Connection) -> None:
        self.follower = Follower("public")
        self._session = session
        self._at = 100.0

    def look(self, later: float = 0.0) -> Changes:
        self._at += later
        return self.follower.poll(self._session, self._at)


def seen(look: Changes) -> dict[int, int]:
    return {row.campaign_id: row.sent for flush in look.flushes for row in flush.rows}


def test_the_first_look_sees_everything(session: Connection) -> None:
    look = Looking(session).look()
    assert seen(look) == {7: 40, 8: 20, 9: 8}
    assert look.flushes[0].whole
    assert look.flushes[0].verdicts == (), "what was decided before is no news"
    assert {row.campaign_id for row in look.outside} == {7, 8, 9, 10, 11}
    assert (look.existing, look.counted) == (frozenset({7, 8, 9, 10, 11}), frozenset({7, 8, 9}))
    assert look.run == 17
    assert look.rates is not None
    assert 12 <= look.rates[7] <= 42
    (row,) = [row for row in look.flushes[0].rows if row.campaign_id == 7]
    assert (row.counts, row.verified_lsn, row.name) == ((54, 1, 40, 5, 0), parse_lsn("0/100"), "Spring sale")


def test_nothing_changed_is_nothing_read(session: Connection) -> None:
    looking = Looking(session)
    looking.look()
    look = looking.look()
    assert (look.flushes, look.outside, look.existing, look.rates) == ((), (), None, None)
    assert look.reached[0][1] >= Position(0)


def test_only_changed_rows_come(session: Connection, database: Database) -> None:
    looking = Looking(session)
    looking.look()
    database.execute(f"UPDATE sentstream.progress SET sent = 41 WHERE campaign_id = 7; {TOUCH}")
    look = looking.look()
    assert seen(look) == {7: 41}
    assert not look.flushes[0].whole
    database.execute(TOUCH)
    assert seen(looking.look()) == {}


def test_a_change_that_was_open_during_a_look_comes_with_the_next(session: Connection, database: Database) -> None:
    looking = Looking(session)
    looking.look()
    with database.connect(autocommit=False) as slow:
        slow.execute("UPDATE sentstream.progress SET sent = 42 WHERE campaign_id = 7")
        database.execute("UPDATE sentstream.progress SET sent = 21 WHERE campaign_id = 8")
        database.execute(TOUCH)
        assert seen(looking.look()) == {8: 21}
        slow.execute(TOUCH)
        slow.commit()
    assert seen(looking.look())[7] == 42


def test_a_recount_that_writes_ahead_of_the_stream_is_seen(session: Connection, database: Database) -> None:
    looking = Looking(session)
    looking.look()
    database.execute(
        "UPDATE sentstream.progress SET sent = 50, floor_lsn = '0/1' WHERE campaign_id = 9;"
        "UPDATE sentstream.watermarks SET seq = seq"
    )
    assert seen(looking.look()) == {9: 50}


def test_new_verdicts_come_once(session: Connection, database: Database) -> None:
    looking = Looking(session)
    looking.look()
    database.execute(
        "INSERT INTO sentstream.verdicts (run_id, campaign_id, verdict, cause, before, after, delta, corrected)"
        f" VALUES (17, 7, 'drift', 'gap', '{{\"sent\": 1}}', '{{\"sent\": 2}}', '{{\"sent\": 1}}', true); {TOUCH}"
    )
    (verdict,) = looking.look().flushes[0].verdicts
    assert (verdict.campaign, verdict.cause, verdict.delta) == (7, "gap", {"sent": 1})
    database.execute(TOUCH)
    assert looking.look().flushes[0].verdicts == ()


def test_the_mailers_changes_come_when_they_are_due(session: Connection, database: Database) -> None:
    looking = Looking(session)
    looking.look()
    database.execute("UPDATE campaigns SET name = 'New', sent = 6 WHERE id = 10; DELETE FROM campaigns WHERE id = 11")
    assert looking.look().existing is None
    look = looking.look(CAMPAIGNS_EVERY)
    assert [(row.campaign_id, row.name, row.sent) for row in look.outside] == [(10, "New", 6)]
    assert look.existing == frozenset({7, 8, 9, 10})
    assert looking.look(RATES_EVERY).rates is not None


def test_a_look_that_fails_is_done_again(session: Connection, database: Database) -> None:
    import psycopg

    looking = Looking(session)
    looking.look()
    database.execute(f"UPDATE sentstream.progress SET sent = 41 WHERE campaign_id = 7; {TOUCH}")
    database.execute("ALTER TABLE campaigns RENAME TO away")
    with pytest.raises(psycopg.errors.UndefinedTable):
        looking.look()
    database.execute("ALTER TABLE away RENAME TO campaigns")
    assert seen(looking.look()) == {7: 41}


def test_rows_of_before_a_wrap_of_transaction_ids_are_told_from_new_ones(session: Connection) -> None:
    """The comparison of 32-bit ids, at the place where they wrap."""
    ask = "SELECT ((%s::bigint - %s::bigint) & 4294967295) < 2147483648"
    for xid, since, new in ((5, 4294967290, True), (4294967290, 5, False), (7, 7, True), (6, 7, False)):
        assert session.execute(ask, (xid, since)).fetchone() == (new,)


def test_a_mailer_with_null_in_its_numbers(session: Connection, database: Database) -> None:
    database.execute("UPDATE campaigns SET to_send = NULL, sent = NULL WHERE id IN (7, 10)")
    look = Looking(session).look()
    assert {row.to_send for row in look.outside if row.campaign_id in (7, 10)} == {0}


def test_before_anything_ran_there_is_nothing(mailer_db: Database) -> None:
    prepared(mailer_db)
    with mailer_db.connect() as session:
        look = Looking(session).look()
    assert (look.flushes, dict(look.reached), look.run) == ((), {}, None)
