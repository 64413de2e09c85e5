"""`run` as people and service managers start it: a process, signals, a terminal, a crontab."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stream.core.progress import FIELDS
from tests.fix_postgres import Database
from tests.interfaces.fix_counted import Run, prepared_db, process, run
from tests.waiting import eventually

__all__ = ["prepared_db", "run"]

FILL = """
INSERT INTO campaigns (id, name, subject, body, status, to_send) VALUES (1, 'Spring', 's', 'b', 'running', 50);
INSERT INTO subscribers (id, email) SELECT n, n || '@example.org' FROM generate_series(1, 50) n;
INSERT INTO email_queue (campaign_id, subscriber_id, scheduled_at, status)
    SELECT 1, n, now(), CASE WHEN n <= 20 THEN 'sent' ELSE 'queued' END FROM generate_series(1, 50) n
"""


@contextmanager
def running(*words: str, database: Database, cwd: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    child = process(*words, database=database, cwd=cwd)
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.communicate()


def sent(database: Database) -> int:
    return int(database.value("SELECT sent FROM campaigns WHERE id = 1"))


def test_run_follows_the_queue_and_ends_well_on_sigterm(prepared_db: Database) -> None:
    prepared_db.execute(FILL)
    with running("run", "--json", database=prepared_db) as child:
        eventually(lambda: sent(prepared_db) == 20, 30)
        prepared_db.execute("UPDATE email_queue SET status = 'sent' WHERE id <= 30")
        eventually(lambda: sent(prepared_db) == 30, 5)
        assert child.stdout is not None
        while (said := json.loads(child.stdout.readline()))["sent"] < 30:  # for programs: what people see live
            assert tuple(said) == FIELDS
        child.send_signal(signal.SIGTERM)
        _out, err = child.communicate(timeout=30)
    assert child.returncode == 0
    assert "flushed and confirmed up to" in err.splitlines()[-1]
    assert "Traceback" not in err


def test_sigterm_while_it_still_imports_is_an_orderly_end() -> None:
    at_an_import = """
import os, signal, sys
class Told:
    def find_spec(self, name, *_):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGTERM)
