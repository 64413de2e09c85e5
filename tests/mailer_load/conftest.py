"""Short names for a database with the mailer's tables, new for each test."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import TupleRow

from tests.fix_postgres import Database


@pytest.fixture
def mailer_url(mailer_db: Database) -> str:
    return mailer_db.url


@pytest.fixture
def conn(mailer_url: str) -> Iterator[Connection[TupleRow]]:
    with psycopg.connect(mailer_url, autocommit=True) as connection:
        yield connection
