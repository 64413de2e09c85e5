"""One suite of promises for every shape: same input, same counts, same verdicts.

`counting(db, **settings)` runs sentstream on ``db`` for the length of a ``with`` block. A shape is added by adding its
context manager to ``SHAPES``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest

from tests.fix_postgres import Database
from tests.postgres.running import based, running

Counting = Callable[..., AbstractContextManager[None]]


@contextmanager
def embedded(db: Database, **settings: Any) -> Iterator[None]:
    """`sentstream run`: stream and reconciler in threads of the test."""
    with running(db, **settings):
        based(db)
        yield


SHAPES: dict[str, Counting] = {"embedded": embedded}


@pytest.fixture(params=list(SHAPES))
def counting(request: pytest.FixtureRequest) -> Counting:
    return SHAPES[request.param]
