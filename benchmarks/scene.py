"""A private server with the mailer's tables and sentstream's set-up, and processes beside it: for every benchmark."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from connectors.mailer.tables import schema_sql
from connectors.postgres.connect import Connection, connect
from connectors.postgres.setup import Wanted, set_up
from stream.demo.private_postgres import PrivateServer

DEADLINE = 300.0


def until(probe: Callable[[], object], seconds: float = DEADLINE, every: float = 0.01) -> None:
    """Wait for ``probe`` to be true; RuntimeError after ``seconds``."""
    end = time.monotonic() + seconds
    while not probe():
        if time.monotonic() > end:
            raise RuntimeError(f"not so within {seconds:g} s")
        time.sleep(every)


class Scene:
    """One database. ``session`` is the superuser's, in autocommit."""

    def __init__(self, server: PrivateServer, session: Connection) -> None:
        self.server = server
        self.session = session
        self.url = server.url("bench")

    def value(self, statement: str, *parameters: Any) -> Any:
        row = self.session.execute(statement.encode(), parameters or None).fetchone()
        assert row is not None
        return row[0]

    def campaigns(self, n: int, rows: int, status: str = "queued") -> None:
        """``n`` campaigns with ``rows`` rows in all, spread evenly, ids from 1 on."""
        self.session.execute(
            "INSERT INTO campaigns (name, status)"
            " SELECT 'campaign ' || i, 'running' FROM generate_series(1, %s::int) i",
            (n,),
        )
        self.session.execute("INSERT INTO subscribers (id, email) VALUES (1, 'one@example.org')")
        self.session.execute("ALTER TABLE email_queue DISABLE TRIGGER ALL")
        self.session.execute(
            "INSERT INTO email_queue (campaign_id, subscriber_id, status)"
            " SELECT 1 + i %% %s::int, 1, %s::text FROM generate_series(1, %s::int) i",
            (n, status, rows),
        )
        self.session.execute("ALTER TABLE email_queue ENABLE TRIGGER ALL")
        self.session.execute("VACUUM ANALYZE email_queue")

    def set_up(self) -> None:
        set_up(self.session, Wanted(slot="sentstream"))

    def based(self) -> bool:
        return bool(self.value("SELECT coalesce(bool_and(based), false) FROM sentstream.watermarks"))

    @contextmanager
    def sentstream(self, *arguments: str, **settings: Any) -> Iterator[subprocess.Popen[bytes]]:
        """`sentstream run` (or another command) until the block ends."""
        child = self.start_sentstream(*arguments, **settings)
        try:
            yield child
        finally:
            child.terminate()
            child.wait(30)

    def start_sentstream(self, *arguments: str, **settings: Any) -> subprocess.Popen[bytes]:
        """`sentstream run` (or another command); the caller ends it."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SENTSTREAM_")}
        given = {"database_url": self.url, "http_listen": "off", **settings}
        environment |= {f"SENTSTREAM_{name.upper()}": str(value) for name, value in given.items()}
        log = Path(tempfile.gettempdir()) / f"sentstream-bench-{os.getpid()}.log"
        with log.open("ab") as out:
            return subprocess.Popen(
                [sys.executable, "-m", "stream.cli", *(arguments or ("run",))], env=environment, stdout=out, stderr=out
            )

    def commits_since(self, moment: datetime) -> list[float]:
        """Commit times of the rows that turned `sent` since, in seconds since 1970, in order; the server must run with
        track_commit_timestamp."""
        rows = self.session.execute(
            "SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8 FROM email_queue"
            " WHERE status = 'sent' AND sent_at >= %s::timestamptz ORDER BY 1",
            (moment,),
        ).fetchall()
        return [row[0] for row in rows]

    def recvlogical(self, *options: str) -> list[str]:
        """The command that reads a fresh copy of the slot, `reader`, made here and dropped by `drop_reader`."""
        self.session.execute("SELECT pg_copy_logical_replication_slot('sentstream', 'reader')")
        command = [str(self.server.program("pg_recvlogical")), "-d", self.url, "-S", "reader", "--start", "--no-loop"]
        return [*command, "-f", "/dev/null", "-o", "proto_version=1", "-o", "publication_names=sentstream", *options]

    def drop_reader(self) -> None:
        """Drop the copy, once it is not read any more."""
        until(lambda: self.value("SELECT NOT active FROM pg_replication_slots WHERE slot_name = 'reader'"))
        self.session.execute("SELECT pg_drop_replication_slot('reader')")

    def pgbench(self, script: str, seconds: float, clients: int = 2, rate: int = 0) -> dict[str, float]:
        """Run ``script`` for so long: ``tps``; ``median`` and ``p99`` of its latency in ms; CPU seconds of pgbench."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "script.sql"
            file.write_text(script)
            words = [
                "-n",
                "-M",
                "prepared",
                "-f",
                str(file),
                "-T",
                str(max(1, round(seconds))),
                "-c",
                str(clients),
                "-j",
                "1",
            ]
            words += ["-R", str(rate)] if rate else []
            words += ["-l", f"--log-prefix={folder}/log"]
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            result = subprocess.run(
                [str(self.server.program("pgbench")), *words, self.url], capture_output=True, text=True, check=True
            )
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            latencies = [
                # with -R the log's time includes the wait behind the schedule, and the lag is the last column
                (int(fields[2]) - (int(fields[6]) if len(fields) > 6 else 0)) / 1000
                for path in Path(folder).glob("log.*")
                for fields in (line.split() for line in path.read_text().splitlines())
                if fields[2].isdigit()
            ]
        tps = next(float(x.split("=")[1].split()[0]) for x in result.stdout.splitlines() if x.startswith("tps"))
        return {"tps": tps, "median": statistics.median(latencies), "p99": percentile(latencies, 99), "cpu": cpu}


@contextmanager
def scene(**settings: str) -> Iterator[Scene]:
    """A fresh server (``settings`` for postgresql.conf) and database."""
    with PrivateServer(settings={"shared_buffers": "256MB", "max_wal_size": "8GB", **settings}) as server:
        with connect(server.url(), "benchmark") as admin:
            admin.execute("CREATE DATABASE bench")
        with connect(server.url("bench"), "benchmark") as session:
            session.execute(schema_sql().encode())
            yield Scene(server, session)


def percentile(values: Sequence[float], p: float) -> float:
    """The ``p``-th percentile, by nearest rank; values need no order."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * p / 100))]


def report(name: str, figures: dict[str, Any], bounds: dict[str, bool]) -> int:
    """Print one benchmark as JSON and a summary line; the exit status."""
    held = all(bounds.values())
    print(json.dumps({"benchmark": name, **figures, "bounds": bounds}, indent=2, default=str))
    missed = ", ".join(bound for bound, kept in bounds.items() if not kept)
    print(f"{name}: {'all bounds held' if held else 'NOT HELD: ' + missed}")
    return 0 if held else 1
