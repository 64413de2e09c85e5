"""The flush, by itself: fenced by its watermark, durable, and in nobody's way."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import psycopg
import pytest

from connectors.postgres.connect import Connection
from connectors.postgres.store.partitions import Store
from stream.core.epoch import Server
from stream.core.errors import FencedError
from stream.core.flushing import Flush, FlushResult, ProgressRow
from stream.core.position import Position
from stream.pipeline.flush import write
from tests.fix_postgres import Database
from tests.postgres.running import add_campaign, shown
from tests.waiting import eventually

EPOCH, HERE, THERE = 7, Position(0x100, 2), Position(0x200, 0)
SERVER = Server("x", 1, 0x1000)


@pytest.fixture
def partition(db: Database) -> Database:
    """Partition 0 and 1 stand at `HERE`; campaign 1 has sent three."""
    add_campaign(db, 1, sent_rows=3)
    db.execute(
        "INSERT INTO sentstream.watermarks (partition, epoch, lsn, seq, based, system_identifier, timeline)"
        " SELECT n, %s, '0/100', 2, true, 'x', 1 FROM generate_series(0, 1) n",
        EPOCH,
    )
    return db


@pytest.fixture
def other(db: Database) -> Iterator[Connection]:
    """Another session, whose statements wait for a lock no longer than two seconds."""
    with db.connect() as session:
        session.execute("SET lock_timeout = '2s'")
        yield session


def flush(partition: int = 0, campaign: int = 1, sent: int = 3) -> Flush:
    row = ProgressRow(campaign, (0, 0, sent, 0, 0), 0, sent)
    return Flush(partition, EPOCH, HERE, THERE, True, 1, rows=(row,), due={campaign: sent})


def at(place: str, act: Callable[[], object]) -> Callable[[str], None]:
    return lambda here: None if here != place else (act(), None)[1]


def position(db: Database, partition: int = 0) -> tuple[int, str, int]:
    ((epoch, lsn, seq),) = db.execute(
        "SELECT epoch, lsn::text, seq FROM sentstream.watermarks WHERE partition = %s", partition
    )
    return epoch, lsn, seq


def waits_for_a_lock(db: Database, waiting: Connection) -> bool:
    return bool(
        db.value("SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s", waiting.info.backend_pid)
    )


@pytest.mark.parametrize("moved", ["epoch = epoch + 1", "lsn = '0/180'", "seq = seq + 1"])
def test_a_flush_from_another_place_than_the_watermark_is_refused_whole(
    partition: Database, conn: Connection, moved: str
) -> None:
    partition.execute(f"UPDATE sentstream.watermarks SET {moved} WHERE partition = 0")
    stands = position(partition)
    with pytest.raises(FencedError):
        Store().flush(conn, flush())
    assert position(partition) == stands
    assert (shown(partition), partition.execute("SELECT 1 FROM sentstream.progress")) == ({1: 0}, [])


def test_an_epoch_does_not_begin_where_another_reader_moved_the_watermarks(
    partition: Database, conn: Connection
) -> None:
    store = Store()
    known = store.watermarks(conn)
    partition.execute("UPDATE sentstream.watermarks SET lsn = '0/180' WHERE partition = 1")
    with pytest.raises(FencedError):
        store.begin_epoch(conn, known, EPOCH + 1, 2, lambda campaign: campaign % 2, 0x300, SERVER, 1)
    assert {position(partition, n)[0] for n in (0, 1)} == {EPOCH}
    store.begin_epoch(conn, store.watermarks(conn), EPOCH + 1, 2, lambda campaign: campaign % 2, 0x300, SERVER, 1)
    assert [position(partition, n) for n in (0, 1)] == [(EPOCH + 1, "0/300", 0)] * 2


def test_a_flush_is_on_disk_whatever_the_databases_default_says(partition: Database) -> None:
    """Alone, and as one of several that commit together."""
    partition.execute(f"ALTER DATABASE {partition.name} SET synchronous_commit = off")
    found: list[tuple[str, object]] = []
    with partition.connect() as conn:
        assert conn.execute("SHOW synchronous_commit").fetchone() == ("off",)
        store = Store("public", lambda place: found.append((place, conn.execute("SHOW synchronous_commit").fetchone())))
        write(store, conn, [flush()])
        assert ("before_commit", ("on",)) in found
        found.clear()
        partition.execute("UPDATE sentstream.watermarks SET lsn = '0/100', seq = 2")
        write(store, conn, [flush(0), flush(1)])
        assert [value for place, value in found if place in ("before_commit", "after_commit")] == [("on",)] * 4


def test_a_flush_holds_up_no_queueing(partition: Database, conn: Connection, other: Connection) -> None:
    """The foreign-key check of an insert locks the campaign's row, which our flush holds."""

    def queue() -> None:
        other.execute("INSERT INTO email_queue (campaign_id, subscriber_id) VALUES (1, 1)")

    Store("public", at("before_commit", queue)).flush(conn, flush())
    assert shown(partition) == {1: 3}
    assert partition.value("SELECT count(*) FROM email_queue") == 4


