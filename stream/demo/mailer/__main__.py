"""The simulated mailer as a process: ``python -m stream.demo.mailer --database-url URL``.

It writes its truth to a file (``--truth``): every second, on SIGUSR1, and at the end, each time as a whole. SIGTERM and
Ctrl-C end it between two acts, exit code 0. Its last line on stdout is a JSON object: changes, seconds, rate.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Protocol

import psycopg
from psycopg import sql

from connectors.mailer.tables import schema_sql
from stream.core.errors import SentstreamError, UnreachableError
from stream.demo.mailer.action_mix import ACTS, MIXES, parse_mix
from stream.demo.mailer.demo import Demo
from stream.demo.mailer.history import lay_history
from stream.demo.mailer.load import Load, Snapshot

_EXAMPLES = f"""
mixes: demo (newsletters that come and go at a living pace), {", ".join(MIXES)};
or weights of acts: pick=10,sent=9 (all,move=5,clear=0 changes a mix).
acts: {", ".join(ACTS)}.
"""


class Runner(Protocol):
    """What runs, demo or load."""

    @property
    def running(self) -> bool: ...
    @property
    def changes(self) -> int: ...
    def start(self) -> None: ...
    def wait(self, seconds: float) -> None: ...
    def stop(self) -> None: ...
    def close(self) -> None: ...
    def snapshot(self) -> Snapshot: ...


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs it. Exit codes: 0 good, 1 something went wrong, 2 usage, 3 PostgreSQL can't be reached."""
    options = _options(arguments)
    try:
        return _run(options)
    except psycopg.OperationalError as error:
        print(f"PostgreSQL can't be reached: {error}".strip(), file=sys.stderr)
        return UnreachableError.code
    except psycopg.errors.UndefinedTable as error:
        print(f"{error.diag.message_primary}: no mailer's tables here. --create-tables makes them.", file=sys.stderr)
        return 1
    except SentstreamError as error:
        print(error, file=sys.stderr)
        return error.code


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stream.demo.mailer",
        description="A simulated mailer that queues and sends mail on a database with the mailer's tables.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--database-url", required=True, help="libpq URL of the mailer's database")
    add("--schema", default="public", help="schema of the mailer's tables (public)")
    add("--mix", default="demo", help="what it does: demo, a mix, or acts with weights (demo)")
    add("--seed", type=int, default=0, help="makes its choices (0)")
    add(
        "--rate",
        type=float,
        help="changed rows a second (demo: mails, about); none given: a lively pace, or all it can",
    )
    add("--duration", type=float, help="seconds until it ends by itself")
    add("--campaigns", type=int, default=6, help="how many it keeps (6)")
    add("--size", type=int, default=1000, help="rows that a campaign queues, about (1000)")
    add("--connections", type=int, default=2, help="how many it sends with (2)")
    add("--group", type=int, default=1, help="changes of single rows that share a transaction (1)")
    add("--tracking", action="store_true", help="note each mail in azure_message_tracking (the demo always does)")
    add("--truth", type=Path, metavar="FILE", help="where its truth is written, as JSON")
    add("--truth-every", type=float, default=1.0, metavar="SECONDS", help="how often (1)")
    add("--create-tables", action="store_true", help="make the mailer's tables first, where they are missing")
    add("--history", action="store_true", help="only lay the demo's past (a campaign that shows 0), then end")
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace) -> int:
    if options.create_tables:
        _create_tables(options.database_url, options.schema)
    if options.history:
        with psycopg.connect(options.database_url, autocommit=True) as conn:
            lay_history(conn, options.schema)
        return 0
    stop, now = threading.Event(), threading.Event()

    def on_signal(number: int, _frame: FrameType | None) -> None:
        (now if number == signal.SIGUSR1 else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, on_signal)
    runner = _runner(options)
    try:
        before, began = runner.changes, time.monotonic()
        runner.start()
        _watch(runner, options, stop, now)
        runner.stop()
        seconds = time.monotonic() - began
        if options.truth is not None:
            write_truth(options.truth, runner.snapshot())
        changes = runner.changes - before
        print(json.dumps({"changes": changes, "seconds": round(seconds, 3), "rate": round(changes / seconds, 1)}))
        return 0
    finally:
        runner.close()


def _runner(options: argparse.Namespace) -> Runner:
    if options.mix == "demo":
        speed = 1.0 if options.rate is None else options.rate / Demo.PACE
        return Demo(options.database_url, options.seed, schema=options.schema, speed=speed)
    load = Load(
        options.database_url,
        rate=options.rate,
        seed=options.seed,
        schema=options.schema,
        mix=parse_mix(options.mix),
        connections=options.connections,
        group=options.group,
        campaigns=options.campaigns,
        size=options.size,
        tracking=options.tracking,
    )
    load.prepare()
    return load


def _watch(runner: Runner, options: argparse.Namespace, stop: threading.Event, now: threading.Event) -> None:
    """Until it is told to stop, its time is up, or it has died; writes the truth meanwhile."""
    end = None if options.duration is None else time.monotonic() + options.duration
    write_at = time.monotonic()
    while runner.running and not stop.is_set() and (end is None or time.monotonic() < end):
        if options.truth is not None and (now.is_set() or time.monotonic() >= write_at):
            now.clear()
            write_at = time.monotonic() + options.truth_every
            write_truth(options.truth, runner.snapshot())
        left = 0.1 if end is None else max(0.0, min(0.1, end - time.monotonic()))
        stop.wait(left)


def write_truth(path: Path, snapshot: Snapshot) -> None:
    """The whole file or the one before: a reader never sees half of it."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=path.name, suffix=".new", delete=False) as file:
        json.dump(snapshot.as_json(), file)
    Path(file.name).replace(path)


def _create_tables(url: str, schema: str) -> None:
    with psycopg.connect(url) as conn:
        name = sql.Identifier(schema)
        found = conn.execute("SELECT to_regclass(%s::text)", (f'"{schema}".email_queue',)).fetchone()
        if found is not None and found[0] is not None:
            return
        conn.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(name))
        conn.execute(sql.SQL("SET LOCAL search_path TO {}").format(name))
        conn.execute(schema_sql())


if __name__ == "__main__":
    sys.exit(main())
