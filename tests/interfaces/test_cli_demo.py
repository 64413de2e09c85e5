"""`demo`: works with nothing set up, ends well, and leaves nothing behind, however it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.interfaces.fix_counted import process
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def scratch() -> Iterator[dict[str, str]]:
    """A TMPDIR of the demo's own, short enough for a socket, open to the user that the server runs as."""
    path = Path(tempfile.mkdtemp(prefix="demo", dir="/tmp"))
    path.chmod(0o777)
    yield {"TMPDIR": str(path), "SENTSTREAM_HTTP_LISTEN": "127.0.0.1:0"}
    shutil.rmtree(path)


def left_behind(scratch: dict[str, str]) -> list[str]:
    """Files and processes that still belong to the demo."""
    folder = scratch["TMPDIR"]
    found = [str(path) for path in Path(folder).glob("*")]
    for other in psutil.process_iter(["pid", "cmdline", "environ"]):
        environment = other.info["environ"] or {}
        if environment.get("TMPDIR") == folder or any(folder in word for word in other.info["cmdline"] or ()):
            found.append(f"{other.info['pid']} {other.info['cmdline']}")
    return found


def test_the_demo_shows_mail_flowing_and_counts_right(scratch: dict[str, str]) -> None:
    child = process("demo", "--json", env=scratch)
    assert child.stdout is not None
    try:
        seen = [json.loads(child.stdout.readline())]
        while not (seen[-1]["rate_per_minute"] > 0 and any(it["sent"] == 20_323 for it in seen)):
            seen.append(json.loads(child.stdout.readline()))
        child.send_signal(signal.SIGINT)
        _out, err = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 0, err
    assert "campaigns.sent is right for all" in err
    assert "Dashboard: http://127.0.0.1:" in err
    assert left_behind(scratch) == []


@pytest.mark.slow
def test_a_demo_with_a_duration_ends_by_itself(scratch: dict[str, str]) -> None:
    child = process("demo", "--duration", "1s", env=scratch)
    _out, err = child.communicate(timeout=120)
    assert child.returncode == 0, err
    assert "campaigns.sent is right for all" in err
    assert left_behind(scratch) == []


@pytest.mark.slow
def test_a_demo_that_is_terminated_ends_well(scratch: dict[str, str]) -> None:
    child = process("demo", env=scratch)
    try:
        assert child.stdout is not None
        assert "sent=" in child.stdout.readline()
        child.send_signal(signal.SIGTERM)
        _out, err = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 0, err
    assert "campaigns.sent is right for all" in err
    assert left_behind(scratch) == []


@pytest.mark.slow
def test_a_demo_that_is_killed_leaves_nothing(scratch: dict[str, str]) -> None:
    child = process("demo", env=scratch)
    assert child.stdout is not None
    assert "sent=" in child.stdout.readline()
    child.kill()
    child.communicate(timeout=30)
    eventually(lambda: left_behind(scratch) == [], 30, every=0.2)


@pytest.mark.slow
def test_a_part_that_dies_ends_the_demo_with_its_last_words(scratch: dict[str, str]) -> None:
    child = process("demo", env=scratch)
    assert child.stdout is not None
    assert "sent=" in child.stdout.readline()
    mailer = next(other for other in psutil.Process(child.pid).children() if "stream.demo.mailer" in other.cmdline())
    os.kill(mailer.pid, signal.SIGKILL)
    _out, err = child.communicate(timeout=60)
    assert child.returncode == 1
    assert "mailer ended with exit code -9" in err
    assert "Traceback" not in err
    assert left_behind(scratch) == []