def test_a_campaign_that_is_being_queued_is_written_all_the_same(
    partition: Database, conn: Connection, other: Connection
) -> None:
    """An insert that has not committed holds the key of its campaign; that is no reason to skip the row."""
    with other.transaction():
        other.execute("INSERT INTO email_queue (campaign_id, subscriber_id) VALUES (1, 1)")
        assert Store().flush(conn, flush()).held == frozenset()
    assert shown(partition) == {1: 3}


def test_after_a_deadlock_the_same_flush_is_tried_again(
    partition: Database, conn: Connection, other: Connection
) -> None:
    """The flush holds the watermark and wants the progress row; the other has that row and wants the watermark."""
    partition.execute("INSERT INTO sentstream.progress (campaign_id, partition) VALUES (1, 0)")
    conn.execute("SET deadlock_timeout = '50ms'")
    other.execute("SET deadlock_timeout = '60s'; SET lock_timeout = '60s'")
    again: list[int] = []
    begun = threading.Event()

    def meet() -> None:
        with other.transaction():
            other.execute("SELECT 1 FROM sentstream.progress WHERE campaign_id = 1 FOR UPDATE")
            begun.set()
            other.execute("SELECT 1 FROM sentstream.watermarks WHERE partition = 0 FOR UPDATE")

    with ThreadPoolExecutor(1) as pool:
        tasks: list[Future[None]] = []

        def once() -> None:
            if not tasks:
                tasks.append(pool.submit(meet))
                assert begun.wait(10)
                eventually(lambda: waits_for_a_lock(partition, other))

        (result,) = write(Store("public", at("after_swap", once)), conn, [flush()], lambda: again.append(1))
        tasks[0].result(10)
    assert isinstance(result, FlushResult)
    assert again == [1]
    assert position(partition) == (EPOCH, "0/200", 0)
    assert shown(partition) == {1: 3}


def test_after_a_lock_timeout_the_same_flush_is_tried_again(
    partition: Database, conn: Connection, other: Connection
) -> None:
    conn.execute("SET lock_timeout = '50ms'")

    def release() -> None:
        other.execute("COMMIT")

    other.execute("BEGIN")
    other.execute("SELECT 1 FROM sentstream.watermarks WHERE partition = 0 FOR UPDATE")
    (result,) = write(Store(), conn, [flush()], release)
    assert isinstance(result, FlushResult)
    assert shown(partition) == {1: 3}


def test_a_fault_that_may_have_been_written_is_not_tried_again(partition: Database, conn: Connection) -> None:
    def cut() -> None:
        partition.execute("SELECT pg_terminate_backend(%s)", conn.info.backend_pid)

    again: list[int] = []
    with pytest.raises(psycopg.OperationalError):
        write(Store("public", at("before_commit", cut)), conn, [flush()], lambda: again.append(1))
    assert again == []


def test_several_flushes_take_their_partitions_in_order(
    partition: Database, conn: Connection, other: Connection
) -> None:
    """Two that write the same partitions then wait for one another, and never both."""
    other.execute("BEGIN")
    other.execute("SELECT 1 FROM sentstream.watermarks WHERE partition = 0 FOR UPDATE")
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write, Store(), conn, [flush(1), flush(0)])
        eventually(lambda: waits_for_a_lock(partition, conn))
        other.execute("SELECT 1 FROM sentstream.watermarks WHERE partition = 1 FOR UPDATE NOWAIT")
        other.execute("COMMIT")
        assert all(isinstance(result, FlushResult) for result in writing.result(10))
