"""No false drift: recounts as fast as they can run, under random changes at full speed, and not one `drift`.

The load has what makes snapshots and commit order differ: several sessions, long transactions open across recounts,
savepoints rolled back, two-phase commits, bulk changes, TRUNCATE, deleted campaigns; and the reader is killed (SIGKILL)
in between. Ten seconds here; NO_FALSE_DRIFT_SECONDS=600 for the long form (docs/reports.md has what it found).
"""

from __future__ import annotations

import os
import random
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import psycopg
import pytest

from connectors.postgres.connect import Connection
from connectors.postgres.store import reports
from connectors.postgres.store.recount import NotNowError
from stream.core.report import Run
from tests.fix_postgres import Database
from tests.postgres.running import add_campaign, at_rest, based, count, prepared, start_process
from tests.waiting import eventually

SECONDS: Final = float(os.environ.get("NO_FALSE_DRIFT_SECONDS", "10"))
CAMPAIGNS: Final = 20
STATUSES: Final = ("queued", "sending", "sent", "failed", "cancelled")


class Load:
    """One session of a busy mailer, by a seed of its own, until it is stopped."""

    def __init__(self, db: Database, seed: int, campaigns: list[int]) -> None:
        self._db, self._random, self._prepared = db, random.Random(seed), 0
        self._campaigns = campaigns  # shared by all
        self._seed = seed
        self.stop = threading.Event()
        self.acts = 0
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"load {seed}", daemon=True)
        self._thread.start()

    def end(self) -> None:
        self.stop.set()
        self._thread.join(30)
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        acts: list[tuple[Callable[[Connection], Any], int]] = [
            (self.one_row, 60), (self.some_rows, 10), (self.savepoint, 8), (self.bulk, 2), (self.insert, 8),
            (self.remove, 4), (self.other_campaign, 3), (self.long, 1), (self.two_phase, 3), (self.clear, 1),
            (self.campaign_anew, 2),
        ]  # fmt: skip
        names, weights = zip(*acts, strict=True)
        try:
            with self._db.connect() as conn:
                while not self.stop.is_set():
                    act = self._random.choices(names, weights)[0]
                    try:
                        act(conn)
                        self.acts += 1
                    except (psycopg.errors.DeadlockDetected, psycopg.errors.ForeignKeyViolation):
                        pass
        except BaseException as error:
            self.failure = error

    def _campaign(self) -> int:
        return self._random.choice(self._campaigns)

    def _status(self) -> str:
        return self._random.choice(STATUSES)

    def one_row(self, conn: Connection) -> None:
        for _ in range(self._random.randint(1, 20)):
            conn.execute(
                "UPDATE email_queue SET status = %s WHERE id = (SELECT id FROM email_queue OFFSET %s LIMIT 1)",
                (self._status(), self._random.randint(0, 300)),
            )

    def some_rows(self, conn: Connection) -> None:
        with conn.transaction():
            for _ in range(self._random.randint(1, 5)):
                conn.execute(
                    "UPDATE email_queue SET status = %s WHERE campaign_id = %s AND id %% 7 = %s",
                    (self._status(), self._campaign(), self._random.randint(0, 6)),
                )

    def savepoint(self, conn: Connection) -> None:
        with conn.transaction():
            self.insert(conn)
            with conn.transaction() as inner:
                self.bulk(conn)
                if self._random.random() < 0.7:
                    raise psycopg.Rollback(inner)
            self.insert(conn)

    def bulk(self, conn: Connection) -> None:
        conn.execute("UPDATE email_queue SET status = %s WHERE campaign_id = %s", (self._status(), self._campaign()))

    def insert(self, conn: Connection) -> None:
        conn.execute(
            "INSERT INTO email_queue (campaign_id, subscriber_id, status)"
            " SELECT c.id, 1, %s FROM campaigns c, generate_series(1, %s) WHERE c.id = %s",
            (self._status(), self._random.randint(1, 30), self._campaign()),
        )

    def remove(self, conn: Connection) -> None:
        conn.execute("DELETE FROM email_queue WHERE campaign_id = %s AND id %% 3 = 0", (self._campaign(),))

    def other_campaign(self, conn: Connection) -> None:
        conn.execute(
            "UPDATE email_queue q SET campaign_id = c.id, status = %s FROM campaigns c"
            " WHERE q.campaign_id = %s AND q.id %% 5 = 0 AND c.id = %s",
            (self._status(), self._campaign(), self._campaign()),
        )

    def long(self, conn: Connection) -> None:
        with conn.transaction():
            self.insert(conn)
            self.stop.wait(self._random.uniform(0.1, 1.5))
            self.some_rows(conn)

    def two_phase(self, conn: Connection) -> None:
        self._prepared += 1
        name = f"{self._db.name} {self._seed} {self._prepared}"
        conn.execute("BEGIN")
        try:
            self.some_rows(conn)
            conn.execute(f"PREPARE TRANSACTION '{name}'")
        except psycopg.Error:
            conn.execute("ROLLBACK")
            raise
        self.stop.wait(self._random.uniform(0, 0.3))
        conn.execute(f"{'COMMIT' if self._random.random() < 0.8 else 'ROLLBACK'} PREPARED '{name}'")

    def clear(self, conn: Connection) -> None:
        with conn.transaction():
            if self._random.random() < 0.5:
                self.insert(conn)
            conn.execute("TRUNCATE email_queue")
            self.insert(conn)

    def campaign_anew(self, conn: Connection) -> None:
        """One goes, with its rows; another comes (the mailer never uses an id again)."""
        place = self._random.randrange(len(self._campaigns))
        with conn.transaction():
            conn.execute("DELETE FROM campaigns WHERE id = %s", (self._campaigns[place],))
            row = conn.execute("INSERT INTO campaigns (name) VALUES ('anew') RETURNING id").fetchone()
        assert row is not None
        self._campaigns[place] = row[0]


