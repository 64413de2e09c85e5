"""sentstream at work in a test: a database set up, the embedded stream and the reconciler in threads of the test."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from connectors.postgres.connect import Connection, connect
from connectors.postgres.setup import Wanted, set_up
from connectors.postgres.store.recount import Limits, Rebase, request
from stream.config.settings import Settings
from stream.core.report import Run
from stream.core.status import STATUSES
from stream.embedded.run import Embedded
from stream.reconcile import runs
from stream.reconcile.reconciler import Reconciler, utc_now
from stream.service.inbox import Inbox
from tests.fix_postgres import Database
from tests.waiting import eventually


def prepared(db: Database, **wanted: Any) -> Database:
    """The database as `sentstream setup` leaves it."""
    with db.connect() as conn:
        set_up(conn, Wanted(slot=db.slot, **wanted))
    return db


def settings_for(db: Database, **values: Any) -> Settings:
    return Settings(**{"database_url": db.url, "slot_name": db.slot, "http_listen": "off", **values})


def count(conn: Connection, **values: Any) -> Run:
    """A recount of the test's own."""
    given: dict[str, Any] = {
        "mailer_schema": "public",
        "publication": "sentstream",
        "trigger": "manual",
        "requested_by": "test",
        "removed_policy": "keep",
        "version": "test",
        "limits": Limits(5, 5, 60),
    }
    return request(conn, **{**given, **values})


def add_campaign(db: Database, number: int, *, status: str = "running", sent: int = 0, **rows: int) -> int:
    """A campaign with ``rows`` of each status in the queue: ``add_campaign(db, 1, queued=3, sent_rows=2)``."""
    db.execute(
        "INSERT INTO campaigns (id, name, status, to_send, sent) VALUES (%s, %s, %s::campaign_status, %s, %s)",
        number,
        f"campaign {number}",
        status,
        sum(rows.values()),
        sent,
    )
    db.execute("INSERT INTO subscribers (id, email) VALUES (1, 'one@example.org') ON CONFLICT DO NOTHING")
    for name, n in rows.items():
        add_rows(db, number, name.removesuffix("_rows"), n)
    return number


def add_rows(db: Database, campaign: int, status: str, n: int) -> None:
    db.execute(
        "INSERT INTO email_queue (campaign_id, subscriber_id, status) SELECT %s, 1, %s FROM generate_series(1, %s)",
        campaign,
        status,
        n,
    )


def truth(db: Database) -> dict[int, tuple[int, ...]]:
    """campaign -> the five live counts, of campaigns with rows."""
    found: dict[int, list[int]] = {}
    for campaign, status, n in db.execute("SELECT campaign_id, status::text, count(*) FROM email_queue GROUP BY 1, 2"):
        found.setdefault(campaign, [0] * 5)[STATUSES.index(status)] = n
    return {campaign: tuple(counts) for campaign, counts in found.items()}


def kept(db: Database) -> dict[int, tuple[int, ...]]:
    """campaign -> the five counts as sentstream keeps them, of campaigns with rows."""
    rows = db.execute(
        "SELECT campaign_id, queue_queued, queue_sending, queue_sent, queue_failed, queue_cancelled"
        " FROM sentstream.progress"
    )
    return {row[0]: tuple(row[1:]) for row in rows if any(row[1:])}


def shown(db: Database) -> dict[int, int]:
    """campaign -> ``campaigns.sent``."""
    return dict(db.execute("SELECT id, sent FROM campaigns"))


class Stream:
    """The embedded stream in a thread; ``failure`` is what ended it."""

    def __init__(self, settings: Callable[[], Settings], reconciler: Reconciler | None = None) -> None:
        self.inbox = Inbox()
        self.embedded = (
            Embedded(settings, self.inbox, reconciler.saw_status, reconciler.saw_unbased)
            if reconciler
            else Embedded(settings, self.inbox)
        )
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="stream", daemon=True)

    def _run(self) -> None:
        try:
            self.embedded.run()
        except BaseException as error:
            self.failure = error

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.embedded.stop.set()
        self._thread.join(20)
        assert not self._thread.is_alive()


