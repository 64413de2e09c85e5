"""The demo's mailer as a process: ``python -m stream.demo.mailer --database-url URL``.

SIGTERM and Ctrl-C end it between two ticks, exit code 0.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Sequence

import psycopg
from psycopg import sql

from connectors.mailer.tables import schema_sql
from stream.core.errors import SentstreamError, UnreachableError
from stream.demo.mailer.demo import Demo


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
    )
    add = parser.add_argument
    add("--database-url", required=True, help="libpq URL of the mailer's database")
    add("--schema", default="public", help="schema of the mailer's tables (public)")
    add("--seed", type=int, default=0, help="makes its choices (0)")
    add("--rate", type=float, default=Demo.PACE, help=f"mails a second, about ({Demo.PACE:g})")
    add("--create-tables", action="store_true", help="make the mailer's tables first, where they are missing")
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace) -> int:
    if options.create_tables:
        _create_tables(options.database_url, options.schema)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    demo = Demo(options.database_url, options.seed, schema=options.schema, speed=options.rate / Demo.PACE)
    try:
        demo.run(stop)
    finally:
        demo.close()
    return 0


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
