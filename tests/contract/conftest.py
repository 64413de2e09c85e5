"""One suite of promises for every shape: same input, same counts, same verdicts.

`counting(db, **settings)` runs sentstream on ``db`` for the length of a ``with`` block. `embedded` is `sentstream run`
without Kafka; `kafka` has reader, worker and reconciler over real topics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest

from tests.fix_postgres import Database, default_version
from tests.kafka.in_process import kafka_shape
from tests.postgres.running import based, running

Counting = Callable[..., AbstractContextManager[None]]


@contextmanager
def embedded(db: Database, **settings: Any) -> Iterator[None]:
    """`sentstream run`: stream and reconciler in threads of the test."""
    with running(db, **settings):
        based(db)
        yield


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.timeout(180))])
def counting(request: pytest.FixtureRequest) -> Counting:
    if request.param == "embedded":
        return embedded
    address: str = request.getfixturevalue("kafka").bootstrap
    return lambda db, **settings: kafka_shape(db, address, **settings)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Over Kafka on one version of PostgreSQL and one identity; the others only in ``make test-all``."""
    for item in items:
        name = item.name
        other = "pg" in name and f"pg{default_version()}" not in name
        if "[kafka" in name and (other or name.startswith("test_identity_full")):
            item.add_marker(pytest.mark.slow)