@contextmanager
def streaming(db: Database, reconciler: Reconciler | None = None, **values: Any) -> Iterator[Stream]:
    """The stream alone, or with a reconciler that runs elsewhere."""
    settings = settings_for(db, **values)
    stream = Stream(lambda: settings, reconciler)
    stream.start()
    try:
        yield stream
    finally:
        stream.stop()
    if stream.failure is not None:
        raise stream.failure


@contextmanager
def reconciling(
    db: Database, wall: Callable[[], datetime] = utc_now, follow_log: bool = True, **values: Any
) -> Iterator[Reconciler]:
    """The reconciler alone, in a thread."""
    settings = settings_for(db, **values)
    reconciler = Reconciler(lambda: settings, wall=wall, follow_log=follow_log)
    stop = threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            reconciler.run(stop)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="reconciler", daemon=True)
    thread.start()
    try:
        yield reconciler
    finally:
        stop.set()
        thread.join(20)
        assert not thread.is_alive()
    if failures:
        raise failures[0]


def request_now(reconciler: Reconciler, requested_by: str, rebase: Rebase = None) -> Run:
    """Count now, on a connection of its own; the open run, which the reconciler follows."""
    settings = reconciler._settings()
    with connect(settings.require_database(), "recount") as conn:
        run = runs.request(conn, settings, "manual", requested_by, rebase=rebase)
    reconciler._wake.set()
    return run


@contextmanager
def running(db: Database, wall: Callable[[], datetime] = utc_now, **values: Any) -> Iterator[Reconciler]:
    """Both, as `sentstream run` has them."""
    with reconciling(db, wall, **values) as reconciler, streaming(db, reconciler, **values):
        yield reconciler


def start_process(db: Database, *, home: Path | None = None, **environment: str) -> subprocess.Popen[bytes]:
    """`sentstream run` as a process of its own, whose log goes to the test's own standard error; `environment` by the
    settings' names, such as RECOUNT_INTERVAL="5s"; `home`: the folder whose code it runs, if not ours. The test ends
    it."""
    given = {
        "SENTSTREAM_DATABASE_URL": db.url,
        "SENTSTREAM_SLOT_NAME": db.slot,
        "SENTSTREAM_HTTP_LISTEN": "off",
        **{f"SENTSTREAM_{name}": value for name, value in environment.items()},
    }
    return subprocess.Popen([sys.executable, "-m", "stream.cli", "run"], cwd=home, env={**os.environ, **given})


@contextmanager
def running_process(db: Database, *, home: Path | None = None, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """`start_process`, ended in order, which must succeed."""
    process = start_process(db, home=home, **environment)
    try:
        yield process
        assert process.poll() is None
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def based(db: Database) -> None:
    """Wait until every partition is based."""
    eventually(lambda: db.execute("SELECT 1 FROM sentstream.watermarks HAVING bool_and(based)"), 40)


def at_rest(db: Database) -> None:
    """Wait until ``campaigns.sent`` is right everywhere: rows sent now, and those removed."""
    wrong = """
        SELECT c.id, c.sent, coalesce(q.n, 0), p.removed
        FROM campaigns c
        LEFT JOIN (SELECT campaign_id, count(*) FILTER (WHERE status = 'sent') AS n FROM email_queue GROUP BY 1) q
               ON q.campaign_id = c.id
        LEFT JOIN sentstream.progress p ON p.campaign_id = c.id
        WHERE (q.campaign_id IS NOT NULL OR p.campaign_id IS NOT NULL)
          AND c.sent <> coalesce(q.n, 0) + coalesce(p.removed, 0)"""

    def right() -> bool:
        rows = db.execute(wrong)
        assert not rows, f"(campaign, shown, rows sent, removed): {rows}"
        return True

    eventually(right, 40)
