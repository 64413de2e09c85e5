"""For the tests of this folder: a database as `sentstream setup` leaves it, and a session on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from connectors.postgres.connect import Connection
from tests.fix_postgres import Database
from tests.postgres.running import prepared


@pytest.fixture
def db(mailer_db: Database) -> Database:
    return prepared(mailer_db)


@pytest.fixture
def conn(db: Database) -> Iterator[Connection]:
    with db.connect() as connection:
        yield connection