sys.meta_path.insert(0, Told())
from stream.cli import main
sys.exit(main(["run"]))
"""
    ended = subprocess.run(
        [sys.executable, "-c", at_an_import], check=False, capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_sighup_takes_intervals_and_names_what_waits_for_a_restart(prepared_db: Database, tmp_path: Path) -> None:
    path = tmp_path / "sentstream.toml"
    path.write_text('recount_interval = "5m"\nlog_format = "json"\n')
    with running("run", database=prepared_db, cwd=tmp_path) as child:
        assert child.stderr is not None
        eventually(lambda: prepared_db.value("SELECT count(*) FROM sentstream.watermarks WHERE based") == 1, 30)
        path.write_text('recount_interval = "1m"\nlog_format = "text"\nremoved = "follow"\n')
        child.send_signal(signal.SIGHUP)
        said: list[str] = []
        while not any("settings were read again" in line for line in said):
            said.append(json.loads(child.stderr.readline())["message"])
        path.write_text("recount_interval = 'never'\n")
        child.send_signal(signal.SIGHUP)
        while not any("RECOUNT_INTERVAL 'never'" in line for line in said):
            said.append(json.loads(child.stderr.readline())["message"])
        child.send_signal(signal.SIGINT)
        out, _err = child.communicate(timeout=30)
    assert out == "", "without a terminal and --json the log says enough"
    assert "RECOUNT_INTERVAL is now 1m" in said
    assert "LOG_FORMAT changed, but stays json until a restart" in said
    assert "REMOVED changed, but stays keep until a restart" in said
    assert child.returncode == 0


def test_once_catches_up_and_exits_with_0(prepared_db: Database) -> None:
    prepared_db.execute(FILL)
    with running("run", "--once", "--json", database=prepared_db) as child:
        out, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    assert sent(prepared_db) == 20
    report = json.loads(out)  # as `recount --json` prints it
    assert (report["status"], report["requested_by"], report["raised"]) == ("sealed", "run --once", 0)
    assert report["counts"]["baseline"] == len(report["verdicts"]) == 1
    assert err.count("recount trigger=manual") == 1
    prepared_db.execute("UPDATE email_queue SET status = 'sent' WHERE id <= 45; DELETE FROM email_queue WHERE id = 1")
    with running("run", "--once", database=prepared_db) as child:
        _out, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    assert sent(prepared_db) == 45, "a deleted row does not unsend a mail"


def test_run_on_a_database_that_is_not_set_up_names_the_command(mailer_db: Database) -> None:
    with running("run", database=mailer_db) as child:
        out, err = child.communicate(timeout=30)
    assert (child.returncode, out) == (1, "")
    assert "sentstream setup" in err.splitlines()[-1]
    assert "Traceback" not in err


def test_once_and_kafka_exclude_each_other(run: Run) -> None:
    found = run("run", "--once", "--kafka-bootstrap-servers", "k:9092", "--database-url", "postgresql://u@h/d")
    assert found.code == 2
    assert "--once works without Kafka only" in found.err


def test_a_second_run_waits_and_ends_well(prepared_db: Database) -> None:
    with running("run", database=prepared_db):
        eventually(lambda: prepared_db.value("SELECT count(*) FROM sentstream.watermarks WHERE based") == 1, 30)
        with running("run", database=prepared_db) as second:
            assert second.stderr is not None
            while "active" not in (line := second.stderr.readline()):
                assert line
            second.send_signal(signal.SIGINT)
            second.communicate(timeout=30)
        assert second.returncode == 0


def test_on_a_terminal_run_shows_live_counts_and_logs_above(prepared_db: Database) -> None:
    prepared_db.execute(FILL)
    ours, theirs = pty.openpty()
    environment = {"COLUMNS": "100", "LINES": "30", "TERM": "xterm", "NO_COLOR": "1"}
    environment |= {"SENTSTREAM_DATABASE_URL": prepared_db.url, "SENTSTREAM_SLOT_NAME": prepared_db.slot}
    child = _on_terminal(theirs, environment)
    os.close(theirs)
    try:
        seen = _read_until(ours, "20 of 50", "LIVE", "recount trigger=start")
        child.send_signal(signal.SIGINT)
        seen += _read_until(ours, "flushed and confirmed")
    finally:
        child.send_signal(signal.SIGKILL) if child.poll() is None and "flushed" not in seen else None
        child.wait(30)
        os.close(ours)
    assert child.returncode == 0
    assert "queued 30  sending 0  sent 20  failed 0  cancelled 0" in seen
    assert "\x1b[1;32m" not in seen
    assert "\x1b[32m" not in seen, "NO_COLOR is respected"


def _on_terminal(theirs: int, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    import sys

    from tests.interfaces.fix_counted import SOURCE

    others = {name: value for name, value in os.environ.items() if not name.startswith("SENTSTREAM_")}
    return subprocess.Popen(
        [sys.executable, "-m", "stream.cli", "run"],
        env={**others, "PYTHONPATH": str(SOURCE), "SENTSTREAM_HTTP_LISTEN": "off", **environment},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )


def _read_until(terminal: int, *wanted: str, timeout: float = 30) -> str:
    seen = ""
    deadline = time.monotonic() + timeout
    while not all(word in seen for word in wanted):
        if time.monotonic() > deadline:
            pytest.fail(f"{wanted} not seen on the terminal: {seen[-2000:]!r}")
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                seen += os.read(terminal, 65536).decode(errors="replace")
            except OSError:
                break
    return seen


def test_in_shadow_mode_nothing_is_written_and_status_says_so(prepared_db: Database, run: Run) -> None:
    prepared_db.execute(FILL)
    with running("run", "--no-view", "--write-back", "false", database=prepared_db):
        where = ("--database-url", prepared_db.url, "--slot-name", prepared_db.slot)
        eventually(lambda: "live, in shadow mode" in run("status", *where).out, 30)
        assert run("progress", "--json", *where).json["campaigns"][0]["sent"] == 20
        assert sent(prepared_db) == 0
