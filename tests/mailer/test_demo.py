"""The demo's mailer with a clock of the test's own, and the process that `make run` starts."""

from __future__ import annotations

import signal
import subprocess
import sys
from datetime import datetime, timedelta, timezone

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import TupleRow

from connectors.mailer.tracking import observations, read_tracking
from connectors.mailer.window import read_window
from stream.core.status import STATUSES
from stream.demo.mailer import newsletters
from stream.demo.mailer.__main__ import main
from stream.demo.mailer.demo import Demo
from stream.demo.mailer.history import lay_history
from tests.fix_postgres import Database
from tests.waiting import eventually

Conn = Connection[TupleRow]


def table(conn: Conn) -> dict[int, tuple[int, ...]]:
    """campaign -> the five live counts, of campaigns with rows."""
    found: dict[int, dict[str, int]] = {}
    for campaign, status, n in conn.execute("SELECT campaign_id, status, count(*) FROM email_queue GROUP BY 1, 2"):
        found.setdefault(campaign, {})[status] = n
    return {campaign: tuple(counts.get(name, 0) for name in STATUSES) for campaign, counts in found.items()}


def statuses(conn: Conn) -> dict[str, str]:
    return dict(conn.execute("SELECT name, status::text FROM campaigns").fetchall())


class Stage:
    """A demo, played by the test's clock."""

    def __init__(self, url: str, *, speed: float = 1.0, scale: float = 1.0) -> None:
        self.demo = Demo(url, seed=1, speed=speed, scale=scale)
        self.wall = datetime.fromisoformat("2026-06-10T14:00:05+00:00").astimezone(timezone.utc)
        self.now = 0.0

    def play(self, seconds: float, step: float = 0.5) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += step
            self.demo.tick(self.now, self.wall + timedelta(seconds=self.now))


def test_the_past_is_the_case_that_started_it_all(conn: Conn) -> None:
    campaign = lay_history(conn)
    assert conn.execute("SELECT sent FROM campaigns WHERE id = %s", (campaign,)).fetchone() == (0,)
    found = observations({campaign: 20_323}, read_tracking(conn, "public"))
    assert [(o.kind, o.expected, o.actual) for o in found if o.campaign_id == campaign] == [
        ("tracked", 20_323, 20_318),
        ("delivered", 20_323, 1_282),
    ]


def test_newsletters_begin_send_pause_and_finish_and_the_truth_is_true(mailer_url: str, conn: Conn) -> None:
    stage = Stage(mailer_url, scale=0.1)
    stage.play(1)
    assert statuses(conn)[newsletters.OPENING[0].name] == "running"
    stage.play(44)
    assert statuses(conn)[newsletters.PAUSED] == "paused"
    stage.play(30)
    assert "finished" in {statuses(conn)[letter.name] for letter in newsletters.OPENING}
    stage.play(60)
    truth = stage.demo.truth()
    assert truth.live() == table(conn)
    outside = next(t for t in truth.campaigns.values() if t.name == newsletters.OUTSIDE_THE_QUEUE)
    assert outside.sent() > newsletters.OUTSIDE_SENT
    assert conn.execute("SELECT sent FROM campaigns WHERE name = %s", (newsletters.OUTSIDE_THE_QUEUE,)).fetchone() == (
        outside.sent(),
    )
    stage.demo.close()


@pytest.mark.slow
def test_the_window_closes_for_a_while_and_opens_again(mailer_url: str, conn: Conn) -> None:
    stage = Stage(mailer_url, speed=0.02)
    seen = set()
    pauses = 0
    for _ in range(400):
        stage.play(1)
        window = read_window(conn, "public")
        seen.add(str(window).split(" ")[0])
        pauses += bool(conn.execute("SELECT 1 FROM campaigns WHERE auto_paused").fetchone())
    assert "always" in seen
    assert len(seen) == 2
    assert 20 <= pauses <= 60
    assert read_window(conn, "public").end is None
    assert conn.execute("SELECT 1 FROM campaigns WHERE auto_paused").fetchone() is None
    stage.demo.close()


@pytest.mark.slow
def test_a_demo_of_hours_keeps_the_number_of_campaigns(mailer_url: str, conn: Conn) -> None:
    stage = Stage(mailer_url, scale=0.01)
    stage.play(2500, step=2.0)
    assert 8 <= len(statuses(conn)) <= 18
    assert newsletters.HISTORY_NAME in statuses(conn)
    assert stage.demo.truth().live() == table(conn)
    stage.demo.close()


@pytest.mark.slow
def test_a_demo_goes_on_where_another_one_stopped(mailer_url: str, conn: Conn) -> None:
    stage = Stage(mailer_url, speed=0.3)
    stage.play(20)
    stage.demo.close()
    before = table(conn)
    again = Stage(mailer_url)
    again.play(10)
    assert table(conn) != before
    assert again.demo.truth().live() == table(conn)
    again.demo.close()


def test_the_process_makes_the_tables_sends_and_ends_well_when_told(pg: Database) -> None:
    command = [sys.executable, "-m", "stream.demo.mailer", "--database-url", pg.url, "--create-tables", "--rate", "300"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with psycopg.connect(pg.url, autocommit=True) as conn:
        try:
            sending = "SELECT 1 FROM email_queue q JOIN campaigns c ON c.id = campaign_id WHERE c.status = 'running'"
            eventually(lambda: _made(conn) and conn.execute(sending).fetchone(), 30)
            running.send_signal(signal.SIGTERM)
            out, err = running.communicate(timeout=30)
        finally:
            running.kill()
    assert (running.returncode, out, err) == (0, "", "")


def _made(conn: Conn) -> bool:
    return conn.execute("SELECT to_regclass('email_queue')").fetchone() != (None,)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--database-url", "postgresql://127.0.0.1:1/none"), 3, "can't be reached"),
        (("--schema", "nowhere"), 1, "--create-tables"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    mailer_url: str, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int, said: str
) -> None:
    assert main(["--database-url", mailer_url, *words]) == code
    assert said in capsys.readouterr().err
