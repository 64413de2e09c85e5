"""Fixtures for all tests. The parts: `fix_postgres`, `fix_kafka`, `fix_servers`, `fix_proxy`; `waiting.eventually`."""

from __future__ import annotations

import os
import signal

from hypothesis import HealthCheck, settings

pytest_plugins = ("tests.fix_servers", "tests.fix_postgres", "tests.fix_kafka", "tests.fix_proxy")

# a machine that is busy with other things makes no test fail: pytest's time limit is the only one
settings.register_profile("sentstream", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("sentstream")


def pytest_xdist_auto_num_workers() -> int:
    """``-n auto``: most tests wait most of the time, for a server or for another process."""
    return 3 * (os.cpu_count() or 1)


def pytest_configure() -> None:
    """What a shell starts in the background, or a CI, ignores Ctrl-C, and so would every process that tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
