"""Waiting on a condition with a deadline, instead of sleeping for luck."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(probe: Callable[[], T], timeout: float = 10, *, every: float = 0.02) -> T:
    """Asks ``probe`` until its answer is true, and returns that answer. After ``timeout`` seconds the test fails and
    shows the last answer; an AssertionError of the probe counts as "not yet" and is what the test fails with then."""
    deadline = time.monotonic() + timeout
    while True:
        failed = None
        answer = None
        try:
            answer = probe()
        except AssertionError as error:
            failed = error
        else:
            if answer:
                return answer
        if time.monotonic() > deadline:
            if failed is not None:
                raise failed
            raise AssertionError(f"not so within {timeout:g} seconds; the last answer was {answer!r}")
        time.sleep(every)
