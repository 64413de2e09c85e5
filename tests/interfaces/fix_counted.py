"""A mailer's database, set up and with counts as a flush would have written them; and the command line on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from connectors.postgres.setup import Wanted, set_up
from stream import cli
from tests.fix_postgres import Database

SOURCE = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run a command in this process, with no setting but those of its arguments."""
    for name in [name for name in os.environ if name.startswith("SENTSTREAM_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def invoke(*words: str) -> Outcome:
        capsys.readouterr()
        code = cli.main(list(words))
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return invoke


@pytest.fixture
def prepared_db(mailer_db: Database) -> Database:
    """The mailer's tables, after `sentstream setup`."""
    return prepared(mailer_db)


@pytest.fixture
def counted_db(prepared_db: Database) -> Database:
    """Three campaigns in the queue (7 sends, 8 is done and was cleared, 9 drifted once), and 10 outside of it."""
    return counted(prepared_db)


def prepared(database: Database) -> Database:
    """`sentstream setup` on the mailer's tables."""
    with database.connect() as session:
        set_up(session, Wanted(slot=database.slot))
    return database


def counted(database: Database) -> Database:
    """What `counted_db` says, in a prepared database."""
    database.execute(
        """
        INSERT INTO campaigns (id, name, subject, body, status, to_send, sent) VALUES
            (7, 'Spring sale', 's', 'b', 'running', 100, 40), (8, 'Twice', 's', 'b', 'finished', 20, 20),
            (9, 'Twice', 's', 'b', 'paused', 10, 9), (10, 'Plain', 's', 'b', 'running', 50, 5),
            (11, 'Empty', 's', 'b', 'draft', 0, 0);
        INSERT INTO subscribers (id, email) SELECT n, n || '@example.org' FROM generate_series(1, 100) n;
        INSERT INTO email_queue (campaign_id, subscriber_id, scheduled_at, status)
            SELECT 7, n, now(), CASE WHEN n <= 40 THEN 'sent' WHEN n <= 45 THEN 'failed' WHEN n <= 46 THEN 'sending'
                                ELSE 'queued' END FROM generate_series(1, 100) n;
        INSERT INTO email_queue (campaign_id, subscriber_id, scheduled_at, status)
            SELECT 9, n, now(), CASE WHEN n <= 8 THEN 'sent' ELSE 'cancelled' END FROM generate_series(1, 10) n;
        INSERT INTO sentstream.watermarks (partition, epoch, lsn, seq, based, as_of, system_identifier, timeline,
                                           flushed_at)
            VALUES (0, 5, pg_current_wal_lsn(), 2, true, clock_timestamp(), '1', 1, clock_timestamp());
        INSERT INTO sentstream.progress (campaign_id, partition, queue_queued, queue_sending, queue_sent, queue_failed,
                                         queue_cancelled, removed, sent, written, verified_at, verified_lsn) VALUES
            (7, 0, 54, 1, 40, 5, 0, 0, 40, 40, clock_timestamp() - interval '2 min', '0/100'),
            (8, 0, 0, 0, 0, 0, 0, 20, 20, 20, clock_timestamp() - interval '2 min', '0/100'),
            (9, 0, 0, 0, 8, 0, 2, 0, 8, 8, NULL, NULL);
        INSERT INTO sentstream.history (campaign_id, minute, kind, sent) VALUES
            (7, date_trunc('minute', clock_timestamp()), 'flow', 12),
            (7, date_trunc('minute', clock_timestamp()) - interval '1 min', 'flow', 30),
            (7, date_trunc('minute', clock_timestamp()) - interval '9 min', 'baseline', -2);
        INSERT INTO sentstream.recounts (run_id, trigger, requested_by, status, started_at, lsn, snapshot, epoch,
            removed_policy, version, count_ms, finished_at, verified, drift, inconclusive, not_comparable, baseline)
            VALUES (17, 'interval', 'reconciler', 'sealed', clock_timestamp() - interval '2 min', '0/100', '1:1:', 5,
                    'keep', '1', 1.5, clock_timestamp() - interval '2 min', 2, 1, 0, 0, 0);
        INSERT INTO sentstream.verdicts (run_id, campaign_id, verdict, cause, before, after, delta, corrected)
            VALUES (17, 9, 'drift', 'missed_change', '{"sent": 9}', '{"sent": 8}', '{"sent": -1, "cancelled": 1}', true)
        """
    )
    return database


def process(*words: str, database: Database | None = None, **options: Any) -> subprocess.Popen[str]:
    """The command line as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "stream.cli", *words],
        env=environment_on(database, options.pop("env", {})),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def environment_on(database: Database | None, more: Mapping[str, str]) -> dict[str, str]:
    """Of a command on ``database``: none of the caller's settings, but ``more``."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("SENTSTREAM_")}
    environment = {**others, "PYTHONPATH": str(SOURCE), "SENTSTREAM_HTTP_LISTEN": "off", **more}
    if database is not None:
        environment |= {"SENTSTREAM_DATABASE_URL": database.url, "SENTSTREAM_SLOT_NAME": database.slot}
    return environment
