"""The web face as a process: `serve` on a database, or `run`, which counts and serves.

A test takes `website`, `own_website` or `counting_website`, and talks to ``site.url`` by httpx, a socket or a browser.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from tests.command import Command
from tests.fix_postgres import Database, Servers, create_database, default_version
from tests.interfaces.fix_counted import Run, counted, counted_db, environment_on, prepared, prepared_db, run
from tests.waiting import eventually

__all__ = [
    "Run",
    "counted_db",
    "counting_website",
    "own_website",
    "prepared_db",
    "run",
    "shared_db",
    "website",
]

_ADDRESS = re.compile(r"The dashboard is at (http://\S+)/")


@dataclass
class Site:
    """A process that serves. ``lines``: what it has logged so far."""

    child: Command
    url: str = ""
    lines: list[str] = field(default_factory=list)
    # one for all calls: making one costs more than the call
    client: httpx.Client = field(default_factory=lambda: httpx.Client(verify=False, timeout=20))

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.client.get(self.url + path, **more)

    def post(self, path: str, **more: Any) -> httpx.Response:
        return self.client.post(self.url + path, **more)

    def campaign(self, number: int) -> dict[str, Any]:
        """Its progress; an AssertionError where there is none (yet)."""
        response = self.get(f"/api/campaigns/{number}")
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    @contextmanager
    def events(self, path: str = "/api/events", **more: Any) -> Iterator[Events]:
        """An open event stream."""
        patience = httpx.Timeout(20, read=60)
        with self.client.stream("GET", self.url + path, timeout=patience, **more) as response:
            assert response.status_code == 200, response.read()
            yield Events(response)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to end; its exit code."""
        self.child.send_signal(number)
        return self.child.wait(30)


class Events:
    """Reads server-sent events as the standard says. ``retries`` and ``comments``: what came beside events."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.iter_lines()
        self.response = response
        self.retries: list[int] = []
        self.comments: list[str] = []
        self.last_id = ""

    def next(self, *kinds: str) -> tuple[str, Any]:
        """The next event, of these kinds where some are named: its kind and data. AssertionError at the end."""
        kind, data = "message", ""
        for line in self._lines:
            if line == "":
                if data and (not kinds or kind in kinds):
                    return kind, json.loads(data)
                kind, data = "message", ""
                continue
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "":
                self.comments.append(value)
            elif name == "event":
                kind = value
            elif name == "data":
                data += value
            elif name == "id":
                self.last_id = value
            elif name == "retry":
                self.retries.append(int(value))
        raise AssertionError("the stream has ended")

    def until(self, fits: Callable[[str, Any], bool]) -> tuple[str, Any]:
        """The next event that fits."""
        while True:
            kind, data = self.next()
            if fits(kind, data):
                return kind, data


@contextmanager
def site(*words: str, database: Database, **env: str) -> Iterator[Site]:
    """A command that serves, on a port of its own. Settings: ``HTTP_TOKEN="x"``."""
    settings = {"HTTP_LISTEN": "127.0.0.1:0", **env}
    ours, theirs = os.pipe()
    child = Command(
        words, environment_on(database, {f"SENTSTREAM_{k}": value for k, value in settings.items()}), None, theirs
    )
    os.close(theirs)
    found = Site(child)
    reader = threading.Thread(target=_read, args=(found, ours), daemon=True)
    reader.start()
    try:
        eventually(lambda: found.url or child.poll() is not None, 30)
        assert found.url, "".join(found.lines)
        yield found
    except BaseException:  # pytest shows it beside what failed
        sys.stderr.write("".join([*found.lines, f"{words[0]}: exit status {child.poll()}\n"]))
        raise
    finally:
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        reader.join(5)
        found.client.close()


def _read(found: Site, pipe: int) -> None:
    with os.fdopen(pipe, encoding="utf-8") as log:
        for line in log:
            found.lines.append(line)
            match = _ADDRESS.search(line)
            if match is not None:
                found.url = match[1]


@contextmanager
def serve(database: Database, **env: str) -> Iterator[Site]:
    """`serve` on ``database``, ready to answer."""
    with site("serve", database=database, **env) as found:
        eventually(lambda: _answers(found), 20)
        yield found


def _answers(found: Site) -> bool:
    """Whether it has read the database (401: it would tell whoever has the token)."""
    try:
        return "not reached yet" not in found.get("/readyz?verbose").text
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="module")
def shared_db(pg_servers: Servers) -> Iterator[Database]:
    """What `counted_db` says, for all tests of a module that change nothing."""
    database = create_database(pg_servers.get(default_version()), mailer=True)
    try:
        yield counted(prepared(database))
    finally:
        database.drop()


@pytest.fixture(scope="module")
def website(shared_db: Database) -> Iterator[Site]:
    """`serve` on three campaigns with counts, two outside the queue, and a run; nobody counts. Only to be read."""
    with serve(shared_db) as found:
        yield found


@pytest.fixture
def own_website(counted_db: Database) -> Iterator[Site]:
    """The same on the test's own ``counted_db``, to be changed."""
    with serve(counted_db) as found:
        yield found


@pytest.fixture
def counting_website(prepared_db: Database) -> Iterator[Site]:
    """`run`: counts, and serves what it counts."""
    with site("run", database=prepared_db) as found:
        eventually(lambda: found.get("/readyz").status_code == 200, 30)
        yield found
