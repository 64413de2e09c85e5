"""The demo's mailer with a clock of the test's own, and the process that `make run` starts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import TupleRow

from connectors.mailer.tracking import observations, read_tracking
from connectors.mailer.window import read_window
from stream.demo.mailer import newsletters
from stream.demo.mailer.__main__ import main
from stream.demo.mailer.demo import Demo
from stream.demo.mailer.history import lay_history
from tests.fix_postgres import Database
from tests.waiting import eventually

Conn = Connection[TupleRow]
NAMES = ("queued", "sending", "sent", "failed", "cancelled")


def table(conn: Conn) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for campaign, status, n in conn.execute("SELECT campaign_id, status, count(*) FROM email_queue GROUP BY 1, 2"):
        found.setdefault(str(campaign), {})[status] = n
    return found


def told(truth: dict[str, dict[str, dict[str, int]]]) -> dict[str, dict[str, int]]:
    """The counts of a truth file, as `table` has them."""
    counts = {campaign: {k: n for k, n in t["counts"].items() if n} for campaign, t in truth.items()}
    return {campaign: those for campaign, those in counts.items() if those}


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
    truth = stage.demo.snapshot().as_json()
    assert told(truth["campaigns"]) == table(conn)
    outside = next(t for t in truth["campaigns"].values() if t["name"] == newsletters.OUTSIDE_THE_QUEUE)
    assert outside["sent"]["keep"] > newsletters.OUTSIDE_SENT
    assert conn.execute("SELECT sent FROM campaigns WHERE name = %s", (newsletters.OUTSIDE_THE_QUEUE,)).fetchone() == (
        outside["sent"]["keep"],
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
    assert told(stage.demo.snapshot().as_json()["campaigns"]) == table(conn)
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
    assert told(again.demo.snapshot().as_json()["campaigns"]) == table(conn)
    again.demo.close()


def process(url: str, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "stream.demo.mailer", "--database-url", url, *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("mix", ["demo", *(pytest.param(mix, marks=pytest.mark.slow) for mix in ("all", "mail"))])
def test_the_process_writes_its_truth_and_ends_well_when_told(pg: Database, tmp_path: Path, mix: str) -> None:
    file = tmp_path / "truth.json"
    words = ("--create-tables", "--mix", mix, "--rate", "300", "--truth", str(file), "--truth-every", "60")
    running = process(pg.url, *words)
    try:
        eventually(file.exists, 30)
        written = file.stat().st_mtime_ns
        os.kill(running.pid, signal.SIGUSR1)
        eventually(lambda: file.stat().st_mtime_ns > written, 30)
        changes = json.loads(file.read_text())["changes"]
        running.send_signal(signal.SIGTERM)
        out, err = running.communicate(timeout=30)
    finally:
        running.kill()
    assert (running.returncode, err) == (0, "")
    assert json.loads(out)["seconds"] > 0
    truth = json.loads(file.read_text())
    assert truth["changes"] >= changes
    with psycopg.connect(pg.url) as conn:
        assert told(truth["campaigns"]) == table(conn)
    assert [path.name for path in tmp_path.iterdir()] == ["truth.json"]


@pytest.mark.slow
def test_it_ends_by_itself_after_its_duration(mailer_url: str, capfd: pytest.CaptureFixture[str]) -> None:
    running = process(mailer_url, "--mix", "mail", "--size", "200", "--duration", "1", "--rate", "100")
    out, _ = running.communicate(timeout=30)
    assert running.returncode == 0
    assert 50 <= json.loads(out)["changes"] <= 200


def test_history_alone(mailer_url: str, conn: Conn) -> None:
    assert main(["--database-url", mailer_url, "--history"]) == 0
    assert conn.execute("SELECT count(*) FROM email_queue WHERE status = 'sent'").fetchone() == (20_323,)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--mix", "everything"), 2, "Mixes:"),
        (("--database-url", "postgresql://127.0.0.1:1/none", "--mix", "all"), 3, "can't be reached"),
        (("--schema", "nowhere"), 1, "--create-tables"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    mailer_url: str, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int, said: str
) -> None:
    assert main(["--database-url", mailer_url, *words]) == code
    assert said in capsys.readouterr().err
