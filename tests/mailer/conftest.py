"""A database like the mailer's, new for each test: copied from a template, on a private server."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import psycopg
import pytest
from psycopg import Connection, sql
from psycopg.rows import TupleRow

from connectors.mailer import tables
from connectors.postgres.server import PrivateServer

_numbers = count(1)


@pytest.fixture(scope="session")
def mailer_server() -> Iterator[PrivateServer]:
    with PrivateServer() as server:
        with psycopg.connect(server.url(), autocommit=True) as admin:
            admin.execute("CREATE DATABASE mailer_template")
        with psycopg.connect(server.url("mailer_template"), autocommit=True) as template:
            template.execute(tables.schema_sql())
        yield server


@pytest.fixture
def mailer_url(mailer_server: PrivateServer) -> Iterator[str]:
    name = f"mailer_{next(_numbers)}"
    with psycopg.connect(mailer_server.url(), autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {} TEMPLATE mailer_template").format(sql.Identifier(name)))
        yield mailer_server.url(name)
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def conn(mailer_url: str) -> Iterator[Connection[TupleRow]]:
    with psycopg.connect(mailer_url, autocommit=True) as connection:
        yield connection
