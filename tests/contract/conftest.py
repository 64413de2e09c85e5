"""One suite of promises for every shape: same input, same counts, same verdicts.

`counting(db, **settings)` runs sentstream on ``db`` for the length of a ``with`` block. `embedded` is `sentstream run`
without Kafka; `kafka` has reader, worker and reconciler over real topics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest

from tests.fix_postgres import Database
from tests.kafka.in_process import kafka_shape
from tests.postgres.running import based, running

Counting = Callable[..., AbstractContextManager[object]]


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


#: each case alone over Kafka only in ``make test-more``: ``make test`` has them one after the other
_ALONE = ("test_counts_follow[", "test_identity_full_gives_the_same_counts[")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "[kafka" in item.name and item.name.startswith(_ALONE):
            item.add_marker(pytest.mark.slow)
