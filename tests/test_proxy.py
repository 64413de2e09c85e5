"""The proxy fails the way a network does, so that tests behind it mean something."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest

from tests.fix_postgres import Database
from tests.fix_proxy import Proxy
from tests.waiting import eventually

pytestmark = pytest.mark.slow  # what other tests are made of

MakeProxy = Callable[..., Proxy]


def test_it_passes_everything_on(pg: Database, proxy: MakeProxy) -> None:
    between = proxy(pg.url)
    with psycopg.connect(between.url(pg.url)) as session:
        assert session.execute("SELECT repeat('x', 3000000)").fetchone() == ("x" * 3_000_000,)
        assert session.execute("SELECT length(%s)", ("y" * 2_000_000,)).fetchone() == (2_000_000,)
    assert between.answered > 3_000_000
    assert between.sent > 2_000_000


def test_a_cut_is_seen_by_both_ends_and_the_next_connection_works(pg: Database, proxy: MakeProxy) -> None:
    between = proxy(pg.url)
    with psycopg.connect(between.url(pg.url), application_name="cut me") as session:
        session.execute("SELECT 1")
        between.cut()
        with pytest.raises(psycopg.OperationalError):
            session.execute("SELECT 1")
    eventually(lambda: pg.value("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'cut me'") == 0)
    with psycopg.connect(between.url(pg.url)) as session:
        assert session.execute("SELECT 1").fetchone() == (1,)


def test_a_stalled_connection_is_open_and_silent_and_goes_on(pg: Database, proxy: MakeProxy) -> None:
    between = proxy(pg.url)
    with psycopg.connect(between.url(pg.url), autocommit=True) as session:
        session.execute("SELECT 1")
        between.stall()
        session.pgconn.send_query(b"SELECT 2")
        session.pgconn.flush()
        assert not _readable(session, 0.3)
        between.resume()
        # never a blocking call of libpq here: it would hold the interpreter that the proxy needs to answer
        while session.pgconn.is_busy():
            assert _readable(session, 10)
            session.pgconn.consume_input()
        result = session.pgconn.get_result()
        assert result is not None
        assert result.get_value(0, 0) == b"2"
        session.pgconn.get_result()


def test_a_cut_in_the_middle_of_a_message_passes_exactly_so_much(pg: Database, proxy: MakeProxy) -> None:
    between = proxy(pg.url)
    with psycopg.connect(between.url(pg.url), autocommit=True) as session:
        session.execute("SELECT 1")
        before = between.answered
        between.cut_after(500_000)
        with pytest.raises(psycopg.OperationalError):
            session.execute("SELECT repeat('x', 3000000)")
    eventually(lambda: between.cuts == 1)
    assert between.answered - before == 500_000


def test_the_answer_to_a_commit_can_be_lost(pg: Database, proxy: MakeProxy) -> None:
    pg.execute("CREATE TABLE t (a int)")
    between = proxy(pg.url)
    with psycopg.connect(between.url(pg.url)) as session:
        session.execute("INSERT INTO t VALUES (1)")
        between.cut_at(b"COMMIT", answers=True)
        with pytest.raises(psycopg.OperationalError):
            session.commit()
    assert pg.value("SELECT count(*) FROM t") == 1


def test_refused_connections_leave_open_ones_alone(pg: Database, proxy: MakeProxy) -> None:
    between = proxy(pg.url)
    with psycopg.connect(between.url(pg.url)) as session:
        session.execute("SELECT 1")
        between.refuse()
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(between.url(pg.url))
        session.execute("SELECT 1")


def test_a_cut_ends_a_stalled_connection_too(pg: Database, proxy: MakeProxy) -> None:
    between = proxy(pg.url)
    with psycopg.connect(between.url(pg.url), autocommit=True) as session:
        between.stall()
        session.pgconn.send_query(b"SELECT 2")
        session.pgconn.flush()
        between.cut()
        assert _readable(session, 10)
        with pytest.raises(psycopg.OperationalError):
            session.pgconn.consume_input()


def _readable(session: psycopg.Connection[tuple[object, ...]], timeout: float) -> bool:
    import select

    return bool(select.select([session.fileno()], [], [], timeout)[0])