class Reader:
    """`sentstream run` as a process, to be killed and started again."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self.kills = 0
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        return start_process(self._db, RECOUNT_INTERVAL="1s", LOG_LEVEL="warning")

    def kill(self) -> None:
        self.kills += 1
        self._process.kill()
        self._process.wait()

    def start(self) -> None:
        self._process = self._start()

    def end(self) -> None:
        self._process.terminate()
        assert self._process.wait(30) == 0

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.mark.timeout(180 + 2 * SECONDS)
def test_no_false_drift(mailer_db: Database) -> None:
    db = prepared(mailer_db)
    for campaign in range(1, CAMPAIGNS + 1):
        add_campaign(db, campaign, queued=40, sent_rows=5)
    db.execute("SELECT setval('campaigns_id_seq', 1000)")
    campaigns = list(range(1, CAMPAIGNS + 1))
    reader, loads = Reader(db), []
    try:
        with db.connect() as conn:
            based(db)
            loads = [Load(db, seed, campaigns) for seed in range(3)]
            counted = recount_under_load(conn, reader)
            for load in loads:
                load.end()
            at_rest(db)
            concludes(conn)
            reader.end()
            reports.seal_settled(conn, most=1_000_000)
            runs = reports.read_runs(conn, limit=1_000_000)
            judge(conn, runs, counted)
    finally:
        for load in loads:
            load.stop.set()
        reader.close()
    acts = sum(load.acts for load in loads)
    print(f"{len(runs)} runs under {acts} acts and {reader.kills} kills")
    assert acts > 20 * SECONDS


def recount_under_load(conn: Connection, reader: Reader) -> int:
    """Count again and again; kill and start the reader in between, once a minute and at least once. How often."""
    began, counted = time.monotonic(), 0
    planned = max(1, round(SECONDS / 60))
    while time.monotonic() - began < SECONDS:
        counted += counts(conn) is not None
        if time.monotonic() - began > SECONDS * (reader.kills + 1) / (planned + 1):
            reader.kill()
            for _ in range(10):
                counted += counts(conn) is not None
            reader.start()
            concludes(conn)
    return counted


def counts(conn: Connection) -> int | None:
    """A run's id; None where it could not be counted behind a TRUNCATE, or in a deadlock with one."""
    try:
        return count(conn).run_id
    except NotNowError:
        return None


def concludes(conn: Connection) -> None:
    """Wait until the stream concludes runs: what was open when its reader began has ended."""
    first = eventually(lambda: counts(conn), 30)

    def probe() -> bool:
        counts(conn)
        rows = conn.execute(
            "SELECT run_id, conclusive AND verified > 0, reason FROM sentstream.answers ORDER BY run_id DESC LIMIT 1"
        ).fetchall()
        marks = conn.execute("SELECT lsn, as_of, flushed_at, clock_timestamp() FROM sentstream.watermarks").fetchall()
        open_ = conn.execute(
            "SELECT pid, xact_start, wait_event, query FROM pg_stat_activity WHERE backend_xid IS NOT NULL"
        )
        assert rows, "nothing was answered"
        assert rows[0][0] >= first, f"run {first} is not answered: {rows}, {marks}, {open_.fetchall()}"
        assert rows[0][1], f"not concluded: {rows}, {marks}, {open_.fetchall()}"
        return True

    eventually(probe, 120, every=0.1)


def judge(conn: Connection, runs: list[Run], counted: int) -> None:
    drifts = [run.run_id for run in runs if run.tally.drift]
    assert not drifts, [v.as_json() for v in reports.read_report(conn, drifts[-1]).verdicts if v.verdict == "drift"]
    verified = [run for run in runs if run.tally.verified and not run.tally.inconclusive and not run.tally.baseline]
    assert counted > 3 * SECONDS
    assert len(verified) > len(runs) / 2, "most could be concluded"
    assert runs[0].tally.proved, "the newest, at rest, found everything verified"
    assert runs[0].tally.verified
    assert reports.verify(conn).broken is None
