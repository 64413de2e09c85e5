"""The WAL reader by itself: what it confirms, what it remembers, and when it leaves a server that is silent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from connectors.postgres.connect import Connection
from stream.core.position import parse_lsn
from stream.pipeline.wal_options import WalOptions
from stream.pipeline.wal_reader import WalReader
from tests.fix_postgres import Database
from tests.fix_proxy import Proxy
from tests.postgres.running import add_campaign, add_rows, at_rest, based, count, kept, running, truth
from tests.waiting import eventually


def test_after_catching_up_the_slot_stands_where_was_confirmed_and_not_where_was_read(db: Database) -> None:
    add_campaign(db, 1, queued=50)
    written = parse_lsn(db.value("SELECT pg_current_wal_insert_lsn()::text"))
    add_rows(db, 1, "sent", 50)
    reader = WalReader(WalOptions(db.url, db.slot, catchup=1))
    opened = reader.open(threading.Event())
    assert opened is not None
    assert reader.catching_up
    end = opened.begin
    while not reader.finished:
        end = reader.read(0.5).end
    assert opened.begin < written < end
    reader.confirm(written)
    reader.close()
    stands = db.value("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = %s", db.slot)
    assert opened.begin < parse_lsn(stands) <= written


def read_for(reader: WalReader, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        reader.read(0.05)


def test_a_server_that_says_nothing_is_left(
    db: Database, proxy: Callable[..., Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream.pipeline.wal_reader.SILENCE", 0.5)
    between = proxy(db.url)
    reader = WalReader(WalOptions(between.url(db.url), db.slot))
    try:
        assert reader.open(threading.Event()) is not None
        between.stall()
        with pytest.raises(psycopg.OperationalError):
            read_for(reader, 10)
    finally:
        between.resume()
        reader.close()


def test_a_recount_that_takes_its_time_can_still_be_compared(
    db: Database, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What commits while it counts is remembered for as long as a recount may last."""
    monkeypatch.setattr("stream.pipeline.server_watch.TICK", 0.1)
    monkeypatch.setattr("stream.pipeline.server_watch._SNAPSHOT_EVERY", 0.05)
    add_campaign(db, 1, queued=5, sent_rows=2)
    asked = (
        "SELECT query_start FROM pg_stat_activity WHERE datname = %s AND query LIKE 'SELECT pg_current_snapshot()%%'"
        " AND pid <> pg_backend_pid()"
    )
    with running(db, recount_interval=3600.0), ThreadPoolExecutor(1) as pool, db.connect(autocommit=False) as holder:
        based(db)
        at_rest(db)
        holder.execute("LOCK TABLE sentstream.recounts IN SHARE MODE")
        counting = pool.submit(count, conn)
        waits = "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s"
        eventually(lambda: db.value(waits, conn.info.backend_pid))
        add_rows(db, 1, "sent", 3)
        eventually(lambda: kept(db) == truth(db))
        eventually(_different(lambda: db.execute(asked, db.name), 6))
        holder.rollback()
        run = counting.result(20)
        answer = "SELECT conclusive, drift FROM sentstream.answers WHERE run_id = %s"
        assert eventually(lambda: db.execute(answer, run.run_id)) == [(True, 0)]


def _different(ask: Callable[[], list[tuple[Any, ...]]], least: int) -> Callable[[], bool]:
    """A probe: whether so many different rows were seen by now."""
    seen: set[tuple[Any, ...]] = set()

    def probe() -> bool:
        seen.update(ask())
        return len(seen) >= least

    return probe
